"""Which trace a request belongs to, and what the next hop is told of it."""

import re

import pytest

from l7proxy.core.headers import Headers, find, find_all
from l7proxy.core.message import Request
from l7proxy.telemetry.tracing import Tracer
from tests.telemetry.requests import finished

TRACE = b"0af7651916cd43dd8448eb211c80319c"
SPAN = b"b7ad6b7169203331"
SAMPLED = b"00-%b-%b-01" % (TRACE, SPAN)
UNSAMPLED = b"00-%b-%b-00" % (TRACE, SPAN)

VALID = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[01]").fullmatch


class NoSpans:
    """Stands where spans would be made; fails when one is."""

    def start(self, request: Request, parent: object, b3: bool) -> None:
        raise AssertionError(f"a span for {parent}")


def begun(headers: Headers, spans: object | None = None, sampling: float = 0.0, b3: bool = False) -> Request:
    request = finished(headers=list(headers), upstream="", endpoint="", attempt=0)
    Tracer(spans, sampling, b3).begin(request)  # type: ignore[arg-type]
    return request


def test_a_request_id_is_made_where_there_is_none() -> None:
    ids = {begun([(b"accept", b"*/*")]).request_id for _ in range(100)}
    assert len(ids) == 100
    request = begun([])
    assert re.fullmatch(rb"[0-9a-f]{32}", request.request_id)
    assert find_all(request.headers, b"x-request-id") == [request.request_id]


def test_a_request_id_that_came_is_kept() -> None:
    request = begun([(b"x-request-id", b"abc-123")])
    assert request.request_id == b"abc-123"
    assert find_all(request.headers, b"x-request-id") == [b"abc-123"]


@pytest.mark.parametrize("bad", [b"", b"a b", b"x" * 129, b"\xff", b'a"\n'])
def test_a_request_id_that_would_harm_a_log_is_replaced(bad: bytes) -> None:
    request = begun([(b"x-request-id", bad)])
    assert re.fullmatch(rb"[0-9a-f]{32}", request.request_id)
    assert find_all(request.headers, b"x-request-id") == [request.request_id]


@pytest.mark.parametrize("traceparent", [SAMPLED, UNSAMPLED, b"cc-%b-%b-01-more" % (TRACE, SPAN)])
def test_without_a_collector_context_passes_untouched(traceparent: bytes) -> None:
    headers = [(b"traceparent", traceparent), (b"tracestate", b"a=b"), (b"x-request-id", b"1")]
    request = begun(headers)
    assert request.headers == headers
    assert request.trace_id == TRACE
    assert request.span is None


def test_without_a_collector_no_trace_is_begun() -> None:
    request = begun([(b"x-request-id", b"1")])
    assert request.headers == [(b"x-request-id", b"1")]
    assert request.trace_id == b""


def test_the_callers_decision_against_a_trace_holds() -> None:
    request = begun([(b"traceparent", UNSAMPLED), (b"x-request-id", b"1")], NoSpans(), sampling=1.0)
    assert find_all(request.headers, b"traceparent") == [UNSAMPLED]


def test_a_request_that_is_not_sampled_says_so_to_those_that_follow() -> None:
    request = begun([], NoSpans(), sampling=0.0)
    [traceparent] = find_all(request.headers, b"traceparent")
    assert VALID(traceparent)
    assert traceparent.endswith(b"-00")
    assert request.trace_id == traceparent[3:35]
    assert begun([], NoSpans()).trace_id != request.trace_id


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"hello",
        SAMPLED.upper(),
        b"00-%b-%b-01" % (b"0" * 32, SPAN),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"ff-%b-%b-01" % (TRACE, SPAN),
        b"00-%b-%b-01-more" % (TRACE, SPAN),
        b"cc-%b-%b-01more" % (TRACE, SPAN),
        SAMPLED[:-1],
        SAMPLED + b"\n",
    ],
)
def test_what_is_no_traceparent_begins_a_new_trace_without_the_old_state(bad: bytes) -> None:
    request = begun([(b"traceparent", bad), (b"tracestate", b"a=b")], NoSpans())
    [traceparent] = find_all(request.headers, b"traceparent")
    assert VALID(traceparent)
    assert TRACE not in traceparent
    assert find(request.headers, b"tracestate") is None


def test_two_traceparents_are_none() -> None:
    request = begun([(b"traceparent", SAMPLED), (b"traceparent", SAMPLED)], NoSpans())
    [traceparent] = find_all(request.headers, b"traceparent")
    assert TRACE not in traceparent


class Started:
    """Keeps the parents of the spans that were asked for."""

    def __init__(self) -> None:
        self.parents: list[object] = []

    def start(self, request: Request, parent: object, b3: bool) -> None:
        self.parents.append(parent)


def test_the_callers_decision_for_a_trace_holds() -> None:
    started = Started()
    begun([(b"traceparent", SAMPLED)], started, sampling=0.0)
    assert started.parents == [(TRACE, SPAN, True)]


def test_the_ratio_decides_for_who_did_not() -> None:
    started = Started()
    for _ in range(10_000):
        begun([], started, sampling=0.2)
    assert 1700 < len(started.parents) < 2300
    assert set(started.parents) == {None}


B3_SINGLE = b"%b-%b" % (TRACE, SPAN)
B3_MULTI = [(b"x-b3-traceid", TRACE), (b"x-b3-spanid", SPAN)]


@pytest.mark.parametrize(
    ("headers", "sampled"),
    [
        ([(b"b3", B3_SINGLE + b"-1")], True),
        ([(b"b3", B3_SINGLE + b"-d")], True),
        ([(b"b3", B3_SINGLE + b"-1-05e3ac9a4f6e3b90")], True),
        ([(b"b3", B3_SINGLE.upper() + b"-0")], False),
        ([*B3_MULTI, (b"x-b3-sampled", b"1"), (b"x-b3-parentspanid", b"05e3ac9a4f6e3b90")], True),
        ([*B3_MULTI, (b"x-b3-sampled", b"true")], True),
        ([*B3_MULTI, (b"x-b3-flags", b"1")], True),
        ([*B3_MULTI, (b"x-b3-sampled", b"0")], False),
        ([*B3_MULTI, (b"b3", B3_SINGLE + b"-0"), (b"x-b3-sampled", b"1")], False),
    ],
)
def test_b3_is_read_where_it_is_configured(headers: Headers, sampled: bool) -> None:
    started = Started()
    request = begun(headers, started, sampling=0.0, b3=True)
    if sampled:
        assert started.parents == [(TRACE, SPAN, True)]
    else:
        assert started.parents == []
        assert find_all(request.headers, b"traceparent") == [UNSAMPLED]
        assert find_all(request.headers, b"b3") == [B3_SINGLE + b"-0"]
        assert find_all(request.headers, b"x-b3-traceid") == [TRACE]
        assert find_all(request.headers, b"x-b3-spanid") == [SPAN]
        assert find_all(request.headers, b"x-b3-sampled") == [b"0"]


def test_b3_is_not_read_where_it_is_not_configured() -> None:
    headers = [(b"b3", B3_SINGLE + b"-1"), (b"x-request-id", b"1")]
    assert begun(headers).headers == headers
    assert TRACE not in begun(headers, NoSpans()).trace_id


def test_w3c_wins_over_b3_and_both_tell_the_same_afterwards() -> None:
    request = begun([(b"b3", b"%b-%b-1" % (b"1" * 32, b"2" * 16)), (b"traceparent", UNSAMPLED)], b3=True)
    assert find_all(request.headers, b"traceparent") == [UNSAMPLED]
    assert find_all(request.headers, b"b3") == [B3_SINGLE + b"-0"]


def test_a_b3_trace_id_of_64_bits_is_widened() -> None:
    request = begun([(b"b3", b"a3ce929d0e0e4736-%b-0" % SPAN)], b3=True)
    assert request.trace_id == b"0000000000000000a3ce929d0e0e4736"


def test_b3_may_decide_without_ids() -> None:
    request = begun([(b"b3", b"0")], NoSpans(), sampling=1.0, b3=True)
    [traceparent] = find_all(request.headers, b"traceparent")
    assert VALID(traceparent)
    assert find(request.headers, b"b3") == b"%b-%b-0" % (traceparent[3:35], traceparent[36:52])
    started = Started()
    begun([(b"x-b3-sampled", b"1")], started, sampling=0.0, b3=True)
    assert started.parents == [None]


def test_b3_without_a_decision_leaves_it_to_the_ratio() -> None:
    started = Started()
    begun([(b"b3", B3_SINGLE)], started, sampling=1.0, b3=True)
    assert started.parents == [(TRACE, SPAN, None)]
    begun([(b"b3", B3_SINGLE)], NoSpans(), sampling=0.0, b3=True)


@pytest.mark.parametrize("bad", [b"", b"x", b"1-2-3", b"%b-%b-1" % (b"0" * 32, SPAN), b"%b-%b" % (TRACE, b"0" * 16)])
def test_what_is_no_b3_begins_a_new_trace(bad: bytes) -> None:
    request = begun([(b"b3", bad)], NoSpans(), b3=True)
    [traceparent] = find_all(request.headers, b"traceparent")
    assert VALID(traceparent)
    assert find(request.headers, b"b3") == b"%b-%b-0" % (traceparent[3:35], traceparent[36:52])
