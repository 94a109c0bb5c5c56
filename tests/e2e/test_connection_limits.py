"""`breakers.connections`: who waits at the limit, for how long, and that impatient clients cost no connection."""

import asyncio
import socket
import struct
import threading
import time
from random import Random

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient, wide_open
from tests.support.client import Client
from tests.support.net import Address, wait_for
from tests.support.server import OK, Connection, Script
from tests.support.sidecar import Sidecar, route, upstream

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
CONNECT = b"CONNECT test:443 HTTP/1.1\r\nhost: test:443\r\n\r\n"


def holding(release: threading.Event) -> Script:
    """A script that answers once `release` is set."""

    def script(connection: Connection) -> None:
        while True:
            connection.read()
            assert release.wait(20)
            connection.send(OK)

    return script


def gauge(proxy: Sidecar, name: str) -> float:
    return proxy.metrics()(name, l7proxy_upstream="u")


def test_clients_that_hang_up_at_random_moments_leave_every_connection_usable(
    sidecar: StartSidecar, serve: StartServer
) -> None:
    release = threading.Event()
    release.set()
    app = serve(holding(release))
    breakers = {"connections": 2}
    proxy = sidecar(upstream("u", app.address, breakers=breakers, idleTimeout="300ms"), route("u", upstream="u"))
    asyncio.run(_hang_up(proxy.inbound, clients=40, seconds=5))
    wait_for(lambda: gauge(proxy, "l7proxy_upstream_requests") == 0)
    wait_for(lambda: gauge(proxy, "l7proxy_upstream_connections") == 0)
    assert gauge(proxy, "l7proxy_upstream_pending") == 0
    release.clear()
    seen = len(app.requests)
    with proxy.client() as first, proxy.client() as second:
        first.send(GET)
        second.send(GET)
        app.wait_for_requests(seen + 2)
        release.set()
        assert (first.read().status, second.read().status) == (200, 200)


async def _hang_up(address: Address, clients: int, seconds: float) -> None:
    """Keeps `clients` connections busy, each of which asks and is reset within milliseconds."""
    random = Random(7)
    end = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < end:
            _, writer = await asyncio.open_connection(*address)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.write(GET)
            await asyncio.sleep(random.random() * 0.03)
            writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))


def test_each_endpoint_may_have_one_connection_whatever_the_limit(sidecar: StartSidecar, serve: StartServer) -> None:
    endpoints = [serve(), serve()]
    proxy = sidecar(
        upstream("u", *(server.address for server in endpoints), breakers={"connections": 1}, balance="roundRobin"),
        route("u", upstream="u"),
    )
    with proxy.client() as client:
        assert [client.get().status for _ in range(20)] == [200] * 20
    assert all(server.requests for server in endpoints)


def test_a_wait_for_a_connection_ends_with_overflow_after_the_connect_timeout(
    sidecar: StartSidecar, serve: StartServer
) -> None:
    release = threading.Event()
    app = serve(holding(release))
    proxy = sidecar(
        upstream("u", app.address, breakers={"connections": 1}, connectTimeout="200ms"), route("u", upstream="u")
    )
    with proxy.client() as first, proxy.client() as second:
        first.send(GET)
        app.wait_for_requests(1)
        began = time.monotonic()
        answer = second.request(GET)
        assert 0.15 < time.monotonic() - began < 5
        assert (answer.status, answer["x-l7proxy-error"]) == (503, "overflow")
        release.set()
        assert first.read().status == 200
    line = proxy.log_lines(2)[0]
    assert (line["flags"], line["detail"]) == ("UO", "no connection became free in 0.2 s")
    assert gauge(proxy, "l7proxy_breaker_overflows_total") == 1
    assert gauge(proxy, "l7proxy_upstream_pending") == 0


def test_a_raised_limit_serves_requests_that_wait_already(sidecar: StartSidecar, serve: StartServer) -> None:
    release = threading.Event()
    app = serve(holding(release))
    proxy = sidecar(upstream("u", app.address, breakers={"connections": 1}), route("u", upstream="u"))
    with proxy.client() as first, proxy.client() as second:
        first.send(GET)
        second.send(GET)
        app.wait_for_requests(1)
        wait_for(lambda: gauge(proxy, "l7proxy_upstream_pending") == 1)
        proxy.reconfigure(upstream("u", app.address, breakers={"connections": 2}), route("u", upstream="u"))
        app.wait_for_requests(2)
        release.set()
        assert (first.read().status, second.read().status) == (200, 200)


def test_a_tunnel_waits_for_its_turn_at_the_limit(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(lambda connection: connection.send(connection.sock.recv(100)))
    proxy = sidecar(upstream("u", app.address, breakers={"connections": 1}), route("u", upstream="u", connect=True))
    with proxy.client() as first, proxy.client() as second:
        _open_tunnel(first)
        second.send(CONNECT)
        wait_for(lambda: gauge(proxy, "l7proxy_upstream_pending") == 1)
        first.close()
        second.reader.until(b"\r\n\r\n")
        assert bytes(second.reader.raw).startswith(b"HTTP/1.1 200 ")


def test_an_idle_connection_gives_way_to_a_tunnel(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(upstream("u", app.address, breakers={"connections": 1}), route("u", upstream="u", connect=True))
    with proxy.client() as first, proxy.client() as second:
        assert first.get().status == 200
        _open_tunnel(second)
    wait_for(lambda: len(app.connections) == 2)


def _open_tunnel(client: Client) -> None:
    client.send(CONNECT)
    client.reader.until(b"\r\n\r\n")
    assert bytes(client.reader.raw).startswith(b"HTTP/1.1 200 ")


def test_idle_connections_to_one_host_starve_no_other_where_any_may_be_called(
    sidecar: StartSidecar, serve: StartServer
) -> None:
    count = 1024
    other = serve()
    proxy = sidecar(outbound={"policy": "ALLOW_ANY"})
    with Crowd(count) as crowd:
        clients = [RawClient(proxy.outbound, wide_open()) for _ in range(2)]
        for number in range(count):
            clients[number % 2].request(_at(crowd.address))
        wait_for(lambda: len(crowd.waiting) == count, 30, lambda: f"{len(crowd.waiting)} requests came")
        crowd.answer()
        for client in clients:
            client.until(lambda reader: len(reader.ended) == count // 2)
        began = time.monotonic()
        with Client(proxy.outbound) as client:
            assert client.get(host=f"127.0.0.1:{other.port}").status == 200
        assert time.monotonic() - began < 1
        for raw in clients:
            raw.sock.close()


def _at(address: Address) -> list[tuple[bytes, bytes]]:
    authority = f"{address[0]}:{address[1]}".encode()
    return [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", authority), (b":path", b"/")]


class Crowd:
    """A server on one thread that answers once it is told to; `waiting` are the sockets that have sent a request."""

    def __init__(self, count: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=count)
        self.address: Address = self._listener.getsockname()
        self.waiting: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Crowd":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for sock in self.waiting:
            sock.close()

    def answer(self) -> None:
        for sock in self.waiting:
            sock.sendall(OK)

    def _accept(self) -> None:
        try:
            while True:
                sock, _ = self._listener.accept()
                sock.settimeout(10)
                sock.recv(4096)
                self.waiting.append(sock)
        except OSError:
            pass  # The test is over.
