"""The harness itself, where a mistake would hide one of the proxy's."""

from collections.abc import Callable

import pytest

from tests.support.client import Client, exchange
from tests.support.message import Closed
from tests.support.metrics import Samples
from tests.support.nginx import Nginx
from tests.support.server import OK, Connection, Server

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


def test_server_keeps_what_it_was_sent() -> None:
    with Server() as server, Client(server.address) as client:
        assert client.request(GET).body == b"ok"
        assert client.request(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").status == 200
        assert [request.target for request in server.requests] == ["/", "/x"]
        assert server.requests[1].body == b"abc"
        assert server.connections[0].received.startswith(GET)


def test_exchange_returns_every_answer_until_the_close() -> None:
    def twice(connection: Connection) -> None:
        connection.read()
        connection.send(OK + OK)

    with Server(twice) as server:
        answers, clean = exchange(server.address, GET)
        assert [answer.body for answer in answers] == [b"ok", b"ok"]
        assert clean


def test_an_incomplete_answer_is_not_a_clean_close() -> None:
    def short(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort")

    with Server(short) as server, Client(server.address) as client, pytest.raises(Closed):
        client.request(GET)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nx: a\rb\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
    ],
)
def test_the_reader_refuses_what_no_proxy_may_write(answer: bytes) -> None:
    def say(connection: Connection) -> None:
        connection.read()
        connection.send(answer)

    with Server(say) as server, Client(server.address) as client, pytest.raises(AssertionError):
        client.request(GET)


def test_a_mistake_in_a_script_is_raised() -> None:
    def wrong(connection: Connection) -> None:
        connection.read()
        raise ZeroDivisionError

    server = Server(wrong)
    with Client(server.address) as client, pytest.raises(Closed):
        client.request(GET)
    with pytest.raises(ZeroDivisionError):
        server.close()


def test_samples_are_added_up_over_labels() -> None:
    samples = Samples('# TYPE a_total counter\na_total{x="1",y="2"} 3\na_total{x="1",y="q\\"}"} 4\nb 1e3 # {t="x"} 1\n')
    assert samples("a_total") == 7
    assert samples("a_total", y="2") == 3
    assert samples("b") == 1000
    assert samples("c") == 0


@pytest.mark.needs("nginx")
def test_nginx_serves_a_file(nginx: Callable[..., Nginx]) -> None:
    server = nginx()
    (server.www / "a.txt").write_text("hello")
    with Client(server.address) as client:
        assert client.get("/a.txt").body == b"hello"


def test_uvicorn_serves_the_application(uvicorn_app: tuple[str, int]) -> None:
    with Client(uvicorn_app) as client:
        assert client.get("/echo?x=1").body.startswith(b'{"method": "GET", "target": "/echo?x=1"')
        assert len(client.get("/bytes/100000").body) == 100000
        assert client.get("/status/204").status == 204
        assert client.get("/stream/3").body == b"0\n1\n2\n"
