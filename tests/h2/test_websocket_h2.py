"""WebSockets over HTTP/2 (RFC 8441) on either side: the bytes of the tunnel are the ends' business."""

import os
from base64 import b64encode
from hashlib import sha1
from typing import Any

import pytest
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection
from websockets.sync.server import serve as serve_websocket

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient, RawServer, wide_open
from tests.support.net import Address, free_port, wait_for
from tests.support.server import Connection
from tests.support.sidecar import route, upstream
from tests.wire.h2_peer import Fields, data, headers, rst_stream

CONNECT: Fields = [
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    (b":scheme", b"http"),
    (b":authority", b"test"),
    (b":path", b"/ws"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-protocol", b"chat"),
    (b"origin", b"http://test"),
]
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame_of(payload: bytes, opcode: int = 2, mask: bool = True) -> bytes:
    """One WebSocket frame (RFC 6455 5.2)."""
    size = len(payload)
    head = bytes((0x80 | opcode,))
    flag = 0x80 if mask else 0
    if size < 126:
        head += bytes((flag | size,))
    elif size < 65_536:
        head += bytes((flag | 126,)) + size.to_bytes(2, "big")
    else:
        head += bytes((flag | 127,)) + size.to_bytes(8, "big")
    if not mask:
        return head + payload
    key = os.urandom(4)
    return head + key + bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))


@pytest.fixture
def websocket_app() -> Any:
    """The address of the `websockets` package's server, which echoes and speaks HTTP/1.1."""
    import threading

    port = free_port()

    def echo(socket: ServerConnection) -> None:
        for message in socket:
            socket.send(message)

    server = serve_websocket(echo, "127.0.0.1", port, subprotocols=["chat"], compression=None, max_size=None)  # type: ignore[list-item]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield ("127.0.0.1", port)
    server.shutdown()
    thread.join(10)


def test_a_client_of_http_2_talks_to_a_server_of_http_1(sidecar: StartSidecar, websocket_app: Address) -> None:
    proxy = sidecar(app=websocket_app)
    with RawClient(proxy.inbound, wide_open()) as client:
        client.until(lambda reader: reader.settings)
        assert client.reader.settings[8] == 1, "the server says that it takes extended CONNECT"
        stream = client.request(CONNECT, end=False)
        client.until(lambda reader: stream in reader.heads)
        (head,) = client.reader.heads[stream]
        assert head[":status"] == "200"
        assert head["sec-websocket-protocol"] == "chat"
        assert not {"upgrade", "connection", "sec-websocket-accept"} & head.keys()
        expected = b""
        for payload in (b"hello", b"", b"x" * 70_000):
            client.send(b"".join(data(stream, part) for part in parts(frame_of(payload))))
            expected += frame_of(payload, mask=False)
            client.until(lambda reader, expected=expected: len(reader.bodies.get(stream, b"")) >= len(expected))
        assert client.reader.bodies[stream] == expected
        client.send(data(stream, frame_of(b"\x03\xe8", opcode=8)))
        client.until(lambda reader: stream in reader.ended)
    opened, closed = proxy.log_lines(2)
    assert (opened["event"], closed["event"]) == ("tunnel_open", "tunnel_end")
    assert closed["status"] == 101


def parts(raw: bytes) -> list[bytes]:
    return [raw[at : at + 16_000] for at in range(0, len(raw), 16_000)]


def test_two_tunnels_and_requests_share_one_connection(sidecar: StartSidecar, websocket_app: Address) -> None:
    proxy = sidecar(app=websocket_app)
    with RawClient(proxy.inbound) as client:
        streams = [client.request(CONNECT, end=False) for _ in range(2)]
        for number, stream in enumerate(streams):
            client.send(data(stream, frame_of(b"%d" % number)))
        for number, stream in enumerate(streams):
            client.until(lambda reader, stream=stream: reader.bodies.get(stream))
            assert client.reader.bodies[stream] == frame_of(b"%d" % number, mask=False)
        client.send(rst_stream(streams[0]))
        client.send(data(streams[1], frame_of(b"still here")))
        client.until(lambda reader: len(reader.bodies[streams[1]]) > 3)
        assert client.reader.bodies[streams[1]].endswith(b"still here")


def test_a_client_of_http_1_talks_to_a_server_of_http_2(sidecar: StartSidecar, h2_app: Address) -> None:
    proxy = sidecar(upstream("u", h2_app, protocol="http2"), route("u", upstream="u"))
    with connect(f"ws://127.0.0.1:{proxy.inbound[1]}/ws", compression=None, max_size=None, open_timeout=5) as socket:
        for message in ("hello", b"\0\1\2", "x" * 100_000, ""):
            socket.send(message)
            assert socket.recv(5) == message
    assert {line["status"] for line in proxy.log_lines(2)} == {101}


def test_a_client_of_http_2_talks_to_a_server_of_http_2(sidecar: StartSidecar, h2_app: Address) -> None:
    proxy = sidecar(upstream("u", h2_app, protocol="http2"), route("u", upstream="u"))
    with RawClient(proxy.inbound) as client:
        stream = client.request(CONNECT, end=False)
        client.until(lambda reader: stream in reader.heads)
        client.send(data(stream, frame_of(b"hello")))
        client.until(lambda reader: len(reader.bodies.get(stream, b"")) >= 7)
        assert client.reader.bodies[stream] == frame_of(b"hello", mask=False)


def test_the_handshake_reaches_a_server_of_http_2_as_rfc_8441_has_it(sidecar: StartSidecar, serve: StartServer) -> None:
    seen: list[dict[str, str]] = []

    def script(connection: Connection) -> None:
        server = RawServer(connection, (8, 1))
        server.until(lambda reader: reader.heads)
        (stream,) = server.reader.heads
        seen.extend(server.reader.heads[stream])
        server.send(headers(stream, [(b":status", b"200"), (b"sec-websocket-protocol", b"chat")], end=False))
        server.send(data(stream, b"first bytes"))
        server.until(lambda reader: reader.bodies.get(stream) == b"from the client")
        server.send(data(stream, b"", end=True))
        server.rest()

    proxy = sidecar(upstream("u", serve(script).address, protocol="http2"), route("u", upstream="u"))
    key = b"dGhlIHNhbXBsZSBub25jZQ=="
    with proxy.client() as client:
        client.send(
            b"GET /ws HTTP/1.1\r\nhost: test\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: " + key + b"\r\n\r\nfrom the client"
        )
        answer = client.read()
        assert answer.status == 101
        assert answer["upgrade"] == "websocket"
        assert answer["sec-websocket-accept"] == b64encode(sha1(key + GUID).digest()).decode()
        assert answer["sec-websocket-protocol"] == "chat"
        assert client.reader.exactly(11) == b"first bytes"
        assert client.reader.rest() == b""
    (head,) = seen
    assert (head[":method"], head[":protocol"], head[":path"]) == ("CONNECT", "websocket", "/ws")
    assert head[":scheme"] == "http"
    assert not {"sec-websocket-key", "upgrade", "connection", "host"} & head.keys()


@pytest.mark.parametrize("http2", [False, True])
def test_a_refused_handshake_is_an_ordinary_answer(http2: bool, sidecar: StartSidecar, serve: StartServer) -> None:
    def h2_script(connection: Connection) -> None:
        server = RawServer(connection, (8, 1))
        server.until(lambda reader: reader.heads)
        server.answer(1, b"no", b"403")
        server.rest()

    def h1_script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")
        connection.wait_for_close()

    app = serve(h2_script if http2 else h1_script)
    proxy = sidecar(upstream("u", app.address, protocol="http2" if http2 else "http1"), route("u", upstream="u"))
    with RawClient(proxy.inbound) as client:
        stream = client.request(CONNECT, end=False)
        assert client.answer(stream)[":status"] == "403"
        assert client.reader.bodies[stream] == b"no"


def test_an_answer_that_ignores_the_upgrade_is_no_tunnel(sidecar: StartSidecar, serve: StartServer) -> None:
    """An ordinary 200 of HTTP/1.1 would open the tunnel of HTTP/2."""
    proxy = sidecar(app=serve().address)
    with RawClient(proxy.inbound) as client:
        answer = client.answer(client.request(CONNECT, end=False))
        assert (answer[":status"], answer["x-l7proxy-error"]) == ("502", "upstream_protocol")


def test_an_upstream_without_extended_connect_is_a_502(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        RawServer(connection).rest()

    proxy = sidecar(upstream("u", serve(script).address, protocol="http2"), route("u", upstream="u"))
    with RawClient(proxy.inbound) as client:
        answer = client.answer(client.request(CONNECT, end=False))
        assert (answer[":status"], answer["x-l7proxy-error"]) == ("502", "upstream_protocol")


def test_policies_apply_to_the_handshake(sidecar: StartSidecar, websocket_app: Address) -> None:
    proxy = sidecar(route("r", policies={"authorization": {"deny": [{"paths": ["/ws"]}]}}), app=websocket_app)
    with RawClient(proxy.inbound) as client:
        answer = client.answer(client.request(CONNECT, end=False))
        assert (answer[":status"], answer["x-l7proxy-error"]) == ("403", "denied")


@pytest.mark.parametrize("who", ["client", "upstream"])
def test_either_end_may_end_the_tunnel(who: str, sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi")
        if who == "upstream":
            connection.close()
        else:
            connection.wait_for_close()

    app = serve(script)
    proxy = sidecar(app=app.address)
    with RawClient(proxy.inbound) as client:
        stream = client.request(CONNECT, end=False)
        client.until(lambda reader: reader.bodies.get(stream) == b"hi")
        if who == "client":
            client.send(data(stream, b"", end=True))
            wait_for(lambda: app.connections[0].ended.is_set())
        else:
            client.until(lambda reader: stream in reader.ended)
    assert len(proxy.log_lines(2)) == 2


def test_an_idle_tunnel_is_cut_in_time(sidecar: StartSidecar, websocket_app: Address) -> None:
    proxy = sidecar(app=websocket_app, timeouts={"streamIdle": "1s"})
    with RawClient(proxy.inbound) as client:
        stream = client.request(CONNECT, end=False)
        client.until(lambda reader: stream in reader.resets)
        assert client.reader.resets[stream] == 8
