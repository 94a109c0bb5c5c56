"""Trying again where nothing can be lost by it."""

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Annotated, ClassVar, cast

from msgspec import Meta

from l7proxy.core.errors import ProxyError
from l7proxy.core.fields import Duration, Method
from l7proxy.core.handler import Build, Filter, Handler
from l7proxy.core.headers import find
from l7proxy.core.message import Attempt, Request, Response
from l7proxy.core.stream import Stream

IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""RFC 9110 9.2.2."""

GRPC = {
    "cancelled": 1, "unknown": 2, "invalid-argument": 3, "deadline-exceeded": 4, "not-found": 5, "already-exists": 6,
    "permission-denied": 7, "resource-exhausted": 8, "failed-precondition": 9, "aborted": 10, "out-of-range": 11,
    "unimplemented": 12, "internal": 13, "unavailable": 14, "data-loss": 15, "unauthenticated": 16,
}  # fmt: skip

_ERRORS = {"connect-failure": "upstream_connect", "reset": "upstream_reset", "timeout": "upstream_timeout"}
_CONDITIONS = {code: condition for condition, code in _ERRORS.items()}
_STATUSES = {number: name for name, number in GRPC.items()}
_SAFE = ("connect-failure", "refused-stream")
"""Conditions under which the upstream cannot have seen the request."""

_REPLAY = 64 * 1024
"""Bytes of a request body that are kept for another attempt."""

_NAMES = ("connect-failure", "reset", "timeout", "refused-stream", *GRPC)
Condition = Annotated[
    str,
    Meta(
        pattern=f"^({'|'.join(_NAMES)}|[1-5][0-9][0-9]|[1-5]xx)$", extra={"words": (*_NAMES[:4], "503", "5xx", *GRPC)}
    ),
]


class Budget:
    """Retries may be a fifth of the requests of the last ten seconds, and at least ten a second (Linkerd's budget)."""

    RATIO = 0.2
    WINDOW = 10
    MINIMUM = 10.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests: deque[list[float]] = deque()
        self._retries: deque[list[float]] = deque()
        self.requests = 0

    def take(self) -> bool:
        """Spends one retry, or returns False when the budget has none."""
        second = int(self._clock())
        # Requests are counted by bare addition and put into their second only when somebody asks.
        requests = self._sum(self._requests, second, self.requests)
        self.requests = 0
        retries = self._sum(self._retries, second, 0)
        if retries >= self.RATIO * requests + self.MINIMUM * self.WINDOW:
            return False
        self._sum(self._retries, second, 1)
        return True

    def _sum(self, window: deque[list[float]], second: int, more: int) -> float:
        while window and window[0][0] <= second - self.WINDOW:
            window.popleft()
        if more:
            if window and window[-1][0] == second:
                window[-1][1] += more
            else:
                window.append([second, more])
        return sum(count for _, count in window)


class Retry(Filter, frozen=True):
    """Tries a failed request again, on another endpoint if there is one.

    Only while nothing of a response was forwarded, only within the budget (connect failures are exempt, since nothing
    was sent), and only where repeating is harmless: idempotent methods, `methods` listed here, requests with an
    `Idempotency-Key`, gRPC calls where a gRPC status is listed, and any method when the upstream cannot have seen it.
    """

    name: ClassVar[str] = "retry"

    attempts: Annotated[int, Meta(ge=1, le=10, description="How often to try again, at most.")] = 2
    on: Annotated[
        tuple[Condition, ...],
        Meta(
            min_length=1,
            description="`connect-failure`, `reset` (closed before a response head), `timeout` (per try), "
            '`refused-stream`, status codes and classes (`"503"`, `"5xx"`), gRPC status names (`unavailable`).',
        ),
    ] = ("connect-failure", "refused-stream")
    methods: Annotated[tuple[Method, ...], Meta(description="Methods that may be repeated though not idempotent.")] = ()
    base: Annotated[Duration, Meta(ge=0, description="The first pause is a random part of this; it doubles.")] = 0.025
    max: Annotated[Duration, Meta(ge=0, description="The longest pause.")] = 0.25

    def wrap(self, inner: Handler, build: Build) -> Handler:
        codes = frozenset(_ERRORS[condition] for condition in self.on if condition in _ERRORS)
        statuses = frozenset(int(condition) for condition in self.on if condition.isdigit()) | frozenset(
            int(condition[0]) * 100 + rest
            for condition in self.on
            if re.fullmatch("[1-5]xx", condition)
            for rest in range(100)
        )
        grpc = frozenset(GRPC[condition] for condition in self.on if condition in GRPC)
        refused = "refused-stream" in self.on
        repeatable = IDEMPOTENT | {method.encode() for method in self.methods}
        attempts, base, longest, random = self.attempts, self.base, self.max, build.random.random
        careful = bool(set(self.on) - set(_SAFE))
        label = {"l7proxy_route": build.route.name}
        retries = build.stats.counter("l7proxy_retries_total", "Attempts that were made again", **label)
        exhausted = build.stats.counter(
            "l7proxy_retry_budget_exhausted_total", "Retries that the budget did not allow", **label
        )
        budget = build.keep.get(("retry", build.route.name), lambda: Budget(build.clock))

        def may_repeat(request: Request) -> bool:
            """Whether a request that the upstream may have acted on can be sent again."""
            return (
                request.method in repeatable
                or find(request.headers, b"idempotency-key") is not None
                or (bool(grpc) and (find(request.headers, b"content-type") or b"").startswith(b"application/grpc"))
            )

        def wanted(request: Request, error: ProxyError) -> bool:
            code = error.code.name
            if code == "upstream_connect":
                return code in codes
            if getattr(error, "unprocessed", False):
                # HTTP/2's REFUSED_STREAM, or a stream above a GOAWAY's last one (RFC 9113 8.7): never acted on.
                return refused or code in codes
            return code in codes and may_repeat(request)

        def unwanted_answer(request: Request, response: Response) -> str:
            """Returns the condition that an answer meets, or nothing."""
            reason = ""
            if response.status in statuses:
                reason = str(response.status)
            elif grpc:
                status = find(response.headers, b"grpc-status")
                if status is not None and status.isdigit() and int(status) in grpc:
                    reason = _STATUSES[int(status)]
            return reason if reason and may_repeat(request) else ""

        async def handle(request: Request) -> Response:
            budget.requests += 1
            left = attempts
            while True:
                try:
                    response = await inner(request)
                except ProxyError as error:
                    if not left or not wanted(request, error) or not _replayable(request) or _late(request, build):
                        raise
                    if error.code.name != "upstream_connect" and not budget.take():
                        exhausted.value += 1
                        raise
                    code = error.code.name
                    reason = "refused-stream" if getattr(error, "unprocessed", False) else _CONDITIONS[code]
                    _take_down(request, 0, code, error.detail, reason, build.clock())
                else:
                    if (
                        not left
                        or not (statuses or grpc)
                        or not (reason := unwanted_answer(request, response))
                        or not _replayable(request)
                        or _late(request, build)
                    ):
                        return response
                    if not budget.take():
                        exhausted.value += 1
                        return response
                    _discard(response)
                    _take_down(request, response.status, "", "", reason, build.clock())
                pause = min(longest, base * 2 ** (attempts - left)) * random()
                left -= 1
                retries.value += 1
                if pause:
                    await asyncio.sleep(pause)

        async def keep_body(request: Request) -> Response:
            """Keeps a body that is on its way, as far as it may be needed again."""
            if isinstance(request.body, Stream) and request.upgrade is None and may_repeat(request):
                request.body = _Replay.of(request.body)
            return await handle(request)

        return keep_body if careful else handle


class _Replay(Stream):
    """A request body that remembers its first bytes, so that it can be read again from the start."""

    __slots__ = ("_source", "kept")

    @classmethod
    def of(cls, source: Stream) -> "_Replay":
        replay = cls()
        replay._source = source
        replay.kept = []
        return replay

    _source: Stream
    kept: list[bytes] | None

    async def read(self) -> bytes:
        if self.size:
            data = self.take()
        else:
            data = await self._source.read()
            self.total = self._source.total
            self.taken += len(data)
        if self.kept is not None:
            self.kept.append(data)
            if self.taken > _REPLAY:
                self.kept = None
        if not data:
            self.trailers = self._source.trailers
            self.ended = True
        return data

    def close(self, error: BaseException | None = None) -> None:
        if self.kept is None:
            self._source.close(error)

    def rewind(self) -> bool:
        """Makes the next read start over; returns False when too much has been read."""
        if self.kept is None:
            return False
        self.ended = False
        kept, self.kept = self.kept, []
        self.taken = 0
        for data in kept:
            if data:
                self.feed(data)
        # What is fed again did not come again.
        self.total = self._source.total
        return True


def _take_down(request: Request, status: int, code: str, detail: str, reason: str, now: float) -> None:
    """Writes an attempt that another will follow into the ledger, where that one finds nothing of it."""
    if request.tried is None:
        request.tried = []
    times = (request.t_sent, request.t_connected, request.t_head, now)
    request.tried.append(Attempt(request.upstream, request.endpoint, status, code, detail, reason, *times))
    request.t_connected = request.t_head = 0.0


def _replayable(request: Request) -> bool:
    body = request.body
    if type(body) is bytes:
        return len(body) <= _REPLAY
    if isinstance(body, _Replay):
        return body.rewind()
    return cast(Stream, body).taken == 0 and request.upgrade is None


def _late(request: Request, build: Build) -> bool:
    return request.deadline is not None and build.clock() >= request.deadline


def _discard(response: Response) -> None:
    if isinstance(response.body, Stream):
        response.body.close()
    if response.on_end is not None:
        response.on_end(None)
