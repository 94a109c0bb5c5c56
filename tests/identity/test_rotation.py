"""Certificates that change while requests run: nothing is dropped, nothing outlives the trust that it stood on."""

import datetime
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.identity.conftest import StartSecure
from tests.identity.pki import ORDERS, WEB, Authority, Pair, TlsClient, ask, context, garbled, named_twice
from tests.identity.test_peers import out
from tests.support.client import Client
from tests.support.message import Closed
from tests.support.net import wait_for
from tests.support.sidecar import Sidecar, route, upstream


def rotate(started: Sidecar, what: str = "certificate rotated") -> None:
    """Waits for one more line that says `what`."""
    before = started.process.stderr.count(what)
    wait_for(lambda: started.process.stderr.count(what) > before, 5, lambda: f"never {what}:\n{started.process.stderr}")


def serial_shown(started: Sidecar, made: ssl.SSLContext) -> int:
    """Returns the serial number of the certificate that a new handshake shows."""
    with TlsClient(started.inbound, made) as client:
        certificate = client.tls.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)


def test_a_new_pair_is_shown_to_new_connections_and_old_ones_go_on(
    secure: StartSecure, ca: Authority, web: Pair, orders: Pair
) -> None:
    started = secure()
    made = context(ca, web)
    before = serial_shown(started, made)
    with TlsClient(started.inbound, made) as old:
        assert old.get("/", "orders").status == 200
        ca.issue("orders", ORDERS)
        rotate(started)
        assert serial_shown(started, made) != before
        assert old.get("/", "orders").status == 200


def test_half_a_pair_is_refused_and_the_old_one_stays(
    secure: StartSecure, ca: Authority, web: Pair, orders: Pair
) -> None:
    started = secure()
    made = context(ca, web)
    before = serial_shown(started, made)
    fresh = ca.issue("fresh", ORDERS)
    fresh.cert.replace(orders.cert)
    wait_for(lambda: "is not the key of the certificate" in started.process.stderr)
    assert serial_shown(started, made) == before
    assert started.metrics()("l7proxy_certificate_rejected_total", certificate="inbound") == 1
    fresh.key.replace(orders.key)
    wait_for(lambda: "certificate rotated" in started.process.stderr)
    assert serial_shown(started, made) != before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no certificate in it"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB", "a certificate in it is cut off"),
        (b"\x00\xff" * 100, "no certificate in it"),
    ],
)
def test_a_half_written_file_is_refused(
    content: bytes, sentence: str, secure: StartSecure, ca: Authority, web: Pair, orders: Pair
) -> None:
    started = secure()
    orders.cert.write_bytes(content)
    wait_for(lambda: sentence in started.process.stderr, 5, lambda: started.process.stderr)
    assert ask(started.inbound, context(ca, web)).status == 200


@pytest.mark.parametrize(
    ("make", "sentence"), [(garbled, "key cannot be read"), (named_twice, "Duplicate 2.5.29.17 extension found")]
)
def test_a_garbled_certificate_is_refused_and_a_good_one_taken_after_it(
    make: Callable[[bytes], bytes], sentence: str, secure: StartSecure, ca: Authority, web: Pair, orders: Pair
) -> None:
    started = secure()
    orders.cert.write_bytes(make(orders.cert.read_bytes()))
    wait_for(lambda: sentence in started.process.stderr, 5, lambda: started.process.stderr)
    assert ask(started.inbound, context(ca, web)).status == 200
    ca.issue("orders", ORDERS)
    rotate(started)
    assert ask(started.inbound, context(ca, web)).status == 200


def test_a_certificate_that_has_expired_is_told_of_at_the_start_and_replaced(
    secure: StartSecure, ca: Authority, web: Pair, orders: Pair
) -> None:
    ca.issue("orders", ORDERS, end=datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=3))
    started = secure()
    sentence = f"certificate expired 3 h ago ({ORDERS})"
    wait_for(lambda: sentence in started.process.stderr, 5, lambda: started.process.stderr)
    ca.issue("orders", ORDERS)
    rotate(started)
    assert ask(started.inbound, context(ca, web)).status == 200


def test_files_that_are_still_being_written_are_not_taken(
    secure: StartSecure, ca: Authority, web: Pair, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    trust = tmp_path / "trust.pem"
    trust.write_bytes(ca.pem)
    started = secure(ca=str(trust))
    made = context(ca, web)
    with trust.open("wb", buffering=0) as file:
        # One authority after the other, as a slow program writes them: each is a whole file, and none is the whole.
        for number in range(12):
            file.write(other.pem if number < 11 else ca.pem)
            time.sleep(0.15)
            assert ask(started.inbound, made).status == 200
    rotate(started)
    assert ask(started.inbound, context(ca, other.issue("theirs", WEB))).status == 200
    assert ask(started.inbound, made).status == 200


def test_a_configuration_goes_live_once_its_certificate_is_good(
    secure: StartSecure, ca: Authority, web: Pair, orders: Pair
) -> None:
    started = secure()
    made = context(ca, web)
    before = serial_shown(started, made)
    fresh = ca.issue("fresh", ORDERS)
    good = fresh.cert.read_bytes()
    fresh.cert.write_bytes(good[: len(good) // 2])
    started.configure(inbound={"tls": {"cert": str(fresh.cert), "key": str(fresh.key)}})
    wait_for(lambda: "a certificate in it is cut off" in started.process.stderr, 5, lambda: started.process.stderr)
    assert serial_shown(started, made) == before
    fresh.cert.write_bytes(good)
    wait_for(lambda: serial_shown(started, made) != before, 5, lambda: started.process.stderr)


def test_a_removed_ca_is_refused_at_once_and_its_sessions_with_it(
    secure: StartSecure, ca: Authority, web: Pair, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    theirs = other.issue("theirs", WEB)
    trust = tmp_path / "trust.pem"
    trust.write_bytes(ca.pem + other.pem)
    started = secure(ca=str(trust))
    ours, made = context(ca, web), context(ca, theirs)
    assert ask(started.inbound, ours).status == 200
    with TlsClient(started.inbound, made) as client:
        assert client.get("/", "orders").status == 200
        session = client.tls.session
    with TlsClient(started.inbound, made, session=session) as again:
        assert again.get("/", "orders").status == 200
        assert again.tls.session_reused
        session = again.tls.session
    trust.write_bytes(ca.pem)
    rotate(started)
    with pytest.raises((ssl.SSLError, OSError)):
        ask(started.inbound, made)
    with pytest.raises((ssl.SSLError, OSError)):
        ask(started.inbound, made, session=session)
    assert ask(started.inbound, ours).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_resumed_session_knows_its_peer(
    version: ssl.TLSVersion, secure: StartSecure, ca: Authority, web: Pair
) -> None:
    started = secure()
    made = context(ca, web, maximum_version=version)
    with TlsClient(started.inbound, made) as client:
        assert client.get("/", "orders").status == 200
        session = client.tls.session
    with TlsClient(started.inbound, made, session=session) as client:
        assert client.tls.session_reused
        assert client.get("/", "orders").status == 200
    assert [line["peer"] for line in started.log_lines(2)] == [WEB, WEB]
    assert started.metrics()("l7proxy_tls_handshakes_total", resumed="true") == 1


def test_a_session_does_not_outlive_its_certificate(secure: StartSecure, ca: Authority, tmp_path: Path) -> None:
    started = secure()
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3)
    made = context(ca, ca.issue("brief", WEB, end=end))
    with TlsClient(started.inbound, made) as client:
        client.get("/", "orders")
        session = client.tls.session

    def refused() -> bool:
        try:
            return ask(started.inbound, made, session=session).status != 200
        except (ssl.SSLError, OSError, Closed):
            return True

    # The first that is refused may be a connection that was resumed in time and ended with the certificate.
    wait_for(lambda: refused() and "expired" in started.process.stderr, 10)
    assert refused()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_does_not_outlive_the_revocation_list_that_it_was_checked_by(
    version: ssl.TLSVersion, secure: StartSecure, ca: Authority, web: Pair
) -> None:
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=4)
    started = secure(crl=str(ca.revoke(next_update=end)))
    made = context(ca, web, maximum_version=version)
    with TlsClient(started.inbound, made) as client:
        assert client.get("/", "orders").status == 200
        session = client.tls.session

    def refused(session: ssl.SSLSession | None) -> bool:
        try:
            return ask(started.inbound, made, session=session).status != 200
        except (ssl.SSLError, OSError, Closed):
            return True

    wait_for(lambda: refused(None), 10)
    assert refused(session)


def test_a_connection_ends_with_its_certificate(secure: StartSecure, ca: Authority) -> None:
    started = secure()
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3)
    with TlsClient(started.inbound, context(ca, ca.issue("brief", WEB, end=end))) as client:
        assert client.get("/", "orders").status == 200
        assert client.closed()


def test_a_revocation_reaches_new_handshakes(secure: StartSecure, ca: Authority, web: Pair) -> None:
    started = secure(crl=str(ca.revoke()))
    assert ask(started.inbound, context(ca, web)).status == 200
    ca.revoke(web)
    rotate(started)
    with pytest.raises((ssl.SSLError, OSError)):
        ask(started.inbound, context(ca, web))


def test_rotation_under_load_drops_nothing(
    secure: StartSecure,
    sidecar: StartSidecar,
    serve: StartServer,
    ca: Authority,
    web: Pair,
    orders: Pair,
    tmp_path: Path,
) -> None:
    """Two sidecars in a row, both ends rotating, first to a second CA and then away from the first."""
    trust = tmp_path / "trust.pem"
    trust.write_bytes(ca.pem)
    inbound = secure(ca=str(trust))
    outbound = sidecar(*out("orders", inbound.inbound, cert=web.cert, key=web.key, ca=trust, identity=ORDERS))
    failures: list[str] = []
    count = [0]
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                with Client(outbound.outbound) as client:
                    for _ in range(20):
                        status = client.get("/", "orders").status
                        count[0] += 1
                        if status != 200:
                            failures.append(str(status))
            except OSError as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        other = Authority(tmp_path, "other")
        trust.write_bytes(ca.pem + other.pem)
        both(inbound, outbound, 1)
        other.issue("orders", ORDERS)
        other.issue("web", WEB)
        both(inbound, outbound, 2)
        trust.write_bytes(other.pem)
        both(inbound, outbound, 3)
        done = count[0]
        wait_for(lambda: count[0] > done + 200)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert count[0] > 500


def both(inbound: Sidecar, outbound: Sidecar, times: int) -> None:
    """Waits until each has rotated so often."""
    for started in (inbound, outbound):
        wait_for(
            lambda started=started: started.process.stderr.count("certificate rotated") >= times,  # type: ignore[misc]
            8,
            lambda started=started: started.process.stderr,  # type: ignore[misc]
        )


def test_no_request_goes_out_on_a_connection_whose_certificate_has_expired(
    sidecar: StartSidecar, serve: StartServer, secure: StartSecure, ca: Authority, tmp_path: Path
) -> None:
    inbound = secure()
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=5)
    pair = ca.issue("caller", WEB, end=end)
    tls = {"cert": str(pair.cert), "key": str(pair.key), "ca": str(ca.file), "identity": ORDERS}
    outbound = sidecar(
        upstream("orders", inbound.inbound, tls=tls, idleTimeout="60s"),
        route("to-orders", direction="outbound", hosts=["orders"], upstream="orders"),
    )

    def opened() -> float:
        with Client(outbound.outbound) as client:
            assert client.get("/", "orders").status == 200
        return inbound.metrics()("l7proxy_tls_handshakes_total", listener="inbound")

    assert opened() == 1
    ca.issue("caller", WEB)
    rotate(outbound)
    # The old connection serves while its certificate lasts, then a new one does.
    wait_for(lambda: opened() == 2, 8)
