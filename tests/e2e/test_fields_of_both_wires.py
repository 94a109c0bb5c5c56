"""The same fields over HTTP/1.1 and HTTP/2 are the same fields behind the proxy, in requests, answers and trailers."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.wire.fields import CONNECTION_FIELDS
from tests.conftest import StartSidecar
from tests.h2.raw import RawClient, RawServer
from tests.support.server import Connection, Server
from tests.support.sidecar import Sidecar, route, upstream
from tests.wire.h2_peer import GET, POST, Fields, data, headers

DROPPED = [
    *("http2-settings", "http2_settings", "trailer", "expect", "content_length", "transfer_encoding", "keep_alive"),
    *("proxy_connection", "x-forwarded-for", "x_forwarded_for", "x-forwarded_proto", "x_forwarded-client_cert"),
    *("x-l7proxy-peer", "x_l7proxy_peer", "x-envoy-internal", "x_envoy_internal", "x_request_id", "forwarded"),
]
KEPT = [
    *("x-tenant", "x_tenant", "via", "authorization", "proxy-authorization", "cookie", "traceparent", "x-real-ip"),
    *("content-type", "range", "cache-control", "max-forwards", "grpc-timeout", "alt-svc", "priority", "te"),
]
VALUES = {"expect": "100-continue", "te": "trailers", "grpc-timeout": "5S", "x-forwarded-for": "10.9.9.9"}
ANSWERED = [
    *("http2-settings", "http2_settings", "trailer", "expect", "te", "host", "content_length", "transfer_encoding"),
    *("keep_alive", "proxy_connection"),
]
PASSED_ON = [
    *("x-tenant", "x_tenant", "via", "set-cookie", "proxy-authenticate", "alt-svc", "x-request-id", "x-envoy-upstream"),
    *("x-forwarded-for", "forwarded", "grpc-status", "retry-after", "www-authenticate"),
]
TRAILED = [
    *("content-length", "content_length", "transfer_encoding", "host", "te", "trailer", "expect", "http2-settings"),
    *(
        "http2_settings",
        "keep_alive",
        "authorization",
        "cookie",
        "set-cookie",
        "content_type",
        "content-range",
        "range",
    ),
    *(
        "x-forwarded-client_cert",
        "x_forwarded_for",
        "cache-control",
        "max_forwards",
        "proxy_authorization",
        "forwarded",
    ),
]
OF_CLIENTS = ["x-request-id", "x_request_id", "x-l7proxy-peer", "x_l7proxy_peer", "x-envoy-x", "x_forwarded_proto"]
FINE = ["x-sum", "x_sum", "grpc-status", "grpc-message", "etag"]


def pairs(names: list[str]) -> Fields:
    return [(name.encode(), VALUES.get(name, "1").encode()) for name in names]


def lines(fields: Fields) -> bytes:
    return b"".join(b"%b: %b\r\n" % pair for pair in fields)


NONE: Fields = []


class Wires:
    """A sidecar whose application keeps what it gets; `answer` and `trailers` are what the upstreams send."""

    def __init__(self, start: StartSidecar) -> None:
        self.answer: Fields = []
        self.trailers: Fields = []
        self.app = Server()
        self.servers = [self.app, Server(self._http1), Server(self._http2)]
        self.proxy: Sidecar = start(
            upstream("one", self.servers[1].address),
            upstream("two", self.servers[2].address, protocol="http2"),
            route("one", hosts=["one"], upstream="one"),
            route("two", hosts=["two"], upstream="two"),
            route("app"),
            app=self.app.address,
        )

    def close(self) -> None:
        for server in self.servers:
            server.close()

    def sent(self, fields: Fields, trailers: Fields = NONE) -> tuple[Fields, Fields, Fields, Fields]:
        """Returns the fields that the application gets over HTTP/1.1 and over HTTP/2, then the trailers."""
        before = len(self.app.requests)
        method = b"POST" if trailers else b"GET"
        framing = b"transfer-encoding: chunked\r\n" if trailers else b""
        body = b"1\r\nx\r\n0\r\n%b\r\n" % lines(trailers) if trailers else b""
        with self.proxy.client() as client:
            client.send(method + b" / HTTP/1.1\r\nhost: a.test\r\n" + lines(fields) + framing + b"\r\n" + body)
            assert client.read().status == 200
        with RawClient(self.proxy.inbound) as http2:
            stream = http2.request([*(POST if trailers else GET), *fields], end=not trailers)
            if trailers:
                http2.send(data(stream, b"x") + headers(stream, trailers))
            http2.answer(stream)
            assert [head[":status"] for head in http2.reader.heads[stream] if head[":status"] != "100"] == ["200"]
        one, two = self.app.requests[before:]
        return ours_aside(one.headers), ours_aside(two.headers), sorted(one.trailers), sorted(two.trailers)

    def answered(self, fields: Fields, trailers: Fields = NONE) -> tuple[Fields, Fields, Fields, Fields]:
        """Returns the fields that a client gets of an answer in HTTP/1.1 and of one in HTTP/2, then the trailers."""
        self.answer, self.trailers = fields, trailers
        with self.proxy.client() as client:
            one, two = client.get(host="one"), client.get(host="two")
        assert (one.status, two.status) == (200, 200)
        return ours_aside(one.headers), ours_aside(two.headers), sorted(one.trailers), sorted(two.trailers)

    def _http1(self, connection: Connection) -> None:
        while True:
            connection.read()
            framing = b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n%b\r\n" % lines(self.trailers)
            connection.send(b"HTTP/1.1 200 OK\r\n" + lines(self.answer) + framing)

    def _http2(self, connection: Connection) -> None:
        server = RawServer(connection)
        while True:
            stream = server.request()
            server.send(headers(stream, [(b":status", b"200"), *self.answer], end=False))
            server.send(data(stream, b"ok", end=not self.trailers))
            if self.trailers:
                server.send(headers(stream, self.trailers))


def ours_aside(fields: Fields) -> Fields:
    """Returns the fields less those that each message has of the proxy itself, for its framing or its route."""
    own = (
        b"host",
        b"x-request-id",
        b"x-forwarded-host",
        b"cdn-loop",
        b"content-length",
        b"transfer-encoding",
        b"connection",
    )
    return sorted(pair for pair in fields if pair[0] not in own)


@pytest.fixture(scope="module")
def wires(shared_sidecar: StartSidecar) -> Iterator[Wires]:
    opened = Wires(shared_sidecar)
    yield opened
    opened.close()


BARE = [(b"x-forwarded-for", b"127.0.0.1"), (b"x-forwarded-proto", b"http")]


@pytest.mark.parametrize("name", DROPPED)
def test_a_field_of_a_request_that_is_dropped_is_dropped_on_both_wires(name: str, wires: Wires) -> None:
    assert wires.sent(pairs([name]))[:2] == (BARE, BARE)


@pytest.mark.parametrize("name", KEPT)
def test_a_field_of_a_request_that_passes_passes_on_both_wires(name: str, wires: Wires) -> None:
    came = wires.sent(pairs([name]))[:2]
    assert [[pair for pair in fields if pair not in BARE] for fields in came] == [pairs([name])] * 2


@pytest.mark.parametrize("name", ANSWERED)
def test_a_field_of_an_answer_that_is_dropped_is_dropped_on_both_wires(name: str, wires: Wires) -> None:
    assert wires.answered(pairs([name]))[:2] == ([], [])


@pytest.mark.parametrize("name", PASSED_ON)
def test_a_field_of_an_answer_that_passes_passes_on_both_wires(name: str, wires: Wires) -> None:
    wanted = [pair for pair in pairs([name]) if name != "x-request-id"]
    assert wires.answered(pairs([name]))[:2] == (wanted, wanted)


@pytest.mark.parametrize("name", [*TRAILED, *OF_CLIENTS])
def test_a_trailer_of_a_request_that_is_dropped_is_dropped_on_both_wires(name: str, wires: Wires) -> None:
    fine = pairs(["x-sum"])
    assert wires.sent([], pairs([name]) + fine)[2:] == (fine, fine)


@pytest.mark.parametrize("name", TRAILED)
def test_a_trailer_of_an_answer_that_is_dropped_is_dropped_on_both_wires(name: str, wires: Wires) -> None:
    fine = pairs(["x-sum"])
    assert wires.answered([], pairs([name]) + fine)[2:] == (fine, fine)


@pytest.mark.parametrize("name", sorted(name.decode() for name in CONNECTION_FIELDS))
def test_what_http_2_must_refuse_no_application_sees(name: str, wires: Wires) -> None:
    before = len(wires.app.requests)
    value = {"transfer-encoding": "chunked", "upgrade": "websocket", "connection": "keep-alive"}.get(name, "1")
    with RawClient(wires.proxy.inbound) as http2:
        stream = http2.request([*GET, (name.encode(), value.encode())])
        http2.until(lambda reader: stream in reader.resets)
    assert len(wires.app.requests) == before
    if name != "transfer-encoding":
        assert wires.proxy.get("/", "a.test", **{name: value}).status == 200
        assert ours_aside(wires.app.requests[-1].headers) == BARE


@pytest.mark.parametrize("value", ["nothing", "100-continue, nothing"])
def test_an_unknown_expectation_is_refused_on_both_wires(value: str, wires: Wires) -> None:
    before = len(wires.app.requests)
    assert wires.proxy.get("/", "a.test", expect=value).status == 400
    with RawClient(wires.proxy.inbound) as http2:
        stream = http2.request([*GET, (b"expect", value.encode())])
        http2.until(lambda reader: stream in reader.resets)
    assert len(wires.app.requests) == before


def some(names: list[str]) -> st.SearchStrategy[Fields]:
    """Lists of fields, each with any of its hyphens written as underscores; the names that HTTP/2 refuses left out."""

    def spelled(name: str) -> st.SearchStrategy[str]:
        parts = name.split("-")
        marks = st.lists(st.sampled_from("-_"), min_size=len(parts) - 1, max_size=len(parts) - 1)
        return marks.map(lambda marks: "".join(part + mark for part, mark in zip(parts, [*marks, ""], strict=True)))

    names = sorted({name.replace("_", "-") for name in names} - {"cookie", "te", "content-length"})
    return st.lists(
        st.sampled_from(names).flatmap(spelled).filter(lambda name: name.encode() not in CONNECTION_FIELDS),
        max_size=6,
        unique=True,
    ).map(pairs)


@settings(max_examples=60, deadline=None)
@given(fields=some([*DROPPED, *KEPT]), trailers=some([*TRAILED, *OF_CLIENTS, *FINE, *KEPT]))
def test_any_request_is_the_same_on_both_wires(fields: Fields, trailers: Fields, wires: Wires) -> None:
    one, two, trailed_one, trailed_two = wires.sent(fields, trailers)
    assert (one, trailed_one) == (two, trailed_two)


@settings(max_examples=60, deadline=None)
@given(fields=some([*ANSWERED, *PASSED_ON]), trailers=some([*TRAILED, *FINE, *KEPT]))
def test_any_answer_is_the_same_on_both_wires(fields: Fields, trailers: Fields, wires: Wires) -> None:
    one, two, trailed_one, trailed_two = wires.answered(fields, trailers)
    assert (one, trailed_one) == (two, trailed_two)
