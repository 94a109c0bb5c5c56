"""gRPC-Web in the browser's framing, to a real gRPC service."""

from base64 import b64decode, b64encode
from collections.abc import Iterator

import pytest

from tests.conftest import StartSidecar
from tests.h2.grpc_service import GrpcServer
from tests.h2.raw import RawClient
from tests.support.message import Message
from tests.support.net import free_address, wait_for
from tests.support.sidecar import Sidecar, route, upstream
from tests.wire.h2_peer import data


@pytest.fixture(scope="module")
def service() -> Iterator[GrpcServer]:
    server = GrpcServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def proxy(shared_sidecar: StartSidecar, service: GrpcServer) -> Sidecar:
    policies = {"grpcWeb": {}}
    return shared_sidecar(
        upstream("echo", service.address, protocol="http2"),
        upstream("away", free_address(), protocol="http2"),
        route("away", hosts=["away.test"], upstream="away", policies=policies),
        route("echo", upstream="echo", policies=policies),
    )


def message(payload: bytes) -> bytes:
    return b"\0" + len(payload).to_bytes(4, "big") + payload


def call(
    proxy: Sidecar, method: str, body: bytes, text: bool = False, host: str = "test", chunks: int = 0
) -> tuple[Message, list[bytes], dict[str, str]]:
    """Makes one call as a browser does; returns the answer, its messages and its trailers."""
    kind = "application/grpc-web-text+proto" if text else "application/grpc-web+proto"
    sent = b64encode(body) if text else body
    with proxy.client() as client:
        head = f"POST /test.Echo/{method} HTTP/1.1\r\nhost: {host}\r\ncontent-type: {kind}\r\nx-grpc-web: 1\r\n"
        if chunks:
            client.send(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
            for at in range(0, len(sent), chunks):
                part = sent[at : at + chunks]
                client.send(b"%x\r\n%b\r\n" % (len(part), part))
            client.send(b"0\r\n\r\n")
        else:
            client.send(f"{head}content-length: {len(sent)}\r\n\r\n".encode() + sent)
        answer = client.read("POST")
    raw = answer.body
    if text:
        # Every flush may be padded by itself.
        raw = b"".join(b64decode(raw[at : at + 4]) for at in range(0, len(raw), 4))
    messages, trailers = [], {}
    while raw:
        flag, size = raw[0], int.from_bytes(raw[1:5], "big")
        if flag & 0x80:
            lines = raw[5 : 5 + size].decode().split("\r\n")
            trailers = dict(line.split(": ", 1) for line in lines if line)
        else:
            messages.append(raw[5 : 5 + size])
        raw = raw[5 + size :]
    return answer, messages, trailers


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("chunks", [0, 7])
def test_unary_calls_pass(text: bool, chunks: int, proxy: Sidecar) -> None:
    answer, messages, trailers = call(proxy, "Unary", message(b"hello"), text, chunks=chunks)
    assert answer.status == 200
    assert answer["content-type"] == ("application/grpc-web-text" if text else "application/grpc-web")
    assert messages == [b"hello"]
    assert trailers["grpc-status"] == "0"
    assert trailers["x-last"] == "2"
    assert answer["x-first"] == "1"


@pytest.mark.parametrize("text", [False, True])
def test_server_streams_pass(text: bool, proxy: Sidecar) -> None:
    _, messages, trailers = call(proxy, "Numbers", message(b"50"), text)
    assert messages == [b"%d" % number for number in range(50)]
    assert trailers["grpc-status"] == "0"


def test_a_large_message_passes(proxy: Sidecar) -> None:
    big = bytes(range(256)) * 4000
    for text in (False, True):
        _, messages, _ = call(proxy, "Unary", message(big), text)
        assert messages == [big]


def test_errors_carry_their_status(proxy: Sidecar) -> None:
    answer, messages, trailers = call(proxy, "Unary", message(b"fail"))
    assert messages == []
    status = trailers.get("grpc-status") or answer["grpc-status"]
    assert status == "9"
    answer, _, _ = call(proxy, "Unary", message(b"x"), host="away.test")
    assert answer.status == 200
    assert answer["grpc-status"] == "14"


def test_text_that_is_no_base64_is_refused(proxy: Sidecar) -> None:
    with proxy.client() as client:
        client.send(
            b"POST /test.Echo/Unary HTTP/1.1\r\nhost: test\r\ncontent-type: application/grpc-web-text\r\n"
            b"content-length: 8\r\n\r\n!!!!!!!!"
        )
        answer = client.read("POST")
    assert answer["grpc-status"] == "13"


def test_browsers_may_speak_http_2(proxy: Sidecar) -> None:
    with RawClient(proxy.inbound) as client:
        stream = client.request(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":authority", b"test"),
                (b":path", b"/test.Echo/Unary"),
                (b"content-type", b"application/grpc-web"),
            ],
            end=False,
        )
        client.send(data(stream, message(b"hi"), end=True))
        assert client.answer(stream)[":status"] == "200"
        assert client.reader.bodies[stream].startswith(message(b"hi"))
        assert b"grpc-status: 0\r\n" in client.reader.bodies[stream]


def test_the_status_is_counted_and_other_requests_pass_untouched(proxy: Sidecar) -> None:
    before = proxy.metrics()("l7proxy_grpc_web_calls_total", l7proxy_route="echo")
    call(proxy, "Unary", message(b"fail"))
    assert proxy.metrics()("l7proxy_grpc_web_calls_total", l7proxy_route="echo") == before + 1
    counted = "http_server_request_duration_seconds_count"
    wait_for(lambda: proxy.metrics()(counted, rpc_response_status_code="FAILED_PRECONDITION") >= 1)
    # The service speaks gRPC alone, and says so in its own words.
    assert proxy.get("/test.Echo/Unary").status != 200
