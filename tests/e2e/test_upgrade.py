"""Which protocols a connection may be switched to, and who is told which one it was."""

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient, RawServer
from tests.support.client import Client
from tests.support.server import OK, Connection, Script
from tests.support.sidecar import Sidecar, route, upstream
from tests.wire.h2_peer import GET, Fields, data, headers


def ask(client: Client, *lines: bytes) -> None:
    client.send(b"\r\n".join((b"GET /ws HTTP/1.1\r\nhost: test", *lines)) + b"\r\n\r\n")


def switching(*lines: bytes) -> Script:
    """A script that switches protocols whatever it is asked, and then sends back what comes."""

    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"\r\n".join((b"HTTP/1.1 101 Switching Protocols", *lines)) + b"\r\n\r\n")
        while received := connection.sock.recv(1000):
            connection.send(received)

    return script


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ((b"Upgrade: h2c,",), None),
        ((b"Upgrade: H2C, h2c",), None),
        ((b"Upgrade: h2c", b"Upgrade: h2"), None),
        ((b"Upgrade: TLS/1.0, HTTP/1.1",), None),
        ((b"Upgrade: HTTP/2.0",), None),
        ((b"Upgrade: websocket, h2c",), "websocket"),
        ((b"Upgrade: h2c", b"Upgrade: websocket"), "websocket"),
        ((b"Upgrade: websocket", b"Upgrade: h2c , foo/2"), "websocket, foo/2"),
    ],
)
def test_no_protocol_that_carries_requests_past_the_policies_is_offered(
    lines: tuple[bytes, ...], left: str | None, sidecar: StartSidecar, serve: StartServer
) -> None:
    app = serve()
    with sidecar(app=app.address).client() as client:
        ask(client, b"Connection: upgrade, http2-settings", *lines, b"HTTP2-Settings: AAMAAABk")
        assert client.read().status == 200
    (request,) = app.requests
    assert request.get("upgrade") == left
    assert request.get("connection") == ("upgrade" if left else None)
    assert "http2-settings" not in request


@pytest.mark.parametrize("protocol", [b"h2c", b"H2C", b"h2", b"http/1.1", b"tls"])
def test_extended_connect_offers_none_of_them_either(
    protocol: bytes, sidecar: StartSidecar, serve: StartServer
) -> None:
    app = serve()
    proxy = sidecar(app=app.address)
    with RawClient(proxy.inbound) as client:
        answer = client.answer(client.request(extended(protocol), end=False))
        assert (answer[":status"], answer["x-l7proxy-error"]) == ("501", "not_implemented")
        assert client.get() == "200"
    assert [request.target for request in app.requests] == ["/"]
    assert proxy.metrics()("l7proxy_bad_requests_total", reason="protocol") == 1


def extended(protocol: bytes, *fields: tuple[bytes, bytes]) -> Fields:
    return [(b":method", b"CONNECT"), (b":protocol", protocol), *GET[1:], *fields]


def test_the_client_learns_which_protocol_was_chosen(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(switching(b"Connection: Upgrade", b"Upgrade: Bar/2", b"Content-Length: 5"))
    with sidecar(app=app.address).client() as client:
        ask(client, b"Connection: upgrade", b"Upgrade: foo, bar/2")
        answer = client.read()
        assert (answer.status, answer["upgrade"], answer["connection"]) == (101, "bar/2", "upgrade")
        assert "content-length" not in answer
        client.send(b"hello")
        assert client.reader.exactly(5) == b"hello"


@pytest.mark.parametrize("answer", [(b"Upgrade: h2c",), (b"Upgrade: foo, bar",), ()], ids=["other", "both", "none"])
def test_a_protocol_that_nobody_asked_for_is_not_switched_to(
    answer: tuple[bytes, ...], sidecar: StartSidecar, serve: StartServer
) -> None:
    proxy = sidecar(app=serve(switching(b"Connection: Upgrade", *answer)).address)
    with proxy.client() as client:
        ask(client, b"Connection: upgrade", b"Upgrade: foo, bar")
        refusal = client.read()
        assert (refusal.status, refusal["x-l7proxy-error"]) == (502, "upstream_protocol")


def test_an_upgrade_that_was_refused_is_no_leave_for_the_next_request(
    sidecar: StartSidecar, serve: StartServer
) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(OK)
        connection.read()
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
        connection.wait_for_close()

    app = serve(script)
    with sidecar(app=app.address).client() as client:
        ask(client, b"Connection: upgrade", b"Upgrade: websocket")
        assert client.read().status == 200
        answer = client.get("/plain")
        assert (answer.status, answer["x-l7proxy-error"]) == (502, "upstream_protocol")
    assert len(app.connections) == 1


def test_an_http_2_upstream_is_asked_for_the_first_choice(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection, (8, 1))
        server.until(lambda reader: reader.heads)
        assert server.reader.heads[1][0][":protocol"] == "foo"
        server.send(headers(1, [(b":status", b"200"), (b"content-length", b"2")], end=False) + data(1, b"hi"))
        server.rest()

    proxy: Sidecar = sidecar(upstream("u", serve(script).address, protocol="http2"), route("u", upstream="u"))
    with proxy.client() as client:
        ask(client, b"Connection: upgrade", b"Upgrade: foo, bar")
        answer = client.read()
        assert (answer.status, answer["upgrade"]) == (101, "foo")
        assert "content-length" not in answer
        assert client.reader.exactly(2) == b"hi"


def test_a_key_that_came_over_http_2_is_not_the_one_of_the_handshake(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    with RawClient(sidecar(app=app.address).inbound) as client:
        client.answer(client.request(extended(b"WebSocket", (b"sec-websocket-key", b"theirs")), end=False))
    (request,) = app.requests
    assert request["upgrade"] == "websocket"
    (key,) = request.all("sec-websocket-key")
    assert key != "theirs"
