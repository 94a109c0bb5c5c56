"""Sessions towards upstreams: a new connection resumes the last one's, and no session outlives what it stood on."""

import datetime
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import StartSidecar
from tests.identity.conftest import StartSecure
from tests.identity.pki import ORDERS, WEB, Authority, Pair
from tests.identity.test_peers import TlsServer, call, out
from tests.identity.test_rotation import rotate
from tests.support.client import Client
from tests.support.net import free_address, wait_for
from tests.support.nginx import Nginx
from tests.support.server import Connection
from tests.support.sidecar import Sidecar

ONCE = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class OneRequest(TlsServer):
    """Answers one request on each connection; `resumed` says of each whether it resumed a session."""

    def __init__(self, made: ssl.SSLContext) -> None:
        self.resumed: list[bool] = []
        super().__init__(made)

    def serve(self, connection: Connection) -> None:
        try:
            sock = self.made.wrap_socket(connection.sock, server_side=True)
        except OSError:
            return
        self.resumed.append(bool(sock.session_reused))
        connection.sock = connection.reader.sock = sock
        connection.read()
        connection.send(ONCE)


@pytest.fixture
def server(ca: Authority, orders: Pair) -> Iterator[OneRequest]:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(orders.cert, orders.key)
    made.load_verify_locations(ca.file)
    made.verify_mode = ssl.CERT_REQUIRED
    made.set_alpn_protocols(["http/1.1"])
    server = OneRequest(made)
    yield server
    server.close()


def resumed(started: Sidecar) -> bool:
    """Sends a request, and tells whether nginx says that its connection resumed a session."""
    with Client(started.outbound) as client:
        answer = client.get("/", "orders")
    assert answer.status == 200
    return answer["x-reused"] == "r"


@pytest.mark.needs("nginx")
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_new_connections_resume_until_certificate_or_trust_change(
    version: str,
    sidecar: StartSidecar,
    nginx: Callable[..., Nginx],
    ca: Authority,
    web: Pair,
    orders: Pair,
    tmp_path: Path,
) -> None:
    address = free_address()
    nginx(
        keepalive="0",
        server=f"""
        listen {address[0]}:{address[1]} ssl;
        ssl_protocols {version};
        ssl_certificate {orders.cert};
        ssl_certificate_key {orders.key};
        ssl_client_certificate {ca.file};
        ssl_verify_client on;
        location / {{ add_header x-reused $ssl_session_reused; return 200; }}
        """,
    )
    trust = tmp_path / "trust.pem"
    trust.write_bytes(ca.pem)
    started = sidecar(*out("orders", address, cert=web.cert, key=web.key, ca=trust, identity=ORDERS))
    assert [resumed(started) for _ in range(4)] == [False, True, True, True]
    trust.write_bytes(ca.pem + Authority(tmp_path, "other").pem)
    rotate(started)
    assert [resumed(started) for _ in range(3)] == [False, True, True]
    ca.issue("web", WEB)
    rotate(started)
    assert [resumed(started) for _ in range(3)] == [False, True, True]


def test_a_session_whose_certificate_has_expired_is_offered_no_more(
    sidecar: StartSidecar, server: OneRequest, ca: Authority, web: Pair, orders: Pair
) -> None:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=4)
    ca.issue("orders", ORDERS, end=end)
    server.made.load_cert_chain(orders.cert, orders.key)
    started = sidecar(*out("orders", server.address, cert=web.cert, key=web.key, ca=ca.file, identity=ORDERS))
    assert [call(started, "orders")[0] for _ in range(2)] == [200, 200]
    # The server has another certificate, and opens the tickets that it gave with the one before.
    ca.issue("orders", ORDERS)
    server.made.load_cert_chain(orders.cert, orders.key)
    wait_for(lambda: datetime.datetime.now(datetime.UTC) > end, 10)
    assert [call(started, "orders") for _ in range(2)] == [(200, ""), (200, "")]
    assert server.resumed == [False, True, False, True]


def test_a_session_is_not_offered_where_another_identity_is_expected(
    sidecar: StartSidecar, server: OneRequest, ca: Authority, web: Pair
) -> None:
    tls = {"cert": web.cert, "key": web.key, "ca": ca.file}
    started = sidecar(
        *out("orders", server.address, **tls, identity=ORDERS),
        *out("billing", server.address, **tls, identity="spiffe://demo/ns/shop/sa/billing"),
    )
    assert [call(started, "orders")[0] for _ in range(2)] == [200, 200]
    status, detail = call(started, "billing")
    assert (status, "got spiffe://demo/ns/shop/sa/orders" in detail) == (503, True)
    assert call(started, "orders")[0] == 200
    # What is not among these failed in the handshake.
    assert server.resumed == [False, True, True]


def test_a_caller_is_known_on_a_connection_that_was_resumed(
    secure: StartSecure, sidecar: StartSidecar, ca: Authority, web: Pair
) -> None:
    inbound = secure()
    started = sidecar(*out("orders", inbound.inbound, cert=web.cert, key=web.key, ca=ca.file, identity=ORDERS))
    assert call(started, "orders")[0] == 200
    with Client(started.outbound) as busy:
        # The connection that there is waits for the rest of this body.
        busy.send(b"POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 4\r\n\r\nab")
        wait_for(lambda: inbound.metrics()("l7proxy_requests") == 1)
        assert call(started, "orders")[0] == 200
        busy.send(b"cd")
        assert busy.read("POST").status == 200
    assert inbound.metrics()("l7proxy_tls_handshakes_total", resumed="true") == 1
    assert {line["peer"] for line in inbound.log_lines(3)} == {WEB}
