"""How much the slow may hold in memory: one account for each client connection, one pool for all of a listener.

A connection that holds more than its share holds its upstreams back; when all of a listener hold more than the limit,
the largest holder is cut. Envoy has both as buffer memory accounts and the overload action `reset_high_memory_stream`.
"""

from collections.abc import Callable

SHARE = 16 * 1024 * 1024
"""Bytes that one connection may hold before its upstreams are held back, where no configuration says so."""

WORTH_COUNTING = 4096
"""Bytes of a request, head and whole body, from which on they count as held while it is under way."""


class BufferPool:
    """The bytes that all connections of one listener hold, and how many they may. `on_full` is called beyond that."""

    __slots__ = ("size", "limit", "share", "on_full")

    def __init__(self, limit: float = float("inf"), share: float = SHARE) -> None:
        self.size = 0
        self.limit = limit
        self.share = share
        self.on_full: Callable[[], None] | None = None


class BufferAccount:
    """The bytes that one connection holds: bodies that wait for a reader, what the client leaves unread, big heads."""

    __slots__ = ("size", "_pool")

    def __init__(self, pool: BufferPool) -> None:
        self.size = 0
        self._pool = pool

    def add(self, size: int) -> None:
        """Counts `size` bytes more, or fewer where it is negative."""
        self.size += size
        pool = self._pool
        pool.size += size
        if size > 0 and pool.size > pool.limit and pool.on_full is not None:
            pool.on_full()

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


UNACCOUNTED = BufferAccount(BufferPool())
"""The account of what belongs to no client connection."""
