"""The connections to one endpoint, and how many there may be."""

import asyncio
import select
import time
from collections import deque
from contextlib import suppress
from typing import Any, Protocol, cast

import httpx
from msgspec import Struct

from l7proxy.core.errors import ProxyError
from l7proxy.core.message import Body, Request
from l7proxy.core.stats import Counter, Gauge
from l7proxy.upstream.h1 import H1Connection, Unanswered
from l7proxy.upstream.transport import EXTENSION, request_parts, response_for
from l7proxy.wire.framing import Limits

IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""RFC 9110 9.2.2."""

_PEEK_AFTER = 0.005
"""Seconds of rest after which a request that cannot be repeated asks whether its connection still lives."""


class PoolMetrics(Protocol):
    """What a pool counts; `telemetry.metrics.UpstreamMetrics` is one."""

    sent: Counter
    received: Counter
    connections: Gauge
    connects: Counter
    connect_failures: Counter


class Load:
    """What one upstream has under way, shared by its endpoints and kept over configuration swaps."""

    __slots__ = ("connections", "pending", "requests", "max_connections", "max_pending", "max_requests")

    def __init__(self) -> None:
        self.connections = 0
        self.pending = 0
        self.requests = 0
        self.max_connections = 1024
        self.max_pending = 1024
        self.max_requests = 1024


class Dial(Struct, frozen=True):
    """How to reach an endpoint; times in seconds. `path` is that of a Unix socket."""

    host: str
    port: int
    connect_timeout: float = 5.0
    idle_timeout: float = 3.0
    path: str = ""


class H1Transport(httpx.AsyncBaseTransport):
    """An HTTP/1.1 endpoint: hands each request a connection of its own, and keeps connections for the next.

    Raises ProxyError: upstream_connect, overflow, upstream_reset, upstream_timeout, upstream_protocol.
    """

    def __init__(self, dial: Dial, load: Load, metrics: PoolMetrics, limits: Limits | None = None) -> None:
        self._dial = dial
        self._load = load
        self._metrics = metrics
        self._limits = limits or Limits(head=256 * 1024, header=64 * 1024, headers=1000)
        self._loop = asyncio.get_running_loop()
        self._idle: list[H1Connection] = []
        self._open: set[H1Connection] = set()
        self._waiting: deque[asyncio.Future[H1Connection | None]] = deque()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        target, host, fields, body = request_parts(request)
        method = request.method.encode("ascii")
        ledger: Request | None = request.extensions.get(EXTENSION)
        sent = None
        upgrade = None
        if ledger is not None:
            upgrade = ledger.upgrade
            if ledger.deadline is not None or ledger.per_try is not None or ledger.timeout is not None:
                sent = _Clock(ledger).sent
        idle = self._idle
        connection = None
        while idle:
            connection = idle.pop()
            if connection.usable and (
                method in IDEMPOTENT
                or time.monotonic() - connection.idle_since < _PEEK_AFTER
                or _alive(cast(asyncio.Transport, connection.transport))
            ):
                break
            connection.close()
            connection = None
        reused = connection is not None
        if connection is None:
            connection = await self._connection(ledger)
        if ledger is not None:
            ledger.t_connected = time.monotonic()
        try:
            head, response_body = await connection.exchange(method, target, host, fields, body, upgrade, sent)
        except Unanswered:
            # A pooled connection that the peer closed at the same moment is nobody's error: once more on a new one.
            if not reused or method not in IDEMPOTENT or not _untouched(body):
                raise
            connection = await self._connection(ledger)
            head, response_body = await connection.exchange(method, target, host, fields, body, upgrade, sent)
        return response_for(request, head.status, head.headers, response_body)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Ends idle connections now and busy ones after their response."""
        self._closed = True
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def abort(self) -> None:
        """Ends every connection at once."""
        self.close()
        for connection in list(self._open):
            connection.abort()

    async def _connection(self, ledger: Request | None) -> H1Connection:
        """Returns a new connection, or one that is given back meanwhile when there may be no more."""
        load = self._load
        while load.connections >= load.max_connections:
            if load.pending >= load.max_pending:
                raise ProxyError("overflow", "too many requests wait for a connection")
            waiter: asyncio.Future[H1Connection | None] = self._loop.create_future()
            self._waiting.append(waiter)
            load.pending += 1
            try:
                async with asyncio.timeout(_time_left(ledger, None)):
                    given = await waiter
            except TimeoutError:
                raise ProxyError("upstream_timeout", "no connection became free in time") from None
            finally:
                load.pending -= 1
                with suppress(ValueError):
                    self._waiting.remove(waiter)
            if given is not None and given.usable:
                return given
        return await self._connect(_time_left(ledger, self._dial.connect_timeout))

    async def _connect(self, timeout: float | None) -> H1Connection:
        load, metrics, dial = self._load, self._metrics, self._dial
        load.connections += 1
        try:
            async with asyncio.timeout(timeout):
                connection = await self._dial_up(dial)
        except (OSError, TimeoutError, ProxyError) as error:
            load.connections -= 1
            metrics.connect_failures.value += 1
            if isinstance(error, ProxyError):
                raise
            why = "timed out" if isinstance(error, TimeoutError) else (error.strerror or str(error))
            raise ProxyError("upstream_connect", f"{dial.path or f'{dial.host}:{dial.port}'}: {why}") from error
        except BaseException:
            load.connections -= 1
            raise
        self._open.add(connection)
        metrics.connects.value += 1
        metrics.connections.value += 1
        return connection

    async def _dial_up(self, dial: Dial) -> H1Connection:
        def make() -> H1Connection:
            return H1Connection(self._limits, self._done)

        if dial.path:
            _, connection = await self._loop.create_unix_connection(make, dial.path)
        else:
            _, connection = await self._loop.create_connection(make, dial.host, dial.port)
        return connection

    def _done(self, connection: H1Connection, reusable: bool) -> None:
        """Takes a connection back, or learns that it has ended."""
        if not reusable:
            if connection in self._open:
                self._open.discard(connection)
                self._load.connections -= 1
                self._metrics.connections.value -= 1
                self._count(connection)
                with suppress(ValueError):
                    self._idle.remove(connection)
            self._wake(None)
        elif self._closed:
            connection.close()
        elif not (self._waiting and self._wake(connection)):
            self._count(connection)
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(self._dial.idle_timeout / 2, self._sweep)

    def _count(self, connection: H1Connection) -> None:
        metrics = self._metrics
        metrics.sent.value += connection.sent
        metrics.received.value += connection.received
        connection.sent = connection.received = 0

    def _wake(self, connection: H1Connection | None) -> bool:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    def _sweep(self) -> None:
        """Closes connections that rested longer than their idle timeout; the oldest are in front."""
        self._sweeper = None
        now = time.monotonic()
        limit = self._dial.idle_timeout
        kept = []
        for connection in self._idle:
            # Half of what the peer says (RFC 9112 9.3): its clock started before ours.
            timeout = limit if connection.idle_timeout is None else min(limit, connection.idle_timeout / 2)
            if now - connection.idle_since >= timeout or not connection.usable:
                connection.close()
            else:
                kept.append(connection)
        self._idle[:] = kept
        if kept:
            self._sweeper = self._loop.call_later(limit / 2, self._sweep)


class _Clock:
    """Tells how long an attempt may wait for its head from the moment that its request is out."""

    __slots__ = ("_ledger",)

    def __init__(self, ledger: Request) -> None:
        self._ledger = ledger

    def sent(self) -> float | None:
        ledger = self._ledger
        now = time.monotonic()
        if ledger.timeout is not None and ledger.deadline is None:
            ledger.deadline = now + ledger.timeout
        left = None if ledger.deadline is None else ledger.deadline - now
        if ledger.per_try is not None:
            left = ledger.per_try if left is None else min(left, ledger.per_try)
        return left


def _time_left(ledger: Request | None, limit: float | None) -> float | None:
    if ledger is None or ledger.deadline is None:
        return limit
    left = max(ledger.deadline - time.monotonic(), 0.0)
    return left if limit is None else min(left, limit)


def _untouched(body: Body) -> bool:
    return type(body) is bytes or (cast(Any, body).taken == 0)


def _alive(transport: asyncio.Transport) -> bool:
    """Asks the kernel whether the peer has closed: the event loop may not have been told yet."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | select.POLLRDHUP)
    # Bytes that nobody asked for are as bad as an end.
    return not poll.poll(0)
