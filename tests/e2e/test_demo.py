"""`make demo`, as a newcomer meets it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.metrics import Samples
from tests.support.net import wait_for
from tests.support.process import Process
from tests.support.servers import program

ROOT = Path(__file__).parents[2]
WEB = "spiffe://demo/ns/demo/sa/web"


class Demo:
    """A running demo and what it printed; `path` is its PATH."""

    def __init__(self, folder: Path, path: str = os.environ["PATH"]) -> None:
        env = {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "PATH": path}
        self.process = Process("demo", [sys.executable, "-m", "l7proxy", "demo", "--rate", "50"], folder, env)
        self.process.wait_until(lambda: "Ctrl-C ends" in self.process.stdout)
        said = self.process.stdout
        self.url = re.findall(r"^demo ready: (http://127\.0\.0\.1:\d+)$", said, re.MULTILINE)[0]
        self.metrics = re.findall(r"^demo metrics: (\S+) (\S+)$", said, re.MULTILINE)[0]
        self.admins = re.findall(r"^demo admin: (\S+) (\S+)$", said, re.MULTILINE)[0]
        self.prometheus = re.findall(r"^demo prometheus: (.+)$", said, re.MULTILINE)[0]
        self.folder = Path(re.findall(r"removes (\S+)\.$", said, re.MULTILINE)[0])

    def children(self) -> list[int]:
        return children_of(self.process)


def children_of(process: Process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    running = Demo(tmp_path)
    yield running
    if running.process.popen.poll() is None:
        running.process.stop()


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bytes(answer.read())


def count(url: str, **labels: str) -> float:
    return Samples(fetch(url).decode())("http_server_request_duration_seconds_count", **labels)


def services(prometheus: str, expression: str) -> set[str]:
    """Returns the names of the services that an expression has values for."""
    answer = json.loads(fetch(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"))
    return {row["metric"]["service_name"] for row in answer["data"]["result"]}


def install(folder: Path, interpreter: str, body: str) -> None:
    """Puts a program called prometheus into `folder`."""
    file = folder / "prometheus"
    file.write_text(f"#!{interpreter}\n{body}\n")
    file.chmod(0o755)


def test_a_request_passes_both_sidecars(demo: Demo) -> None:
    said = json.loads(fetch(demo.url + "/hello"))
    assert (said["service"], said["path"]) == ("web", "/hello")
    assert [order["item"] for order in said["orders"]] == ["tea", "honey", "bread"]
    web, orders = demo.metrics
    assert count(web, l7proxy_direction="inbound") > 0
    assert count(web, l7proxy_direction="outbound", l7proxy_route="orders") > 0
    assert count(orders, l7proxy_direction="inbound", l7proxy_route="orders-read") > 0


def test_traffic_is_steady_and_retries_hide_what_fails(demo: Demo) -> None:
    web, orders = demo.metrics
    before = count(orders)
    wait_for(lambda: count(orders) > before + 60, 15)
    wait_for(lambda: count(orders, http_response_status_code="503") > 0, 5)
    assert count(web, l7proxy_direction="inbound", http_response_status_code="503") == 0
    assert all(fetch(f"{admin}/ready") for admin in demo.admins)


def test_web_is_denied_what_only_ops_may_do(demo: Demo) -> None:
    with pytest.raises(urllib.error.HTTPError) as denied:
        fetch(demo.url + "/admin")
    assert denied.value.code == 403
    assert json.loads(denied.value.read())["orders"]["error"] == "denied"
    assert count(demo.metrics[1], l7proxy_route="orders-admin", error_type="denied", l7proxy_peer=WEB) > 0


@pytest.mark.needs("curl")
def test_the_three_curls_prove_that_identity_decides(demo: Demo) -> None:
    commands = re.findall(r"^  (curl -i --cacert .*)$", demo.process.stdout, re.MULTILINE)
    answers = [
        subprocess.run(shlex.split(command), cwd=demo.folder / "certs", capture_output=True, text=True, check=False)
        for command in commands
    ]
    assert [answer.stdout.split()[1] for answer in answers[:2]] == ["200", "403"]
    assert answers[2].returncode != 0
    assert "HTTP/" not in answers[2].stdout


def test_a_saved_change_is_live_at_once(demo: Demo) -> None:
    file = demo.folder / "orders" / "sidecar.yaml"
    file.write_text(file.read_text().replace("requests: 500", "requests: 1"))
    wait_for(lambda: count(demo.metrics[1], http_response_status_code="429") > 0, 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_end_leaves_nothing_behind(number: int, demo: Demo) -> None:
    children = demo.children()
    assert len(children) == (3 if program("prometheus") else 2)
    assert demo.process.stop(number, timeout=20) == 0
    assert not [pid for pid in children if os.path.exists(f"/proc/{pid}")]
    assert not demo.folder.exists()
    assert "Traceback" not in demo.process.stderr


@pytest.mark.needs("prometheus")
def test_prometheus_keeps_what_both_sidecars_measure(demo: Demo) -> None:
    requests = 'service:l7proxy_requests:rate5m{l7proxy_direction="inbound"} > 0'
    wait_for(lambda: services(demo.prometheus, requests) == {"web", "orders"}, 20)
    assert services(demo.prometheus, 'target_info{l7proxy_mesh="demo"}') == {"web", "orders"}


@pytest.mark.needs("prometheus")
def test_what_it_says_of_grafana_names_the_dashboards_and_prometheus(demo: Demo) -> None:
    [(provisioning, url)] = re.findall(
        r"^  GF_PATHS_PROVISIONING=(\S+) PROMETHEUS_URL=(\S+) grafana server ", demo.process.stdout, re.MULTILINE
    )
    assert url == demo.prometheus
    assert Path(provisioning, "dashboards/l7proxy.yaml").is_file()


def test_without_prometheus_it_says_so_and_runs(tmp_path: Path) -> None:
    demo = Demo(tmp_path, path=str(tmp_path))
    try:
        assert demo.prometheus.startswith("not installed")
        assert fetch(demo.url)
        assert len(demo.children()) == 2
    finally:
        assert demo.process.stop() == 0


@pytest.mark.parametrize(
    ("shebang", "body", "said"),
    [(sys.executable, "raise SystemExit('no space left')", "no space left"), ("/nowhere", "", "No such file")],
)
def test_it_goes_on_when_prometheus_does_not_start(shebang: str, body: str, said: str, tmp_path: Path) -> None:
    install(tmp_path, shebang, body)
    demo = Demo(tmp_path, path=str(tmp_path))
    try:
        assert demo.prometheus.startswith("does not start: ")
        assert said in demo.prometheus
        assert fetch(demo.url)
        assert len(demo.children()) == 2
    finally:
        assert demo.process.stop() == 0


def test_a_prometheus_that_neither_starts_nor_ends_outlives_no_demo(tmp_path: Path) -> None:
    install(
        tmp_path, sys.executable, "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)"
    )
    env = {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "PATH": str(tmp_path)}
    process = Process("demo", [sys.executable, "-m", "l7proxy", "demo"], tmp_path, env)
    children: list[int] = []

    def three() -> bool:
        children[:] = children_of(process)
        return len(children) == 3

    try:
        process.wait_until(three)
        assert "demo ready: " in process.stdout
    finally:
        assert process.stop(timeout=20) == 0
    assert not [pid for pid in children if os.path.exists(f"/proc/{pid}")]


def test_what_it_says_to_try_can_be_tried(demo: Demo) -> None:
    assert b"orders" in fetch(demo.admins[0] + "/routes")
    assert (demo.folder / "orders.log").exists()
    command = [sys.executable, "-m", "l7proxy", "check", "-c", str(demo.folder / "orders")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
