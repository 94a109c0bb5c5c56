"""Small writes that leave together at the end of a turn of the event loop.

A peer that sleeps is woken by each write, and waking it costs more than the write itself where another core has to be
interrupted. Writes that closely follow each other find it awake: under load this is a third of the time that the kernel
takes for a request (docs/decisions.md).
"""

import asyncio

SMALL = 16 * 1024
"""Bytes of one connection that may wait for the end of the turn; with more, they leave at once."""


class Outbox:
    """The connections with something to write in this turn."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[Corked] = []

    def add(self, corked: "Corked") -> None:
        """Has `corked.flush` called at the end of this turn."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(corked)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for corked in waiting:
            corked.flush()


class Corked:
    """The sending side of a transport: its order is kept, its writes are put off until the end of the turn."""

    __slots__ = ("_transport", "_outbox", "_data", "written")

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._data = b""
        self.written = 0
        """Bytes of the last write: they stay in memory until the kernel has taken the last of them."""

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return len(self._data) + self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Writes `data` after what waits already."""
        if not self._data:
            if len(data) <= SMALL:
                self._data = data
                self._outbox.add(self)
            else:
                self.written = len(data)
                self._transport.write(data)
        else:
            self._data += data
            if len(self._data) > SMALL:
                self.flush()

    def flush(self) -> None:
        """Writes what waits now; what an aborted connection had to say is forgotten."""
        data, self._data = self._data, b""
        if data and not self._transport.is_closing():
            self.written = len(data)
            self._transport.write(data)

    def close(self) -> None:
        """Closes the transport once everything has been written."""
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        """Ends this side after everything that was written."""
        self.flush()
        self._transport.write_eof()
