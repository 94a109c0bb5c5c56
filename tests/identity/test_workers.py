"""Several workers and TLS: all of them change together, and a session that another one made costs a full handshake."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartSidecar
from tests.identity.pki import ORDERS, WEB, Authority, Pair, TlsClient, ask, context
from tests.identity.test_rotation import serial_shown
from tests.lifecycle.test_workers import start
from tests.support.net import wait_for
from tests.support.server import Server
from tests.support.sidecar import Sidecar

MANY = 16
"""Connections of which each worker gets some."""

StartSeveral = Callable[..., Sidecar]


@pytest.fixture
def several(sidecar: StartSidecar, app: Server, ca: Authority, orders: Pair) -> StartSeveral:
    """Starts a sidecar of two workers whose inbound listener speaks TLS; keywords are added to its `tls` block."""

    def begin(**tls: Any) -> Sidecar:
        block = {"cert": str(orders.cert), "key": str(orders.key), "ca": str(ca.file), **tls}
        return start(sidecar, app=app.address, inbound={"tls": block})

    return begin


def shown(proxy: Sidecar, made: ssl.SSLContext) -> set[int]:
    """Returns the serial numbers of the certificates that new connections are shown."""
    return {serial_shown(proxy, made) for _ in range(MANY)}


def refused(proxy: Sidecar, made: ssl.SSLContext, **options: Any) -> bool:
    try:
        return ask(proxy.inbound, made, **options).status != 200
    except OSError:
        return True


def test_all_workers_take_a_new_pair_and_none_a_bad_one(
    several: StartSeveral, ca: Authority, web: Pair, orders: Pair
) -> None:
    proxy, made = several(), context(ca, web)
    (first,) = shown(proxy, made)
    fresh = ca.issue("fresh", ORDERS)
    fresh.cert.replace(orders.cert)
    wait_for(lambda: proxy.process.stderr.count("certificate rejected") == 2)
    assert shown(proxy, made) == {first}
    assert proxy.metrics()("l7proxy_certificate_rejected_total", certificate="inbound") == 2
    fresh.key.replace(orders.key)
    wait_for(lambda: proxy.process.stderr.count("certificate rotated") == 2)
    (second,) = shown(proxy, made)
    assert second != first


def test_a_configuration_whose_certificate_is_bad_goes_live_in_no_worker(
    several: StartSeveral, ca: Authority, web: Pair
) -> None:
    proxy, made = several(), context(ca, web)
    (first,) = shown(proxy, made)
    fresh, other = ca.issue("fresh", ORDERS), ca.issue("other", ORDERS)
    proxy.configure(inbound={"tls": {"cert": str(fresh.cert), "key": str(other.key)}})
    wait_for(lambda: proxy.metrics()("l7proxy_config_rejected_total") == 1)
    assert shown(proxy, made) == {first}
    proxy.reconfigure(inbound={"tls": {"cert": str(fresh.cert), "key": str(fresh.key)}})
    (second,) = shown(proxy, made)
    assert second != first


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_of_another_worker_costs_a_full_handshake_and_nothing_else(
    version: ssl.TLSVersion, several: StartSeveral, ca: Authority, web: Pair
) -> None:
    proxy, made = several(), context(ca, web, maximum_version=version)
    with TlsClient(proxy.inbound, made) as client:
        assert client.get("/", "orders").status == 200
        session = client.tls.session
    resumed = 0
    for _ in range(MANY):
        with TlsClient(proxy.inbound, made, session=session) as client:
            assert client.get("/", "orders").status == 200
            resumed += bool(client.tls.session_reused)
    assert 0 < resumed < MANY
    assert {line["peer"] for line in proxy.log_lines(MANY + 1)} == {WEB}
    assert proxy.metrics()("l7proxy_tls_handshakes_total", resumed="true") == resumed
    assert not proxy.metrics()("l7proxy_tls_handshake_failures_total")


def test_a_removed_ca_is_refused_by_all_workers_and_its_sessions_with_it(
    several: StartSeveral, ca: Authority, web: Pair, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    trust = tmp_path / "trust.pem"
    trust.write_bytes(ca.pem + other.pem)
    proxy, ours, theirs = several(ca=str(trust)), context(ca, web), context(ca, other.issue("theirs", WEB))
    sessions = []
    for _ in range(MANY):
        with TlsClient(proxy.inbound, theirs) as client:
            assert client.get("/", "orders").status == 200
            sessions.append(client.tls.session)
    trust.write_bytes(ca.pem)
    wait_for(lambda: proxy.process.stderr.count("certificate rotated") == 2)
    assert all(refused(proxy, theirs, session=session) for session in sessions)
    assert not any(refused(proxy, ours) for _ in range(MANY))
