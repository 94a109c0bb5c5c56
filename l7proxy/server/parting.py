"""The last moments of a connection to a client: what was written reaches it, if it reads.

To close a socket that holds unread bytes makes the kernel reset the connection, and the client may lose even what has
arrived. So the sending side is closed first, what still comes is read and dropped, and the end waits for the client as
long as it takes what is left.
"""

import asyncio
import fcntl
import socket
import struct
import termios
from contextlib import suppress

_LOOK = 0.05
"""Seconds between two looks whether the client has everything, where nothing is expected of it any more."""

_NO_LINGER = struct.pack("ii", 1, 0)


def part(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, patience: float, hear: bool) -> None:
    """Ends our side now, and the connection once the client has everything or has taken nothing for `patience` seconds.

    With `hear` the client is still sending: it gets that time to notice and to close, even if it has everything.
    """
    with suppress(OSError, NotImplementedError):
        transport.write_eof()
    pause = patience if hear else min(_LOOK, patience)
    loop.call_later(pause, _look, transport, loop, patience, pause, _outstanding(transport), loop.time())


def _look(
    transport: asyncio.Transport,
    loop: asyncio.AbstractEventLoop,
    patience: float,
    pause: float,
    before: int,
    since: float,
) -> None:
    """Ends the connection, or looks again after `pause` where the client has taken some of what was `before`."""
    if transport.is_closing():
        return
    left = _outstanding(transport)
    now = loop.time()
    if left < before:
        since = now
    if left and now - since < patience:
        loop.call_later(pause, _look, transport, loop, patience, pause, left, since)
    else:
        transport.abort()


def reset(transport: asyncio.Transport) -> None:
    """Ends the connection so that the client cannot take it for a clean end: with a TCP reset."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


def _outstanding(transport: asyncio.Transport) -> int:
    """Returns how many bytes the client has not acknowledged yet: those in this process and those in the kernel."""
    queued = 0
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with suppress(OSError):
            (queued,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))
    return transport.get_write_buffer_size() + queued
