"""What all connections of one listening address share: the application, limits, timers and counters."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from msgspec import Struct

from l7proxy.core.buffers import BufferAccount, BufferPool
from l7proxy.core.exchange import Exchange, Refusal
from l7proxy.core.memory import Trimmer
from l7proxy.core.outbox import Outbox
from l7proxy.core.stats import Stats
from l7proxy.wire.framing import Limits
from l7proxy.wire.h2_limits import H2Limits

Serve = Callable[[Exchange], Awaitable[None]]

TICK = 0.25
NEVER = float("inf")


class Timeouts(Struct, frozen=True):
    """Seconds that a client may take.

    `head` for a whole request head, `idle` between requests, `stream` without a byte either way while a request is
    under way, `max_age` for the connection (jittered), `linger` to read what is left after the last answer, `goaway`
    to use a connection once it was asked to end.
    """

    head: float = 10.0
    idle: float = 3600.0
    stream: float = 300.0
    max_age: float = NEVER
    linger: float = 5.0
    goaway: float = 5.0


class Connection(Protocol):
    """What a listener may ask of a connection, whichever protocol it speaks. `account` is what it holds in memory."""

    account: BufferAccount

    def on_tick(self, now: float) -> float | None:
        """Acts on the timeouts that have passed by `now`; returns when to look again, None when it has ended."""

    def drain(self) -> None:
        """Ends once what is under way is done, and tells the client."""

    def cut(self, code: str) -> None:
        """Ends at once, with the answer of `code` to requests that have none yet."""

    def abort(self) -> None:
        """Ends at once."""

    @property
    def exchanges(self) -> Iterable[Exchange]:
        """Requests under way."""


class Listener:
    """One listening address. `now` is the monotonic clock at the last tick: coarse, and free to read."""

    def __init__(
        self,
        name: str,
        serve: Serve,
        stats: Stats,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        max_connections: int = 20_000,
        service: str = "l7proxy",
        h2_limits: H2Limits | None = None,
        buffers: BufferPool | None = None,
    ) -> None:
        self.name = name
        self.service = service
        self.serve = serve
        self.stats = stats
        self.limits = limits or Limits()
        self.h2_limits = h2_limits or H2Limits()
        self.timeouts = timeouts or Timeouts()
        self.max_connections = max_connections
        self.loop = asyncio.get_running_loop()
        self.outbox = Outbox(self.loop)
        self.buffers = buffers or BufferPool()
        self.buffers.on_full = self._on_full_buffers
        self.connections: set[Connection] = set()
        self.draining = False
        self.patience = self.timeouts.goaway
        """Seconds that a connection may still be used once it was asked to end."""
        self.answered = 0
        self.now = time.monotonic()
        self.on_closed: Callable[[], None] | None = None
        self.on_refusal: Callable[[Refusal], None] | None = None
        self._due: dict[int, set[Connection]] = {}
        self._ticks: dict[Connection, set[int]] = {}
        """Where a connection stands in `_due`, so that what has ended is let go at once, not at its tick."""
        self._tick = int(self.now / TICK)
        self._trimmer = Trimmer()
        self._relieving = False
        self._timer = self.loop.call_later(TICK, self._on_timer)
        self.accepted = stats.counter(
            "l7proxy_downstream_accepted_total", "Connections that were accepted", listener=name
        )
        stats.gauge(
            "l7proxy_downstream_connections", "Connections that are open", lambda: len(self.connections), listener=name
        )
        self.received = stats.counter(
            "l7proxy_downstream_received_bytes_total", "Bytes received from clients", listener=name
        )
        self._cut = stats.counter(
            "l7proxy_downstream_cut_total",
            "Connections cut because they held the most memory when `limits.buffered` was exceeded",
            listener=name,
        )
        self.sent = stats.counter("l7proxy_downstream_sent_bytes_total", "Bytes sent to clients", listener=name)

    def refused(self, reason: str) -> None:
        """Counts a request that was refused before it reached a route."""
        self.stats.counter(
            "l7proxy_bad_requests_total", "Requests refused as malformed, by reason", listener=self.name, reason=reason
        ).value += 1

    def tell(self, refusal: Refusal) -> None:
        """Lets metrics and log know of an answer that no application made."""
        if self.on_refusal is not None:
            self.on_refusal(refusal)

    def opened(self, connection: Connection) -> None:
        """A connection begins; it will be asked about its timeouts."""
        self.connections.add(connection)
        self.accepted.value += 1

    def replaced(self, connection: Connection, other: Connection) -> None:
        """A connection turned out to speak another protocol."""
        self._forget(connection)
        self.connections.add(other)

    def closed(self, connection: Connection) -> None:
        """A connection has ended."""
        self._forget(connection)
        if self.on_closed is not None:
            self.on_closed()

    def watch(self, connection: Connection, when: float) -> None:
        """Asks `connection.on_tick` at `when` (monotonic seconds) or within a tick after it."""
        if when != NEVER and connection in self.connections:
            tick = max(int(when / TICK), self._tick) + 1
            self._due.setdefault(tick, set()).add(connection)
            self._ticks.setdefault(connection, set()).add(tick)

    def drain(self) -> None:
        """Asks every connection, and those that will come, to end."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()

    def close(self) -> None:
        """Stops the timers and aborts what is left."""
        self._timer.cancel()
        for connection in list(self.connections):
            connection.abort()

    def _on_full_buffers(self) -> None:
        # In a turn of its own: whoever counts is in the middle of something.
        if not self._relieving:
            self._relieving = True
            self.loop.call_soon(self._relieve)

    def _relieve(self) -> None:
        """Cuts the connections that hold the most until all together hold no more than they may."""
        self._relieving = False
        buffers = self.buffers
        while buffers.size > buffers.limit and self.connections:
            largest = max(self.connections, key=lambda connection: connection.account.size)
            if not largest.account.size:
                return
            self._cut.value += 1
            # What it held is on its way out, and must not cost another one its connection.
            largest.account.close()
            largest.cut("overflow")

    def _forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        for tick in self._ticks.pop(connection, ()):
            if tick in self._due:
                self._due[tick].discard(connection)

    def _on_timer(self) -> None:
        now = self.now = time.monotonic()
        self._timer = self.loop.call_later(TICK, self._on_timer)
        self._trimmer.look(self.buffers.size)
        last, self._tick = self._tick, int(now / TICK)
        if self._tick - last > len(self._due):
            ticks = [tick for tick in self._due if tick <= self._tick]
        else:
            ticks = list(range(last + 1, self._tick + 1))
        for tick in ticks:
            for connection in self._due.pop(tick, ()):
                if connection in self.connections:
                    self._ticks[connection].discard(tick)
                    again = connection.on_tick(now)
                    if again is not None:
                        self.watch(connection, again)
