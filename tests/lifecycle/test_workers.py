"""Several processes on the same ports that look like one."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.conftest import StartServer, StartSidecar
from tests.support.client import Client
from tests.support.net import Address, wait_for
from tests.support.sidecar import Sidecar, route

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


def pids(proxy: Sidecar) -> list[int]:
    """The workers of a sidecar."""
    children = Path(f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def admin(proxy: Sidecar, path: str, method: str = "GET") -> tuple[int, str]:
    with Client(proxy.admin) as client:
        answer = client.request(f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        return answer.status, answer.body.decode()


def start(sidecar: StartSidecar, *documents: Any, **spec: Any) -> Sidecar:
    """Starts a sidecar with two workers, and waits until both serve."""
    proxy = sidecar(*documents, workers=2, **spec)
    wait_for(lambda: admin(proxy, "/ready")[0] == 200, 30)
    return proxy


def requests(proxy: Sidecar) -> float:
    return proxy.metrics()("http_server_request_duration_seconds_count")


def test_metrics_and_admin_add_up(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = start(sidecar, route("all"), app=serve().address, outbound=None)
    assert len(pids(proxy)) == 2
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(24)]
        for _ in range(3):
            assert [client.request(GET).status for client in clients] == [200] * 24
        metrics = proxy.metrics()
        assert metrics("http_server_request_duration_seconds_count") == 72
        assert metrics("http_client_request_duration_seconds_count") == 72
        assert metrics("l7proxy_downstream_connections", listener="inbound") == 24
        assert metrics("l7proxy_workers") == 2
        assert metrics("l7proxy_config_accepted_total") == 1
    assert admin(proxy, "/ready") == (200, "ok\n")
    assert [entry["name"] for entry in json.loads(admin(proxy, "/routes")[1])] == ["all"]
    assert json.loads(admin(proxy, "/config")[1])["documents"][0]["kind"] == "Sidecar"
    (cluster,) = json.loads(admin(proxy, "/clusters")[1])
    assert (cluster["name"], len(cluster["endpoints"])) == ("app", 1)
    assert json.loads(admin(proxy, "/stats?name=l7proxy_workers")[1])["l7proxy_workers"]["series"][0]["value"] == 2
    assert admin(proxy, "/loglevel?level=debug", "POST")[0] == 200
    assert len(proxy.log_lines(72)) == 72


def test_what_only_a_worker_knows_is_refused_while_none_lives(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = start(sidecar, app=serve().address)
    for pid in pids(proxy):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: admin(proxy, "/config") == (503, '{\n  "error": "no worker serves"\n}\n'))
    wait_for(lambda: admin(proxy, "/config")[0] == 200, 30)


def test_both_workers_serve(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = start(sidecar, app=app.address)
    before = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in pids(proxy)}
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            assert stack.enter_context(proxy.client()).request(GET).status == 200
        assert all(len(os.listdir(f"/proc/{pid}/fd")) > before[pid] + 5 for pid in before)


def test_a_worker_that_dies_is_replaced_and_takes_only_its_own_connections(
    sidecar: StartSidecar, serve: StartServer
) -> None:
    proxy = start(sidecar, app=serve().address)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(30)]
        assert [client.request(GET).status for client in clients] == [200] * 30
        assert requests(proxy) == 30
        victim = pids(proxy)[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: victim not in pids(proxy))
        alive = 0
        for client in clients:
            with contextlib.suppress(Exception):
                alive += client.request(GET).status == 200
        assert 0 < alive < 30
        # New connections are served meanwhile and after, by whoever has them.
        for _ in range(20):
            assert proxy.get().status == 200
        metrics = proxy.metrics()
        assert metrics("l7proxy_worker_restarts_total") == 1
        wait_for(lambda: proxy.metrics()("l7proxy_workers") == 2)
        # What the dead one had counted when it was last asked is not lost.
        assert requests(proxy) == 30 + alive + 20
    assert len(pids(proxy)) == 2
    assert "worker died" in proxy.process.stderr


def test_a_configuration_is_live_in_all_or_in_none(sidecar: StartSidecar, serve: StartServer, tmp_path: Path) -> None:
    def bodies() -> set[bytes]:
        return {proxy.get().body for _ in range(20)}

    def answer(text: str) -> object:
        return route("all", directResponse={"status": 200, "body": text})

    proxy = start(sidecar, answer("one"))
    assert bodies() == {b"one"}
    proxy.reconfigure(answer("two"))
    assert bodies() == {b"two"}
    # It loads, but cannot be compiled: only a worker can tell.
    before = proxy.metrics()("l7proxy_config_version")
    proxy.configure(answer("three"), accessLog={"path": "/none/access.log"})
    wait_for(lambda: proxy.metrics()("l7proxy_config_rejected_total") == 1)
    assert "accessLog.path: /none/access.log" in proxy.process.stderr
    assert bodies() == {b"two"}
    assert proxy.metrics()("l7proxy_config_version") == before
    # A worker that takes the place of another has what is live.
    for pid in pids(proxy):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: proxy.metrics()("l7proxy_worker_restarts_total") == 2)
    assert bodies() == {b"two"}
    proxy.reconfigure(answer("four"), accessLog={"path": str(tmp_path / "other.log")})
    assert bodies() == {b"four"}


def test_a_change_under_load_loses_nothing(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = start(sidecar, route("all"), app=uvicorn_app)
    stop = threading.Event()
    statuses: list[int] = []

    def load() -> None:
        with proxy.client() as client:
            while not stop.is_set():
                statuses.append(client.request(GET).status)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            proxy.reconfigure(route("all"), route(f"more{number}", hosts=["more"]))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert requests(proxy) == len(statuses)


def test_a_drain_tells_of_all_workers(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = start(sidecar, app=uvicorn_app, drain={"goaway": "1s"})
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(16)]
        for client in clients:
            client.send(b"GET /slow/1500 HTTP/1.1\r\nhost: test\r\n\r\n")
        wait_for(lambda: proxy.metrics()("l7proxy_requests") == 16)
        children = pids(proxy)
        proxy.process.kill(signal.SIGTERM)
        wait_for(lambda: admin(proxy, "/ready")[0] == 503)
        # All of them take new connections until the last request is done.
        assert {proxy.get().status for _ in range(10)} == {200}
        answers = [client.read() for client in clients]
        assert {(answer.status, answer["connection"]) for answer in answers} == {(200, "close")}
    assert proxy.process.popen.wait(10) == 0
    last = json.loads(proxy.process.stderr.splitlines()[-1])
    assert (last["event"], last["finished"], last["cut"]) == ("drained", 26, 0)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_logs_are_opened_anew_by_every_worker(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = start(sidecar, app=serve().address)
    proxy.get()
    proxy.log_lines(1)
    os.rename(proxy.log, proxy.log.with_suffix(".1"))
    proxy.process.kill(signal.SIGUSR1)
    time.sleep(0.3)
    for _ in range(20):
        proxy.get()
    assert len(proxy.log_lines(20)) == 20


def test_lines_of_several_workers_stay_whole_in_one_pipe(
    sidecar: StartSidecar, serve: StartServer, tmp_path: Path
) -> None:
    pipe = tmp_path / "log.pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    proxy = start(sidecar, app=serve().address, accessLog={"path": str(pipe)})
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(16)]
        for number in range(40):
            for client in clients:
                client.send(b"GET /%b HTTP/1.1\r\nhost: test\r\n\r\n" % (b"%d-" % number + b"x" * 600))
            assert [client.read().status for client in clients] == [200] * 16
    # By now the pipe is full and both workers wait to write: what they write next is mixed, line by line.
    received = b""
    while received.count(b"\n") < 640:
        wait_for(lambda: select.select([reader], [], [], 0.1)[0], 10)
        received += os.read(reader, 65536)
    os.close(reader)
    paths = [json.loads(line)["path"] for line in received.splitlines()]
    assert sorted(paths) == sorted(f"/{number}-{'x' * 600}" for number in range(40) for _ in range(16))


def test_workers_do_not_outlive_their_parent(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = start(sidecar, app=serve().address)
    children = pids(proxy)
    proxy.process.kill(signal.SIGKILL)
    proxy.process.popen.wait(5)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 10)


def test_a_configuration_that_no_worker_can_compile_ends_the_start(tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text(
        "apiVersion: l7proxy.io/v1\nkind: Sidecar\nmetadata: {name: a}\n"
        "spec: {workers: 2, metrics: {listen: '127.0.0.1:0'}, accessLog: {path: /none/log}}\n"
    )
    command = [sys.executable, "-m", "l7proxy", "run", "-c", str(config)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=env)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert done.returncode == 1
    assert len(lines) == 1 and "accessLog.path: /none/log" in lines[0]
