"""Requests that nobody sampled: what is sent of those that failed, and how it fits what other hops were told."""

import time
from collections.abc import Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from l7proxy.core.errors import ProxyError
from l7proxy.core.headers import find
from l7proxy.core.message import Request
from l7proxy.telemetry import hindsight
from tests.telemetry.collector import Collector, attributes
from tests.telemetry.pipe import Pipe
from tests.telemetry.requests import tried

TRACE = b"0af7651916cd43dd8448eb211c80319c"
SPAN = b"b7ad6b7169203331"
UNSAMPLED = b"00-%b-%b-00" % (TRACE, SPAN)


@pytest.fixture
def pipe(collector: Collector) -> Iterator[Pipe]:
    pipe = Pipe(collector.url, errors=True)
    yield pipe
    pipe.spans.close(5)


def ended(pipe: Pipe, request: Request, status: int, error: BaseException | None = None) -> None:
    """Goes the way of a request: one attempt, and the end."""
    now = time.monotonic()
    request.t_start, request.t_sent, request.t_connected = now - 0.5, now - 0.4, now - 0.3
    request.t_head = now - 0.1 if status and not request.code else 0.0
    assert request.span.attempt(request, request.headers) is None
    request.span.end(request, status, error)


def by_kind(spans: list[Span]) -> tuple[Span, list[Span]]:
    [server] = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    return server, [span for span in spans if span.kind == Span.SPAN_KIND_CLIENT]


def test_a_request_that_succeeds_leaves_nothing(collector: Collector, pipe: Pipe) -> None:
    for status, called in ((200, -1), (404, -1), (200, 5), (101, -1)):
        ended(pipe, pipe.begin(headers=[], grpc_status=called), status)
    ended(pipe, pipe.begin(headers=[]), 500)
    server, clients = by_kind(collector.wait(2))
    assert attributes(server)["http.response.status_code"] == 500
    assert len(clients) == 1


def test_the_span_of_a_failed_request_has_the_id_that_the_next_hop_was_told(collector: Collector, pipe: Pipe) -> None:
    request = pipe.begin("spiffe://demo/web", headers=[])
    traceparent = find(request.headers, b"traceparent") or b""
    assert traceparent.endswith(b"-00")
    ended(pipe, request, 503)
    server, [client] = by_kind(collector.wait(2))
    assert traceparent == f"00-{server.trace_id.hex()}-{server.span_id.hex()}-00".encode()
    assert server.parent_span_id == b""
    assert (client.trace_id, client.parent_span_id) == (server.trace_id, server.span_id)
    assert attributes(server)["l7proxy.peer"] == "spiffe://demo/web"
    assert attributes(client)["http.response.status_code"] == 503
    assert {span.status.code for span in (server, client)} == {Status.STATUS_CODE_ERROR}


def test_the_callers_trace_is_continued_though_it_decided_against_it(collector: Collector, pipe: Pipe) -> None:
    request = pipe.begin(headers=[(b"traceparent", UNSAMPLED), (b"tracestate", b"a=b")])
    told = find(request.headers, b"traceparent") or b""
    assert told.startswith(b"00-" + TRACE) and told.endswith(b"-00")
    assert SPAN not in told
    ended(pipe, request, 500)
    server, _ = by_kind(collector.wait(2))
    assert (server.trace_id.hex().encode(), server.parent_span_id.hex().encode()) == (TRACE, SPAN)
    assert server.span_id.hex().encode() == told[36:52]
    assert server.trace_state == "a=b"


def test_times_are_those_of_the_request(collector: Collector, pipe: Pipe) -> None:
    before = time.time_ns()
    ended(pipe, pipe.begin(headers=[]), 500)
    after = time.time_ns()
    server, [client] = by_kind(collector.wait(2))
    start, sent = server.start_time_unix_nano, client.start_time_unix_nano
    assert before - 500_000_000 <= start + 10_000_000 and start <= after - 490_000_000
    assert 90_000_000 < sent - start < 110_000_000
    assert start < sent < client.end_time_unix_nano <= server.end_time_unix_nano


def test_every_attempt_has_its_span_and_says_why_it_was_made(collector: Collector, pipe: Pipe) -> None:
    request = pipe.begin(headers=[], endpoint="10.0.0.7:90", attempt=3, code="upstream_timeout", detail="late")
    request.tried = [
        tried("10.0.0.5:90", 0, "upstream_connect", "refused", "connect-failure"),
        tried("10.0.0.6:90", 200, "", "", "unavailable"),
    ]
    ended(pipe, request, 504)
    server, clients = by_kind(collector.wait(4))
    found = [attributes(span) for span in clients]
    assert [each["server.address"] for each in found] == ["10.0.0.5", "10.0.0.6", "10.0.0.7"]
    assert [each.get("l7proxy.retry_reason") for each in found] == [None, "connect-failure", "unavailable"]
    assert [each.get("http.request.resend_count") for each in found] == [None, 1, 2]
    assert [each["error.type"] for each in found] == ["upstream_connect", "UNAVAILABLE", "upstream_timeout"]
    assert [each.get("http.response.status_code") for each in found] == [None, 200, None]
    assert [each.get("rpc.response.status_code") for each in found] == [None, "UNAVAILABLE", None]
    assert attributes(server)["error.type"] == "upstream_timeout"


@pytest.mark.parametrize(
    ("status", "called", "error", "kind"),
    [
        (200, 14, None, "UNAVAILABLE"),
        (200, -1, ProxyError("upstream_reset", "gone"), "upstream_reset"),
        (499, -1, ConnectionResetError("gone"), "499"),
    ],
)
def test_what_counts_as_failed(
    collector: Collector, pipe: Pipe, status: int, called: int, error: BaseException | None, kind: str
) -> None:
    code = error.code.name if isinstance(error, ProxyError) else ""
    request = pipe.begin(headers=[], grpc=called >= 0, grpc_status=called)
    request.t_head = time.monotonic()
    request.code = code
    request.span.end(request, status, error)
    server, [client] = by_kind(collector.wait(2))
    assert (attributes(server)["error.type"], server.status.code) == (kind, Status.STATUS_CODE_ERROR)
    assert attributes(client)["error.type"] == kind


def test_a_request_that_was_sent_nowhere_has_no_attempt(collector: Collector, pipe: Pipe) -> None:
    request = pipe.begin(headers=[], upstream="", endpoint="", attempt=0, code="no_healthy_upstream")
    request.span.end(request, 503, None)
    [server] = collector.wait(1)
    assert attributes(server)["l7proxy.code"] == "no_healthy_upstream"


def test_what_is_sampled_is_not_looked_at_again(collector: Collector, pipe: Pipe) -> None:
    request = pipe.begin(headers=[(b"traceparent", UNSAMPLED[:-1] + b"1")])
    attempt = request.span.attempt(request, request.headers)
    attempt.end(request, 500, None)
    request.span.end(request, 500, None)
    assert len(collector.wait(2)) == 2
    assert pipe.spans.close(10)
    assert len(collector.spans) == 2


def test_a_flood_of_failures_is_bounded_and_counted(collector: Collector, pipe: Pipe) -> None:
    now = [1000.0]
    stands = hindsight.Hindsight(pipe.spans, False, lambda: now[0])
    for _ in range(hindsight.LIMIT + 50):
        stands.end(pipe.begin(headers=[], attempt=0), 503, None)
    now[0] += 1
    stands.end(pipe.begin(headers=[], attempt=0), 503, None)
    assert len(collector.wait(hindsight.LIMIT + 1)) == hindsight.LIMIT + 1
    assert pipe.dropped("error_limit") == 50


def test_b3_tells_the_span_of_hindsight_too(collector: Collector) -> None:
    pipe = Pipe(collector.url, b3=True, errors=True)
    request = pipe.begin(headers=[(b"b3", b"%b-%b-0" % (TRACE, SPAN))])
    told = find(request.headers, b"b3") or b""
    ended(pipe, request, 500)
    server, _ = by_kind(collector.wait(2))
    assert told == f"{TRACE.decode()}-{server.span_id.hex()}-0".encode()
    assert server.parent_span_id.hex().encode() == SPAN
    pipe.spans.close(5)
