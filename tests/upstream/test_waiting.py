"""Connections of an upstream at their limit: who waits, who gets one, and that none is lost on the way."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any

import httpx
import pytest
import uvloop

from l7proxy.core.drive import Drive
from l7proxy.core.errors import ProxyError
from l7proxy.core.message import Request
from l7proxy.core.stats import Stats
from l7proxy.core.stream import Stream
from l7proxy.telemetry.metrics import UpstreamMetrics
from l7proxy.upstream.dial import Dial
from l7proxy.upstream.h2_pool import H2Transport
from l7proxy.upstream.pool import H1Transport
from l7proxy.upstream.transport import UpstreamRequest, response_parts, url_of
from l7proxy.upstream.waiting import Load
from tests.upstream.backend import STREAMS, Backend, Http1, Http2

PROTOCOLS = {"http1": (Http1, H1Transport, 1), "http2": (Http2, H2Transport, STREAMS)}


class World:
    """Endpoints of one upstream, each with a server, and the requests to them."""

    def __init__(self, protocol: str, limit: int, connect_timeout: float = 5.0) -> None:
        server, self._transport, self.streams = PROTOCOLS[protocol]
        self.load = Load()
        self.load.max_connections = self.limit = limit
        self.metrics = UpstreamMetrics(Stats(), "u")
        self.backends = [Backend(server), Backend(server)]
        self.calls: list[Call] = []
        self._connect_timeout = connect_timeout

    async def start(self) -> "World":
        self.pools = []
        for backend in self.backends:
            await backend.start()
            dial = Dial("127.0.0.1", backend.port, connect_timeout=self._connect_timeout, idle_timeout=60)
            self.pools.append(self._transport(dial, self.load, self.metrics))
        return self

    def call(self, at: int, method: bytes = b"GET", deadline: float | None = None) -> "Call":
        """Sends a request to an endpoint."""
        call = Call(self.pools[at], self.backends[at].port, method, deadline)
        self.calls.append(call)
        return call

    async def close(self) -> None:
        for pool in self.pools:
            await pool.aclose()
        for backend in self.backends:
            backend.server.close()
            for connection in backend.connections:
                connection.abort()
        await until(lambda: not any(backend.connections for backend in self.backends))

    @property
    def open(self) -> int:
        """The connections that the servers see."""
        return sum(len(backend.connections) for backend in self.backends)

    async def check(self) -> None:
        """Fails where a request goes on waiting though its upstream has room, or a connection that could give way."""
        load = self.load
        for _ in range(3):
            resting = sum(share.pool.resting for share in load.shares)
            full = load.connections - resting >= load.max_connections
            if load.next_queue() is None and (full or load.next_queue(room=True) is None):
                break
            # HTTP/2 frames leave at the end of a turn, and only then is a stream over.
            await turns(1)
        else:
            raise AssertionError("a request waits in vain")
        assert load.connections == sum(share.connections for share in load.shares)

    async def check_nothing_is_lost(self) -> None:
        """Fails where what is counted is not what is there, or a connection cannot be used any more."""
        await until(lambda: all(call.ended for call in self.calls))
        await until(lambda: self.load.connections == self.metrics.connections.value == self.open)
        assert (self.load.pending, self.load.waiting) == (0, set())
        for at, backend in enumerate(self.backends):
            backend.held.clear()
            calls = [self.call(at) for _ in range(self.limit * self.streams)]
            await until(lambda: len(backend.held) == len(calls))  # noqa: B023
            backend.answer_all()
            await until(lambda: all(call.ended for call in calls))  # noqa: B023
            assert [call.status for call in calls] == [200] * len(calls)


class Call:
    """One request in the kind of task that requests run in. `status` is 0 while there is no answer; `code` an error."""

    def __init__(self, pool: httpx.AsyncBaseTransport, port: int, method: bytes, deadline: float | None) -> None:
        self.status = 0
        self.code = ""
        self.on_answer: Callable[[], object] = lambda: None
        self._pool = pool
        upgrade = method if method == b"CONNECT" else None
        core = Request(method, b"http", b"test", b"/", b"", b"/", [], Stream() if upgrade else b"", upgrade=upgrade)
        core.deadline = deadline
        self._request = UpstreamRequest(url_of("http", f"127.0.0.1:{port}"), core)
        self._drive = Drive(self._run(), asyncio.get_running_loop())
        self._drive.start()

    @property
    def ended(self) -> bool:
        return self._drive.done()

    def give_up(self) -> None:
        self._drive.cancel()

    async def _run(self) -> None:
        try:
            response = await self._pool.handle_async_request(self._request)
            self.status = response.status_code
            _, body = response_parts(response)
            if isinstance(body, Stream):
                body.close()
            self.on_answer()
        except ProxyError as error:
            self.code = error.code.name


async def until(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not ready():
            await asyncio.sleep(0.001)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def within(world: World, test: Callable[[World], Awaitable[None]]) -> None:
    await world.start()
    try:
        await test(world)
    finally:
        await world.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(12))
def test_clients_that_give_up_at_any_moment_lose_no_connection(protocol: str, seed: int) -> None:
    random = Random(seed)

    async def test(world: World) -> None:
        for _ in range(400):
            backend = random.choice(world.backends)
            running = [call for call in world.calls if not call.ended]
            match random.choice(("call", "call", "call", "give up", "answer", "answer", "hang up", "tunnel")):
                case "call":
                    world.call(random.randrange(2))
                case "tunnel" if random.random() < 0.3:
                    world.call(random.randrange(2), b"CONNECT")
                case "give up" if running:
                    random.choice(running).give_up()
                case "answer" if backend.held:
                    # In the turn in which one request gets its answer, another gives up.
                    if running and random.random() < 0.5:
                        random.choice(running).on_answer = random.choice(running).give_up
                    backend.held.pop(random.randrange(len(backend.held)))()
                case "hang up" if backend.connections and random.random() < 0.3:
                    random.choice(backend.connections).abort()
            await turns(random.randrange(4))
            await world.check()
        for call in world.calls:
            call.give_up()
        await world.check_nothing_is_lost()

    run(lambda: within(World(protocol, 3), test))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_connection_handed_to_a_request_that_gives_up_goes_to_the_next(protocol: str) -> None:
    async def test(world: World) -> None:
        backend = world.backends[0]
        first = [world.call(0) for _ in range(world.streams)]
        await until(lambda: len(backend.held) == world.streams)
        second, third = world.call(0), world.call(0)
        await until(lambda: world.load.pending == 2)
        # Its answer frees the connection, which the second request has been given when it is cancelled.
        first[0].on_answer = second.give_up
        backend.held.pop(0)()
        await until(lambda: len(backend.held) == world.streams)
        backend.answer_all()
        await until(lambda: third.ended)
        assert (second.ended, third.status) == (True, 200)
        await world.check_nothing_is_lost()

    run(lambda: within(World(protocol, 1), test))


@pytest.mark.parametrize("turn", range(6))
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_leave_to_connect_given_to_a_request_that_gives_up_goes_to_the_next(protocol: str, turn: int) -> None:
    async def test(world: World) -> None:
        world.call(0)
        await until(lambda: len(world.backends[0].held) == 1)
        second, third = world.call(0, b"CONNECT"), world.call(0, b"CONNECT")
        await turns(2)
        # The connection of the first request ends; in which turn its place is granted is not known.
        world.backends[0].connections[-1].abort()
        await turns(turn)
        second.give_up()
        await until(lambda: third.ended)
        assert third.status == 101
        for call in world.calls:
            call.give_up()
        await world.check_nothing_is_lost()

    run(lambda: within(World(protocol, 1), test))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_idle_connections_to_one_endpoint_give_way_to_another(protocol: str) -> None:
    async def test(world: World) -> None:
        here, there = world.backends
        calls = [world.call(0) for _ in range(world.limit * world.streams)]
        await until(lambda: len(here.held) == len(calls))
        here.answer_all()
        await until(lambda: all(call.ended for call in calls))
        assert len(here.connections) == 3
        there.at_once = True
        call = world.call(1)
        await until(lambda: call.ended)
        assert call.status == 200
        await until(lambda: (len(here.connections), len(there.connections)) == (2, 1))

    run(lambda: within(World(protocol, 3), test))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_connection_that_becomes_idle_gives_way_to_a_request_that_waits_elsewhere(protocol: str) -> None:
    async def test(world: World) -> None:
        here, there = world.backends
        world.call(0)
        await until(lambda: len(here.held) == 1)
        for count in range(1, world.streams + 1):
            # The first connection to an endpoint may always be opened: the second one waits.
            world.call(1)
            await until(lambda: len(there.held) == count)  # noqa: B023
        waiting = world.call(1)
        await until(lambda: world.load.pending == 1)
        here.answer_all()
        await until(lambda: len(there.held) == world.streams + 1)
        there.answer_all()
        await until(lambda: waiting.ended)
        assert (waiting.status, len(here.connections), len(there.connections)) == (200, 0, 2)

    run(lambda: within(World(protocol, 2), test))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_requests_get_connections_in_the_order_in_which_they_came(protocol: str) -> None:
    async def test(world: World) -> None:
        backend = world.backends[0]
        for count in range(1, world.streams + 1):
            world.call(0)
            await until(lambda: len(backend.held) == count)  # noqa: B023
        order: list[int] = []
        for number in range(10):
            world.call(0).on_answer = lambda number=number: order.append(number)  # type: ignore[misc]
            await turns(1)
        while len(order) < 10:
            await until(lambda: bool(backend.held) or len(order) == 10)
            backend.answer_all()
        assert order == list(range(10))

    run(lambda: within(World(protocol, 1), test))


def test_a_busy_endpoint_gives_way_to_a_request_that_waits_elsewhere() -> None:
    async def test(world: World) -> None:
        here, there = world.backends
        world.call(1)
        await until(lambda: len(there.held) == 1)
        here.at_once = True
        busy = True

        def again() -> None:
            if busy:
                world.call(0).on_answer = again

        for _ in range(8):
            again()
        await until(lambda: world.load.pending >= 4)
        waiting = world.call(1)
        await until(lambda: waiting.ended or len(there.held) == 2)
        busy = False
        there.answer_all()
        await until(lambda: waiting.ended)
        assert waiting.status == 200

    run(lambda: within(World("http1", 3), test))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_wait_ends_with_overflow_after_the_connect_timeout(protocol: str) -> None:
    async def test(world: World) -> None:
        backend = world.backends[0]
        for _ in range(world.streams):
            world.call(0)
        await until(lambda: len(backend.held) == world.streams)
        began = asyncio.get_running_loop().time()
        waiting = world.call(0)
        await until(lambda: waiting.ended)
        assert waiting.code == "overflow"
        assert 0.15 < asyncio.get_running_loop().time() - began < 2
        backend.answer_all()
        await world.check_nothing_is_lost()

    run(lambda: within(World(protocol, 1, connect_timeout=0.2), test))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_wait_ends_with_the_deadline_of_its_request(protocol: str) -> None:
    async def test(world: World) -> None:
        backend = world.backends[0]
        for _ in range(world.streams):
            world.call(0)
        await until(lambda: len(backend.held) == world.streams)
        waiting = world.call(0, deadline=asyncio.get_running_loop().time() + 0.1)
        await until(lambda: waiting.ended)
        assert waiting.code == "upstream_timeout"

    run(lambda: within(World(protocol, 1), test))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_requests_that_wait_are_served_after_their_endpoint_is_removed(protocol: str) -> None:
    async def test(world: World) -> None:
        backend = world.backends[0]
        for _ in range(world.streams):
            world.call(0)
        await until(lambda: len(backend.held) == world.streams)
        waiting = [world.call(0) for _ in range(3)]
        await until(lambda: world.load.pending == 3)
        await world.pools[0].aclose()
        backend.at_once = True
        backend.answer_all()
        await until(lambda: all(call.ended for call in waiting))
        assert [call.status for call in waiting] == [200] * 3
        await until(lambda: world.open == world.load.connections == 0)

    run(lambda: within(World(protocol, 1), test))
