"""Timeouts in bulk: one timer for many deadlines, most of which are moved or forgotten before they pass.

A timer of the event loop costs more than a short handler, and nearly every request would make and cancel one. Here a
deadline that moves is an attribute that changes; who is due is asked once, and may say when to be asked again.
"""

import asyncio
import time
from typing import Protocol

NEVER = float("inf")


class Due(Protocol):
    """Something with a deadline."""

    def on_deadline(self, now: float) -> float | None:
        """Acts if its time has come; returns when to be asked again (monotonic seconds), or None."""


class Deadlines:
    """Asks each watched thing at its time, or up to `tick` seconds later."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tick: float) -> None:
        self._loop = loop
        self._tick = tick
        self._due: dict[int, list[Due]] = {}
        self._next = 0
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, thing: Due, when: float) -> None:
        """Asks `thing.on_deadline` at `when` (monotonic seconds)."""
        if when == NEVER:
            return
        slot = int(when / self._tick) + 1
        bucket = self._due.get(slot)
        if bucket is None:
            self._due[slot] = [thing]
            if self._timer is None or slot < self._next:
                self._schedule(slot)
        else:
            bucket.append(thing)

    def close(self) -> None:
        """Forgets everything."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = slot
        self._timer = self._loop.call_later(max(slot * self._tick - time.monotonic(), 0.0), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = time.monotonic()
        for slot in sorted(slot for slot in self._due if slot * self._tick <= now):
            for thing in self._due.pop(slot):
                again = thing.on_deadline(now)
                if again is not None:
                    self.watch(thing, max(again, now))
        if self._due:
            self._schedule(min(self._due))
