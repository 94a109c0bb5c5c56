"""What operators, probes and Prometheus ask of a running sidecar: three small ASGI applications over one view of it."""

import asyncio
import ipaddress
import socket
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from inspect import isawaitable
from typing import Any, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from l7proxy.core.stats import Family, Histogram, Stats
from l7proxy.proxy.decision import Question, field
from l7proxy.telemetry.log import LEVELS
from l7proxy.telemetry.prometheus import OPENMETRICS, TEXT, render, wants_openmetrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CHUNK = 64 * 1024
"""Bytes of metrics that leave in one write."""


class AdminView(Protocol):
    """What the admin API may ask of the proxy. Everything returned is built of what msgspec can encode as JSON.

    Where several processes answer as one, an answer is one to wait for.
    """

    @property
    def level(self) -> str:
        """The least level of events that are logged."""

    def set_level(self, level: str) -> Awaitable[None] | None:
        """Sets the level."""

    async def collect(self) -> Stats:
        """Returns all metrics as they are now."""

    @property
    def target(self) -> Mapping[str, str]:
        """The resource attributes of the live configuration."""

    def not_ready(self) -> str | Awaitable[str]:
        """Says why requests should not be sent here now; "" when they may."""

    def not_live(self) -> str | Awaitable[str]:
        """Says why the process should be replaced; "" when it should not."""

    def config(self) -> Any:
        """Returns the live configuration, with its version and without secrets."""

    def routes(self) -> Any:
        """Returns the routes in the order in which they are tried."""

    def clusters(self) -> Any:
        """Returns the upstreams with their endpoints and the state of each."""

    def certs(self) -> Any:
        """Returns the certificates in use, with identity and expiry."""

    def explain(self, question: Question) -> Any:
        """Returns what the live configuration does with a request; raises ValueError for what no client can send."""

    def drain(self) -> Awaitable[None] | None:
        """Begins to drain, as SIGTERM does, but goes on serving until the process is told to end."""


def admin_app(view: AdminView) -> App:
    """Returns the admin API. What changes something is POST."""

    def get(path: str, answer: Callable[[Request], Any]) -> Route:
        async def endpoint(request: Request) -> Response:
            result = await _now(answer(request))
            return result if isinstance(result, Response) else _json(result)

        return Route(path, endpoint, methods=["GET"])

    async def drain(_: Request) -> Response:
        await _now(view.drain())
        return _json({"draining": True})

    async def set_level(request: Request) -> Response:
        level = request.query_params.get("level", "")
        if level not in LEVELS:
            return _json({"error": f"level must be one of {', '.join(LEVELS)}"}, 400)
        await _now(view.set_level(level))
        return _json({"level": level})

    routes = [
        *_probes(view),
        _metrics(view),
        _reference(view),
        get("/config", lambda _: view.config()),
        get("/routes", lambda _: view.routes()),
        get("/clusters", lambda _: view.clusters()),
        get("/certs", lambda _: view.certs()),
        get("/stats", lambda request: _stats(view, request.query_params.get("name", ""))),
        get("/explain", lambda request: _explain(view, request)),
        get("/loglevel", lambda _: {"level": view.level}),
        Route("/loglevel", set_level, methods=["POST"]),
        Route("/drain", drain, methods=["POST"]),
    ]
    index = {path: sorted(_methods(routes, path)) for path in sorted({route.path for route in routes})}
    routes.append(get("/", lambda _: index))
    return guarded(_application(routes), everywhere=True)


def metrics_app(view: AdminView) -> App:
    """Returns the application of the metrics listener."""
    return guarded(_application([_metrics(view)]), everywhere=False)


def health_app(view: AdminView) -> App:
    """Returns the application of the health listener."""
    return guarded(_application(_probes(view)), everywhere=False)


def guarded(app: App, everywhere: bool) -> App:
    """Refuses what a web page in some browser could make it send.

    A name that was pointed at this address after its page was loaded (DNS rebinding) shows in Host: only addresses,
    `localhost` and this machine's own name pass. `everywhere` checks that on every interface, else on loopback only, as
    what listens elsewhere can be reached by others anyway and goes by names that we do not know. A form or script of
    another page shows in Origin.
    """
    names = {"localhost", socket.gethostname().lower()}

    async def check(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(reversed(scope["headers"]))
            host = headers.get(b"host", b"").decode("latin-1").lower()
            local = _local(scope)
            refusal = None
            if local is not None and (everywhere or local) and not _known(host, names):
                refusal = _json({"error": f"this is not {host!r}"}, 421)
            elif scope["method"] not in ("GET", "HEAD") and b"origin" in headers:
                refusal = _json({"error": "not from a web page"}, 403)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await app(scope, receive, send)

    return check


def _local(scope: Scope) -> bool | None:
    """Says whether the connection came over loopback; None for a Unix socket, which no browser reaches."""
    server = scope.get("server")
    if not server or server[1] is None:
        return None
    try:
        return ipaddress.ip_address(server[0]).is_loopback
    except ValueError:
        return bool(server[0] == "localhost")


def _known(host: str, names: set[str]) -> bool:
    name, colon, port = host.rpartition(":")
    if not (colon and port.isdigit()):
        name = host
    if name in names:
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _application(routes: list[Route]) -> App:
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _json({"error": error.detail}, error.status_code, error.headers)

    app = Starlette(routes=routes, exception_handlers={HTTPException: refuse})
    app.router.redirect_slashes = False
    return app


def _methods(routes: list[Route], path: str) -> set[str]:
    return {method for route in routes if route.path == path for method in route.methods or ()} - {"HEAD"}


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2)
    return Response(text + b"\n", status, headers, media_type="application/json")


def _probes(view: AdminView) -> list[Route]:
    def probe(path: str, problem: Callable[[], str | Awaitable[str]]) -> Route:
        async def endpoint(_: Request) -> Response:
            why = await _now(problem())
            return PlainTextResponse(f"{why or 'ok'}\n", 503 if why else 200)

        return Route(path, endpoint, methods=["GET"])

    return [probe("/ready", view.not_ready), probe("/live", view.not_live)]


def _metrics(view: AdminView) -> Route:
    async def endpoint(request: Request) -> Response:
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        pieces = _pieces(await view.collect(), view.target, openmetrics)
        headers = {"content-type": OPENMETRICS if openmetrics else TEXT, "vary": "accept, accept-encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            pieces = _gzip(pieces)
        return StreamingResponse(_chunks(pieces), headers=headers)

    return Route("/metrics", endpoint, methods=["GET"])


def _reference(view: AdminView) -> Route:
    """The same text by the OTel SDK's own exporter, to compare: it takes fifteen times as long, in a thread."""

    def text(stats: Stats, openmetrics: bool) -> bytes:
        from l7proxy.telemetry.otel import Exposition

        return Exposition(stats, view.target).render(openmetrics)

    async def endpoint(request: Request) -> Response:
        openmetrics = wants_openmetrics(request.headers.get("accept", ""))
        body = await asyncio.to_thread(text, await view.collect(), openmetrics)
        return Response(body, headers={"content-type": OPENMETRICS if openmetrics else TEXT, "vary": "accept"})

    return Route("/metrics/otel", endpoint, methods=["GET"])


async def _pieces(stats: Stats, target: Mapping[str, str], openmetrics: bool) -> AsyncIterator[bytes]:
    for piece in render(stats, target, openmetrics):
        yield piece.encode()
        # Requests that came in meanwhile go first.
        await asyncio.sleep(0)


async def _gzip(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    # The fastest level already makes a fiftieth of such text.
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    async for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


async def _chunks(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    chunk = bytearray()
    async for piece in pieces:
        chunk += piece
        if len(chunk) >= CHUNK:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)


async def _now(answer: Any) -> Any:
    return await answer if isawaitable(answer) else answer


async def _explain(view: AdminView, request: Request) -> Any:
    asked = request.query_params
    try:
        return await _now(view.explain(_question(asked.multi_items())))
    except ValueError as error:
        return _json({"error": str(error)}, 400)


def _question(asked: list[tuple[str, str]]) -> Question:
    """Returns the question that `/explain?method=GET&url=...` asks; raises ValueError."""
    known = ("method", "url", "identity", "source_ip", "direction", "header")
    given = dict(asked)
    if unknown := given.keys() - set(known):
        raise ValueError(f"unknown parameter {min(unknown)!r}; there are {', '.join(known)}")
    if "url" not in given:
        raise ValueError("the parameter url is missing, like url=https://orders.example.com/v1/orders/7")
    direction = given.get("direction", "inbound")
    if direction not in ("inbound", "outbound"):
        raise ValueError(f"direction is inbound or outbound, not {direction!r}")
    return Question(
        given.get("method", "GET"),
        given["url"],
        given.get("identity", ""),
        tuple(field(value) for name, value in asked if name == "header"),
        given.get("source_ip", "127.0.0.1"),
        direction == "inbound",
    )


async def _stats(view: AdminView, prefix: str) -> dict[str, Any]:
    stats = await view.collect()
    for refresh in stats.refresh:
        refresh()
    return {family.name: _family(family) for family in stats if family.name.startswith(prefix)}


def _family(family: Family) -> dict[str, Any]:
    series = []
    for labels, metric in list(family.children.items()):
        if isinstance(metric, Histogram):
            values: dict[str, Any] = {"count": metric.count, "sum": metric.sum, "buckets": metric.buckets}
        else:
            values = {"value": metric.value}
        series.append({"labels": dict(labels), **values})
    return {"kind": family.kind, "help": family.help, "series": series}
