"""Trailer sections: what passes in them, in either protocol, and what may not come in one."""

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient, RawServer
from tests.support.server import Connection
from tests.support.sidecar import Sidecar, route, upstream
from tests.wire.h2_peer import POST as H2_POST
from tests.wire.h2_peer import Fields, data, headers

POST = b"POST / HTTP/1.1\r\nhost: test\r\n"


def send_chunked(proxy: Sidecar, *trailers: bytes, body: bytes = b"3\r\nabc\r\n") -> None:
    with proxy.client() as client:
        section = b"".join(trailer + b"\r\n" for trailer in trailers)
        client.send(POST + b"transfer-encoding: chunked\r\n\r\n" + body + b"0\r\n" + section + b"\r\n")
        assert client.read().status == 200


def send_h2(proxy: Sidecar, trailers: Fields) -> None:
    with RawClient(proxy.inbound) as client:
        stream = client.request(H2_POST, end=False)
        client.send(data(stream, b"abc") + headers(stream, trailers))
        assert client.answer(stream)[":status"] == "200"


def test_trailers_pass_both_ways(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 2\r\nX-B: c\r\n\r\n"
        )

    app = serve(script)
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        client.send(POST + b"transfer-encoding: chunked\r\nte: trailers\r\n\r\n3\r\nabc\r\n0\r\nX-Check: 3\r\n\r\n")
        answer = client.read()
    assert answer.body == b"ok"
    assert answer.trailers == [(b"x-sum", b"2"), (b"x-b", b"c")]
    assert app.requests[0].trailers == [(b"x-check", b"3")]


@pytest.mark.parametrize(
    "trailer", [b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Host: x", b"Authorization: x"]
)
def test_a_trailer_cannot_carry_what_shapes_the_message(
    trailer: bytes, sidecar: StartSidecar, serve: StartServer
) -> None:
    app = serve()
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        client.send(POST + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + trailer + b"\r\nX-Fine: 1\r\n\r\n")
        assert client.read().status == 200
    assert app.requests[0].trailers == [(b"x-fine", b"1")]


@pytest.mark.parametrize(
    "name",
    [
        *("x-forwarded-for", "x-forwarded-proto", "x-forwarded-client-cert", "x-l7proxy-peer", "x-envoy-peer"),
        *("x-request-id", "X_Forwarded_Host", "forwarded", "keep-alive", "proxy-connection", "http2-settings"),
    ],
)
def test_a_trailer_cannot_say_who_the_client_is_nor_speak_of_the_connection(
    name: str, sidecar: StartSidecar, serve: StartServer
) -> None:
    app = serve()
    proxy = sidecar(app=app.address)
    send_chunked(proxy, name.encode() + b": evil", b"x-fine: 1")
    assert app.requests[-1].trailers == [(b"x-fine", b"1")]
    if name not in ("keep-alive", "proxy-connection"):
        send_h2(proxy, [(name.lower().encode(), b"evil"), (b"x-fine", b"1")])
        assert app.requests[-1].trailers == [(b"x-fine", b"1")]


def test_trailers_follow_an_empty_body_too(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        while True:
            connection.read()
            connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-sum: 0\r\n\r\n")

    app = serve(script)
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        client.send(POST + b"transfer-encoding: chunked\r\n\r\n0\r\nx-check: 0\r\n\r\n")
        answer = client.read()
        assert (answer.body, answer.trailers) == (b"", [(b"x-sum", b"0")])
    assert app.requests[0].trailers == [(b"x-check", b"0")]
    with RawClient(proxy.inbound) as http2:
        stream = http2.request()
        http2.answer(stream)
        assert http2.reader.heads[stream][-1] == {"x-sum": "0"}


def test_trailers_follow_a_body_of_known_length_in_http_2(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        while True:
            stream = server.request()
            server.send(headers(stream, [(b":status", b"200"), (b"content-length", b"2")], end=False))
            server.send(data(stream, b"ok") + headers(stream, [(b"x-sum", b"2")]))

    proxy = sidecar(upstream("u", serve(script).address, protocol="http2"), route("u", upstream="u"))
    with RawClient(proxy.inbound) as http2:
        stream = http2.request()
        http2.answer(stream)
        assert http2.reader.bodies[stream] == b"ok"
        assert http2.reader.heads[stream][-1] == {"x-sum": "2"}
    with proxy.client() as client:
        answer = client.get()
        assert (answer.body, answer["content-length"], answer.trailers) == (b"ok", "2", [])
        assert client.get().status == 200


def test_trailers_of_an_answer_never_speak_of_its_connection(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        while True:
            connection.read()
            connection.send(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"
                b"0\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nX-Request-Id: 1\r\n\r\n"
            )

    proxy = sidecar(app=serve(script).address)
    with RawClient(proxy.inbound) as client:
        stream = client.request()
        client.answer(stream)
        assert client.reader.heads[stream][-1] == {"x-request-id": "1"}


@pytest.mark.parametrize(("count", "reset"), [(100, False), (101, True)])
def test_trailers_count_as_headers_do(count: int, reset: bool, sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(app=app.address)
    trailers = [(b"x-%d" % number, b"1") for number in range(count)]
    with RawClient(proxy.inbound) as client:
        stream = client.request(H2_POST, end=False)
        client.send(data(stream, b"abc") + headers(stream, trailers))
        client.until(lambda reader: stream in reader.ended or stream in reader.resets)
        assert (stream in client.reader.resets) == reset
    assert [len(request.trailers) for request in app.requests] == ([] if reset else [100])
