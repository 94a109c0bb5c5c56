"""Sampled requests as a real collector gets them."""

import time
from collections.abc import Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from l7proxy.core.errors import ProxyError
from l7proxy.core.headers import Headers, find
from tests.telemetry.collector import Collector, attributes
from tests.telemetry.pipe import TARGET, Pipe
from tests.telemetry.requests import tried

TRACE = b"0af7651916cd43dd8448eb211c80319c"
SPAN = b"b7ad6b7169203331"
SAMPLED = b"00-%b-%b-01" % (TRACE, SPAN)


@pytest.fixture
def pipe(collector: Collector) -> Iterator[Pipe]:
    pipe = Pipe(collector.url)
    yield pipe
    pipe.spans.close(5)


def test_the_server_span_follows_the_http_conventions(collector: Collector, pipe: Pipe) -> None:
    before = time.time_ns()
    request = pipe.begin("spiffe://demo/web", headers=[(b"traceparent", SAMPLED), (b"user-agent", b"curl/8")])
    request.forwarded = "203.0.113.9"
    request.span.end(request, 200, None)
    [span] = collector.wait(1)
    assert span.name == "GET /v1/orders"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.trace_id.hex().encode() == TRACE
    assert span.parent_span_id.hex().encode() == SPAN
    assert before <= span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert attributes(span) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "http.route": "/v1/orders",
        "url.scheme": "http",
        "url.path": "/v1/orders/17",
        "server.address": "orders.example.com",
        "server.port": 8080,
        "client.address": "203.0.113.9",
        "network.peer.address": "10.0.0.17",
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "user_agent.original": "curl/8",
        "l7proxy.direction": "inbound",
        "l7proxy.peer": "spiffe://demo/web",
        "l7proxy.route": "orders-read",
        "l7proxy.upstream": "app",
        "l7proxy.request_id": request.request_id.decode(),
    }
    assert collector.resources == [TARGET]
    assert collector.paths == ["/v1/traces"]


def test_each_attempt_is_a_client_span_that_its_upstream_sees_as_parent(collector: Collector, pipe: Pipe) -> None:
    request = pipe.begin(headers=[(b"tracestate", b"vendor=1"), (b"traceparent", SAMPLED)])
    server_id = request.span.span_id.encode()
    assert find(request.headers, b"traceparent") == b"00-%b-%b-01" % (TRACE, server_id)
    seen = []
    for number, (endpoint, status, code) in enumerate(
        [("10.0.0.5:9090", 0, "upstream_connect"), ("[::1]:90", 200, "")], 1
    ):
        request.endpoint, request.attempt, request.code = endpoint, number, code
        attempt = request.span.attempt(request, request.headers)
        seen.append(find(request.headers, b"traceparent"))
        attempt.end(request, status, ProxyError(code, "refused") if code else None)
        request.tried = [tried(endpoint, 0, code, "refused", "connect-failure")]
    request.span.end(request, 200, None)
    first, second, server = collector.wait(3)
    assert [first.kind, second.kind] == [Span.SPAN_KIND_CLIENT] * 2
    assert [span.parent_span_id.hex().encode() for span in (first, second)] == [server_id] * 2
    assert seen == [b"00-%b-%b-01" % (TRACE, span.span_id.hex().encode()) for span in (first, second)]
    assert {span.trace_id for span in (first, second, server)} == {bytes.fromhex(TRACE.decode())}
    assert attributes(first) == {
        "http.request.method": "GET",
        "url.full": "http://orders.example.com:8080/v1/orders/17",
        "server.address": "10.0.0.5",
        "server.port": 9090,
        "l7proxy.upstream": "app",
        "error.type": "upstream_connect",
    }
    assert first.status.code == Status.STATUS_CODE_ERROR
    assert attributes(second)["server.address"] == "::1"
    assert attributes(second)["http.request.resend_count"] == 1
    assert attributes(second)["l7proxy.retry_reason"] == "connect-failure"
    assert attributes(second)["http.response.status_code"] == 200
    assert second.status.code == Status.STATUS_CODE_UNSET
    assert {span.trace_state for span in (first, second, server)} == {"vendor=1"}
    assert find(request.headers, b"tracestate") == b"vendor=1"


@pytest.mark.parametrize(
    ("status", "grpc", "error", "server", "client", "kind"),
    [
        (200, -1, None, "UNSET", "UNSET", None),
        (404, -1, None, "UNSET", "ERROR", "404"),
        (403, -1, ProxyError("denied", "rule 1"), "UNSET", "ERROR", "403"),
        (503, -1, None, "ERROR", "ERROR", "503"),
        (200, 0, None, "UNSET", "UNSET", None),
        (200, 5, None, "UNSET", "ERROR", "NOT_FOUND"),
        (200, 14, None, "ERROR", "ERROR", "UNAVAILABLE"),
        (200, -1, ConnectionResetError("gone"), "ERROR", "ERROR", "ConnectionResetError"),
        (200, -1, ProxyError("upstream_reset"), "ERROR", "ERROR", "upstream_reset"),
    ],
)
def test_the_status_of_spans(
    collector: Collector,
    pipe: Pipe,
    status: int,
    grpc: int,
    error: BaseException | None,
    server: str,
    client: str,
    kind: str | None,
) -> None:
    code = error.code.name if isinstance(error, ProxyError) else ""
    request = pipe.begin(headers=[], grpc=grpc >= 0, grpc_status=grpc, code=code)
    # What the proxy itself answers has no attempt; what cuts a response short is the attempt's fault.
    attempted = None if status >= 400 else error
    trailers = [(b"grpc-status", b"%d" % grpc)]
    request.span.attempt(request, request.headers).end(request, status, attempted, trailers)
    request.span.end(request, status, error)
    spans = {span.kind: span for span in collector.wait(2)}
    of_client, of_server = spans[Span.SPAN_KIND_CLIENT], spans[Span.SPAN_KIND_SERVER]
    assert Status.StatusCode.Name(of_server.status.code) == f"STATUS_CODE_{server}"
    assert Status.StatusCode.Name(of_client.status.code) == f"STATUS_CODE_{client}"
    assert attributes(of_client).get("error.type") == kind
    assert attributes(of_server).get("error.type") == (kind if server == "ERROR" else None)


def test_a_method_that_a_client_invented_is_not_in_the_name(collector: Collector, pipe: Pipe) -> None:
    request = pipe.begin(headers=[], method=b"BREW")
    request.span.end(request, 200, None)
    [span] = collector.wait(1)
    assert span.name == "HTTP /v1/orders"
    assert attributes(span)["http.request.method"] == "_OTHER"
    assert attributes(span)["http.request.method_original"] == "BREW"


def test_a_request_without_a_route_has_a_span_too(collector: Collector, pipe: Pipe) -> None:
    request = pipe.begin(headers=[], route=None, pattern="", upstream="", code="no_route", flags="NR", detail="why")
    request.span.end(request, 404, ProxyError("no_route"))
    [span] = collector.wait(1)
    assert span.name == "GET"
    assert {"l7proxy.code": "no_route", "l7proxy.flags": "NR", "l7proxy.detail": "why"}.items() <= attributes(
        span
    ).items()
    assert span.status.code == Status.STATUS_CODE_UNSET


def test_b3_tells_the_same_as_traceparent(collector: Collector) -> None:
    pipe = Pipe(collector.url, b3=True)
    request = pipe.begin(headers=[(b"x-b3-flags", b"1"), (b"x-b3-traceid", TRACE), (b"x-b3-spanid", SPAN)])
    headers: Headers = request.headers
    request.span.attempt(request, headers).end(request, 200, None)
    request.span.end(request, 200, None)
    client, server = collector.wait(2)
    span_id = client.span_id.hex().encode()
    assert server.parent_span_id.hex().encode() == SPAN
    assert find(headers, b"b3") == b"%b-%b-1" % (TRACE, span_id)
    assert [find(headers, name) for name in (b"x-b3-traceid", b"x-b3-spanid", b"x-b3-sampled", b"x-b3-flags")] == [
        TRACE,
        span_id,
        b"1",
        None,
    ]
    pipe.spans.close(5)
