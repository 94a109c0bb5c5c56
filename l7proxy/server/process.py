"""One process from its first socket to its last byte: listeners, signals, reload and drain."""

import asyncio
import contextlib
import gc
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from l7proxy.admin import admin_app, health_app, metrics_app
from l7proxy.config.model import Http2Limits, Model, Sidecar
from l7proxy.core.handler import Source
from l7proxy.core.stats import Stats
from l7proxy.identity.handshakes import Handshakes
from l7proxy.proxy.app import make_app, make_refusals
from l7proxy.proxy.control import Control
from l7proxy.server.accept import Acceptor
from l7proxy.server.hosting import hosted
from l7proxy.server.hypercorn import bind
from l7proxy.server.listener import NEVER, Listener, Serve, Timeouts
from l7proxy.server.secure import Secure
from l7proxy.server.view import View
from l7proxy.telemetry.facade import Telemetry
from l7proxy.telemetry.log import Log
from l7proxy.wire.framing import Limits
from l7proxy.wire.h2_limits import Allowance, H2Limits

DRAIN_TICK = 0.05


class Process:
    """The sidecar as a running process.

    Raises OSError when an address cannot be listened on, and ConfigError when the first model cannot be compiled.
    """

    def __init__(self, model: Model, source: Source | None) -> None:
        self._loop = asyncio.get_running_loop()
        stats = Stats()
        self._telemetry = Telemetry(stats, Log(stats))
        self._source = source
        self._control = Control(self._telemetry, model)
        self._view = View(self._control, self._begin_drain)
        self._listeners: dict[str, Listener] = {}
        self._acceptors: dict[str, Acceptor] = {}
        self._handshakes = Handshakes(stats)
        self._stop = asyncio.Event()
        self._signals = 0
        spec = model.sidecar.spec
        self._grace = spec.drain.grace
        sockets = self._bind(spec)
        live = self._control.live
        apps: dict[str, Serve] = {
            "inbound": make_app(live, True),
            "outbound": make_app(live, False),
            "admin": hosted(admin_app(self._view)),
            "metrics": hosted(metrics_app(self._view)),
            "health": hosted(health_app(self._view)),
        }
        for name, opened in sockets.items():
            self._listen(name, apps[name], opened, spec)

    async def run(self) -> int:
        """Serves until a signal ends it; returns the exit status."""
        loop = self._loop
        loop.set_exception_handler(self._on_exception)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_end)
        loop.add_signal_handler(signal.SIGUSR1, self._telemetry.reopen)
        self._telemetry.start(loop)
        if self._source is not None:
            self._control.spawn(self._control.follow(self._source))
            reload = getattr(self._source, "reload", None)
            if reload is not None:
                loop.add_signal_handler(signal.SIGHUP, reload)
        # What is here now stays: a collection that walked it would only make requests wait.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        for name, acceptor in self._acceptors.items():
            self._telemetry.log("info", "listening", listener=name, address=acceptor.address)
        await self._stop.wait()
        await self._drain()
        for listener in self._listeners.values():
            listener.close()
        self._control.close()
        await asyncio.sleep(0)
        self._telemetry.close()
        return 0

    def _bind(self, spec: Sidecar) -> dict[str, list[socket.socket]]:
        blocks = {
            "inbound": spec.inbound,
            "outbound": spec.outbound,
            "admin": spec.admin,
            "metrics": spec.metrics,
            "health": spec.health,
        }
        sockets: dict[str, list[socket.socket]] = {}
        try:
            for name, block in blocks.items():
                if block is not None:
                    sockets[name] = bind(block.listen)
        except OSError:
            for opened in sockets.values():
                for sock in opened:
                    sock.close()
            raise
        return sockets

    def _listen(self, name: str, serve: Serve, sockets: Sequence[socket.socket], spec: Sidecar) -> None:
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
        h2_limits = _h2_limits(spec.limits.http2, limits)
        listener = Listener(
            name, serve, self._telemetry.stats, limits, timeouts, service=spec.service.name, h2_limits=h2_limits
        )
        self._listeners[name] = listener
        if name in ("inbound", "outbound"):
            listener.on_refusal = make_refusals(self._control.live, name == "inbound")
        if name == "inbound":
            live = self._control.live
            secure = Secure(listener, lambda: live.snapshot.tls, self._handshakes, self._telemetry.log)
            self._acceptors[name] = Acceptor(listener, sockets, secure.protocol, lambda: live.snapshot.admits)
        else:
            self._acceptors[name] = Acceptor(listener, sockets)

    def _on_end(self) -> None:
        self._signals += 1
        if self._signals > 1:
            # Asked twice: whoever it is does not want to wait.
            self._grace = 0.0
        self._stop.set()

    def _begin_drain(self) -> None:
        if not self._view.draining:
            self._view.draining = True
            for name in ("inbound", "outbound"):
                listener = self._listeners.get(name)
                if listener is not None:
                    listener.draining = True
                    for connection in list(listener.connections):
                        connection.drain()

    async def _drain(self) -> None:
        """Goes on serving while clients move away; ends when none is left or the grace period is over."""
        started = time.monotonic()
        self._begin_drain()
        traffic = [listener for name, listener in self._listeners.items() if name in ("inbound", "outbound")]
        before = sum(listener.answered for listener in traffic)
        while any(listener.connections for listener in traffic) and time.monotonic() - started < self._grace:
            await asyncio.sleep(DRAIN_TICK)
        for name in ("inbound", "outbound"):
            if name in self._acceptors:
                self._acceptors[name].close()
        self._telemetry.log(
            "info",
            "drained",
            seconds=round(time.monotonic() - started, 3),
            finished=sum(listener.answered for listener in traffic) - before,
            cut=sum(connection.active for listener in traffic for connection in listener.connections),
            connections_closed=sum(len(listener.connections) for listener in traffic),
        )

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self._telemetry.log(
            "error",
            "internal error",
            message=str(context.get("message", "")),
            error=f"{type(error).__name__}: {error}" if error is not None else "",
        )


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


def serve(model: Model, source: Source | None = None) -> int:
    """Runs the sidecar until it is told to end; returns the exit status."""

    async def main() -> int:
        try:
            process = Process(model, source)
        except OSError as error:
            print(error.strerror or error, file=sys.stderr)
            return 1
        return await process.run()

    if source is not None:
        # A reload that is asked for before there is anything to reload must not end the process.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.setswitchinterval(0.0005)
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.run(main())
    return asyncio.run(main())
