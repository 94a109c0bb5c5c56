"""A new process takes the listening sockets over from the old one, and no client notices."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.client import Client
from tests.support.net import Address, wait_for
from tests.support.process import Process
from tests.support.sidecar import NOISE, Sidecar, route, upstream

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
ROOT = str(Path(__file__).parents[2])

Successor = Callable[..., Process]


@pytest.fixture
def successor(tmp_path: Path) -> Iterator[Successor]:
    """Starts the process that takes over from a sidecar."""
    running: list[Process] = []

    def start(proxy: Sidecar, path: Path) -> Process:
        command = [sys.executable, "-m", "l7proxy", "run", "-c", str(proxy.config), "--takeover", str(path)]
        running.append(Process(f"successor{len(running)}", command, tmp_path, {"PYTHONPATH": ROOT}))
        return running[-1]

    yield start
    for process in running:
        process.stop(signal.SIGINT)
        assert not [word for word in NOISE if word in process.stderr], process.stderr


class Load:
    """Clients that send requests one after the other, and connect anew where they are asked to."""

    def __init__(self, address: Address, clients: int) -> None:
        self.address = address
        self.seen: list[object] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = 100) -> None:
        """Waits until so many more requests were answered."""
        until = len(self.seen) + count
        wait_for(lambda: len(self.seen) >= until, 20)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with Client(self.address) as client:
                    while not self._stop.is_set():
                        answer = client.request(GET)
                        self.seen.append(answer.status)
                        if answer.get("connection") == "close":
                            break
            except Exception as error:
                self.seen.append(repr(error))


def test_nothing_is_lost_over_http_1(
    sidecar: StartSidecar, uvicorn_app: Address, tmp_path: Path, successor: Successor
) -> None:
    path = tmp_path / "take.sock"
    proxy = sidecar(app=uvicorn_app, args=["--takeover", str(path)], drain={"goaway": "2s", "quiet": "5s"})
    with Load(proxy.inbound, 6) as load:
        load.more()
        first = successor(proxy, path)
        assert proxy.process.popen.wait(20) == 0
        load.more()
        successor(proxy, path)
        assert first.popen.wait(20) == 0
        load.more()
    assert set(load.seen) == {200}
    last = json.loads(proxy.process.stderr.splitlines()[-1])
    assert (last["event"], last["cut"]) == ("drained", 0)


def test_nothing_is_lost_over_http_2(
    sidecar: StartSidecar, uvicorn_app: Address, tmp_path: Path, successor: Successor
) -> None:
    """The client is another sidecar: it hears both GOAWAYs and moves its requests."""
    path = tmp_path / "take.sock"
    behind = sidecar(app=uvicorn_app, args=["--takeover", str(path)], drain={"goaway": "1s"}, name="behind")
    front = sidecar(upstream("behind", behind.inbound, protocol="http2"), route("all", upstream="behind"), name="front")
    with Load(front.inbound, 6) as load:
        load.more()
        first = successor(behind, path)
        assert behind.process.popen.wait(20) == 0
        load.more()
        successor(behind, path)
        assert first.popen.wait(20) == 0
        load.more()
    assert set(load.seen) == {200}
    assert front.metrics()("l7proxy_retries_total") == 0


@pytest.mark.parametrize(("before", "after"), [(2, 2), (1, 2), (2, 1)])
def test_workers_are_taken_over_from(
    before: int, after: int, sidecar: StartSidecar, uvicorn_app: Address, tmp_path: Path, successor: Successor
) -> None:
    path = tmp_path / "take.sock"
    options: dict[str, Any] = {"args": ["--takeover", str(path)], "drain": {"goaway": "1s"}}
    proxy = sidecar(app=uvicorn_app, workers=before, **options)
    with Load(proxy.inbound, 4) as load:
        load.more()
        proxy.configure(workers=after)
        successor(proxy, path)
        assert proxy.process.popen.wait(20) == 0
        load.more()
    assert set(load.seen) == {200}
    assert proxy.metrics()("l7proxy_workers") == (2 if after == 2 else 0)


def test_operators_ask_the_new_process(
    sidecar: StartSidecar, uvicorn_app: Address, tmp_path: Path, successor: Successor
) -> None:
    path = tmp_path / "take.sock"
    proxy = sidecar(app=uvicorn_app, args=["--takeover", str(path)], drain={"goaway": "5s"})
    with proxy.client() as idle, Client(proxy.admin) as admin:
        assert idle.request(GET).status == 200
        assert admin.get("/ready", "localhost").status == 200
        process = successor(proxy, path)
        # The old one still waits for the idle client; its connections with operators have been closed.
        assert admin.closed()
        assert proxy.process.popen.poll() is None
        for _ in range(5):
            with Client(proxy.admin) as other:
                assert other.get("/ready", "localhost").body == b"ok\n"
        assert proxy.metrics()("process_open_fds") > 0
        assert idle.request(GET)["connection"] == "close"
    assert proxy.process.popen.wait(10) == 0
    process.stop()
    assert not path.exists()


def test_a_successor_that_fails_changes_nothing(
    sidecar: StartSidecar, uvicorn_app: Address, tmp_path: Path, successor: Successor
) -> None:
    path = tmp_path / "take.sock"
    proxy = sidecar(app=uvicorn_app, args=["--takeover", str(path)])
    good = proxy.config.read_text()
    proxy.config.write_text(good.replace(str(proxy.log), "/none/access.log"))
    failed = successor(proxy, path)
    assert failed.popen.wait(10) == 1
    assert "/none/access.log" in failed.stderr
    proxy.config.write_text(good)
    assert proxy.get().status == 200
    assert proxy.process.popen.poll() is None
    successor(proxy, path)
    assert proxy.process.popen.wait(10) == 0
    assert proxy.get().status == 200


def test_only_one_takes_over_at_a_time(
    sidecar: StartSidecar, uvicorn_app: Address, tmp_path: Path, successor: Successor
) -> None:
    """Of two that both served, nobody would ever tell the first to end."""
    path = tmp_path / "take.sock"
    proxy = sidecar(app=uvicorn_app, args=["--takeover", str(path)])
    with socket.socket(socket.AF_UNIX) as under_way:
        under_way.settimeout(10)
        under_way.connect(str(path))
        assert under_way.recv(1)
        late = successor(proxy, path)
        assert late.popen.wait(20) == 1
        assert proxy.get().status == 200
    assert proxy.get().status == 200
    assert proxy.process.popen.poll() is None


def test_what_is_left_of_a_process_that_was_killed_is_no_obstacle(
    sidecar: StartSidecar, serve: StartServer, tmp_path: Path, successor: Successor
) -> None:
    path = tmp_path / "take.sock"
    proxy = sidecar(app=serve().address, args=["--takeover", str(path)])
    proxy.process.stop(signal.SIGKILL)
    assert path.exists()
    process = successor(proxy, path)
    process.wait_until(lambda: "listening" in process.stderr)
    wait_for(lambda: contextlib.suppress(OSError) and proxy.get().status == 200)


def test_without_a_path_those_meet_that_were_started_alike(sidecar: StartSidecar, serve: StartServer) -> None:
    folder = Path(os.environ.get("XDG_RUNTIME_DIR", "/tmp")) / f"l7proxy-{os.geteuid()}"
    before = set(folder.glob("*.sock"))
    proxy = sidecar(app=serve().address, args=["--takeover"])
    (path,) = set(folder.glob("*.sock")) - before
    assert (folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o700)
    proxy.stop()
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_gets_nothing(sidecar: StartSidecar, serve: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "take.sock"
    proxy = sidecar(app=serve().address, args=["--takeover", str(path)])
    # Even where the file's permissions let them in.
    path.chmod(0o777)
    got = b"?"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        # Who connects is who the kernel names, whoever asks later.
        os.seteuid(65534)
        try:
            with contextlib.suppress(PermissionError):
                sock.connect(str(path))
                got = sock.recv(1)
        finally:
            os.seteuid(0)
    assert got in (b"", b"?")
    assert proxy.get().status == 200
