"""Reading no faster than others can follow: paused for a slow reader, and in slices where little bytes cost much."""

import asyncio


class PacedProtocol(asyncio.Protocol):
    """A protocol that says when it reads.

    `_yield_turn` leaves what has been read, and was too much for one turn of the event loop, to the next turn, in which
    `_read_on` is called. Until then nothing more is read from the transport.
    """

    transport: asyncio.Transport | None = None
    _reading = True
    _yielded = False

    def _read_on(self) -> None:
        """Goes on with what has been read; not called once the connection has ended."""
        raise NotImplementedError

    def _yield_turn(self) -> None:
        self._pause_reading()
        if not self._yielded:
            self._yielded = True
            asyncio.get_running_loop().call_soon(self._on_turn)

    def _on_turn(self) -> None:
        self._yielded = False
        if self.transport is not None:
            self._read_on()

    def _pause_reading(self) -> None:
        if self._reading and self.transport is not None:
            self._reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._reading and self.transport is not None and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()
