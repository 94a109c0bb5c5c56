"""Who the client is, as the application, rules and limits are told: what the connection says, or a trusted proxy."""

from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.server import Server
from tests.support.sidecar import Sidecar, istio

BLOCKED = istio(
    "AuthorizationPolicy",
    action="DENY",
    rules=[{"from": [{"source": {"remoteIpBlocks": ["203.0.113.0/24", "2001:db8::/32"]}}]}],
)


def start(sidecar: StartSidecar, app: Server, **inbound: Any) -> Sidecar:
    return sidecar(BLOCKED, app=app.address, inbound=inbound)


@pytest.mark.parametrize(
    "name",
    [
        *("x-forwarded-for", "x_forwarded_for", "X-Forwarded_For", "x_forwarded-for"),
        *("X_Forwarded_Client_Cert", "x_l7proxy_peer", "X_ENVOY_INTERNAL", "x_request_id", "forwarded"),
    ],
)
def test_nobody_says_who_they_are_in_whatever_spelling(name: str, sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    started = start(sidecar, app)
    with started.client() as client:
        sent = f"GET / HTTP/1.1\r\nhost: test\r\n{name}: 10.9.9.9\r\nx_tenant: blue\r\n\r\n"
        assert client.request(sent.encode()).status == 200
    (came,) = app.requests
    assert b"10.9.9.9" not in b" ".join(value for _, value in came.headers)
    assert came["x_tenant"] == "blue"
    trusting = start(sidecar, app, trustedProxies=["127.0.0.1"])
    with trusting.client() as client:
        client.request(f"GET / HTTP/1.1\r\nhost: test\r\n{name}: 10.9.9.9\r\n\r\n".encode())
    assert all(b"_" not in field for field, _ in app.requests[-1].headers)


@pytest.mark.parametrize(
    ("inbound", "chain", "status"),
    [
        ({}, "203.0.113.7", 200),
        ({"trustedProxies": ["127.0.0.0/8"]}, "203.0.113.7", 403),
        ({"trustedProxies": ["127.0.0.0/8"]}, "203.0.113.7, 198.51.100.1", 200),
        ({"trustedProxies": ["127.0.0.0/8", "10.0.0.0/8"]}, "203.0.113.7, 10.0.0.1", 403),
        ({"trustedProxies": ["127.0.0.0/8", "10.0.0.0/8"]}, "203.0.113.7, 10.0.0.2, 10.0.0.1", 403),
        ({"trustedProxies": ["127.0.0.0/8", "10.0.0.0/8"]}, "203.0.113.7, 198.51.100.1, 10.0.0.1", 200),
        ({"trustedProxies": ["127.0.0.0/8"]}, "203.0.113.7:41234", 403),
        ({"trustedProxies": ["127.0.0.0/8"]}, "[2001:db8::7]:41234", 403),
        ({"trustedProxies": ["127.0.0.0/8"]}, "::ffff:203.0.113.7", 403),
        ({"trustedProxies": ["127.0.0.0/8"]}, "203.0.113.7, unknown", 200),
        ({"trustedHops": 1}, "203.0.113.7", 403),
        ({"trustedHops": 1}, "203.0.113.7, 198.51.100.1", 200),
        ({"trustedHops": 2}, "203.0.113.7, 198.51.100.1", 403),
        # Envoy: a chain that is too short says nothing, and the peer is the client.
        ({"trustedHops": 2}, "203.0.113.7", 200),
    ],
)
def test_the_chain_is_read_from_the_right(
    inbound: dict[str, Any], chain: str, status: int, sidecar: StartSidecar, serve: StartServer
) -> None:
    assert start(sidecar, serve(), **inbound).get(x_forwarded_for=chain).status == status


def test_a_garbled_chain_names_the_proxy_itself(sidecar: StartSidecar, serve: StartServer) -> None:
    rules = [{"from": [{"source": {"notRemoteIpBlocks": ["127.0.0.0/8"]}}]}]
    started = sidecar(
        istio("AuthorizationPolicy", rules=rules), app=serve().address, inbound={"trustedProxies": ["127.0.0.1"]}
    )
    assert started.get(x_forwarded_for="198.51.100.1").status == 200
    assert started.get(x_forwarded_for="garbage").status == 403
