"""HTTP/1.1 and HTTP/2 on either side, in plain text and in TLS, with curl, nghttp, nginx and Hypercorn as peers."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient, RawServer, wide_open
from tests.identity.pki import ORDERS, WEB, Authority, Pair
from tests.support.net import Address, free_address
from tests.support.server import Connection
from tests.support.sidecar import Sidecar, route, upstream
from tests.wire.h2_peer import GET, POST, block, data, frame, headers

pytestmark = pytest.mark.needs("curl")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pki")


@pytest.fixture(scope="module")
def ca(files: Path) -> Authority:
    return Authority(files)


@pytest.fixture(scope="module")
def web(ca: Authority) -> Pair:
    return ca.issue("web", WEB)


@pytest.fixture(scope="module")
def proxies(
    shared_sidecar: StartSidecar, ca: Authority, uvicorn_app: Address, h2_app: Address
) -> dict[tuple[str, str], Sidecar]:
    """A sidecar for each way in and out."""
    orders = ca.issue("orders", ORDERS)
    tls = {"cert": str(orders.cert), "key": str(orders.key), "ca": str(ca.file)}
    made = {}
    for inward, block_ in (("plain", None), ("tls", tls)):
        for outward, address in (("http1", uvicorn_app), ("http2", h2_app)):
            made[inward, outward] = shared_sidecar(
                upstream("u", address, protocol=outward), route("u", upstream="u"), inbound={"tls": block_}
            )
    return made


class Curl:
    """curl with one way to speak."""

    def __init__(self, proxy: Sidecar, http2: bool, secure: tuple[Authority, Pair] | None) -> None:
        self.version = "2" if http2 else "1.1"
        self.options = ["--http2" if secure else "--http2-prior-knowledge"] if http2 else ["--http1.1"]
        self.base = f"http://127.0.0.1:{proxy.inbound[1]}"
        if secure:
            ca, web = secure
            # The sidecar's certificate has a SPIFFE ID and no DNS name, which is what curl would look at.
            self.options += ["-k", "--cacert", str(ca.file), "--cert", str(web.cert), "--key", str(web.key)]
            self.base = self.base.replace("http:", "https:")

    def __call__(self, path: str, *options: str, stdin: bytes | None = None) -> tuple[str, int, bytes]:
        """Returns (HTTP version, status, body)."""
        command = [
            "curl",
            "-q",
            "-sS",
            "--max-time",
            "30",
            "-w",
            "\n%{http_version} %{http_code}",
            *self.options,
            *options,
        ]
        run = subprocess.run([*command, self.base + path], input=stdin, capture_output=True, timeout=40)
        assert run.returncode == 0, run.stderr.decode()
        body, _, end = run.stdout.rpartition(b"\n")
        version, status = end.decode().split()
        return version, int(status), body


@pytest.fixture(
    params=[
        (inward, http2, outward) for inward in ("plain", "tls") for http2 in (0, 1) for outward in ("http1", "http2")
    ],
    ids=lambda param: f"{'h2' if param[1] else 'h1'} {param[0]} to {param[2]}",
)
def curl(request: pytest.FixtureRequest, proxies: Any, ca: Authority, web: Pair) -> Curl:
    inward, http2, outward = request.param
    return Curl(proxies[inward, outward], http2, (ca, web) if inward == "tls" else None)


def test_a_request_and_its_answer_pass(curl: Curl) -> None:
    version, status, body = curl("/hello?a=1&b=2", "-H", "x-custom: value", "-H", "cookie: a=1; b=2")
    assert (version, status) == (curl.version, 200)
    said = json.loads(body)
    assert (said["method"], said["target"]) == ("GET", "/hello?a=1&b=2")
    fields = [tuple(pair) for pair in said["headers"]]
    assert ("x-custom", "value") in fields
    assert ("cookie", "a=1; b=2") in fields
    assert sum(name == "host" for name, _ in fields) == 1
    assert not any(name in ("connection", "upgrade", "http2-settings", "transfer-encoding") for name, _ in fields)


def test_bodies_pass_both_ways_untouched(curl: Curl) -> None:
    sent = bytes(range(256)) * 4096
    _, status, body = curl("/echo", "--data-binary", "@-", "-H", "content-type: application/octet-stream", stdin=sent)
    assert status == 200
    assert json.loads(body)["body"].encode("latin-1") == sent
    _, status, body = curl("/bytes/20000000")
    assert (status, len(body)) == (200, 20_000_000)
    assert hashlib.sha256(body).digest() == hashlib.sha256((bytes(range(256)) * 256 * 306)[:20_000_000]).digest()


def test_a_body_without_a_length_passes(curl: Curl) -> None:
    _, status, body = curl("/count", "-T", "-", stdin=b"x" * 300_000)
    assert (status, body) == (200, b"300000")


@pytest.mark.parametrize("status", [204, 304, 404, 500])
def test_statuses_pass(status: int, curl: Curl) -> None:
    _, seen, _ = curl(f"/status/{status}")
    assert seen == status


def test_head_has_the_head_alone(curl: Curl) -> None:
    _, status, body = curl("/hello", "-I")
    assert status == 200
    assert b"content-length" in body.lower()


def test_an_answer_of_the_proxy_reads_the_same(curl: Curl) -> None:
    _, status, body = curl("/%00")
    assert status == 400
    assert json.loads(body)["error"] == "bad_request"


# Upgrade: h2c


@pytest.mark.parametrize("outward", ["http1", "http2"])
def test_an_upgrade_to_h2c_is_served_as_http_1_1(outward: str, proxies: Any) -> None:
    proxy = proxies["plain", outward]
    command = ["curl", "-sS", "--http2", "-w", "\n%{http_version} %{http_code}"]
    run = subprocess.run([*command, f"http://127.0.0.1:{proxy.inbound[1]}/x"], capture_output=True, timeout=30)
    body, _, end = run.stdout.decode().rpartition("\n")
    assert end == "1.1 200"
    assert not {"upgrade", "http2-settings", "connection"} & {name for name, _ in json.loads(body)["headers"]}


# Trailers


def chunked_with_trailers(connection: Connection) -> None:
    while True:
        connection.read()
        connection.send(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
            b"3\r\nabc\r\n0\r\nx-sum: 6\r\nx-more: yes\r\n\r\n"
        )


def h2_with_trailers(connection: Connection) -> None:
    server = RawServer(connection)
    while True:
        stream = server.request()
        server.send(headers(stream, [(b":status", b"200")], end=False) + data(stream, b"abc"))
        server.send(headers(stream, [(b"x-sum", b"6"), (b"x-more", b"yes")]))


@pytest.mark.parametrize(
    ("script", "protocol"), [(chunked_with_trailers, "http1"), (h2_with_trailers, "http2")], ids=["from h1", "from h2"]
)
def test_trailers_of_the_answer_pass(
    script: Callable[[Connection], None], protocol: str, sidecar: StartSidecar, serve: StartServer
) -> None:
    proxy = sidecar(upstream("u", serve(script).address, protocol=protocol), route("u", upstream="u"))
    with RawClient(proxy.inbound) as client:
        stream = client.request()
        client.until(lambda reader: stream in reader.ended)
        assert client.reader.bodies[stream] == b"abc"
        assert client.reader.heads[stream][-1] == {"x-sum": "6", "x-more": "yes"}
    with proxy.client() as old:
        answer = old.get("/", te="trailers")
        assert answer.body == b"abc"
        assert answer.trailers == [(b"x-sum", b"6"), (b"x-more", b"yes")]


@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_trailers_of_the_request_pass(protocol: str, sidecar: StartSidecar, serve: StartServer) -> None:
    seen: list[Any] = []

    def h2_script(connection: Connection) -> None:
        server = RawServer(connection)
        while True:
            stream = server.request()
            trailers = [(name.encode(), value.encode()) for name, value in server.reader.heads[stream][-1].items()]
            seen.append((server.reader.bodies[stream], trailers))
            server.answer(stream)

    app = serve(h2_script) if protocol == "http2" else serve()
    proxy = sidecar(upstream("u", app.address, protocol=protocol), route("u", upstream="u"))
    with RawClient(proxy.inbound) as client:
        stream = client.request(POST, end=False)
        client.send(data(stream, b"abc") + headers(stream, [(b"x-sum", b"6")]))
        assert client.answer(stream)[":status"] == "200"
    with proxy.client() as old:
        old.send(
            b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 6\r\n\r\n"
        )
        assert old.read().status == 200
    if protocol == "http1":
        seen = [(message.body, message.trailers) for message in app.requests]
    assert seen == [(b"abc", [(b"x-sum", b"6")])] * 2


# Streaming


@pytest.mark.parametrize("outward", ["http1", "http2"])
@pytest.mark.parametrize("http2", [False, True])
def test_events_arrive_one_by_one(http2: bool, outward: str, shared_sidecar: StartSidecar, h2_app: Address) -> None:
    proxy = shared_sidecar(upstream("u", h2_app, protocol=outward), route("u", upstream="u"))
    command = ["curl", "-sSN", "--http2-prior-knowledge" if http2 else "--http1.1"]
    with subprocess.Popen(
        [*command, f"http://127.0.0.1:{proxy.inbound[1]}/events"], stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdout is not None
        first = process.stdout.read(9)
        # The rest takes another second: had it been kept back, it would all be here.
        assert first == b"data: 0\n\n"
        rest = process.stdout.read(9)
        assert rest == b"data: 1\n\n"


@pytest.mark.parametrize("outward", ["http1", "http2"])
def test_both_directions_flow_at_once(outward: str, shared_sidecar: StartSidecar, h2_app: Address) -> None:
    proxy = shared_sidecar(upstream("u", h2_app, protocol=outward), route("u", upstream="u"))
    with RawClient(proxy.inbound) as client:
        stream = client.request(
            [(b":path", b"/ping-pong") if pair[0] == b":path" else pair for pair in POST], end=False
        )
        said = b""
        for word in (b"one", b"two", b"three"):
            client.send(data(stream, word))
            said += word.upper()
            client.until(lambda reader, said=said: reader.bodies.get(stream) == said)
            assert client.reader.bodies[stream] == said
        client.send(data(stream, b"", end=True))
        assert client.answer(stream)[":status"] == "200"


@pytest.mark.parametrize("outward", ["http1", "http2"])
def test_an_expectation_is_met_when_the_body_is_wanted(outward: str, proxies: dict[tuple[str, str], Sidecar]) -> None:
    with RawClient(proxies["plain", outward].inbound) as client:
        stream = client.request([*POST, (b"expect", b"100-continue")], end=False)
        client.until(lambda reader: stream in reader.heads)
        assert client.reader.heads[stream][0][":status"] == "100"
        client.send(data(stream, b"x", end=True))
        client.until(lambda reader: stream in reader.ended)
        assert client.reader.heads[stream][-1][":status"] == "200"


# Other peers


@pytest.mark.needs("nginx")
def test_nginx_is_spoken_to_in_http_2(sidecar: StartSidecar, nginx: Any) -> None:
    address = free_address()
    server = nginx(server=f"listen 127.0.0.1:{address[1]} http2; http2_max_concurrent_streams 8;")
    (server.www / "file").write_bytes(b"x" * 1_000_000)
    proxy = sidecar(upstream("u", address, protocol="http2"), route("u", upstream="u"))
    with RawClient(proxy.inbound, wide_open()) as client:
        streams = [client.request([*GET[:3], (b":path", b"/file")]) for _ in range(30)]
        for stream in streams:
            assert client.answer(stream)[":status"] == "200"
            assert len(client.reader.bodies[stream]) == 1_000_000
    assert len(proxy.get("/file").body) == 1_000_000
    assert proxy.metrics()("l7proxy_upstream_connects_total", l7proxy_upstream="u") > 1


@pytest.mark.needs("nghttp")
def test_nghttp_gets_many_files_with_priorities(proxies: dict[tuple[str, str], Sidecar]) -> None:
    proxy = proxies["plain", "http1"]
    urls = [f"http://127.0.0.1:{proxy.inbound[1]}/bytes/{size}" for size in (0, 1, 10_000, 500_000)]
    run = subprocess.run(["nghttp", "-ns", *urls], capture_output=True, timeout=30, text=True)
    assert run.returncode == 0
    assert run.stdout.count(" 200 ") == 4


@pytest.mark.needs("h2load")
@pytest.mark.parametrize("outward", ["http1", "http2"])
def test_h2load_finds_no_fault(outward: str, proxies: dict[tuple[str, str], Sidecar]) -> None:
    proxy = proxies["plain", outward]
    command = ["h2load", "-n2000", "-c4", "-m50", f"http://127.0.0.1:{proxy.inbound[1]}/bytes/2000"]
    run = subprocess.run(command, capture_output=True, timeout=60, text=True)
    assert "2000 succeeded, 0 failed, 0 errored" in run.stdout, (run.stdout, proxy.process.stderr)


def test_alpn_decides_where_an_upstream_says_auto(
    shared_sidecar: StartSidecar, ca: Authority, web: Pair, uvicorn_app: Address
) -> None:
    """One sidecar in front of another: the second offers both protocols, the first takes HTTP/2."""
    orders = ca.issue("orders-auto", ORDERS)
    tls = {"cert": str(orders.cert), "key": str(orders.key), "ca": str(ca.file)}
    behind = shared_sidecar(app=uvicorn_app, inbound={"tls": tls})
    caller = {"cert": str(web.cert), "key": str(web.key), "ca": str(ca.file), "identity": ORDERS}
    for protocol, version in (("auto", "2"), ("http2", "2"), ("http1", "1.1")):
        front = shared_sidecar(
            upstream("u", behind.inbound, protocol=protocol, tls=caller), route("u", upstream="u"), name="front"
        )
        before = len(behind.log_lines(0))
        assert front.get("/hello").status == 200
        assert front.get("/hello").status == 200
        lines = behind.log_lines(before + 2)[before:]
        assert {line["protocol"] for line in lines} == {version}


def test_a_huge_header_travels_in_continuations(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        stream = server.request()
        raw = block([(b":status", b"200"), *((b"x-%d" % number, b"v" * 5000) for number in range(10))])
        server.send(frame(1, 0, stream, raw[:16_000]))
        for at in range(16_000, len(raw), 16_000):
            server.send(frame(9, 4 if at + 16_000 >= len(raw) else 0, stream, raw[at : at + 16_000]))
        server.send(data(stream, b"ok", end=True))
        server.rest()

    proxy = sidecar(upstream("u", serve(script).address, protocol="http2"), route("u", upstream="u"))
    with proxy.client() as client:
        answer = client.get()
        assert len(answer["x-9"]) == 5000
        assert answer.body == b"ok"
