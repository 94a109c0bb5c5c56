"""Each example of `policies/` passes the check, and does what its comments say."""

import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
import yaml

from tests.conftest import StartServer, StartSidecar
from tests.support.client import Client
from tests.support.message import Reader
from tests.support.net import Address, free_port
from tests.support.server import OK, Connection
from tests.support.sidecar import Sidecar

ROOT = Path(__file__).parents[2]
POLICIES = ROOT / "policies"
NAMES = sorted(path.name for path in POLICIES.iterdir() if path.is_dir())
NEED_CERTIFICATES = {"identity", "istio"}

Play = Callable[..., Sidecar]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: `on` is a word, the key of a retry's conditions."""

    yaml_implicit_resolvers: ClassVar = {
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:bool" or first in "tTfF"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def copy(name: str, folder: Path) -> Path:
    """Copies an example and runs the `l7proxy certs` command of its comments, which names the folder that it is in."""
    target = folder / "policies" / name
    shutil.copytree(POLICIES / name, target, ignore=shutil.ignore_patterns("certs"))
    text = "".join(file.read_text() for file in sorted(target.glob("*.yaml")))
    for command in re.findall(r"^#\s+l7proxy (certs .*)$", text, re.MULTILINE):
        run = [sys.executable, "-m", "l7proxy", *shlex.split(command)]
        subprocess.run(run, cwd=folder, env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    return target


@pytest.fixture
def play(sidecar: StartSidecar, tmp_path: Path) -> Play:
    """Runs an example on free ports: `app` and `upstreams` (by name) are where its requests go."""

    def start(name: str, app: Address | None = None, upstreams: Mapping[str, Address] | None = None) -> Sidecar:
        folder = copy(name, tmp_path)
        documents = [doc for file in sorted(folder.glob("*.yaml")) for doc in yaml.load_all(file.read_text(), _Loader)]
        (spec,) = (doc["spec"] for doc in documents if doc["kind"] == "Sidecar")
        others = [doc for doc in documents if doc["kind"] != "Sidecar"]
        for doc in others:
            if doc["kind"] == "Upstream":
                address = (upstreams or {}).get(doc["metadata"]["name"], ("127.0.0.1", free_port()))
                doc["spec"].pop("dns", None)
                doc["spec"]["endpoints"] = [f"{address[0]}:{address[1]}"]
        spec = {key: value for key, value in spec.items() if key not in ("health", "admin", "metrics", "accessLog")}
        for block in ("inbound", "outbound"):
            spec.get(block, {}).pop("listen", None)
            spec.get(block, {}).pop("app", None)
        for key in ("cert", "key", "ca"):
            if key in spec.get("inbound", {}).get("tls", {}):
                spec["inbound"]["tls"][key] = str(folder / spec["inbound"]["tls"][key])
        return sidecar(*others, app=app, **spec)

    return start


@pytest.mark.parametrize("name", NAMES)
def test_the_example_passes_the_check(name: str, tmp_path: Path) -> None:
    folder = copy(name, tmp_path)
    command = [sys.executable, "-m", "l7proxy", "check", "-c", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stdout + done.stderr


def test_the_list_names_every_example() -> None:
    listed = set(re.findall(r"^\| \[([\w-]+)\]", (POLICIES / "README.md").read_text(), re.MULTILINE))
    assert listed == set(NAMES)


def test_first_sidecar(play: Play, serve: StartServer) -> None:
    app = serve()
    proxy = play("first-sidecar", app.address)
    assert proxy.get("/anything", "any.host").status == 200
    assert proxy.log_lines()[0]["path"] == "/anything"


def test_host_routing(play: Play, serve: StartServer) -> None:
    app, catalog = serve(), serve()
    proxy = play("host-routing", app.address, {"catalog": catalog.address})
    assert proxy.get("/catalog/items?x=1", "shop.example.com").status == 200
    assert proxy.get("/basket", "shop.example.com").status == 200
    assert [request.target for request in catalog.requests] == ["/items?x=1"]
    assert [request.target for request in app.requests] == ["/basket"]
    elsewhere = proxy.get("/a?b", "www.example.com")
    assert (elsewhere.status, elsewhere["location"]) == (308, "https://shop.example.com/a?b")
    assert proxy.get("/robots.txt", "other.org").body == b"User-agent: *\nDisallow: /\n"
    assert proxy.get("/", "other.org").status == 404


def test_canary(play: Play, serve: StartServer) -> None:
    old, new = serve(), serve()
    proxy = play("canary", old.address, {"orders-v2": new.address})
    with proxy.client() as client:
        for _ in range(5):
            assert client.get("/", "orders.example.com", x_canary="always").status == 200
        assert (len(old.requests), len(new.requests)) == (0, 5)
        for _ in range(400):
            client.get("/", "orders.example.com")
    assert len(old.requests) + len(new.requests) == 405
    # 20 of 400 are to be expected; 50 are seven standard deviations away.
    assert 0 < len(new.requests) - 5 < 50


def _tls(proxy: Sidecar, folder: Path, who: str | None, data: bytes) -> int:
    """Asks with the certificate of `who`; returns the status, or 0 when the connection was refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(folder / "orders" / "ca.crt")
    if who is not None:
        context.load_cert_chain(folder / who / "tls.crt", folder / who / "tls.key")
    with socket.create_connection(proxy.inbound, 5) as plain:
        try:
            # A TLS 1.3 client believes the handshake done before the server refuses: only reading tells.
            with context.wrap_socket(plain) as secure:
                secure.sendall(data)
                return Reader(secure).response().status
        except (ssl.SSLError, ConnectionError):
            return 0
        except Exception as error:
            assert "closed after b''" in str(error)
            return 0


def _ask(method: str, target: str) -> bytes:
    return f"{method} {target} HTTP/1.1\r\nhost: orders\r\ncontent-length: 0\r\n\r\n".encode()


def test_identity(play: Play, serve: StartServer, tmp_path: Path) -> None:
    proxy = play("identity", serve().address)
    certs = tmp_path / "policies" / "identity" / "certs"
    ids = ["spiffe://demo/ns/reports/sa/nightly", "spiffe://demo/ns/other/sa/stranger"]
    make = [sys.executable, "-m", "l7proxy", "certs", "dev", "--out", str(certs), *ids]
    subprocess.run(make, env={"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    seen = {
        (who, method): _tls(proxy, certs, who, _ask(method, "/v1/orders/7"))
        for who in ("checkout", "nightly", "stranger", None)
        for method in ("GET", "POST")
    }
    assert seen == {
        ("checkout", "GET"): 200,
        ("checkout", "POST"): 200,
        ("nightly", "GET"): 200,
        ("nightly", "POST"): 403,
        ("stranger", "GET"): 403,
        ("stranger", "POST"): 403,
        (None, "GET"): 0,
        (None, "POST"): 0,
    }


def test_istio(play: Play, serve: StartServer, tmp_path: Path) -> None:
    proxy = play("istio", serve().address)
    certs = tmp_path / "policies" / "istio" / "certs"
    asked = {
        (who, line): _tls(proxy, certs, who, _ask(*line.split()))
        for who in ("front", "orders", None)
        for line in ("GET /v1/orders/7", "POST /v1/orders/7", "GET /v1/orders/admin", "GET /other")
    }
    assert {key for key, status in asked.items() if status == 200} == {("front", "GET /v1/orders/7")}
    assert {status for (who, _), status in asked.items() if who is None} == {0}
    assert {status for (who, _), status in asked.items() if who == "orders"} == {403}


def test_gateway_api(play: Play, serve: StartServer) -> None:
    app, new, payments = serve(), serve(), serve()
    server, port = _serve(_Ledger())
    places = {"orders-v2": new.address, "payments": payments.address, "ledger.bank": ("127.0.0.1", port)}
    proxy = play("gateway-api", app.address, places)
    assert proxy.get("/v1/orders", "orders", x_canary="always").status == 200
    assert (len(app.requests), len(new.requests)) == (0, 1)
    moved = proxy.get("/old/7?full=1", "orders.shop.svc")
    assert (moved.status, moved["location"]) == (301, "http://orders.shop.svc/v1/7?full=1")
    with Client(proxy.outbound) as client:
        assert client.get("/charges/7", "payments.shop.svc:80", x_debug="1").status == 200
        assert client.get("/accounts", "payments").status == 404
    (request,) = payments.requests
    assert (request.target, request["x-from"], "x-debug" in request) == ("/v2/charges/7", "orders", False)
    options = [("grpc.default_authority", "ledger.bank.svc:50051")]
    try:
        with grpc.insecure_channel(f"127.0.0.1:{proxy.outbound[1]}", options) as channel:
            with pytest.raises(grpc.RpcError) as first:
                channel.unary_unary("/bank.Ledger/List")(b"hello", timeout=5)
            assert first.value.details() == "warming up"
            assert channel.unary_unary("/bank.Ledger/List")(b"hello", timeout=5) == b"hello"
            with pytest.raises(grpc.RpcError) as unknown:
                channel.unary_unary("/bank.Other/List")(b"", timeout=5)
            assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED
    finally:
        server.stop(None)


def test_shadow_rollout(play: Play, serve: StartServer) -> None:
    app = serve()
    proxy = play("shadow-rollout", app.address)
    with proxy.client() as client:
        assert client.get("/v1/orders").status == 200
        assert proxy.metrics()("l7proxy_shadow_denied_total") == 0
        assert client.request(b"POST /v1/orders HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").status == 200
    assert len(app.requests) == 2
    assert proxy.metrics()("l7proxy_shadow_denied_total", rule="only-reads") == 1


def test_rate_limits(play: Play, serve: StartServer) -> None:
    proxy = play("rate-limits", serve().address)

    def seen(count: int, target: str, **headers: str) -> Counter[int]:
        with proxy.client() as client:
            return Counter(client.get(target, **headers).status for _ in range(count))

    assert seen(14, "/v1/reports")[429] >= 2
    assert seen(120, "/v1/a", x_tenant="blue") == {200: 100, 429: 20} or seen(1, "/v1/a", x_tenant="blue")[429]
    assert seen(50, "/v1/a", x_tenant="red") == {200: 50}
    assert seen(60, "/")[429] > 0


def test_retries(play: Play, serve: StartServer) -> None:
    def busy_first(connection: Connection) -> None:
        while connection.read():
            first = len(inventory.requests) % 2
            connection.send(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n" if first else OK)

    inventory = serve(busy_first)
    proxy = play("retries", upstreams={"inventory": inventory.address}, app=serve().address)
    assert proxy.get("/v1/stock/7").status == 200
    with proxy.client() as client:
        post = b"POST /v1/stock HTTP/1.1\r\nhost: a\r\n%bcontent-length: 0\r\n\r\n"
        assert client.request(post % b"").status == 503
        inventory.requests.clear()
        assert client.request(post % b"idempotency-key: 1\r\n").status == 200


def test_header_hygiene(play: Play, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\nServer: app/1.2\r\nX-Powered-By: tea\r\ncontent-length: 0\r\n\r\n")

    app = serve(script)
    answer = play("header-hygiene", app.address).get("/", x_debug="1", x_internal_user="root", x_edge="forged")
    (request,) = app.requests
    assert "x-debug" not in request
    assert "x-internal-user" not in request
    assert request.all("x-edge") == ["sidecar"]
    assert "server" not in answer
    assert "x-powered-by" not in answer
    assert answer["x-content-type-options"] == "nosniff"


class _Ledger(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Fails every first call of each method as UNAVAILABLE."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def service(self, call: Any) -> Any:
        def answer(message: bytes, context: Any) -> bytes:
            self.calls[call.method] += 1
            if self.calls[call.method] == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "warming up")
            return message

        return grpc.unary_unary_rpc_method_handler(answer)


def _serve(ledger: _Ledger) -> tuple[grpc.Server, int]:
    server = grpc.server(ThreadPoolExecutor(4), handlers=[ledger], options=[("grpc.so_reuseport", 0)])
    port = free_port()
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


def test_grpc(play: Play) -> None:
    ledger = _Ledger()
    server, port = _serve(ledger)
    try:
        proxy = play("grpc", upstreams={"ledger": ("127.0.0.1", port)}, app=("127.0.0.1", free_port()))
        with grpc.insecure_channel(f"127.0.0.1:{proxy.inbound[1]}") as channel:

            def call(method: str) -> Any:
                return channel.unary_unary(f"/bank.Ledger/{method}")(b"hello", timeout=5)

            assert call("List") == b"hello"
            assert ledger.calls["/bank.Ledger/List"] == 2
            with pytest.raises(grpc.RpcError) as failed:
                call("Transfer")
            assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
            assert ledger.calls["/bank.Ledger/Transfer"] == 1
            with pytest.raises(grpc.RpcError) as unknown:
                channel.unary_unary("/bank.Other/Get")(b"", timeout=5)
            assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED
    finally:
        server.stop(None)


def test_egress(play: Play, serve: StartServer) -> None:
    payments, mirror = serve(), serve()
    proxy = play("egress", upstreams={"payments": payments.address, "mirror": mirror.address})

    def ask(target: str, host: str) -> tuple[int, str | None]:
        with Client(proxy.outbound) as client:
            answer = client.get(target, host)
            return answer.status, answer.get("x-l7proxy-error")

    assert ask("/v2/charges/1", "payments.bank.svc") == (200, None)
    assert ask("/v1/accounts", "payments.bank.svc") == (404, "no_route")
    assert ask("/simple", "pypi.mirror.internal:80") == (200, None)
    assert ask("/simple", "old.mirror.internal") == (410, None)
    assert ask("/", "evil.example") == (502, "egress_blocked")
    assert (len(payments.requests), len(mirror.requests)) == (1, 1)
