"""The HTTP/2 connections to one endpoint: one that all requests share, and more when it is full."""

import asyncio
import time
from collections import deque
from contextlib import suppress
from typing import cast

import httpx

from l7proxy.core.deadlines import Deadlines
from l7proxy.core.errors import ProxyError
from l7proxy.core.headers import Headers
from l7proxy.core.message import Request
from l7proxy.upstream.dial import (
    IDEMPOTENT,
    TICK,
    Dial,
    Load,
    PoolMetrics,
    WrongProtocol,
    connect,
    is_alive,
    time_left,
    untouched,
)
from l7proxy.upstream.h1 import Unanswered
from l7proxy.upstream.h2 import H2Connection
from l7proxy.upstream.h2_call import Unprocessed
from l7proxy.upstream.transport import request_parts, response_for
from l7proxy.upstream.tunnel import open_tunnel
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
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        method, target, host, fields, body, ledger = request_parts(request)
        upgrade = None if ledger is None else ledger.upgrade
        if method == b"CONNECT" and ledger is not None:
            received = await open_tunnel(self._dial, self._load, self._metrics, ledger, body)
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
        """Ends idle connections now and busy ones after their responses."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.close()

    def abort(self) -> None:
        """Ends every connection at once."""
        self.close()
        for connection in list(self._connections):
            connection.abort()

    def _ready(self, repeatable: bool) -> H2Connection | None:
        """Returns a connection with room for a request."""
        for connection in self._connections:
            if connection.session.openable > 0 and connection.usable:
                if not repeatable and not connection.active:
                    if is_alive(cast(asyncio.Transport, connection.transport), silent=False):
                        return connection
                    connection.close()
                    continue
                return connection
        return None

    async def _connection(self, ledger: Request | None) -> H2Connection:
        """Waits for a connection with room for a request: a new one, unless there may be no more."""
        try:
            async with asyncio.timeout(time_left(ledger, None)):
                while True:
                    if self._dialing is None and self._may_dial():
                        self._dialing = self._loop.create_task(self._open())
                        # Its error is for those who wait; if none is left, nobody needs to hear of it.
                        self._dialing.add_done_callback(lambda task: task.cancelled() or task.exception())
                    if self._dialing is not None:
                        # Everybody who needs a connection waits for the one that is being opened.
                        await asyncio.shield(self._dialing)
                    else:
                        await self._room()
                    connection = self._ready(True)
                    if connection is not None:
                        return connection
        except TimeoutError:
            raise ProxyError("upstream_timeout", "no connection became free in time") from None

    def _may_dial(self) -> bool:
        # One is always allowed: nobody would ever tell that another endpoint has given up one of its own.
        if not self._connections:
            return True
        # Who takes no streams at all for now takes none on another connection either (RFC 9113 6.5.2).
        if any(connection.usable and not connection.session.peer_streams for connection in self._connections):
            return False
        return self._load.connections < self._load.max_connections

    async def _open(self) -> None:
        timeout = self._dial.connect_timeout
        try:
            connection = await connect(
                self._dial,
                self._load,
                self._metrics,
                lambda: H2Connection(self._limits, self._dial.keepalive, self._changed, self._deadlines),
                timeout,
            )
            self._connections.append(connection)
            if self._dial.tls is not None and connection.chosen != b"h2":
                connection.abort()
                raise WrongProtocol(connection.chosen or b"http/1.1")
            # How many streams there may be, and whether extended CONNECT is understood, is in the peer's settings.
            try:
                async with asyncio.timeout(timeout):
                    await connection.configured
            except TimeoutError:
                connection.abort()
                raise ProxyError("upstream_protocol", "no HTTP/2 settings in time") from None
            if not connection.usable:
                raise ProxyError("upstream_protocol", "the upstream does not speak HTTP/2")
        finally:
            self._dialing = None

    async def _room(self) -> None:
        load = self._load
        if load.pending >= load.max_pending:
            raise ProxyError("overflow", "too many requests wait for a connection")
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        load.pending += 1
        try:
            await waiter
        finally:
            load.pending -= 1
            with suppress(ValueError):
                self._waiting.remove(waiter)

    def _changed(self, connection: H2Connection) -> None:
        """Requests have ended, the peer's limit moved, or the connection is gone."""
        metrics = self._metrics
        metrics.sent.value += connection.sent
        metrics.received.value += connection.received
        connection.sent = connection.received = 0
        if connection.transport is None:
            self._load.connections -= 1
            metrics.connections.value -= 1
            with suppress(ValueError):
                self._connections.remove(connection)
        elif self._closed and not connection.active:
            connection.close()
        elif self._sweeper is None and not connection.active:
            self._sweeper = self._loop.call_later(self._dial.idle_timeout / 2, self._sweep)
        room = connection.session.openable if connection.usable else len(self._waiting)
        while self._waiting and room > 0:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    def _sweep(self) -> None:
        """Closes connections that rested longer than the idle timeout."""
        self._sweeper = None
        now = self._loop.time()
        idle = False
        for connection in list(self._connections):
            if not connection.active:
                if now - connection.idle_since >= self._dial.idle_timeout:
                    connection.close()
                else:
                    idle = True
        if idle and not self._closed:
            self._sweeper = self._loop.call_later(self._dial.idle_timeout / 2, self._sweep)


def _with_timeout(fields: Headers, seconds: float) -> Headers:
    """Returns the fields of a gRPC call with what is left of its time."""
    for index, (name, _) in enumerate(fields):
        if name == b"grpc-timeout":
            value = b"%du" % max(seconds * 1e6, 1) if seconds < 99 else b"%dm" % min(seconds * 1e3, 99_999_999)
            return [*fields[:index], (name, value), *fields[index + 1 :]]
    return fields
