"""HTTP/2 towards an upstream: one `H2Connection` that many requests share, one `H2Call` for each."""

import asyncio
import time
from collections.abc import Callable
from typing import cast

from l7proxy.core.deadlines import NEVER, Deadlines
from l7proxy.core.errors import ProxyError
from l7proxy.core.headers import Headers, find, tokens
from l7proxy.core.message import Body, Request
from l7proxy.core.stream import HIGH_WATER
from l7proxy.identity.refusal import Unwanted
from l7proxy.upstream.dial import Expiring
from l7proxy.upstream.h1 import Unanswered
from l7proxy.upstream.h2_call import H2Call, Unprocessed, error_of
from l7proxy.wire.fields import CONNECTION_FIELDS
from l7proxy.wire.h2 import Session
from l7proxy.wire.h2_events import (
    Configured,
    Data,
    Ended,
    Event,
    GoingAway,
    Ponged,
    Reset,
    ResponseHead,
    Trailers,
    Writable,
)
from l7proxy.wire.h2_fields import ResponseFields
from l7proxy.wire.h2_limits import H2Limits

_KEEPALIVE_ANSWER = 10.0
"""Seconds that an upstream may take to answer a PING."""
_PING = b"l7proxy\0"


class H2Connection(Expiring):
    """One connection to an endpoint.

    `exchange` sends a request and returns the response head with its body: `bytes` when it arrived whole, else a Stream
    that shuts the stream's window when its reader is slow. `changed(connection)` is called when requests have ended,
    when the peer changed its mind on how many there may be, and when the connection has ended.
    """

    def __init__(
        self,
        limits: H2Limits,
        keepalive: float | None,
        changed: Callable[["H2Connection"], None],
        deadlines: Deadlines,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.session = Session(True, limits)
        self.answered: list[H2Call] = []
        """Calls whose response head came with the bytes that are being read."""
        self.configured: asyncio.Future[None] = self.loop.create_future()
        """Done once the peer's settings have come, or the connection has ended."""
        self.received = 0
        self.sent = 0
        self.uses = 0
        self.promised = 0
        """Streams that requests may open which have been woken and have not gone on yet."""
        self.idle_since = self.loop.time()
        self._going_away = False
        self._changed = changed
        self._flushing = False
        self._known_active = 0
        self._deadlines = deadlines
        self._watched = NEVER
        self._keepalive = keepalive
        self._timer: asyncio.TimerHandle | None = None
        self._heard = False
        self._why = ""

    @property
    def usable(self) -> bool:
        """False once no more requests may be sent."""
        transport = self.transport
        if self._going_away or self.session.ended or transport is None or transport.is_closing():
            return False
        return self.expires == NEVER or time.monotonic() < self.expires

    @property
    def active(self) -> int:
        """Requests under way."""
        return len(self.session.streams)

    async def exchange(
        self,
        method: bytes,
        target: bytes,
        scheme: bytes,
        host: bytes,
        headers: Headers,
        body: Body,
        upgrade: bytes | None = None,
        ledger: Request | None = None,
        until: float | None = None,
    ) -> tuple[ResponseFields, Body]:
        """Sends one request and waits for the head of its response.

        An upgrade becomes an extended CONNECT (RFC 8441), and the 200 that accepts it a 101. `ledger` says how
        long the head may take once the whole request is out; `until` is when the whole
        exchange must have ended, in monotonic seconds. Raises Unprocessed, Unanswered, or ProxyError with
        upstream_reset, upstream_timeout or upstream_protocol. A caller that is cancelled resets its stream.
        """
        self.uses += 1
        call = H2Call(self)
        for name, _ in headers:
            if name in CONNECTION_FIELDS:
                headers = [pair for pair in headers if pair[0] not in CONNECTION_FIELDS]
                break
        fields = [(b":method", method), (b":scheme", scheme), (b":authority", host), (b":path", target)]
        if not host:
            # RFC 9113 8.3.1: what HTTP/1.0 did not say must not be said to be empty.
            del fields[2]
        if upgrade is not None:
            if not self.session.peer_extended_connect:
                # The room that this request leaves may be what another waits for.
                self._changed(self)
                raise ProxyError("upstream_protocol", "the upstream takes no extended CONNECT")
            # There is room for one: the client's first choice.
            upgrade = call.upgrade = tokens(upgrade)[0]
            call.key = find(headers, b"sec-websocket-key") or b""
            fields[0] = (b":method", b"CONNECT")
            fields.append((b":protocol", upgrade))
            headers = [pair for pair in headers if pair[0] != b"sec-websocket-key"]
        stream = call.stream = self.session.open(fields + headers, type(body) is bytes and not body, method == b"HEAD")
        stream.owner = call
        self._known_active += 1
        return await call.run(body, ledger, until)

    def watch(self, deadline: float) -> None:
        """Sees to it that a call's deadline is noticed."""
        if deadline < self._watched:
            self._watched = deadline
            self._deadlines.watch(self, deadline)

    def on_deadline(self, now: float) -> float | None:
        """See `core.deadlines.Due`."""
        self._watched = NEVER
        for stream in list(self.session.streams.values()):
            call: H2Call | None = stream.owner
            if call is not None:
                if call.deadline <= now:
                    call.expire()
                else:
                    self._watched = min(self._watched, call.deadline)
        return None if self._watched == NEVER else self._watched

    def close(self) -> None:
        """Ends the connection when its requests have ended."""
        self._going_away = True
        transport = self.transport
        if transport is not None and not self.session.streams:
            if not self.session.ended:
                self.session.ended = True
                self.session.send_goaway(final=True)
                transport.write(self.session.take())
            transport.close()

    def abort(self) -> None:
        """Ends the connection at once."""
        if self.transport is not None:
            self.transport.abort()

    def flush_soon(self) -> None:
        """Writes at the end of this turn of the event loop."""
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(HIGH_WATER)
        self._flush()
        self._rest()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        self._heard = True
        self._flushing = True
        session = self.session
        for event in session.receive(data, self.loop.time()):
            if isinstance(event, (Data, Trailers, ResponseHead)):
                call: H2Call | None = event.stream.owner
                # None where it was given up while these events were being looked at.
                if call is not None:
                    call.receive(event)
            else:
                self._on_event(event)
        if self.answered:
            answered, self.answered = self.answered, []
            for call in answered:
                call.deliver()
        self._flush()
        if session.over_budget:
            self._yield_turn()

    def _read_on(self) -> None:
        self.data_received(b"")
        if not self._yielded:
            self._resume_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.transport = None
        if isinstance(error, Unwanted) and not self.received:
            self.refusal = error
        self.session.ended = True
        if self._timer is not None:
            self._timer.cancel()
        why = self._why or f"the connection was closed: {error or 'end of stream'}"
        streams = list(self.session.streams.values())
        self.session.streams.clear()
        for stream in streams:
            stream.state = 0
            if stream.owner is not None:
                stream.owner.fail(ProxyError("upstream_reset", why) if stream.answered else Unanswered(why))
        if not self.configured.done():
            self.configured.set_result(None)
        self._changed(self)

    def pause_writing(self) -> None:
        self.session.paused = True

    def resume_writing(self) -> None:
        self.session.paused = False
        if self.session.waiting:
            self.session.more = True
        self.flush_soon()

    # Inside.

    def _on_event(self, event: Event) -> None:
        if isinstance(event, (Writable, Reset)):
            call: H2Call | None = event.stream.owner
            if call is None:
                return
            if type(event) is Writable:
                call.writable()
            elif type(event) is Reset:
                call.fail(error_of(event))
        elif isinstance(event, GoingAway):
            self._going_away = True
            for stream in event.unseen:
                if stream.owner is not None:
                    stream.owner.fail(Unprocessed("the upstream went away before it saw the request"))
            # Requests that wait for a stream need another connection now.
            self._changed(self)
        elif isinstance(event, Ponged):
            self._rest()
        elif isinstance(event, Configured):
            if not self.configured.done():
                self.configured.set_result(None)
            self._changed(self)
        elif isinstance(event, Ended):
            self._why = event.reason
            for stream in self.session.streams.values():
                stream.state = 0
                if stream.owner is not None:
                    stream.owner.fail(ProxyError("upstream_protocol", event.reason))
            self.session.streams.clear()

    def _flush(self) -> None:
        self._flushing = False
        transport = self.transport
        session = self.session
        if transport is None:
            return
        if session.more:
            for event in session.pump():
                self._on_event(event)
        if session.has_output:
            data = session.take()
            self.sent += len(data)
            transport.write(data)
        if session.more and not session.paused:
            self.flush_soon()
        active = len(session.streams)
        if active < self._known_active:
            self._known_active = active
            if not active:
                self.idle_since = self.loop.time()
            if not self.usable:
                self.close()
            else:
                self._changed(self)
        elif session.ended and not active:
            self.close()

    def _rest(self) -> None:
        """Waits for the next time to ask."""
        if self._keepalive is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._heard = False
            self._timer = self.loop.call_later(self._keepalive, self._look)

    def _look(self) -> None:
        """Asks a peer that owes answers and says nothing for a sign of life."""
        if self._heard or not self.session.streams:
            self._rest()
        else:
            self.session.send_ping(_PING)
            self.flush_soon()
            self._timer = self.loop.call_later(_KEEPALIVE_ANSWER, self._give_up)

    def _give_up(self) -> None:
        if self._heard:
            self._rest()
        else:
            self._why = "no answer to a PING"
            self.abort()
