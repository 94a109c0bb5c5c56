"""Accepts connections and settles, once for each, what is spoken on it: TLS or not, HTTP/1.1 or HTTP/2."""

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence

from l7proxy.core.descriptors import accept_ceiling, below
from l7proxy.server.h1 import H1Protocol
from l7proxy.server.listener import NEVER, Listener

_BATCH = 64
"""Connections accepted in one turn of the event loop."""
_BACKOFF = 0.1
"""Seconds between two looks whether a process that had too much to do can take more."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Takes connections from listening sockets, and pauses while the process can hold no more.

    `make` returns the protocol for a connection, plain HTTP without it. `admits` returns what tells which addresses may
    connect; others are closed before a byte is read. `busy` says that the process has enough to do; where it is given,
    the last file descriptors are left to others.
    """

    def __init__(
        self,
        listener: Listener,
        sockets: Sequence[socket.socket],
        make: Callable[[], asyncio.Protocol] | None = None,
        admits: Callable[[], Callable[[str], bool] | None] = lambda: None,
        busy: Callable[[], bool] | None = None,
    ) -> None:
        self.listener = listener
        self._make = make or (lambda: H1Protocol(listener))
        self._admits = admits
        self._busy = busy
        self._refused = listener.stats.counter(
            "l7proxy_connections_refused_total", "Connections refused because of their address", listener=listener.name
        )
        self._sockets = list(sockets)
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._exhausted = listener.stats.counter(
            "l7proxy_accept_paused_total", "Times that accepting paused because a limit was reached",
            listener=listener.name,
        )  # fmt: skip
        listener.on_closed = self._look
        for sock in self._sockets:
            sock.setblocking(False)
        self._resume()

    @property
    def opening(self) -> int:
        """Connections that were accepted, and speak no protocol yet."""
        return len(self._opening)

    @property
    def address(self) -> str:
        """The addresses that are listened on."""
        names = [sock.getsockname() for sock in self._sockets]
        return " ".join(f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name) for name in names)

    def close(self) -> None:
        """Stops accepting and closes the listening sockets; connections live on."""
        self.pause()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()

    def pause(self) -> None:
        """Leaves new connections in the kernel's queue."""
        self._paused = True
        for sock in self._sockets:
            self.listener.loop.remove_reader(sock)

    def _resume(self) -> None:
        self._paused = False
        for sock in self._sockets:
            self.listener.loop.add_reader(sock, self._accept, sock)

    def _look(self) -> None:
        """Goes on accepting if the reason for the pause is gone, or if not looks again when a connection has ended."""
        if self._paused and self._sockets and not self._full():
            if self._busy is not None and (self._busy() or not below(accept_ceiling())):
                self._look_later()
            else:
                self._resume()

    def _full(self) -> bool:
        return len(self.listener.connections) + len(self._opening) >= self.listener.max_connections

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        # A connection that ended before it opened would not be missed otherwise.
        self._look()

    def _look_later(self) -> None:
        if self._timer is None:
            self._timer = self.listener.loop.call_later(_BACKOFF, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._look()

    def _accept(self, server: socket.socket) -> None:
        listener = self.listener
        admits = self._admits()
        busy = self._busy
        ceiling = NEVER if busy is None else accept_ceiling()
        if busy is not None and busy():
            self._exhaust()
            return
        for _ in range(_BATCH):
            if self._full():
                self._exhausted.value += 1
                self.pause()
                return
            try:
                sock, address = server.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._exhaust()
                return
            if admits is not None and isinstance(address, tuple) and not admits(address[0]):
                self._refused.value += 1
                sock.close()
                continue
            task = listener.loop.create_task(self._open(sock))
            self._opening.add(task)
            task.add_done_callback(self._opened)
            if sock.fileno() >= ceiling:
                self._exhaust()
                return

    def _exhaust(self) -> None:
        self._exhausted.value += 1
        self.pause()
        self._look_later()

    async def _open(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            await self.listener.loop.connect_accepted_socket(self._make, sock)
        except OSError:
            sock.close()
