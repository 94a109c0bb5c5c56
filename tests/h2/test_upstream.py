"""HTTP/2 towards upstreams that misbehave, leave, refuse, stop answering or answer early."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient, RawServer
from tests.support.net import wait_for
from tests.support.server import Connection
from tests.support.sidecar import Sidecar, route, upstream
from tests.wire.h2_peer import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    POST,
    SETTINGS,
    data,
    frame,
    headers,
    rst_stream,
    settings,
)

Script = Callable[[Connection], None]
Start = Callable[..., Sidecar]


@pytest.fixture
def front(sidecar: StartSidecar, serve: StartServer) -> Start:
    """Starts a sidecar in front of a scripted HTTP/2 server."""

    def start(script: Script, policies: dict[str, Any] | None = None, **spec: Any) -> Sidecar:
        server = serve(script)
        return sidecar(
            upstream("u", server.address, protocol="http2", **spec), route("u", upstream="u", policies=policies or {})
        )

    return start


def goaway(last: int, code: int = 0) -> bytes:
    return frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + code.to_bytes(4, "big"))


def connects(proxy: Sidecar) -> float:
    return proxy.metrics()("l7proxy_upstream_connects_total", l7proxy_upstream="u")


def test_many_requests_share_one_connection(front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        streams = [server.request() for _ in range(20)]
        # All are answered together, so all were under way at once.
        for stream in reversed(streams):
            server.answer(stream, b"%d" % stream)
        server.rest()

    proxy = front(script)
    with RawClient(proxy.inbound) as client:
        streams = [client.request() for _ in range(20)]
        for stream in streams:
            assert client.answer(stream)[":status"] == "200"
    assert connects(proxy) == 1


def test_more_connections_are_opened_when_the_peer_allows_no_more_streams(front: Start) -> None:
    everybody = threading.Barrier(3, timeout=10)

    def script(connection: Connection) -> None:
        server = RawServer(connection, (3, 2))
        streams = [server.request() for _ in range(2)]
        everybody.wait()
        for stream in streams:
            server.answer(stream)
        server.rest()

    proxy = front(script)
    with RawClient(proxy.inbound) as client:
        for stream in [client.request() for _ in range(6)]:
            assert client.answer(stream)[":status"] == "200"
    assert connects(proxy) == 3


def test_requests_wait_for_a_stream_where_no_more_connections_may_be_opened(front: Start) -> None:
    most = [0]

    def script(connection: Connection) -> None:
        server = RawServer(connection, (3, 2))
        for answered in range(1000):
            stream = server.request()
            most[0] = max(most[0], len(server.reader.ended) - answered)
            server.answer(stream)

    proxy = front(script, breakers={"connections": 1})
    with RawClient(proxy.inbound) as client:
        for stream in [client.request() for _ in range(30)]:
            assert client.answer(stream)[":status"] == "200"
    assert connects(proxy) == 1
    assert most[0] <= 2


def test_requests_wait_on_one_connection_for_an_upstream_that_takes_none_yet(front: Start) -> None:
    asked = threading.Event()

    def script(connection: Connection) -> None:
        server = RawServer(connection, (3, 0))
        assert asked.wait(10)
        server.send(settings((3, 10)))
        while True:
            server.answer(server.request())

    proxy = front(script, idleTimeout="1m")
    with RawClient(proxy.inbound) as client:
        streams = [client.request() for _ in range(5)]
        wait_for(lambda: proxy.metrics()("l7proxy_upstream_pending", l7proxy_upstream="u") == 5)
        asked.set()
        for stream in streams:
            assert client.answer(stream)[":status"] == "200"
    assert connects(proxy) == 1


def test_a_connection_that_goes_on_taking_no_streams_is_replaced_by_and_by(front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection, *([(3, 0)] if connection.number == 0 else []))
        while True:
            server.answer(server.request())

    proxy = front(script, idleTimeout="200ms")
    with RawClient(proxy.inbound) as client:
        assert client.get() == "200"
    assert connects(proxy) == 2


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_a_stream_above_the_last_one_of_a_goaway_is_sent_elsewhere(method: bytes, front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        first = server.request()
        if connection.number == 0:
            # The second request was not seen: whatever it is, it may be sent again.
            server.request()
            server.send(goaway(first))
            server.answer(first, b"first")
            server.rest()
            return
        server.answer(first, b"again")
        server.rest()

    proxy = front(script)
    fields = [(b":method", method), *POST[1:]]
    with RawClient(proxy.inbound) as client:
        streams = [client.request(fields) for _ in range(2)]
        for stream in streams:
            assert client.answer(stream)[":status"] == "200"
        assert {client.reader.bodies[stream] for stream in streams} == {b"first", b"again"}
    assert connects(proxy) == 2


def test_a_graceful_goaway_lets_streams_finish_and_takes_no_more(front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        if connection.number == 0:
            stream = server.request()
            server.send(goaway(2**31 - 1))
            server.answer(stream, b"0")
            server.rest()
            return
        while True:
            server.answer(server.request(), b"1")

    proxy = front(script)
    with RawClient(proxy.inbound) as client:
        for expected in (b"0", b"1", b"1"):
            stream = client.request()
            client.answer(stream)
            assert client.reader.bodies[stream] == expected
    assert connects(proxy) == 2


def test_a_refused_stream_is_sent_once_more(front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        server.send(rst_stream(server.request(), 7))
        server.answer(server.request())
        server.rest()

    proxy = front(script)
    with RawClient(proxy.inbound) as client:
        assert client.answer(client.request(POST))[":status"] == "200"


def test_a_stream_that_is_always_refused_is_an_error(front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        while True:
            server.send(rst_stream(server.request(), 7))

    with RawClient(front(script).inbound) as client:
        answer = client.answer(client.request())
        assert (answer[":status"], answer["x-l7proxy-error"]) == ("502", "upstream_reset")


def test_a_retry_policy_takes_refused_streams_on(front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        for _ in range(3):
            server.send(rst_stream(server.request(), 7))
        server.answer(server.request())
        server.rest()

    proxy = front(script, {"retry": {"attempts": 3, "on": ["refused-stream"], "base": "1ms"}})
    with RawClient(proxy.inbound) as client:
        assert client.answer(client.request(POST))[":status"] == "200"


MALFORMED = [
    pytest.param(headers(1, [(b"server", b"x")]), id="no status"),
    pytest.param(headers(1, [(b":status", b"999")]), id="status 999"),
    pytest.param(headers(1, [(b":status", b"101")]), id="status 101"),
    pytest.param(headers(1, [(b":status", b"200"), (b"x", b"a\r\nset-cookie: b")]), id="line feed in a value"),
    pytest.param(headers(1, [(b":status", b"200"), (b"X", b"a")]), id="upper case"),
    pytest.param(headers(1, [(b":status", b"200"), (b"transfer-encoding", b"chunked")]), id="transfer-encoding"),
    pytest.param(headers(1, [(b":status", b"200"), (b"content-length", b"9")]), id="body missing"),
    pytest.param(headers(1, [(b":status", b"200"), *[(b"content-length", b"0")] * 2]), id="two lengths"),
    pytest.param(data(1, b"x"), id="body before head"),
    pytest.param(frame(HEADERS, 4, 1, b"\x80"), id="broken header block"),
    pytest.param(frame(5, 4, 1, b"\0\0\0\2"), id="push"),
    pytest.param(frame(SETTINGS, 0, 0, b"12345"), id="odd settings"),
    pytest.param(frame(DATA, 0, 0, b"x"), id="data on the connection"),
    pytest.param(frame(SETTINGS, 1, 0) * 3000, id="acknowledgements without end"),
    pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", id="HTTP/1.1"),
    pytest.param(frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 1, b"") * 50, id="endless continuations"),
]


@pytest.mark.parametrize("raw", MALFORMED)
def test_a_malformed_answer_is_a_502(raw: bytes, front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        server.request()
        server.send(raw)
        server.rest()

    proxy = front(script)
    with RawClient(proxy.inbound) as client:
        answer = client.answer(client.request())
        assert (answer[":status"], answer["x-l7proxy-error"]) == ("502", "upstream_protocol")


def test_a_peer_that_acknowledges_before_it_says_its_settings_is_a_502(
    sidecar: StartSidecar, serve: StartServer
) -> None:
    def script(connection: Connection) -> None:
        connection.send(frame(SETTINGS, 1, 0))
        connection.wait_for_close()

    # Without the refusal it would be waited for until the connect timeout.
    server = serve(script)
    proxy = sidecar(upstream("u", server.address, protocol="http2", connectTimeout="1h"), route("u", upstream="u"))
    assert proxy.get("/").status == 502


def test_a_peer_that_does_not_speak_http_2_is_a_502(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.send(b"220 smtp.test ESMTP ready\r\n")
        connection.wait_for_close()

    proxy = sidecar(upstream("u", serve(script).address, protocol="http2"), route("u", upstream="u"))
    answer = proxy.get()
    assert (answer.status, answer["x-l7proxy-error"]) == (502, "upstream_protocol")


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda server, stream: server.connection.close(), id="close"),
        pytest.param(lambda server, stream: server.connection.reset(), id="TCP reset"),
        pytest.param(lambda server, stream: (server.send(rst_stream(stream, 2)), server.rest()), id="RST_STREAM"),
        pytest.param(lambda server, stream: (server.send(goaway(stream, 2)), server.connection.close()), id="GOAWAY"),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_an_upstream_that_ends_in_the_middle_is_never_a_clean_end(
    end: Callable[[RawServer, int], None], begun: bool, front: Start
) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        stream = server.request()
        if begun:
            server.send(headers(stream, [(b":status", b"200")], end=False) + data(stream, b"half"))
            time.sleep(0.1)
        end(server, stream)

    proxy = front(script)
    with RawClient(proxy.inbound) as client:
        stream = client.request(POST)
        client.until(lambda reader: stream in reader.ended or stream in reader.resets)
        if begun:
            assert stream in client.reader.resets
            assert stream not in client.reader.ended
        else:
            answer = client.answer(stream)
            assert (answer[":status"], answer["x-l7proxy-error"]) == ("502", "upstream_reset")


def test_a_half_answer_leaves_an_http_1_client_without_a_clean_end(front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        stream = server.request()
        server.send(headers(stream, [(b":status", b"200")], end=False) + data(stream, b"half"))
        time.sleep(0.1)
        server.send(rst_stream(stream, 2))
        server.rest()

    with front(script).client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        raw = client.reader.rest()
    assert b"half" in raw
    assert not raw.endswith(b"0\r\n\r\n")


def test_an_early_answer_ends_the_upload(front: Start) -> None:
    resets: list[int] = []

    def script(connection: Connection) -> None:
        server = RawServer(connection)
        server.until(lambda reader: reader.heads)
        server.send(
            headers(1, [(b":status", b"413"), (b"content-length", b"3")], end=False) + data(1, b"no!", end=True)
        )
        server.until(lambda reader: reader.resets)
        resets.append(server.reader.resets[1])
        server.answer(server.request())
        server.rest()

    proxy = front(script)
    with RawClient(proxy.inbound) as client:
        stream = client.request(POST, end=False)
        client.send(data(stream, b"x" * 10_000))
        assert client.answer(stream)[":status"] == "413"
        client.until(lambda reader: stream in reader.resets)
        assert client.reader.resets[stream] == 0
        assert client.get() == "200"
    assert resets == [8]


def test_a_client_that_leaves_cancels_upstream(front: Start) -> None:
    resets: list[int] = []

    def script(connection: Connection) -> None:
        server = RawServer(connection)
        stream = server.request()
        server.until(lambda reader: stream in reader.resets)
        resets.append(server.reader.resets[stream])

    proxy = front(script)
    with proxy.client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        wait_for(lambda: proxy.metrics()("l7proxy_upstream_requests", l7proxy_upstream="u") == 1)
    wait_for(lambda: resets == [8])
    assert proxy.metrics()("l7proxy_upstream_requests", l7proxy_upstream="u") == 0


def test_a_timeout_resets_the_stream_and_keeps_the_connection(front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        late = server.request()
        server.until(lambda reader: late in reader.resets)
        server.answer(server.request())
        server.rest()

    proxy = front(script, {"timeout": {"request": "200ms"}})
    with RawClient(proxy.inbound) as client:
        answer = client.answer(client.request())
        assert (answer[":status"], answer["x-l7proxy-error"]) == ("504", "upstream_timeout")
        assert client.get() == "200"
    assert connects(proxy) == 1


def test_a_silent_upstream_is_asked_for_a_sign_of_life_and_given_up(front: Start) -> None:
    pings: list[int] = []

    def script(connection: Connection) -> None:
        server = RawServer(connection)
        server.request()
        server.until(lambda reader: PING in reader.kinds)
        pings.append(1)
        server.rest()

    proxy = front(script, keepalive="500ms")
    with RawClient(proxy.inbound, timeout=30) as client:
        answer = client.answer(client.request())
        assert (answer[":status"], answer["x-l7proxy-error"]) == ("502", "upstream_reset")
    assert pings


def test_an_upstream_that_answers_pings_may_take_its_time(front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        stream = server.request()
        for count in (1, 2):
            server.until(lambda reader, count=count: reader.kinds.count(PING) >= count)
            server.send(frame(PING, 1, 0, b"l7proxy\0"))
        server.answer(stream)
        server.rest()

    proxy = front(script, keepalive="200ms")
    with RawClient(proxy.inbound) as client:
        assert client.get() == "200"


def test_tiny_windows_of_the_upstream_still_get_the_whole_body(front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection, (4, 10))
        server.until(lambda reader: len(reader.bodies.get(1, b"")) == 10)
        for size in range(20, 101, 10):
            server.send(frame(8, 0, 1, (10).to_bytes(4, "big")))
            server.until(lambda reader, size=size: len(reader.bodies[1]) == size)
        server.until(lambda reader: 1 in reader.ended)
        server.answer(1, server.reader.bodies[1])
        server.rest()

    with RawClient(front(script).inbound) as client:
        stream = client.request(POST, end=False)
        client.send(data(stream, bytes(range(100)), end=True))
        client.answer(stream)
        assert client.reader.bodies[stream] == bytes(range(100))


def test_interim_answers_are_not_passed_on_and_do_no_harm(front: Start) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        stream = server.request()
        for _ in range(3):
            server.send(headers(stream, [(b":status", b"103"), (b"link", b"</a>")], end=False))
        server.answer(stream)
        server.rest()

    with RawClient(front(script).inbound) as client:
        stream = client.request()
        assert client.answer(stream)[":status"] == "200"
        assert len(client.reader.heads[stream]) == 1


def test_a_host_that_http_1_0_did_not_name_is_not_said_to_be_empty(front: Start) -> None:
    seen: list[dict[str, str]] = []

    def script(connection: Connection) -> None:
        server = RawServer(connection)
        stream = server.request()
        seen.extend(server.reader.heads[stream])
        server.answer(stream)
        server.rest()

    with front(script).client() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert client.read().status == 200
    assert ":authority" not in seen[0]


def test_nothing_of_the_connection_is_sent_on(front: Start) -> None:
    seen: list[dict[str, str]] = []

    def script(connection: Connection) -> None:
        server = RawServer(connection)
        stream = server.request()
        seen.extend(server.reader.heads[stream])
        server.answer(stream)
        server.rest()

    proxy = front(script)
    with proxy.client() as client:
        client.send(
            b"GET /x?y HTTP/1.1\r\nhost: Test:80\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\nX-Case: Kept\r\n"
            b"keep-alive: timeout=5\r\nte: trailers, gzip\r\nproxy-connection: close\r\n\r\n"
        )
        assert client.read().status == 200
    (head,) = seen
    assert head[":path"] == "/x?y"
    assert head[":method"] == "GET"
    assert head[":scheme"] == "http"
    assert head["x-case"] == "Kept"
    assert not {"connection", "keep-alive", "proxy-connection", "x-hop", "host", "upgrade"} & head.keys()
    assert head.get("te", "trailers") == "trailers"
