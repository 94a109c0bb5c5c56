"""Requests that end badly leave nothing that only the garbage collector could free: reloads freeze what is there."""

import asyncio
import gc
from collections import Counter
from collections.abc import Sequence
from typing import cast

import pytest
import uvloop

from l7proxy.config.model import Inbound, Model, Resource, Sidecar
from l7proxy.core.stats import Stats
from l7proxy.proxy.app import make_app
from l7proxy.proxy.control import Control
from l7proxy.server.accept import Acceptor
from l7proxy.server.hypercorn import bind
from l7proxy.server.listener import Listener
from l7proxy.telemetry.facade import Telemetry
from l7proxy.telemetry.log import Log

GIVEN_UP = {
    "before the answer": b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n",
    "inside the answer": b"GET /part HTTP/1.1\r\nHost: a\r\n\r\n",
    "inside the request": b"POST /never HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc",
    "after an early answer": b"POST /whole HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc",
}
TIMES = 10


WHOLE = b"GET /whole HTTP/1.1\r\nHost: a\r\n\r\n"


class Application(asyncio.Protocol):
    """Answers `/whole`, `/part` with a part of what it announces, and nothing else at all."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if b"/part" in data:
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nabc")
        elif b"/whole" in data:
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc")


class Client(asyncio.Protocol):
    """Sends requests, each but the first after an answer, and goes away as rudely as it can."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        self.requests = iter(requests)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(next(self.requests))
        asyncio.get_running_loop().call_later(0.02, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        self.transport.write(next(self.requests, b""))


async def leftovers(*requests: bytes) -> Counter[str]:
    """Returns the types of the objects that the collector finds after clients have given up."""
    loop = asyncio.get_running_loop()
    application = await loop.create_server(Application, "127.0.0.1", 0)
    port = application.sockets[0].getsockname()[1]
    spec = Sidecar(inbound=Inbound(listen="127.0.0.1:0", app=f"http://127.0.0.1:{port}"))
    stats = Stats()
    telemetry = Telemetry(stats, Log(stats, "/dev/null"))
    control = Control(telemetry, Model(sidecar=Resource("Sidecar", "s", spec), version="1"))
    listener = Listener("inbound", make_app(control.live, True), stats)
    sockets = bind("127.0.0.1:0")
    acceptor = Acceptor(listener, sockets)
    address = sockets[0].getsockname()
    try:
        for rounds, collected in enumerate((False, True), 1):
            # The first round makes what is made once.
            gc.collect()
            if collected:
                gc.disable()
                gc.set_debug(gc.DEBUG_SAVEALL)
            for _ in range(TIMES):
                await loop.create_connection(lambda: Client(requests), *address)
            for _ in range(1000):
                await asyncio.sleep(0.02)
                if listener.accepted.value == rounds * TIMES and not listener.connections and not control.live.active:
                    break
            # A connection is gone a turn of the loop before its last request is counted out.
            assert not listener.connections and not control.live.active
        gc.collect()
        return Counter(f"{type(thing).__module__}.{type(thing).__name__}" for thing in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        acceptor.close()
        listener.close()
        control.close()
        application.close()
        telemetry.close()


@pytest.mark.parametrize("before", [(), (WHOLE,)], ids=["new connection", "connection of the pool"])
@pytest.mark.parametrize("request_", GIVEN_UP.values(), ids=GIVEN_UP.keys())
def test_a_client_that_gives_up_leaves_no_cycle(request_: bytes, before: tuple[bytes, ...]) -> None:
    found = uvloop.run(leftovers(*before, request_))
    assert not {name: count for name, count in found.items() if count >= TIMES}
