"""What happens to the bytes of requests and responses between two real sockets."""

import threading
import time

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.message import Closed
from tests.support.net import Address, wait_for
from tests.support.server import OK, Connection
from tests.support.sidecar import Sidecar, route, upstream

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: test\r\n"
GIB = 1 << 30
MIB = 1 << 20


@pytest.fixture
def proxy(sidecar: StartSidecar, uvicorn_app: Address) -> Sidecar:
    """A sidecar beside a uvicorn application."""
    return sidecar(app=uvicorn_app)


# Framing and streaming.


def test_a_request_and_its_answer_pass(proxy: Sidecar) -> None:
    with proxy.client() as client:
        answer = client.request(
            b"PUT /a%20b?c=d HTTP/1.1\r\nhost: test\r\nx-a: 1\r\nX-A: 2\r\ncontent-length: 2\r\n\r\nhi"
        )
    assert answer.status == 200
    assert b'"method": "PUT", "target": "/a%20b?c=d"' in answer.body
    assert b'["x-a", "1"], ["x-a", "2"]' in answer.body
    assert b'"body": "hi"' in answer.body


def test_headers_and_body_of_a_small_answer_leave_in_one_segment(sidecar: StartSidecar, serve: StartServer) -> None:
    with sidecar(app=serve().address).client() as client:
        client.send(GET)
        assert client.sock.recv(65536).endswith(b"\r\n\r\nok")


def test_a_gibibyte_is_uploaded_in_flat_memory(proxy: Sidecar) -> None:
    block = b"x" * MIB
    with proxy.client(timeout=60) as client:
        client.get("/bytes/1000000")
        before = proxy.process.peak_rss
        client.send(b"POST /count HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % GIB)
        for _ in range(1024):
            client.send(block)
        assert client.read().body == b"%d" % GIB
    assert proxy.process.peak_rss - before < 16 * MIB


def test_a_gibibyte_is_downloaded_in_flat_memory(proxy: Sidecar) -> None:
    with proxy.client(timeout=60) as client:
        client.get("/bytes/1000000")
        before = proxy.process.peak_rss
        client.send(b"GET /bytes/%d HTTP/1.1\r\nhost: test\r\n\r\n" % GIB)
        head = client.reader.head()
        assert head["content-length"] == str(GIB)
        got = len(client.reader.buffer)
        buffer = memoryview(bytearray(MIB))
        while got < GIB:
            size = client.sock.recv_into(buffer)
            assert size
            got += size
    assert got == GIB
    assert proxy.process.peak_rss - before < 16 * MIB


def test_a_chunked_upload_passes_in_flat_memory(proxy: Sidecar) -> None:
    block = b"%x\r\n%b\r\n" % (MIB, b"x" * MIB)
    with proxy.client(timeout=60) as client:
        client.get("/bytes/1000000")
        before = proxy.process.peak_rss
        client.send(b"POST /count HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(128):
            client.send(block)
        client.send(b"0\r\n\r\n")
        assert client.read().body == b"%d" % (128 * MIB)
    assert proxy.process.peak_rss - before < 16 * MIB


def test_a_slow_reader_stops_a_fast_app(sidecar: StartSidecar, serve: StartServer) -> None:
    sent = 0

    def fast(connection: Connection) -> None:
        nonlocal sent
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % GIB)
        for _ in range(1024):
            connection.send(b"x" * MIB)
            sent += MIB

    proxy = sidecar(app=serve(fast).address)
    before = proxy.process.peak_rss
    with proxy.client(receive_buffer=65536) as client:
        client.send(GET)
        client.reader.head()
        _wait_until_still(lambda: sent)
        assert sent < 64 * MIB
    assert proxy.process.peak_rss - before < 16 * MIB


def test_a_slow_app_stops_a_fast_client(sidecar: StartSidecar, serve: StartServer) -> None:
    def slow(connection: Connection) -> None:
        connection.read_head()
        done.wait(20)

    done = threading.Event()
    proxy = sidecar(app=serve(slow).address)
    before = proxy.process.peak_rss
    sent = 0
    with proxy.client(timeout=1) as client:
        client.send(POST + b"content-length: %d\r\n\r\n" % GIB)
        with pytest.raises(TimeoutError):
            while True:
                client.send(b"x" * MIB)
                sent += MIB
    done.set()
    assert sent < 64 * MIB
    assert proxy.process.peak_rss - before < 16 * MIB


def test_both_directions_stream_at_once(sidecar: StartSidecar, serve: StartServer) -> None:
    """Each chunk of the answer is made from a chunk of the request, before the request has ended."""

    def mirror(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while size := connection.reader.until(b"\r\n"):
            data = connection.reader.exactly(int(size, 16) + 2)
            connection.send(size + data)
            if size == b"0\r\n":
                return

    proxy = sidecar(app=serve(mirror).address)
    with proxy.client() as client:
        client.send(POST + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        assert client.reader.head().status == 200
        assert client.reader.until(b"1\r\na\r\n")
        for letter in (b"b", b"c"):
            client.send(b"1\r\n%b\r\n" % letter)
            assert client.reader.until(b"1\r\n%b\r\n" % letter)
        client.send(b"0\r\n\r\n")
        assert client.reader.until(b"0\r\n\r\n")


def test_a_head_does_not_wait_for_its_body(sidecar: StartSidecar, serve: StartServer) -> None:
    def late(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        go_on.wait(10)
        connection.send(b"ok")

    go_on = threading.Event()
    proxy = sidecar(app=serve(late).address)
    with proxy.client() as client:
        client.send(GET)
        head = client.reader.head()
        go_on.set()
        client.reader.body(head, until_close=True)
        assert head.body == b"ok"


@pytest.mark.parametrize("rest", [b"", b"x" * 1000], ids=["nothing more sent", "more sent"])
def test_an_early_answer_reaches_a_client_that_is_still_sending(
    rest: bytes, sidecar: StartSidecar, serve: StartServer
) -> None:
    def early(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig")
        connection.wait_for_close()

    app = serve(early)
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        client.send(POST + b"content-length: 1000000\r\n\r\n" + rest)
        answer = client.read()
        assert (answer.status, answer.body) == (413, b"big")
    assert app.connections[0].ended.wait(5)


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body_have_none(status: int, proxy: Sidecar) -> None:
    with proxy.client() as client:
        answer = client.get(f"/status/{status}")
        assert answer.status == status
        assert "transfer-encoding" not in answer
        assert client.get("/bytes/5").body == b"\0\1\2\3\4"


def test_head_has_the_length_and_no_body(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        while True:
            method = connection.read().method
            connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n" + (b"" if method == "HEAD" else b"hello"))

    app = serve(script)
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        for _ in range(3):
            answer = client.request(b"HEAD / HTTP/1.1\r\nhost: test\r\n\r\n")
            assert (answer.status, answer["content-length"], answer.body) == (200, "5", b"")
            assert client.request(GET).body == b"hello"
    assert len(app.connections) == 1


def test_head_of_a_chunked_answer(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        while connection.read():
            connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")

    proxy = sidecar(app=serve(script).address)
    with proxy.client() as client:
        for _ in range(2):
            assert client.request(b"HEAD / HTTP/1.1\r\nhost: test\r\n\r\n").status == 200


def test_http_1_0_clients_get_bodies_that_end_with_the_connection(proxy: Sidecar) -> None:
    with proxy.client() as client:
        client.send(b"GET /stream/3 HTTP/1.0\r\nhost: test\r\n\r\n")
        answer = client.read()
        assert "transfer-encoding" not in answer
        assert answer.body == b"0\n1\n2\n"
        assert client.closed()


def test_http_1_0_keep_alive(proxy: Sidecar) -> None:
    with proxy.client() as client:
        for _ in range(2):
            answer = client.request(b"GET /bytes/3 HTTP/1.0\r\nhost: test\r\nconnection: keep-alive\r\n\r\n")
            assert answer.body == b"\0\1\2"
            assert answer["connection"] == "keep-alive"


# Connections.


def test_connections_are_kept_on_both_sides(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        for _ in range(10):
            assert client.request(GET).status == 200
    assert len(app.connections) == 1
    assert len(app.requests) == 10


def test_connection_close_is_honoured(proxy: Sidecar) -> None:
    with proxy.client() as client:
        answer = client.request(b"GET /bytes/1 HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        assert answer["connection"] == "close"
        assert client.closed()


def test_a_client_that_only_closes_its_sending_side_gets_its_answer(proxy: Sidecar) -> None:
    with proxy.client() as client:
        client.send(b"GET /slow/100 HTTP/1.1\r\nhost: test\r\n\r\n")
        client.half_close()
        assert client.read().body == b"slow"


def test_pipelined_requests_are_answered_in_order(proxy: Sidecar) -> None:
    with proxy.client() as client:
        client.send(b"".join(b"GET /slow/%d HTTP/1.1\r\nhost: test\r\n\r\n" % wait for wait in (50, 1)))
        client.send(b"GET /bytes/2 HTTP/1.1\r\nhost: test\r\n\r\n")
        assert [client.read().body for _ in range(3)] == [b"slow", b"slow", b"\0\1"]


def test_expect_100_continue_is_answered_when_the_app_reads(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        client.send(POST + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        assert client.read(interim=True).status == 100
        client.send(b"hello")
        assert client.read(interim=True).status == 200
    assert app.requests[0].body == b"hello"


def test_expect_100_continue_is_not_answered_before_a_refusal(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    refuse = route("refuse", directResponse={"status": 403, "body": "no"})
    proxy = sidecar(refuse, app=app.address)
    with proxy.client() as client:
        client.send(POST + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        answer = client.read(interim=True)
        assert answer.status == 403
        # Whether the client sends its body now cannot be known, so the connection cannot be used again.
        assert answer["connection"] == "close"


def test_a_client_that_does_not_wait_for_100_is_served(proxy: Sidecar) -> None:
    with proxy.client() as client:
        client.send(b"POST /count HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello")
        assert client.read().body == b"5"


@pytest.mark.parametrize("hard", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("moment", ["before the head", "inside the body"])
def test_a_client_that_leaves_ends_the_upstream_request(
    moment: str, hard: bool, sidecar: StartSidecar, serve: StartServer
) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        if moment == "inside the body":
            connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello")
        connection.wait_for_close()

    app = serve(script)
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        client.send(GET)
        app.wait_for_requests(1)
        if moment == "inside the body":
            client.reader.until(b"hello")
        if hard:
            client.reset()
    assert app.connections[0].ended.wait(5)
    line = proxy.log_lines()[0]
    assert "DC" in line["flags"]


def test_an_upload_that_breaks_off_is_no_whole_request(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        message = connection.read_head()
        with pytest.raises(Closed):
            connection.reader.body(message, until_close=False)
        broken.set()

    broken = threading.Event()
    app = serve(script)
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        client.send(POST + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        app.wait_for_requests(1)
    assert broken.wait(5)


# What the upstream may do.


def test_a_close_before_the_head_is_upstream_reset(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve(lambda connection: connection.read() and None).address)
    with proxy.client() as client:
        answer = client.request(POST + b"content-length: 2\r\n\r\nhi")
        assert (answer.status, answer["x-l7proxy-error"]) == (502, "upstream_reset")
        assert "connection_terminated" in answer["proxy-status"]


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nx: y\r\n"])
def test_a_close_inside_the_head_is_upstream_reset(part: bytes, sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(part)

    app = serve(script)
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        answer = client.request(GET)
        assert (answer.status, answer["x-l7proxy-error"]) == (502, "upstream_reset")
    assert len(app.requests) == 1, "an answer had begun: nothing may be repeated"


def test_an_upstream_that_is_not_there_is_upstream_connect(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    app.close()
    answer = sidecar(app=app.address).get("/")
    assert (answer.status, answer["x-l7proxy-error"]) == (503, "upstream_connect")
    assert "connection_refused" in answer["proxy-status"]


def test_a_stale_pooled_connection_is_never_an_error(sidecar: StartSidecar, serve: StartServer) -> None:
    """The app closes each connection after its answer, without a word, sooner or later."""

    def script(connection: Connection) -> None:
        connection.read()
        connection.send(OK)
        time.sleep((0, 0.001, 0.01)[connection.number % 3])

    proxy = sidecar(app=serve(script).address)
    statuses = []
    with proxy.client() as client:
        for number in range(60):
            statuses.append(client.request(GET).status)
            time.sleep((number % 4) * 0.004)
    assert statuses == [200] * 60


def test_a_post_never_meets_a_connection_that_was_closed_before(sidecar: StartSidecar, serve: StartServer) -> None:
    """One that meets the close on its way cannot be repeated; one that comes after it must not fail."""

    def script(connection: Connection) -> None:
        connection.read()
        connection.send(OK)

    app = serve(script)
    with sidecar(app=app.address).client() as client:
        for number in range(60):
            assert client.request(POST + b"content-length: 2\r\n\r\nhi").status == 200
            assert app.connections[number].ended.wait(5)


def test_a_pooled_connection_dies_when_its_request_arrives(sidecar: StartSidecar, serve: StartServer) -> None:
    """The worst moment: the request is sent, and the close crosses it."""

    def script(connection: Connection) -> None:
        connection.read()
        connection.send(OK)
        connection.reader.until(b"\r\n\r\n")
        connection.reset()

    app = serve(script)
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        for _ in range(5):
            assert client.request(GET).status == 200


def test_the_pool_lets_go_before_the_app_does(sidecar: StartSidecar, serve: StartServer) -> None:
    """Connections to the app rest for one second at most."""
    app = serve()
    proxy = sidecar(app=app.address)
    assert proxy.get("/").status == 200
    started = time.monotonic()
    assert app.connections[0].ended.wait(5)
    assert time.monotonic() - started < 4


def test_endpoints_share_the_load(sidecar: StartSidecar, serve: StartServer) -> None:
    apps = [serve(), serve(), serve()]
    proxy = sidecar(upstream("pool", *(app.address for app in apps)), route("all", upstream="pool"))
    with proxy.client() as client:
        for _ in range(90):
            assert client.request(GET).status == 200
    assert all(app.requests for app in apps)


def test_bytes_and_times_are_logged(proxy: Sidecar) -> None:
    with proxy.client() as client:
        assert client.request(b"POST /count HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhello").body == b"5"
    (line,) = proxy.log_lines()
    assert (line["method"], line["path"], line["status"], line["authority"]) == ("POST", "/count", 200, "test")
    assert line["direction"] == "inbound"


def _wait_until_still(read: object) -> None:
    """Returns once `read()` has not changed for half a second."""
    last, since = read(), time.monotonic()  # type: ignore[operator]

    def still() -> bool:
        nonlocal last, since
        now = read()  # type: ignore[operator]
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 0.5

    wait_for(still, 20)
