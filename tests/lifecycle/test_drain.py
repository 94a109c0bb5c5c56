"""SIGTERM: nobody loses a request, the end comes when nothing is left to do, and its last line tells all."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.client import Client
from tests.support.net import Address, accepts, wait_for
from tests.support.server import OK, Connection
from tests.support.sidecar import Sidecar

ROOT = str(Path(__file__).parents[2])
GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


def report(proxy: Sidecar, timeout: float = 10) -> dict[str, Any]:
    """Waits for the end; returns the last line of the log."""
    assert proxy.process.popen.wait(timeout) == 0
    lines = [json.loads(line) for line in proxy.process.stderr.splitlines()]
    assert lines[-1]["event"] == "drained"
    return {key: lines[-1][key] for key in lines[-1] if key not in ("time", "level", "event")}


def ready(proxy: Sidecar) -> int:
    with Client(proxy.admin) as client:
        return client.get("/ready", "localhost").status


def hold(seconds: float) -> Any:
    def script(connection: Connection) -> None:
        while connection.read():
            time.sleep(seconds)
            connection.send(OK)

    return script


def test_what_is_under_way_is_finished_and_what_comes_is_served(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve(hold(0.5)).address)
    with proxy.client() as busy:
        busy.send(GET)
        wait_for(lambda: proxy.metrics()("l7proxy_requests") == 1)
        proxy.process.kill(signal.SIGTERM)
        wait_for(lambda: ready(proxy) == 503)
        with proxy.client() as late:
            answer = late.request(GET)
            assert (answer.status, answer["connection"]) == (200, "close")
            assert late.closed()
        answer = busy.read()
        assert (answer.status, answer["connection"]) == (200, "close")
    said = report(proxy)
    assert (said["finished"], said["cut"], said["why"], said["requests"]) == (2, 0, "", [])


def test_what_outlives_the_grace_period_is_answered_and_named(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve(hold(30)).address, drain={"grace": "1s"})
    with proxy.client() as unanswered, proxy.client() as idle:
        assert idle.is_open()
        unanswered.send(b"GET /slow?secret=1 HTTP/1.1\r\nhost: test\r\n\r\n")
        wait_for(lambda: proxy.metrics()("l7proxy_requests") == 1)
        proxy.process.kill(signal.SIGTERM)
        answer = unanswered.read()
        assert (answer.status, answer["x-l7proxy-error"], answer["connection"]) == (503, "draining", "close")
    said = report(proxy)
    assert (said["cut"], said["why"]) == (1, "the grace period was over")
    assert said["requests"] == ["inbound GET test/slow"]
    (line,) = proxy.log_lines()
    assert (line["status"], line["code"], line["flags"]) == (503, "draining", "DR")


def test_an_answer_that_is_cut_is_not_laid_to_its_client(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello")
        connection.wait_for_close()

    proxy = sidecar(app=serve(script).address, drain={"grace": "1s"})
    with proxy.client() as client:
        client.send(GET)
        client.reader.until(b"hello")
        proxy.process.kill(signal.SIGTERM)
        assert report(proxy)["cut"] == 1
    (line,) = proxy.log_lines()
    assert (line["status"], line["code"], line["flags"]) == (200, "draining", "DR")


def test_a_client_that_was_not_told_may_use_its_connection_once_more(sidecar: StartSidecar, serve: StartServer) -> None:
    """The head of an answer left before the drain began, and its end after: nothing in it says `connection: close`."""
    head_is_out, go_on = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
        head_is_out.set()
        go_on.wait(20)
        connection.send(b"ok")
        while connection.read():
            connection.send(OK)

    proxy = sidecar(app=serve(script).address, drain={"goaway": "60s"})
    with proxy.client() as client:
        client.send(GET)
        assert head_is_out.wait(10)
        wait_for(lambda: client.reader.more())
        proxy.process.kill(signal.SIGTERM)
        wait_for(lambda: ready(proxy) == 503)
        go_on.set()
        answer = client.read()
        assert (answer.body, answer.get("connection")) == (b"ok", None)
        answer = client.request(GET)
        assert (answer.status, answer["connection"]) == (200, "close")
        assert client.closed()
    assert report(proxy)["cut"] == 0


def quit(proxy: Sidecar) -> str:
    """Runs `l7proxy admin --post /quit` as a job that is done would."""
    command = [
        sys.executable,
        "-m",
        "l7proxy",
        "admin",
        "--at",
        f"{proxy.admin[0]}:{proxy.admin[1]}",
        "--post",
        "/quit",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env={"PYTHONPATH": ROOT})
    return done.stdout


@pytest.mark.parametrize("workers", [1, 2])
def test_quit_finishes_what_is_under_way_and_waits_for_nobody(
    workers: int, sidecar: StartSidecar, serve: StartServer
) -> None:
    proxy = sidecar(app=serve(hold(1)).address, drain={"quiet": "60s"}, workers=workers)
    with proxy.client() as busy, proxy.client() as idle:
        assert idle.request(GET).status == 200
        busy.send(GET)
        wait_for(lambda: proxy.metrics()("l7proxy_requests") == 1)
        assert '"quitting": true' in quit(proxy)
        assert busy.read().status == 200
    said = report(proxy)
    assert (said["finished"], said["cut"], said["why"]) == (1, 0, "")


def test_quit_after_sigterm_is_no_second_signal(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve(hold(1)).address)
    with proxy.client() as busy:
        busy.send(GET)
        wait_for(lambda: proxy.metrics()("l7proxy_requests") == 1)
        proxy.process.kill(signal.SIGTERM)
        wait_for(lambda: ready(proxy) == 503)
        quit(proxy)
        assert busy.read().status == 200
    assert report(proxy)["cut"] == 0


def test_a_second_signal_ends_at_once(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve(hold(30)).address)
    with proxy.client() as client:
        client.send(GET)
        wait_for(lambda: proxy.metrics()("l7proxy_requests") == 1)
        proxy.process.kill(signal.SIGTERM)
        wait_for(lambda: ready(proxy) == 503)
        proxy.process.kill(signal.SIGTERM)
        assert client.read()["x-l7proxy-error"] == "draining"
    assert report(proxy, 5)["why"] == "a second signal"


def test_a_connection_without_a_request_may_send_one_for_a_while(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address, drain={"goaway": "1s"})
    with proxy.client() as one, proxy.client() as other:
        assert {one.request(GET).status, other.request(GET).status} == {200}
        proxy.process.kill(signal.SIGTERM)
        wait_for(lambda: ready(proxy) == 503)
        answer = one.request(GET)
        assert (answer.status, answer["connection"]) == (200, "close")
        assert other.closed()
    assert report(proxy)["cut"] == 0


def test_new_clients_are_waited_for(sidecar: StartSidecar, serve: StartServer) -> None:
    """Who routes to us hears of the end later than we do: with no connection open the end still takes its time."""
    proxy = sidecar(app=serve().address, outbound=None, drain={"quiet": "1s"})
    proxy.process.kill(signal.SIGTERM)
    wait_for(lambda: ready(proxy) == 503)
    for _ in range(4):
        time.sleep(0.4)
        assert proxy.get().status == 200
    said = report(proxy)
    assert (said["finished"], said["cut"]) == (4, 0)


def test_the_application_is_served_as_long_as_it_lives(sidecar: StartSidecar, serve: StartServer) -> None:
    app, other = serve(), serve()
    proxy = sidecar(app=app.address, outbound={"policy": "ALLOW_ANY"}, drain={"quiet": "100ms"})
    proxy.process.kill(signal.SIGTERM)
    wait_for(lambda: ready(proxy) == 503)
    for _ in range(3):
        time.sleep(0.5)
        with Client(proxy.outbound) as client:
            assert client.get("/", f"127.0.0.1:{other.address[1]}").status == 200
    app.close()
    assert report(proxy)["finished"] == 3


def test_ctrl_c_waits_for_requests_alone(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve(hold(0.5)).address, drain={"quiet": "30s", "goaway": "30s", "grace": "30s"})
    with proxy.client() as idle, proxy.client() as busy:
        assert idle.is_open()
        busy.send(GET)
        wait_for(lambda: proxy.metrics()("l7proxy_requests") == 1)
        proxy.process.kill(signal.SIGINT)
        assert busy.read().status == 200
        assert idle.closed()
    assert report(proxy)["cut"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_address_is_free_when_the_process_is_gone(
    number: signal.Signals, sidecar: StartSidecar, uvicorn_app: Address
) -> None:
    proxy = sidecar(app=uvicorn_app)
    proxy.process.kill(number)
    assert report(proxy)["connections_closed"] == 0
    assert not accepts(proxy.inbound)
