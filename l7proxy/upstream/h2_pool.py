"""The HTTP/2 connections to one endpoint: one that all requests share, and more when it is full."""

import asyncio
import time
from typing import cast

import httpx

from l7proxy.core.deadlines import Deadlines
from l7proxy.core.errors import ProxyError
from l7proxy.core.headers import Headers
from l7proxy.core.message import Request
from l7proxy.upstream.dial import (
    IDEMPOTENT,
    NEVER,
    TICK,
    Dial,
    PoolMetrics,
    WrongProtocol,
    connect,
    is_alive,
    untouched,
)
from l7proxy.upstream.h1 import Unanswered
from l7proxy.upstream.h2 import H2Connection
from l7proxy.upstream.h2_call import Unprocessed
from l7proxy.upstream.transport import request_parts, response_for
from l7proxy.upstream.tunnel import open_tunnel
from l7proxy.upstream.waiting import Load, Queue, Share
from l7proxy.wire.h2_limits import H2Limits


class H2Transport(httpx.AsyncBaseTransport):
    """An HTTP/2 endpoint.

    A request that the peer says it did not act on is sent once more by itself (RFC 9113 8.7), as long as nothing of its
    body was read. Raises ProxyError: upstream_connect, overflow, upstream_reset, upstream_timeout, upstream_protocol.
    """

    def __init__(self, dial: Dial, load: Load, metrics: PoolMetrics, limits: H2Limits | None = None) -> None:
        self._dial = dial
        self._load = load
        self._metrics = metrics
        self._limits = limits or H2Limits(head=256 * 1024, header=64 * 1024, headers=1000)
        self._loop = asyncio.get_running_loop()
        self._scheme = b"http" if dial.tls is None else b"https"
        self._connections: list[H2Connection] = []
        self._deadlines = Deadlines(self._loop, TICK)
        self._dialing: asyncio.Task[None] | None = None
        self._share = Share(load, self)
        self._queue = _Streams(self, self._share, dial.connect_timeout)
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        method, target, host, fields, body, ledger = request_parts(request)
        upgrade = None if ledger is None else ledger.upgrade
        if method == b"CONNECT" and ledger is not None:
            received = await open_tunnel(self._dial, self._share, self._metrics, ledger, body)
            return response_for(request, 101, [], received)
        again = False
        until = None
        while True:
            connection = self._ready(method in IDEMPOTENT) or await self._connection(ledger)
            if ledger is not None:
                ledger.t_connected = time.monotonic()
                if ledger.grpc and ledger.deadline is not None:
                    until = ledger.deadline
                    fields = _with_timeout(fields, until - ledger.t_connected)
            reused = connection.uses > 0
            try:
                head, response_body = await connection.exchange(
                    method, target, self._scheme, host, fields, body, upgrade, ledger, until
                )
            except Unprocessed:
                if again or not untouched(body):
                    raise
            except Unanswered:
                # A connection that the peer closed at the same moment is nobody's error: once more on another one.
                if again or not reused or method not in IDEMPOTENT or not untouched(body):
                    raise
            else:
                return response_for(request, head.status, list(head.headers), response_body)
            again = True

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Ends idle connections now and busy ones after their responses; requests that wait still get one."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in self._idle():
            self._end(connection)

    # What an upstream asks that needs room.

    @property
    def resting(self) -> int:
        return len(self._idle())

    @property
    def resting_since(self) -> float:
        return min((connection.idle_since for connection in self._idle()), default=NEVER)

    def give_way(self) -> None:
        self._end(min(self._idle(), key=lambda connection: connection.idle_since))

    def may_dial(self) -> bool:
        """Tells whether one connection more would serve those who wait."""
        # Who takes no streams at all for now takes none on another connection either (RFC 9113 6.5.2).
        return self._dialing is None and not any(
            connection.usable and not connection.session.peer_streams for connection in self._connections
        )

    @property
    def dialing(self) -> bool:
        return self._dialing is not None

    def dial(self) -> None:
        """Opens a connection, which is counted already, for all who wait."""
        self._dialing = self._loop.create_task(self._open())

    def take_back(self, connection: H2Connection) -> None:
        """A request that was promised room is gone."""
        connection.promised -= 1
        if connection in self._connections:
            self._serve(connection)

    # Inside.

    def _idle(self) -> list[H2Connection]:
        return [connection for connection in self._connections if not connection.active and not connection.promised]

    def _ready(self, repeatable: bool) -> H2Connection | None:
        """Returns a connection with room for a request."""
        while True:
            for connection in self._connections:
                if connection.session.openable > connection.promised and connection.usable:
                    break
            else:
                return None
            if repeatable or connection.active:
                return connection
            if is_alive(cast(asyncio.Transport, connection.transport), silent=False):
                return connection
            self._end(connection)

    async def _connection(self, ledger: Request | None) -> H2Connection:
        """Waits for a connection with room for a request: a new one, unless there may be no more."""
        while True:
            self._grow()
            connection = cast(H2Connection, await self._queue.wait(ledger))
            connection.promised -= 1
            if connection.session.openable > connection.promised and connection.usable:
                return connection

    def _grow(self) -> None:
        """Opens a connection if that helps and may be."""
        if self.may_dial() and self._share.take():
            self.dial()

    async def _open(self) -> None:
        try:
            connection = await self._connect()
        except ProxyError as error:
            self._queue.fail(error)
            return
        finally:
            self._dialing = None
        self._connections.append(connection)
        self._serve(connection)

    async def _connect(self) -> H2Connection:
        """Opens a connection and waits for what the peer says of itself."""
        timeout = self._dial.connect_timeout
        connection = await connect(
            self._dial,
            self._share,
            self._metrics,
            lambda: H2Connection(self._limits, self._dial.keepalive, self._changed, self._deadlines),
            timeout,
        )
        try:
            if self._dial.tls is not None and connection.chosen != b"h2":
                raise WrongProtocol(connection.chosen or b"http/1.1")
            # How many streams there may be, and whether extended CONNECT is understood, is in the peer's settings.
            try:
                async with asyncio.timeout(timeout):
                    await connection.configured
            except TimeoutError:
                raise ProxyError("upstream_protocol", "no HTTP/2 settings in time") from None
            if connection.refusal is not None:
                self._metrics.connect_failures.value += 1
                raise connection.not_admitted(connection.refusal)
            if not connection.usable:
                raise ProxyError("upstream_protocol", "the upstream does not speak HTTP/2")
        except BaseException:
            connection.abort()
            self._metrics.connections.value -= 1
            self._share.release()
            raise
        return connection

    def _changed(self, connection: H2Connection) -> None:
        """Requests have ended, the peer's limit moved, or the connection is gone."""
        metrics = self._metrics
        metrics.sent.value += connection.sent
        metrics.received.value += connection.received
        connection.sent = connection.received = 0
        if connection.transport is None:
            self._end(connection)
        elif connection in self._connections:
            self._serve(connection)

    def _serve(self, connection: H2Connection) -> None:
        """Gives the room on a connection to requests that wait, and takes care of one that serves none."""
        if self._queue:
            self._share_out(connection)
        if connection.active or connection.promised:
            return
        gives_way = self._load.waiting and self._load.next_queue(room=True) is not None
        if self._closed or gives_way or not connection.usable:
            self._end(connection)
        elif self._sweeper is None:
            self._sweeper = self._loop.call_later(self._dial.idle_timeout / 2, self._sweep)

    def _share_out(self, connection: H2Connection) -> None:
        queue = self._queue
        while queue and connection.session.openable > connection.promised and connection.usable:
            connection.promised += 1
            queue.hand_over(connection)
        if queue:
            self._grow()

    def _end(self, connection: H2Connection) -> None:
        """Closes a connection without requests, if it is open still, and gives its place to another."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._metrics.connections.value -= 1
            connection.close()
            self._share.release()

    def _sweep(self) -> None:
        """Closes connections that rested longer than the idle timeout."""
        self._sweeper = None
        now = self._loop.time()
        idle = False
        for connection in list(self._connections):
            if not connection.active:
                if now - connection.idle_since >= self._dial.idle_timeout:
                    self._end(connection)
                else:
                    idle = True
        if idle and not self._closed:
            self._sweeper = self._loop.call_later(self._dial.idle_timeout / 2, self._sweep)


class _Streams(Queue[H2Connection]):
    """The requests that wait for a stream: a connection is opened for all of them."""

    def __init__(self, pool: H2Transport, share: Share, patience: float) -> None:
        super().__init__(share, patience, pool.take_back)
        self._pool = pool

    @property
    def wants(self) -> bool:
        return self._pool.may_dial()

    @property
    def opening(self) -> bool:
        return self._pool.dialing

    def grant(self) -> None:
        self._pool.dial()


def _with_timeout(fields: Headers, seconds: float) -> Headers:
    """Returns the fields of a gRPC call with what is left of its time."""
    for index, (name, _) in enumerate(fields):
        if name == b"grpc-timeout":
            value = b"%du" % max(seconds * 1e6, 1) if seconds < 99 else b"%dm" % min(seconds * 1e3, 99_999_999)
            return [*fields[:index], (name, value), *fields[index + 1 :]]
    return fields
