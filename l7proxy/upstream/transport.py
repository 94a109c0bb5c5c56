"""The httpx face of everything upstream: our messages as httpx ones, with nothing converted before it is asked for.

Any `httpx.AsyncBaseTransport` can stand for an endpoint, and ours can serve any `httpx.AsyncClient`. This is the one
module that imports httpx.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, cast

import httpx

from l7proxy.core.headers import Headers
from l7proxy.core.message import Body, Request
from l7proxy.core.stream import HIGH_WATER, Stream

Transport = httpx.AsyncBaseTransport
EXTENSION = "l7proxy"
"""The request extension that carries the core Request that an attempt is made for."""


class BodyStream(httpx.AsyncByteStream):
    """A core Body as httpx reads it."""

    __slots__ = ("body",)

    def __init__(self, body: Body) -> None:
        self.body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = self.body
        if type(body) is bytes:
            if body:
                yield body
            return
        stream = cast(Stream, body)
        while data := await stream.read():
            yield data

    async def aclose(self) -> None:
        if isinstance(self.body, Stream):
            self.body.close()


class UpstreamRequest(httpx.Request):
    """An httpx.Request whose `headers` are made when somebody reads them; `fields` are what they are made of.

    Building `httpx.Headers` for each request and response would cost a fifth of the whole budget.
    """

    def __init__(self, url: httpx.URL, request: Request) -> None:
        self.method = request.method.decode("ascii")
        self.url = url
        self.host = request.authority
        self.fields = request.headers
        self.stream = BodyStream(request.body)
        self.extensions: dict[str, Any] = {"target": request.target, EXTENSION: request}

    @property
    def headers(self) -> httpx.Headers:  # type: ignore[override]
        made = self.__dict__.get("made")
        if made is None:
            made = self.__dict__["made"] = httpx.Headers([(b"host", self.host), *self.fields])
        return cast(httpx.Headers, made)


class UpstreamResponse(httpx.Response):
    """An httpx.Response whose `headers` are made when somebody reads them."""

    is_closed = False
    is_stream_consumed = False
    default_encoding = "utf-8"
    next_request = None
    _request = None
    _num_bytes_downloaded = 0

    def __init__(self, status: int, fields: Headers, body: Body) -> None:
        self.status_code = status
        self.fields = fields
        self.stream = BodyStream(body)
        self.extensions: dict[str, Any] = {}
        self.history = []

    @property
    def headers(self) -> httpx.Headers:  # type: ignore[override]
        made = self.__dict__.get("made")
        if made is None:
            made = self.__dict__["made"] = httpx.Headers(self.fields)
        return cast(httpx.Headers, made)


def url_of(scheme: str, address: str) -> httpx.URL:
    """Returns the URL that stands for an endpoint in every request to it."""
    return httpx.URL(f"{scheme}://{address}/")


def request_parts(request: httpx.Request) -> tuple[bytes, bytes, Headers, Body]:
    """Returns (target, host, header fields, body) of any httpx.Request."""
    if isinstance(request, UpstreamRequest):
        return request.extensions["target"], request.host, request.fields, cast(BodyStream, request.stream).body
    target = request.extensions.get("target", request.url.raw_path)
    fields = [(name.lower(), value) for name, value in request.headers.raw]
    host = request.headers.get("host", request.url.netloc.decode("ascii")).encode("ascii")
    fields = [pair for pair in fields if pair[0] not in (b"host", b"connection", b"transfer-encoding")]
    return target, host, fields, body_of(request.stream)


def response_parts(response: httpx.Response) -> tuple[Headers, Body]:
    """Returns (header fields, body) of any httpx.Response."""
    if type(response) is UpstreamResponse:
        return response.fields, cast(BodyStream, response.stream).body
    fields = [(name.lower(), value) for name, value in response.headers.raw]
    return fields, body_of(response.stream)


def body_of(stream: Any) -> Body:
    """Returns what an httpx stream carries as a core Body."""
    if isinstance(stream, BodyStream):
        return stream.body
    if isinstance(stream, httpx.ByteStream):
        return b"".join(stream)
    room = asyncio.Event()
    body = Stream(lambda size: room.set())
    task = asyncio.get_running_loop().create_task(_pump(stream, body, room))
    body.source = task
    return body


async def _pump(source: AsyncIterable[bytes], body: Stream, room: asyncio.Event) -> None:
    try:
        async for data in source:
            body.feed(data)
            if body.ended:
                break
            if body.size > HIGH_WATER:
                room.clear()
                await room.wait()
        body.end()
    except Exception as error:
        body.fail(error)
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


def response_for(request: httpx.Request, status: int, fields: Headers, body: Body) -> httpx.Response:
    """Returns the response to `request`: the light one to ours, a full one to anybody else's."""
    if type(request) is UpstreamRequest:
        return UpstreamResponse(status, fields, body)
    return httpx.Response(status, headers=fields, stream=BodyStream(body), request=request)
