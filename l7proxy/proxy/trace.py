"""The trace of one decision: what the live path's own functions say of a request on its way, where one is asked for.

`explain` and policy tests read it of a request that nobody sends, spans and debug headers of one that was served.
"""

import json
import time
from collections.abc import Awaitable
from typing import Any

import msgspec
from msgspec import Struct, field, structs

from l7proxy.config.model import Resource
from l7proxy.config.model import Route as RouteSpec
from l7proxy.core.errors import ProxyError
from l7proxy.core.expanded import encoded
from l7proxy.core.handler import Handler
from l7proxy.core.headers import Headers, without
from l7proxy.core.message import Request, Response
from l7proxy.proxy.explanation import Chosen, Decided, PassedOver, Served, Verdict
from l7proxy.proxy.router import Trace
from l7proxy.proxy.snapshot import Route, Target
from l7proxy.telemetry.tracing import Tracer

NOT_REACHED = "not reached"

MOST = 20
"""Better candidates that are told of a request that was served."""

ANSWER = b"x-l7proxy-decision"
"""The header field that tells a client that may know."""

LARGEST = 6000
"""Bytes of that field, as clients begin to refuse fields above 8 KiB."""


class Step(Struct):
    """What one policy did; `outcome` is empty where it had nothing to say, `where` is the `file:line` of the rule.

    `at` is when the request came to it, in nanoseconds since the epoch.
    """

    policy: str
    outcome: str = ""
    rule: str = ""
    where: str = ""
    at: int = field(default_factory=time.time_ns)


class Sent(Struct, frozen=True):
    """What an upstream is asked, and how long the request may wait for it, in seconds."""

    authority: bytes
    target: bytes
    headers: Headers
    timeout: float | None
    per_try: float | None


class Decision:
    """Stands in `Request.trace`: the router tells it why candidates lost, policies tell their verdicts.

    `told` is whether the client asked for it and may know.
    """

    __slots__ = ("told", "began", "candidates", "steps", "upstream", "sent", "_blamed")

    def __init__(self, told: bool = False) -> None:
        self.told = told
        self.began = time.time_ns()
        self.candidates: Trace = []
        self.steps: list[Step] = []
        self.upstream: str | None = None
        """Where the request ended: an upstream's name, "" for the route's own answer, None if it got to neither."""
        self.sent: Sent | None = None
        self._blamed = False

    def verdict(self, policy: str, rule: str, outcome: str, where: str) -> None:
        """A policy says what it decided, by which rule, and where that stands."""
        last = self.steps[-1] if self.steps else None
        if last is None or last.policy != policy or last.outcome:
            last = self.enter(policy)
        last.outcome, last.rule, last.where = outcome, rule, where

    def enter(self, policy: str) -> Step:
        """The request comes to a policy."""
        step = Step(policy)
        self.steps.append(step)
        return step

    def leave(self, step: Step) -> None:
        """A policy has answered: by itself where the request got no further."""
        if self.upstream is None and self.steps[-1] is step and not step.outcome:
            step.outcome = "answered"

    def blame(self, step: Step, error: Exception) -> None:
        """A policy has raised an error, its own unless one within it has been blamed already."""
        if not self._blamed and not step.outcome and self.upstream is None:
            step.outcome = error.code.name if isinstance(error, ProxyError) else "filter_error"
        self._blamed = True

    def arrive(self, request: Request, upstream: str) -> None:
        """The request has come through every policy."""
        self.upstream = upstream
        headers = request.headers.copy()
        self.sent = Sent(request.authority, request.target, headers, request.timeout, request.per_try)

    def decided(self, request: Request, most: int | None = None) -> Decided:
        """Returns what was decided about the request that left this trace, with at most so many better candidates."""
        route: Route | None = request.route
        hosts = [why for candidate, why in self.candidates if candidate is None]
        lost = [(candidate, why) for candidate, why in self.candidates if isinstance(candidate, Target)]
        return Decided(
            host=hosts[-1] if hosts else "",
            route=Chosen(route.name, request.pattern, _place(route)) if route is not None else None,
            passed_over=tuple(
                PassedOver(target.route.name, target.pattern, _place(target.route), why) for target, why in lost[:most]
            ),
            policies=_verdicts(self.steps, route.document if route is not None else None),
        )

    def served(self, request: Request, version: str, most: int) -> Served:
        """Returns that and where the request went, under the configuration `version`."""
        decided = self.decided(request, most)
        return Served(
            decided.host,
            decided.route,
            decided.passed_over,
            decided.policies,
            version,
            request.upstream,
            request.endpoint,
            request.attempt,
            request.code,
            request.detail,
        )

    def events(self, request: Request) -> list[tuple[str, dict[str, Any], int]]:
        """Returns the trace as events of a span: name, attributes, nanoseconds since the epoch.

        Each costs as much as half a span, so that policies that let every request pass have none.
        """
        route: Route | None = request.route
        found: dict[str, Any] = {}
        told = [("l7proxy.route", found, self.began)]
        lost = []
        for candidate, why in self.candidates:
            if isinstance(candidate, Target):
                lost.append(f"{candidate.route.name}: {why}")
            else:
                found["l7proxy.host"] = why
        if lost:
            found["l7proxy.passed_over"] = lost[:MOST]
        document = None
        if route is not None:
            document = route.document
            found["l7proxy.route"] = route.name
            found["l7proxy.where"] = _place(route)
        for step in self.steps:
            if step.outcome:
                attributes = {"l7proxy.policy": step.policy, "l7proxy.outcome": step.outcome}
                if step.rule:
                    attributes["l7proxy.rule"] = step.rule
                if where := _where(step, document):
                    attributes["l7proxy.where"] = where
                told.append(("l7proxy.policy", attributes, step.at))
        return told


def tell(request: Request, response: Response, version: str) -> None:
    """Puts what was decided about a request into its answer."""
    decision: Decision = request.trace
    for most in (MOST, 5, 0):
        value = _encoded(decision.served(request, version, most))
        if len(value) <= LARGEST:
            break
    else:
        value = _encoded(structs.replace(decision.served(request, version, 0), policies=(), detail=""))
    response.headers[:] = [*without(response.headers, ANSWER), (ANSWER, value)]


def watched(policy: str, handle: Handler) -> Handler:
    """Returns a handler that tells the trace of a request, where it has one, how it fares in one policy."""

    async def watch(request: Request, decision: Decision) -> Response:
        step = decision.enter(policy)
        try:
            response = await handle(request)
        except Exception as error:
            decision.blame(step, error)
            raise
        decision.leave(step)
        return response

    def pass_by(request: Request) -> Awaitable[Response]:
        trace = request.trace
        return handle(request) if trace is None else watch(request, trace)

    return pass_by


def arriving(upstream: str, handle: Handler) -> Handler:
    """Returns the innermost handler of a chain whose policies are `watched`."""

    def arrive(request: Request) -> Awaitable[Response]:
        if request.trace is not None:
            request.trace.arrive(request, upstream)
        return handle(request)

    return arrive


def sampling(tracer: Tracer, share: float, handle: Handler) -> Handler:
    """Returns the handler of a route that has its own share of requests to trace, where no caller decided."""

    def sample(request: Request) -> Awaitable[Response]:
        if request.undecided:
            tracer.decide(request, share)
            recording = request.span is not None and request.span.recording
            if request.trace is None or not request.trace.told:
                request.trace = (request.trace or Decision()) if recording else None
        return handle(request)

    return sample


def _verdicts(steps: list[Step], document: Resource[RouteSpec] | None) -> tuple[Verdict, ...]:
    """Returns every policy of the way in order: those that were passed, then those that were not reached."""
    told = [Verdict(step.policy, step.outcome or "applies", step.rule, _where(step, document)) for step in steps]
    if document is not None:
        passed = {step.policy for step in steps}
        missed = [policy.name for policy in document.spec.policies if policy.name not in passed]
        told += [Verdict(name, NOT_REACHED, "", _line(document, name)) for name in missed]
    return tuple(told)


def _where(step: Step, document: Resource[RouteSpec] | None) -> str:
    """Returns where the rule stands that decided, or else the policy, if it stands anywhere."""
    if step.where or document is None or f"spec.policies.{step.policy}" not in document.lines:
        return step.where
    return _line(document, step.policy)


def _encoded(served: Served) -> bytes:
    # In ASCII, as header fields are.
    return json.dumps(msgspec.to_builtins(served, enc_hook=encoded), separators=(",", ":")).encode()


def _line(document: Resource[Any], policy: str) -> str:
    file, line = document.where(f"spec.policies.{policy}")
    return f"{file}:{line}"


def _place(route: Route) -> str:
    document = route.document
    if document is None:
        return ""
    return f"{document.file}:{document.line}" if document.line else document.file
