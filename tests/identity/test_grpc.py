"""gRPC over mTLS: a real client in front, and a bidirectional stream through two sidecars."""

from collections.abc import Iterator

import grpc
import pytest

from tests.conftest import StartSidecar
from tests.h2.grpc_service import GrpcServer
from tests.identity.pki import ORDERS, WEB, Authority, Pair
from tests.support.sidecar import Sidecar, route, upstream


@pytest.fixture
def service() -> Iterator[GrpcServer]:
    server = GrpcServer()
    yield server
    server.close()


def behind(sidecar: StartSidecar, service: GrpcServer, ca: Authority, pair: Pair) -> Sidecar:
    policies = {"authorization": {"allow": [{"identities": [WEB], "paths": ["/test.Echo/*"]}]}}
    return sidecar(
        upstream("service", service.address, protocol="http2"),
        route("calls", upstream="service", policies=policies),
        app=service.address,
        inbound={"tls": {"cert": str(pair.cert), "key": str(pair.key), "ca": str(ca.file)}},
    )


def credentials(ca: Authority, pair: Pair) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(ca.pem, pair.key.read_bytes(), pair.cert.read_bytes())


def test_a_grpc_client_is_known_by_its_certificate(
    sidecar: StartSidecar, service: GrpcServer, ca: Authority, web: Pair
) -> None:
    # gRPC's client checks names: mesh certificates for it carry one beside the SPIFFE ID.
    pair = ca.issue("named", ORDERS, dns=["orders.example.com"])
    started = behind(sidecar, service, ca, pair)
    options = (("grpc.ssl_target_name_override", "orders.example.com"),)
    target = f"127.0.0.1:{started.inbound[1]}"
    with grpc.secure_channel(target, credentials(ca, web), options) as channel:
        assert channel.unary_unary("/test.Echo/Unary")(b"hello", timeout=10) == b"hello"
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/other.Service/Unary")(b"hello", timeout=10)
        assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
    other = ca.issue("other", "spiffe://demo/ns/shop/sa/other")
    with grpc.secure_channel(target, credentials(ca, other), options) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/test.Echo/Unary")(b"hello", timeout=10)
        assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_a_call_passes_two_sidecars_that_prove_themselves_to_each_other(
    sidecar: StartSidecar, service: GrpcServer, ca: Authority, web: Pair, orders: Pair
) -> None:
    inner = behind(sidecar, service, ca, orders)
    tls = {"cert": str(web.cert), "key": str(web.key), "ca": str(ca.file), "identity": ORDERS}
    outer = sidecar(
        upstream("orders", inner.inbound, tls=tls, protocol="auto"),
        route("to-orders", direction="outbound", hosts=["orders"], upstream="orders"),
    )
    options = (("grpc.default_authority", "orders"), ("grpc.enable_http_proxy", 0))
    with grpc.insecure_channel(f"127.0.0.1:{outer.outbound[1]}", options) as channel:
        big = bytes(1_000_000)
        assert channel.unary_unary("/test.Echo/Unary")(big, timeout=20) == big
    assert inner.log_lines(1)[0]["peer"] == WEB
    assert inner.log_lines(1)[0]["protocol"] == "2"
