"""The proxy itself: from an exchange to a route, through its chain, and back to the client.

One request is one call of `serve`. Every `ProxyError` meets the one `except` here.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from l7proxy.core import grpc
from l7proxy.core.errors import CODES, Cut, ProxyError, proxy_status
from l7proxy.core.exchange import Exchange, Refusal
from l7proxy.core.headers import Headers
from l7proxy.core.loops import loops
from l7proxy.core.message import Body, Request, Response
from l7proxy.core.stream import Stream
from l7proxy.proxy.snapshot import Live, Route, Side, Snapshot, Target
from l7proxy.proxy.trace import Decision, tell
from l7proxy.telemetry.access import Entry, Mark, take_down
from l7proxy.wire.framing import Malformed
from l7proxy.wire.path import ambiguous, canonical, has_slashes, normalise, unescape_slashes

CANCELLED = 499
"""The status that logs and metrics show when the client went away before an answer (nginx's convention)."""

_clock = time.monotonic


def make_app(live: Live, inbound: bool) -> Callable[[Exchange], Awaitable[None]]:
    """Returns what serves the requests of one direction; it reads `live.snapshot` once for each."""

    async def serve(exchange: Exchange) -> None:
        started = _clock()
        snapshot = live.snapshot
        side = snapshot.inbound if inbound else snapshot.outbound
        client = exchange.client
        request = Request(
            exchange.method,
            exchange.scheme,
            exchange.authority,
            b"/",
            exchange.query,
            exchange.path,
            exchange.headers,
            exchange.body,
            exchange.version,
            exchange.peer,
            client[0] if client is not None else "",
            "",
            inbound,
            exchange.upgrade,
        )
        request.t_start = started
        request.destination = exchange.destination
        request.account = exchange.account
        live.active += 1
        if not inbound:
            live.outbound += 1
        response: Response | None = None
        status = 0
        failure: BaseException | None = None
        try:
            try:
                if snapshot.debug is not None and snapshot.debug.asks(request):
                    request.trace = Decision(told=True)
                # First of all, so that a request which no route takes has its ids too.
                if inbound:
                    side.forwarding.apply(request)
                snapshot.tracer.begin(request)
                if request.span is not None and request.span.recording and request.trace is None:
                    request.trace = Decision()
                if request.method == b"POST":
                    grpc.begin(request)
                if request.hops and loops.passed(request.hops, inbound):
                    raise ProxyError("loop_detected", "the request has passed this sidecar before")
                serves = exchange.serves
                if serves is not None and not serves(request.authority):
                    raise ProxyError("misdirected", "the certificate is for other hosts, and the client asked for one")
                target = _route(side, request, live)
                route = request.route = target.route
                request.pattern = target.pattern
                response = await route.handle(request)
            except ProxyError as error:
                response = _answer(live, snapshot, request, error)
            except (asyncio.CancelledError, Cut):
                raise
            except Exception as error:
                live.on_failure(request, error)
                response = _answer(
                    live, snapshot, request, ProxyError("filter_error", f"{type(error).__name__}: {error}")
                )
            if request.trace is not None and request.trace.told:
                tell(request, response, snapshot.version)
            status = response.status
            body = response.body
            if type(body) is bytes:
                request.bytes_out = len(body)
                trailers = response.trailers
                if request.grpc:
                    grpc.read_status(request, status, trailers or response.headers)
                answering = exchange.respond(status, response.headers, body, trailers)
                # A client may take its time, and whatever refers to the body keeps it in memory.
                response.body = body = b""
                await answering
            else:
                if request.upgrade is not None and _tunnels(request, status):
                    _tell(live, snapshot, request, response, status, _clock() - started, "tunnel_open")
                await _pump(request, response, cast(Stream, body), exchange)
        except asyncio.CancelledError as error:
            failure = error
            # The server says with which error it answers in our place, or cuts; without one the client is gone.
            code = CODES.get(error.args[0]) if error.args else None
            if code is not None:
                request.code = code.name
            request.flags = request.flags or (code.flag if code is not None else "DC")
            status = status or (code.status if code is not None else CANCELLED)
            raise
        except ProxyError as error:
            # The response had begun: all that can be done is not to end it cleanly.
            failure = error
            request.code = error.code.name
            request.flags = error.flag
            request.detail = error.detail
            raise Cut from error
        except ConnectionError as error:
            failure = error
            request.flags = request.flags or "DC"
            raise Cut from error
        finally:
            live.active -= 1
            if not inbound:
                live.outbound -= 1
            if response is not None and response.on_end is not None:
                response.on_end(failure)
            _finish(live, snapshot, side, request, response, status, failure)
            # Its traceback leads to this frame: a cycle would outlive the request until the collector comes.
            failure = None

    return serve


def _route(side: Side, request: Request, live: Live) -> Target:
    """Normalises the path and finds the route; raises ProxyError where there is none or the request is no good."""
    if live.active > live.max_active:
        raise ProxyError("overflow", "too much is under way")
    if side.spellings is not None:
        side.spellings.apply(request)
    raw = request.target
    if request.method == b"CONNECT":
        return _tunnel(side, request)
    path = normalise(raw)
    if path is not raw:
        path = _unambiguous(side, path)
    request.path = path
    trace = request.trace
    target = side.router.match(
        request.authority, path, request.method, request.headers, request.query, trace and trace.candidates
    )
    if path is not raw and side.strict and b"%" in path:
        _agree(side, request, target)
    if target is None:
        if side.router.knows(request.authority):
            raise ProxyError("no_route")
        target = side.fallback
        if target is None:
            raise ProxyError("no_route" if side.inbound else "egress_blocked")
    query = request.query
    if side.inbound and not target.route.original:
        raw = path
    request.target = b"%b?%b" % (raw, query) if query else raw
    return target


def _tunnel(side: Side, request: Request) -> Target:
    """Finds the route of a CONNECT, which has a host and no path; raises ProxyError where no tunnel may be opened.

    A host that routes name is reached by them alone: a tunnel would pass by their policies.
    """
    target = None
    if request.upgrade is not None:
        trace = request.trace
        target = side.router.match(
            request.authority, b"/", b"CONNECT", request.headers, b"", trace and trace.candidates
        )
        if target is None and not side.router.knows(request.authority):
            target = side.fallback
    if target is None or not target.route.connect:
        raise ProxyError("method_not_allowed", "CONNECT")
    return target


def route_of(side: Side, exchange: Exchange) -> str:
    """Names the route of a request that is under way, as its head and the live configuration tell; "" for none.

    Asked for by operators alone, so that no request has to carry what it is counted by.
    """
    connect = exchange.method == b"CONNECT"
    try:
        path = b"/" if connect else _unambiguous(side, normalise(exchange.path))
    except ProxyError:
        return ""
    target = side.router.match(exchange.authority, path, exchange.method, exchange.headers, exchange.query)
    target = target or side.fallback
    return "" if target is None else target.route.name


def _unambiguous(side: Side, path: bytes) -> bytes:
    """Returns a normalised path with its encoded slashes as the listener reads them.

    Raises Malformed where rules look at paths and applications may read another one in this.
    """
    slashes = has_slashes(path)
    if slashes and side.slashes == "UNESCAPE":
        path = unescape_slashes(path)
        slashes = False
    if side.strict and ((slashes and side.slashes != "KEEP") or ambiguous(path)):
        raise Malformed("path_ambiguous")
    return path


def _agree(side: Side, request: Request, target: Target | None) -> None:
    """Refuses a path whose route depends on which of the spellings it has that are one to the application."""
    path = canonical(request.path)
    if path == request.path:
        return
    other = side.router.match(request.authority, path, request.method, request.headers, request.query)
    if (other and other.route) is not (target and target.route):
        raise Malformed("path_ambiguous")


def _answer(live: Live, snapshot: Snapshot, request: Request, error: ProxyError) -> Response:
    """Returns the proxy's own answer to an error, as JSON or as a gRPC status, and notes it in the ledger."""
    code = error.code
    request.code = code.name
    request.flags = error.flag
    request.detail = error.detail
    headers: Headers = [
        (b"x-l7proxy-error", code.name.encode()),
        (b"proxy-status", proxy_status(snapshot.service, code)),
        (b"x-request-id", request.request_id),
        *error.headers,
    ]
    if isinstance(error, Malformed) and code.name != "upstream_protocol":
        live.refused(error.reason)
        headers.append((b"connection", b"close"))
    if request.grpc:
        return Response(200, [*grpc.status_fields(error.grpc, code.text), *headers])
    body = msgspec.json.encode({"error": code.name, "message": code.text}) + b"\n"
    return Response(code.status, [(b"content-type", b"application/json"), *headers], body)


async def _pump(request: Request, response: Response, body: Stream, exchange: Exchange) -> None:
    """Passes a body on as it comes; the client's slowness reaches the upstream through `exchange` and `body`."""
    headers = response.headers
    trailers = response.status != 101
    # What is there leaves with the head; the head does not wait for a body that may take its time.
    data = body.take()
    request.bytes_out += len(data)
    if body.drained and body.trailers is None and response.status != 101 and not request.grpc:
        answering = exchange.respond(response.status, headers, data)
        del data
        await answering
        return
    answering = exchange.start(response.status, headers, data, trailers)
    # A client may take its time, and whatever refers to the bytes keeps them in memory.
    del data
    await answering
    # A stream that is made of another one is read, not fed.
    write_now = exchange.write_now if type(body) is Stream else None

    def pass_on(data: bytes) -> bool:
        request.bytes_out += len(data)
        return write_now is not None and write_now(data)

    while data := await body.read():
        request.bytes_out += len(data)
        answering = exchange.write(data)
        del data
        await answering
        if write_now is not None:
            await body.splice(pass_on)
            # What comes meanwhile waits in the body, where it is counted and holds its source back.
            await exchange.write(b"")
    fields = body.trailers if trailers else None
    if request.grpc:
        grpc.read_status(request, response.status, fields or headers)
    await exchange.end(fields)


def _finish(
    live: Live,
    snapshot: Snapshot,
    side: Side,
    request: Request,
    response: Response | None,
    status: int,
    failure: BaseException | None,
) -> None:
    """Counts, logs, remembers and ends the span of a request that is over."""
    body: Body = request.body
    request.bytes_in = len(body) if type(body) is bytes else cast(Stream, body).total
    seconds = _clock() - request.t_start
    if request.grpc and failure is not None:
        grpc.blame(request, failure)
    route: Route | None = request.route
    if request.span is not None:
        # Before the metrics, whose exemplars lead to spans that were made only now.
        request.span.end(request, status, failure)
    (side.unmatched if route is None else route.metrics).finish(request, status, seconds)
    event: Mark = "tunnel_end" if request.upgrade is not None and _tunnels(request, status) else "request"
    entry = _tell(live, snapshot, request, response, status, seconds, event)
    live.history.add(request, status, entry)


def _tell(
    live: Live,
    snapshot: Snapshot,
    request: Request,
    response: Response | None,
    status: int,
    seconds: float,
    event: Mark,
) -> Entry:
    """Takes a request down for the log, and for whoever looks on."""
    log, tap = snapshot.log, live.tap
    entry = take_down(request, status, seconds, snapshot.version, event)
    if log is not None:
        log.write(entry)
    if tap is not None:
        tap(request, response, status, entry)
    return entry


def make_refusals(live: Live, inbound: bool) -> Callable[[Refusal], None]:
    """Returns what counts and logs an answer that the server itself made to bytes that never became a request."""

    def refused(refusal: Refusal) -> None:
        snapshot = live.snapshot
        scheme, peer = refusal.scheme, refusal.peer
        request = Request(b"", scheme, b"", b"", b"", b"", [], b"", refusal.version, peer, inbound=inbound)
        request.source = refusal.client[0] if refusal.client else ""
        code = CODES[refusal.code]
        request.code, request.flags, request.detail = code.name, code.flag, refusal.reason
        (snapshot.inbound if inbound else snapshot.outbound).unmatched.finish(request, code.status, 0.0)
        entry = _tell(live, snapshot, request, None, code.status, 0.0, "request")
        live.history.add(request, code.status, entry)

    return refused


def _tunnels(request: Request, status: int) -> bool:
    """Says whether an answer to an upgrade turns the bodies into a tunnel (RFC 9110 15.2.2, RFC 8441 5)."""
    return status == 101 or (request.method == b"CONNECT" and 200 <= status < 300)
