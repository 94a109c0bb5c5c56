"""HTTP/1.1 towards an upstream: one `H1Connection`, one request at a time."""

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from l7proxy.core.buffers import UNACCOUNTED, BufferAccount
from l7proxy.core.deadlines import NEVER, Deadlines
from l7proxy.core.drive import Waiter
from l7proxy.core.errors import ProxyError
from l7proxy.core.headers import Headers, tokens, without
from l7proxy.core.message import Body, Request
from l7proxy.core.outbox import Corked, Outbox
from l7proxy.core.stream import HIGH_WATER, LOW_WATER, WRITE_BUFFER, Stream
from l7proxy.identity.refusal import Unwanted
from l7proxy.identity.transport import TlsTransport
from l7proxy.upstream.dial import Expiring, head_deadline
from l7proxy.wire.framing import UNTIL_CLOSE, Limits, Malformed
from l7proxy.wire.h1 import END, ResponseHead, ResponseReader, encode_chunk, encode_fields, encode_last_chunk

_MAX_INTERIM = 1000
"""Interim answers to one request, after which no final one is waited for."""
NO_BODY_METHODS = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"DELETE"))


class Unanswered(ProxyError):
    """The connection ended before the first byte of a response."""

    def __init__(self, detail: str) -> None:
        super().__init__("upstream_reset", detail)


class H1Connection(Expiring):
    """One connection to an endpoint.

    `exchange` sends a request and returns the response head with its body: `bytes` when it arrived whole, else a Stream
    that pauses the upstream when its reader is slow. `done(reusable)` is called once both messages are complete.
    """

    def __init__(
        self,
        limits: Limits,
        done: Callable[["H1Connection", bool], None],
        deadlines: Deadlines,
        known: dict[bytes, ResponseHead],
        outbox: Outbox,
    ) -> None:
        self._outbox = outbox
        self._out: Corked
        self.idle_since = 0.0
        self.idle_timeout: float | None = None
        self.uses = 0
        self.received = 0
        self.sent = 0
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._reader = ResponseReader(limits, known)
        self._method = b"GET"
        self._waiter: Waiter[tuple[ResponseHead, Body]] | None = None
        self._head: ResponseHead | None = None
        self._stream: Stream | None = None
        self._sender: asyncio.Task[None] | None = None
        self._sending = False
        self._ledger: Request | None = None
        self._account = UNACCOUNTED
        self._on_hold = False
        """Whether the client of the request holds all that it may."""
        self._deadlines = deadlines
        self._deadline = NEVER
        self._watched = NEVER
        """When `on_deadline` will be called."""
        self._upgrade = b""
        self._tunnel = False
        self._drained: asyncio.Future[None] | None = None
        self._touched = False
        self._interim = 0
        self._witness: socket.socket | None = None
        self.surplus = False

    @property
    def usable(self) -> bool:
        """False once the connection has ended or begun to."""
        return (
            self.transport is not None
            and not self.transport.is_closing()
            and (self.expires == NEVER or time.monotonic() < self.expires)
        )

    async def exchange(
        self,
        method: bytes,
        target: bytes,
        host: bytes,
        headers: Headers,
        body: Body,
        upgrade: bytes | None = None,
        ledger: Request | None = None,
    ) -> tuple[ResponseHead, Body]:
        """Sends one request and waits for the head of its response.

        `ledger` says how long the head may take once the whole request has been handed to the kernel. Raises
        Unanswered, or ProxyError with upstream_reset, upstream_timeout or upstream_protocol. A caller that is
        cancelled ends the connection.
        """
        self._method = method
        self._touched = False
        self._interim = 0
        self._upgrade = upgrade or b""
        self.uses += 1
        turn = self.uses
        data = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b" % (method, target, host, encode_fields(headers))
        if data.find(b"\nte: ") > 0:
            # RFC 9110 10.1.4: TE concerns this connection only, and Connection has to say so.
            data += b"connection: te\r\n"
        if type(body) is bytes:
            if body or method not in NO_BODY_METHODS:
                if b"\ncontent-length: " not in data:
                    data += b"content-length: %d\r\n" % len(body)
                data = b"%b\r\n%b" % (data, body)
            else:
                data += b"\r\n"
            self._write(data)
        elif upgrade is not None:
            self._write(b"%bconnection: upgrade\r\nupgrade: %b\r\n\r\n" % (data, upgrade))
        else:
            chunked = b"\ncontent-length: " not in data
            self._write(data + (b"transfer-encoding: chunked\r\n\r\n" if chunked else b"\r\n"))
            self._sending = True
            self._sender = self._loop.create_task(self._send(cast(Stream, body), chunked))
        waiter: Waiter[tuple[ResponseHead, Body]] = Waiter(loop=self._loop)
        self._waiter = waiter
        self._ledger = ledger
        account = self._account = UNACCOUNTED if ledger is None else ledger.account
        if account.sources is not None:
            account.enter(self)
        if not self._sending:
            self._arm()
        try:
            head, response_body = await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # Answered and cancelled in one turn of the loop: a whole response has freed the connection already.
                answer = waiter.result()[1]
                if type(answer) is not bytes:
                    cast(Stream, answer).close()
            elif self.uses == turn:  # else this one has failed, and the connection is not its own any more
                self._take_waiter()
                self.abort()
            raise
        finally:
            # It holds the exception, and the exception's traceback holds this frame.
            del waiter
        if self._tunnel:
            self._sender = self._loop.create_task(self._send(cast(Stream, body), False))
        return head, response_body

    def abort(self) -> None:
        """Ends the connection at once."""
        self._stop_sending()
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """Ends the connection after what was written."""
        if self.transport is not None:
            self._out.close()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(WRITE_BUFFER)
        self._out = Corked(self.transport, self._outbox)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        stream = self._stream
        if self._tunnel:
            if stream is not None:
                stream.feed(data)
                self._pace(stream)
            return
        self._reader.feed(data)
        if stream is not None:
            self._receive_body(stream)
        elif self._waiter is not None and not self._waiter.done():
            self._touched = True
            try:
                self._receive_head()
            except Malformed as error:
                self._fail(error)
        else:
            # Nobody asked: whatever this is, it must not become the answer to the next request.
            self.surplus = True
            self.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.transport = None
        if self._drained is not None:
            self._drained.cancel()
            self._drained = None
        witness, self._witness = self._witness, None
        if witness is not None:
            if error is not None:
                self._hear_last_words(witness)
            witness.close()
        waiter, stream = self._waiter, self._stream
        if isinstance(error, Unwanted) and not self.received:
            self.refusal = error
        if waiter is not None and not waiter.done():
            if self.refusal is not None:
                waiter.set_exception(self.not_admitted(self.refusal))
            elif self._touched:
                waiter.set_exception(ProxyError("upstream_reset", "closed inside the response head"))
            else:
                waiter.set_exception(Unanswered(f"closed before a response: {error or 'end of stream'}"))
        elif stream is not None:
            if error is None and (self._tunnel or (self._head is not None and self._head.size == UNTIL_CLOSE)):
                stream.end()
            else:
                stream.fail(ProxyError("upstream_reset", "closed inside the response body"))
        self._stream = None
        self._leave_account()
        self._stop_sending()
        self._done(self, False)

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None:
            if not self._drained.done():
                self._drained.set_result(None)
            self._drained = None

    # Inside.

    def _pass_on(self, data: bytes) -> bool:
        self._write(data)
        return self._drained is None and self.transport is not None

    def _write(self, data: bytes) -> None:
        self.sent += len(data)
        if self.transport is not None:
            self._out.write(data)

    def _receive_head(self) -> None:
        reader = self._reader
        head = reader.head(self._method)
        while head is not None and head.status < 200:
            if head.status == 101:
                self._begin_tunnel(head)
                return
            # Interim answers are for whoever speaks to the upstream, which is us (RFC 9110 15.2).
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise Malformed("interim_flood", "upstream_protocol")
            head = reader.head(self._method)
        if head is None:
            return
        self._head = head
        self.idle_timeout = head.idle
        body: Body = b""
        complete = True
        if head.size:
            whole = reader.whole()
            if whole is not None:
                body = whole
            else:
                data = b""
                event = reader.body()
                if isinstance(event, bytes) and not reader.over_budget:
                    data, event = event, reader.body()
                complete = event is END
                if complete and not reader.trailers:
                    body = data
                else:
                    stream = body = Stream(self._consumed, self._closed, self._account)
                    if data:
                        stream.feed(data)
                    if isinstance(event, bytes):
                        stream.feed(event)
                    if complete:
                        stream.end(reader.trailers)
                    else:
                        self._stream = stream
                        self._pace(stream)
        waiter = self._take_waiter()
        if complete:
            self._complete(head)
        if waiter is not None:
            waiter.resolve((head, body))

    def _receive_body(self, stream: Stream) -> None:
        reader = self._reader
        try:
            while (event := reader.body()) is not None:
                if event is END:
                    self._stream = None
                    stream.end(reader.trailers)
                    self._complete(cast(ResponseHead, self._head))
                    return
                stream.feed(event)
                if reader.over_budget:
                    break
        except Malformed as error:
            self._stream = None
            stream.fail(error)
            self.abort()
            return
        if stream.size > LOW_WATER or reader.over_budget:
            self._pace(stream)

    def _complete(self, head: ResponseHead) -> None:
        """The response is complete; the connection goes back unless something is left on it."""
        if self._reader.buffered:
            self.surplus = True
        reusable = head.keep_alive and not self._reader.buffered
        if self._account.sources is not None:
            self._leave_account()
        if not self._reading:
            self._resume_reading()
        if self._sender is not None and self._unsent():
            # Who answers before the end of a request may never read the rest of it.
            self.abort()
        elif not reusable:
            self.close()
        else:
            self._sender = None
            self._done(self, True)

    def _stop_sending(self) -> None:
        # A task that was cancelled holds its frames, which lead back here: it is not kept.
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.cancel()

    def _unsent(self) -> bool:
        """Whether some of the request has not left this process yet."""
        return self._sending or (self.transport is not None and self._out.unsent > 0)

    def _hear_last_words(self, witness: socket.socket) -> None:
        """Reads an answer that came before the connection broke.

        Who refuses an upload may answer and close without reading the rest of it. The kernel then fails our writes, and
        the event loop closes the socket for it, though the answer lies there unread.
        """
        with suppress(OSError):
            while data := witness.recv(HIGH_WATER, socket.MSG_DONTWAIT):
                self.data_received(data)

    def _begin_tunnel(self, head: ResponseHead) -> None:
        chosen = head.upgrade or self._upgrade
        if not chosen or chosen not in tokens(self._upgrade):
            raise Malformed("unasked_upgrade", "upstream_protocol")
        # RFC 9110 8.6: nothing has a length here.
        head.headers = [*without(head.headers, b"content-length"), (b"upgrade", chosen)]
        self._tunnel = True
        stream = self._stream = Stream(self._consumed, self._closed, self._account)
        if rest := self._reader.take_rest():
            stream.feed(rest)
        waiter = self._take_waiter()
        if waiter is not None:
            waiter.resolve((head, stream))

    async def _send(self, stream: Stream, chunked: bool) -> None:
        """Pumps the request body to the upstream while the response may already be on its way."""
        try:
            if self._waiter is not None and self.transport is not None and not isinstance(self.transport, TlsTransport):
                # It stays until the answer begins: what was written last may leave after this task has ended.
                with suppress(OSError):
                    self._witness = self.transport.get_extra_info("socket").dup()
            spliced = type(stream) is Stream and not chunked
            while data := await stream.read():
                self._write(encode_chunk(data) if chunked else data)
                # While it waits for a slow upstream, a second reference would keep what has left.
                data = b""
                await self._until_drained(stream.account)
                if spliced:
                    await stream.splice(self._pass_on)
                    await self._until_drained(stream.account)
            if chunked:
                self._write(encode_last_chunk(stream.trailers))
            self._sending = False
            self._arm()
            if self._tunnel and self.transport is not None and self.transport.can_write_eof():
                self._out.write_eof()
        except asyncio.CancelledError:
            # A body of which nothing was read may still go out on another connection.
            if stream.taken:
                stream.close()
            raise
        except Exception as error:
            # The client's side failed: half a request must not look like a whole one.
            self._fail(error)

    async def _until_drained(self, account: BufferAccount) -> None:
        """Waits for a slow upstream; what it has not taken yet is the client's to answer for."""
        if self._drained is not None:
            unsent = self._out.written
            account.add(unsent)
            try:
                await self._drained
            finally:
                account.add(-unsent)

    def _arm(self) -> None:
        deadline = None if self._ledger is None else head_deadline(self._ledger)
        if deadline is not None and self._waiter is not None:
            self._deadline = deadline
            if deadline < self._watched:
                self._watched = deadline
                self._deadlines.watch(self, deadline)

    def on_deadline(self, now: float) -> float | None:
        """See `core.deadlines.Due`."""
        deadline = self._deadline
        if now < deadline != NEVER:
            self._watched = deadline
            return deadline
        self._watched = NEVER
        if deadline != NEVER and self._waiter is not None:
            self._fail(ProxyError("upstream_timeout", "no response head in time"))
        return None

    def _take_waiter(self) -> Waiter[tuple[ResponseHead, Body]] | None:
        """Returns who waits for the head; its timer ends here, for the next request may begin before it goes on."""
        waiter, self._waiter = self._waiter, None
        if self._witness is not None:
            self._witness.close()
            self._witness = None
        self._ledger = None
        self._deadline = NEVER
        return waiter

    def _fail(self, error: Exception) -> None:
        waiter = self._take_waiter()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        elif self._stream is not None:
            self._stream.fail(error)
            self._stream = None
        self.abort()

    def hold(self) -> None:
        """See `core.buffers.Source`."""
        self._on_hold = True
        self._pause_reading()

    def release(self) -> None:
        """See `core.buffers.Source`."""
        self._on_hold = False
        self._consumed(0)

    def _pace(self, stream: Stream) -> None:
        """Reads on when the body has been read, or in the next turn when there was too much of it for one."""
        if stream.above_high_water:
            self._pause_reading()
        elif self._reader.over_budget:
            self._yield_turn()

    def _read_on(self) -> None:
        if self._stream is not None and not self._on_hold:
            self._receive_body(self._stream)
        if not self._yielded:
            self._consumed(0)

    def _consumed(self, size: int) -> None:
        """Reads on, unless what has been read has to be taken first."""
        if self._reading or self._on_hold or (self._stream is not None and self._stream.above_high_water):
            return
        if self._reader.over_budget:
            self._yield_turn()
        else:
            self._resume_reading()

    def _leave_account(self) -> None:
        self._account.leave(self)
        self._account = UNACCOUNTED
        self._on_hold = False

    def _closed(self) -> None:
        """The reader of the response gave up."""
        self._stream = None
        self.abort()
