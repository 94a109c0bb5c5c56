"""What is lost and what is not when one side ends early, late or only half."""

import asyncio
import socket
import time

import pytest

from l7proxy.core.deadlines import Deadlines
from l7proxy.core.outbox import Outbox
from l7proxy.core.stream import Stream
from l7proxy.upstream.h1 import H1Connection
from l7proxy.wire.framing import Limits
from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient, wide_open
from tests.support.client import Client
from tests.support.net import Address, wait_for
from tests.support.server import OK, Connection
from tests.wire.h2_peer import GET as H2_GET
from tests.wire.h2_peer import GOAWAY, frame, window_update

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
MIB = 1 << 20


# The client ends its sending side.


def test_all_requests_that_came_before_a_half_close_are_answered(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    with sidecar(app=app.address).client() as client:
        client.send(GET * 1000)
        client.half_close()
        answers = [client.read() for _ in range(1000)]
        assert {answer.status for answer in answers} == {200}
        assert answers[-1]["connection"] == "close"
        assert client.closed()
    assert len(app.requests) == 1000


@pytest.mark.parametrize(
    "part",
    [b"GET / HT", b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhel"],
    ids=["in a head", "in a body"],
)
def test_a_request_that_a_half_close_cuts_short_is_none(part: bytes, sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    with sidecar(app=app.address).client() as client:
        client.send(GET * 3 + part)
        client.half_close()
        assert [client.read().status for _ in range(3)] == [200] * 3
        assert client.closed()
    assert [request.method for request in app.requests] == ["GET"] * 3


# The app answers before it has read the request.


def test_an_app_that_refuses_an_upload_and_closes_is_heard(sidecar: StartSidecar, serve: StartServer) -> None:
    """The kernel resets a connection that is closed with unread bytes: our writes fail before the answer is read."""

    def refuse(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")

    proxy = sidecar(app=serve(refuse).address)
    body = b"x" * (4 * MIB)
    for _ in range(20):
        with proxy.client() as client:
            client.send(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            answer = client.read()
            assert (answer.status, answer.body) == (413, b"big")
    assert {line["status"] for line in proxy.log_lines(20)} == {413}


def test_an_answer_is_heard_when_what_was_written_last_fails() -> None:
    """The last bytes of an upload may wait in the event loop when its sender has nothing more to do."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        theirs.settimeout(10)
        connection = H1Connection(Limits(), lambda *_: None, Deadlines(loop, 1.0), {}, Outbox(loop))
        transport, _ = await loop.create_connection(lambda: connection, sock=ours)
        body = Stream()
        body.feed(b"all")
        body.end()
        asked = loop.create_task(connection.exchange(b"POST", b"/", b"test", [(b"content-length", b"3")], body))
        received = b""
        while not received.endswith(b"all"):
            received += await loop.run_in_executor(None, theirs.recv, 1000)
        await asyncio.sleep(0)
        transport.pause_reading()
        theirs.sendall(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        # As the event loop does where a write has failed before it came to reading.
        connection.connection_lost(ConnectionResetError())
        head, said = await asked
        assert (head.status, said) == (413, b"big")
        transport.abort()
        theirs.close()

    asyncio.run(main())


def test_an_app_that_answers_and_never_reads_holds_no_connection(sidecar: StartSidecar, serve: StartServer) -> None:
    def answer_and_sit(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig")
        connection.ended.wait(20)

    app = serve(answer_and_sit)
    app.receive_little()
    proxy = sidecar(app=app.address)
    body = b"x" * (16 * MIB)
    for _ in range(3):
        with proxy.client() as client:
            client.send(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n" % len(body) + body[: 8 * MIB])
            assert client.read().status == 413
    wait_for(lambda: proxy.metrics()("l7proxy_upstream_connections") == 0)


# The app ends at a bad moment.


@pytest.mark.parametrize("expect", [b"", b"expect: 100-continue\r\n"])
def test_a_pooled_connection_that_dies_before_the_body_came_is_nobodys_error(
    expect: bytes, sidecar: StartSidecar, serve: StartServer
) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(OK)
        if connection.number == 0:
            connection.read_head()
        else:
            connection.wait_for_close()

    app = serve(script)
    with sidecar(app=app.address).client() as client:
        assert client.request(GET).status == 200
        client.send(b"PUT /late HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n" + expect + b"\r\n")
        assert app.connections[0].ended.wait(5)
        wait_for(lambda: len(app.connections) == 2)
        client.send(b"hello")
        assert client.read().status == 200
    assert [(request.start, request.body) for request in app.requests[1:]] == [
        (b"PUT /late HTTP/1.1", b""),
        (b"PUT /late HTTP/1.1", b"hello"),
    ]


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", b"HTTP/1.1 200 OK\r\n\r\nhello"],
    ids=["chunked", "until the close"],
)
def test_a_client_of_http_1_0_cannot_take_half_an_answer_for_a_whole_one(
    answer: bytes, sidecar: StartSidecar, serve: StartServer
) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(answer)
        time.sleep(0.05)
        connection.reset()

    with sidecar(app=serve(script).address).client() as client:
        client.send(b"GET / HTTP/1.0\r\nhost: test\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            while client.sock.recv(1000):
                pass


def test_an_answer_that_nobody_asked_for_is_counted(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(OK)
        assert client.read().status == 200
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
        connection.wait_for_close()

    proxy = sidecar(app=serve(script).address)
    with proxy.client() as client:
        client.send(GET)
        wait_for(lambda: proxy.metrics()("l7proxy_upstream_surplus_total") == 1)


# The proxy says goodbye to a slow reader.


@pytest.mark.parametrize("pipelined", [b"", GET])
def test_a_slow_reader_gets_the_last_answer_whole(
    pipelined: bytes, sidecar: StartSidecar, uvicorn_app: Address
) -> None:
    size = 3_000_000
    with Client(sidecar(app=uvicorn_app).inbound, receive_buffer=20_000) as client:
        client.send(b"GET /bytes/%d HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n" % size + pipelined)
        assert len(read_slowly(client.sock)) > size


def test_a_client_that_says_goodbye_and_reads_slowly_gets_its_answer(
    sidecar: StartSidecar, uvicorn_app: Address
) -> None:
    size = 3_000_000
    proxy = sidecar(app=uvicorn_app)
    with RawClient(proxy.inbound, wide_open(), buffer=20_000) as client:
        stream = client.request([*H2_GET[:3], (b":path", b"/bytes/%d" % size)])
        # All of it is on its way, and most of it in the kernel: the proxy has nothing more to do for this client.
        assert proxy.log_lines()[0]["bytes_out"] == size
        client.send(frame(GOAWAY, 0, 0, b"\0" * 8) + window_update(stream, 1))
        client.reader.feed(read_slowly(client.sock))
    assert stream in client.reader.ended
    assert len(client.reader.bodies[stream]) == size


def read_slowly(sock: socket.socket) -> bytes:
    received = b""
    while data := sock.recv(20_000):
        received += data
        time.sleep(0.002)
    return received
