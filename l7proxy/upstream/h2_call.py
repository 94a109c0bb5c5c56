"""One request on an HTTP/2 connection to an upstream, between the pool and its stream."""

import asyncio
from base64 import b64encode
from hashlib import sha1
from typing import TYPE_CHECKING, cast

from l7proxy.core.buffers import UNACCOUNTED, BufferAccount
from l7proxy.core.deadlines import NEVER
from l7proxy.core.drive import Waiter
from l7proxy.core.errors import ProxyError
from l7proxy.core.headers import Headers, without
from l7proxy.core.message import Body, Request
from l7proxy.core.stream import Stream
from l7proxy.upstream.dial import head_deadline
from l7proxy.wire.h2_events import Data, H2Stream, Reset, ResponseHead, Trailers
from l7proxy.wire.h2_fields import ResponseFields
from l7proxy.wire.h2_frames import Error

if TYPE_CHECKING:
    from l7proxy.upstream.h2 import H2Connection

_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


# The gRPC status that a client makes of a reset, by HTTP/2 error code ("Errors" in PROTOCOL-HTTP2.md).
_GRPC: dict[int, int] = {
    Error.REFUSED_STREAM: 14,
    Error.CANCEL: 1,
    Error.ENHANCE_YOUR_CALM: 8,
    Error.INADEQUATE_SECURITY: 7,
}


class Unprocessed(ProxyError):
    """The upstream did not act on the request, and says so: it may be sent again, whatever it is (RFC 9113 8.7)."""

    unprocessed = True

    def __init__(self, detail: str) -> None:
        super().__init__("upstream_reset", detail)


class StreamReset(ProxyError):
    """The upstream reset the stream; `reset` is its error code, for a client that speaks HTTP/2 too."""

    def __init__(self, reset: int) -> None:
        super().__init__("upstream_reset", f"stream reset with error {reset}")
        self.reset = reset
        self.grpc = _GRPC.get(reset, 13)


class H2Call:
    """One request and its response."""

    __slots__ = (
        "connection",
        "stream",
        "key",
        "upgrade",
        "_waiter",
        "_head",
        "_early",
        "_body",
        "_complete",
        "_sender",
        "_writable",
        "deadline",
        "_until",
        "_ledger",
    )

    def __init__(self, connection: "H2Connection") -> None:
        self.connection = connection
        self.stream: H2Stream
        self.upgrade: bytes | None = None
        self.key = b""
        self._waiter: Waiter[tuple[ResponseFields, Body]] | None = Waiter(loop=connection.loop)
        self._head: ResponseFields | None = None
        self._early: list[bytes] = []
        self._body: Stream | None = None
        self._complete = False
        self._sender: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self.deadline = self._until = NEVER
        self._ledger: Request | None = None

    async def run(self, body: Body, ledger: Request | None, until: float | None) -> tuple[ResponseFields, Body]:
        """Sends the body that follows the head, and waits for the head of the response."""
        connection = self.connection
        self._ledger = ledger
        if until is not None:
            self.deadline = self._until = until
            connection.watch(until)
        if type(body) is bytes:
            if body:
                # What the windows do not admit leaves as they open: the bytes are in memory anyway.
                connection.session.send_data(self.stream, body, end=True)
            self._arm(ledger)
        else:
            self._sender = connection.loop.create_task(self._send(cast(Stream, body)))
        connection.flush_soon()
        try:
            return await cast(Waiter[tuple[ResponseFields, Body]], self._waiter)
        except BaseException:
            self.cancel()
            raise
        finally:
            # Its result leads back here.
            self._waiter = None

    def cancel(self) -> None:
        """Nobody waits for the response any more."""
        connection = self.connection
        self._part()
        self._stop_sending()
        if self.stream.state:
            connection.session.send_reset(self.stream, Error.CANCEL)
            connection.flush_soon()
        connection.session.release(self.stream)

    # What the connection tells.

    def receive(self, event: Data | Trailers | ResponseHead) -> None:
        """Takes a piece of the response."""
        if type(event) is Data:
            self._on_data(event.data, event.ended)
        elif type(event) is Trailers:
            self._on_trailers(event.headers)
        elif type(event) is ResponseHead and event.head.status >= 200:
            # Interim answers are for whoever speaks to the upstream, which is us (RFC 9110 15.2).
            self._on_head(event.head, event.ended)

    def _on_head(self, head: ResponseFields, ended: bool) -> None:
        """Takes the final head; it is given on once everything that came with it is there."""
        if self.upgrade is not None and 200 <= head.status < 300:
            head = ResponseFields(101, [*without(head.headers, b"content-length"), (b"upgrade", self.upgrade)])
            if self.upgrade == b"websocket":
                # RFC 8441 5: HTTP/2 proves nothing by it, which HTTP/1.1 must see proved.
                digest = sha1(self.key + _WEBSOCKET_GUID, usedforsecurity=False).digest()
                head.headers.append((b"sec-websocket-accept", b64encode(digest)))
        self._head = head
        self.connection.answered.append(self)
        if ended:
            self._end()

    def _on_data(self, data: bytes, ended: bool) -> None:
        body = self._body
        if body is None:
            self._early.append(data)
        elif body.ended:
            self.connection.session.release(self.stream)
        elif data:
            body.feed(data)
        if ended:
            self._end()
            if body is not None:
                self._body = None
                body.end()

    def _on_trailers(self, trailers: Headers) -> None:
        self._end()
        if self._body is None:
            # A whole body has no room for trailers, so it becomes a stream that has ended.
            if not trailers:
                return
            self._begin_body()
        body = cast(Stream, self._body)
        if not self._is_awaited():
            self._body = None
        body.end(trailers)

    def deliver(self) -> None:
        """Gives the response to whoever waits for it, with its body whole if that is so."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        self.deadline = self._until
        body: Body
        if self._body is not None:
            body = self._body
            if self._complete:
                self._body = None
        elif self._complete:
            body = b"".join(self._early)
            self.connection.session.release(self.stream)
        else:
            self._begin_body()
            body = cast(Stream, self._body)
        waiter.resolve((cast(ResponseFields, self._head), body))

    def fail(self, error: ProxyError) -> None:
        """The stream has ended before its time."""
        self._stop_sending()
        if self._complete:
            return
        self._complete = True
        body = self._body
        self._part()
        if body is not None:
            body.fail(error)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def writable(self) -> None:
        """All that was sent has left."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # Inside.

    def _stop_sending(self) -> None:
        # A task that was cancelled holds its frames, which lead back here: it is not kept.
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.cancel()

    def _begin_body(self) -> None:
        account = UNACCOUNTED if self._ledger is None else self._ledger.account
        body = self._body = Stream(self._consumed, self._closed, account)
        for data in self._early:
            body.feed(data)
        self._early = []

    def _end(self) -> None:
        """The response is complete; a request that is not has nobody to read it."""
        self._complete = True
        self.stream.owner = None
        # Whatever the stream's state: a reset that came along has closed it, and would leave the sender waiting.
        self._stop_sending()
        if self.stream.state:
            self.connection.session.send_reset(self.stream, Error.CANCEL)

    def _consumed(self, size: int) -> None:
        session = self.connection.session
        session.consumed(self.stream, size)
        if session.has_output:
            self.connection.flush_soon()

    def _is_awaited(self) -> bool:
        """Whether the head has not been given on yet."""
        return self._waiter is not None and not self._waiter.done()

    def _part(self) -> None:
        """Lets go of what leads back here, so that nothing is left for the garbage collector."""
        self.stream.owner = self._body = None

    def _closed(self) -> None:
        """The reader of the response gave up."""
        self._complete = True
        self.cancel()

    def _arm(self, ledger: Request | None) -> None:
        deadline = None if ledger is None else head_deadline(ledger)
        if deadline is not None and self._is_awaited():
            self.deadline = min(self.deadline, deadline)
            self.connection.watch(self.deadline)

    def expire(self) -> None:
        """The deadline has passed."""
        error = ProxyError("upstream_timeout", "no response in time")
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        elif not self._complete:
            self.fail(error)
            self.cancel()

    def _pass_on(self, data: bytes) -> bool:
        self.connection.flush_soon()
        return self.connection.session.send_data(self.stream, data)

    async def _send(self, body: Stream) -> None:
        """Pumps the request body to the upstream while the response may already be on its way."""
        connection = self.connection
        session = connection.session
        stream = self.stream
        spliced = type(body) is Stream
        try:
            while data := await body.read():
                session.send_data(stream, data)
                data = b""
                connection.flush_soon()
                await self._until_writable(body.account)
                if spliced:
                    await body.splice(self._pass_on)
                    await self._until_writable(body.account)
            session.send_trailers(stream, body.trailers or [])
            connection.flush_soon()
            self._arm(self._ledger)
        except asyncio.CancelledError:
            # A body of which nothing was read may still go out on another stream.
            if body.taken:
                body.close()
            raise
        except Exception as error:
            # The client's side failed: half a request must not look like a whole one.
            session.send_reset(stream, Error.CANCEL)
            connection.flush_soon()
            self._sender = None
            self.fail(error if isinstance(error, ProxyError) else ProxyError("upstream_reset", str(error)))

    async def _until_writable(self, account: BufferAccount) -> None:
        """Waits for a slow upstream; what it has not taken yet is the client's to answer for."""
        connection, stream = self.connection, self.stream
        if stream.id in connection.session.waiting:
            pending = len(stream.pending)
            account.add(pending)
            try:
                self._writable = connection.loop.create_future()
                await self._writable
            finally:
                account.add(-pending)


def error_of(event: Reset) -> ProxyError:
    """Returns what a reset stream means for the request."""
    if event.reason:
        return ProxyError("upstream_protocol", event.reason)
    if event.code == Error.REFUSED_STREAM:
        return Unprocessed("the upstream refused the stream")
    return StreamReset(event.code)
