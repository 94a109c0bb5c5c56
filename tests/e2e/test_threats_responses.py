"""The threat table's response side: what a broken or hostile upstream says, and what its client gets of it."""

import threading

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.message import Closed
from tests.support.server import OK, Connection, Server
from tests.support.sidecar import Sidecar

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
HELLO = b"\r\n\r\nhello"
LINE = b"HTTP/1.1 200 OK\r\n"
CHUNKED = LINE + b"Transfer-Encoding: chunked\r\n\r\n"


def head(*lines: bytes, start: bytes = b"HTTP/1.1 200 OK", body: bytes = b"") -> bytes:
    return b"\r\n".join((start, *lines)) + b"\r\n\r\n" + body


MALFORMED = {
    "two lengths that differ": head(b"Content-Length: 5", b"Content-Length: 6", body=b"hello"),
    "two lengths that agree": head(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
    "a list of lengths": head(b"Content-Length: 5, 5", body=b"hello"),
    "a negative length": head(b"Content-Length: -1", body=b"hello"),
    "a length with a sign": head(b"Content-Length: +5", body=b"hello"),
    "an empty length": head(b"Content-Length:", body=b"hello"),
    "a huge length": head(b"Content-Length: 9223372036854775808", body=b"hello"),
    "length and chunked": head(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunked and length": head(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
    "chunked twice": head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunked, then gzip": head(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"),
    "an unknown coding": head(b"Transfer-Encoding: cow", body=b"moo"),
    "chunked in HTTP/1.0": head(b"Transfer-Encoding: chunked", start=b"HTTP/1.0 200 OK", body=b"0\r\n\r\n"),
    "a chunk size that is none": CHUNKED + b"x\r\nhello\r\n0\r\n\r\n",
    "a signed chunk size": CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than said": CHUNKED + b"5\r\nhelloo\r\n0\r\n\r\n",
    "a chunk with a bare LF": CHUNKED + b"5\nhello\n0\n\n",
    "a bare CR in a value": head(b"X: a\rb", b"Content-Length: 0"),
    "a bare LF in a value": head(b"X: a\nY: b", b"Content-Length: 0"),
    "NUL in a value": head(b"X: a\0b", b"Content-Length: 0"),
    "a control in a value": head(b"X: a\x01b", b"Content-Length: 0"),
    "a folded line": head(b"X: a", b" b", b"Content-Length: 0"),
    "a blank before the colon": head(b"X : a", b"Content-Length: 0"),
    "a line without a colon": head(b"nothing", b"Content-Length: 0"),
    "an empty name": head(b": a", b"Content-Length: 0"),
    "a name that is no token": head(b"X(): a", b"Content-Length: 0"),
    "bare LF lines": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "status 99": head(b"Content-Length: 0", start=b"HTTP/1.1 99 Low"),
    "status 099": head(b"Content-Length: 0", start=b"HTTP/1.1 099 Low"),
    "status 600": head(b"Content-Length: 0", start=b"HTTP/1.1 600 High"),
    "status 999": head(b"Content-Length: 0", start=b"HTTP/1.1 999 High"),
    "status of two digits": head(b"Content-Length: 0", start=b"HTTP/1.1 20 OK"),
    "status of four digits": head(b"Content-Length: 0", start=b"HTTP/1.1 2000 OK"),
    "status that is none": head(b"Content-Length: 0", start=b"HTTP/1.1 OK"),
    "a signed status": head(b"Content-Length: 0", start=b"HTTP/1.1 +20 OK"),
    "a control in the reason": head(b"Content-Length: 0", start=b"HTTP/1.1 200 O\x01K"),
    "HTTP/2.0": head(b"Content-Length: 0", start=b"HTTP/2.0 200 OK"),
    "HTTP/1.2": head(b"Content-Length: 0", start=b"HTTP/1.2 200 OK"),
    "another protocol": b"220 smtp.example ESMTP\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "an empty line first": b"\r\n" + OK,
    "a request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "an upgrade nobody asked for": head(b"Connection: upgrade", b"Upgrade: websocket", start=b"HTTP/1.1 101 Switching"),
    "an endless line": b"HTTP/1.1 200 " + b"a" * 400_000,
    "an endless value": LINE + b"X: " + b"a" * 400_000,
    "an endless head": LINE + b"X: aaaaaaaaaaaaaaaaaaaa\r\n" * 20_000,
}


@pytest.fixture(scope="module")
def proxy(shared_sidecar: StartSidecar) -> Sidecar:
    """A sidecar before an app that says whatever the request's path names."""
    app = Server(_by_name)
    return shared_sidecar(app=app.address)


def _by_name(connection: Connection) -> None:
    """Answers `/N` with the N-th of MALFORMED and then waits; anything else is answered well."""
    while True:
        target = connection.read().target
        if target[1:].isdigit():
            connection.send(list(MALFORMED.values())[int(target[1:])])
            connection.wait_for_close()
            return
        connection.send(
            b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%d" % (len(str(connection.number)), connection.number)
        )


@pytest.mark.parametrize("number", range(len(MALFORMED)), ids=list(MALFORMED))
def test_malformed_responses_are_502_and_their_connection_ends(number: int, proxy: Sidecar) -> None:
    with proxy.client() as client:
        answer = client.get(f"/{number}")
        assert (answer.status, answer["x-l7proxy-error"]) == (502, "upstream_protocol")
        assert "http_protocol_error" in answer["proxy-status"]
        # The client's own connection goes on; the app waits for its close, so only a new connection can answer.
        assert client.get("/fine").status == 200


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("framing", [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"X: none"])
def test_a_body_where_none_may_be_is_dropped(
    status: int, framing: bytes, sidecar: StartSidecar, serve: StartServer
) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(
            head(framing, start=b"HTTP/1.1 %d X" % status, body=b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        )
        connection.wait_for_close()

    app = serve(script)
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        for count in (1, 2):
            answer = client.get("/")
            assert (answer.status, answer.body) == (status, b"")
            assert len(app.wait_for_requests(count)) == len(app.connections) == count
    surplus = proxy.metrics()("l7proxy_upstream_surplus_total")
    assert surplus == 2


def test_bytes_beyond_the_length_are_dropped_and_never_answer_the_next_request(
    sidecar: StartSidecar, serve: StartServer
) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        connection.wait_for_close()

    app = serve(script)
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        for _ in range(5):
            assert client.get("/").body == b"ok"
    assert len(app.connections) == 5
    assert proxy.metrics()("l7proxy_upstream_surplus_total") == 5


def test_an_answer_that_nobody_asked_for_is_not_kept_for_the_next(sidecar: StartSidecar, serve: StartServer) -> None:
    rests = threading.Event()

    def script(connection: Connection) -> None:
        if connection.number == 0:
            connection.read()
            connection.send(OK)
            assert rests.wait(10)
            connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
            connection.wait_for_close()
        while connection.read():
            connection.send(OK)

    app = serve(script)
    with sidecar(app=app.address).client() as client:
        assert client.get("/").body == b"ok"
        rests.set()
        assert app.connections[0].ended.wait(5)
        for _ in range(3):
            assert client.get("/").body == b"ok"


@pytest.mark.parametrize(
    "answer",
    [
        head(b"Content-Length: 10", body=b"short"),
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"a\r\nhello",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\nX: y\r\n",
    ],
    ids=["length", "between chunks", "inside a chunk", "before the last line", "inside the trailers"],
)
@pytest.mark.parametrize("hard", [False, True], ids=["FIN", "RST"])
def test_a_response_that_ends_early_is_seen_as_incomplete(
    answer: bytes, hard: bool, sidecar: StartSidecar, serve: StartServer
) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(answer)
        if hard:
            connection.reset()

    proxy = sidecar(app=serve(script).address)
    with proxy.client() as client:
        client.send(GET)
        with pytest.raises(Closed):
            client.read()


@pytest.mark.parametrize(
    "late", [b"x\r\nhello\r\n0\r\n\r\n", b"5\r\nhelloo\r\n0\r\n\r\n", b"-1\r\n", b"0\r\nX : y\r\n\r\n"]
)
def test_a_body_that_goes_wrong_late_never_ends_cleanly(late: bytes, sidecar: StartSidecar, serve: StartServer) -> None:
    go_on = threading.Event()

    def script(connection: Connection) -> None:
        connection.read()
        connection.send(CHUNKED + b"5\r\nhello\r\n")
        assert go_on.wait(10)
        connection.send(late)
        connection.wait_for_close()

    proxy = sidecar(app=serve(script).address)
    with proxy.client() as client:
        client.send(GET)
        assert client.reader.until(b"5\r\nhello\r\n").startswith(b"HTTP/1.1 200")
        go_on.set()
        with pytest.raises(Closed):
            client.reader.until(b"0\r\n\r\n")


def test_a_response_until_the_close_is_complete(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it")

    proxy = sidecar(app=serve(script).address)
    with proxy.client() as client:
        assert client.get("/").body == b"all of it"
        assert client.get("/").body == b"all of it", "the client's connection lives on"


def test_interim_responses_do_not_reach_the_client(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + OK)

    proxy = sidecar(app=serve(script).address)
    with proxy.client() as client:
        client.send(GET)
        assert client.read(interim=True).status == 200


@pytest.mark.parametrize("interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 X\r\nLink: </a>\r\n\r\n"])
def test_interim_responses_without_end_are_a_502(interim: bytes, sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        while True:
            connection.send(interim * 100)

    answer = sidecar(app=serve(script).address).get("/")
    assert (answer.status, answer["x-l7proxy-error"]) == (502, "upstream_protocol")


def test_hop_by_hop_fields_of_a_response_stay_behind(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        lines = (b"Connection: x-hop", b"X-Hop: 1", b"Keep-Alive: timeout=5", b"Proxy-Connection: x", b"X-End: 2")
        connection.send(head(*lines, b"Set-Cookie: a", b"Set-Cookie: b", b"Content-Length: 0"))

    proxy = sidecar(app=serve(script).address)
    answer = proxy.get("/")
    assert answer.status == 200
    for name in ("x-hop", "keep-alive", "proxy-connection"):
        assert name not in answer
    assert answer["x-end"] == "2"
    assert answer.all("set-cookie") == ["a", "b"]
