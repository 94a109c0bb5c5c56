"""The HTTP/2 session, frame by frame: what is refused, with which code and reason, and what is not."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from l7proxy.wire.h2 import Session
from l7proxy.wire.h2_events import (
    Data,
    Ended,
    Event,
    GoingAway,
    Oversized,
    Ponged,
    Refused,
    RequestHead,
    Reset,
    ResponseHead,
    Trailers,
    Writable,
)
from l7proxy.wire.h2_frames import PREFACE, Error
from l7proxy.wire.h2_limits import Allowance, H2Limits
from tests.wire.h2_peer import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    GOAWAY,
    HEADERS,
    HELLO,
    PADDED,
    PING,
    POST,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Fields,
    Reader,
    block,
    data,
    frame,
    headers,
    rst_stream,
    settings,
    window_update,
)


def server(limits: H2Limits | None = None, greet: bool = True) -> Session:
    session = Session(False, limits or H2Limits())
    if greet:
        session.receive(HELLO, 0.0)
        session.take()
    return session


def client(*greeting: tuple[int, int]) -> Session:
    session = Session(True, H2Limits())
    session.receive(settings(*greeting), 0.0)
    session.take()
    return session


def events_of(session: Session, raw: bytes, *kinds: type) -> list[Any]:
    events = session.receive(raw, 0.0)
    return [event for event in events if type(event) in kinds] if kinds else events


def with_field(name: bytes, value: bytes) -> Fields:
    return [*GET, (name, value)]


def without(name: bytes) -> Fields:
    return [pair for pair in GET if pair[0] != name]


def changed(name: bytes, value: bytes) -> Fields:
    return [(key, value if key == name else old) for key, old in GET]


# Requests


def test_a_request_is_one_event_with_its_parts() -> None:
    fields = [*GET, (b"accept", b"*/*"), (b"te", b"trailers"), (b"cookie", b"a=1"), (b"cookie", b"b=2")]
    (event,) = events_of(server(), headers(1, fields))
    assert type(event) is RequestHead
    assert event.ended
    head = event.head
    assert (head.method, head.scheme, head.authority, head.target) == (b"GET", b"http", b"a.test", b"/")
    assert head.headers == [(b"accept", b"*/*"), (b"cookie", b"a=1; b=2")]
    assert head.te_trailers


def test_host_stands_in_for_a_missing_authority() -> None:
    (event,) = events_of(server(), headers(1, [*without(b":authority"), (b"host", b"b.test")]))
    assert event.head.authority == b"b.test"
    assert event.head.headers == []


def test_a_body_arrives_with_its_trailers() -> None:
    session = server()
    raw = headers(1, POST, end=False) + data(1, b"abc") + data(1, b"de") + headers(1, [(b"x-sum", b"5")])
    kinds = events_of(session, raw)
    # Small frames that come together are one piece of the body.
    assert [type(event) for event in kinds] == [RequestHead, Data, Trailers]
    assert kinds[1].data == b"abcde"
    assert kinds[2].headers == [(b"x-sum", b"5")]


def test_padding_is_dropped_and_priority_skipped() -> None:
    session = server()
    payload = b"\x02" + b"\0\0\0\0\x10" + block(POST) + b"\0\0"
    raw = frame(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 1, payload)
    raw += frame(DATA, PADDED | END_STREAM, 1, b"\x03abc\0\0\0")
    request, body = events_of(session, raw)
    assert request.head.method == b"POST"
    assert body.data == b"abc"


def test_a_head_in_many_continuations_is_one_request() -> None:
    raw = block([*GET, (b"x-long", b"v" * 900)])
    parts = [raw[at : at + 100] for at in range(0, len(raw), 100)]
    wire = frame(HEADERS, END_STREAM, 1, parts[0])
    for part in parts[1:-1]:
        wire += frame(CONTINUATION, 0, 1, part)
    wire += frame(CONTINUATION, END_HEADERS, 1, parts[-1])
    (event,) = events_of(server(), wire)
    assert event.head.headers == [(b"x-long", b"v" * 900)]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (without(b":method"), "method"),
        (without(b":scheme"), "scheme"),
        (without(b":path"), "path"),
        (without(b":authority"), "authority_missing"),
        ([*GET, (b":method", b"GET")], "pseudo_header_misplaced"),
        ([GET[0], GET[0], *GET[1:]], "pseudo_header_misplaced"),
        ([*GET, (b"a", b"b"), (b":path", b"/b")], "pseudo_header_misplaced"),
        ([*GET, (b":what", b"x")], "pseudo_header_unknown"),
        ([*GET, (b":status", b"200")], "pseudo_header_unknown"),
        (changed(b":path", b""), "path"),
        (changed(b":path", b"admin"), "path"),
        (changed(b":path", b"/a b"), "path"),
        (changed(b":path", b"/a#b"), "path"),
        (changed(b":path", b"/a\r\nx: y"), "path"),
        (changed(b":path", b"*"), "path"),
        (changed(b":path", b"http://a.test/"), "path"),
        (changed(b":method", b"GE T"), "method"),
        (changed(b":method", b""), "method"),
        (changed(b":method", b"A" * 33), "method"),
        (changed(b":method", b"CONNECT"), "connect"),
        (changed(b":scheme", b""), "scheme"),
        (changed(b":scheme", b"ht tp"), "scheme"),
        (changed(b":authority", b"a b"), "authority"),
        (changed(b":authority", b"u@a.test"), "authority"),
        (changed(b":authority", b"a/b"), "authority"),
        (changed(b":authority", b"a:99999"), "authority"),
        (changed(b":authority", b""), "authority"),
        (with_field(b"host", b"b.test"), "authority_unlike_host"),
        ([*GET, (b"host", b"a.test"), (b"host", b"a.test")], "two_hosts"),
        (with_field(b"X-Upper", b"v"), "header_name"),
        (with_field(b"x y", b"v"), "header_name"),
        (with_field(b"x\0y", b"v"), "header_name"),
        (with_field(b"x:y", b"v"), "header_name"),
        (with_field(b"", b"v"), "header_name"),
        (with_field(b"x", b"a\rb"), "control_character"),
        (with_field(b"x", b"a\nb"), "control_character"),
        (with_field(b"x", b"a\0b"), "control_character"),
        (with_field(b"x", b"a\x7fb"), "control_character"),
        (with_field(b"x", b" a"), "blank_around_value"),
        (with_field(b"x", b"a\t"), "blank_around_value"),
        (with_field(b"connection", b"close"), "connection_header"),
        (with_field(b"transfer-encoding", b"chunked"), "connection_header"),
        (with_field(b"upgrade", b"h2c"), "connection_header"),
        (with_field(b"keep-alive", b"1"), "connection_header"),
        (with_field(b"proxy-connection", b"close"), "connection_header"),
        (with_field(b"te", b"gzip"), "te"),
        (with_field(b"content-length", b"1"), "content_length"),
        (with_field(b"content-length", b"+0"), "content_length"),
        ([*GET, (b"content-length", b"0"), (b"content-length", b"0")], "content_length"),
    ],
)
def test_a_malformed_request_resets_its_stream_and_no_other(fields: Fields, reason: str) -> None:
    session = server()
    assert events_of(session, headers(1, fields)) == [Refused(reason)]
    assert Reader(session.take()).resets == {1: Error.PROTOCOL_ERROR}
    assert [type(event) for event in events_of(session, headers(3, GET))] == [RequestHead]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(data(1, b"abc", end=True), id="too little"),
        pytest.param(data(1, b"abcdef"), id="too much"),
        pytest.param(data(1, b"abc") + headers(1, [(b"x", b"y")]), id="trailers too soon"),
    ],
)
def test_a_body_unlike_its_content_length_resets_the_stream(body: bytes) -> None:
    session = server()
    session.receive(headers(1, [*POST, (b"content-length", b"5")], end=False), 0.0)
    assert events_of(session, body, Refused, Reset)[0] == Refused("content_length")
    assert Reader(session.take()).resets == {1: Error.PROTOCOL_ERROR}


def test_trailers_must_end_the_stream_and_may_not_frame() -> None:
    session = server()
    session.receive(headers(1, POST, end=False) + headers(3, POST, end=False), 0.0)
    assert Refused("trailers_without_end") in events_of(session, headers(1, [(b"x", b"y")], end=False))
    (event,) = events_of(session, headers(3, [(b"content-length", b"5"), (b"x", b"y")]))
    assert event.headers == [(b"x", b"y")]


def test_a_head_over_the_limit_can_still_be_answered() -> None:
    session = server()
    many = [*GET, *((b"x-%d" % number, b"v") for number in range(101))]
    large = [*GET, (b"x", b"v" * 16_385)]
    for stream, fields in ((1, many), (3, large)):
        raw = block(fields)
        wire = frame(HEADERS, END_STREAM, stream, raw[:16_000]) + frame(CONTINUATION, END_HEADERS, stream, raw[16_000:])
        events = events_of(session, wire)
        assert events[0] == Refused("headers_too_large")
        assert type(events[1]) is Oversized
    assert [type(event) for event in events_of(session, headers(5, GET))] == [RequestHead]


# The connection


@pytest.mark.parametrize(
    ("raw", "code", "reason"),
    [
        pytest.param(headers(2, GET), Error.PROTOCOL_ERROR, "idle_stream", id="even stream"),
        pytest.param(headers(0, GET), Error.PROTOCOL_ERROR, "stream_zero", id="stream zero"),
        pytest.param(headers(5, GET) + headers(3, GET), Error.STREAM_CLOSED, "stream_closed", id="stream ids go back"),
        pytest.param(data(1, b"x"), Error.PROTOCOL_ERROR, "idle_stream", id="data on an idle stream"),
        pytest.param(rst_stream(1), Error.PROTOCOL_ERROR, "idle_stream", id="reset of an idle stream"),
        pytest.param(window_update(1, 1), Error.PROTOCOL_ERROR, "idle_stream", id="window of an idle stream"),
        pytest.param(window_update(0, 0), Error.PROTOCOL_ERROR, "window_update_zero", id="zero increment"),
        pytest.param(window_update(0, 2**31 - 1), Error.FLOW_CONTROL_ERROR, "window_overflow", id="window overflow"),
        pytest.param(frame(PING, 0, 0, b"1234567"), Error.FRAME_SIZE_ERROR, "ping_size", id="short ping"),
        pytest.param(frame(PING, 0, 1, b"12345678"), Error.PROTOCOL_ERROR, "stream_not_zero", id="ping on a stream"),
        pytest.param(frame(SETTINGS, 0, 1), Error.PROTOCOL_ERROR, "stream_not_zero", id="settings on a stream"),
        pytest.param(frame(SETTINGS, 0, 0, b"12345"), Error.FRAME_SIZE_ERROR, "settings_size", id="odd settings"),
        pytest.param(frame(SETTINGS, 1, 0, b"123456"), Error.FRAME_SIZE_ERROR, "settings_size", id="settings ack"),
        pytest.param(settings((2, 2)), Error.PROTOCOL_ERROR, "settings_value", id="push neither on nor off"),
        pytest.param(settings((4, 2**31)), Error.FLOW_CONTROL_ERROR, "settings_value", id="window too large"),
        pytest.param(settings((5, 100)), Error.PROTOCOL_ERROR, "settings_value", id="frame too small"),
        pytest.param(settings((5, 2**24)), Error.PROTOCOL_ERROR, "settings_value", id="frame too large"),
        pytest.param(settings((8, 2)), Error.PROTOCOL_ERROR, "settings_value", id="extended connect"),
        pytest.param(frame(GOAWAY, 0, 1, b"\0" * 8), Error.PROTOCOL_ERROR, "stream_not_zero", id="goaway on a stream"),
        pytest.param(frame(GOAWAY, 0, 0, b"\0" * 7), Error.FRAME_SIZE_ERROR, "goaway_size", id="short goaway"),
        pytest.param(frame(PUSH_PROMISE, 4, 1, b"\0\0\0\2"), Error.PROTOCOL_ERROR, "push_promise", id="push promise"),
        pytest.param(frame(PRIORITY, 0, 0, b"\0" * 5), Error.PROTOCOL_ERROR, "stream_zero", id="priority of nothing"),
        pytest.param(frame(PRIORITY, 0, 1, b"\0" * 4), Error.FRAME_SIZE_ERROR, "priority_size", id="short priority"),
        pytest.param(
            frame(PRIORITY, 0, 3, b"\x80\0\0\3\x10"), Error.PROTOCOL_ERROR, "self_dependency", id="its own parent"
        ),
        pytest.param(
            frame(HEADERS, 37, 3, b"\0\0\0\3\x10" + block(GET)),
            Error.PROTOCOL_ERROR,
            "self_dependency",
            id="a request that depends on itself",
        ),
        pytest.param(frame(RST_STREAM, 0, 1, b"\0" * 5), Error.FRAME_SIZE_ERROR, "rst_stream_size", id="long reset"),
        pytest.param(
            frame(WINDOW_UPDATE, 0, 0, b"\0" * 5), Error.FRAME_SIZE_ERROR, "window_update_size", id="long window update"
        ),
        pytest.param(b"\xff\xff\xff" + b"\0" * 6, Error.FRAME_SIZE_ERROR, "frame_too_large", id="frame of 16 MiB"),
        pytest.param(frame(CONTINUATION, 4, 1), Error.PROTOCOL_ERROR, "continuation_unexpected", id="continuation"),
        pytest.param(
            frame(HEADERS, 0, 1, block(GET)) + frame(PING, 0, 0, b"\0" * 8),
            Error.PROTOCOL_ERROR,
            "continuation_missing",
            id="a frame within a header section",
        ),
        pytest.param(
            frame(HEADERS, 0, 1, block(GET)) + frame(CONTINUATION, 4, 3),
            Error.PROTOCOL_ERROR,
            "continuation_unexpected",
            id="continuation of another stream",
        ),
        pytest.param(frame(HEADERS, 5, 1, b"\x80"), Error.COMPRESSION_ERROR, "hpack", id="broken header block"),
        pytest.param(frame(HEADERS, 13, 1, b"\x09" + block(GET)[:5]), Error.PROTOCOL_ERROR, "padding", id="padding"),
        pytest.param(frame(HEADERS, 13, 1), Error.FRAME_SIZE_ERROR, "padding", id="padded and empty"),
        pytest.param(frame(HEADERS, 37, 1, b"\0" * 4), Error.FRAME_SIZE_ERROR, "headers_size", id="no room to depend"),
        pytest.param(
            headers(1, POST, end=False) + frame(DATA, PADDED, 1, b"\x05abc"),
            Error.PROTOCOL_ERROR,
            "padding",
            id="padding longer than the frame",
        ),
    ],
)
def test_a_fault_of_the_connection_ends_it_with_its_code(raw: bytes, code: Error, reason: str) -> None:
    session = server()
    events = events_of(session, raw)
    assert events[-2:] == [Refused(reason), Ended(code, reason)]
    goaway = Reader(session.take()).goaway
    assert goaway is not None
    assert goaway[1:] == (code, reason.encode())
    assert session.receive(headers(7, GET), 0.0) == []


def test_a_connection_must_begin_with_preface_and_settings() -> None:
    assert events_of(server(greet=False), b"GET / HTTP/1.1\r\n")[-1] == Ended(Error.PROTOCOL_ERROR, "preface")
    for first in (headers(1, GET), frame(SETTINGS, 1, 0)):
        events = events_of(server(greet=False), PREFACE + first)
        assert events[-1] == Ended(Error.PROTOCOL_ERROR, "settings_missing")


def test_a_reset_stream_swallows_what_was_on_its_way() -> None:
    session = server()
    session.receive(headers(1, POST, end=False), 0.0)
    session.send_reset(session.streams[1], Error.CANCEL)
    assert session.receive(data(1, b"late") + headers(1, [(b"x", b"y")]) + window_update(1, 5), 0.0) == []


def test_frames_after_the_end_of_a_stream_are_refused() -> None:
    session = server()
    session.receive(headers(1, GET), 0.0)
    assert Refused("data_after_end") in events_of(session, data(1, b"x"))
    session = server()
    (event,) = events_of(session, headers(1, GET))
    session.send_head(event.stream, [(b":status", b"204")], end=True)
    assert events_of(session, data(1, b"x"))[-1] == Ended(Error.STREAM_CLOSED, "stream_closed")


def test_streams_over_the_limit_are_refused_and_the_others_go_on() -> None:
    session = server(H2Limits(streams=2))
    raw = b"".join(headers(stream, POST, end=False) for stream in (1, 3, 5))
    assert [type(event) for event in events_of(session, raw)] == [RequestHead, RequestHead, Refused]
    assert Reader(session.take()).resets == {5: Error.REFUSED_STREAM}
    assert session.receive(data(5, b"on its way"), 0.0) == []
    assert len(events_of(session, data(1, b"x", end=True), Data)) == 1


def test_streams_after_the_final_goaway_are_refused() -> None:
    session = server()
    session.receive(headers(1, POST, end=False), 0.0)
    session.refusing = True
    session.send_goaway(final=True)
    assert events_of(session, headers(3, GET)) == [Refused("draining")]
    reader = Reader(session.take())
    assert reader.goaway == (1, 0, b"")
    assert reader.resets == {3: Error.REFUSED_STREAM}


def test_pings_and_settings_are_acknowledged() -> None:
    session = server()
    session.receive(frame(PING, 0, 0, b"12345678") + settings((3, 7)), 0.0)
    reader = Reader(session.take())
    assert reader.pongs == [b"12345678"]
    assert reader.kinds == [PING, SETTINGS]
    assert events_of(session, frame(PING, 1, 0, b"abcdefgh")) == [Ponged(b"abcdefgh")]


def test_the_smallest_table_of_one_settings_frame_is_signalled() -> None:
    session = server()
    session.receive(settings((1, 0), (1, 4096)) + headers(1, GET), 0.0)
    session.take()
    session.send_head(session.streams[1], [(b":status", b"200")], end=True)
    # RFC 7541 4.2: an update to 0, an update to 4096, then the field.
    assert session.take()[9:] == b"\x20\x3f\xe1\x1f\x88"


def test_frames_of_unknown_types_are_ignored() -> None:
    session = server()
    assert session.receive(frame(0x20, 0xFF, 7, b"what") + frame(0x10, 0, 0, b"\0\0\0\1u=1"), 0.0) == []
    assert session.take() == b""


# Budgets


@pytest.mark.parametrize(
    ("reason", "field", "wire"),
    [
        ("ping_flood", "pings", lambda number: frame(PING, 0, 0, b"12345678")),
        ("settings_flood", "settings", lambda number: settings((4, 65_535))),
        ("priority_flood", "priorities", lambda number: frame(PRIORITY, 0, 1, b"\0" * 5)),
        ("window_update_flood", "window_updates", lambda number: window_update(0, 1)),
        ("empty_data_flood", "empty_data", lambda number: data(1, b"")),
        ("empty_data_flood", "empty_data", lambda number: frame(DATA, PADDED, 1, b"\x02\0\0")),
        ("stray_frame_flood", "stray_frames", lambda number: frame(0x55, 0, 0)),
        ("stray_frame_flood", "stray_frames", lambda number: frame(PING, 1, 0, b"12345678")),
        ("rapid_reset", "resets", lambda number: headers(number * 2 + 3, GET) + rst_stream(number * 2 + 3)),
        ("rapid_reset", "resets", lambda number: headers(number * 2 + 3, with_field(b"te", b"x"))),
        ("rapid_reset", "resets", lambda number: headers(number * 2 + 3, GET) + window_update(number * 2 + 3, 0)),
        ("rapid_reset", "resets", lambda number: headers(number * 2 + 3, GET) + data(number * 2 + 3, b"x")),
    ],
)
def test_a_flood_is_told_to_calm_down_after_its_budget(reason: str, field: str, wire: Callable[[int], bytes]) -> None:
    limits = msgspec.structs.replace(H2Limits(), **{field: Allowance(50, 10)})
    session = server(limits)
    session.receive(headers(1, POST, end=False), 0.0)
    last: list[Event] = []
    count = 0
    while not session.ended:
        last = session.receive(wire(count), 0.0)
        count += 1
    # The greeting has cost one SETTINGS frame.
    assert count in (50, 51)
    assert last[-1] == Ended(Error.ENHANCE_YOUR_CALM, reason)
    # The same frames spread over time are no flood.
    session = server(limits)
    session.receive(headers(1, POST, end=False), 0.0)
    for number in range(200):
        session.receive(wire(number), 100.0 + number / 5)
    assert not session.ended


def test_honest_work_earns_resets() -> None:
    session = server(H2Limits(resets=Allowance(10, 0, 1)))
    for number in range(200):
        stream = number * 4 + 1
        (event,) = events_of(session, headers(stream, GET))
        session.send_head(event.stream, [(b":status", b"204")], end=True)
        session.receive(headers(stream + 2, GET) + rst_stream(stream + 2), 0.0)
    assert not session.ended


def test_resets_of_streams_that_were_answered_cost_nothing() -> None:
    session = server(H2Limits(resets=Allowance(10, 0)))
    for number in range(100):
        stream = number * 2 + 1
        (event,) = events_of(session, headers(stream, POST, end=False))
        session.send_head(event.stream, [(b":status", b"200")], end=True)
        session.receive(rst_stream(stream), 0.0)
    assert not session.ended


def test_endless_continuations_end_the_connection() -> None:
    session = server()
    session.receive(frame(HEADERS, 0, 1), 0.0)
    for _ in range(16):
        session.receive(frame(CONTINUATION, 0, 1), 0.0)
    assert events_of(session, frame(CONTINUATION, 0, 1))[-1] == Ended(Error.ENHANCE_YOUR_CALM, "continuation_flood")


def test_a_header_bomb_ends_the_connection() -> None:
    session = server()
    bomb = b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 10_000
    events = events_of(session, frame(HEADERS, 5, 1, bomb))
    assert events[-1] == Ended(Error.ENHANCE_YOUR_CALM, "header_bomb")


# Flow control


def test_a_peer_that_overruns_a_window_is_stopped() -> None:
    session = server(H2Limits(connection_window=65_535))
    session.receive(headers(1, POST, end=False) + headers(3, POST, end=False), 0.0)
    for stream in (1, 1, 1, 1, 3):
        assert not session.ended
        events = events_of(session, data(stream, b"x" * 16_384))
    assert Refused("stream_window") in events_of(server_with_body(), data(1, b"x"))
    assert type(events[-1]) is Data


def server_with_body() -> Session:
    session = server()
    session.receive(headers(1, POST, end=False), 0.0)
    for _ in range(4):
        session.receive(data(1, b"x" * 16_384), 0.0)
    return session


def test_the_window_of_a_stream_opens_by_halves_as_it_is_read_and_grows() -> None:
    session = server()
    (event,) = events_of(session, headers(1, POST, end=False))
    session.receive(data(1, b"x" * 16_384), 0.0)
    session.consumed(event.stream, 16_384)
    assert Reader(session.take()).increments == {}
    session.receive(data(1, b"x" * 16_384), 0.0)
    session.consumed(event.stream, 16_384)
    # Half of it was read, and the reader kept up: the window doubles.
    assert Reader(session.take()).increments == {1: 32_768 + 65_536}


def test_unread_bytes_of_many_streams_shut_the_connection_window_at_a_bound() -> None:
    session = server(H2Limits(connection_window=128 * 1024, buffered=256 * 1024))
    streams = {}
    for number in range(1, 33, 2):
        (event,) = events_of(session, headers(number, POST, end=False))
        streams[number] = event.stream
    room = 128 * 1024
    sent = 0
    for number in streams:
        for _ in range(4):
            if room - 16_384 < 0:
                break
            session.receive(data(number, b"x" * 16_384), 0.0)
            sent += 16_384
            room += Reader(session.take()).increments.get(0, 0) - 16_384
    assert 256 * 1024 <= sent <= 400 * 1024
    # Once somebody reads, it opens again.
    for stream in streams.values():
        session.release(stream)
    assert Reader(session.take()).increments.get(0, 0) > 0


def test_what_the_window_does_not_admit_waits_and_leaves_as_it_opens() -> None:
    session = server()
    (event,) = events_of(session, headers(1, GET))
    stream = event.stream
    session.send_head(stream, [(b":status", b"200")])
    assert not session.send_data(stream, b"x" * 100_000)
    reader = Reader(session.take())
    assert len(reader.bodies[1]) == 65_535
    session.receive(window_update(1, 50_000), 0.0)
    assert session.take() == b""
    assert events_of(session, window_update(0, 50_000)) == [Writable(stream)]
    reader.feed(session.take())
    assert reader.bodies[1] == b"x" * 100_000
    session.send_trailers(stream, [(b"x-end", b"1")])
    reader.feed(session.take())
    assert reader.heads[1][-1] == {"x-end": "1"}
    assert reader.ended == {1}


def test_a_stalled_stream_leaves_the_others_alone() -> None:
    session = server()
    raw = settings((4, 10)) + headers(1, GET) + headers(3, GET) + window_update(3, 1000)
    first, second = events_of(session, raw, RequestHead)
    session.take()
    for event in (first, second):
        session.send_head(event.stream, [(b":status", b"200")])
    assert not session.send_data(first.stream, b"a" * 500, end=True)
    assert session.send_data(second.stream, b"b" * 500, end=True)
    reader = Reader(session.take())
    assert reader.bodies == {1: b"a" * 10, 3: b"b" * 500}


def test_a_smaller_initial_window_can_leave_a_stream_in_debt() -> None:
    session = server()
    (event,) = events_of(session, headers(1, GET))
    session.send_head(event.stream, [(b":status", b"200")])
    session.send_data(event.stream, b"x" * 1000)
    session.receive(settings((4, 100)), 0.0)
    session.take()
    assert not session.send_data(event.stream, b"y")
    assert events_of(session, window_update(1, 900)) == []
    assert events_of(session, window_update(1, 1)) == [Writable(event.stream)]


def test_a_big_body_takes_turns_with_small_ones() -> None:
    session = server()
    raw = settings((4, 1 << 24)) + window_update(0, 1 << 24) + headers(1, GET) + headers(3, GET)
    first, second = events_of(session, raw, RequestHead)
    for event in (first, second):
        session.send_head(event.stream, [(b":status", b"200")])
    session.take()
    assert not session.send_data(first.stream, b"x" * 4_000_000, end=True)
    assert session.more
    assert len(session.take()) < 400_000
    assert session.send_data(second.stream, b"small", end=True)


def test_nothing_of_a_body_leaves_while_the_transport_is_full() -> None:
    session = server()
    (event,) = events_of(session, headers(1, GET))
    session.send_head(event.stream, [(b":status", b"200")])
    session.take()
    session.paused = True
    assert not session.send_data(event.stream, b"x", end=True)
    assert session.take() == b""
    session.paused = False
    assert session.pump() == [Writable(event.stream)]
    assert Reader(session.take()).bodies == {1: b"x"}


# The client's side


def test_a_client_refuses_pushes_and_sees_responses() -> None:
    session = client((3, 5))
    assert session.openable == 5
    stream = session.open(GET, end=True)
    raw = headers(1, [(b":status", b"103"), (b"link", b"</a>")], end=False)
    raw += headers(1, [(b":status", b"200"), (b"content-length", b"2")], end=False) + data(1, b"ok")
    raw += headers(1, [(b"grpc-status", b"0")])
    events = events_of(session, raw)
    assert [type(event) for event in events] == [ResponseHead, ResponseHead, Data, Trailers]
    assert [event.head.status for event in events[:2]] == [103, 200]
    assert not stream.state
    events = events_of(session, frame(PUSH_PROMISE, 4, 1, b"\0\0\0\2"))
    assert events[-1] == Ended(Error.PROTOCOL_ERROR, "push_promise")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(headers(1, [(b"content-type", b"text/plain")]), id="no status"),
        pytest.param(headers(1, [(b":status", b"99")]), id="status 99"),
        pytest.param(headers(1, [(b":status", b"600")]), id="status 600"),
        pytest.param(headers(1, [(b":status", b"101")]), id="status 101"),
        pytest.param(headers(1, [(b":status", b"+200")]), id="signed status"),
        pytest.param(headers(1, [(b":status", b"100")]), id="interim and last"),
        pytest.param(headers(1, [(b":status", b"200"), (b":path", b"/")]), id="request field"),
        pytest.param(headers(1, [(b":status", b"200"), (b"x", b"a\r\nb: c")]), id="line feed"),
        pytest.param(headers(1, [(b":status", b"200"), (b"connection", b"close")]), id="connection"),
        pytest.param(headers(1, [(b":status", b"200"), (b"content-length", b"5")]), id="body missing"),
        pytest.param(headers(1, [(b":status", b"204")], end=False) + data(1, b"x"), id="body on 204"),
        pytest.param(data(1, b"x"), id="body before head"),
    ],
)
def test_a_malformed_response_resets_its_stream_only(raw: bytes) -> None:
    session = client()
    stream = session.open(GET, end=True)
    other = session.open(GET, end=True)
    events = events_of(session, raw, Reset)
    assert [(event.stream, event.code) for event in events] == [(stream, Error.PROTOCOL_ERROR)]
    assert events[0].reason
    assert other.state


@pytest.mark.parametrize("last", [b"\0\0\0\3", b"\x80\0\0\3"], ids=["plain", "reserved bit"])
def test_a_goaway_names_the_streams_that_were_not_seen(last: bytes) -> None:
    session = client()
    streams = [session.open(GET, end=True) for _ in range(3)]
    (event,) = events_of(session, frame(GOAWAY, 0, 0, last + b"\0\0\0\0bye"))
    assert event == GoingAway(0, [streams[2]], b"bye")
    assert [stream.state != 0 for stream in streams] == [True, True, False]


def test_a_response_to_head_has_no_body_whatever_it_says() -> None:
    session = client()
    session.open([(b":method", b"HEAD"), *GET[1:]], end=True, bodiless=True)
    (event,) = events_of(session, headers(1, [(b":status", b"200"), (b"content-length", b"500")]))
    assert event.ended


def test_equal_header_blocks_are_read_once_and_stay_right_when_the_table_moves() -> None:
    session = server()
    session.receive(frame(HEADERS, 5, 1, b"\x82\x86\x84\x41\x06a.test\x40\x01x\x01a"), 0.0)
    # Index 62 is `x: a` until another field is put before it.
    again = b"\x82\x86\x84\xbf\xbe"
    for stream in (3, 5):
        (event,) = events_of(session, frame(HEADERS, 5, stream, again))
        assert event.head.headers == [(b"x", b"a")]
    session.receive(frame(HEADERS, 5, 7, b"\x82\x86\x84\xbf\x40\x01y\x01b"), 0.0)
    (event,) = events_of(session, frame(HEADERS, 5, 9, b"\x82\x86\x84\xc0\xbe"))
    assert event.head.headers == [(b"y", b"b")]
