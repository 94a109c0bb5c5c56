"""The example of three services, and the overlay with SPIRE: pods that prove to each other who they are."""

import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.identity.pki import Authority, Pair, context
from tests.identity.pki import ask as ask_tls
from tests.identity.test_workload import WorkloadApi
from tests.k8s.cluster import Cluster
from tests.k8s.conftest import StartPod
from tests.k8s.kubelet import Pod
from tests.k8s.volumes import Projected
from tests.support.client import Client
from tests.support.message import Message
from tests.support.metrics import scrape
from tests.support.net import wait_for

pytestmark = [
    pytest.mark.needs("kubectl", "unshare", "nsenter", "setpriv", "ip"),
    pytest.mark.timeout(300),
]

EXAMPLE = "examples/three-services"
GROUP = 1337
IMAGES = {"python": ["/usr/bin/python3"]}


def identity(name: str) -> str:
    return f"spiffe://cluster.local/ns/shop/sa/{name}"


class Driver:
    """What cert-manager's csi-driver-spiffe does: a volume with the certificate of the pod's account."""

    def __init__(self, ca: Authority, folder: Path, name: str) -> None:
        self._ca, self._name = ca, name
        self.volume = Projected(folder / f"csi-{name}", self._files(), GROUP)

    def rotate(self) -> int:
        """Renews the certificate; returns its serial number."""
        self.volume.update(self._files())
        return self.serial

    def _files(self) -> dict[str, str | bytes]:
        certificate, key = self._ca.sign(identity(self._name))
        self.serial = certificate.serial_number
        return {
            "tls.crt": certificate.public_bytes(Encoding.PEM),
            "tls.key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            "ca.crt": self._ca.pem,
        }


class Shop:
    """The three services, one pod of each."""

    def __init__(self, cluster: Cluster, start_pod: StartPod, folder: Path) -> None:
        self.cluster, self.ca, self.folder = cluster, Authority(folder), folder
        self.drivers: dict[str, Driver] = {}
        self.pods: dict[str, Pod] = {}
        for name in ("payments", "orders", "web"):
            driver = self.drivers[name] = Driver(self.ca, folder, name)
            pod = self.pods[name] = start_pod(
                EXAMPLE,
                name,
                images=IMAGES,
                certificates=driver.volume.folder,
                # The image's Python, by the name that it has there.
                programs={"python": '#!/bin/sh\nexec /usr/bin/python3 "$@"\n'},
            )
            cluster.names[name] = [pod.address]
        for pod in self.pods.values():
            pod.wait_ready()
        wait_for(lambda: self.ask().status == 200, 30)

    def ask(self, path: str = "/v1/orders/7") -> Message:
        """Asks web in plain text, as an ingress would."""

        def ask() -> Message:
            with Client((self.pods["web"].address, 15006)) as client:
                return client.get(path, "web")

        return self.cluster.node.do(ask)

    def called(self, by: str, name: str, path: str = "/v1") -> Message:
        """Lets the application of one pod call another service through its own sidecar."""

        def ask() -> Message:
            with Client(("127.0.0.1", 15001)) as client:
                return client.get(path, name)

        return self.pods[by].network.do(ask)


@pytest.fixture
def shop(cluster: Cluster, start_pod: StartPod, tmp_path: Path) -> Iterator[Shop]:
    yield Shop(cluster, start_pod, tmp_path)


def test_each_service_knows_who_called_it(shop: Shop) -> None:
    answer: Any = json.loads(shop.ask().body)
    told = []
    while answer is not None:
        caller = re.search(r"URI=([^;]+)", answer["caller"] or "")
        told.append((answer["service"], caller[1] if caller else None))
        answer = answer["next"]
    assert told == [("web", None), ("orders", identity("web")), ("payments", identity("orders"))]
    samples = shop.cluster.node.do(lambda: scrape((shop.pods["orders"].address, 9090)))
    assert samples("target_info", service_name="orders", service_namespace="shop", l7proxy_mesh="shop") == 1
    assert samples("http_server_request_duration_seconds_count", l7proxy_peer=identity("web")) >= 1


def test_who_is_not_named_is_refused_by_who_is_called(shop: Shop, tmp_path: Path) -> None:
    refused = shop.called("web", "payments")
    assert (refused.status, refused["x-l7proxy-error"]) == (403, "denied")
    assert shop.called("orders", "payments").status == 200
    assert shop.called("payments", "orders")["x-l7proxy-error"] == "egress_blocked"
    address = (shop.pods["orders"].address, 15006)

    def ask(made: ssl.SSLContext) -> int:
        try:
            return shop.cluster.node.do(lambda: ask_tls(address, made, "/v1").status)
        except (ssl.SSLError, OSError):
            return 0

    assert ask(context(shop.ca, shop.ca.issue("web2", identity("web")))) == 200
    assert ask(context(shop.ca, shop.ca.issue("cron", identity("cron")))) == 403
    assert ask(context(shop.ca, shop.ca.issue("else", "spiffe://elsewhere/ns/shop/sa/web"))) == 0
    stranger = Authority(tmp_path, "stranger").issue("web3", identity("web"))
    assert ask(context(shop.ca, stranger)) == 0
    assert ask(context(shop.ca)) == 0


def test_a_renewed_certificate_is_shown_and_nobody_notices(shop: Shop) -> None:
    seen: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: [seen.append(shop.ask().status) for _ in range(150)])
        serial = shop.drivers["orders"].rotate()
        shop.drivers["web"].rotate()
        wait_for(lambda: shown(shop) == serial, 20)
        asking.result(60)
    assert set(seen) == {200}


def shown(shop: Shop) -> int:
    """The serial number of the certificate that orders shows."""
    pod, files = shop.pods["orders"], Pair(shop.ca.folder, "probe")
    if not files.cert.exists():
        shop.ca.issue("probe", identity("web"))
    command = ["nsenter", "--target", str(shop.cluster.node.pid), "--net", "openssl", "s_client", "-showcerts"]
    command += ["-connect", f"{pod.address}:15006", "-cert", str(files.cert), "-key", str(files.key)]
    done = subprocess.run(command, input=b"", capture_output=True, timeout=20, check=False)
    begin = done.stdout.find(b"-----BEGIN CERTIFICATE-----")
    return x509.load_pem_x509_certificate(done.stdout[begin:]).serial_number if begin >= 0 else 0


def test_a_right_that_is_taken_away_is_gone_within_a_moment(shop: Shop) -> None:
    volume = shop.pods["payments"].config_maps["policies"]
    files = {path.name: path.read_text() for path in volume.folder.glob("*.yaml")}
    volume.update({**files, "routes.yaml": files["routes.yaml"].replace("sa/orders", "sa/nobody")})
    wait_for(lambda: shop.called("orders", "payments").status == 403, 20)
    assert shop.ask().status == 403


def test_a_pod_is_ready_when_spire_has_told_it_who_it_is(cluster: Cluster, start_pod: StartPod, tmp_path: Path) -> None:
    ca, folder = Authority(tmp_path), tmp_path / "socket"
    folder.mkdir()
    api = WorkloadApi(folder / "spire-agent.sock")
    api.start()
    (folder / "spire-agent.sock").chmod(0o777)
    app = ["/usr/bin/python3", str(Path(__file__).parent / "app.py")]
    try:
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(start_pod, "overlays/spire", "orders", images={"orders": app}, certificates=folder)
            # Its sidecar asks, and is told nothing yet: the startup probe fails, and the application has to wait.
            wait_for(lambda: api.calls > 0, 30)
            assert not starting.done()
            api.give(ca, identity("orders"))
            pod = starting.result(60)
        wait_for(lambda: pod.containers["app"].process.stdout.startswith("at the start: 200"), 30)
        made = context(ca, ca.issue("web", identity("web")))
        address = (pod.address, 15006)
        wait_for(lambda: cluster.node.do(lambda: ask_tls(address, made).status) == 200)

        def plain() -> int:
            with Client(address) as client:
                return client.get().status

        assert cluster.node.do(plain) == 200, "PERMISSIVE"
    finally:
        api.stop()
