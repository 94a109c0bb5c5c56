"""Calls of destinations by name on a port that the sidecar listens on itself, as every sidecar of a mesh does."""

import asyncio
import socket
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from l7proxy.core.errors import ProxyError
from l7proxy.core.loops import loops
from l7proxy.core.message import Request
from l7proxy.core.stats import Stats
from l7proxy.proxy.egress import Egress
from l7proxy.telemetry.metrics import Metrics
from tests.conftest import StartServer
from tests.support.server import Server


@pytest.fixture
def app(serve: StartServer) -> Iterator[Server]:
    """A server on another address than ours, with our port."""
    server = serve(address=("127.0.0.2", 0))
    token = loops.token
    loops.begin([("127.0.0.1", server.port)], token)
    yield server
    loops.begin((), token)


def call(monkeypatch: pytest.MonkeyPatch, port: int, *resolved: str) -> int:
    """Calls a name that resolves to these addresses; returns the status of the answer."""

    async def lookup(*question: Any, **options: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in resolved]

    async def send() -> int:
        asked = asyncio.get_running_loop().getaddrinfo

        async def getaddrinfo(host: Any, *question: Any, **options: Any) -> Any:
            return await (lookup if host == "many.test" else asked)(host, *question, **options)

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        stats = Stats()
        egress = Egress(stats, Metrics(stats), Random())
        request = Request(b"GET", b"http", b"many.test:%d" % port, b"/", b"", b"/", [], b"", inbound=False)
        try:
            return (await egress.send(request)).status
        finally:
            egress.close()

    return asyncio.run(send())


def test_each_address_of_another_host_is_tried_in_turn(monkeypatch: pytest.MonkeyPatch, app: Server) -> None:
    assert call(monkeypatch, app.port, "127.0.0.3", "127.0.0.2") == 200


@pytest.mark.parametrize("resolved", [("127.0.0.1",), ("127.0.0.2", "127.0.0.1")])
def test_a_name_that_leads_to_us_too_is_not_called(
    resolved: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, app: Server
) -> None:
    with pytest.raises(ProxyError) as caught:
        call(monkeypatch, app.port, *resolved)
    assert caught.value.code.name == "loop_detected"
    assert app.requests == []
