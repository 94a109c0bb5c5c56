"""The listening addresses of one process by name: `inbound` and `outbound` carry traffic, others serve operators."""

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack

from l7proxy.config.model import Http2Limits, Sidecar
from l7proxy.core.address import end_of
from l7proxy.core.buffers import BufferPool
from l7proxy.core.stats import Stats
from l7proxy.identity.handshakes import Handshakes
from l7proxy.proxy.app import make_app, make_refusals
from l7proxy.proxy.snapshot import Live
from l7proxy.server.accept import Acceptor
from l7proxy.server.hypercorn import bind
from l7proxy.server.listener import NEVER, Listener, Serve, Timeouts
from l7proxy.server.secure import Secure
from l7proxy.wire.framing import Limits
from l7proxy.wire.h2_limits import Allowance, H2Limits

TRAFFIC = ("inbound", "outbound")

Sockets = dict[str, list[socket.socket]]
"""Listening sockets by the name of the listener."""


def addresses(spec: Sidecar) -> dict[str, str]:
    """Returns what is to be listened on, by name."""
    blocks = {
        "inbound": spec.inbound,
        "outbound": spec.outbound,
        "admin": spec.admin,
        "metrics": spec.metrics,
        "health": spec.health,
    }
    return {name: block.listen for name, block in blocks.items() if block is not None}


def open_sockets(spec: Sidecar, given: Mapping[tuple[str, str], Sequence[socket.socket]]) -> Sockets:
    """Opens the listening sockets, one for each worker where they carry traffic; raises OSError that says which failed.

    `given` are open ones by name and address, which are used as they are.
    """
    with ExitStack() as stack:
        sockets: Sockets = {}
        for name, address in addresses(spec).items():
            opened = given.get((name, address)) or bind(address, spec.workers if name in TRAFFIC else 1)
            sockets[name] = list(opened)
            for sock in opened:
                stack.callback(sock.close)
        stack.pop_all()
        return sockets


def ends(sockets: Sockets) -> list[tuple[str, int]]:
    """Returns the addresses that sockets are bound to, each once; a Unix socket has none."""
    bound = [end_of(sock.getsockname()) for opened in sockets.values() for sock in opened]
    return list(dict.fromkeys(end for end in bound if end is not None))


class Listeners:
    """What is listened on, and the connections of each."""

    def __init__(self, stats: Stats, spec: Sidecar) -> None:
        self._stats = stats
        self._spec = spec
        self._handshakes = Handshakes(stats)
        self.all: dict[str, Listener] = {}
        self._acceptors: dict[str, Acceptor] = {}

    @property
    def traffic(self) -> list[Listener]:
        """Those that are there to carry traffic."""
        return [listener for name, listener in self.all.items() if name in TRAFFIC]

    @property
    def opening(self) -> bool:
        """Whether connections were accepted that do not count as open yet."""
        return self._handshakes.pending > 0 or any(acceptor.opening for acceptor in self._acceptors.values())

    def addresses(self) -> dict[str, str]:
        """Returns what is listened on, by name."""
        return {name: acceptor.address for name, acceptor in self._acceptors.items()}

    def operate(self, name: str, serve: Serve, sockets: Sequence[socket.socket]) -> None:
        """Serves operators: nothing that traffic does keeps them out."""
        self._acceptors[name] = Acceptor(self._listener(name, serve), sockets)

    def carry(self, name: str, live: Live, sockets: Sequence[socket.socket], log: Callable[..., None]) -> None:
        """Serves traffic as the live configuration says."""
        inbound = name == "inbound"
        buffers = live.inbound_buffers if inbound else live.outbound_buffers
        listener = self._listener(name, make_app(live, inbound), buffers)
        listener.on_refusal = make_refusals(live, inbound)

        def busy() -> bool:
            return live.active >= live.max_active

        if inbound:
            secure = Secure(listener, lambda: live.snapshot.tls, self._handshakes, log)
            acceptor = Acceptor(listener, sockets, secure.protocol, lambda: live.snapshot.admits, busy)
        else:
            acceptor = Acceptor(listener, sockets, busy=busy)
        self._acceptors[name] = acceptor

    def stop_accepting(self, names: Iterable[str]) -> None:
        """Closes listening sockets; connections live on."""
        for name in names:
            if name in self._acceptors:
                self._acceptors[name].close()

    def resign(self) -> None:
        """Another process listens in our place: accepts nothing more, and sends operators' connections there."""
        self.stop_accepting(self._acceptors)
        for name, listener in self.all.items():
            if name not in TRAFFIC:
                listener.patience = 0.0
                listener.drain()

    def close(self) -> None:
        """Ends everything."""
        self.stop_accepting(self._acceptors)
        for listener in self.all.values():
            listener.close()

    def _listener(self, name: str, serve: Serve, buffers: BufferPool | None = None) -> Listener:
        spec = self._spec
        limits = Limits(
            target=spec.limits.target,
            head=spec.limits.header_block,
            header=spec.limits.header_size,
            headers=spec.limits.header_count,
        )
        timeouts = Timeouts(
            head=spec.timeouts.header,
            idle=spec.timeouts.connection_idle,
            stream=spec.timeouts.stream_idle or NEVER,
            max_age=spec.timeouts.connection_age or NEVER,
            goaway=spec.drain.goaway,
        )
        listener = self.all[name] = Listener(
            name,
            serve,
            self._stats,
            limits,
            timeouts,
            spec.limits.connections,
            spec.service.name,
            _h2_limits(spec.limits.http2, limits),
            buffers,
        )
        return listener


def _h2_limits(http2: Http2Limits, limits: Limits) -> H2Limits:
    return H2Limits(
        streams=http2.concurrent_streams,
        stream_window=http2.stream_window,
        stream_window_max=max(http2.stream_window, http2.stream_window_max),
        connection_window=http2.connection_window,
        buffered=http2.buffered,
        head=limits.head,
        header=limits.header,
        headers=limits.headers,
        continuations=http2.continuations,
        resets=Allowance(http2.resets, 30, 1),
        pings=Allowance(http2.pings, 10, 1),
        settings=Allowance(http2.settings, 1),
        priorities=Allowance(http2.priorities, 10, 2),
        window_updates=Allowance(http2.window_updates, 100, 8),
        empty_data=Allowance(http2.empty_data, 10, 0.1),
        stray_frames=Allowance(http2.stray_frames, 100, 1),
    )
