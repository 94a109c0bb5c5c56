"""A changed configuration is taken up under load; a broken one changes nothing."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.net import free_address, wait_for
from tests.support.process import Process
from tests.support.sidecar import Document, Sidecar, route, upstream


def named(name: str, **spec: Any) -> Document:
    return route(name, directResponse={"status": 200, "body": name}, **spec)


class Load:
    """Four clients that ask without pause until they are stopped; `statuses` counts what they saw."""

    def __init__(self, proxy: Sidecar, *targets: str) -> None:
        self.statuses: dict[int, int] = {}
        self.errors: list[BaseException] = []
        self._proxy = proxy
        self._targets = targets or ("/",)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(4)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        wait_for(lambda: self.total > 50, 10)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

    @property
    def total(self) -> int:
        return sum(self.statuses.values())

    def more(self, count: int = 100) -> None:
        """Waits until `count` more requests were answered."""
        goal = self.total + count
        wait_for(lambda: self.total >= goal or self.errors, 20)

    def _ask(self) -> None:
        try:
            while not self._stop.is_set():
                with self._proxy.client() as client:
                    for number in range(50):
                        status = client.get(self._targets[number % len(self._targets)]).status
                        with self._lock:
                            self.statuses[status] = self.statuses.get(status, 0) + 1
        except BaseException as error:
            self.errors.append(error)


def test_reloads_under_load_lose_no_request(sidecar: StartSidecar, serve: StartServer) -> None:
    apps = [serve(), serve(), serve()]
    pool = [upstream("pool", *(app.address for app in apps[:count])) for count in (1, 3, 2)]
    proxy = sidecar(pool[0], route("all", upstream="pool"))
    with Load(proxy) as load:
        for turn in range(9):
            proxy.reconfigure(pool[turn % 3], route("all", upstream="pool"), *(named(f"n{turn}", hosts=["other"]),))
            load.more()
    assert not load.errors
    assert set(load.statuses) == {200}
    assert proxy.metrics()("l7proxy_config_rejected_total") == 0


def test_a_change_is_live_within_a_second(sidecar: StartSidecar) -> None:
    proxy = sidecar(named("one"))
    assert proxy.get().body == b"one"
    proxy.configure(named("two"))
    wait_for(lambda: proxy.get().body == b"two", 3)


def test_sighup_reloads(sidecar: StartSidecar) -> None:
    proxy = sidecar(named("one"))
    proxy.configure(named("two"))
    proxy.process.kill(signal.SIGHUP)
    wait_for(lambda: proxy.get().body == b"two", 3)


def test_sighup_does_not_end_a_sidecar_that_has_nothing_to_reload(tmp_path: Path) -> None:
    admin = free_address()
    config = tmp_path / "a.yaml"
    spec = f"{{admin: {{listen: '{admin[0]}:{admin[1]}'}}}}"
    config.write_text(f"{{apiVersion: l7proxy.io/v1, kind: Sidecar, metadata: {{name: a}}, spec: {spec}}}")
    # As `run --app` does, but not on its ports.
    code = "from l7proxy.config.load import load; from l7proxy.server.run import run; run(load(['a.yaml']))"
    process = Process("alone", [sys.executable, "-c", code], tmp_path)
    try:
        process.wait_until(lambda: '"listening"' in process.stderr)
        process.kill(signal.SIGHUP)
        # Of two signals the kernel delivers the lower one first: had SIGHUP ended it, SIGINT could not.
        assert process.stop(signal.SIGINT) == 0
    finally:
        process.stop()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_without_effect_is_said_at_the_start_and_after_a_reload(workers: int, sidecar: StartSidecar) -> None:
    proxy = sidecar(named("one"), named("out", direction="outbound"), outbound=None, workers=workers)
    wait_for(lambda: "the Sidecar has no outbound listener for this route" in proxy.process.stderr)
    proxy.configure(named("two"), health={"listen": "127.0.0.1:1"})
    wait_for(lambda: proxy.get().body == b"two")
    said = "spec.health.listen: takes effect at the next start; this process has none"
    wait_for(lambda: said in proxy.process.stderr)
    assert "spec.admin.listen" not in proxy.process.stderr


@pytest.mark.parametrize(
    "broken",
    [
        "kind: [",
        "apiVersion: l7proxy.io/v1\nkind: Route\nmetadata: {name: x}\nspec: {upstream: nowhere}\n",
        "apiVersion: l7proxy.io/v1\nkind: Route\nmetadata: {name: x}\nspec: {upstraem: app}\n",
        "apiVersion: l7proxy.io/v1\nkind: Route\nmetadata: {name: x}\nspec: {matches: [{path: {regex: '('}}]}\n",
        "apiVersion: l7proxy.io/v1\nkind: Upstream\nmetadata: {name: x}\nspec: {endpoints: ['300.0.0.1:80']}\n",
        "a: &a [*a, *a]\n",
        "\x00\x01\x02",
    ],
    ids=["syntax", "unknown upstream", "unknown key", "bad regex", "bad address", "alias bomb", "binary"],
)
def test_a_broken_file_changes_nothing(broken: str, sidecar: StartSidecar) -> None:
    proxy = sidecar(named("good"))
    version = proxy.metrics()("l7proxy_config_version")
    with Load(proxy) as load:
        proxy.configure(named("worse"), broken)
        wait_for(lambda: proxy.metrics()("l7proxy_config_rejected_total") >= 1)
        load.more()
        assert proxy.get().body == b"good"
        assert proxy.metrics()("l7proxy_config_version") == version
        wait_for(lambda: _rejections(proxy))
        assert all(event["file"] == str(proxy.config) and event["line"] > 10 for event in _rejections(proxy))
        proxy.configure(named("better"))
        wait_for(lambda: proxy.get().body == b"better")
    assert not load.errors
    assert set(load.statuses) == {200}


def _rejections(proxy: Sidecar) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in proxy.process.stderr.splitlines()]
    return [event for event in events if event["event"] == "configuration rejected"]


def test_an_empty_file_changes_nothing(sidecar: StartSidecar) -> None:
    proxy = sidecar(named("good"))
    proxy.config.write_text("")
    wait_for(lambda: proxy.metrics()("l7proxy_config_rejected_total") >= 1)
    assert proxy.get().body == b"good"


def test_a_file_that_goes_away_changes_nothing(sidecar: StartSidecar) -> None:
    proxy = sidecar(named("good"))
    proxy.config.unlink()
    wait_for(lambda: proxy.metrics()("l7proxy_config_rejected_total") >= 1)
    assert proxy.get().body == b"good"
    proxy.configure(named("back"))
    wait_for(lambda: proxy.get().body == b"back")


def test_a_folder_is_followed_through_the_swap_of_a_link(sidecar: StartSidecar, tmp_path: Path) -> None:
    """Kubernetes updates a mounted ConfigMap so: files link to `..data/`, and `..data` is renamed to a new folder."""
    mount = tmp_path / "mount"
    mount.mkdir()

    def publish(version: str, name: str) -> None:
        folder = mount / f"..{version}"
        folder.mkdir()
        import yaml

        (folder / "route.yaml").write_text(yaml.safe_dump(named(name)))
        (mount / "..data_tmp").symlink_to(folder.name)
        (mount / "..data_tmp").replace(mount / "..data")

    publish("one", "first")
    (mount / "route.yaml").symlink_to("..data/route.yaml")
    proxy = sidecar(args=["-c", str(mount)])
    assert proxy.get().body == b"first"
    with Load(proxy) as load:
        publish("two", "second")
        wait_for(lambda: proxy.get().body == b"second")
        shutil.rmtree(mount / "..one")
        load.more()
        publish("three", "third")
        wait_for(lambda: proxy.get().body == b"third")
    assert not load.errors
    assert set(load.statuses) == {200}


def test_requests_in_flight_keep_the_configuration_that_they_began_with(
    sidecar: StartSidecar, serve: StartServer
) -> None:
    from tests.support.server import OK, Connection

    def slow(connection: Connection) -> None:
        connection.read()
        go_on.wait(10)
        connection.send(OK)

    go_on = threading.Event()
    app = serve(slow)
    old = {"headers": {"response": {"set": {"x-config": "old"}}}}
    proxy = sidecar(route("all", policies=old), app=app.address)
    with proxy.client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        app.wait_for_requests(1)
        proxy.reconfigure(named("new"))
        assert proxy.get().body == b"new"
        go_on.set()
        answer = client.read()
        assert (answer.body, answer["x-config"]) == (b"ok", "old")


def test_connections_that_are_still_valid_survive_a_reload(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(app=app.address)
    with proxy.client() as client:
        assert client.get().status == 200
        proxy.reconfigure(route("all"))
        assert client.get().status == 200
    assert len(app.connections) == 1


@pytest.mark.needs("wrk")
def test_reloads_under_full_load_lose_no_request(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(named("start"))
    command = ["wrk", "-t1", "-c16", "-d4s", f"http://127.0.0.1:{proxy.inbound[1]}/"]
    wrk = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    time.sleep(0.5)
    for turn in range(8):
        proxy.reconfigure(
            *(named(f"r{turn}-{number}", hosts=[f"h{number}.example"]) for number in range(100)), named("all")
        )
    output, _ = wrk.communicate(timeout=30)
    assert "Requests/sec" in output
    assert "Non-2xx" not in output, output
    assert "Socket errors" not in output, output
