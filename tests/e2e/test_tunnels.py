"""CONNECT under ALLOW_ANY: tunnels to any address, as clients with HTTPS_PROXY have them opened."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient
from tests.support.client import Client
from tests.support.net import Address, free_port
from tests.support.server import Connection
from tests.support.sidecar import route

ANY = {"policy": "ALLOW_ANY"}


def text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


@pytest.mark.needs("curl", "nginx", "openssl")
def test_https_proxy_works_with_curl_and_a_tls_server(
    sidecar: StartSidecar, nginx: Callable[..., Any], tmp_path: Path
) -> None:
    key, cert = tmp_path / "server.key", tmp_path / "server.crt"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject]
        + ["-keyout", str(key), "-out", str(cert), "-days", "2"],
        check=True,
        capture_output=True,
    )
    port = free_port()
    site = f"listen 127.0.0.1:{port} ssl; ssl_certificate {cert}; ssl_certificate_key {key};"
    nginx(server=site + " location = /hello { return 200 'over TLS'; }")
    proxy = sidecar(outbound=ANY)
    run = subprocess.run(
        ["curl", "-q", "-sS", "--cacert", str(cert), f"https://localhost:{port}/hello"],
        env={"HTTPS_PROXY": f"http://{text(proxy.outbound)}", "PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert run.stdout == b"over TLS", run.stderr
    opened, ended = proxy.log_lines(2)
    assert [(line["event"], line["method"], line["authority"]) for line in (opened, ended)] == [
        ("tunnel_open", "CONNECT", f"localhost:{port}"),
        ("tunnel_end", "CONNECT", f"localhost:{port}"),
    ]
    assert ended["bytes_out"] > 500
    labels = {"http_request_method": "CONNECT", "l7proxy_direction": "outbound"}
    assert proxy.metrics()("http_server_request_duration_seconds_count", **labels) == 1
    assert proxy.metrics()("l7proxy_upstream_connects_total", l7proxy_upstream="passthrough") == 1


def greet(connection: Connection) -> None:
    """A server that speaks first, and nothing like HTTP."""
    connection.sock.sendall(b"hello\n")
    connection.wait_for_close()


def test_a_tunnel_opens_over_http_2_too(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(greet)
    proxy = sidecar(outbound=ANY)
    with RawClient(proxy.outbound) as client:
        stream = client.request([(b":method", b"CONNECT"), (b":authority", text(app.address).encode())], end=False)
        client.until(lambda reader: reader.bodies.get(stream) == b"hello\n")
        assert client.reader.heads[stream][0][":status"] == "200"
    assert app.connections[0].reader.raw == b"", "a tunnel carries what the client sends, and no mark"


@pytest.mark.parametrize(
    ("policy", "host", "status", "code"),
    [
        ("ALLOW_ANY", "127.0.0.1:1", 503, "upstream_connect"),
        ("ALLOW_ANY", "named.test:443", 405, "method_not_allowed"),
        ("REGISTRY_ONLY", "127.0.0.1:1", 405, "method_not_allowed"),
        ("REGISTRY_ONLY", "named.test:443", 405, "method_not_allowed"),
    ],
)
def test_no_tunnel_opens_past_the_policy_or_to_hosts_of_routes(
    policy: str, host: str, status: int, code: str, sidecar: StartSidecar
) -> None:
    proxy = sidecar(
        route("named", direction="outbound", hosts=["named.test"], directResponse={"status": 200}),
        outbound={"policy": policy},
    )
    with Client(proxy.outbound) as client:
        client.send(f"CONNECT {host} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        answer = client.read("POST")
    assert (answer.status, answer["x-l7proxy-error"]) == (status, code)


def test_the_inbound_listener_opens_no_tunnel_to_the_application(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(greet)
    proxy = sidecar(app=app.address, outbound=ANY)
    with proxy.client() as client:
        client.send(f"CONNECT {text(app.address)} HTTP/1.1\r\nhost: {text(app.address)}\r\n\r\n".encode())
        assert client.read("POST").status == 405
