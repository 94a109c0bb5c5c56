"""THREATS, TLS and identity: every row on a real socket, refused before a request reaches the app."""

import contextlib
import json
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from l7proxy.identity.peer import peer_of
from tests.conftest import StartServer, StartSidecar
from tests.identity.conftest import StartSecure
from tests.identity.pki import DAY, NOW, ORDERS, WEB, Authority, Pair, TlsClient, ask, context, unreadable
from tests.support.client import Client
from tests.support.net import wait_for
from tests.support.server import Server
from tests.support.sidecar import Sidecar, route

Make = Callable[[Authority], Pair]


def refused(started: Sidecar, ca: Authority, pair: Pair | None, reason: str, **options: object) -> str:
    """Checks that a client with this certificate gets no answer; returns the log's sentence."""
    with pytest.raises((ssl.SSLError, OSError)):
        ask(started.inbound, context(ca, pair, **options))
    return told(started, reason)


def told(started: Sidecar, reason: str) -> str:
    """Waits for the one log line of a failed handshake with this reason and returns its sentence."""

    def find() -> str:
        lines = [json.loads(line) for line in started.process.stderr.splitlines() if "handshake failed" in line]
        return next((line["detail"] for line in lines if line["reason"] == reason), "")

    found = wait_for(find, 5, lambda: f"no handshake failed for {reason}:\n{started.process.stderr}")
    name = "l7proxy_tls_handshake_failures_total"
    assert started.metrics()(name, reason=reason, listener="inbound") >= 1
    return found


def unread(pair: Pair) -> Pair:
    """Makes a certificate one that only OpenSSL reads."""
    pair.cert.write_bytes(unreadable(pair.cert.read_bytes()))
    return pair


@pytest.mark.parametrize(
    ("make", "reason", "sentence"),
    [
        (lambda ca: ca.issue("x", WEB, end=NOW - DAY / 2), "expired", "expired 12 h ago"),
        (lambda ca: ca.issue("x", WEB, start=NOW + DAY / 2), "not_yet_valid", "not valid yet: in 11 h"),
        (lambda ca: Authority(ca.folder, "stranger").issue("x", WEB), "unknown_ca", "unknown CA: CN=stranger signed"),
        (lambda ca: ca.issue("x", WEB, usages=[ExtendedKeyUsageOID.SERVER_AUTH]), "purpose", "by a client"),
        (lambda ca: ca.issue("x", WEB, "spiffe://demo/b"), "bad_certificate", "2 URI names"),
        (lambda ca: ca.issue("x", WEB, "https://demo/"), "bad_certificate", "2 URI names"),
        (lambda ca: ca.issue("x", "https://demo/web"), "bad_certificate", "not a SPIFFE ID"),
        (lambda ca: ca.issue("x", "spiffe://Demo/web"), "bad_certificate", "'Demo' is not a trust domain"),
        (lambda ca: ca.issue("x", "spiffe://demo/a/../web"), "bad_certificate", "'..' is no segment"),
        (lambda ca: ca.issue("x", "spiffe://demo/a%2fweb"), "bad_certificate", "no segment"),
        (lambda ca: ca.issue("x", "spiffe://demo"), "bad_certificate", "names a trust domain, not a workload"),
        (lambda ca: ca.issue("x", "spiffe://demo:8080/web"), "bad_certificate", "is not a trust domain"),
        (lambda ca: ca.issue("x", "spiffe://demo/" + "a" * 2048), "bad_certificate", "at most 2048 bytes"),
        (
            lambda ca: ca.issue("x", "spiffe://other/web"),
            "trust_domain",
            "is of trust domain other; accepted here: demo",
        ),
        (lambda ca: ca.issue("x", WEB, ca=True), "bad_certificate", "CA certificate as its own"),
        (lambda ca: ca.issue("x", WEB, cert_sign=True), "bad_certificate", "may sign others"),
        (lambda ca: ca.issue("x"), "bad_certificate", "neither a URI nor a DNS name"),
        (lambda ca: ca.issue("x", dns=[WEB]), "bad_certificate", "neither a URI nor a DNS name"),
        (lambda ca: ca.issue("x", WEB, padding=120_000), "bad_certificate", "larger than 100 KiB"),
        (lambda ca: unread(ca.issue("x", WEB)), "bad_certificate", "cannot be read"),
        (lambda ca: None, "no_certificate", "the peer showed no certificate"),
    ],
)
def test_a_certificate_that_proves_nothing_is_refused(
    make: Make, reason: str, sentence: str, secure: StartSecure, ca: Authority
) -> None:
    started = secure()
    assert sentence in refused(started, ca, make(ca), reason)
    assert not started.log.exists() or not started.log.read_text()


def test_a_dns_name_is_no_spiffe_id_whatever_it_looks_like(ca: Authority) -> None:
    def identity(*dns: str) -> str:
        certificate, _ = ca.sign(dns=dns)
        return peer_of(certificate.public_bytes(Encoding.DER)).identity

    assert identity(WEB, "web.shop.svc") == "web.shop.svc"
    assert identity("a b", "spiffe:", "*.shop.svc") == "*.shop.svc"


def test_a_self_signed_certificate_is_refused(secure: StartSecure, ca: Authority, tmp_path: Path) -> None:
    alone = Authority(tmp_path, "alone")
    certificate, key = alone.sign(WEB, ca=True)
    from tests.identity.pki import save

    started = secure()
    assert "unknown CA" in refused(started, ca, save(tmp_path, "self", [certificate], key), "unknown_ca")


def test_a_chain_that_is_too_long_is_refused(secure: StartSecure, ca: Authority, tmp_path: Path) -> None:
    above = ca
    for number in range(10):
        above = Authority(tmp_path, f"intermediate{number}", above)
    refused(secure(), ca, above.issue("deep", WEB), "bad_certificate")


def test_a_chain_over_an_intermediate_is_accepted(secure: StartSecure, ca: Authority, tmp_path: Path) -> None:
    pair = Authority(tmp_path, "intermediate", ca).issue("below", WEB)
    assert ask(secure().inbound, context(ca, pair)).status == 200


def test_a_revoked_certificate_is_refused(secure: StartSecure, ca: Authority, web: Pair) -> None:
    other = ca.issue("other", WEB)
    started = secure(crl=str(ca.revoke(web)))
    assert ask(started.inbound, context(ca, other)).status == 200
    assert "has been revoked" in refused(started, ca, web, "revoked")


def test_a_revocation_list_that_has_expired_lets_nobody_in(secure: StartSecure, ca: Authority, web: Pair) -> None:
    started = secure(crl=str(ca.revoke(next_update=NOW - DAY / 2)))
    assert "has expired" in refused(started, ca, web, "crl")


def test_tls_1_1_is_refused(secure: StartSecure, ca: Authority, web: Pair) -> None:
    old = {"minimum_version": ssl.TLSVersion.TLSv1, "maximum_version": ssl.TLSVersion.TLSv1_1}
    made = context(ca, web, **old)
    made.set_ciphers("ALL:@SECLEVEL=0")
    started = secure()
    with pytest.raises((ssl.SSLError, OSError)):
        ask(started.inbound, made)
    assert "no TLS version" in told(started, "version")


def test_a_cipher_without_forward_secrecy_is_refused(secure: StartSecure, ca: Authority, web: Pair) -> None:
    made = context(ca, web, maximum_version=ssl.TLSVersion.TLSv1_2)
    made.set_ciphers("AES128-SHA:AES256-GCM-SHA384")
    started = secure()
    with pytest.raises((ssl.SSLError, OSError)):
        ask(started.inbound, made)
    assert "no cipher" in told(started, "cipher")


def test_a_protocol_that_is_not_http_is_refused(secure: StartSecure, ca: Authority, web: Pair) -> None:
    started = secure()
    with pytest.raises((ssl.SSLError, OSError)):
        ask(started.inbound, context(ca, web, alpn=["istio", "foo"]))
    assert "only istio, foo" in told(started, "alpn")


def test_plain_text_on_a_tls_port_is_told_so(secure: StartSecure) -> None:
    started = secure()
    with Client(started.inbound) as client:
        answer = client.get()
        assert answer.status == 400
        assert client.closed()
    assert told(started, "plain_text") == "the peer spoke plain text; no sidecar there?"


@pytest.mark.parametrize("data", [b"\x00" * 64, b"\x80\x2e\x01\x03\x01", b"\xff" * 600, b"\r\n\r\n"])
def test_garbage_is_closed_at_once(data: bytes, secure: StartSecure) -> None:
    started = secure()
    with Client(started.inbound) as client:
        client.send(data)
        assert client.closed()
    told(started, "not_tls")


def test_garbage_after_a_tls_record_header_is_closed_at_once(secure: StartSecure) -> None:
    started = secure()
    with Client(started.inbound) as client:
        client.send(b"\x16\x03\x01\x00\x20" + b"\xab" * 32)
        with contextlib.suppress(ConnectionError):
            while client.sock.recv(4096):
                pass
    told(started, "protocol")


def test_tls_on_a_plain_port_is_refused_without_a_traceback(
    sidecar: StartSidecar, serve: StartServer, ca: Authority
) -> None:
    started = sidecar(app=serve().address)
    with pytest.raises((ssl.SSLError, OSError)):
        TlsClient(started.inbound, context(ca))
    wait_for(lambda: started.metrics()("l7proxy_bad_requests_total", listener="inbound") >= 1)


def test_a_handshake_that_stands_still_is_ended(secure: StartSecure, sidecar: StartSidecar, serve: StartServer,
                                                ca: Authority, orders: Pair) -> None:  # fmt: skip
    tls = {"cert": str(orders.cert), "key": str(orders.key), "ca": str(ca.file)}
    started = sidecar(app=serve().address, inbound={"tls": tls}, timeouts={"handshake": "300ms"})
    with Client(started.inbound) as silent, Client(started.inbound) as half:
        half.send(b"\x16\x03\x01\x02\x00\x01")
        assert silent.closed()
        assert half.closed()
    told(started, "timeout")


def test_requests_go_on_while_handshakes_stand_still(secure: StartSecure, ca: Authority, web: Pair) -> None:
    started = secure()
    stuck = []
    with TlsClient(started.inbound, context(ca, web)) as client:
        for _ in range(200):
            sock = socket.create_connection(started.inbound)
            sock.sendall(b"\x16\x03\x01")
            stuck.append(sock)
        wait_for(lambda: started.metrics()("l7proxy_tls_handshakes_pending") >= 200)
        assert client.get("/", "orders").status == 200
        assert ask(started.inbound, context(ca, web)).status == 200
    for sock in stuck:
        sock.close()
    wait_for(lambda: started.metrics()("l7proxy_tls_handshakes_pending") == 0)


def test_what_a_client_says_of_itself_is_replaced(secure: StartSecure, app: Server, ca: Authority, web: Pair) -> None:
    started = secure()
    with TlsClient(started.inbound, context(ca, web)) as client:
        client.get(
            "/", "orders", x_forwarded_client_cert="URI=spiffe://demo/admin", x_l7proxy_peer="admin",
            x_envoy_internal="true", x_forwarded_for="10.1.1.1", x_request_id="mine",
        )  # fmt: skip
    came = app.requests[-1]
    value = came["x-forwarded-client-cert"]
    assert value.startswith(f"By={ORDERS};Hash=")
    assert value.endswith(f';Subject="CN=workload";URI={WEB}')
    assert "admin" not in value
    assert came["x-forwarded-for"] == "127.0.0.1"
    assert "x-l7proxy-peer" not in came
    assert "x-envoy-internal" not in came
    assert came["x-request-id"] != "mine"


def test_a_denial_names_its_rule_in_the_log_and_not_to_the_client(
    secure: StartSecure, ca: Authority, web: Pair
) -> None:
    policies = {"authorization": {"allow": [{"identities": [ORDERS]}]}}
    started = secure(route("orders", policies=policies))
    answer = ask(started.inbound, context(ca, web))
    assert answer.status == 403
    assert answer["x-l7proxy-error"] == "denied"
    assert b"rule" not in answer.body
    (line,) = started.log_lines(1)
    assert line["peer"] == WEB
    assert "no allow rule matches, at " in line["detail"]
    assert f"{started.config}:" in line["detail"]


def test_records_of_a_single_byte_arrive_whole_and_in_order(
    secure: StartSecure, app: Server, ca: Authority, web: Pair
) -> None:
    """Thousands of them come in one read, and are decrypted over several turns of the event loop."""
    proxy = secure()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context(ca, web).wrap_bio(incoming, outgoing)
    with Client(proxy.inbound) as client:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.send(outgoing.read())
                incoming.write(client.sock.recv(65536))
        body = bytes(number % 251 for number in range(5000))
        for byte in b"POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 5000\r\n\r\n" + body:
            tls.write(bytes((byte,)))
        client.send(outgoing.read())
        answer = b""
        while not answer.endswith(b"ok"):
            incoming.write(client.sock.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                answer += tls.read(65536)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert app.requests[-1].body == body
