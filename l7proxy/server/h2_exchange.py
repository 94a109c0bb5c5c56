"""One request on an HTTP/2 connection, between its stream and the application."""

import asyncio
import base64
import os
from typing import TYPE_CHECKING, Any, Final, cast

from l7proxy.core.buffers import WORTH_COUNTING
from l7proxy.core.drive import Drive
from l7proxy.core.errors import Cut
from l7proxy.core.exchange import CONNECT
from l7proxy.core.headers import Headers, without
from l7proxy.core.message import Body
from l7proxy.core.stream import Stream
from l7proxy.wire.fields import CONNECTION_FIELDS
from l7proxy.wire.h2_events import RECEIVING, H2Stream
from l7proxy.wire.h2_fields import RequestFields
from l7proxy.wire.h2_frames import Error

if TYPE_CHECKING:
    from l7proxy.server.h2 import H2Protocol

STATUS: Final = {status: b"%d" % status for status in range(100, 600)}
_NOT_IN_H2: Final = CONNECTION_FIELDS | {b"sec-websocket-accept"}


class H2Exchange:
    """One request and its response; see `core.exchange.Exchange`.

    An extended CONNECT (RFC 8441) shows as the GET with `upgrade` that it stands for, and its 101 leaves as a 200.
    """

    version = "2"
    __slots__ = (
        "connection",
        "stream",
        "head",
        "method",
        "scheme",
        "authority",
        "path",
        "query",
        "headers",
        "body",
        "peer",
        "upgrade",
        "client",
        "server",
        "destination",
        "account",
        "serves",
        "task",
        "touched",
        "begun",
        "_early",
        "counted",
        "_left",
        "_writable",
    )

    def __init__(self, connection: "H2Protocol", stream: H2Stream, head: RequestFields) -> None:
        self.connection = connection
        self.stream = stream
        self.head = head
        self.method = b"GET" if head.protocol is not None else head.method
        self.scheme = connection.scheme
        self.authority = head.authority
        self.path, _, self.query = head.target.partition(b"?")
        self.headers = list(head.headers)
        self.body: Body = b""
        self.peer = connection.peer
        self.upgrade = CONNECT if self.method == b"CONNECT" else head.protocol and head.protocol.lower()
        self.client = connection.client
        self.server = connection.server
        self.destination = connection.destination
        self.account = connection.account
        self.serves = connection.serves
        self.task: Drive | None = None
        self.touched = connection.listener.now
        self.begun = False
        # Body bytes that came before the body began; None from then on.
        self._early: list[bytes] | None = []
        self.counted = 0
        self._left = -1
        self._writable: asyncio.Future[None] | None = None
        if head.te_trailers:
            self.headers.append((b"te", b"trailers"))
        if self.upgrade == b"websocket":
            # RFC 8441 5: HTTP/2 has no key, which HTTP/1.1 must have.
            key = base64.b64encode(os.urandom(16))
            self.headers = [*without(self.headers, b"sec-websocket-key"), (b"sec-websocket-key", key)]

    @property
    def extensions(self) -> dict[str, Any]:
        return self.connection.extensions

    # What the protocol does with a request on its way.

    def begin(self) -> None:
        """Everything that came with the head is there: runs the application."""
        self.prepare()
        task = self.task = Drive(self.run(), self.connection.listener.loop)
        task.start()

    def prepare(self) -> None:
        """Makes a body of what came with the head, whole or the first of one that is still on its way."""
        early = self._early
        if early is None:
            return
        connection = self.connection
        stream = self.stream
        self._early = None
        size = self.head.size
        if stream.state & RECEIVING:
            body = self.body = Stream(self._consumed, self._give_up_body, connection.account)
            if self.head.expect:
                body.wanted = self._send_continue
            for data in early:
                body.feed(data)
        elif early:
            whole = self.body = early[0] if len(early) == 1 else b"".join(early)
            size += len(whole)
            connection.session.release(stream)
        if size > WORTH_COUNTING:
            self.counted = size
            connection.account.add(size)

    def settle(self) -> None:
        """The request is over: what it held counts no longer."""
        if self.counted:
            self.connection.account.add(-self.counted)
            self.counted = 0

    def receive_data(self, data: bytes, ended: bool) -> None:
        """Takes body bytes as they arrive."""
        self.touched = self.connection.listener.now
        if self._early is not None:
            self._early.append(data)
            return
        body = cast(Stream, self.body)
        if body.ended:
            self.connection.session.release(self.stream)
            return
        if data:
            body.feed(data)
        if ended:
            body.end()

    def receive_trailers(self, trailers: Headers) -> None:
        """Takes the end of the body."""
        if self._early is not None:
            # Trailers have no place beside a whole body.
            self.connection.session.release(self.stream)
            body = self.body = Stream(account=self.connection.account)
            for data in self._early:
                body.feed(data)
            self._early = []
        cast(Stream, self.body).end(trailers)

    def abandon(self, code: str | None = None) -> None:
        """The client gave up, or the stream broke: there is nobody left to answer; or we end it, for `code`."""
        if type(self.body) is Stream:
            self.body.fail(ConnectionResetError("the client went away"))
        # A task that has not begun yet is cancelled without a step, so this cannot be left to it.
        self.connection.withdraw(self)
        self.settle()
        if self.task is not None:
            self.task.cancel(code)

    def writable(self) -> None:
        """All that was sent has left."""
        self.touched = self.connection.listener.now
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    async def run(self) -> None:
        """Runs the application, and resets the stream where it leaves the response incomplete."""
        connection = self.connection
        code: int = Error.INTERNAL_ERROR
        try:
            await connection.listener.serve(self)
            code = Error.NO_ERROR
        except Cut as cut:
            # What the upstream said in HTTP/2 is what the client hears.
            code = getattr(cut.__cause__, "reset", code) or code
        except asyncio.CancelledError:
            # Whoever cancelled has dealt with the stream.
            return
        except Exception as error:
            connection.listener.loop.call_exception_handler(
                {"message": "the application failed", "exception": error, "protocol": connection}
            )
            if not self.begun:
                connection.answer(self.stream, "filter_error", self.head)
        finally:
            connection.end_exchange(self, code)

    # What the application calls.

    async def respond(self, status: int, headers: Headers, body: bytes, trailers: Headers | None = None) -> None:
        if trailers:
            await self.start(status, headers, body, True)
            await self.end(trailers)
        elif self._first(status, headers, not body):
            self.connection.flush_soon()
        else:
            await self._send(body, True)

    async def start(self, status: int, headers: Headers, data: bytes, trailers: bool = False) -> None:
        if self._first(status, headers, False):
            self.connection.flush_soon()
        else:
            await self._send(data, False)

    async def write(self, data: bytes) -> None:
        await self._send(data, False)

    def write_now(self, data: bytes) -> bool:
        connection = self.connection
        self.touched = connection.listener.now
        if self._left >= 0:
            data = self._bounded(data, False)
        connection.flush_soon()
        sent = connection.session.send_data(self.stream, data)
        if not sent:
            connection.count_session()
        return sent

    async def end(self, trailers: Headers | None = None) -> None:
        if trailers is None:
            await self._send(b"", True)
            return
        connection = self.connection
        self.touched = connection.listener.now
        connection.session.send_trailers(self.stream, trailers)
        connection.flush_soon()
        if self.stream.id in connection.session.waiting:
            await self._drained()

    async def _send(self, data: bytes, end: bool) -> None:
        """Returns once the client's windows and socket have taken all of it."""
        connection = self.connection
        self.touched = connection.listener.now
        if self._left >= 0:
            data = self._bounded(data, end)
        sent = connection.session.send_data(self.stream, data, end)
        connection.flush_soon()
        if not sent:
            # Nothing but the session keeps what the client has not taken yet.
            data = b""
            connection.count_session()
            await self._drained()

    def _first(self, status: int, headers: Headers, end: bool) -> bool:
        """Sends the head; True if that was all there is to send."""
        self.begun = True
        if self.upgrade is not None and status < 300:
            if status != 101:
                # An answer that would pass for the tunnel that it is not.
                self.connection.answer(self.stream, "upstream_protocol", self.head)
                return True
            status = 200
        for name, value in headers:
            if name in _NOT_IN_H2:
                headers = [pair for pair in headers if pair[0] not in _NOT_IN_H2]
            elif name == b"content-length":
                self._left = int(value)
        if self.head.method == b"HEAD" or status in (204, 304):
            end = True
            if status == 204 and self._left >= 0:
                # RFC 9110 8.6: it may not have one, and clients take the stream for broken.
                headers = without(headers, b"content-length")
            self._left = -1
        self.connection.session.send_head(self.stream, [(b":status", STATUS[status]), *headers], end)
        return end

    def _bounded(self, data: bytes, end: bool) -> bytes:
        """Cuts what goes beyond the declared length; too little of it must not look like a clean end."""
        data = data[: self._left]
        self._left -= len(data)
        if end and self._left:
            raise Cut("the response is shorter than it said")
        return data

    async def _drained(self) -> None:
        self._writable = self.connection.listener.loop.create_future()
        await self._writable
        self._writable = None

    def _consumed(self, size: int) -> None:
        connection = self.connection
        connection.session.consumed(self.stream, size)
        if connection.session.has_output:
            connection.flush_soon()

    def _give_up_body(self) -> None:
        self.connection.session.release(self.stream)

    def _send_continue(self) -> None:
        if not self.begun:
            self.connection.session.send_head(self.stream, [(b":status", b"100")])
            self.connection.flush_soon()
