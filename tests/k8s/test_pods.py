"""Pods of the manifests, with a real sidecar in each: what kubelet does to them, and that nobody notices."""

import json
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.cluster import Cluster
from tests.k8s.conftest import StartPod
from tests.k8s.kubelet import Pod
from tests.k8s.manifests import render
from tests.k8s.volumes import Projected
from tests.support.client import Client
from tests.support.metrics import scrape
from tests.support.net import wait_for
from tests.support.server import Server

pytestmark = [
    pytest.mark.needs("kubectl", "unshare", "nsenter", "setpriv", "ip"),
    pytest.mark.timeout(300),
]

APP = ["/usr/bin/python3", str(Path(__file__).parent / "app.py")]

both = pytest.mark.parametrize("form", ["native", "classic"])


@pytest.fixture(autouse=True)
def others(cluster: Cluster) -> Any:
    """Another service, outside."""
    server = cluster.node.do(lambda: Server(address=("10.244.0.1", 7000)))
    yield server
    server.close()


def serving(start_pod: StartPod, name: str) -> Pod:
    """Starts the pod of `orders`, and waits until its application answers."""
    pod = start_pod(name, "orders", images={"orders": APP})
    pod.wait_ready()
    wait_for(lambda: get(pod) == 200, 30, lambda: pod.containers["app"].process.stderr)
    return pod


def get(pod: Pod, path: str = "/", port: int = 15006) -> int:
    """Asks from the node, on a connection of its own."""

    def ask() -> int:
        with Client((pod.address, port), timeout=20) as client:
            return client.get(path, "orders").status

    return pod.cluster.node.do(ask)


def metric(pod: Pod, name: str, **labels: str) -> float:
    return pod.cluster.node.do(lambda: scrape((pod.address, 9090)))(name, **labels)


@both
def test_the_sidecar_is_there_before_the_application(form: str, start_pod: StartPod, others: Server) -> None:
    pod = serving(start_pod, f"overlays/{form}")
    app, sidecar = pod.containers["app"], pod.containers["l7proxy"]
    assert app.process.stdout == "at the start: 200 200\n", app.process.stderr
    assert len(others.requests) == 1
    assert pod.alive
    wait_for(lambda: '"direction":"outbound"' in sidecar.process.stdout)
    assert metric(pod, "target_info", service_name="orders", service_namespace="default", k8s_pod_name=pod.name) == 1


@both
def test_the_sidecar_has_no_rights_and_its_admin_api_stays_in_the_pod(form: str, start_pod: StartPod) -> None:
    pod = serving(start_pod, f"overlays/{form}")
    sidecar = pod.containers["l7proxy"]
    status = Path(f"/proc/{sidecar.first}/status").read_text()
    assert re.search(r"^Uid:\s+1337\s+1337\s+1337", status, re.MULTILINE)
    assert re.search(r"^NSpid:.*\s1$", status, re.MULTILINE)
    assert re.findall(r"^Cap(?:Eff|Prm|Bnd|Inh|Amb):\s+0{16}$", status, re.MULTILINE), status
    assert re.search(r"^NoNewPrivs:\s+1", status, re.MULTILINE)
    assert sidecar.execute(["touch", "/tmp/a"]).returncode != 0, "the root is read-only"
    with pytest.raises(ConnectionRefusedError):
        get(pod, "/ready", 15000)
    assert sidecar.execute(["/usr/bin/python3", "-P", "-m", "l7proxy", "admin", "/ready"]).stdout == "ok\n"


def routes(text: str) -> dict[str, str]:
    data = dict(render("overlays/native").named("ConfigMap")["orders-policies"]["data"])
    return {**data, "routes.yaml": text}


def directly(status: int) -> str:
    return (
        "apiVersion: l7proxy.io/v1\nkind: Route\nmetadata: {name: orders}\n"
        f"spec: {{directResponse: {{status: {status}}}}}\n"
    )


def test_a_new_configmap_is_taken_up_and_a_wrong_one_is_not(start_pod: StartPod) -> None:
    pod = serving(start_pod, "overlays/native")
    volume = pod.config_maps["policies"]
    load = Load(pod)
    wait_for(lambda: load.seen[200] > 20)
    volume.update(routes(directly(204)))
    wait_for(lambda: load.seen[204] > 20)
    version = metric(pod, "l7proxy_config_version")
    volume.update(routes(directly(999)))
    wait_for(lambda: metric(pod, "l7proxy_config_rejected_total") == 1)
    sidecar = pod.containers["l7proxy"]
    wait_for(lambda: "/etc/l7proxy/routes.yaml" in sidecar.process.stderr)
    (told,) = (json.loads(line) for line in sidecar.process.stderr.splitlines() if "rejected" in line)
    assert "/etc/l7proxy/routes.yaml:4: spec.directResponse.status" in json.dumps(told)
    assert metric(pod, "l7proxy_config_version") == version
    volume.update(routes(directly(205)))
    wait_for(lambda: load.seen[205] > 20)
    load.stop()
    assert load.failed == []
    assert set(load.seen) == {200, 204, 205}


class Load:
    """Clients that never rest: one on a connection that it keeps, one that opens a connection for each request."""

    def __init__(self, pod: Pod) -> None:
        self.seen: Counter[int] = Counter()
        self.failed: list[str] = []
        self._pod = pod
        self._stop = threading.Event()
        node = pod.cluster.node
        self._running = [node.start(self._keep), node.start(self._open)]

    def stop(self) -> None:
        self._stop.set()
        for future in self._running:
            future.result(60)

    def _keep(self) -> None:
        client = None
        while not self._stop.is_set():
            try:
                client = client or Client((self._pod.address, 15006))
                answer = client.get("/", "orders")
                self.seen[answer.status] += 1
                if answer.get("connection") == "close":
                    client.close()
                    client = None
            except Exception as error:
                self.failed.append(f"kept: {error!r}")
                client = None
            time.sleep(0.01)

    def _open(self) -> None:
        while not self._stop.is_set():
            try:
                with Client((self._pod.address, 15006)) as client:
                    self.seen[client.get("/", "orders").status] += 1
            except Exception as error:
                self.failed.append(f"opened: {error!r}")
            time.sleep(0.01)


@both
def test_nobody_notices_the_end_of_a_pod(form: str, start_pod: StartPod, others: Server) -> None:
    pod = serving(start_pod, f"overlays/{form}")
    load = Load(pod)
    wait_for(lambda: load.seen[200] > 20)
    slow = pod.cluster.node.start(lambda: _slow(pod))
    wait_for(lambda: metric(pod, "l7proxy_requests") >= 1)
    deletion = threading.Thread(target=pod.delete)
    deletion.start()
    wait_for(lambda: not pod.containers["l7proxy"].probe("readinessProbe"), 10)
    # The time that it takes until every node has heard of it.
    time.sleep(5)
    load.stop()
    assert slow.result(60) == 200
    deletion.join(120)
    assert load.failed == []
    assert set(load.seen) == {200}
    app, sidecar = pod.containers["app"], pod.containers["l7proxy"]
    assert {name: (end.status, end.killed) for name, end in pod.ends.items()} == {
        "app": (0, False),
        "l7proxy": (0, False),
    }
    assert app.process.stdout.splitlines()[-1] == "at the end: 200", "calls to others work to the last"
    assert pod.ends["l7proxy"].seconds >= pod.ends["app"].seconds - 0.5
    assert pod.ends["l7proxy"].seconds < pod.template["spec"]["terminationGracePeriodSeconds"]
    (report,) = (json.loads(line) for line in sidecar.process.stderr.splitlines() if '"drained"' in line)
    assert report["cut"] == 0


def _slow(pod: Pod) -> int:
    with Client((pod.address, 15006), timeout=30) as client:
        return client.get("/slow", "orders").status


def test_a_sidecar_that_hangs_is_not_alive(start_pod: StartPod) -> None:
    pod = serving(start_pod, "overlays/native")
    pod.containers["l7proxy"].signal(signal.SIGSTOP)
    assert not pod.alive
    pod.containers["l7proxy"].signal(signal.SIGCONT)
    wait_for(lambda: pod.alive)


REPORT = "#!/bin/sh\ncurl --silent --proxy $HTTP_PROXY --output /dev/null --write-out '%{http_code}' http://10.244.0.1:7000/\n"


@both
@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.needs("curl")
def test_a_job_ends_although_it_has_a_sidecar(form: str, status: int, start_pod: StartPod, others: Server) -> None:
    pod = start_pod(f"examples/job-{form}", "report", images={}, programs={"report": f"{REPORT}exit {status}\n"})
    ends = pod.complete()
    assert pod.containers["app"].process.stdout.startswith("200")
    assert len(others.requests) == 1
    assert (ends["app"].status, ends["l7proxy"].status, ends["l7proxy"].killed) == (status, 0, False)


def test_a_volume_is_swapped_as_kubelet_does_it(tmp_path: Path) -> None:
    """What the other tests stand on."""
    volume = Projected(tmp_path / "volume", {"a": "1", "b": "2"})
    before = (tmp_path / "volume" / "a").resolve()
    volume.update({"a": "3"})
    assert (tmp_path / "volume" / "a").read_text() == "3"
    assert not (tmp_path / "volume" / "b").exists()
    assert not before.exists()
    assert (tmp_path / "volume" / "a").readlink() == Path("..data/a")
