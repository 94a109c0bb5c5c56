"""Upstreams that refuse our certificate: inside the handshake (TLS 1.2), or after it is done for us (TLS 1.3)."""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tests.conftest import StartServer, StartSidecar
from tests.identity.pki import DAY, NOW, ORDERS, WEB, Authority, Pair
from tests.identity.test_peers import envoy, envoy_tls
from tests.support.client import Client
from tests.support.net import Address, accepts, free_address, wait_for
from tests.support.process import Process
from tests.support.server import OK, Connection, Server
from tests.support.sidecar import Document, Sidecar, route, upstream

PROTOCOLS = ["http1", "http2", "auto"]
GET = b"GET / HTTP/1.1\r\nhost: up\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: up\r\ncontent-length: %d\r\n\r\n"
BAD_CERTIFICATE, INTERNAL_ERROR = 42, 80
# What is asked for once is tried once: a certificate that is refused is no reset.
ONCE = {"retry": {"on": ["reset"]}}
StartTls = Callable[..., Server]


@pytest.fixture
def strict(ca: Authority, orders: Pair) -> Iterator[StartTls]:
    """Starts servers of HTTP/1.1 (Python's `ssl`) that want a certificate of `ca`, and close where they get none."""
    running: list[Server] = []

    def start(version: str = "1.3", trusted: Authority = ca) -> Server:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(orders.cert, orders.key)
        made.load_verify_locations(trusted.file)
        made.verify_mode = ssl.CERT_REQUIRED
        made.set_alpn_protocols(["h2", "http/1.1"])
        made.maximum_version = ssl.TLSVersion.TLSv1_2 if version == "1.2" else ssl.TLSVersion.TLSv1_3

        def script(connection: Connection) -> None:
            sock = made.wrap_socket(connection.sock, server_side=True, do_handshake_on_connect=False)
            connection.sock = connection.reader.sock = sock
            sock.do_handshake()
            while True:
                connection.read()
                connection.send(OK)

        running.append(Server(script))
        return running[-1]

    yield start
    for server in running:
        server.close()


def out(address: Address | list[Address], protocol: str = "http1", policies: Any = ONCE, **spec: Any) -> list[Document]:
    addresses = address if isinstance(address, list) else [address]
    return [
        upstream("up", *addresses, protocol=protocol, **spec),
        route("to-up", direction="outbound", hosts=["up"], upstream="up", policies=policies),
    ]


def files(ca: Authority, pair: Pair | None) -> dict[str, str]:
    mine = {} if pair is None else {"cert": str(pair.cert), "key": str(pair.key)}
    return {**mine, "ca": str(ca.file), "identity": ORDERS}


def ask(proxy: Sidecar, request: bytes = GET) -> dict[str, Any]:
    """Sends a request through the outbound listener and returns its line in the access log."""
    before = len(proxy.log.read_text().splitlines()) if proxy.log.exists() else 0
    with Client(proxy.outbound) as client:
        answer = client.request(request)
    line = proxy.log_lines(before + 1)[-1]
    assert line["status"] == answer.status
    return line


def refused(proxy: Sidecar, request: bytes = GET) -> str:
    """Sends a request that fails as one to an upstream that cannot be reached, and returns what the log says of it."""
    line = ask(proxy, request)
    assert (line["status"], line["code"], line["flags"]) == (503, "upstream_connect", "UF"), line
    return str(line["detail"])


def failures(proxy: Sidecar) -> float:
    return proxy.metrics()("l7proxy_upstream_connect_failures_total", l7proxy_upstream="up")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_certificate_of_another_ca_is_a_connect_failure_and_named_in_the_log(
    protocol: str, version: str, strict: StartTls, sidecar: StartSidecar, ca: Authority, web: Pair, tmp_path: Path
) -> None:
    server = strict(version, trusted=Authority(tmp_path, "stranger"))
    proxy = sidecar(*out(server.address, protocol, tls=files(ca, web)))
    details = {refused(proxy) for _ in range(20)}
    assert details == {
        f"127.0.0.1:{server.port}: the peer refused the handshake: it does not know the CA of our certificate, "
        f"{WEB} signed by CN=ca (unknown ca)"
    }
    assert failures(proxy) == 20
    assert proxy.metrics()("l7proxy_upstream_connections", l7proxy_upstream="up") == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_missing_certificate_is_a_connect_failure(
    protocol: str, strict: StartTls, sidecar: StartSidecar, ca: Authority, tmp_path: Path
) -> None:
    server = strict(trusted=Authority(tmp_path, "stranger"))
    proxy = sidecar(*out(server.address, protocol, tls=files(ca, None)))
    assert "it wants a client certificate and we showed none" in refused(proxy)
    assert failures(proxy) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_expired_certificate_is_a_connect_failure_with_its_date(
    protocol: str, strict: StartTls, sidecar: StartSidecar, ca: Authority, tmp_path: Path
) -> None:
    pair = ca.issue("old", WEB, start=NOW - 2 * DAY, end=NOW - DAY)
    server = strict(version="1.3")
    proxy = sidecar(*out(server.address, protocol, tls=files(ca, pair)))
    assert "it says that our certificate has expired, certificate expired 24 h ago" in refused(proxy)
    assert failures(proxy) == 1


def test_the_bytes_of_a_body_change_nothing(
    strict: StartTls, sidecar: StartSidecar, ca: Authority, web: Pair, tmp_path: Path
) -> None:
    """Writes that fail while the verdict lies unread in the socket do not hide it."""
    server = strict(trusted=Authority(tmp_path, "stranger"))
    proxy = sidecar(*out(server.address, tls=files(ca, web)))
    for size in (100, 10_000, 1 << 20):
        assert "it does not know the CA of our certificate" in refused(proxy, POST % size + b"x" * size)


def test_a_post_goes_to_another_endpoint_where_one_refuses_our_certificate(
    strict: StartTls, sidecar: StartSidecar, ca: Authority, web: Pair, tmp_path: Path
) -> None:
    picky, kind = strict(trusted=Authority(tmp_path, "stranger")), strict()
    policies = {"retry": {"on": ["connect-failure"]}}
    endpoints = [picky.address, kind.address]
    proxy = sidecar(*out(endpoints, policies=policies, balance="roundRobin", tls=files(ca, web)))
    lines = [ask(proxy, POST % 2 + b"hi") for _ in range(4)]
    assert [line["status"] for line in lines] == [200] * 4
    assert failures(proxy) >= 1
    assert [request.body for request in kind.requests] == [b"hi"] * 4
    assert not picky.requests


def test_an_endpoint_that_refuses_our_certificate_is_ejected(
    strict: StartTls, sidecar: StartSidecar, ca: Authority, web: Pair, tmp_path: Path
) -> None:
    picky, kind = strict(trusted=Authority(tmp_path, "stranger")), strict()
    spec = {"balance": "roundRobin", "ejection": {"failures": 2}, "tls": files(ca, web)}
    proxy = sidecar(*out([picky.address, kind.address], **spec))
    statuses = [ask(proxy)["status"] for _ in range(12)]
    assert statuses.count(503) == 2
    assert proxy.metrics()("l7proxy_ejections_total", l7proxy_upstream="up") == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_envoy_refuses_our_certificate(
    protocol: str, sidecar: StartSidecar, ca: Authority, web: Pair, orders: Pair, serve: StartServer, tmp_path: Path
) -> None:
    listen = free_address()
    alpn = "http/1.1" if protocol == "http1" else "h2"
    stranger = Authority(tmp_path, "stranger")
    process = envoy(tmp_path, listen, envoy_tls(stranger, orders, alpn), serve().address, {})
    proxy = sidecar(*out(listen, protocol, tls=files(ca, web)))
    assert f"our certificate, {WEB} signed by CN=ca" in refused(proxy)
    assert failures(proxy) == 1
    process.stop()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_openssl_refuses_our_certificate(
    protocol: str, sidecar: StartSidecar, ca: Authority, web: Pair, orders: Pair, tmp_path: Path
) -> None:
    listen = free_address()
    stranger = Authority(tmp_path, "stranger")
    command = ["openssl", "s_server", "-accept", str(listen[1]), "-cert", str(orders.cert), "-key", str(orders.key)]
    command += ["-CAfile", str(stranger.file), "-Verify", "1", "-verify_return_error", "-alpn", "h2,http/1.1", "-quiet"]
    process = Process("s_server", command, tmp_path)
    process.wait_until(lambda: accepts(listen))
    proxy = sidecar(*out(listen, protocol, tls=files(ca, web)))
    assert f"our certificate, {WEB} signed by CN=ca" in refused(proxy)
    process.stop()


# Alerts that are no verdict on our certificate.


@pytest.fixture
def alerting(ca: Authority, orders: Pair, tmp_path: Path) -> Iterator[StartTls]:
    """Starts servers that take our certificate, send `tickets`, answer a number of requests and then send an alert."""
    running: list[Server] = []

    def start(alert: int, answers: int = 0, tickets: int = 0) -> Server:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(orders.cert, orders.key)
        made.load_verify_locations(ca.file)
        made.verify_mode = ssl.CERT_REQUIRED
        made.num_tickets = tickets
        secrets = tmp_path / "secrets"
        made.keylog_filename = str(secrets)

        def script(connection: Connection) -> None:
            raw = connection.sock.dup()
            sock = made.wrap_socket(connection.sock, server_side=True)
            connection.sock = connection.reader.sock = sock
            for _ in range(answers):
                connection.read()
                connection.send(OK)
            connection.read()
            raw.sendall(sealed(secrets.read_text(), alert, tickets + answers))
            raw.close()
            connection.wait_for_close()

        running.append(Server(script))
        return running[-1]

    yield start
    for server in running:
        server.close()


def sealed(secrets: str, alert: int, number: int) -> bytes:
    """Returns a fatal alert as the record of a server that has sent `number` others (RFC 8446 5.2 and 7.3).

    Python's servers choose TLS_AES_256_GCM_SHA384.
    """
    secret = bytes.fromhex(secrets.rpartition("SERVER_TRAFFIC_SECRET_0 ")[2].split()[1])

    def expand(label: bytes, size: int) -> bytes:
        label = b"tls13 " + label
        info = size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
        return HKDFExpand(SHA384(), size, info).derive(secret)

    head = b"\x17\x03\x03\x00\x13"
    nonce = int.from_bytes(expand(b"iv", 12), "big") ^ number
    return head + AESGCM(expand(b"key", 32)).encrypt(nonce.to_bytes(12, "big"), bytes([2, alert, 21]), head)


def test_the_certificate_alert_of_a_server_that_said_nothing_before_is_a_verdict(
    alerting: StartTls, sidecar: StartSidecar, ca: Authority, web: Pair
) -> None:
    proxy = sidecar(*out(alerting(BAD_CERTIFICATE).address, tls=files(ca, web)))
    assert "it does not accept our certificate" in refused(proxy)


@pytest.mark.parametrize(
    ("alert", "answers", "tickets"),
    [(BAD_CERTIFICATE, 1, 0), (BAD_CERTIFICATE, 0, 2), (INTERNAL_ERROR, 0, 0)],
    ids=["after an answer", "after session tickets", "not about a certificate"],
)
def test_any_other_alert_is_a_reset_and_repeats_no_post(
    alert: int, answers: int, tickets: int, alerting: StartTls, sidecar: StartSidecar, ca: Authority, web: Pair
) -> None:
    server = alerting(alert, answers, tickets)
    policies = {"retry": {"on": ["connect-failure", "reset"]}}
    proxy = sidecar(*out(server.address, policies=policies, tls=files(ca, web)))
    for _ in range(answers):
        assert ask(proxy)["status"] == 200
    line = ask(proxy, POST % 2 + b"hi")
    assert (line["status"], line["code"], line["attempts"]) == (502, "upstream_reset", 1), line
    assert len(server.requests) == answers + 1
    wait_for(lambda: failures(proxy) == 0)
