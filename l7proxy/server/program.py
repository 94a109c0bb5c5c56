"""What every process of the sidecar needs around its work: a start, an event loop, a last word and an end."""

import asyncio
import os
import select
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, NoReturn

from l7proxy.core.descriptors import raise_limit


def prepare() -> None:
    """Makes the process ready for a long life among strangers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Whatever is opened next would get the number, and log lines or worse with it.
            os.open(os.devnull, os.O_RDWR)
    raise_limit()
    # A thread that computes holds the event loop for at most this long, in place of 5 ms.
    sys.setswitchinterval(0.0005)


def end_at_signals() -> None:
    """Lets SIGTERM and SIGINT end the process at once, until an event loop hears them.

    The kernel drops a signal that process 1 of a container has no handler for.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: leave(128 + number))


def loop_until_done(main: Coroutine[Any, Any, int]) -> int:
    """Runs `main` on the fastest event loop there is, and returns what it returns."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def complain(text: str) -> None:
    """Writes a line to stderr, if it can be written now: a pipe that nobody reads must not keep us from ending."""
    ready = select.poll()
    ready.register(2, select.POLLOUT)
    with suppress(OSError):
        if ready.poll(100):
            os.write(2, text.encode(errors="replace") + b"\n")


def leave(status: int) -> NoReturn:
    """Ends the process now: a thread that waits for a name server or a full pipe is not waited for."""
    os._exit(status)
