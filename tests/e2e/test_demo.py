"""`make demo`, as a newcomer meets it."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.metrics import Samples
from tests.support.net import wait_for
from tests.support.process import Process

ROOT = Path(__file__).parents[2]
WEB = "spiffe://demo/ns/demo/sa/web"


class Demo:
    """A running demo and what it printed."""

    def __init__(self, folder: Path) -> None:
        env = {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
        self.process = Process("demo", [sys.executable, "-m", "l7proxy", "demo", "--rate", "50"], folder, env)
        self.process.wait_until(lambda: "Ctrl-C ends" in self.process.stdout)
        said = self.process.stdout
        self.url = re.findall(r"^demo ready: (http://127\.0\.0\.1:\d+)$", said, re.MULTILINE)[0]
        self.metrics = re.findall(r"^demo metrics: (\S+) (\S+)$", said, re.MULTILINE)[0]
        self.admins = re.findall(r"^demo admin: (\S+) (\S+)$", said, re.MULTILINE)[0]
        self.folder = Path(re.findall(r"removes (\S+)\.$", said, re.MULTILINE)[0])

    def children(self) -> list[int]:
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]


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
    assert len(children) == 2
    assert demo.process.stop(number, timeout=20) == 0
    assert not [pid for pid in children if os.path.exists(f"/proc/{pid}")]
    assert not demo.folder.exists()
    assert "Traceback" not in demo.process.stderr


def test_what_it_says_to_try_can_be_tried(demo: Demo) -> None:
    assert b"orders" in fetch(demo.admins[0] + "/routes")
    assert (demo.folder / "orders.log").exists()
    command = [sys.executable, "-m", "l7proxy", "check", "-c", str(demo.folder / "orders")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
