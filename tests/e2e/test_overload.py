"""Too much of everything: what was there lives on, what is new waits or is told so, and nothing spins or grows."""

import contextlib
import os
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.client import Client
from tests.support.net import Address, wait_for
from tests.support.server import OK, Connection, Server
from tests.support.sidecar import route, upstream

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
MIB = 1 << 20


def test_without_descriptors_accepting_pauses_and_nothing_spins(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address)
    process = proxy.process
    with contextlib.ExitStack() as stack, proxy.client() as old:
        assert old.request(GET).status == 200
        limit = process.descriptors() + 40
        enough = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (limit, enough[1]))
        waiting = [stack.enter_context(proxy.client()) for _ in range(60)]
        for client in waiting:
            client.send(GET)
        # It lives: answered by the app, or told at once that there is no room for a connection to it.
        assert old.request(GET).status in (200, 503)
        # Operators are answered all the time: the last descriptors are theirs.
        wait_for(lambda: proxy.metrics()("l7proxy_accept_paused_total", listener="inbound") > 0)
        before = process.cpu
        time.sleep(1)
        assert process.cpu - before < 0.5
        assert old.request(GET).status in (200, 503)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, enough)
        statuses = [client.read().status for client in waiting]
        # Who was let in when no descriptor was left for a connection to the app was told so at once.
        assert set(statuses) <= {200, 503}
        assert statuses.count(200) > 30
        assert proxy.get().status == 200
    assert proxy.metrics()("l7proxy_accept_paused_total", listener="inbound") > 0


def test_idle_connections_cost_little(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(400)]
        assert clients[0].request(GET).status == 200
        before = proxy.process.rss
        more = [stack.enter_context(proxy.client()) for _ in range(400)]
        assert all(client.request(GET).status == 200 for client in (*clients[1:], *more))
        assert proxy.process.rss - before < 800 * 16 * 1024
        assert proxy.metrics()("l7proxy_downstream_connections", listener="inbound") == 800
    wait_for(lambda: proxy.metrics()("l7proxy_downstream_connections", listener="inbound") == 0)


def test_readers_that_stop_cost_a_bounded_buffer_each(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app)
    proxy.get("/bytes/1000000")
    before = proxy.process.rss
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            client = stack.enter_context(proxy.client(receive_buffer=4096))
            client.send(b"GET /bytes/100000000 HTTP/1.1\r\nhost: test\r\n\r\n")
        time.sleep(1)
        assert proxy.process.rss - before < 30 * 2 * MIB
        assert proxy.get("/bytes/10").status == 200


def test_a_stuck_pipe_for_the_log_holds_nobody_up(sidecar: StartSidecar, serve: StartServer, tmp_path: Path) -> None:
    pipe = tmp_path / "log.pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        proxy = sidecar(app=serve().address, accessLog={"path": str(pipe)})
        with proxy.client() as client:
            assert {client.request(GET).status for _ in range(1000)} == {200}
    finally:
        os.close(reader)


def test_a_full_disk_for_the_log_holds_nobody_up(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address, accessLog={"path": "/dev/full"})
    with proxy.client() as client:
        assert {client.request(GET).status for _ in range(500)} == {200}


def test_a_process_that_was_stopped_goes_on(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address)
    with proxy.client() as old, proxy.client() as client:
        assert old.request(GET).status == 200
        proxy.process.kill(signal.SIGSTOP)
        old.send(GET)
        client.send(GET[:10])
        time.sleep(0.7)
        proxy.process.kill(signal.SIGCONT)
        client.send(GET[10:])
        assert (old.read().status, client.read().status) == (200, 200)


@pytest.mark.parametrize("gap", [0.0, 0.1])
def test_an_app_that_restarts_all_the_time(gap: float, sidecar: StartSidecar) -> None:
    """Each client gets an answer to each request: the app's, or one that says why there is none."""
    apps = [Server()]
    address = apps[0].address
    proxy = sidecar(app=address)
    stop = threading.Event()

    def restart() -> None:
        while not stop.wait(0.05):
            apps[-1].close()
            time.sleep(gap)
            apps.append(Server(address=address))

    thread = threading.Thread(target=restart)
    thread.start()
    seen: dict[tuple[int, str], int] = {}
    try:
        with proxy.client() as client:
            for _ in range(300):
                answer = client.request(GET)
                key = (answer.status, answer.get("x-l7proxy-error") or answer.body.decode())
                seen[key] = seen.get(key, 0) + 1
                time.sleep(0.003)
    finally:
        stop.set()
        thread.join()
        apps[-1].close()
    assert seen.keys() <= {(200, "ok"), (503, "upstream_connect"), (502, "upstream_reset")}, seen
    assert seen[200, "ok"] > 50


def test_retries_hide_a_rolling_restart(sidecar: StartSidecar, serve: StartServer) -> None:
    """Two instances, one of which is away at any time: nobody notices."""
    apps = [serve(), serve()]
    ends = [app.address for app in apps]
    policies = {"retry": {"on": ["connect-failure", "reset"], "attempts": 3}}
    proxy = sidecar(upstream("pool", *ends), route("all", upstream="pool", policies=policies))
    statuses = set()
    with proxy.client() as client:
        for turn in range(6):
            apps[turn % 2].close()
            for _ in range(30):
                statuses.add(client.request(GET).status)
            apps[turn % 2] = serve(address=ends[turn % 2])
    assert statuses == {200}


def test_garbage_from_many_sides_leaves_the_others_alone(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address)
    with proxy.client() as honest:
        for number in range(200):
            with contextlib.suppress(ConnectionError), proxy.client() as client:
                client.send(os.urandom(64 + number))
                if number % 2:
                    client.reset()
            assert honest.request(GET).status == 200


def test_uploads_that_nobody_reads_are_bounded(sidecar: StartSidecar, serve: StartServer) -> None:
    def never(connection: Connection) -> None:
        connection.read_head()
        done.wait(20)

    done = threading.Event()
    proxy = sidecar(app=serve(never).address)
    proxy.process.wait_until(lambda: True)
    before = proxy.process.rss
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(Client(proxy.inbound, timeout=0.2))
            client.send(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100000000\r\n\r\n")
            with contextlib.suppress(TimeoutError):
                for _ in range(100):
                    client.send(b"x" * MIB)
        assert proxy.process.rss - before < 20 * 2 * MIB
        done.set()


@pytest.mark.needs("wrk")
def test_a_thousand_connections_at_full_load_are_all_served(sidecar: StartSidecar) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2048:
        pytest.skip("the machine allows too few descriptors")
    proxy = sidecar(route("all", directResponse={"status": 200, "body": OK.decode()}))
    command = f"ulimit -n 2048; exec wrk -t1 -c1000 -d3s --timeout 10s http://127.0.0.1:{proxy.inbound[1]}/"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert "Non-2xx" not in done.stdout, done.stdout
    assert "Socket errors" not in done.stdout, done.stdout
