"""HTTP/2 towards clients: one `H2Protocol` a connection, one `H2Exchange` and one task a stream.

Everything that is said within one turn of the event loop leaves in one write.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from l7proxy.core import grpc
from l7proxy.core.address import end_of
from l7proxy.core.buffers import BufferAccount
from l7proxy.core.errors import CODES, proxy_status
from l7proxy.core.exchange import Refusal
from l7proxy.core.pacing import PacedProtocol
from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.core.stream import WRITE_BUFFER
from l7proxy.server.h2_exchange import STATUS, H2Exchange
from l7proxy.server.listener import NEVER, Connection, Listener
from l7proxy.server.parting import part
from l7proxy.wire.framing import offered
from l7proxy.wire.h2 import Session
from l7proxy.wire.h2_events import (
    SENDING,
    Data,
    Ended,
    Event,
    GoingAway,
    H2Stream,
    Oversized,
    Refused,
    RequestHead,
    Reset,
    Trailers,
    Writable,
)
from l7proxy.wire.h2_fields import RequestFields
from l7proxy.wire.h2_frames import Error

_UNREAD_OUTPUT = 1024 * 1024
"""Bytes that a client may leave unread before we read nothing more from it; bodies stop long before it."""
_BEGIN_AT_ONCE = 32
"""Requests that begin in one turn of the loop where some had to wait."""


_STOP_AFTER = 0.01
"""Seconds that a client gets to see a complete answer before it must stop sending; some take both at once amiss."""


class H2Protocol(PacedProtocol):
    """One client connection.

    `account` counts what it holds in memory. Requests that come while that is more than its share wait to begin: the
    answers to those under way have to leave first.
    """

    def __init__(self, listener: Listener, peer: Peer = ANONYMOUS, secure: bool = False) -> None:
        self.listener = listener
        self.peer = peer
        self.secure = secure
        self.scheme = b"https" if secure else b"http"
        self.extensions: dict[str, Any] = {}
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int] | None = None
        self.destination: tuple[str, int] | None = None
        self.account = BufferAccount(listener.buffers, many=True)
        self.session = Session(False, listener.h2_limits)
        self.exchanges: set[H2Exchange] = set()
        self.serves: Callable[[bytes], bool] | None = None
        self.expires = NEVER
        self.close_at = NEVER
        self._touched = listener.now
        self._flushing = False
        self._closing = False
        self._waiting: deque[H2Exchange] = deque()
        """Requests that have not begun yet."""
        self._written = self._unsent = self._in_session = 0
        """Bytes of the output that stays in memory until the client has read it all, what `account` has counted of it,
        and what it has counted of what the session holds."""
        # When a client that was said goodbye is waited for no longer.
        self._ends_at = NEVER
        # When the second GOAWAY is due, once the first has been sent.
        self._goaway_at: float | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.listener.opened(self)
        self._begin(cast(asyncio.Transport, transport))

    def take_over(self, other: Connection, transport: asyncio.Transport, data: bytes) -> None:
        """Speaks in place of another protocol, whose first bytes turned out to be ours."""
        self.listener.replaced(other, self)
        transport.set_protocol(self)
        self._begin(transport)
        self._receive(data)

    def _begin(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(WRITE_BUFFER)
        self.client = end_of(transport.get_extra_info("peername"))
        self.server = end_of(transport.get_extra_info("sockname"))
        listener = self.listener
        if listener.timeouts.max_age != NEVER:
            # Jittered by a tenth, so that connections made together do not end together.
            self.close_at = listener.now + listener.timeouts.max_age * (0.9 + (id(self) >> 4) % 100 / 1000)
        self.close_at = min(self.close_at, self.expires)
        listener.watch(self, min(listener.now + min(listener.timeouts.head, listener.timeouts.stream), self.close_at))
        if listener.draining:
            self.drain()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.listener.received.value += len(data)
        if not self._closing:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        now = self._touched = self.listener.now
        session = self.session
        self._flushing = True
        begun: list[H2Exchange] = []
        for event in session.receive(data, now):
            if type(event) is RequestHead:
                exchange = self._open(event.stream, event.head)
                if exchange is not None:
                    begun.append(exchange)
            elif type(event) is Data:
                exchange = event.stream.owner
                if exchange is not None:
                    exchange.receive_data(event.data, event.ended)
                else:
                    session.release(event.stream)
            else:
                self._on_event(event, begun)
        if begun:
            self._begin_exchanges(begun)
        self._flush()
        if session.over_budget:
            self._yield_turn()

    def _read_on(self) -> None:
        if not self._closing:
            self._receive(b"")
        if not self._yielded:
            self._resume_reading()

    def _begin_exchanges(self, begun: list[H2Exchange]) -> None:
        if self._waiting or self.account.full:
            for exchange in begun:
                # What it brought counts from now on.
                exchange.prepare()
            self._waiting += begun
        else:
            for exchange in begun:
                exchange.begin()

    def _begin_waiting(self) -> None:
        """Begins some of the requests that wait, once the connection holds less than its share."""
        for _ in range(min(len(self._waiting), _BEGIN_AT_ONCE)):
            if self.account.full:
                return
            self._waiting.popleft().begin()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._closing = True
        self.listener.closed(self)
        for exchange in list(self.exchanges):
            exchange.abandon()
        self.account.close()

    def pause_writing(self) -> None:
        self.session.paused = True
        self._unsent = self._written
        self.account.add(self._unsent)

    def resume_writing(self) -> None:
        self._touched = self.listener.now
        self.session.paused = False
        self.account.add(-self._unsent)
        self._unsent = 0
        if not self.session.over_budget:
            self._resume_reading()
        if self.session.waiting:
            self.session.more = True
        self.flush_soon()

    # What the listener asks.

    def on_tick(self, now: float) -> float | None:
        """See `listener.Connection`: slow frames, stalled streams, idleness, the greatest age and the second GOAWAY."""
        timeouts = self.listener.timeouts
        session = self.session
        if self._closing:
            if now < self._ends_at:
                return self._ends_at
            self.abort()
            return None
        since = session.partial_since
        if since is not None and now >= since + timeouts.head:
            self.listener.refused("slow_frame")
            self.close(Error.ENHANCE_YOUR_CALM)
            return None
        if self._goaway_at is not None and now >= self._goaway_at and not session.refusing:
            session.refusing = True
            session.send_goaway(final=True)
            self._flush()
        if now >= self.close_at and self._goaway_at is None:
            self.drain()
        for exchange in list(self.exchanges):
            if now >= exchange.touched + timeouts.stream:
                self._stall(exchange)
        if not self.exchanges:
            until = self._touched + (timeouts.idle if session.configured else timeouts.head)
            if session.refusing or now >= until:
                self.close(Error.NO_ERROR)
                return None
        else:
            until = min(exchange.touched for exchange in self.exchanges) + timeouts.stream
        until = min(until, now + min(timeouts.head, timeouts.stream), max(self.close_at, now + 1.0))
        if self._goaway_at is not None:
            until = min(until, max(self._goaway_at, now + 1.0))
        return until

    def drain(self) -> None:
        """Sends the first GOAWAY; the second follows, and the end when no stream is left."""
        if self._goaway_at is None and not self._closing:
            self._goaway_at = self.listener.now + self.listener.patience
            self.session.send_goaway(final=False)
            self.listener.watch(self, self._goaway_at)
            self.flush_soon()

    def cut(self, code: str) -> None:
        """Ends at once: with the answer of `code` where none has begun."""
        for exchange in list(self.exchanges):
            self._cut(exchange, code)
        self.close(Error.NO_ERROR)
        if self._unsent > _UNREAD_OUTPUT:
            # A client that leaves so much unread would not read the farewell either.
            self.abort()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def close(self, code: Error) -> None:
        """Says goodbye and ends, with time for the client to read it."""
        session = self.session
        if not session.ended:
            session.ended = True
            if code or not session.refusing:
                session.send_goaway(True, code)
        self._flush()
        transport = self.transport
        if transport is None or self._closing:
            return
        self._closing = True
        for exchange in list(self.exchanges):
            exchange.abandon()
        listener = self.listener
        self._ends_at = listener.now + listener.timeouts.stream
        listener.watch(self, self._ends_at)
        self._resume_reading()
        part(transport, listener.loop, listener.timeouts.linger, hear=code != Error.NO_ERROR)

    # What exchanges ask.

    def flush_soon(self) -> None:
        """Writes at the end of this turn of the event loop."""
        if not self._flushing:
            self._flushing = True
            self.listener.loop.call_soon(self._flush)

    def count_session(self) -> None:
        """Counts what waits in the session for the client's windows, or for the rest of a frame."""
        held = self.session.held
        if held != self._in_session:
            self.account.add(held - self._in_session)
            self._in_session = held

    def answer(self, stream: H2Stream, code: str, head: RequestFields | None) -> None:
        """Makes the server's own answer to the request with `head`, or to one that never became one."""
        entry = CODES[code]
        why = [
            (b"x-l7proxy-error", code.encode()),
            (b"proxy-status", proxy_status(self.listener.service, entry)),
        ]
        session = self.session
        if head is not None and head.method == b"POST" and grpc.is_call(head.headers):
            fields = grpc.status_fields(entry.grpc, entry.text)
            session.send_head(stream, [(b":status", STATUS[200]), *fields, *why], end=True)
        else:
            body = b'{"error":"%b","message":"%b"}\n' % (code.encode(), entry.text.encode())
            kind = (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))
            bodiless = head is not None and head.method == b"HEAD"
            session.send_head(stream, [(b":status", STATUS[entry.status]), *kind, *why], end=bodiless)
            if not bodiless:
                session.send_data(stream, body, end=True)
        if stream.id not in session.waiting:
            session.send_reset(stream, Error.NO_ERROR)
        self.flush_soon()

    def end_exchange(self, exchange: H2Exchange, code: int) -> None:
        """The application is done with a stream: what is left of it is not wanted."""
        stream = exchange.stream
        # What leads back to the exchange goes, so that nothing is left for the garbage collector.
        stream.owner = None
        exchange.body = b""
        if exchange.counted:
            exchange.settle()
        self.exchanges.discard(exchange)
        if self.account.held or self._waiting:
            self.flush_soon()
        self.listener.answered += 1
        session = self.session
        session.release(stream)
        if stream.state & SENDING:
            session.send_reset(stream, code or Error.INTERNAL_ERROR)
            self.flush_soon()
        elif stream.state:
            self.listener.loop.call_later(_STOP_AFTER, self._stop_sending, stream)
        if session.refusing and not self.exchanges:
            self.listener.loop.call_soon(self._finish)

    def withdraw(self, exchange: H2Exchange) -> None:
        """A request has ended before its time."""
        self.exchanges.discard(exchange)
        if exchange.task is None and exchange in self._waiting:
            self._waiting.remove(exchange)

    # Inside.

    def _open(self, stream: H2Stream, head: RequestFields) -> H2Exchange | None:
        if head.method != b"CONNECT" or head.protocol is not None:
            # Mesh proxies write the scheme that their application used: plain HTTP, though it comes in mTLS.
            from_mesh = head.scheme == b"http" and self.peer.fingerprint
            if head.scheme != self.scheme and not from_mesh:
                self._refuse(stream, "bad_request", "scheme", head)
                return None
            if len(head.target) > self.listener.limits.target:
                self._refuse(stream, "uri_too_long", "target_too_long", head)
                return None
        if head.protocol and offered(head.protocol.lower()) is None:
            # RFC 9220 3 has it so: a protocol that is not supported.
            self._refuse(stream, "not_implemented", "protocol", head)
            return None
        exchange = stream.owner = H2Exchange(self, stream, head)
        self.exchanges.add(exchange)
        return exchange

    def _on_event(self, event: Event, begun: list[H2Exchange]) -> None:
        if isinstance(event, (Trailers, Reset, Writable)):
            exchange: H2Exchange | None = event.stream.owner
            if type(event) is Trailers:
                if exchange is not None:
                    exchange.receive_trailers(event.headers)
            elif type(event) is Writable:
                if exchange is not None:
                    exchange.writable()
                elif event.stream.state:
                    self.session.send_reset(event.stream, Error.NO_ERROR)
            elif exchange is not None:
                exchange.abandon()
                if exchange in begun:
                    begun.remove(exchange)
        elif isinstance(event, Refused):
            self._refused(event.reason)
        elif isinstance(event, Oversized):
            self._refuse(event.stream, "headers_too_large", "head_too_large", None)
        elif isinstance(event, GoingAway):
            self.session.refusing = True
            self.listener.loop.call_soon(self._finish)
        elif isinstance(event, Ended):
            begun.clear()
            self.listener.loop.call_soon(self.close, Error.PROTOCOL_ERROR)

    def _refuse(self, stream: H2Stream, code: str, reason: str, head: RequestFields | None) -> None:
        """Answers what does not become a request."""
        self.listener.refused(reason)
        self.listener.tell(Refusal(code, reason, "2", self.scheme, self.peer, self.client))
        self.answer(stream, code, head)

    def _refused(self, reason: str) -> None:
        self.listener.stats.counter(
            "l7proxy_h2_refused_total",
            "HTTP/2 streams and connections that were refused, by reason",
            listener=self.listener.name,
            reason=reason,
        ).value += 1

    def _stop_sending(self, stream: H2Stream) -> None:
        """Asks the client to send no more of a request that is answered (RFC 9113 8.1)."""
        if stream.state:
            self.session.send_reset(stream, Error.NO_ERROR)
            self.flush_soon()

    def _finish(self) -> None:
        if not self.exchanges:
            self.close(Error.NO_ERROR)

    def _flush(self) -> None:
        self._flushing = False
        transport = self.transport
        session = self.session
        if transport is None or self._closing:
            return
        if session.more:
            for event in session.pump():
                self._on_event(event, [])
        if session.has_output:
            data = session.take()
            self._touched = self.listener.now
            self.listener.sent.value += len(data)
            self._written = self._unsent + len(data)
            transport.write(data)
            if session.paused:
                self.account.add(self._written - self._unsent)
                self._unsent = self._written
                if self._unsent > _UNREAD_OUTPUT:
                    self._pause_reading()
        self.count_session()
        if self.account.held:
            self.account.release()
        if self._waiting:
            self._begin_waiting()
        if session.more and not session.paused:
            self.flush_soon()

    def _stall(self, exchange: H2Exchange) -> None:
        """No byte either way for the stream timeout: 408 while no answer has begun, else an end without one."""
        self.listener.refused("slow_stream")
        self._cut(exchange, "request_timeout")

    def _cut(self, exchange: H2Exchange, code: str) -> None:
        exchange.abandon(code)
        if exchange.task is None:
            self.listener.tell(Refusal(code, "waited to begin", "2", self.scheme, self.peer, self.client))
        if not exchange.begun:
            self.answer(exchange.stream, code, exchange.head)
        else:
            self.session.send_reset(exchange.stream, Error.CANCEL)
            self.flush_soon()
