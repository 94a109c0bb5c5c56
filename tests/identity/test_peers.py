"""Peers that are not ours: openssl, curl and Envoy in front of the sidecar, Envoy and Python behind it."""

import contextlib
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import envoy as envoy_package
import pytest

from tests.conftest import StartServer, StartSidecar
from tests.identity.conftest import StartSecure
from tests.identity.pki import ORDERS, WEB, Authority, Pair, TlsClient, ask, context, openssl
from tests.support.client import Client
from tests.support.net import Address, accepts, free_address
from tests.support.process import Process
from tests.support.server import OK, Connection, Server
from tests.support.sidecar import Document, Sidecar, route, upstream

REQUEST = b"GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n"


def at(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_gets_an_answer(version: str, secure: StartSecure, ca: Authority, web: Pair) -> None:
    started = secure()
    said = openssl(
        "s_client", "-connect", at(started.inbound), version, "-cert", str(web.cert), "-key", str(web.key),
        "-CAfile", str(ca.file), "-alpn", "h2,http/1.1", "-ign_eof", "-verify_return_error",
        stdin=REQUEST,
    )  # fmt: skip
    assert "ALPN protocol: h2" in said
    assert "Verify return code: 0 (ok)" in said
    assert f"New, TLSv1.{version[-1]}" in said


def test_curl_speaks_http_2_and_http_1_1(secure: StartSecure, ca: Authority, web: Pair) -> None:
    started = secure()
    options = ["--cacert", ca.file, "--cert", web.cert, "--key", web.key, "-k", "-sS"]
    out = ["-o", "/dev/null", "-w", "%{http_code} %{http_version}"]
    url = f"https://{at(started.inbound)}/"
    for version, shown in (("--http2", "200 2"), ("--http1.1", "200 1.1")):
        ran = subprocess.run(["curl", *options, *out, version, url], capture_output=True, timeout=10, check=False)
        assert ran.stdout.decode() == shown, ran.stderr


def test_a_host_that_the_certificate_does_not_cover_is_misdirected(
    secure: StartSecure, ca: Authority, web: Pair
) -> None:
    pair = ca.issue("named", ORDERS, dns=["orders.example.com", "*.orders.svc"])
    started = secure(cert=str(pair.cert), key=str(pair.key))
    made = context(ca, web)
    for host, status in (
        ("orders.example.com", 200),
        ("ORDERS.example.com:443", 200),
        ("a.orders.svc", 200),
        ("a.b.orders.svc", 421),
        ("other.example.com", 421),
    ):
        assert ask(started.inbound, made, host=host, name="orders.example.com").status == status, host
    # Whoever asked for no name cannot be misdirected.
    assert ask(started.inbound, made, host="other.example.com").status == 200


def test_a_mesh_certificate_serves_every_host(secure: StartSecure, ca: Authority, web: Pair) -> None:
    started = secure()
    assert ask(started.inbound, context(ca, web), host="a.example.com", name="b.example.com").status == 200


def test_permissive_serves_both_on_one_port(secure: StartSecure, ca: Authority, web: Pair) -> None:
    started = secure(mode="PERMISSIVE")
    with Client(started.inbound) as client:
        assert client.get().status == 200
    assert ask(started.inbound, context(ca, web)).status == 200
    assert ask(started.inbound, context(ca)).status == 200
    peers = [line["peer"] for line in started.log_lines(3)]
    assert peers == ["", WEB, ""]


def test_permissive_still_refuses_a_certificate_that_is_not_good(
    secure: StartSecure, ca: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger").issue("x", WEB)
    started = secure(mode="PERMISSIVE")
    with pytest.raises((ssl.SSLError, OSError)):
        ask(started.inbound, context(ca, stranger))


def test_disable_speaks_plain_text_alone(secure: StartSecure) -> None:
    started = secure(mode="DISABLE")
    with Client(started.inbound) as client:
        assert client.get().status == 200


def test_large_bodies_pass_both_ways(secure: StartSecure, ca: Authority, web: Pair, serve: StartServer) -> None:
    body = bytes(range(256)) * 20_000

    def echo(connection: Connection) -> None:
        request = connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(request.body) + request.body)

    app = serve(echo)
    started = secure(inbound={"app": f"http://{at(app.address)}"})
    with TlsClient(started.inbound, context(ca, web)) as client:
        head = b"POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: %d\r\n\r\n" % len(body)
        assert client.request(head + body).body == body


def test_bytes_that_trickle_in_are_put_together(secure: StartSecure, ca: Authority, web: Pair) -> None:
    """A TCP relay cuts the records at every byte: nothing depends on where a segment ends."""
    started = secure()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context(ca, web).wrap_bio(incoming, outgoing)
    with Client(started.inbound) as client:

        def pump() -> None:
            client.send_slowly(outgoing.read(), 0.0002)

        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pump()
                incoming.write(client.sock.recv(65536))
        tls.write(REQUEST)
        pump()
        data = b""
        while not data.endswith(b"ok"):
            try:
                data += tls.read(65536)
            except ssl.SSLWantReadError:
                incoming.write(client.sock.recv(65536))
        assert data.startswith(b"HTTP/1.1 200 OK")


# Towards upstreams.


class TlsServer(Server):
    """A scripted server behind Python's `ssl`; it keeps the identity of each client."""

    def __init__(self, made: ssl.SSLContext) -> None:
        self.made = made
        self.clients: list[str] = []
        super().__init__(self.serve)

    def serve(self, connection: Connection) -> None:
        sock = self.made.wrap_socket(connection.sock, server_side=True, do_handshake_on_connect=False)
        try:
            sock.do_handshake()
        except (ssl.SSLError, OSError):
            # Closed with something unread, the kernel would send a reset that overtakes the alert.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_WR)
                while socket.socket.recv(sock, 4096):
                    pass
            sock.close()
            return
        names = (sock.getpeercert() or {}).get("subjectAltName", ())
        self.clients.append(str(next((value for kind, value in names if kind == "URI"), "")))
        connection.sock = sock
        connection.reader.sock = sock
        while True:
            connection.read()
            connection.send(OK)


@pytest.fixture
def tls_server(ca: Authority, orders: Pair) -> Iterator[TlsServer]:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(orders.cert, orders.key)
    made.load_verify_locations(ca.file)
    made.verify_mode = ssl.CERT_REQUIRED
    made.set_alpn_protocols(["http/1.1"])
    server = TlsServer(made)
    yield server
    server.close()


def out(name: str, address: Address, **tls: Any) -> list[Document]:
    """An upstream in TLS and the outbound route to it."""
    return [
        upstream(name, address, tls={key: str(value) for key, value in tls.items()}),
        route(f"to-{name}", direction="outbound", hosts=[name], upstream=name),
    ]


def call(started: Sidecar, host: str) -> tuple[int, str]:
    """Sends one GET through the outbound listener; returns (status, what the log says of it)."""
    before = len(started.log.read_text().splitlines()) if started.log.exists() else 0
    with Client(started.outbound) as client:
        status = client.get("/", host).status
    return status, started.log_lines(before + 1)[-1].get("detail", "")


def test_two_identities_never_share_a_connection(
    sidecar: StartSidecar, tls_server: TlsServer, ca: Authority, web: Pair
) -> None:
    batch = ca.issue("batch", "spiffe://demo/ns/shop/sa/batch")
    address = tls_server.address
    started = sidecar(
        *out("as-web", address, cert=web.cert, key=web.key, ca=ca.file, identity=ORDERS),
        *out("as-batch", address, cert=batch.cert, key=batch.key, ca=ca.file, identity=ORDERS),
    )
    for host in ("as-web", "as-batch", "as-web", "as-batch"):
        assert call(started, host)[0] == 200
    assert sorted(tls_server.clients) == ["spiffe://demo/ns/shop/sa/batch", WEB]


def test_an_upstream_of_another_identity_gets_no_request(
    sidecar: StartSidecar, tls_server: TlsServer, ca: Authority, web: Pair
) -> None:
    pair = {"cert": web.cert, "key": web.key, "ca": ca.file}
    started = sidecar(
        *out("wrong", tls_server.address, identity="spiffe://demo/ns/shop/sa/payments", **pair),
        *out("named", tls_server.address, identity="orders.example.com", **pair),
        *out("bare", tls_server.address, **pair),
    )
    assert call(started, "wrong") == (
        503,
        f"{at(tls_server.address)}: expected spiffe://demo/ns/shop/sa/payments, got {ORDERS}",
    )
    assert call(started, "named")[0] == 503
    status, detail = call(started, "bare")
    assert (status, detail) == (503, f"{at(tls_server.address)}: expected 127.0.0.1, got {ORDERS}")
    assert not tls_server.requests


def test_an_upstream_is_known_by_its_dns_name_or_address(
    sidecar: StartSidecar, ca: Authority, web: Pair, tmp_path: Path
) -> None:
    named = ca.issue("named", dns=["orders.example.com", "*.svc.local"])
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(named.cert, named.key)
    server = TlsServer(made)
    asked: list[str | None] = []
    made.sni_callback = lambda sock, name, ctx: asked.append(name)
    pair = {"cert": web.cert, "key": web.key, "ca": ca.file}
    started = sidecar(
        *out("a", server.address, identity="orders.example.com", sni="front.example.com", **pair),
        *out("b", server.address, identity="x.svc.local", **pair),
        *out("c", server.address, identity="x.y.svc.local", **pair),
    )
    assert [call(started, name)[0] for name in "abc"] == [200, 200, 503]
    # No name is asked for where the endpoint is an address (RFC 6066 3).
    assert asked[:3] == ["front.example.com", None, None]
    server.close()


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("plain", "the peer spoke plain text; no sidecar there?"),
        ("stranger", "unknown CA: CN=stranger signed"),
        ("refused", "the peer refused the handshake: it does not know the CA of our certificate"),
    ],
)
def test_the_doctor_says_why_an_upstream_cannot_be_reached(
    what: str, sentence: str, sidecar: StartSidecar, serve: StartServer, ca: Authority, web: Pair, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown = stranger.issue("shown", ORDERS) if what == "stranger" else ca.issue("shown", ORDERS)
    made.load_cert_chain(shown.cert, shown.key)
    if what == "refused":
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(stranger.file)

    def plain(connection: Connection) -> None:
        connection.sock.recv(4096)
        connection.send(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        connection.close()

    server = serve(plain) if what == "plain" else TlsServer(made)
    started = sidecar(*out("up", server.address, cert=web.cert, key=web.key, ca=ca.file, identity=ORDERS))
    status, detail = call(started, "up")
    assert status in (502, 503)
    assert sentence in detail
    server.close()


ENVOY_BINARY = str(Path(envoy_package.__file__).parent / "_bin" / "envoy")


def envoy_tls(ca: Authority, pair: Pair, alpn: str) -> dict[str, Any]:
    return {
        "alpn_protocols": [alpn],
        "tls_certificates": [
            {"certificate_chain": {"filename": str(pair.cert)}, "private_key": {"filename": str(pair.key)}}
        ],
        "validation_context": {"trusted_ca": {"filename": str(ca.file)}},
    }


def envoy(folder: Path, listen: Address, tls: dict[str, Any], to: Address, up: dict[str, Any]) -> Process:
    """Starts an Envoy that listens with `tls` (or in plain text) and forwards to `to` with `up`."""
    kind = "type.googleapis.com/envoy.extensions"
    http = {
        "@type": f"{kind}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "route_config": {
            "virtual_hosts": [
                {"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]}
            ]
        },
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{kind}.filters.http.router.v3.Router"}}],
    }
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": http}]}
    cluster: dict[str, Any] = {
        "name": "up",
        "load_assignment": {
            "cluster_name": "up",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": place(to)}}]}],
        },
    }
    sockets = f"{kind}.transport_sockets.tls.v3"
    if tls:
        down = {
            "@type": f"{sockets}.DownstreamTlsContext",
            "require_client_certificate": True,
            "common_tls_context": tls,
        }
        chain["transport_socket"] = {"name": "tls", "typed_config": down}
    if up:
        context_ = {"@type": f"{sockets}.UpstreamTlsContext", "common_tls_context": up}
        cluster["transport_socket"] = {"name": "tls", "typed_config": context_}
        if up["alpn_protocols"] == ["h2"]:
            protocols = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
            cluster["typed_extension_protocol_options"] = {
                protocols: {
                    "@type": f"type.googleapis.com/{protocols}",
                    "explicit_http_config": {"http2_protocol_options": {}},
                }
            }
    config = {"static_resources": {
        "listeners": [{"name": "l", "address": place(listen), "filter_chains": [chain]}], "clusters": [cluster],
    }}  # fmt: skip
    file = folder / f"envoy{listen[1]}.json"
    file.write_text(json.dumps(config))
    command = [ENVOY_BINARY, "-c", str(file), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    process = Process(f"envoy{listen[1]}", command, folder)
    process.wait_until(lambda: accepts(listen), 20)
    return process


def place(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
def test_envoy_in_front_proves_who_it_is(
    alpn: str, secure: StartSecure, ca: Authority, web: Pair, tmp_path: Path
) -> None:
    started = secure(route("orders", policies={"authorization": {"allow": [{"identities": [WEB]}]}}))
    listen = free_address()
    front = envoy(tmp_path, listen, {}, started.inbound, envoy_tls(ca, web, alpn))
    try:
        with Client(listen) as client:
            assert client.get("/", "orders").status == 200
    finally:
        front.stop()
    (line,) = started.log_lines(1)
    assert line["peer"] == WEB


@pytest.mark.parametrize(("alpn", "protocol"), [("http/1.1", "http1"), ("h2", "http2")])
def test_envoy_behind_learns_who_calls(
    alpn: str, protocol: str, sidecar: StartSidecar, serve: StartServer, ca: Authority, web: Pair, orders: Pair,
    tmp_path: Path,
) -> None:  # fmt: skip
    listen = free_address()
    app = serve()
    behind = envoy(tmp_path, listen, envoy_tls(ca, orders, alpn), app.address, {})
    tls = {"cert": str(web.cert), "key": str(web.key), "ca": str(ca.file), "identity": ORDERS}
    started = sidecar(
        upstream("orders", listen, tls=tls, protocol=protocol),
        route("to-orders", direction="outbound", hosts=["orders"], upstream="orders"),
    )
    try:
        assert call(started, "orders")[0] == 200
    finally:
        behind.stop()
    assert len(app.requests) == 1
