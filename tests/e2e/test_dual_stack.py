"""A listener on `[::]` takes IPv4 callers too, and knows them everywhere by their IPv4 address."""

import json
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.core.address import address_of, known_as, network_of
from tests.conftest import StartServer, StartSidecar
from tests.identity.pki import ORDERS, Authority
from tests.support.client import Client
from tests.support.net import free_port, wait_for
from tests.support.sidecar import Sidecar, route

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


def start(sidecar: StartSidecar, *documents: object, **options: object) -> Sidecar:
    inbound = {"listen": f"[::]:{free_port()}", **options.pop("inbound", {})}  # type: ignore[dict-item]
    started = sidecar(*documents, inbound=inbound, **options)
    started.inbound = "127.0.0.1", started._listen("inbound")[1]
    return started


def test_headers_and_log_have_the_ipv4_address(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    started = start(sidecar, app=app.address)
    assert started.get().status == 200
    assert app.requests[0]["x-forwarded-for"] == "127.0.0.1"
    assert started.log_lines(1)[0]["source"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("inbound", "admitted"),
    [
        ({"denyIPs": ["127.0.0.0/8"]}, False),
        ({"allowIPs": ["127.0.0.0/8"]}, True),
        ({"denyIPs": ["::ffff:127.0.0.0/104"]}, False),
        ({"allowIPs": ["::1"]}, False),
        ({"denyIPs": ["::/0"]}, True),
    ],
)
def test_addresses_are_admitted_by_ipv4_blocks(
    inbound: dict[str, object], admitted: bool, sidecar: StartSidecar, serve: StartServer
) -> None:
    started = start(sidecar, app=serve().address, inbound=inbound)
    with started.client() as client:
        assert (client.get().status == 200) if admitted else client.closed()


@pytest.mark.parametrize("block", ["127.0.0.0/8", "::ffff:127.0.0.0/104"])
def test_rules_match_ipv4_blocks(block: str, sidecar: StartSidecar, serve: StartServer) -> None:
    policies = {"authorization": {"deny": [{"sourceIPs": [block]}]}}
    assert start(sidecar, route("all", policies=policies), app=serve().address).get().status == 403


def test_proxies_are_trusted_by_ipv4_blocks(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    started = start(sidecar, app=app.address, inbound={"trustedProxies": ["127.0.0.0/8"]})
    assert started.get(x_forwarded_for="192.0.2.7").status == 200
    assert app.requests[0]["x-forwarded-for"] == "192.0.2.7, 127.0.0.1"
    assert started.log_lines(1)[0]["source"] == "127.0.0.1"


def test_a_limit_counts_a_caller_once_whichever_listener_it_came_by(sidecar: StartSidecar, serve: StartServer) -> None:
    policies = {"rateLimit": {"requests": 1, "per": "1h", "by": "sourceIP"}}
    started = start(sidecar, route("all", policies=policies), app=serve().address)
    assert [started.get().status for _ in range(2)] == [200, 429]
    # A caller that does come over IPv6 is another one.
    with Client(("::1", started.inbound[1])) as client:
        assert client.get().status == 200


def test_http2_callers_have_their_ipv4_address(sidecar: StartSidecar, serve: StartServer) -> None:
    started = start(sidecar, app=serve().address)
    with started.client() as client:
        head = b"\x82\x86\x84\x41\x04test"
        client.send(PREFACE + bytes((0, 0, len(head), 1, 5, 0, 0, 0, 1)) + head)
        assert started.log_lines(1)[0]["source"] == "127.0.0.1"


def test_a_failed_handshake_names_the_ipv4_address(sidecar: StartSidecar, serve: StartServer, tmp_path: object) -> None:
    ca = Authority(tmp_path)  # type: ignore[arg-type]
    pair = ca.issue("orders", ORDERS)
    tls = {"cert": str(pair.cert), "key": str(pair.key), "ca": str(ca.file)}
    started = start(sidecar, app=serve().address, inbound={"tls": tls})
    assert started.get().status == 400
    wait_for(lambda: "handshake failed" in started.process.stderr)
    (line,) = [line for line in started.process.stderr.splitlines() if '"plain_text"' in line]
    assert json.loads(line)["source"] == "127.0.0.1"


@given(st.ip_addresses(v=4))
def test_mapped_addresses_are_known_by_their_ipv4_address(address: object) -> None:
    number = int(address)  # type: ignore[call-overload]
    for spelling in (f"::ffff:{address}", f"::FFFF:{number >> 16:x}:{number & 0xFFFF:x}", f"{address}"):
        assert known_as(spelling) == str(address)


@given(st.ip_addresses(v=6))
def test_other_addresses_stand_as_they_are(address: object) -> None:
    if not getattr(address, "ipv4_mapped", None):
        assert known_as(str(address)) == known_as(f"{address}%eth0") == str(address)


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
def test_a_mapped_block_holds_what_its_ipv4_block_holds(block: object, bits: int, asked: object) -> None:
    mapped = network_of(f"::ffff:{block}/{96 + bits}")
    assert mapped == ip_network(f"{block}/{bits}", strict=False)
    assert (address_of(f"::ffff:{asked}") in mapped) == (ip_address(str(asked)) in mapped)


@pytest.mark.parametrize("text", ["", "testclient", "a:b", "unix:/run/x"])
def test_what_is_no_address_stands_as_it_is(text: str) -> None:
    assert known_as(text) == text
