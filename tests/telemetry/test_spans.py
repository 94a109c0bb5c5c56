"""Sampled requests as a real collector gets them, and what happens when it does not."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from l7proxy.core.errors import ProxyError
from l7proxy.core.handler import Keep
from l7proxy.core.headers import Headers, find
from l7proxy.core.message import Request
from l7proxy.core.stats import Counter, Stats
from l7proxy.telemetry import export
from l7proxy.telemetry.export import Exporter
from l7proxy.telemetry.facade import Telemetry
from l7proxy.telemetry.log import Log
from l7proxy.telemetry.spans import Spans
from l7proxy.telemetry.tracing import Tracer
from tests.support.net import free_address, wait_for
from tests.telemetry.collector import Collector, attributes
from tests.telemetry.requests import finished

TRACE = b"0af7651916cd43dd8448eb211c80319c"
SPAN = b"b7ad6b7169203331"
SAMPLED = b"00-%b-%b-01" % (TRACE, SPAN)
TARGET = {"service.name": "orders", "service.version": "v1", "l7proxy.mesh": "demo"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


class Pipe:
    """A tracer that samples everything, and what it counted and said."""

    def __init__(self, url: str, b3: bool = False) -> None:
        self.stats = Stats()
        self.said: list[tuple[str, str]] = []
        self.exporter = Exporter(self.stats, url, lambda level, event, **_: self.said.append((level, event)), 0.01)
        self.spans = Spans(TARGET, self.exporter)
        self.tracer = Tracer(self.spans, 1.0, b3)

    def begin(self, identity: str = "", **fields: Any) -> Request:
        request = finished(identity, **fields)
        self.tracer.begin(request)
        return request

    def dropped(self, reason: str) -> float:
        return self._value("l7proxy_spans_dropped_total", ("reason", reason))

    def exported(self) -> float:
        return self._value("l7proxy_spans_exported_total")

    def _value(self, name: str, *labels: tuple[str, str]) -> float:
        counter = self.stats.families[name].children[labels]
        assert isinstance(counter, Counter)
        return counter.value


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
        attempt = request.span.attempt(request, request.headers)
        seen.append(find(request.headers, b"traceparent"))
        request.endpoint, request.attempt, request.code = endpoint, number, code
        attempt.end(request, status, ProxyError(code, "refused") if code else None)
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
    request = pipe.begin(headers=[], grpc_status=grpc)
    attempted = None if isinstance(error, ProxyError) else error
    request.span.attempt(request, request.headers).end(request, status, attempted)
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


def test_an_event_of_the_request_is_in_its_span(collector: Collector, pipe: Pipe) -> None:
    request = pipe.begin(headers=[])
    request.span.event("denied", {"rule": "deny[0]", "line": 12})
    request.span.end(request, 403, None)
    [span] = collector.wait(1)
    assert [(event.name, len(event.attributes)) for event in span.events] == [("denied", 2)]


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


def test_every_span_arrives_once_in_batches(collector: Collector, pipe: Pipe) -> None:
    requests = [pipe.begin(headers=[]) for _ in range(1500)]
    for request in requests:
        request.span.end(request, 200, None)
    spans = collector.wait(1500)
    assert {span.trace_id.hex() for span in spans} == {request.span.trace_id for request in requests}
    assert len(spans) == 1500
    assert collector.posts < 100
    wait_for(lambda: pipe.exported() == 1500, 5, lambda: f"{pipe.exported()} counted")


def test_spans_that_wait_are_sent_at_the_end(collector: Collector) -> None:
    pipe = Pipe(collector.url)
    pipe.exporter._period = 60
    request = pipe.begin(headers=[])
    request.span.end(request, 200, None)
    assert pipe.spans.close(5)
    assert len(collector.spans) == 1


def end_many(pipe: Pipe, count: int) -> float:
    """Ends many sampled requests and returns the longest time that one took."""
    slowest = 0.0
    for _ in range(count):
        request = pipe.begin(headers=[])
        started = time.perf_counter()
        request.span.end(request, 200, None)
        slowest = max(slowest, time.perf_counter() - started)
    return slowest


def test_without_a_collector_spans_are_counted_and_one_line_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "RETRIES", (0.01, 0.01))
    host, port = free_address()
    pipe = Pipe(f"http://{host}:{port}")
    end_many(pipe, 600)
    wait_for(lambda: pipe.dropped("export_failed") == 600, 10, lambda: f"{pipe.dropped('export_failed')} counted")
    assert pipe.said == [("warning", "spans are dropped")]
    assert pipe.spans.close(5)


def test_a_collector_that_hangs_costs_a_bounded_number_of_spans_and_no_time(collector: Collector) -> None:
    collector.hang.clear()
    pipe = Pipe(collector.url)
    total = export.QUEUE + export.BATCH + 500
    end_many(pipe, 1)
    wait_for(lambda: collector.posts == 1, 5, lambda: "nothing was sent")
    slowest = end_many(pipe, total)
    assert slowest < 1
    assert pipe.dropped("queue_full") == total - export.QUEUE
    started = time.monotonic()
    assert not pipe.spans.close(0.2)
    assert time.monotonic() - started < 2
    collector.hang.set()
    pipe.exporter.close(5)
    assert pipe.exported() == export.QUEUE + 1


def test_a_collector_that_comes_back_gets_what_waited(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "RETRIES", (0.2, 0.2, 0.2))
    collector.status = 503
    pipe = Pipe(collector.url)
    end_many(pipe, 10)
    wait_for(lambda: collector.posts >= 1, 5, lambda: "nothing was sent")
    collector.status = 200
    assert len(collector.wait(10)) == 10
    wait_for(lambda: pipe.exported() == 10, 5, lambda: f"{pipe.exported()} counted")
    assert pipe.dropped("export_failed") == 0
    assert pipe.spans.close(5)


def test_what_a_collector_refuses_is_not_sent_again(collector: Collector, pipe: Pipe) -> None:
    collector.status = 400
    end_many(pipe, 3)
    wait_for(lambda: pipe.dropped("export_failed") == 3, 5, lambda: f"{pipe.dropped('export_failed')} counted")
    assert collector.posts == 1
    collector.status = 200
    end_many(pipe, 1)
    collector.wait(1)
    wait_for(lambda: len(pipe.said) == 2, 5, lambda: str(pipe.said))
    assert pipe.said == [("warning", "spans are dropped"), ("info", "the trace collector takes spans again")]


def test_a_connection_that_the_collector_closed_is_opened_anew(collector: Collector, pipe: Pipe) -> None:
    end_many(pipe, 1)
    collector.wait(1)
    pipe.exporter._collector._connection.sock.shutdown(2)  # type: ignore[union-attr]
    end_many(pipe, 1)
    assert len(collector.wait(2)) == 2
    assert pipe.dropped("export_failed") == 0


def test_headers_for_the_collector_come_from_the_environment(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc,x-tenant=demo")
    pipe = Pipe(f"{collector.url}/prefix/")
    end_many(pipe, 1)
    collector.wait(1)
    assert collector.paths == ["/prefix/v1/traces"]
    assert collector.headers[0]["authorization"] == "Bearer abc"
    assert collector.headers[0]["x-tenant"] == "demo"
    pipe.spans.close(5)


def threads() -> int:
    return [thread.name for thread in threading.enumerate()].count("spans")


def test_one_exporter_serves_every_configuration_that_names_its_collector(collector: Collector) -> None:
    stats, keep = Stats(), Keep()
    telemetry = Telemetry(stats, Log(stats, "/dev/null"))
    assert threads() == 0
    for sampling in (0.1, 0.5, 1.0):
        tracer = telemetry.tracer(keep, TARGET, collector.url, sampling)
        assert keep.commit() == []
    assert threads() == 1
    request = finished(headers=[])
    tracer.begin(request)
    request.span.end(request, 200, None)
    telemetry.tracer(keep, TARGET)
    [dropped] = keep.commit()
    dropped.close(5)
    assert len(collector.spans) == 1
    assert threads() == 0
    telemetry.close()
