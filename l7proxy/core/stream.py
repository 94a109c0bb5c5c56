"""One direction of a message body: bytes that a protocol feeds and one reader takes, with backpressure."""

import asyncio
from collections import deque
from collections.abc import Callable

from l7proxy.core.buffers import UNACCOUNTED, BufferAccount
from l7proxy.core.headers import Headers

HIGH_WATER = 256 * 1024
"""Bytes that a stream holds before its source should stop feeding; h2 sources count window credit instead."""
LOW_WATER = 16 * 1024
"""The same for a connection that holds its share already, and for all while a listener is short of memory."""
WRITE_BUFFER = 0
"""The high-water mark of sockets: what the kernel does not take at once is counted, and no more is written."""
_SMALL = 1024
"""Bytes below which a piece is joined with the one before it: each object of its own costs 33 bytes more."""


class Stream:
    """A body on its way.

    The source calls `feed`, then `end` or `fail`. The reader awaits `read` until it returns b"", after which `trailers`
    holds the trailer fields, if any. `consumed(n)` tells the source that the reader took n bytes; `closed()` that the
    reader gave up before the end. `wanted()`, if set, is called once when somebody first waits for bytes (that is when
    `100 Continue` is due). `total` counts the bytes
    fed and `taken` those read; `source` is whatever must live as long as the stream. `account` is that of the client's
    connection, whichever direction the body has.
    """

    __slots__ = (
        "_chunks",
        "_consumed",
        "_closed",
        "_waiter",
        "wanted",
        "_sink",
        "account",
        "source",
        "size",
        "total",
        "taken",
        "ended",
        "error",
        "failed",
        "trailers",
        "_admitted",
    )

    def __init__(
        self,
        consumed: Callable[[int], None] | None = None,
        closed: Callable[[], None] | None = None,
        account: BufferAccount = UNACCOUNTED,
    ) -> None:
        self.account = account
        self._chunks: deque[bytes] = deque()
        self._consumed = consumed
        self._closed = closed
        self._waiter: asyncio.Future[None] | None = None
        self.wanted: Callable[[], None] | None = None
        self._sink: Callable[[bytes], bool] | None = None
        self.size = 0
        self.total = 0
        self.taken = 0
        self.source: object = None
        self.ended = False
        self.error: BaseException | None = None
        self.failed = False
        self.trailers: Headers | None = None
        self._admitted: Callable[[Headers], Headers] | None = None

    def restrict(self, admitted: Callable[[Headers], Headers]) -> None:
        """Sets what returns those of the trailer fields that the reader may get."""
        self._admitted = admitted
        if self.trailers:
            self.trailers = admitted(self.trailers)

    def on_consumed(self, consumed: Callable[[int], None]) -> None:
        """Sets whom to tell when the reader takes bytes."""
        self._consumed = consumed

    def feed(self, data: bytes) -> None:
        """Adds bytes; what comes after the end or a failure is dropped."""
        if self.ended:
            return
        self.total += len(data)
        size = len(data)
        if self._sink is not None:
            self.taken += size
            if not self._sink(data):
                self._sink = None
                self._wake()
            if self._consumed is not None:
                self._consumed(size)
            return
        chunks = self._chunks
        if size < _SMALL and chunks and len(chunks[-1]) < _SMALL:
            chunks[-1] += data
        else:
            chunks.append(data)
        self.size += size
        self.account.add(size)
        self._wake()

    def end(self, trailers: Headers | None = None) -> None:
        """Marks the clean end of the body."""
        if not self.ended:
            self.trailers = self._admitted(trailers) if trailers and self._admitted is not None else trailers
            self.ended = True
            self._wake()

    def fail(self, error: BaseException) -> None:
        """Marks an end that is not clean: the reader gets `error` once it has read what came before."""
        if not self.ended:
            self.error = error
            self.failed = self.ended = True
            self._wake()

    async def read(self) -> bytes:
        """Returns all bytes that are there, waiting for some; b"" at the end; raises what `fail` was given."""
        while not self._chunks:
            if self.ended:
                if self.failed:
                    self._raise()
                return b""
            if self.wanted is not None:
                wanted, self.wanted = self.wanted, None
                wanted()
                continue
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.take()

    async def splice(self, write: Callable[[bytes], bool]) -> None:
        """Hands bytes to `write` as they are fed, without a turn of the loop between.

        Returns once `write` says that it is full (False), at the end, or at once when there is something to read.
        """
        if self._chunks or self.ended or self.wanted is not None:
            return
        self._sink = write
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = self._sink = None

    def _raise(self) -> None:
        """Raises what the source failed with, and lets go of it: its traceback leads back here."""
        error, self.error = self.error, None
        try:
            raise error or ConnectionAbortedError("this body has failed")
        finally:
            del error

    def take(self) -> bytes:
        """Returns all bytes that are there without waiting; b"" when there are none."""
        chunks = self._chunks
        if not chunks:
            return b""
        data = chunks.popleft() if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        size, self.size = self.size, 0
        self.account.add(-size)
        self.taken += size
        if self._consumed is not None:
            self._consumed(size)
        return data

    @property
    def above_high_water(self) -> bool:
        """Whether the source should stop feeding until somebody has read."""
        size = self.size
        return size > HIGH_WATER or (size > LOW_WATER and self.account.strained)

    @property
    def drained(self) -> bool:
        """True when the clean end has been reached and every byte was read."""
        return self.ended and not self.failed and not self._chunks

    def close(self, error: BaseException | None = None) -> None:
        """The reader gives up: buffered bytes are dropped and the source is told, unless it had ended.

        Who gives up in place of the reader names the `error` that the reader gets.
        """
        self._chunks.clear()
        self.account.add(-self.size)
        self.size = 0
        if not self.ended:
            self.failed = self.ended = True
            self.error = error or ConnectionAbortedError("the reader of this body gave up")
            self._wake()
            if self._closed is not None:
                self._closed()

    def __del__(self) -> None:
        self.account.add(-self.size)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
