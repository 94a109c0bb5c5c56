"""CONNECT: off unless a route says so, and then the bytes of a TCP connection, over HTTP/1.1 and HTTP/2."""

import subprocess
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient
from tests.support.net import Address, free_address, wait_for
from tests.support.server import Connection
from tests.support.sidecar import Sidecar, route, upstream
from tests.wire.h2_peer import Fields, data

CONNECT: Fields = [(b":method", b"CONNECT"), (b":authority", b"db.test:5432")]


def greet(connection: Connection) -> None:
    """A server that speaks first, and nothing like HTTP."""
    connection.sock.sendall(b"hello\n")
    while raw := connection.sock.recv(65_536):
        connection.sock.sendall(raw.upper())
    connection.sock.sendall(b"bye\n")


@pytest.fixture
def proxy(sidecar: StartSidecar, serve: StartServer) -> Sidecar:
    return sidecar(
        upstream("db", serve(greet).address),
        upstream("away", free_address()),
        route("db", hosts=["db.test"], upstream="db", connect=True),
        route("away", hosts=["away.test"], upstream="away", connect=True),
        route("denied", hosts=["denied.test"], upstream="db", connect=True, policies=DENY),
        route("plain", hosts=["plain.test"], upstream="db"),
    )


DENY = {"authorization": {"deny": [{"methods": ["CONNECT"]}]}}


def test_http_1_tunnels_bytes_both_ways(proxy: Sidecar) -> None:
    with proxy.client() as client:
        client.send(b"CONNECT db.test:5432 HTTP/1.1\r\nhost: db.test:5432\r\n\r\nquery")
        client.reader.until(b"\r\n\r\n")
        raw = bytes(client.reader.raw)
        assert raw.startswith(b"HTTP/1.1 200 ")
        assert b"content-length" not in raw.lower()
        assert b"transfer-encoding" not in raw.lower()
        wait_for(lambda: b"QUERY" in client.reader.raw or (client.reader.more() and b"QUERY" in client.reader.raw))
        client.half_close()
        client.reader.rest()
        assert client.reader.raw.endswith(b"bye\n")
    opened, closed = proxy.log_lines(2)
    assert (opened["event"], closed["event"], closed["method"]) == ("tunnel_open", "tunnel_end", "CONNECT")


def test_a_tunnel_that_the_client_ends_first_leaves_no_connection(proxy: Sidecar) -> None:
    with proxy.client() as client:
        client.send(b"CONNECT db.test:5432 HTTP/1.1\r\nhost: db.test:5432\r\n\r\n")
        client.reader.until(b"hello\n")
        client.half_close()
        assert client.reader.rest().endswith(b"bye\n")
    wait_for(lambda: proxy.metrics()("l7proxy_upstream_connections", l7proxy_upstream="db") == 0)


def test_http_2_tunnels_bytes_both_ways(proxy: Sidecar) -> None:
    with RawClient(proxy.inbound) as client:
        stream = client.request(CONNECT, end=False)
        client.until(lambda reader: reader.bodies.get(stream) == b"hello\n")
        assert client.reader.heads[stream][0][":status"] == "200"
        client.send(data(stream, b"query"))
        client.until(lambda reader: reader.bodies[stream] == b"hello\nQUERY")
        client.send(data(stream, b"", end=True))
        client.until(lambda reader: stream in reader.ended)
        assert client.reader.bodies[stream] == b"hello\nQUERYbye\n"


@pytest.mark.parametrize(
    ("host", "status", "code"),
    [
        ("plain.test", 405, "method_not_allowed"),
        ("unknown.test", 405, "method_not_allowed"),
        ("denied.test", 403, "denied"),
        ("away.test", 503, "upstream_connect"),
    ],
)
def test_a_tunnel_without_leave_is_an_answer_like_any_other(host: str, status: int, code: str, proxy: Sidecar) -> None:
    with proxy.client() as client:
        client.send(
            f"CONNECT {host}:443 HTTP/1.1\r\nhost: {host}:443\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        )
        answer = client.read("POST")
        assert (answer.status, answer["x-l7proxy-error"]) == (status, code)
        assert client.closed(), "what follows a refused CONNECT is no request"
    with RawClient(proxy.inbound) as client:
        stream = client.request([CONNECT[0], (b":authority", f"{host}:443".encode())], end=False)
        head = client.answer(stream)
        assert (head[":status"], head["x-l7proxy-error"]) == (str(status), code)


@pytest.mark.needs("curl")
def test_curl_reaches_an_app_through_a_tunnel(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(upstream("app", uvicorn_app), route("tunnel", hosts=["app.test"], upstream="app", connect=True))
    command = ["curl", "-q", "-sS", "-p", "-x", f"http://127.0.0.1:{proxy.inbound[1]}", "http://app.test/bytes/500000"]
    run: Any = subprocess.run(command, capture_output=True, timeout=30)
    assert len(run.stdout) == 500_000, run.stderr
