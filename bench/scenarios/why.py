"""What it costs a request to be remembered and looked at, in a loop of this process: too little to show under load."""

import asyncio
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from bench.compare import Plan
from bench.lab import Lab
from bench.model import Finding, Result
from bench.stats import median
from l7proxy.core.handler import Handler
from l7proxy.core.message import Request, Response
from l7proxy.proxy.trace import Decision, arriving, watched
from l7proxy.telemetry.access import take_down
from l7proxy.telemetry.history import History

TIMES = 20_000
POLICIES = ("authorization", "rateLimit", "headers", "timeout", "retry")
DECIDING = ("authorization", "rateLimit")
SAMPLED = 0.01
SPANS = 2_000
GOAL = 2.0


@dataclass(frozen=True, slots=True)
class Why:
    """The ring of finished requests with and without an access log, and policies that a trace may look at."""

    name: ClassVar[str] = "why"
    title: ClassVar[str] = "l7proxy: what a request costs to be remembered for `l7proxy why`, and traced at 1 %"

    def run(self, lab: Lab, plan: Plan) -> Result:
        history, answer = History(), Response(200, [])
        requests = [_request(number) for number in range(TIMES)]

        def taken(request: Request) -> None:
            take_down(request, 200, 0.001, "v1")

        def remembered(request: Request) -> None:
            history.add(request, 200, take_down(request, 200, 0.001, "v1"))

        start = TracerProvider(ALWAYS_ON, shutdown_on_exit=False).get_tracer("bench").start_span

        def spanned(_: Request) -> None:
            start("GET")

        def traced(request: Request) -> None:
            span = start("GET")
            decision = Decision()
            for policy in POLICIES:
                step = decision.enter(policy)
                if policy in DECIDING:
                    decision.verdict(policy, "a rule", "allowed", "policies/a.yaml:12")
                decision.leave(step)
            decision.arrive(request, "app")
            for name, attributes, at in decision.events(request):
                span.add_event(name, attributes, at)

        async def end(_: Request) -> Response:
            return answer

        plain, watching = end, arriving("app", end)
        for policy in POLICIES:
            plain, watching = _policy(plain), watched(policy, _policy(watching))
        idle, rounds = _cost(lambda _: None, requests), max(5, plan.rounds)
        alone = median([_cost(remembered, requests) - idle for _ in range(rounds)])
        beside = alone - median([_cost(taken, requests) - idle for _ in range(rounds)])
        looked = median([_served(watching, requests) - _served(plain, requests) for _ in range(rounds)])
        some = requests[:SPANS]
        decided = median([_cost(traced, some) - _cost(spanned, some) for _ in range(rounds)])
        total = alone + looked + SAMPLED * decided
        unit = "us a request"
        return Result(
            self.name,
            self.title,
            findings=[
                Finding("remembered, with no access log", alone, unit),
                Finding("remembered, beside what the access log takes down anyway", beside, unit),
                Finding(f"{len(POLICIES)} policies that could be looked at, and are not", looked, unit),
                Finding("the decision of a sampled request", decided, unit),
                Finding("ring and traces at 1 %", total, unit, f"<= {GOAL:g}", total <= GOAL),
            ],
        )


def _request(number: int) -> Request:
    request = Request(b"GET", b"http", b"orders.bench", b"/v1/orders/%d" % number, b"", b"/v1/orders", [], b"")
    request.request_id = request.trace_id = b"%032x" % number
    request.source, request.upstream, request.endpoint, request.attempt = "10.0.0.17", "app", "127.0.0.1:8080", 1
    request.t_start, request.t_sent, request.t_connected, request.t_head = 1.0, 1.001, 1.002, 1.003
    return request


def _policy(inner: Handler) -> Any:
    async def handle(request: Request) -> Response:
        return await inner(request)

    return handle


def _cost(work: Callable[[Request], None], requests: list[Request]) -> float:
    """Returns the microseconds that `work` takes for a request."""
    gc.collect()
    began = time.perf_counter()
    for request in requests:
        work(request)
    return (time.perf_counter() - began) / len(requests) * 1e6


def _served(handle: Handler, requests: list[Request]) -> float:
    async def serve() -> float:
        began = time.perf_counter()
        for request in requests:
            await handle(request)
        return (time.perf_counter() - began) / len(requests) * 1e6

    return asyncio.run(serve())


SCENARIOS = (Why(),)
