"""Finds out that an application does not pass the trace context on, which breaks every trace in two."""

import time
from collections.abc import Callable

from l7proxy.core.message import Request
from l7proxy.core.stats import Stats

PAUSE = 600.0
"""Seconds between two lines in the log."""


class LostContext:
    """Told of each request of the application that came without a trace; counts it while the application serves some.

    Every request to the application has a trace, since we begin one where there is none. What the application asks
    meanwhile without one was most likely asked on behalf of one of them; a call of a background job may be counted too.
    `serving` tells how many requests the application has at hand.
    """

    def __init__(
        self,
        stats: Stats,
        log: Callable[..., None],
        serving: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lost = stats.counter(
            "l7proxy_trace_context_lost_total",
            "Requests that the application made without a trace context while it served requests that have one",
        )
        self._log = log
        self._serving = serving
        self._clock = clock
        self._due = 0.0

    def __call__(self, request: Request) -> None:
        # A CONNECT opens a tunnel: the trace context is inside it.
        if request.method == b"CONNECT" or not self._serving():
            return
        self._lost.value += 1
        now = self._clock()
        if now >= self._due:
            self._due = now + PAUSE
            self._log(
                "warning",
                "trace context lost",
                method=request.method.decode("latin-1"),
                authority=request.authority.decode("latin-1"),
                **request.names(),
            )
