"""How many requests a caller may make."""

import math
from collections.abc import Callable
from typing import Annotated, ClassVar

from msgspec import Meta

from l7proxy.core.errors import ProxyError
from l7proxy.core.fields import Duration
from l7proxy.core.handler import Build, Filter, Handler
from l7proxy.core.headers import spellings
from l7proxy.core.message import Request, Response

MAX_KEYS = 10_000
"""Callers kept apart on one route: the one that is there longest makes room for a new one."""


class Buckets:
    """Token buckets by key. A bucket is [tokens, monotonic time of its last refill]; full ones are those not there."""

    def __init__(self) -> None:
        self.by_key: dict[str, list[float]] = {}


class RateLimit(Filter, frozen=True):
    """Refuses what exceeds `requests` per `per` with 429 `rate_limited` and says when to come back.

    A token bucket for each key: it holds `burst` tokens and is refilled evenly. It lives in this process and survives a
    change of configuration. Every answer carries `ratelimit-limit`, `ratelimit-remaining` and `ratelimit-reset`.
    """

    name: ClassVar[str] = "rateLimit"
    guards: ClassVar[bool] = True

    requests: Annotated[int, Meta(ge=1, le=10_000_000, description="How many requests, for each key.")]
    per: Annotated[Duration, Meta(gt=0, description="In which time.")] = 1.0
    by: Annotated[
        str,
        Meta(
            pattern=r"^(global|identity|sourceIP|header:[!#$%&'*+.^_`|~0-9A-Za-z-]+)$",
            description="What is counted apart: `global`, `identity`, `sourceIP` or `header:<name>`.",
            extra={"words": ("global", "identity", "sourceIP", "header:<name>")},
        ),
    ] = "global"
    burst: Annotated[
        Annotated[int, Meta(ge=1, le=10_000_000)] | None,
        Meta(description="How many at once; by default as many as `requests`."),
    ] = None

    @property
    def request_fields(self) -> tuple[str, ...]:
        kind, _, name = self.by.partition(":")
        return (name.lower(),) if kind == "header" else ()

    def wrap(self, inner: Handler, build: Build) -> Handler:
        size = float(self.burst or self.requests)
        rate = self.requests / self.per
        key_of = _key(self.by)
        clock = build.clock
        # The limit itself is no part of the key: a changed limit goes on with the tokens that are left.
        buckets = build.keep.get(("rateLimit", build.route.inbound, build.route.name, self.by), Buckets).by_key
        refused = build.stats.counter(
            "l7proxy_rate_limited_total", "Requests refused by a rate limit", l7proxy_route=build.route.name
        )
        build.stats.gauge(
            "l7proxy_rate_limit_keys",
            "Callers that a rate limit keeps apart",
            lambda: len(buckets),
            l7proxy_route=build.route.name,
        )
        limit = (b"ratelimit-limit", b"%d" % self.requests)

        async def handle(request: Request) -> Response:
            key = key_of(request)
            now = clock()
            bucket = buckets.get(key)
            if bucket is None:
                if len(buckets) >= MAX_KEYS:
                    del buckets[next(iter(buckets))]
                bucket = buckets[key] = [size, now]
                tokens = size
            else:
                tokens = bucket[0] + (now - bucket[1]) * rate
                if tokens > size:
                    tokens = size
            bucket[1] = now
            trace = request.trace
            if tokens < 1.0:
                bucket[0] = tokens
                refused.value += 1
                if trace is not None:
                    trace.verdict("rateLimit", f"{key or 'global'}: no token left", "rate_limited", "")
                wait = math.ceil((1.0 - tokens) / rate)
                raise ProxyError(
                    "rate_limited",
                    f"rate limit by {self.by}",
                    [
                        (b"retry-after", b"%d" % wait),
                        limit,
                        (b"ratelimit-remaining", b"0"),
                        (b"ratelimit-reset", b"%d" % wait),
                    ],
                )
            bucket[0] = tokens = tokens - 1.0
            if trace is not None:
                trace.verdict("rateLimit", f"{key or 'global'}: {int(tokens)} left", "allowed", "")
            response = await inner(request)
            response.headers += (
                limit,
                (b"ratelimit-remaining", b"%d" % tokens),
                (b"ratelimit-reset", b"%d" % math.ceil((size - tokens) / rate)),
            )
            return response

        return handle


def _key(by: str) -> Callable[[Request], str]:
    if by == "global":
        return lambda request: ""
    if by == "identity":
        return lambda request: request.peer.identity
    if by == "sourceIP":
        return lambda request: request.forwarded or request.source
    names = spellings(by.removeprefix("header:").lower().encode())

    def value(request: Request) -> str:
        for name, value in request.headers:
            if name in names:
                # Cut: a client chooses this value, and it must not choose how much memory it takes.
                return value[:256].decode("latin-1")
        return ""

    return value
