"""Three small ASGI applications over one view of a running sidecar: for operators, for probes and for Prometheus."""

from collections.abc import Awaitable, Mapping
from inspect import isawaitable
from typing import Any, Protocol, TypeVar, Union

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from l7proxy.admin import answers
from l7proxy.admin.declare import App, Endpoint, Refused, application, get, post
from l7proxy.admin.exposition import CONTENT, JSON_CONTENT, as_object, exposition, reference
from l7proxy.admin.guard import guarded, is_local
from l7proxy.admin.openapi import document
from l7proxy.admin.queries import ExplainQuery, LevelQuery, LineQuery, StatsQuery, WhyQuery
from l7proxy.admin.tapping import CONTENT as TAPPED
from l7proxy.admin.tapping import MOST, Source, Tapping
from l7proxy.core.stats import Stats
from l7proxy.identity.report import ShownIdentity
from l7proxy.proxy.decision import Question
from l7proxy.proxy.explanation import Explanation
from l7proxy.proxy.tap import Wanted
from l7proxy.proxy.why import Why, account
from l7proxy.telemetry.access import Record, read
from l7proxy.telemetry.log import Level

T = TypeVar("T")
Now = Union[T, Awaitable[T]]
"""An answer, or one to wait for where several processes answer as one."""

NOBODY = {503: "No process serves that could tell."}
TAP_REFUSALS = {
    403: "Values of header fields are told over loopback or a Unix socket only.",
    429: "There are as many taps as there may be.",
}


class AdminView(Protocol):
    """What the admin API may ask of the proxy. Refused says that an answer cannot be had."""

    @property
    def level(self) -> Level:
        """The least level of events that are logged."""

    def set_level(self, level: Level) -> Now[None]:
        """Sets the level."""

    async def collect(self) -> Stats:
        """Returns all metrics as they are now."""

    @property
    def target(self) -> Mapping[str, str]:
        """The resource attributes of the live configuration."""

    def not_ready(self) -> Now[str]:
        """Says why requests should not be sent here now; "" when they may."""

    def not_live(self) -> Now[str]:
        """Says why the process should be replaced; "" when it should not."""

    def config(self) -> Now[answers.Config]:
        """Returns the live configuration."""

    def routes(self) -> Now[list[answers.Route]]:
        """Returns the routes in the order in which they are tried."""

    def clusters(self) -> Now[list[answers.Cluster]]:
        """Returns the upstreams with their endpoints and the state of each."""

    def requests(self) -> Awaitable[list[answers.Active]]:
        """Returns how many requests are under way, by route."""

    def certs(self) -> Now[list[ShownIdentity]]:
        """Returns the certificates in use, with identity and expiry."""

    def explain(self, question: Question, version: str = "") -> Awaitable[Explanation]:
        """Returns what a configuration, by default the live one, does with a request.

        Raises ValueError for what no client can send, and for a version that is no longer kept.
        """

    def why(self, name: str) -> Awaitable[list[Why]]:
        """Returns why the remembered requests with a request id or trace id went as they went, the last one last."""

    def failures(self) -> Now[list[Record]]:
        """Returns the last requests that failed, the last one first."""

    def tap(self, wanted: Wanted) -> Awaitable[Source]:
        """Begins to look at requests as they end."""

    def drain(self) -> Now[None]:
        """Begins to drain, as SIGTERM does, but goes on serving until the process is told to end."""

    def quit(self) -> None:
        """Ends the process once the requests under way are answered: nobody will call or be called any more."""


def admin_app(view: AdminView) -> App:
    """Returns the admin API. What changes something is POST."""
    taps: set[Tapping] = set()

    async def otel(request: Request) -> Response:
        """The same text, made by the OTel SDK's exporter; slow, to compare."""
        return await reference(await view.collect(), view.target, request)

    async def config(_: Request) -> answers.Config:
        """The live configuration, its version, and the file and line of each document."""
        return await _now(view.config())

    async def routes(_: Request) -> list[answers.Route]:
        """Routes with hosts, matches, policies, file and line."""
        return await _now(view.routes())

    async def clusters(_: Request) -> list[answers.Cluster]:
        """Upstreams with their endpoints, load, latency and ejections."""
        return await _now(view.clusters())

    async def requests(_: Request) -> list[answers.Active]:
        """How many requests are under way, by route."""
        return await view.requests()

    async def certs(_: Request) -> list[ShownIdentity]:
        """Certificates in use, with identity and expiry."""
        return await _now(view.certs())

    async def stats(_: Request, query: StatsQuery) -> Response:
        """Every metric as JSON, or those whose names begin so."""
        return as_object(await view.collect(), query.name or ("",))

    async def explain(_: Request, query: ExplainQuery) -> Explanation:
        """What becomes of a request and why."""
        try:
            return await view.explain(query.question(), query.version)
        except ValueError as error:
            raise Refused(400, str(error)) from None

    async def why(_: Request, query: WhyQuery) -> list[Why]:
        """Finished requests that are remembered, by request id or trace id, and why each went as it went."""
        return await view.why(query.id)

    async def line(_: Request, query: LineQuery) -> Why:
        """Why the request of an access log line went as it went, by the configuration that it names."""
        try:
            return await account(read(query.line.encode()), view.explain)
        except ValueError as error:
            raise Refused(400, str(error)) from None

    async def failures(_: Request) -> list[Record]:
        """The last requests that were refused or failed, as in the access log, the last one first."""
        return await _now(view.failures())

    async def tap(request: Request, query: Wanted) -> Response:
        """Requests as they end, a line each; and notes of how many ended, were told of, and left out."""
        if (query.secrets or query.reveal) and is_local(request.scope) is False:
            raise Refused(403, "values of header fields are told over loopback or a Unix socket only")
        if len(taps) >= MOST:
            raise Refused(429, f"there are {MOST} taps already")
        return Tapping(lambda: view.tap(query), query, taps)

    async def drain(_: Request) -> answers.Draining:
        """Fails `/ready` and asks clients to reconnect elsewhere; goes on serving until SIGTERM."""
        await _now(view.drain())
        return {"draining": True}

    async def quit(_: Request) -> answers.Quitting:
        """Ends the process once the requests under way are answered, for an application that is done."""
        view.quit()
        return {"quitting": True}

    async def level(_: Request) -> answers.Level:
        """The level of the event log."""
        return {"level": view.level}

    async def set_level(_: Request, query: LevelQuery) -> answers.Level:
        """Sets the level of the event log."""
        await _now(view.set_level(query.level))
        return {"level": query.level}

    async def index(_: Request) -> dict[str, list[str]]:
        """Every path and its methods."""
        return methods

    async def openapi(_: Request) -> dict[str, Any]:
        """This document."""
        return document(endpoints)

    endpoints = [
        *_probes(view),
        _metrics(view),
        get("/metrics/otel", otel, content=CONTENT),
        get("/config", config, refusals=NOBODY),
        get("/routes", routes, refusals=NOBODY),
        get("/clusters", clusters, refusals=NOBODY),
        get("/requests", requests),
        get("/certs", certs, refusals=NOBODY),
        get("/stats", stats, content=JSON_CONTENT),
        get("/explain", explain, refusals=NOBODY),
        get("/why", why),
        get("/why/line", line, refusals=NOBODY),
        get("/failures", failures),
        get("/tap", tap, content=TAPPED, refusals=TAP_REFUSALS),
        post("/drain", drain),
        post("/quit", quit),
        get("/loglevel", level),
        post("/loglevel", set_level),
        get("/openapi.json", openapi),
        get("/", index),
    ]
    methods: dict[str, list[str]] = {}
    for endpoint in sorted(endpoints, key=lambda endpoint: (endpoint.path, endpoint.method)):
        methods.setdefault(endpoint.path, []).append(endpoint.method)
    return guarded(application(endpoints), everywhere=True)


def metrics_app(view: AdminView) -> App:
    """Returns the application of the metrics listener."""
    return guarded(application([_metrics(view)]), everywhere=False)


def health_app(view: AdminView) -> App:
    """Returns the application of the health listener."""
    return guarded(application(_probes(view)), everywhere=False)


def _probes(view: AdminView) -> list[Endpoint]:
    async def ready(_: Request) -> Response:
        """Whether requests should be sent here."""
        return _probed(await _now(view.not_ready()))

    async def live(_: Request) -> Response:
        """Whether the process should go on."""
        return _probed(await _now(view.not_live()))

    content = {"text/plain": str}
    return [
        get("/ready", ready, content=content, answers={200: "`ok`", 503: "Why requests should not be sent here now."}),
        get("/live", live, content=content, answers={200: "`ok`", 503: "Why the process should be replaced."}),
    ]


def _probed(problem: str) -> Response:
    return PlainTextResponse(f"{problem or 'ok'}\n", 503 if problem else 200)


def _metrics(view: AdminView) -> Endpoint:
    async def metrics(request: Request) -> Response:
        """Metrics for Prometheus, or as OpenMetrics."""
        return exposition(await view.collect(), view.target, request)

    return get("/metrics", metrics, content=CONTENT)


async def _now(answer: Now[T]) -> T:
    return await answer if isawaitable(answer) else answer
