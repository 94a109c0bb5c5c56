"""Spans of sampled requests, as the OTel SDK makes them. Imported only where a collector is configured."""

import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from l7proxy.core import grpc
from l7proxy.core.errors import ProxyError
from l7proxy.core.headers import Headers, find, find_all
from l7proxy.core.message import Request
from l7proxy.telemetry.export import Exporter
from l7proxy.telemetry.metrics import GRPC, METHODS
from l7proxy.telemetry.tracing import Parent, write

GRPC_SERVER_ERRORS = frozenset((2, 4, 12, 13, 14, 15))
"""Statuses for which a server is to blame: OTel's conventions for gRPC spans."""

_NOTHING: Headers = []


class Spans:
    """Makes the spans of sampled requests and gives finished ones to `exporter`."""

    def __init__(self, resource: Mapping[str, str], exporter: Exporter) -> None:
        self.exporter = exporter
        self.closed = False
        self._ids = _Ids()
        # Sampling is decided before a span is made, so the SDK is not asked again.
        self._provider = TracerProvider(
            ALWAYS_ON, Resource(dict(resource)), shutdown_on_exit=False, id_generator=self._ids
        )
        self._provider.add_span_processor(exporter)
        self._start = self._provider.get_tracer("l7proxy").start_span

    def start(self, request: Request, parent: Parent | None, b3: bool) -> None:
        """Starts the server span of a request."""
        span = request.span = self.begin(request, parent, b3)
        request.trace_id = span.trace_id.encode()
        span.propagate(request.headers)

    def begin(
        self, request: Request, parent: Parent | None, b3: bool, ids: tuple[int, int] = (0, 0), at: int | None = None
    ) -> "RequestSpan":
        """Returns the server span of a request; with `ids` it has this trace id (unless by its parent) and span id."""
        if parent is None:
            context = Context()
        else:
            state = TraceState.from_header([v.decode("latin-1") for v in find_all(request.headers, b"tracestate")])
            flags = TraceFlags(TraceFlags.SAMPLED)
            remote = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, flags, state)
            context = set_span_in_context(NonRecordingSpan(remote), Context())
        self._ids.trace_id, self._ids.span_id = ids
        span = self._start(_method(request.method), context, SpanKind.SERVER, start_time=at)
        return RequestSpan(self._start, span, b3)

    def close(self, timeout: float = 0.0) -> bool:
        """No configuration asks for these any more; says whether all were sent within `timeout` seconds."""
        self.closed = True
        return self.exporter.close(timeout)


class _Ids(RandomIdGenerator):
    """Random ids, but for one span whose ids were told to the next hop before it was made."""

    trace_id = span_id = 0

    def generate_trace_id(self) -> int:
        trace_id, self.trace_id = self.trace_id, 0
        return trace_id or super().generate_trace_id()

    def generate_span_id(self) -> int:
        span_id, self.span_id = self.span_id, 0
        return span_id or super().generate_span_id()


class RequestSpan:
    """The server span of one sampled request; `trace_id` and `span_id` are hexadecimal."""

    recording = True

    __slots__ = ("_start", "_span", "_b3", "trace_id", "span_id")

    def __init__(self, start: Any, span: Span, b3: bool) -> None:
        self._start = start
        self._span = span
        self._b3 = b3
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.span_id = f"{context.span_id:016x}"

    def propagate(self, headers: Headers) -> None:
        """Makes this span the caller that the next hop sees."""
        write(headers, self.trace_id.encode(), self.span_id.encode(), True, self._b3)

    def attempt(self, request: Request, headers: Headers) -> "AttemptSpan":
        """Starts the client span of one attempt and puts it into the `headers` that the attempt sends."""
        tried = request.tried
        span = self.child(request, request.attempt, tried[-1].reason if tried else "")
        write(headers, self.trace_id.encode(), span.span_id.encode(), True, self._b3)
        return span

    def child(self, request: Request, number: int, reason: str, at: int | None = None) -> "AttemptSpan":
        """Returns the client span of an attempt, by its number and by why it was made if it is not the first."""
        context = set_span_in_context(self._span, Context())
        return AttemptSpan(
            self._start(_method(request.method), context, SpanKind.CLIENT, start_time=at), number, reason
        )

    def end(self, request: Request, status: int, error: BaseException | None) -> None:
        """Ends the span with what is known of the request; `status` is what the client was answered, or 0."""
        span = self._span
        method = _method(request.method)
        host, port = _host_port(request.authority.decode("latin-1"))
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "url.scheme": request.scheme.decode("latin-1"),
            "url.path": request.path.decode("utf-8", "replace"),
            "server.address": host,
            "network.protocol.name": "http",
            "network.protocol.version": request.version,
            "l7proxy.direction": "inbound" if request.inbound else "outbound",
            "l7proxy.request_id": request.request_id.decode("latin-1"),
        }
        if method == "_OTHER":
            attributes["http.request.method_original"] = request.method.decode("latin-1")
        if port:
            attributes["server.port"] = port
        if request.forwarded or request.source:
            attributes["client.address"] = request.forwarded or request.source
        if request.source:
            attributes["network.peer.address"] = request.source
        agent = find(request.headers, b"user-agent")
        if agent is not None:
            attributes["user_agent.original"] = agent.decode("latin-1")
        if request.route is not None:
            attributes["l7proxy.route"] = request.route.name
        if request.pattern:
            attributes["http.route"] = request.pattern
            span.update_name(f"{'HTTP' if method == '_OTHER' else method} {request.pattern}")
        elif method == "_OTHER":
            span.update_name("HTTP")
        if request.peer.identity:
            attributes["l7proxy.peer"] = request.peer.identity
        if request.upstream:
            attributes["l7proxy.upstream"] = request.upstream
        if request.code:
            attributes["l7proxy.code"] = request.code
        if request.flags:
            attributes["l7proxy.flags"] = request.flags
        if request.detail:
            attributes["l7proxy.detail"] = request.detail
        if request.trace is not None:
            for name, told, at in request.trace.events(request):
                span.add_event(name, told, at)
        called = request.grpc_status
        blamed = status >= 500 or status == 0 or called in GRPC_SERVER_ERRORS
        _finish(span, attributes, status, called, request.code, error, blamed)


class AttemptSpan:
    """The client span of one attempt at an upstream; `span_id` is hexadecimal."""

    __slots__ = ("_span", "_number", "_reason", "span_id")

    def __init__(self, span: Span, number: int, reason: str) -> None:
        self._span = span
        self._number = number
        self._reason = reason
        self.span_id = f"{span.get_span_context().span_id:016x}"

    def end(self, request: Request, status: int, error: BaseException | None, fields: Headers = _NOTHING) -> None:
        """Ends the span of the request's last attempt; `status` is 0 when no response head came.

        `fields` are the head or the trailers that tell how a gRPC call ended.
        """
        called = grpc.status_of(status, fields) if request.grpc and status else -1
        self.close(request, request.upstream, request.endpoint, status, called, error)

    def close(
        self,
        request: Request,
        upstream: str,
        endpoint: str,
        status: int,
        called: int,
        error: BaseException | None,
        at: int | None = None,
    ) -> None:
        """Ends the span with what is known of the attempt; `called` is the gRPC status, -1 where there is none."""
        method = _method(request.method)
        authority = request.authority.decode("latin-1")
        host, port = _host_port(endpoint or authority)
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "server.address": host,
            "url.full": f"{request.scheme.decode('latin-1')}://{authority}{request.path.decode('utf-8', 'replace')}",
            "l7proxy.upstream": upstream,
        }
        if method == "_OTHER":
            attributes["http.request.method_original"] = request.method.decode("latin-1")
            self._span.update_name("HTTP")
        if port:
            attributes["server.port"] = port
        if self._number > 1:
            attributes["http.request.resend_count"] = self._number - 1
        if self._reason:
            attributes["l7proxy.retry_reason"] = self._reason
        failed = status >= 400 or status == 0 or called > 0
        # The request's code is that of its end; what ended this attempt is in the error.
        code = error.code.name if isinstance(error, ProxyError) else ""
        _finish(self._span, attributes, status, called, code, error, failed, at)


def _finish(
    span: Span,
    attributes: dict[str, Any],
    status: int,
    called: int,
    code: str,
    error: BaseException | None,
    failed: bool,
    at: int | None = None,
) -> None:
    if status:
        attributes["http.response.status_code"] = status
    if called >= 0:
        attributes["rpc.system.name"] = "grpc"
        attributes["rpc.response.status_code"] = grpc_name(called)
    # A 4xx that the proxy answered itself is the caller's mistake as any other 4xx: no error of a server span.
    if failed or (error is not None and (status < 400 or not isinstance(error, ProxyError))):
        kind = code or (str(status) if status >= 400 else "")
        if not kind:
            kind = grpc_name(called) if called > 0 else type(error).__name__
        attributes["error.type"] = kind
        # The conventions leave the description empty where the status code says it all.
        span.set_status(Status(StatusCode.ERROR, str(error) if error is not None else None))
    span.set_attributes(attributes)
    span.end(at or time.time_ns())


def grpc_name(status: int) -> str:
    """Returns gRPC's name of a status, UNKNOWN for a number that has none."""
    return GRPC[status] if 0 <= status < len(GRPC) else "UNKNOWN"


def _method(method: bytes) -> str:
    return method.decode() if method in METHODS else "_OTHER"


def _host_port(authority: str) -> tuple[str, int]:
    """Splits `host:port`, `[v6]:port` or a bare host; the port is 0 where none is named."""
    host, colon, port = authority.rpartition(":")
    if colon and port.isdigit() and not host.endswith(":") and (":" not in host or host.startswith("[")):
        return host.strip("[]"), int(port)
    return authority.strip("[]"), 0
