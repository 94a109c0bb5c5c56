"""The spans of requests that nobody sampled and that failed: made at their end, of what the ledger says."""

import time
from collections.abc import Callable

from l7proxy.core.errors import ProxyError
from l7proxy.core.headers import Headers
from l7proxy.core.message import Request
from l7proxy.telemetry.metrics import GRPC
from l7proxy.telemetry.spans import GRPC_SERVER_ERRORS, Spans
from l7proxy.telemetry.tracing import Parent

LIMIT = 100
"""Failed requests in one second whose spans are made: an overload is not the time for more work."""


class Hindsight:
    """Stands in `Request.span` of every request that is not sampled, one for all of them, and takes nothing down.

    The span of a request that failed gets the id that the next hop was told, those of its attempts get new ones: spans
    that the next hop makes, by its own hindsight, are children of the request's span.
    """

    recording = False

    def __init__(self, spans: Spans, b3: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._spans = spans
        self._b3 = b3
        self._clock = clock
        self._second = self._made = 0

    def attempt(self, request: Request, headers: Headers) -> None:
        """An attempt begins."""

    def end(self, request: Request, status: int, error: BaseException | None) -> None:
        """A request has ended; one that failed gets its spans, and is told from now on to have been sampled."""
        if error is None and status < 500 and request.grpc_status not in GRPC_SERVER_ERRORS:
            return
        second = int(self._clock())
        if second != self._second:
            self._second, self._made = second, 0
        self._made += 1
        if self._made > LIMIT:
            self._spans.exporter.refuse(1 + request.attempt)
        else:
            self._recall(request, status, error)

    def _recall(self, request: Request, status: int, error: BaseException | None) -> None:
        now = time.time_ns()
        epoch = now - time.monotonic_ns()

        def at(seconds: float) -> int:
            return min(epoch + int(seconds * 1e9), now)

        trace_id = request.trace_id
        parent = Parent(trace_id, request.parent_id, None) if request.parent_id else None
        ids = int(trace_id, 16), int(request.span_id or trace_id[16:], 16)
        span = request.span = self._spans.begin(request, parent, self._b3, ids, at(request.t_start))
        tried = request.tried or []
        reason = ""
        for number, attempt in enumerate(tried, 1):
            child = span.child(request, number, reason, at(attempt.t_sent))
            reason = attempt.reason
            called = _CALLED.get(reason, -1)
            failure = ProxyError(attempt.code, attempt.detail) if attempt.code else None
            child.close(request, attempt.upstream, attempt.endpoint, attempt.status, called, failure, at(attempt.t_end))
        if request.attempt > len(tried):
            child = span.child(request, request.attempt, reason, at(request.t_sent))
            # Where there is a code and nothing was cut short, the client got an answer of our own.
            own = ProxyError(request.code, request.detail) if request.code and error is None else None
            if own is not None or not request.t_head:
                child.close(request, request.upstream, request.endpoint, 0, -1, own or error)
            else:
                child.close(request, request.upstream, request.endpoint, status, request.grpc_status, error)
        span.end(request, status, error)


_CALLED = {name.lower().replace("_", "-"): number for number, name in enumerate(GRPC)}
"""gRPC statuses by their names in `retry.on`."""
