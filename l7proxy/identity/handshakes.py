"""How many handshakes may be under way, and how much of the event loop they may have."""

import asyncio
from collections import deque
from typing import Protocol

from l7proxy.core.stats import Stats

_FEW = 4


class Work(Protocol):
    """A handshake that can go on."""

    def advance(self) -> None: ...


class Handshakes:
    """Runs one step of one handshake in a turn of the event loop, so that a flood of them only delays itself.

    A step costs up to half a millisecond of public-key work; a hundred in a row would hold up every request. While only
    a few are under way they go on at once.
    """

    def __init__(self, stats: Stats, most: int = 1024) -> None:
        self.most = most
        self.pending = 0
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Work] = deque()
        stats.gauge("l7proxy_tls_handshakes_pending", "TLS handshakes under way", lambda: self.pending)

    @property
    def full(self) -> bool:
        """Whether as many handshakes are under way as there may be."""
        return self.pending >= self.most

    def step(self, work: Work) -> None:
        """Lets a handshake go on: now while there are few, else when its turn comes."""
        if self.pending <= _FEW and not self._queue:
            work.advance()
            return
        self._queue.append(work)
        if len(self._queue) == 1:
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        work = self._queue[0]
        try:
            work.advance()
        finally:
            self._queue.popleft()
            if self._queue:
                self._loop.call_soon(self._next)
