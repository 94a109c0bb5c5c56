"""What a configuration does with a request, and why: the live path itself, with a trace on and nothing sent.

The model is compiled once more, beside the live one, by a compiler that differs in one place: it stops where an
upstream would be called. A question then goes through `app.make_app` like any request.
Nothing that is live is touched: no counter, no token of a limit, no connection.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from random import Random

from msgspec import structs

from l7proxy.config.model import Model, Resource, Sidecar
from l7proxy.config.model import Route as RouteSpec
from l7proxy.core.errors import CODES
from l7proxy.core.expanded import concealed, expanded_in
from l7proxy.core.handler import Filter, Handler, Keep
from l7proxy.core.headers import Headers
from l7proxy.core.message import Request, Response
from l7proxy.core.slices import Steps
from l7proxy.core.stats import Stats
from l7proxy.filters.retry import Retry
from l7proxy.filters.timeout import Timeout
from l7proxy.proxy.app import make_app
from l7proxy.proxy.compile import Compiler
from l7proxy.proxy.decision import Asked, Question
from l7proxy.proxy.explanation import Answer, Decided, Endpoint, Explanation, Retries, Timeouts, Towards
from l7proxy.proxy.identities import InboundIdentity, trust_domain_of
from l7proxy.proxy.snapshot import Live, Route, Snapshot
from l7proxy.proxy.trace import Decision, Step
from l7proxy.telemetry.facade import Telemetry
from l7proxy.telemetry.log import Log
from l7proxy.telemetry.tracing import Tracer
from l7proxy.upstream.cluster import Cluster
from l7proxy.upstream.dial import Dial
from l7proxy.wire.path import normalise


class Explainer:
    """Answers questions about one model. The endpoints that it tells are those of `clusters`, by name of upstream."""

    def __init__(
        self, model: Model, snapshot: Snapshot, clusters: Mapping[str, Cluster], knows_domain: bool = True
    ) -> None:
        self.model = model
        self._snapshot = snapshot
        self._clusters = clusters
        self._knows_domain = knows_domain

    async def ask(self, question: Question) -> Explanation:
        """Returns what becomes of a request; raises ValueError for one that no client can send."""
        exchange = Asked(question)
        refused = self._refused(question)
        begins = _Begins(Decision())
        if not refused:
            live = Live(
                structs.replace(self._snapshot, tracer=begins), lambda reason: None, lambda request, error: None
            )
            live.max_active = sys.maxsize
            await make_app(live, question.inbound)(exchange)
        return self._tell(question, exchange, begins, refused)

    def heard(self, question: Question) -> Request:
        """Returns the request as rules see it: with its path normalised, and the client's address as it is believed.

        Raises ValueError for one that no client can send, and Malformed for one that is refused as it stands.
        """
        asked = Asked(question)
        request = Request(
            asked.method,
            asked.scheme,
            asked.authority,
            normalise(asked.path),
            asked.query,
            asked.path,
            asked.headers,
            asked.body,
            peer=asked.peer,
            source=asked.client[0] if asked.client is not None else "",
            inbound=question.inbound,
        )
        if question.inbound:
            self._snapshot.inbound.forwarding.apply(request)
        side = self._snapshot.inbound if question.inbound else self._snapshot.outbound
        if side.spellings is not None:
            side.spellings.apply(request)
        return request

    def dismantle(self) -> Steps[None]:
        """Lets go in steps of what was compiled: no more questions can be asked."""
        yield from self._snapshot.inbound.router.dismantle()
        yield from self._snapshot.outbound.router.dismantle()

    def _refused(self, question: Question) -> str:
        """Says why the connection that the request needs does not come about."""
        inbound = self.model.sidecar.spec.inbound
        if not question.inbound or inbound is None:
            return ""
        if self._snapshot.admits is not None and not self._snapshot.admits(question.source):
            return f"{question.source} may not connect (inbound.allowIPs, inbound.denyIPs)"
        if inbound.tls is not None and inbound.tls.mode == "STRICT" and not question.identity:
            return "TLS mode STRICT, and the caller shows no certificate: the handshake fails"
        return ""

    def _notes(self, question: Question) -> tuple[str, ...]:
        spec = self.model.sidecar.spec
        inbound = spec.inbound
        if (inbound if question.inbound else spec.outbound) is None:
            return (f"the Sidecar has no {'inbound' if question.inbound else 'outbound'} listener",)
        plain = inbound is not None and (inbound.tls is None or inbound.tls.mode == "DISABLE")
        if question.inbound and question.identity and plain:
            return ("the inbound listener speaks no TLS: on it no caller has an identity",)
        if question.inbound and question.identity and not self._knows_domain:
            return ("our certificate is not here: in principals, cluster.local stands for no other trust domain",)
        return ()

    def _tell(self, question: Question, exchange: Asked, begins: "_Begins", refused: str) -> Explanation:
        request, decision = begins.request, begins.decision
        route: Route | None = request.route if request is not None else None
        document = route.document if route is not None else None
        policies = document.spec.policies if document is not None else ()
        decided = decision.decided(request) if request is not None else Decided("", None, (), ())
        show = self._secrets_of(document, decision.upstream)
        return Explanation(
            version=self.model.version,
            direction="inbound" if question.inbound else "outbound",
            method=question.method,
            scheme=exchange.scheme.decode(),
            authority=_shown(exchange.authority),
            path=_shown(request.path if route is not None and request is not None else exchange.path),
            identity=question.identity,
            source=question.source,
            refused=refused,
            notes=self._notes(question),
            host=decided.host,
            route=decided.route,
            passed_over=decided.passed_over,
            policies=decided.policies,
            timeouts=self._timeouts(decision, policies),
            retries=_retries(decision.steps, policies),
            upstream=self._towards(decision, document, show),
            allowed=request is not None and not request.code,
            answer=_answer(exchange, decision, request, show) if request is not None else None,
        )

    def _secrets_of(self, document: Resource[RouteSpec] | None, name: str | None) -> Callable[[str], str]:
        """Returns what shows texts that a route and its upstream make as their documents write them."""
        upstream = self.model.upstreams.get(name or "")
        specs = [resource.spec for resource in (document, upstream, self.model.sidecar) if resource is not None]
        secrets = sorted(set(expanded_in(specs)), key=len, reverse=True)
        return (lambda text: concealed(text, secrets)) if secrets else str

    def _timeouts(self, decision: Decision, policies: tuple[Filter, ...]) -> Timeouts:
        sent = decision.sent
        if sent is None or not decision.upstream:
            return Timeouts()
        upstream = self.model.upstreams.get(decision.upstream)
        connect = upstream.spec.connect_timeout if upstream is not None else Dial("", 0).connect_timeout
        idle = next((policy.idle for policy in policies if isinstance(policy, Timeout)), None)
        return Timeouts(connect, sent.timeout, sent.per_try, idle)

    def _towards(
        self, decision: Decision, document: Resource[RouteSpec] | None, show: Callable[[str], str]
    ) -> Towards | None:
        name, sent = decision.upstream, decision.sent
        if not name or sent is None:
            return None
        cluster = self._clusters.get(name)
        upstream = self.model.upstreams.get(name)
        if cluster is None:
            endpoints: tuple[Endpoint, ...] = (Endpoint(_shown(sent.authority)),)
        elif upstream is not None and upstream.spec.dns is not None and not cluster.endpoints:
            endpoints = (Endpoint(show(f"dns:{upstream.spec.dns}")),)
        else:
            endpoints = tuple(Endpoint(show(end.address), bool(end.ejected_until)) for end in cluster.endpoints)
        split = document.spec.split if document is not None else ()
        return Towards(
            name,
            endpoints,
            cluster.settings.balance if cluster is not None else "",
            upstream.spec.protocol if upstream is not None else "http1",
            show(_shown(sent.authority)),
            show(_shown(sent.target)),
            _fields(sent.headers, show),
            {backend.upstream: backend.weight for backend in split if backend.weight},
        )


def explaining(
    model: Model, clusters: Mapping[str, Cluster] | None = None, trust_domain: Callable[[], str] | None = None
) -> Steps[Explainer]:
    """Compiles a model, in small steps, into what answers questions about it; raises ConfigError.

    `clusters` are the live ones, if there are any, and `trust_domain` tells that of the live certificate. Without it
    the certificate is read for its trust domain alone, where it is here: who the caller is, is part of the question.
    """
    spec = model.sidecar.spec
    knows_domain = True
    if trust_domain is None:
        tls = spec.inbound.tls if spec.inbound is not None and "AuthorizationPolicy" in model.others else None
        found = trust_domain_of(tls)
        knows_domain, trust_domain = found is not None, partial(str, found or "")
    inbound = structs.replace(spec.inbound, tls=None) if spec.inbound is not None else None
    spec = structs.replace(spec, inbound=inbound, access_log=None, tracing=None, debug=None)
    upstreams = {}
    for name, upstream in model.upstreams.items():
        upstreams[name] = structs.replace(upstream, spec=structs.replace(upstream.spec, tls=None))
        yield
    bare = structs.replace(model, sidecar=structs.replace(model.sidecar, spec=spec), upstreams=upstreams)
    stats = Stats()
    telemetry = Telemetry(stats, Log(stats, "/dev/null", level="error"))
    try:
        snapshot = yield from _Compiler(telemetry, trust_domain).steps(bare)
    finally:
        telemetry.close()
    return Explainer(model, snapshot, snapshot.clusters if clusters is None else clusters, knows_domain)


class _Compiler(Compiler):
    """Looks on at each policy and lets no request through to an upstream.

    Its clock goes on by a year with each look, so that every question finds limits as if nobody had asked before.
    """

    def __init__(self, telemetry: Telemetry, trust_domain: Callable[[], str]) -> None:
        years = count(0.0, 365 * 86400.0)
        super().__init__(telemetry, Keep(), _NoChance(), lambda work: work.close(), lambda: next(years))
        self._trust_domain = trust_domain

    def trust_domain(self, tls: InboundIdentity | None) -> Callable[[], str]:
        return self._trust_domain

    def watches(self, sidecar: Sidecar) -> bool:
        return True

    def end(self, upstream: str, handle: Handler) -> Handler:
        async def stop(request: Request) -> Response:
            request.trace.arrive(request, upstream)
            if not upstream:
                return await handle(request)
            request.upstream = upstream
            request.attempt += 1
            return Response(200, [])

        return stop

    def aside(self, upstream: str, handle: Handler) -> Handler:
        async def agree(request: Request) -> Response:
            return Response(200, [])

        return agree


class _NoChance(Random):
    """Draws the first of several upstreams that share requests, so that the same question has the same answer."""

    def random(self) -> float:
        return 0.0


class _Begins(Tracer):
    """Puts the decision into the request before anything is decided, and keeps the request."""

    __slots__ = ("decision", "request")

    def __init__(self, decision: Decision) -> None:
        super().__init__()
        self.decision = decision
        self.request: Request | None = None

    def begin(self, request: Request) -> None:
        request.trace = self.decision
        self.request = request
        super().begin(request)


def _retries(steps: list[Step], policies: tuple[Filter, ...]) -> Retries | None:
    if not any(step.policy == Retry.name for step in steps):
        return None
    retry = next((policy for policy in policies if isinstance(policy, Retry)), Retry())
    return Retries(retry.attempts, retry.on)


def _answer(exchange: Asked, decision: Decision, request: Request, show: Callable[[str], str]) -> Answer:
    detail = request.detail
    if request.code:
        by = "proxy"
        detail = detail or CODES[request.code].text
    else:
        by = {None: "policy", "": "route"}.get(decision.upstream, "upstream")
    body = exchange.content.decode(errors="replace")
    return Answer(by, exchange.status, request.code, detail, _fields(exchange.answer, show), show(body))


def _shown(data: bytes) -> str:
    return data.decode(errors="replace")


def _fields(headers: Headers, show: Callable[[str], str]) -> tuple[tuple[str, str], ...]:
    return tuple((_shown(name), show(_shown(value))) for name, value in headers)
