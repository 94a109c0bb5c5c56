"""Limits of the process: what goes beyond them is told so at once or waits, and operators are always answered."""

import contextlib
import resource
import socket
import threading
import time

from tests.conftest import StartServer, StartSidecar
from tests.support.client import Client
from tests.support.net import wait_for
from tests.support.server import OK, Connection
from tests.support.sidecar import Sidecar

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


class Gate:
    """An application that answers when it is told to."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while connection.read():
            self.open.wait(20)
            connection.send(OK)


def operators_are_answered(proxy: Sidecar) -> None:
    for address, path in ((proxy.admin, "/ready"), (proxy.admin, "/stats"), (proxy.metrics_at, "/metrics")):
        with Client(address, timeout=3) as client:
            assert client.get(path, "localhost").status == 200


def test_requests_beyond_the_limit_are_told_so_at_once(sidecar: StartSidecar, serve: StartServer) -> None:
    gate = Gate()
    proxy = sidecar(app=serve(gate).address, limits={"requests": 3})
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(5)]
        assert all(client.is_open(0.05) for client in clients)
        for client in clients[:3]:
            client.send(GET)
        wait_for(lambda: proxy.metrics()("l7proxy_requests") == 3)
        for client in clients[3:]:
            answer = client.request(GET)
            assert (answer.status, answer["x-l7proxy-error"]) == (503, "overflow")
        # Who is not connected yet waits in the kernel's queue.
        late = stack.enter_context(proxy.client())
        late.send(GET)
        assert late.is_open(0.5)
        operators_are_answered(proxy)
        gate.open.set()
        assert [client.read().status for client in clients[:3]] == [200] * 3
        assert late.read().status == 200
        assert clients[4].request(GET).status == 200
    assert proxy.metrics()("l7proxy_accept_paused_total", listener="inbound") > 0


def test_connections_beyond_the_limit_wait(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address, limits={"connections": 3})
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(5)]
        assert [client.request(GET).status for client in clients[:3]] == [200] * 3
        for client in clients[3:]:
            client.send(GET)
            assert client.is_open(0.2)
        operators_are_answered(proxy)
        for client in clients[:2]:
            client.close()
        assert [client.read().status for client in clients[3:]] == [200] * 2


def test_without_descriptors_connections_live_and_operators_are_answered(
    sidecar: StartSidecar, serve: StartServer
) -> None:
    proxy = sidecar(app=serve().address)
    process = proxy.process
    few = process.descriptors() + 60
    enough = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        old = [stack.enter_context(proxy.client()) for _ in range(10)]
        assert [client.request(GET).status for client in old] == [200] * 10
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (few, enough[1]))
        crowd = [socket.create_connection(proxy.inbound) for _ in range(200)]
        for sock in crowd:
            stack.callback(sock.close)
        wait_for(lambda: proxy.metrics()("l7proxy_accept_paused_total", listener="inbound") > 0)
        for _ in range(5):
            operators_are_answered(proxy)
            assert [client.request(GET).status for client in old] == [200] * 10
        before = process.cpu
        time.sleep(1)
        assert process.cpu - before < 0.5
        assert process.descriptors() < few - 5
        for sock in crowd:
            sock.close()
        assert proxy.get().status == 200
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, enough)


def test_descriptors_are_limited_by_what_the_user_may_have(sidecar: StartSidecar, serve: StartServer) -> None:
    """The soft limit of 1,024 that shells and service managers give is raised to the hard one."""
    proxy = sidecar(app=serve().address)
    soft, hard = resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard
