"""Envoy on either side of the sidecar, speaking HTTP/2 as it does in other meshes."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.conftest import StartSidecar
from tests.h2.grpc_service import Calls, GrpcServer, run
from tests.h2.raw import RawClient, wide_open
from tests.support.net import Address, accepts, free_address
from tests.support.process import Process
from tests.support.sidecar import route, upstream
from tests.wire.h2_peer import GET

_ENVOY = shutil.which("envoy", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")
pytestmark = pytest.mark.skipif(_ENVOY is None, reason="envoy is not installed")

_CONFIG = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          codec_type: AUTO
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, route: {{cluster: out, timeout: 0s}}}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: out
    type: STATIC
    circuit_breakers: {{thresholds: [{{max_requests: 10000, max_pending_requests: 10000}}]}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{{protocol}: {{}}}}
    load_assignment:
      cluster_name: out
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {to}}}}}}}
"""


@pytest.fixture
def envoy(tmp_path: Path) -> Iterator[Callable[[Address, bool], Address]]:
    """Starts an Envoy in front of an address, which it speaks to in HTTP/2 or HTTP/1.1."""
    running: list[Process] = []

    def start(to: Address, http2: bool) -> Address:
        address = free_address()
        config = tmp_path / f"envoy{len(running)}.yaml"
        protocol = "http2_protocol_options" if http2 else "http_protocol_options"
        config.write_text(_CONFIG.format(port=address[1], to=to[1], protocol=protocol))
        command = [str(_ENVOY), "-c", str(config), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warn"]
        process = Process(f"envoy{len(running)}", command, tmp_path)
        running.append(process)
        process.wait_until(lambda: accepts(address), 30)
        return address

    yield start
    for process in running:
        process.stop()


@pytest.fixture(scope="module")
def service() -> Iterator[GrpcServer]:
    server = GrpcServer()
    yield server
    server.close()


async def talk(calls: Calls) -> None:
    call = calls.unary(b"hello", metadata=(("key-bin", b"\x00\xff"),), timeout=10)
    assert await call == b"hello"
    assert dict(await call.trailing_metadata())["last-bin"] == b"\x01\xff"
    assert len([message async for message in calls.numbers(b"100")]) == 100
    echo = calls.echo()
    for number in range(20):
        await echo.write(b"%d" % number)
        assert await echo.read() == b"%d" % number
    await echo.done_writing()
    assert await echo.code() == grpc.StatusCode.OK
    big = b"x" * 3_000_000
    assert await calls.unary(big) == big
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await calls.unary(b"fail")
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_grpc_through_envoy_in_front(
    sidecar: StartSidecar, service: GrpcServer, envoy: Callable[[Address, bool], Address]
) -> None:
    proxy = sidecar(upstream("echo", service.address, protocol="http2"), route("echo", upstream="echo"))
    run(talk, envoy(proxy.inbound, True))


def test_grpc_through_envoy_behind(
    sidecar: StartSidecar, service: GrpcServer, envoy: Callable[[Address, bool], Address]
) -> None:
    behind = envoy(service.address, True)
    proxy = sidecar(upstream("envoy", behind, protocol="http2"), route("echo", upstream="envoy"))
    run(talk, proxy.inbound)


@pytest.mark.parametrize("http2", [False, True])
def test_bodies_through_envoy_on_both_sides(
    http2: bool, sidecar: StartSidecar, uvicorn_app: Address, envoy: Callable[[Address, bool], Address]
) -> None:
    behind = envoy(uvicorn_app, False)
    protocol = "http2" if http2 else "http1"
    proxy = sidecar(upstream("envoy", behind, protocol=protocol), route("all", upstream="envoy"))
    front = envoy(proxy.inbound, http2)
    with RawClient(front, wide_open(1 << 24), timeout=30) as client:
        streams = [client.request([*GET[:3], (b":path", b"/bytes/200000")]) for _ in range(50)]
        for stream in streams:
            assert client.answer(stream)[":status"] == "200"
            assert len(client.reader.bodies[stream]) == 200_000
    lines = proxy.log_lines(50)
    assert {line["protocol"] for line in lines} == {"2" if http2 else "1.1"}
