"""How much the slow may hold in memory: one account for each client connection, one pool for all of a listener.

A connection that holds more than its share holds its upstreams back; when all of a listener hold more than the limit,
the largest holder is cut. Envoy has both as buffer memory accounts and the overload action `reset_high_memory_stream`.
"""

from collections.abc import Callable
from typing import Protocol

SHARE = 16 * 1024 * 1024
"""Bytes that one connection may hold before its upstreams are held back, where no configuration says so."""

WORTH_COUNTING = 4096
"""Bytes of a request, head and whole body, from which on they count as held while it is under way."""

_READ = 256 * 1024
"""Bytes that one read from a socket brings at most."""


class BufferPool:
    """The bytes that all connections of one listener hold, and how many they may. `on_full` is called beyond that."""

    __slots__ = ("size", "limit", "share", "on_full")

    def __init__(self, limit: float = float("inf"), share: float = SHARE) -> None:
        self.size = 0
        self.limit = limit
        self.share = share
        self.on_full: Callable[[], None] | None = None


class Source(Protocol):
    """Where bytes for a connection come from."""

    def hold(self) -> None:
        """Reads nothing more until `release`."""

    def release(self) -> None:
        """Reads on."""


class BufferAccount:
    """The bytes that one connection holds: bodies that wait for a reader, what the client leaves unread, big heads.

    `sources` are what reads for its requests, in their order, where there may be many at a time: while the connection
    holds its share none of them reads. `held` are those that wait for `release`.
    """

    __slots__ = ("size", "sources", "held", "_pool")

    def __init__(self, pool: BufferPool, many: bool = False) -> None:
        self.size = 0
        self.sources: dict[Source, None] | None = {} if many else None
        self._pool = pool
        self.held: dict[Source, None] = {}

    def add(self, size: int) -> None:
        """Counts `size` bytes more, or fewer where it is negative."""
        self.size += size
        pool = self._pool
        pool.size += size
        if size > 0:
            if self.sources and self.size > pool.share >= self.size - size:
                for source in self.sources:
                    self._hold(source)
            if pool.size > pool.limit and pool.on_full is not None:
                pool.on_full()

    def enter(self, source: Source) -> None:
        """A request begins to wait for an answer from `source`; `leave` must follow."""
        if self.sources is not None:
            self.sources[source] = None
            if self.size > self._pool.share:
                self._hold(source)

    def leave(self, source: Source) -> None:
        """The answer has come, or will not."""
        if self.sources is not None:
            self.sources.pop(source, None)
            if self.held:
                self.held.pop(source, None)

    def release(self) -> None:
        """Lets as many sources read on as there is room for what one read of each may bring; one where there is any."""
        room = self._pool.share - self.size
        while self.held and room >= 0:
            source = next(iter(self.held))
            del self.held[source]
            source.release()
            room -= _READ

    @property
    def full(self) -> bool:
        """Whether the connection holds its share."""
        return self.size > self._pool.share

    @property
    def strained(self) -> bool:
        """Whether no more should be read on behalf of this connection than somebody takes."""
        pool = self._pool
        return self.size > pool.share or pool.size * 2 > pool.limit

    def close(self) -> None:
        """The connection has ended: what it still holds goes with it, and counts no longer."""
        self._pool.size -= self.size
        self._pool = BufferPool()
        self.size = 0

    def _hold(self, source: Source) -> None:
        if source not in self.held:
            self.held[source] = None
            source.hold()


UNACCOUNTED = BufferAccount(BufferPool())
"""The account of what belongs to no client connection."""
