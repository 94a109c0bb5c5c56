"""Answers without a body in HTTP/2: clients take a stream for broken whose length and bytes disagree."""

import subprocess

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient, RawServer
from tests.support.server import Connection
from tests.support.sidecar import route, upstream
from tests.wire.h2_peer import GET, POST, Fields, headers


def changed(**values: bytes) -> Fields:
    return [(name, values.get(name[1:].decode(), value)) for name, value in GET]


@pytest.mark.needs("curl")
@pytest.mark.parametrize("length", [b"0", b"5"])
@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_a_204_with_a_length_passes_without_it(
    protocol: str, length: bytes, sidecar: StartSidecar, serve: StartServer
) -> None:
    def h1_script(connection: Connection) -> None:
        while connection.read():
            connection.send(b"HTTP/1.1 204 No Content\r\nx-a: 1\r\ncontent-length: %b\r\n\r\n" % length)

    def h2_script(connection: Connection) -> None:
        server = RawServer(connection)
        while True:
            server.send(headers(server.request(), [(b":status", b"204"), (b"x-a", b"1"), (b"content-length", b"0")]))

    app = serve(h2_script if protocol == "http2" else h1_script)
    proxy = sidecar(upstream("u", app.address, protocol=protocol), route("u", upstream="u"))
    with RawClient(proxy.inbound) as client:
        assert client.answer(client.request()) == {":status": "204", "x-a": "1"}
    command = ["curl", "-sS", "--http2-prior-knowledge", "-w", "%{http_code}", f"http://127.0.0.1:{proxy.inbound[1]}/"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (run.stdout, run.stderr) == ("204", "")


@pytest.mark.needs("curl")
@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        (changed(path=b"/" + b"x" * 9000), "414", "uri_too_long"),
        (changed(scheme=b"https"), "400", "bad_request"),
    ],
    ids=["414", "400"],
)
def test_a_refusal_of_head_has_no_body(
    fields: Fields, status: str, code: str, sidecar: StartSidecar, serve: StartServer
) -> None:
    proxy = sidecar(app=serve().address)
    with RawClient(proxy.inbound) as client:
        stream = client.request([(b":method", b"HEAD"), *fields[1:]])
        answer = client.answer(stream)
        assert (answer[":status"], answer["x-l7proxy-error"]) == (status, code)
        assert int(answer["content-length"]) > 0
        assert stream not in client.reader.bodies
        assert client.get() == "200"
    command = ["curl", "-sSI", "--http2-prior-knowledge", "-o", "-", "-w", "%{http_code}"]
    target = fields[3][1].decode()
    run = subprocess.run([*command, f"http://127.0.0.1:{proxy.inbound[1]}{target}"], capture_output=True, text=True)
    assert run.stderr == ""


def test_what_the_server_itself_answers_a_grpc_call_is_a_grpc_status(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve(Connection.wait_for_close).address, timeouts={"streamIdle": "1s"})
    call = [*POST, (b"content-type", b"application/grpc"), (b"te", b"trailers")]
    with RawClient(proxy.inbound) as client:
        late = client.request(call, end=False)
        long = client.request([*call[:3], (b":path", b"/" + b"x" * 9000), *call[4:]])
        answer = client.answer(long)
        assert (answer[":status"], answer["grpc-status"], answer["x-l7proxy-error"]) == ("200", "13", "uri_too_long")
        answer = client.answer(late)
        assert (answer[":status"], answer["grpc-status"], answer["x-l7proxy-error"]) == ("200", "4", "request_timeout")
    (line,) = [line for line in proxy.log_lines(2) if line["method"] == "POST"]
    assert (line["code"], line["grpc_status"]) == ("request_timeout", 4)
