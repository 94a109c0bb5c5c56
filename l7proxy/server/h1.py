"""HTTP/1.1 towards clients: one `H1Protocol` a connection, one exchange and one task a request."""

import asyncio
import select
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from l7proxy.core.address import end_of
from l7proxy.core.buffers import WORTH_COUNTING, BufferAccount
from l7proxy.core.drive import Drive
from l7proxy.core.errors import CODES, ProxyError, proxy_status
from l7proxy.core.exchange import CONNECT, Refusal
from l7proxy.core.message import Body
from l7proxy.core.outbox import Corked
from l7proxy.core.pacing import PacedProtocol
from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.core.stream import WRITE_BUFFER, Stream
from l7proxy.server.h1_exchange import H1Exchange
from l7proxy.server.h2 import H2Protocol
from l7proxy.server.listener import NEVER, Listener
from l7proxy.server.parting import part, reset
from l7proxy.wire.framing import Malformed
from l7proxy.wire.h1 import (
    END,
    STATUS_LINES,
    RequestHead,
    RequestReader,
    encode_fields,
)

_PIPELINE = 64 * 1024
"""Bytes of further requests beyond which nothing more is read ahead while one is answered."""
_DISCARD = 1024 * 1024
"""Bytes of an unwanted request body that are read so that the connection can be used again."""
_EXPECTED: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_H2_REQUEST_LINE: Final = b"PRI * HTTP/2.0\r\n"
HALF_CLOSED_GRACE = 1.0
"""Seconds that a request may go on after its client closed its sending side: it may be `nc`, it may be gone."""


class H1Protocol(PacedProtocol):
    """One client connection.

    `exchange` is the request under way: nothing is parsed behind it until its response is complete, so answers keep
    the order of the requests. `drained` is a future while the client reads slower than we write. `account` counts what
    the connection holds in memory.
    """

    def __init__(self, listener: Listener, peer: Peer = ANONYMOUS, secure: bool = False) -> None:
        self.listener = listener
        self.peer = peer
        self.scheme = b"https" if secure else b"http"
        self.secure = secure
        self.extensions: dict[str, Any] = {}
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int] | None = None
        self.destination: tuple[str, int] | None = None
        self.account = BufferAccount(listener.buffers)
        self._out: Corked
        self.exchange: H1Exchange | None = None
        self.keep_alive = True
        self.body_ended = True
        self.drained: asyncio.Future[None] | None = None
        self.serves: Callable[[bytes], bool] | None = None
        self.expires = NEVER
        self.close_at = NEVER
        self._leave_at = NEVER
        self._ends_at = NEVER
        """When a client that was said goodbye is waited for no longer."""
        self._reader = RequestReader(listener.limits)
        self._stream: Stream | None = None
        self._discarding = False
        self._discarded = 0
        self._spoilt = False
        """Whether a request body was malformed: nothing that comes after it can be framed."""
        self._tunnel = False
        self._half_closed = False
        self._closing = False
        self._fresh = True
        self._unread = self._unsent = self._request_size = 0
        """What `account` has counted of the bytes behind the request under way, of the output, and of the request."""
        self._head_since: float | None = listener.now
        self._touched = listener.now

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(WRITE_BUFFER)
        self._out = Corked(self.transport, self.listener.outbox)
        self.client = end_of(transport.get_extra_info("peername"))
        self.server = end_of(transport.get_extra_info("sockname"))
        listener = self.listener
        listener.opened(self)
        if listener.timeouts.max_age != NEVER:
            # Jittered by a tenth, so that connections made together do not end together.
            self.close_at = listener.now + listener.timeouts.max_age * (0.9 + (id(self) >> 4) % 100 / 1000)
        self.close_at = min(self.close_at, self.expires)
        listener.watch(self, min(listener.now + listener.timeouts.head, self.close_at))
        if listener.draining:
            self.drain()

    def data_received(self, data: bytes) -> None:
        listener = self.listener
        self._touched = listener.now
        listener.received.value += len(data)
        if self._closing or self._spoilt:
            return
        if self._tunnel:
            stream = cast(Stream, self._stream)
            stream.feed(data)
            if stream.above_high_water:
                self._pause_reading()
            return
        reader = self._reader
        reader.feed(data)
        if not self.body_ended:
            self._receive_body()
        elif self.exchange is None:
            self._next()
        elif reader.buffered > _PIPELINE:
            self._pause_reading()
        if self._unread != reader.buffered:
            self._count_unread()

    def eof_received(self) -> bool:
        """Keeps a half-closed connection for a moment: the client may have sent all that it wants to say."""
        if self._tunnel:
            cast(Stream, self._stream).end()
            return not self.secure
        self._half_closed = True
        return self._go_on_half_closed()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._closing = True
        self.listener.closed(self)
        if self._stream is not None:
            self._stream.fail(ConnectionResetError("the client went away"))
            self._stream = None
        if self.drained is not None:
            self.drained.cancel()
            self.drained = None
        self.account.close()
        if self.exchange is not None and self.exchange.task is not None:
            self.exchange.task.cancel()
            self.exchange = None

    def pause_writing(self) -> None:
        self.drained = self.listener.loop.create_future()
        self._unsent = self._out.written
        self.account.add(self._unsent)

    def resume_writing(self) -> None:
        self._touched = self.listener.now
        if self.drained is not None:
            if not self.drained.done():
                self.drained.set_result(None)
            self.drained = None
        self.account.add(-self._unsent)
        self._unsent = 0

    # What the listener asks.

    @property
    def exchanges(self) -> Iterable[H1Exchange]:
        return () if self.exchange is None else (self.exchange,)

    def on_tick(self, now: float) -> float | None:
        """See `listener.Connection`: head, idle and stream timeouts, and the greatest age."""
        timeouts = self.listener.timeouts
        if self._closing:
            if now < self._ends_at:
                return self._ends_at
            self.abort()
            return None
        if self.exchange is not None or not self.body_ended:
            until = self._touched + timeouts.stream
            if now >= until:
                self._stall()
                return None
            return min(until, max(self.close_at, now + 1.0))
        if now >= (self._leave_at if self.listener.draining else self.close_at) and not self._reader.buffered:
            if self.transport is not None and _has_unread(self.transport):
                return now
            self.close()
            return None
        if self._head_since is not None:
            until = self._head_since + timeouts.head
            if now < until:
                return min(until, max(self.close_at, now + 1.0))
            if self._reader.buffered:
                self._refuse("request_timeout", "slow_head")
            else:
                self.close()
            return None
        until = self._touched + timeouts.idle
        if now >= until:
            self.close()
            return None
        return min(until, now + timeouts.stream, max(self.close_at, now + 1.0))

    def drain(self) -> None:
        """Ends after the next response that can tell so; without a request only once one had time to come.

        To close a connection that was not told to end races with the next request, which would be lost.
        """
        listener = self.listener
        self.close_at = listener.now
        self._leave_at = listener.now + listener.patience
        listener.watch(self, self._leave_at)

    def cut(self, code: str) -> None:
        """Ends at once: with the answer of `code` where none has begun."""
        exchange = self.exchange
        if exchange is not None and exchange.task is not None:
            exchange.task.cancel(code)
            self.exchange = None
            if not exchange.begun:
                self.answer(code, exchange.method)
                return
        self.abort()

    def abort(self) -> None:
        if self.transport is not None:
            self._out.flush()
            self.transport.abort()

    def reset(self) -> None:
        """Ends so that a body which ends with the connection cannot be taken for a whole one."""
        if self.transport is not None:
            self._out.flush()
            reset(self.transport)

    def close(self) -> None:
        """Sends what was written, then ends; a client that is still sending gets time to read it."""
        transport = self.transport
        if transport is None or self._closing:
            return
        self._closing = True
        listener = self.listener
        self._ends_at = listener.now + listener.timeouts.stream
        listener.watch(self, self._ends_at)
        if self.exchange is not None and self.exchange.task is not cast(Any, asyncio.current_task()):
            task = self.exchange.task
            if task is not None:
                task.cancel()
        self.exchange = None
        if self.body_ended and not self._reader.buffered:
            self._out.close()
            return
        self._out.flush()
        self._resume_reading()
        part(transport, listener.loop, listener.timeouts.linger, hear=True)

    # What exchanges ask.

    def write(self, data: bytes) -> None:
        """Writes to the client; `drained` is set while it should not be called."""
        listener = self.listener
        self._touched = listener.now
        listener.sent.value += len(data)
        self._out.write(data)

    def answer(self, code: str, method: bytes = b"") -> None:
        """Makes the server's own answer to a request with `method`, or to one that never became one, and closes."""
        if self.transport is None:
            return
        entry = CODES[code]
        body = b'{"error":"%b","message":"%b"}\n' % (code.encode(), entry.text.encode())
        self.write(
            b"%bcontent-type: application/json\r\ncontent-length: %d\r\nx-l7proxy-error: %b\r\n"
            b"proxy-status: %b\r\nconnection: close\r\n\r\n%b"
            % (
                STATUS_LINES[entry.status],
                len(body),
                code.encode(),
                proxy_status(self.listener.service, entry),
                b"" if method == b"HEAD" else body,
            )
        )
        self.body_ended = False
        self.close()

    def begin_tunnel(self, exchange: H1Exchange, headers: list[tuple[bytes, bytes]]) -> None:
        """The application accepted the upgrade that `headers` name: both bodies become the bytes of the connection."""
        if exchange.method == b"CONNECT":
            self.write(b"%b%b\r\n" % (STATUS_LINES[200], encode_fields(headers)))
        else:
            self.write(b"%b%bconnection: upgrade\r\n\r\n" % (STATUS_LINES[101], encode_fields(headers)))
        self._tunnel = True
        self.keep_alive = False
        stream = cast(Stream, self._stream)
        if rest := self._reader.take_rest():
            stream.feed(rest)
            self._count_unread()
        self._resume_reading()

    def end_exchange(self) -> None:
        """The response is complete: goes on with the next request, or closes."""
        self.listener.answered += 1
        self._stream_done()
        if self._request_size:
            self.account.add(-self._request_size)
            self._request_size = 0
        if self._tunnel or not self.keep_alive or self.listener.now >= self._leave_at:
            self.exchange = None
            self.close()
        elif self.body_ended:
            self.exchange = None
            if self._reader.buffered:
                self._next()
                if self._half_closed and not self._go_on_half_closed():
                    self.close()
                self._count_unread()
            if not self._reading:
                self._resume_reading()
        else:
            # The rest of the request body is read and dropped, up to a bound, so that the next request can be found.
            self.exchange = None
            self._discarding = True
            self._resume_reading()
            self._receive_body()

    # Inside.

    def _next(self) -> None:
        reader = self._reader
        try:
            head = reader.head()
        except Malformed as error:
            if not self._becomes_h2():
                self._refuse(error.code.name, error.reason)
            return
        if head is None:
            if reader.buffered and self._head_since is None:
                self._head_since = self._touched
                self.listener.watch(self, self._touched + self.listener.timeouts.head)
            return
        if self._head_since is not None:
            self._head_since = None
            self._fresh = False
            self.listener.watch(self, self._touched + self.listener.timeouts.stream)
        self.keep_alive = head.keep_alive
        body: Body = b""
        if head.size:
            try:
                body = self._begin_body(head)
            except Malformed as error:
                self._refuse(error.code.name, error.reason)
                return
        elif head.upgrade is not None:
            body = self._stream = Stream(self._consumed, account=self.account)
        elif head.method == b"CONNECT":
            # Whatever follows is the tunnel's: a refusal cannot be followed by another request.
            head.upgrade = CONNECT
            self.keep_alive = False
            body = self._stream = Stream(self._consumed, account=self.account)
        size = reader.head_size + (len(body) if type(body) is bytes else 0)
        if size > WORTH_COUNTING:
            self._request_size = size
            self.account.add(size)
        exchange = self.exchange = H1Exchange(self, head, body)
        exchange.task = Drive(exchange.run(), self.listener.loop)
        exchange.task.start()

    def _becomes_h2(self) -> bool:
        """HTTP/2 by prior knowledge (RFC 9113 3.3): its preface is no HTTP/1.1 request, so those pay nothing."""
        transport = self.transport
        if not self._fresh or self.secure or transport is None:
            return False
        data = self._reader.take_rest()
        if not data.startswith(_H2_REQUEST_LINE):
            self._reader.feed(data)
            return False
        self._closing = True
        self.transport = None
        self.account.close()
        protocol = H2Protocol(self.listener, self.peer)
        protocol.destination = self.destination
        protocol.take_over(self, transport, data)
        return True

    def _begin_body(self, head: RequestHead) -> Body:
        """Returns the body as bytes when it has arrived whole, else as a stream."""
        reader = self._reader
        whole = reader.whole()
        if whole is not None:
            return whole
        data = b""
        event = reader.body()
        if isinstance(event, bytes) and not reader.over_budget:
            data, event = event, reader.body()
        if event is END and not reader.trailers:
            return data
        self.body_ended = False
        stream = self._stream = Stream(self._consumed, self._give_up_body, self.account)
        if head.expects_continue:
            stream.wanted = self._send_continue
        if data:
            stream.feed(data)
        if event is END:
            self.body_ended = True
            stream.end(reader.trailers)
        elif event is not None:
            stream.feed(event)
        self._pace(stream)
        return stream

    def _receive_body(self) -> None:
        reader = self._reader
        stream = self._stream
        try:
            while (event := reader.body()) is not None:
                if event is END:
                    self.body_ended = True
                    if stream is not None:
                        stream.end(reader.trailers)
                    if self._discarding:
                        self._discarding = False
                        self.end_exchange()
                    return
                if stream is not None:
                    stream.feed(event)
                else:
                    self._discarded += len(event)
                if reader.over_budget:
                    break
        except Malformed as error:
            self.listener.refused(error.reason)
            self.keep_alive = False
            self._spoilt = True
            if stream is not None:
                # Counted here, and so not a Malformed: the application would count it again.
                stream.fail(ProxyError(error.code.name, error.reason))
            if self._discarding:
                self.close()
            return
        if stream is None and self._discarded > _DISCARD:
            self.keep_alive = False
            if self._discarding:
                self.close()
                return
        self._pace(stream)

    def _refuse(self, code: str, reason: str) -> None:
        """Answers what does not become a request."""
        self.listener.refused(reason)
        self.listener.tell(Refusal(code, reason, "1.1", self.scheme, self.peer, self.client))
        self.answer(code)

    def _stream_done(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        self._discarded = 0

    def _give_up_body(self) -> None:
        self._stream = None
        self._resume_reading()

    def _send_continue(self) -> None:
        exchange = self.exchange
        if exchange is not None and not exchange.begun and not self._reader.buffered and self.transport is not None:
            self.write(_EXPECTED)

    def _pace(self, stream: Stream | None) -> None:
        """Reads on when the body has been read, or in the next turn when there was too much of it for one."""
        if stream is not None and stream.above_high_water:
            self._pause_reading()
        elif self._reader.over_budget:
            self._yield_turn()

    def _read_on(self) -> None:
        if not self.body_ended and not self._closing and not self._spoilt:
            self._receive_body()
            self._count_unread()
        if not self._yielded:
            self._resume_reading()

    def _resume_reading(self) -> None:
        """Reads on, unless what has been read has to be taken first."""
        if not self._closing and not self._reading:
            stream, reader = self._stream, self._reader
            if stream is not None and stream.above_high_water:
                return
            if reader.over_budget:
                self._yield_turn()
                return
            if self.exchange is not None and self.body_ended and reader.buffered > _PIPELINE:
                return
        super()._resume_reading()

    def _consumed(self, size: int) -> None:
        if not self._reading:
            self._resume_reading()

    def _count_unread(self) -> None:
        unread = self._reader.buffered
        self.account.add(unread - self._unread)
        self._unread = unread

    def _go_on_half_closed(self) -> bool:
        """Gives the request under way its time though nothing more will come; False where there is none, or a part."""
        exchange = self.exchange
        if exchange is None or not self.body_ended:
            return False
        if not self._reader.buffered:
            self.keep_alive = False
        self.listener.loop.call_later(HALF_CLOSED_GRACE, self._end_half_closed, exchange)
        return True

    def _end_half_closed(self, exchange: H1Exchange) -> None:
        if self.exchange is exchange:
            self.abort()

    def _stall(self) -> None:
        """No byte either way for the stream timeout: 408 while no answer has begun, else an end without one."""
        if self.exchange is None:
            self.abort()
            return
        if not self.body_ended:
            self.listener.refused("slow_body")
        self.cut("request_timeout")


def _has_unread(transport: asyncio.Transport) -> bool:
    """Asks the kernel whether there are bytes that the event loop has not come to: a request that is not to be lost."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))
