"""An upstream at work: picks an endpoint, sends, learns from the answer, and leaves out who fails."""

import time
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Protocol, cast

from msgspec import Struct

from l7proxy.core.errors import ProxyError
from l7proxy.core.loops import loops
from l7proxy.core.message import Request, Response
from l7proxy.core.stats import Stats
from l7proxy.core.stream import Stream
from l7proxy.identity.client_tls import ClientTls
from l7proxy.upstream.balance import PICKS, observe
from l7proxy.upstream.dns import Resolver
from l7proxy.upstream.endpoint import Endpoint
from l7proxy.upstream.transport import UpstreamRequest, response_parts
from l7proxy.upstream.waiting import Load


class AttemptMetrics(Protocol):
    """What a cluster counts of each attempt; `telemetry.metrics.UpstreamMetrics` is one."""

    def observe(self, method: bytes, status: int, code: str, seconds: float) -> None: ...


class Settings(Struct, frozen=True):
    """How an upstream balances and when it ejects; times in seconds, `eject_failures` 0 turns ejection off."""

    balance: str = "peakEwma"
    panic_percent: int = 50
    max_connections: int = 1024
    max_pending: int = 1024
    max_requests: int = 1024
    eject_failures: int = 5
    eject_time: float = 30.0
    eject_max_time: float = 300.0
    eject_max_percent: int = 10


class Cluster:
    """The endpoints of one upstream under one configuration; `send` is the innermost handler of every chain."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        load: Load,
        metrics: AttemptMetrics,
        stats: Stats,
        random: Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.settings = settings
        self.load = load
        self.endpoints: list[Endpoint] = []
        self.resolver: Resolver | None = None
        self.weights: dict[str, int] = {}
        """Shares of the load by address; 1 where none is said."""
        self.tls: dict[str, ClientTls | None] = {}
        """How each host is spoken to: a cluster whose certificates are others is another cluster."""
        self._metrics = metrics
        self._clock = clock
        self._pick = PICKS[settings.balance](random)
        self._usable: list[Endpoint] = []
        self._next_return = float("inf")
        label = {"l7proxy_upstream": name}
        self._ejections = stats.counter(
            "l7proxy_ejections_total", "Endpoints left out because their requests failed", **label
        )
        self._overflows = stats.counter(
            "l7proxy_breaker_overflows_total", "Requests refused because the upstream's limits were reached", **label
        )
        stats.gauge("l7proxy_upstream_requests", "Requests under way", lambda: load.requests, **label)
        stats.gauge("l7proxy_upstream_pending", "Requests that wait for a connection", lambda: load.pending, **label)
        stats.gauge("l7proxy_endpoints", "Endpoints that are known", lambda: len(self.endpoints), **label)
        stats.gauge("l7proxy_endpoints_ejected", "Endpoints that are left out", self._count_ejected, **label)

    def activate(self) -> None:
        """This configuration goes live: its limits count from now on."""
        load, settings = self.load, self.settings
        load.max_connections = settings.max_connections
        load.max_pending = settings.max_pending
        load.max_requests = settings.max_requests
        load.admit()
        if self.resolver is not None:
            self.resolver.start()

    def set_endpoints(self, endpoints: Iterable[Endpoint]) -> None:
        """Replaces the endpoints; those that nobody holds any more end when their requests do."""
        before, self.endpoints = self.endpoints, list(endpoints)
        for endpoint in self.endpoints:
            endpoint.users += 1
        for endpoint in before:
            endpoint.users -= 1
            if not endpoint.users:
                _close(endpoint.transport)
        self._choose(self._clock())

    def close(self) -> None:
        """This configuration is retired: lets go of the endpoints."""
        if self.resolver is not None:
            self.resolver.close()
        self.set_endpoints(())

    async def send(self, request: Request) -> Response:
        """Makes one attempt and returns its response, at the latest when its head has arrived.

        Raises ProxyError: no_healthy_upstream, overflow, upstream_connect, upstream_reset, upstream_timeout or
        upstream_protocol.
        """
        load = self.load
        if load.requests >= load.max_requests:
            self._overflows.value += 1
            raise ProxyError("overflow", f"upstream {self.name} has {load.requests} requests under way")
        clock = self._clock
        started = request.t_sent = clock()
        if self.resolver is not None and not self.resolver.resolved.is_set():
            await self.resolver.first()
        usable = self._usable
        if len(usable) == 1 and self._next_return > started:
            endpoint = usable[0]
        else:
            endpoint = self._choice(request, started)
        request.upstream = self.name
        request.endpoint = endpoint.address
        request.attempt += 1
        if request.attempt == 1:
            # Behind all policies: none of them can take it away.
            request.headers.append(loops.fields[request.inbound])
        load.requests += 1
        endpoint.active += 1
        span = None
        if request.span is not None:
            span = request.span.attempt(request, request.headers)
        try:
            answer = await endpoint.transport.handle_async_request(UpstreamRequest(endpoint.url, request))
        except BaseException as error:
            load.requests -= 1
            endpoint.active -= 1
            self._failed(request, endpoint, error, clock() - started)
            if span is not None:
                span.end(request, 0, error)
            raise
        now = request.t_head = clock()
        status = answer.status_code
        fields, body = response_parts(answer)
        failed = status >= 500
        if failed or endpoint.failures or endpoint.probing:
            self._learn(endpoint, failed, now)
        if len(self.endpoints) > 1:
            observe(endpoint, now - started, failed, now)
        if type(body) is bytes:
            load.requests -= 1
            endpoint.active -= 1
            self._metrics.observe(request.method, status, "", now - started)
            if span is not None:
                span.end(request, status, None, fields)
            return Response(status, fields, body)
        response = Response(status, fields, body)
        response.on_end = self._ending(request, endpoint, span, response, started)
        return response

    def _ending(
        self, request: Request, endpoint: Endpoint, span: Any, response: Response, started: float
    ) -> Callable[[BaseException | None], None]:
        """Returns what to call at the end of a response whose body is still on its way."""
        # Not the response itself, which holds what is returned here.
        status, fields, body = response.status, response.headers, cast(Stream, response.body)

        def end(error: BaseException | None) -> None:
            self.load.requests -= 1
            endpoint.active -= 1
            code = error.code.name if isinstance(error, ProxyError) else ""
            self._metrics.observe(request.method, status, code, self._clock() - started)
            if span is not None:
                span.end(request, status, error, body.trailers or fields)
            body.close()

        return end

    def _failed(self, request: Request, endpoint: Endpoint, error: BaseException, seconds: float) -> None:
        code = error.code.name if isinstance(error, ProxyError) else "cancelled"
        self._metrics.observe(request.method, 0, code, seconds)
        if code == "overflow":
            self._overflows.value += 1
        elif isinstance(error, ProxyError):
            now = self._clock()
            self._learn(endpoint, True, now)
            observe(endpoint, seconds, True, now)

    def _choice(self, request: Request, now: float) -> Endpoint:
        """Picks among several endpoints, or tells that there is none."""
        if now >= self._next_return:
            self._choose(now)
        usable: Sequence[Endpoint] = self._usable
        if not usable:
            raise ProxyError("no_healthy_upstream", f"upstream {self.name} has no endpoint")
        if request.tried is not None:
            tried = {attempt.endpoint for attempt in request.tried}
            fresh = [endpoint for endpoint in usable if endpoint.address not in tried]
            usable = fresh or usable
        if len(usable) == 1:
            return usable[0]
        endpoint = self._pick(usable)
        if endpoint.probing and endpoint.active:
            # A returning endpoint gets one request first; the others wait for how that went.
            others = [other for other in usable if not (other.probing and other.active)]
            if others:
                endpoint = others[0] if len(others) == 1 else self._pick(others)
        return endpoint

    def _learn(self, endpoint: Endpoint, failed: bool, now: float) -> None:
        """Counts failures in a row and ejects (Envoy's consecutive 5xx and gateway failures)."""
        settings = self.settings
        if not failed:
            endpoint.failures = 0
            if endpoint.probing:
                endpoint.probing = False
                endpoint.ejections = 0
            return
        endpoint.failures += 1
        enough = endpoint.failures >= settings.eject_failures or endpoint.probing
        if not settings.eject_failures or not enough or endpoint.ejected_until > now or len(self.endpoints) < 2:
            return
        out = sum(other.ejected_until > now for other in self.endpoints)
        allowed = max(1, len(self.endpoints) * settings.eject_max_percent // 100)
        if out >= allowed or out + 1 >= len(self.endpoints):
            return
        endpoint.ejections += 1
        endpoint.failures = 0
        endpoint.probing = False
        endpoint.ejected_until = now + min(settings.eject_time * endpoint.ejections, settings.eject_max_time)
        self._ejections.value += 1
        self._choose(now)

    def _choose(self, now: float) -> None:
        """Works out which endpoints may be used until the next one returns."""
        healthy: list[Endpoint] = []
        returns = []
        for endpoint in self.endpoints:
            if endpoint.ejected_until > now:
                returns.append(endpoint.ejected_until)
                continue
            if endpoint.ejected_until:
                endpoint.ejected_until = 0.0
                endpoint.probing = True
            healthy.append(endpoint)
        self._next_return = min(returns, default=float("inf"))
        if len(healthy) * 100 < len(self.endpoints) * self.settings.panic_percent:
            # Envoy's panic threshold: with so few left, all of them is better than all on them.
            healthy = self.endpoints
        self._usable = self._weighted(healthy)

    def _weighted(self, endpoints: list[Endpoint]) -> list[Endpoint]:
        """Repeats each endpoint by its weight, scaled so that the list stays short."""
        weights = [self.weights.get(endpoint.address, 1) for endpoint in endpoints]
        total = sum(weights)
        if total == len(endpoints):
            return list(endpoints)
        scale = min(1.0, max(1000, len(endpoints)) / total)
        shares = zip(endpoints, weights, strict=True)
        return [endpoint for endpoint, weight in shares for _ in range(max(1, round(weight * scale)))]

    def _count_ejected(self) -> float:
        now = self._clock()
        return sum(endpoint.ejected_until > now for endpoint in self.endpoints)


def _close(transport: Any) -> None:
    close = getattr(transport, "close", None)
    if close is not None:
        close()
