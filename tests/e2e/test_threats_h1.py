"""The threat table's HTTP/1.1 part: raw bytes on a real socket, judged by the bytes that reach the app."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.e2e.corpus import CHUNKS, FINE, HOST, REFUSED, Case
from tests.support.client import Client, exchange
from tests.support.message import Closed, Message
from tests.support.server import Connection, Server
from tests.support.sidecar import Sidecar

GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


class Proxy:
    """A sidecar and the app behind it, which records what it gets."""

    def __init__(self, sidecar: Sidecar, app: Server) -> None:
        self.sidecar = sidecar
        self.app = app
        self._seen = 0

    @property
    def address(self) -> tuple[str, int]:
        return self.sidecar.inbound

    def reached(self) -> list[Message]:
        """Returns the requests that came to the app since the last call; what was sent before has all come by now."""
        with self.sidecar.client() as client:
            assert client.get("/sentinel").status == 200
        seen, self._seen = self._seen, len(self.app.requests)
        *new, last = self.app.requests[seen:]
        assert last.target == "/sentinel"
        return new

    def refusals(self) -> float:
        """Returns how many requests were counted as malformed so far."""
        return self.sidecar.metrics()("l7proxy_bad_requests_total")


@pytest.fixture(scope="module")
def proxy(shared_sidecar: StartSidecar) -> Iterator[Proxy]:
    with Server() as app:
        yield Proxy(shared_sidecar(app=app.address), app)


@pytest.mark.parametrize("case", REFUSED, ids=[case.name for case in REFUSED])
def test_refused(case: Case, proxy: Proxy) -> None:
    before = proxy.refusals()
    answers, clean = exchange(proxy.address, case.data)
    assert [answer.status for answer in answers] == [answers[0].status], "one answer, then the close"
    assert answers[0].status in case.statuses
    assert answers[0]["connection"] == "close"
    assert answers[0]["x-l7proxy-error"]
    assert clean
    assert proxy.reached() == []
    assert proxy.refusals() == before + 1


@pytest.mark.parametrize("case", CHUNKS, ids=[case.name for case in CHUNKS])
def test_a_body_that_goes_wrong_late_is_no_whole_request(case: Case, proxy: Proxy) -> None:
    before = proxy.refusals()
    with proxy.sidecar.client() as client:
        head, _, body = case.data.partition(b"\r\n\r\n")
        client.send(head + b"\r\n\r\n")
        assert client.is_open(0.02)
        with contextlib.suppress(ConnectionError):
            client.send_slowly(body, 0.0005, step=max(1, len(body) // 40))
        try:
            assert client.read().status == 400
        except Closed as error:
            assert not error.data
        assert client.closed()
    assert [request for request in proxy.reached() if request.method == "POST"] == []
    assert proxy.refusals() == before + 1


@pytest.mark.parametrize(("name", "data", "body"), FINE, ids=[name for name, _, _ in FINE])
def test_fine(name: str, data: bytes, body: bytes, proxy: Proxy) -> None:
    with proxy.sidecar.client() as client:
        assert client.request(data).status == 200
    (request,) = proxy.reached()
    assert request.body == body
    assert len(request.all("host")) <= 1


@pytest.mark.parametrize("step", [1, 3, 7])
def test_fine_in_small_segments(step: int, proxy: Proxy) -> None:
    data = (
        b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nX: y\r\n\r\n5;e\r\nhello\r\n0\r\nT: v\r\n\r\n"
    )
    with proxy.sidecar.client() as client:
        client.send_slowly(data, 0.0005, step)
        assert client.read().status == 200
    (request,) = proxy.reached()
    assert (request.target, request.body, request["x"]) == ("/a", b"hello", "y")


# Smuggling: a second request hidden where a body, an interim state or a protocol change may be.

HIDDEN = b"GET /hidden HTTP/1.1\r\n" + HOST + b"\r\n"
LENGTH = b"Content-Length: %d" % len(HIDDEN)
CHUNKED = b"Transfer-Encoding: chunked"
CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)


def raw(method: bytes, *lines: bytes) -> bytes:
    """Returns a head with a Host and `lines`."""
    return b"\r\n".join((method + b" / HTTP/1.1", b"Host: test", *lines)) + b"\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        raw(b"GET", LENGTH) + HIDDEN,
        raw(b"HEAD", LENGTH) + HIDDEN,
        raw(b"DELETE", b"X: a", LENGTH) + HIDDEN,
        raw(b"POST", CHUNKED) + CHUNK,
        raw(b"POST", b"Expect: 100-continue", LENGTH) + HIDDEN,
        raw(b"GET", b"Connection: content-length", LENGTH) + HIDDEN,
        raw(b"POST", b"Connection: transfer-encoding", CHUNKED) + CHUNK,
    ],
)
def test_what_a_body_holds_is_not_a_request(data: bytes, proxy: Proxy) -> None:
    with proxy.sidecar.client() as client:
        answer = client.request(data)
    assert answer.status == 200
    (request,) = proxy.reached()
    assert request.target == "/"
    assert request.body == HIDDEN


H2C = (b"Connection: upgrade, http2-settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")


@pytest.mark.parametrize(
    "data",
    [
        raw(b"POST", b"Content-Length: 0"),
        raw(b"POST", CHUNKED) + b"0\r\n\r\n",
        raw(b"POST"),
        raw(b"GET", b"Connection: upgrade", b"Upgrade: websocket"),
        raw(b"GET", *H2C),
        raw(b"POST", b"Expect: 100-continue", b"Content-Length: 0"),
    ],
)
def test_what_follows_a_bodyless_request_is_the_next_request(data: bytes, proxy: Proxy) -> None:
    with proxy.sidecar.client() as client:
        client.send(data + HIDDEN)
        assert client.read().status == 200
        assert client.read().status == 200
    assert [request.target for request in proxy.reached()] == ["/", "/hidden"]


def test_h2c_is_not_offered(proxy: Proxy) -> None:
    with proxy.sidecar.client() as client:
        assert client.request(raw(b"GET", *H2C)).status == 200
    (request,) = proxy.reached()
    assert "upgrade" not in request
    assert "http2-settings" not in request


@pytest.mark.parametrize(
    "field",
    ["Host", "X-Forwarded-For", "Authorization", "Cookie", "X-Request-Id", "Traceparent", "Content-Type", "Date"],
)
def test_connection_cannot_strip_what_the_app_relies_on(field: str, proxy: Proxy) -> None:
    lines = f"Connection: {field.lower()}, {field}\r\n" + (f"{field}: kept\r\n" if field != "Host" else "")
    with proxy.sidecar.client() as client:
        assert client.request(b"GET / HTTP/1.1\r\n" + HOST + lines.encode() + b"\r\n").status == 200
    (request,) = proxy.reached()
    assert field in request
    assert field.lower() not in (request.get("connection") or "").lower()


def test_connection_cannot_strip_the_length_of_a_body(proxy: Proxy) -> None:
    with proxy.sidecar.client() as client:
        data = b"POST / HTTP/1.1\r\n" + HOST + b"Connection: content-length\r\nContent-Length: 5\r\n\r\nhello"
        assert client.request(data).status == 200
    (request,) = proxy.reached()
    assert request.body == b"hello"


def test_other_fields_that_connection_names_are_removed(proxy: Proxy) -> None:
    fields = (
        b"Connection: x-hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nTE: gzip\r\n"
    )
    with proxy.sidecar.client() as client:
        assert client.request(b"GET / HTTP/1.1\r\n" + HOST + fields + b"X-End: 2\r\n\r\n").status == 200
    (request,) = proxy.reached()
    for name in ("x-hop", "keep-alive", "proxy-connection", "te"):
        assert name not in request, name
    assert request["x-end"] == "2"


def test_a_long_connection_field_costs_little(proxy: Proxy) -> None:
    named = b"Connection: " + b"a," * 8000 + b"\r\n"
    cpu = proxy.sidecar.process.cpu
    for _ in range(10):
        with proxy.sidecar.client() as client:
            head = b"GET / HTTP/1.1\r\n" + HOST + named * 3 + b"A: 1\r\n" * 95 + b"\r\n"
            assert client.request(head).status == 200
    # Ten times 60 KiB: a pass over all fields for each token would take more than a second.
    assert proxy.sidecar.process.cpu - cpu < 0.5
    assert all("a" not in request for request in proxy.reached())


@pytest.mark.parametrize(
    ("target", "forwarded"),
    [("*", "*"), ("http://test", "*"), ("http://test/", "/"), ("http://test?a", "/?a"), ("/a", "/a")],
)
def test_options_of_the_server_stays_what_it_is(target: str, forwarded: str, proxy: Proxy) -> None:
    with proxy.sidecar.client() as client:
        assert client.request(f"OPTIONS {target} HTTP/1.1\r\nhost: test\r\n\r\n".encode()).status == 200
    (request,) = proxy.reached()
    assert request.target == forwarded


def test_te_trailers_is_kept(proxy: Proxy) -> None:
    with proxy.sidecar.client() as client:
        assert client.request(b"GET / HTTP/1.1\r\n" + HOST + b"Connection: TE\r\nTE: trailers\r\n\r\n").status == 200
    (request,) = proxy.reached()
    assert request["te"] == "trailers"
    assert "te" in request["connection"].lower()


def test_a_thousand_pipelined_requests_are_answered_in_order(sidecar: StartSidecar, serve: StartServer) -> None:
    def number(connection: Connection) -> None:
        while True:
            target = connection.read().target.encode()
            connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(target), target))

    proxy = sidecar(app=serve(number).address)
    with proxy.client(timeout=30) as client:
        client.send(b"".join(b"GET /%d HTTP/1.1\r\n" % index + HOST + b"\r\n" for index in range(1000)))
        assert [client.read().body for _ in range(1000)] == [b"/%d" % index for index in range(1000)]


def test_a_flood_of_pipelined_requests_is_not_read_ahead_without_bound(
    sidecar: StartSidecar, serve: StartServer
) -> None:
    """An app that does not answer stops the reading: the kernel's buffers fill and the sender stalls."""

    def never(connection: Connection) -> None:
        connection.read_head()
        connection.wait_for_close()

    proxy = sidecar(app=serve(never).address)
    memory = proxy.process.rss
    with proxy.client(timeout=1) as client:
        sent, block = 0, GET * 2000
        with pytest.raises(TimeoutError):
            while sent < 64 << 20:
                client.send(block)
                sent += len(block)
        assert sent < 32 << 20
    assert proxy.process.rss - memory < 16 << 20


def test_answers_before_a_malformed_request_are_given_in_order(proxy: Proxy) -> None:
    answers, _ = exchange(proxy.address, GET + GET + b"GET / HTTP/1.1\r\nHost: test\r\nHost: test\r\n\r\n" + GET)
    assert [answer.status for answer in answers] == [200, 200, 400]
    assert len(proxy.reached()) == 2


# Slowness, with times short enough for a test.


@pytest.fixture(scope="module")
def hasty(shared_sidecar: StartSidecar) -> Iterator[Proxy]:
    with Server() as app:
        timeouts = {"header": "500ms", "streamIdle": "800ms", "connectionIdle": "1s"}
        yield Proxy(shared_sidecar(app=app.address, timeouts=timeouts), app)


def test_a_slow_head_gets_408(hasty: Proxy) -> None:
    before = hasty.refusals()
    with hasty.sidecar.client() as client:
        with contextlib.suppress(ConnectionError):
            client.send_slowly(GET * 20, 0.05)
        answer = client.read()
        assert answer.status == 408
        assert answer["x-l7proxy-error"] == "request_timeout"
        assert client.closed()
    assert hasty.reached() == []
    assert hasty.refusals() == before + 1


def test_a_body_that_stops_gets_408(hasty: Proxy) -> None:
    with hasty.sidecar.client() as client:
        client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\nhello")
        assert client.read().status == 408
        assert client.closed()
    assert [request for request in hasty.reached() if request.method == "POST"] == []


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_request_that_nobody_answers_gets_408(method: bytes, sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(Connection.wait_for_close)
    proxy = sidecar(app=app.address, timeouts={"streamIdle": "800ms"})
    with proxy.client() as client:
        client.send(method + b" / HTTP/1.1\r\n" + HOST + b"\r\n")
        answer = client.reader.head()
        assert (answer.status, answer["x-l7proxy-error"], answer["connection"]) == (408, "request_timeout", "close")
        assert client.reader.rest() == (b"" if method == b"HEAD" else client.reader.raw[len(answer.head) :])
    assert app.connections[0].ended.wait(5)
    (line,) = proxy.log_lines()
    assert (line["status"], line["code"], line["flags"]) == (408, "request_timeout", "SI")


def test_a_connection_that_never_speaks_is_closed(hasty: Proxy) -> None:
    with hasty.sidecar.client() as client:
        assert client.closed()


def test_an_idle_connection_is_closed_without_an_answer(hasty: Proxy) -> None:
    with hasty.sidecar.client() as client:
        assert client.request(GET).status == 200
        assert client.closed()
    assert len(hasty.reached()) == 1


def test_a_reader_that_stops_is_cut(hasty: Proxy, serve: StartServer, sidecar: StartSidecar) -> None:
    def endless(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        while True:
            connection.send(b"x" * 65536)

    app = serve(endless)
    proxy = sidecar(app=app.address, timeouts={"streamIdle": "800ms"})
    with proxy.client(receive_buffer=4096) as client:
        client.send(GET)
        assert app.wait_for_requests(1)
        assert app.connections[0].ended.wait(10), "the upstream connection is given up too"
        with pytest.raises(Closed):
            client.read()


def test_two_hundred_slow_heads_cost_little_memory(hasty: Proxy) -> None:
    before = hasty.sidecar.process.rss
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(hasty.address)) for _ in range(200)]
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 16000)
        for client in clients:
            assert client.read().status == 408
        assert hasty.sidecar.process.rss - before < 200 * 64 * 1024
    assert hasty.reached() == []


def test_every_refusal_says_why(proxy: Proxy) -> None:
    exchange(proxy.address, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    reasons = {labels["reason"] for labels in proxy.sidecar.metrics().series("l7proxy_bad_requests_total")}
    assert "two_hosts" in reasons


def test_the_refusal_is_json_and_names_no_detail(proxy: Proxy) -> None:
    ((answer,), _) = exchange(proxy.address, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    assert answer["content-type"] == "application/json"
    assert answer["x-l7proxy-error"] == "bad_request"
    assert answer["proxy-status"].startswith("sidecar; error=http_request_error")
    assert b"two_hosts" not in answer.body
