"""How many connections an upstream may have, and the requests that wait for one.

`Load` counts for a whole upstream, `Share` for one of its endpoints; a `Queue` holds the requests that wait. Whoever
takes a place calls `Share.release` when the connection has ended, could not be opened, or gives way. No request waits
while its upstream has room for a connection, or an idle one that could give way.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from l7proxy.core.errors import ProxyError
from l7proxy.core.message import Request

C = TypeVar("C")

_UNFAIR = 0.1
"""Seconds that a request may wait while requests to another endpoint that came later get connections."""


class Pool(Protocol):
    """The connections to one endpoint, as an upstream sees them that needs room."""

    @property
    def resting(self) -> int:
        """How many connections serve no request."""

    @property
    def resting_since(self) -> float:
        """When the first of those came to rest, in monotonic seconds; infinity when there is none."""

    def give_way(self) -> None:
        """Closes that one."""


class Load:
    """What one upstream has under way, shared by its endpoints and kept over configuration swaps.

    `connections` counts open ones and those that are being opened; `pending` the requests that wait for one.
    """

    __slots__ = (
        "connections", "pending", "requests", "max_connections", "max_pending", "max_requests", "shares", "waiting",
        "_turn",
    )  # fmt: skip

    def __init__(self) -> None:
        self.connections = 0
        self.pending = 0
        self.requests = 0
        self.max_connections = 1024
        self.max_pending = 1024
        self.max_requests = 1024
        self.shares: set[Share] = set()
        """Endpoints that have connections."""
        self.waiting: set[Queue[Any]] = set()
        """Queues that are not empty."""
        self._turn = 0.0

    def admit(self) -> None:
        """Grants what room there is, to those who have waited longest first."""
        while True:
            queue = self.next_queue()
            if queue is not None:
                queue.share.count()
                queue.grant()
            elif self.next_queue(room=True) is None or not self.make_room():
                return

    def next_queue(self, room: bool = False) -> "Queue[Any] | None":
        """Returns the queue that may have the next connection: now, or if there were `room` for one."""
        room = room or self.connections < self.max_connections
        found = None
        for queue in self.waiting:
            # Without room too, an endpoint may have one connection (as with Envoy): others need never end theirs.
            if (room or not queue.share.connections) and queue.wants and (found is None or queue.since < found.since):
                found = queue
        return found

    def make_room(self) -> bool:
        """Closes the connections that have rested longest, if that makes room for a new one; tells whether it did."""
        excess = self.connections - self.max_connections + 1
        if sum(share.pool.resting for share in self.shares) < excess:
            return False
        for _ in range(excess):
            min(self.shares, key=lambda share: share.pool.resting_since).pool.give_way()
        return self.connections < self.max_connections

    def owes_other(self, queue: "Queue[Any]") -> bool:
        """Tells whether a free connection is to give way to another endpoint though requests in `queue` wait for it.

        One connection moves so in `_UNFAIR` seconds: a new one for each request would cost more than it is fair.
        """
        if queue.share.connections == 1:
            return False
        other = self.next_queue(room=True)
        now = time.monotonic()
        if other is None or other is queue or now - max(other.since, self._turn) < _UNFAIR:
            return False
        self._turn = now
        return True


class Share:
    """One endpoint's part of the connections of its upstream."""

    __slots__ = ("load", "pool", "connections")

    def __init__(self, load: Load, pool: Pool) -> None:
        self.load = load
        self.pool = pool
        self.connections = 0

    def take(self) -> bool:
        """Counts a connection that is about to be opened; False when there may be no more."""
        load = self.load
        if load.connections >= load.max_connections and not load.make_room() and self.connections:
            return False
        self.count()
        return True

    def count(self) -> None:
        """Counts a connection, whatever the limit."""
        if not self.connections:
            self.load.shares.add(self)
        self.connections += 1
        self.load.connections += 1

    def release(self) -> None:
        """Gives back the place of one connection, and grants it to a request that waits."""
        load = self.load
        self.connections -= 1
        load.connections -= 1
        if not self.connections:
            load.shares.discard(self)
        if load.waiting:
            load.admit()


class _Place(asyncio.Future[C | None]):
    """A request's place in a queue, which it leaves in the moment in which it is cancelled."""

    timer: asyncio.TimerHandle

    def __init__(self, queue: "Queue[C]") -> None:
        super().__init__()
        self.since = time.monotonic()
        self._queue = queue

    def cancel(self, msg: object = None) -> bool:
        self._queue.remove(self)
        return super().cancel(msg)


class Queue(Generic[C]):
    """The requests that wait for a connection to one endpoint; the first comes first.

    Each gets a connection, or None for leave to open one, which is counted then. `take_back` receives the connection of
    a request that is cancelled in the turn of the event loop in which it gets it. A wait lasts `patience` seconds.
    """

    def __init__(self, share: Share, patience: float, take_back: Callable[[C], None] | None = None) -> None:
        self.share = share
        self._patience = patience
        self._take_back = take_back
        self._loop = asyncio.get_running_loop()
        self._places: OrderedDict[_Place[C], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def since(self) -> float:
        """Since when the first request waits, in monotonic seconds."""
        return next(iter(self._places)).since

    @property
    def wants(self) -> bool:
        """Whether one connection more would serve a request that waits."""
        return True

    @property
    def opening(self) -> bool:
        """Whether a connection for all that wait is being opened: its end decides, not their patience."""
        return False

    def grant(self) -> None:
        """Gives the first request leave to open a connection."""
        self._first().set_result(None)

    def hand_over(self, connection: C) -> None:
        """Gives the first request a connection."""
        self._first().set_result(connection)

    def fail(self, error: ProxyError) -> None:
        """Ends the waiting of all."""
        while self._places:
            self._first().set_exception(error)

    async def wait(self, ledger: Request | None) -> C | None:
        """Waits for a connection, or for leave to open one (None). Raises ProxyError: overflow, upstream_timeout."""
        load = self.share.load
        if load.pending >= load.max_pending and not self.opening:
            raise ProxyError("overflow", "too many requests wait for a connection")
        place = _Place(self)
        self._places[place] = None
        load.waiting.add(self)
        load.pending += 1
        self._set_timer(place, ledger)
        try:
            return await place
        except BaseException:
            # Both can be true in one turn of the loop: the request has been given something, and is cancelled.
            if place.done() and not place.cancelled() and place.exception() is None:
                given = place.result()
                if given is None:
                    self.share.release()
                elif self._take_back is not None:
                    self._take_back(given)
            raise
        finally:
            load.pending -= 1
            place.timer.cancel()
            self.remove(place)
            # It holds the exception, and the exception's traceback holds this frame.
            del place

    def remove(self, place: _Place[C]) -> None:
        """Takes a place out of the queue."""
        self._places.pop(place, None)
        if not self._places:
            self.share.load.waiting.discard(self)

    def _first(self) -> _Place[C]:
        place = next(iter(self._places))
        self.remove(place)
        return place

    def _set_timer(self, place: _Place[C], ledger: Request | None) -> None:
        seconds, late = self._patience, False
        if ledger is not None and ledger.deadline is not None:
            left = max(ledger.deadline - time.monotonic(), 0.0)
            seconds, late = min(seconds, left), left <= seconds
        place.timer = self._loop.call_later(seconds, self._expire, place, ledger, late)

    def _expire(self, place: _Place[C], ledger: Request | None, late: bool) -> None:
        if place.done():
            return
        if self.opening and not late:
            self._set_timer(place, ledger)
            return
        self.remove(place)
        if late:
            place.set_exception(ProxyError("upstream_timeout", "no connection became free in time"))
        else:
            place.set_exception(ProxyError("overflow", f"no connection became free in {self._patience:g} s"))
