"""WebSockets pass as bytes: both ways, of any size, until either side ends them."""

import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server as WebSocketServer
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

from tests.conftest import StartServer, StartSidecar
from tests.support.net import Address, free_port
from tests.support.server import Connection
from tests.support.sidecar import Sidecar

UPGRADE = (
    b"GET /ws HTTP/1.1\r\nhost: test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ACCEPT = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


def talk(proxy: Sidecar) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{proxy.inbound[1]}/ws", compression=None, max_size=None, open_timeout=5)


def test_messages_pass_both_ways(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app)
    with talk(proxy) as socket:
        for message in ("hello", b"\0\1\2", "x" * 100_000, ""):
            socket.send(message)
            assert socket.recv(5) == message
    lines = proxy.log_lines(2)
    assert {line["status"] for line in lines} == {101}, "a tunnel is logged when it opens and when it ends"


def test_a_large_message_passes_in_flat_memory(sidecar: StartSidecar, serve: StartServer) -> None:
    def sink(connection: Connection) -> None:
        connection.read()
        connection.send(ACCEPT)
        while connection.sock.recv(1 << 20):
            pass

    proxy = sidecar(app=serve(sink).address)
    with proxy.client(timeout=30) as client:
        assert client.request(UPGRADE).status == 101
        before = proxy.process.peak_rss
        for _ in range(256):
            client.send(b"x" * (1 << 20))
    assert proxy.process.peak_rss - before < 16 << 20


def test_bytes_behind_the_handshake_are_the_first_of_the_tunnel(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(ACCEPT + b"from the app")
        assert connection.reader.exactly(15) == b"from the client"
        connection.send(b"!")
        connection.wait_for_close()

    proxy = sidecar(app=serve(script).address)
    with proxy.client() as client:
        client.send(UPGRADE + b"from the client")
        answer = client.read()
        assert answer.status == 101
        assert answer["upgrade"] == "websocket"
        assert answer["connection"].lower() == "upgrade"
        assert client.reader.exactly(13) == b"from the app!"


def test_the_handshake_reaches_the_app(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    with sidecar(app=app.address).client() as client:
        client.request(UPGRADE)
    (request,) = app.requests
    assert request["sec-websocket-key"] == "dGhlIHNhbXBsZSBub25jZQ=="
    assert request["upgrade"] == "websocket"
    assert request["connection"].lower() == "upgrade"


def test_a_refused_upgrade_is_an_ordinary_answer(sidecar: StartSidecar, serve: StartServer) -> None:
    def refuse(connection: Connection) -> None:
        while connection.read():
            connection.send(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")

    proxy = sidecar(app=serve(refuse).address)
    with pytest.raises(InvalidStatus) as refusal:
        talk(proxy)
    assert refusal.value.response.status_code == 403
    with proxy.client() as client:
        assert client.request(UPGRADE).body == b"no"
        assert client.get("/after").status == 403


@pytest.mark.parametrize("end", ["client", "app"])
def test_the_end_of_one_side_ends_the_other(end: str, sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(ACCEPT)
        if end == "client":
            connection.wait_for_close()

    app = serve(script)
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        assert client.request(UPGRADE).status == 101
        if end == "app":
            assert client.closed()
    assert app.connections[0].ended.wait(5)


def test_a_clean_close_is_a_clean_close(sidecar: StartSidecar) -> None:
    port = free_port()

    def handle(connection: ServerConnection) -> None:
        assert connection.recv() == "bye"
        connection.close(4000, "done")

    with serve_websocket(handle, "127.0.0.1", port) as server:
        _in_thread(server)
        with talk(sidecar(app=("127.0.0.1", port))) as socket:
            socket.send("bye")
            with pytest.raises(ConnectionClosedError) as closed:
                socket.recv(5)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "done")


def test_an_idle_tunnel_outlives_the_timeouts_of_requests(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    from tests.support.sidecar import route

    policies = {"timeout": {"request": "200ms", "idle": "200ms"}}
    proxy = sidecar(route("all", policies=policies), app=uvicorn_app)
    with talk(proxy) as socket:
        socket.send("a")
        assert socket.recv(5) == "a"
        with pytest.raises(TimeoutError):
            socket.recv(0.7)
        socket.send("b")
        assert socket.recv(5) == "b"


def _in_thread(server: WebSocketServer) -> None:
    import threading

    threading.Thread(target=server.serve_forever, daemon=True).start()
