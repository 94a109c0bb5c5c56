"""A connection ends in two steps: nothing that was on its way is lost, and nothing new is kept."""

import signal
import time
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient
from tests.support.net import Address, wait_for
from tests.support.server import Server
from tests.wire.h2_peer import END_STREAM, GET, GOAWAY, Fields, frame


def slow(milliseconds: int) -> Fields:
    return [*GET[:3], (b":path", b"/slow/%d" % milliseconds)]


def test_sigterm_says_goodbye_twice_and_loses_nothing(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app, drain={"goaway": "1s", "grace": "10s"})
    with RawClient(proxy.inbound) as client:
        assert client.get("/slow/1") == "200"
        before = client.request(slow(2500))
        time.sleep(0.1)
        proxy.process.kill(signal.SIGTERM)
        reader = client.until(lambda reader: reader.goaways)
        assert reader.goaways == [(2**31 - 1, 0, b"")]
        # What crossed the first goodbye is served.
        crossed = client.request(slow(1))
        assert client.answer(crossed)[":status"] == "200"
        client.until(lambda reader: len(reader.goaways) == 2)
        assert client.reader.goaways[1] == (crossed, 0, b"")
        # What comes after the second is not, and may be sent elsewhere.
        late = client.request(slow(1))
        client.until(lambda reader: late in reader.resets)
        assert client.reader.resets[late] == 7
        assert client.answer(before)[":status"] == "200"
        client.until(lambda reader: False)
        assert client.closed
    assert proxy.process.popen.wait(10) == 0
    assert '"cut":0' in proxy.process.stderr.replace(" ", "")


def test_an_idle_connection_ends_when_its_time_to_leave_has_passed(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app, drain={"goaway": "500ms", "grace": "10s"})
    with RawClient(proxy.inbound) as client:
        assert client.get("/slow/1") == "200"
        proxy.process.kill(signal.SIGTERM)
        client.until(lambda reader: False)
        assert [last for last, _, _ in client.reader.goaways] == [2**31 - 1, 1]
    assert proxy.process.popen.wait(10) == 0


def test_connections_that_come_while_draining_are_served_and_told(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app, drain={"goaway": "1s", "grace": "10s"})
    with RawClient(proxy.inbound) as first:
        stream = first.request(slow(1500))
        time.sleep(0.1)
        proxy.process.kill(signal.SIGTERM)
        first.until(lambda reader: reader.goaways)
        with RawClient(proxy.inbound) as second:
            assert second.get("/slow/1") == "200"
            assert second.reader.goaways == [(2**31 - 1, 0, b"")]
        assert first.answer(stream)[":status"] == "200"


def test_a_connection_ends_gracefully_at_its_age(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app, timeouts={"connectionAge": "1s"}, drain={"goaway": "500ms"})
    with RawClient(proxy.inbound) as client:
        stream = client.request(slow(3000))
        client.until(lambda reader: reader.goaways)
        assert client.reader.goaways[0] == (2**31 - 1, 0, b"")
        assert client.answer(stream)[":status"] == "200"
        client.until(lambda reader: False)
        assert client.closed
    with RawClient(proxy.inbound) as client:
        assert client.get("/slow/1") == "200"


def test_a_client_that_says_goodbye_gets_its_answers(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app)
    with RawClient(proxy.inbound) as client:
        stream = client.request(slow(300))
        client.send(frame(GOAWAY, 0, 0, b"\0" * 8))
        assert client.answer(stream)[":status"] == "200"
        client.until(lambda reader: False)
        assert client.closed


def test_an_idle_connection_is_closed_in_time(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app, timeouts={"connectionIdle": "1s", "header": "1s"})
    with RawClient(proxy.inbound) as client:
        assert client.get("/slow/1") == "200"
        client.until(lambda reader: False)
        assert client.reader.goaway == (1, 0, b"")


def test_a_second_signal_cuts_what_is_left(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app)
    with RawClient(proxy.inbound) as client:
        client.request(slow(20_000))
        time.sleep(0.2)
        proxy.process.kill(signal.SIGTERM)
        client.until(lambda reader: reader.goaways)
        proxy.process.kill(signal.SIGTERM)
        client.until(lambda reader: False)
    assert proxy.process.popen.wait(10) == 0


def test_an_answer_that_is_cut_is_not_laid_to_its_client(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Any) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello")
        connection.wait_for_close()

    proxy = sidecar(app=serve(script).address, drain={"grace": "1s"})
    with RawClient(proxy.inbound) as client:
        stream = client.request()
        client.until(lambda reader: reader.bodies.get(stream))
        proxy.process.kill(signal.SIGTERM)
        client.until(lambda reader: stream in reader.resets)
    assert proxy.process.popen.wait(10) == 0
    (line,) = proxy.log_lines()
    assert (line["status"], line["code"], line["flags"]) == (200, "draining", "DR")


@pytest.mark.parametrize("end", [False, True])
def test_a_client_that_vanishes_ends_its_requests(end: bool, sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Any) -> None:
        connection.read_head()
        connection.wait_for_close()

    app: Server = serve(script)
    proxy = sidecar(app=app.address)
    with RawClient(proxy.inbound) as client:
        for _ in range(10):
            client.request(GET, end)
        wait_for(lambda: len(app.connections) == 10)
    wait_for(lambda: all(connection.ended.is_set() for connection in app.connections))
    assert proxy.metrics()("l7proxy_downstream_connections", listener="inbound") == 0
    assert END_STREAM
