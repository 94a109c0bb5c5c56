"""Long computations as generators that yield every fraction of a millisecond: run at once, or between requests."""

import asyncio
import gc
import time
from collections.abc import Generator
from typing import Any, TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]

BUSY = 0.0004
"""Seconds that the work may hold the event loop before everybody else has a turn."""


def drained(held: dict[Any, Any] | list[Any]) -> Steps[None]:
    """Empties a table or list in steps: to let go of a hundred thousand objects at once takes tens of milliseconds."""
    pop = held.pop if isinstance(held, list) else held.popitem
    while held:
        for _ in range(min(len(held), 50)):
            pop()
        yield


def finish(steps: Steps[T]) -> T:
    """Runs all steps at once and returns the result; the garbage collector rests meanwhile.

    It would walk what the steps make again and again: three quarters of the time that 10,000 routes take to compile.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        while True:
            next(steps)
    except StopIteration as done:
        value: T = done.value
        return value
    finally:
        if collecting:
            gc.enable()


async def between(steps: Steps[T], busy: float = BUSY) -> T:
    """Runs the steps a few at a time, so that a request on the same event loop waits for little more than `busy`.

    The garbage collector rests meanwhile, and what the steps made is then kept out of its sight: walking hundreds of
    thousands of objects that stay would hold the loop for tens of milliseconds. Reference counting still frees them.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        while True:
            until = time.perf_counter() + busy
            while time.perf_counter() < until:
                next(steps)
            await asyncio.sleep(0)
    except StopIteration as done:
        value: T = done.value
        return value
    finally:
        steps.close()
        if collecting:
            gc.freeze()
            gc.enable()
