"""One request on an HTTP/1.1 connection, and how its response is framed."""

import asyncio
from typing import TYPE_CHECKING, Any

from l7proxy.core.drive import Drive
from l7proxy.core.errors import Cut
from l7proxy.core.headers import Headers, without
from l7proxy.core.message import Body
from l7proxy.core.stream import Stream
from l7proxy.wire.h1 import STATUS_LINES, RequestHead, encode_chunk, encode_fields, encode_last_chunk

if TYPE_CHECKING:
    from l7proxy.server.h1 import H1Protocol


class H1Exchange:
    """One request and its response; see `core.exchange.Exchange`."""

    __slots__ = (
        "connection",
        "method",
        "scheme",
        "authority",
        "path",
        "query",
        "version",
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
        "begun",
        "_chunked",
        "_left",
    )

    def __init__(self, connection: "H1Protocol", head: RequestHead, body: Body) -> None:
        self.connection = connection
        self.method = head.method
        self.scheme = connection.scheme
        self.authority = head.authority
        self.path, _, self.query = head.target.partition(b"?")
        self.version = "1.1" if head.minor else "1.0"
        self.headers = head.headers
        self.body = body
        self.peer = connection.peer
        self.upgrade = head.upgrade
        self.client = connection.client
        self.server = connection.server
        self.destination = connection.destination
        self.account = connection.account
        self.serves = connection.serves
        self.task: Drive | None = None
        self.begun = False
        self._chunked = False
        self._left = -1

    @property
    def extensions(self) -> dict[str, Any]:
        return self.connection.extensions

    async def run(self) -> None:
        """Serves the request, and ends the connection where that leaves the response incomplete."""
        connection = self.connection
        try:
            await connection.listener.serve(self)
        except Cut:
            pass
        except asyncio.CancelledError:
            # Only connection_lost and abort cancel: there is nobody left to answer.
            return
        except Exception as error:
            connection.listener.loop.call_exception_handler(
                {"message": "the application failed", "exception": error, "protocol": connection}
            )
            if not self.begun:
                connection.answer("filter_error", self.method)
                return
        if connection.exchange is not self:
            return
        if self.begun and self._left < 0 and not self._chunked:
            connection.reset()
        else:
            connection.close()

    async def respond(self, status: int, headers: Headers, body: bytes, trailers: Headers | None = None) -> None:
        if trailers:
            await self.start(status, headers, body, True)
            await self.end(trailers)
            return
        connection = self.connection
        data = self._first(status, headers, body, False)
        if connection.transport is not None:
            connection.write(data)
            if connection.drained is not None:
                # Nothing but the transport keeps what the client has not taken yet, here and below.
                body = data = b""
                await connection.drained
            self._finish()

    async def start(self, status: int, headers: Headers, data: bytes, trailers: bool = False) -> None:
        connection = self.connection
        if status == 101:
            connection.begin_tunnel(self, headers)
            self.begun = True
        else:
            data = self._first(status, headers, data, True)
        if data and connection.transport is not None:
            connection.write(data)
            if connection.drained is not None:
                data = b""
                await connection.drained

    async def write(self, data: bytes) -> None:
        if data:
            self.write_now(data)
        if self.connection.drained is not None:
            data = b""
            await self.connection.drained

    def write_now(self, data: bytes) -> bool:
        connection = self.connection
        if connection.transport is None:
            return False
        if self._chunked:
            data = encode_chunk(data)
        elif self._left >= 0:
            data = self._bounded(data)
        if data:
            connection.write(data)
        return connection.drained is None

    async def end(self, trailers: Headers | None = None) -> None:
        connection = self.connection
        if connection.transport is not None:
            if self._chunked:
                connection.write(encode_last_chunk(trailers))
            self._finish()

    def _first(self, status: int, headers: Headers, data: bytes, more: bool) -> bytes:
        """Returns the head and the first body bytes, with the framing that fits both ends (RFC 9112 6)."""
        connection = self.connection
        self.begun = True
        # A field line is always behind a line feed, so that a search for one finds no other. It is `find` because `in`
        # takes half as long again: it first tries whether what it looks for is a number.
        head = STATUS_LINES[status] + encode_fields(headers)
        if head.find(b"\nconnection:") > 0 or head.find(b"\ntransfer-encoding:") > 0:
            if b"\nconnection: close\r" in head:
                connection.keep_alive = False
            headers = without(headers, b"connection", b"transfer-encoding")
            head = STATUS_LINES[status] + encode_fields(headers)
        framing = b""
        if self.method == b"HEAD" or status in (204, 304):
            self._left = 0
            if status == 204 and b"\ncontent-length:" in head:
                head = _head_without(status, headers, b"content-length")
            data = b""
        elif not more:
            self._left = 0
            if head.find(b"\ncontent-length: %d\r" % len(data)) < 0:
                head = _head_without(status, headers, b"content-length")
                framing = b"content-length: %d\r\n" % len(data)
        elif (at := head.find(b"\ncontent-length: ")) > 0:
            self._left = int(head[at + 17 : head.index(b"\r", at)])
            data = self._bounded(data)
        elif self.version == "1.1":
            framing = b"transfer-encoding: chunked\r\n"
            self._chunked = True
            if data:
                data = encode_chunk(data)
        else:
            connection.keep_alive = False
        early = self.body.__class__ is Stream and not connection.body_ended and not more
        if early or connection.listener.now >= connection.close_at:
            connection.keep_alive = False
        if not connection.keep_alive:
            framing += b"connection: close\r\n"
        elif self.version == "1.0":
            framing += b"connection: keep-alive\r\n"
        return b"%b%b\r\n%b" % (head, framing, data)

    def _bounded(self, data: bytes) -> bytes:
        """Cuts what goes beyond the declared length; the connection cannot be trusted after it."""
        if len(data) > self._left:
            data = data[: self._left]
            self.connection.keep_alive = False
        self._left -= len(data)
        return data

    def _finish(self) -> None:
        connection = self.connection
        if self._left > 0:
            # Fewer bytes than declared: only a cut connection says so.
            connection.close()
        elif connection.exchange is self:
            connection.end_exchange()


def _head_without(status: int, headers: Headers, *names: bytes) -> bytes:
    return STATUS_LINES[status] + encode_fields(without(headers, *names))
