"""Every row of the threat table for HTTP/2: raw bytes, what must come back, and the counter that moves."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from l7proxy.wire.h2_frames import PREFACE, Error
from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient, wide_open
from tests.support.net import wait_for
from tests.support.server import Connection, Server
from tests.support.sidecar import Sidecar
from tests.wire.h2_peer import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    HELLO,
    PADDED,
    PING,
    POST,
    PRIORITY,
    SETTINGS,
    Fields,
    block,
    data,
    frame,
    headers,
    rst_stream,
    settings,
    window_update,
)

SMALL: dict[str, Any] = {
    "limits": {
        "http2": {
            "resets": 50, "pings": 50, "settings": 50, "priorities": 50, "windowUpdates": 50, "emptyData": 50,
            "strayFrames": 50, "concurrentStreams": 100,
        }
    }
}  # fmt: skip


@pytest.fixture(scope="module")
def app() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def proxy(shared_sidecar: StartSidecar, app: Server) -> Sidecar:
    return shared_sidecar(app=app.address, **SMALL)


def refused(proxy: Sidecar, reason: str) -> float:
    return proxy.metrics()("l7proxy_h2_refused_total", reason=reason, listener="inbound")


def still_serves(proxy: Sidecar) -> None:
    with RawClient(proxy.inbound) as client:
        assert client.get("/alive") == "200"


def changed(name: bytes, value: bytes) -> Fields:
    return [(key, value if key == name else old) for key, old in GET]


# Floods


SHORT = [*POST, (b"content-length", b"1")]
FLOODS: list[tuple[str, bytes, Callable[[int], bytes]]] = [
    ("rapid_reset", b"", lambda n: headers(2 * n + 1, POST, end=False) + rst_stream(2 * n + 1)),
    ("rapid_reset", b"", lambda n: headers(2 * n + 1, POST, end=False) + window_update(2 * n + 1, 0)),
    ("rapid_reset", b"", lambda n: headers(2 * n + 1, POST, end=False) + window_update(2 * n + 1, 2**31 - 1)),
    ("rapid_reset", b"", lambda n: headers(2 * n + 1, [*GET, (b"content-length", b"1")])),
    (
        "rapid_reset",
        b"",
        lambda n: headers(2 * n + 1, [*POST, (b"content-length", b"1")], False) + data(2 * n + 1, b"xx"),
    ),
    ("ping_flood", b"", lambda n: frame(PING, 0, 0, b"12345678")),
    ("settings_flood", b"", lambda n: settings((4, 65_535))),
    ("priority_flood", b"", lambda n: frame(PRIORITY, 0, 2 * n + 1, b"\0\0\0\0\x10")),
    ("window_update_flood", b"", lambda n: window_update(0, 1)),
    ("empty_data_flood", headers(1, POST, end=False), lambda n: data(1, b"")),
    ("empty_data_flood", headers(1, POST, end=False), lambda n: frame(0, PADDED, 1, b"\x02\0\0")),
    ("stray_frame_flood", b"", lambda n: frame(0x77, 0, 0, b"x")),
    ("stray_frame_flood", b"", lambda n: frame(PING, 1, 0, b"12345678")),
    ("stray_frame_flood", b"", lambda n: frame(SETTINGS, 1, 0)),
    ("continuation_flood", frame(HEADERS, 0, 1), lambda n: frame(CONTINUATION, 0, 1)),
    ("continuation_flood", frame(HEADERS, 0, 1), lambda n: frame(CONTINUATION, 0, 1, block([(b"x-%d" % n, b"y")]))),
]


@pytest.mark.parametrize(
    ("reason", "first", "wire"), FLOODS, ids=[f"{reason}-{n}" for n, (reason, _, _) in enumerate(FLOODS)]
)
def test_a_flood_is_told_to_calm_down(
    reason: str, first: bytes, wire: Callable[[int], bytes], proxy: Sidecar, app: Server
) -> None:
    before = refused(proxy, reason)
    cpu = proxy.process.cpu
    with RawClient(proxy.inbound, timeout=20) as client:
        client.send(first)
        for start in range(0, 2000, 50):
            client.send(b"".join(wire(number) for number in range(start, start + 50)))
        reader = client.until(lambda reader: reader.goaway)
        assert reader.goaway is not None
        assert reader.goaway[1:] == (Error.ENHANCE_YOUR_CALM, reason.encode())
        client.until(lambda reader: False)
        assert client.closed
    assert refused(proxy, reason) == before + 1
    assert proxy.process.cpu - cpu < 2.0
    still_serves(proxy)


def test_ten_thousand_streams_opened_and_cancelled_end_the_connection_early(
    shared_sidecar: StartSidecar, app: Server
) -> None:
    proxy = shared_sidecar(app=app.address)
    cpu = proxy.process.cpu
    with RawClient(proxy.inbound, timeout=30) as client:
        for start in range(0, 10_000, 100):
            client.send(b"".join(headers(2 * n + 1, GET) + rst_stream(2 * n + 1) for n in range(start, start + 100)))
        reader = client.until(lambda reader: reader.goaway)
        assert reader.goaway is not None
        assert reader.goaway[1] == Error.ENHANCE_YOUR_CALM
    assert proxy.process.cpu - cpu < 5.0
    still_serves(proxy)


def test_a_client_that_cancels_now_and_then_is_not_punished(proxy: Sidecar) -> None:
    with RawClient(proxy.inbound) as client:
        for _ in range(200):
            assert client.get("/alive") == "200"
            client.send(rst_stream(client.request(GET, end=False)))
        assert client.get("/alive") == "200"


def test_a_header_bomb_ends_the_connection(proxy: Sidecar) -> None:
    before = refused(proxy, "header_bomb")
    rss = proxy.process.peak_rss
    with RawClient(proxy.inbound) as client:
        bomb = b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 12_000
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, bomb))
        reader = client.until(lambda reader: reader.goaway)
        assert reader.goaway is not None
        assert reader.goaway[1] == Error.ENHANCE_YOUR_CALM
    assert refused(proxy, "header_bomb") == before + 1
    assert proxy.process.peak_rss - rss < 8 << 20


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param([(b"x-%d" % n, b"v") for n in range(101)], id="too many"),
        pytest.param([(b"x", b"v" * 17_000)], id="one too large"),
        pytest.param([(b"x-%d" % n, b"v" * 7_000) for n in range(10)], id="together too large"),
    ],
)
def test_a_head_over_the_limit_gets_431_and_the_connection_lives(extra: Fields, proxy: Sidecar) -> None:
    before = refused(proxy, "headers_too_large")
    with RawClient(proxy.inbound) as client:
        raw = block([*GET, *extra])
        client.next_stream = 3
        parts = [raw[at : at + 16_000] for at in range(0, len(raw), 16_000)]
        wire = frame(HEADERS, END_STREAM | (END_HEADERS if len(parts) == 1 else 0), 1, parts[0])
        for number, part in enumerate(parts[1:], 2):
            wire += frame(CONTINUATION, END_HEADERS if number == len(parts) else 0, 1, part)
        client.send(wire)
        answer = client.answer(1)
        assert answer[":status"] == "431"
        assert answer["x-l7proxy-error"] == "headers_too_large"
        assert client.get("/alive") == "200"
    assert refused(proxy, "headers_too_large") == before + 1


@pytest.mark.parametrize(
    ("block", "code", "reason"),
    [
        pytest.param(b"\x3f\xe2\x1f\x82", Error.COMPRESSION_ERROR, "hpack", id="table larger than granted"),
        pytest.param(b"\x82\x20", Error.COMPRESSION_ERROR, "hpack", id="table size update after a field"),
        pytest.param(b"\xc0", Error.COMPRESSION_ERROR, "hpack", id="index out of range"),
        pytest.param(b"\x00\x85aa", Error.COMPRESSION_ERROR, "hpack", id="truncated"),
        pytest.param(b"\xff\xff\xff\xff\xff\xff\x0f", Error.COMPRESSION_ERROR, "hpack", id="endless integer"),
    ],
)
def test_table_abuse_ends_the_connection(block: bytes, code: Error, reason: str, proxy: Sidecar) -> None:
    before = refused(proxy, reason)
    with RawClient(proxy.inbound) as client:
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
        reader = client.until(lambda reader: reader.goaway)
        assert reader.goaway is not None
        assert reader.goaway[1] == code
    assert refused(proxy, reason) == before + 1
    still_serves(proxy)


# Malformed requests


MALFORMED: list[tuple[str, Fields]] = [
    ("method", GET[1:]),
    ("scheme", [GET[0], *GET[2:]]),
    ("path", GET[:3]),
    ("authority_missing", [*GET[:2], GET[3]]),
    ("pseudo_header_misplaced", [*GET, (b":path", b"/admin")]),
    ("pseudo_header_misplaced", [GET[0], GET[0], *GET[1:]]),
    ("pseudo_header_misplaced", [*GET[:3], (b"a", b"b"), GET[3]]),
    ("pseudo_header_unknown", [*GET, (b":cookie", b"a=b")]),
    ("path", changed(b":path", b"")),
    ("path", changed(b":path", b"x")),
    ("path", changed(b":path", b"/x y")),
    ("path", changed(b":path", b"/x HTTP/1.1\r\nhost: evil\r\n\r\nGET /y")),
    ("path", changed(b":path", b"http://evil/")),
    ("method", changed(b":method", b"GET / HTTP/1.1\r\nhost: evil\r\n\r\nGET")),
    ("method", changed(b":method", b"G E T")),
    ("scheme", changed(b":scheme", b"http://evil/x HTTP/1.1\r\n")),
    ("authority", changed(b":authority", b"a.test\r\nx: y")),
    ("authority", changed(b":authority", b"a@b")),
    ("authority", changed(b":authority", b"a b")),
    ("authority", changed(b":authority", b"a/b")),
    ("authority_unlike_host", [*GET, (b"host", b"evil")]),
    ("two_hosts", [*GET, (b"host", b"a.test"), (b"host", b"a.test")]),
    ("header_name", [*GET, (b"Upper", b"x")]),
    ("header_name", [*GET, (b"x y", b"x")]),
    ("header_name", [*GET, (b"x:", b"x")]),
    ("header_name", [*GET, (b"x\r\ny", b"x")]),
    ("header_name", [*GET, (b"x\0", b"x")]),
    ("header_name", [*GET, (b"", b"x")]),
    ("control_character", [*GET, (b"x", b"a\r\nhost: evil")]),
    ("control_character", [*GET, (b"x", b"a\nb")]),
    ("control_character", [*GET, (b"x", b"a\0b")]),
    ("control_character", [*GET, (b"x", b"a\x01b")]),
    ("blank_around_value", [*GET, (b"x", b" a")]),
    ("blank_around_value", [*GET, (b"x", b"a ")]),
    ("connection_header", [*GET, (b"transfer-encoding", b"chunked")]),
    ("connection_header", [*GET, (b"connection", b"close")]),
    ("connection_header", [*GET, (b"upgrade", b"websocket")]),
    ("connection_header", [*GET, (b"keep-alive", b"timeout=5")]),
    ("connection_header", [*GET, (b"proxy-connection", b"keep-alive")]),
    ("te", [*GET, (b"te", b"gzip")]),
    ("te", [*GET, (b"te", b"trailers, deflate")]),
    ("content_length", [*GET, (b"content-length", b"5")]),
    ("content_length", [*GET, (b"content-length", b"-1")]),
    ("content_length", [*GET, (b"content-length", b"0, 0")]),
    ("content_length", [*GET, (b"content-length", b"0"), (b"content-length", b"0")]),
    ("content_length", [*GET, (b"content-length", b"9" * 30)]),
    ("connect", changed(b":method", b"CONNECT")),
    ("connect", [(b":method", b"CONNECT"), (b":authority", b"a.test")]),
    ("connect", [(b":method", b"CONNECT"), (b":authority", b"a.test:0")]),
    ("connect_protocol", [*GET, (b":protocol", b"websocket")]),
]


@pytest.mark.parametrize(
    ("reason", "fields"), MALFORMED, ids=[f"{reason}-{n}" for n, (reason, _) in enumerate(MALFORMED)]
)
def test_a_malformed_request_ends_its_stream_and_reaches_nobody(
    reason: str, fields: Fields, proxy: Sidecar, app: Server
) -> None:
    before = refused(proxy, reason)
    seen = len(app.requests)
    with RawClient(proxy.inbound) as client:
        # Pseudo-header fields that were added come behind the ordinary ones only where the test says so.
        order = sorted(fields, key=lambda pair: pair[0] not in (b":protocol", b":cookie"))
        stream = client.request(order if reason in ("connect_protocol", "pseudo_header_unknown") else fields)
        reader = client.until(lambda reader: reader.resets or reader.goaway)
        assert reader.resets == {stream: Error.PROTOCOL_ERROR}
        assert client.get("/alive") == "200"
    assert refused(proxy, reason) == before + 1
    assert [message.target for message in app.requests[seen:]] == ["/alive"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param([b"abc"], id="too little"),
        pytest.param([b"abcd", b"efgh"], id="too much"),
        pytest.param([b"abcdefgh"], id="too much at once"),
    ],
)
def test_a_body_unlike_its_content_length_is_never_a_whole_request(
    body: list[bytes], proxy: Sidecar, app: Server
) -> None:
    before = refused(proxy, "content_length")
    seen = len(app.requests)
    with RawClient(proxy.inbound) as client:
        stream = client.request([*POST, (b"content-length", b"5")], end=False)
        for number, part in enumerate(body, 1):
            client.send(data(stream, part, end=number == len(body)))
        reader = client.until(lambda reader: reader.resets or reader.goaway)
        assert reader.resets == {stream: Error.PROTOCOL_ERROR}
        assert client.get("/alive") == "200"
    assert refused(proxy, "content_length") == before + 1
    assert all(message.target == "/alive" for message in app.requests[seen:])


def test_a_scheme_unlike_the_transport_gets_400(proxy: Sidecar) -> None:
    before = proxy.metrics()("l7proxy_bad_requests_total", reason="scheme")
    with RawClient(proxy.inbound) as client:
        assert client.answer(client.request(changed(b":scheme", b"https")))[":status"] == "400"
        assert client.get("/alive") == "200"
    assert proxy.metrics()("l7proxy_bad_requests_total", reason="scheme") == before + 1


def test_connect_without_leave_gets_405(proxy: Sidecar) -> None:
    with RawClient(proxy.inbound) as client:
        stream = client.request([(b":method", b"CONNECT"), (b":authority", b"a.test:443")], end=False)
        answer = client.answer(stream)
        assert (answer[":status"], answer["x-l7proxy-error"]) == ("405", "method_not_allowed")
        assert client.get("/alive") == "200"


def test_a_target_over_the_limit_gets_414(proxy: Sidecar) -> None:
    with RawClient(proxy.inbound) as client:
        stream = client.request(changed(b":path", b"/" + b"x" * 9000))
        answer = client.answer(stream)
        assert (answer[":status"], answer["x-l7proxy-error"]) == ("414", "uri_too_long")


# Slow clients


def test_a_client_that_never_reads_costs_a_bounded_buffer_and_its_stream_ends(
    shared_sidecar: StartSidecar, uvicorn_app: Any
) -> None:
    proxy = shared_sidecar(app=uvicorn_app, timeouts={"streamIdle": "1s"})
    rss = proxy.process.rss
    fields = changed(b":path", b"/bytes/100000000")
    with RawClient(proxy.inbound, wide_open(), buffer=4096) as client:
        for _ in range(8):
            client.request(fields)
        wait_for(lambda: refused_slow(proxy) >= 8, 10)
        assert proxy.process.rss - rss < 24 << 20
    with RawClient(proxy.inbound, HELLO + settings((4, 0))) as client:
        stream = client.request(fields)
        reader = client.until(lambda reader: reader.resets)
        assert reader.resets == {stream: Error.CANCEL}


def refused_slow(proxy: Sidecar) -> float:
    return proxy.metrics()("l7proxy_bad_requests_total", reason="slow_stream")


def test_a_body_that_stands_still_gets_408(shared_sidecar: StartSidecar, app: Server) -> None:
    proxy = shared_sidecar(app=app.address, timeouts={"streamIdle": "1s"})
    with RawClient(proxy.inbound) as client:
        stream = client.request(POST, end=False)
        answer = client.answer(stream)
        assert (answer[":status"], answer["x-l7proxy-error"]) == ("408", "request_timeout")


def test_a_request_that_nobody_answers_gets_408(shared_sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = shared_sidecar(app=serve(Connection.wait_for_close).address, timeouts={"streamIdle": "1s"})
    with RawClient(proxy.inbound) as client:
        answer = client.answer(client.request())
        assert (answer[":status"], answer["x-l7proxy-error"]) == ("408", "request_timeout")


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"", id="says nothing"),
        pytest.param(PREFACE[:16], id="half a preface"),
        pytest.param(PREFACE, id="no settings"),
        pytest.param(HELLO + headers(1, GET)[:-3], id="half a frame"),
        pytest.param(HELLO + frame(HEADERS, 0, 1, block(GET)), id="half a header section"),
    ],
)
def test_a_client_that_stops_in_the_middle_is_closed(first: bytes, shared_sidecar: StartSidecar, app: Server) -> None:
    proxy = shared_sidecar(app=app.address, timeouts={"header": "1s"})
    with RawClient(proxy.inbound, first) as client:
        started = time.monotonic()
        client.until(lambda reader: False)
        assert client.closed
        assert time.monotonic() - started < 8


def test_tiny_windows_still_get_the_whole_body(proxy: Sidecar, app: Server) -> None:
    with RawClient(proxy.inbound, HELLO + settings((4, 1))) as client:
        stream = client.request(changed(b":path", b"/alive"))
        reader = client.until(lambda reader: stream in reader.bodies)
        assert reader.bodies[stream] == b"o"
        client.send(window_update(stream, 1))
        client.answer(stream)
        assert client.reader.bodies[stream] == b"ok"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS to a plain port"),
        pytest.param(PREFACE + b"\xff" * 100, id="garbage behind the preface"),
        pytest.param(PREFACE[:20] + b"XX\r\n" + settings(), id="broken preface"),
        pytest.param(PREFACE + headers(1, GET), id="no settings"),
    ],
)
def test_garbage_is_closed_at_once(raw: bytes, proxy: Sidecar) -> None:
    with RawClient(proxy.inbound, raw, timeout=5) as client:
        client.until(lambda reader: False)
        assert client.closed
    still_serves(proxy)
