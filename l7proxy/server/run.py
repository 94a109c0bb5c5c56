"""The sidecar as a program: opens what it needs, runs until a signal ends it, and leaves."""

import asyncio
import os
import select
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, NoReturn

from l7proxy.config.model import Model
from l7proxy.core.descriptors import raise_limit
from l7proxy.core.errors import ConfigError
from l7proxy.core.handler import Source
from l7proxy.server.listeners import Sockets, open_sockets
from l7proxy.server.process import Process, serve


def run(model: Model, source: Source | None = None) -> int:
    """Runs the sidecar until it is told to end; returns the exit status."""
    if source is not None:
        # A reload that is asked for before there is anything to reload must not end the process.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        sockets = open_sockets(model.sidecar.spec, {})
    except OSError as error:
        complain(error.strerror or str(error))
        return 1
    return loop_until_done(_alone(model, source, sockets))


async def _alone(model: Model, source: Source | None, sockets: Sockets) -> int:
    try:
        process = Process(model, sockets)
    except ConfigError as error:
        complain(str(error))
        return 1
    await serve(process, source)
    return 0


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
