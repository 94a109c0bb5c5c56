"""The connections to one endpoint, and how many there may be."""

import asyncio
import time
from typing import cast

import httpx

from l7proxy.core.deadlines import Deadlines
from l7proxy.core.message import Request
from l7proxy.core.outbox import Outbox
from l7proxy.upstream.dial import (
    IDEMPOTENT,
    NEVER,
    TICK,
    Dial,
    PoolMetrics,
    WrongProtocol,
    connect,
    is_alive,
    time_left,
    untouched,
)
from l7proxy.upstream.h1 import H1Connection, Unanswered
from l7proxy.upstream.transport import request_parts, response_for
from l7proxy.upstream.tunnel import open_tunnel
from l7proxy.upstream.waiting import Load, Queue, Share
from l7proxy.wire.framing import Limits
from l7proxy.wire.h1 import ResponseHead

_PEEK_AFTER = 0.005
"""Seconds of rest after which a request that cannot be repeated asks whether its connection still lives."""


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
        self._deadlines = Deadlines(self._loop, TICK)
        self._known: dict[bytes, ResponseHead] = {}
        self._outbox = Outbox(self._loop)
        self._idle: list[H1Connection] = []
        self._open: set[H1Connection] = set()
        self._share = Share(load, self)
        self._queue = Queue(self._share, dial.connect_timeout, self._take_back)
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        method, target, host, fields, body, ledger = request_parts(request)
        upgrade = None if ledger is None else ledger.upgrade
        if method == b"CONNECT" and ledger is not None:
            received = await open_tunnel(self._dial, self._share, self._metrics, ledger, body)
            return response_for(request, 101, [], received)
        idle = self._idle
        connection = None
        while idle:
            connection = idle.pop()
            if connection.usable and (
                method in IDEMPOTENT
                or time.monotonic() - connection.idle_since < _PEEK_AFTER
                or is_alive(cast(asyncio.Transport, connection.transport))
            ):
                break
            self._end(connection)
            connection = None
        reused = connection is not None
        if connection is None:
            connection = await self._connection(ledger)
        if ledger is not None:
            ledger.t_connected = time.monotonic()
        try:
            head, response_body = await connection.exchange(method, target, host, fields, body, upgrade, ledger)
        except Unanswered:
            # A pooled connection that the peer closed at the same moment is nobody's error: once more on a new one.
            if not reused or method not in IDEMPOTENT or not untouched(body):
                raise
            connection = await self._connection(ledger)
            head, response_body = await connection.exchange(method, target, host, fields, body, upgrade, ledger)
        return response_for(request, head.status, head.headers, response_body)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Ends idle connections now and busy ones after their response; requests that wait still get one."""
        self._closed = True
        while self._idle:
            self.give_way()
        if self._sweeper is not None:
            self._sweeper.cancel()

    # What an upstream asks that needs room.

    @property
    def resting(self) -> int:
        return len(self._idle)

    @property
    def resting_since(self) -> float:
        return self._idle[0].idle_since if self._idle else NEVER

    def give_way(self) -> None:
        self._end(self._idle.pop(0))

    # Inside.

    async def _connection(self, ledger: Request | None) -> H1Connection:
        """Returns a new connection, or one that is given back meanwhile when there may be no more."""
        while not self._share.take():
            given = await self._queue.wait(ledger)
            if given is None:
                break
            if given.usable:
                return given
        return await self._connect(time_left(ledger, self._dial.connect_timeout))

    async def _connect(self, timeout: float | None) -> H1Connection:
        connection = await connect(
            self._dial,
            self._share,
            self._metrics,
            lambda: H1Connection(self._limits, self._done, self._deadlines, self._known, self._outbox),
            timeout,
        )
        self._open.add(connection)
        if connection.chosen == b"h2":
            self._end(connection)
            raise WrongProtocol(b"h2")
        return connection

    def _done(self, connection: H1Connection, reusable: bool) -> None:
        """Takes a connection back, or learns that it has ended."""
        if not reusable:
            if connection in self._idle:
                self._idle.remove(connection)
            self._end(connection)
        elif self._closed or self._load.waiting:
            self._pass_on(connection)
        else:
            self._rest(connection)

    def _pass_on(self, connection: H1Connection) -> None:
        """Gives a free connection to a request that waits for one, or its place to one at another endpoint."""
        queue = self._queue
        if connection.usable:
            if queue and not self._load.owes_other(queue):
                queue.hand_over(connection)
                return
            if not self._closed and self._load.next_queue(room=True) is None:
                self._rest(connection)
                return
        self._end(connection)

    def _take_back(self, connection: H1Connection) -> None:
        if connection.usable:
            self._done(connection, True)
        else:
            self._end(connection)

    def _rest(self, connection: H1Connection) -> None:
        self._count(connection)
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(self._dial.idle_timeout / 2, self._sweep)

    def _end(self, connection: H1Connection) -> None:
        """Closes a connection, if it is open still, and gives its place to another."""
        connection.close()
        if connection in self._open:
            self._open.discard(connection)
            self._metrics.connections.value -= 1
            if connection.surplus:
                self._metrics.surplus.value += 1
            if connection.refusal is not None:
                self._metrics.connect_failures.value += 1
            self._count(connection)
            self._share.release()

    def _count(self, connection: H1Connection) -> None:
        metrics = self._metrics
        metrics.sent.value += connection.sent
        metrics.received.value += connection.received
        connection.sent = connection.received = 0

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
                self._end(connection)
            else:
                kept.append(connection)
        self._idle[:] = kept
        if kept:
            self._sweeper = self._loop.call_later(limit / 2, self._sweep)
