"""How many handshakes may be under way, and how much of the event loop they may have."""

import asyncio
from collections import deque
from typing import Protocol

from l7proxy.core.stats import Stats


class Work(Protocol):
    """A handshake that can go on."""

    def advance(self) -> None: ...


class Handshakes:
    """Runs one step of one handshake in a turn of the event loop, so that a flood of them only delays itself.

    A step costs half a millisecond of public-key work; a hundred in a row would hold up every request.
    """

    def __init__(self, stats: Stats, most: int = 1024) -> None:
        self.most = most
        self.pending = 0
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Work] = deque()
        self._running = False
        stats.gauge("l7proxy_tls_handshakes_pending", "TLS handshakes under way", lambda: self.pending)

    @property
    def full(self) -> bool:
        """Whether as many handshakes are under way as there may be."""
        return self.pending >= self.most

    def step(self, work: Work) -> None:
        """Lets a handshake go on: now if none has in this turn of the loop, else in one of the next turns."""
        if self._running:
            self._queue.append(work)
        else:
            self._running = True
            self._loop.call_soon(self._next)
            work.advance()

    def _next(self) -> None:
        if self._queue:
            self._loop.call_soon(self._next)
            self._queue.popleft().advance()
        else:
            self._running = False
