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
    """The httpx view of a core Request: each attribute is made when somebody reads it, and ours read `core`.

    Building httpx's own objects for each request and response would cost a fifth of the whole budget.
    """

    def __init__(self, url: httpx.URL, core: Request) -> None:
        self.url = url
        self.core = core

    def __getattr__(self, name: str) -> Any:
        core: Request = self.__dict__["core"]
        value: Any
        if name == "method":
            value = core.method.decode("ascii")
        elif name == "headers":
            value = httpx.Headers([(b"host", core.authority), *core.headers])
        elif name == "stream":
            value = BodyStream(core.body)
        elif name == "extensions":
            value = {"target": core.target, EXTENSION: core}
        else:
            raise AttributeError(name)
        self.__dict__[name] = value
        return value


class UpstreamResponse(httpx.Response):
    """The httpx view of an answer; each attribute that is not ours is made when somebody reads it."""

    def __init__(self, status: int, fields: Headers, body: Body) -> None:
        self.status_code = status
        self.fields = fields
        self.body = body

    def __getattr__(self, name: str) -> Any:
        # What httpx.Response sets up in its constructor.
        whole = httpx.Response(
            self.__dict__["status_code"], headers=self.__dict__["fields"], stream=BodyStream(self.__dict__["body"])
        )
        for key, value in whole.__dict__.items():
            self.__dict__.setdefault(key, value)
        if name not in self.__dict__:
            raise AttributeError(name)
        return self.__dict__[name]


Parts = tuple[bytes, bytes, bytes, Headers, Body, Request | None]
"""(method, target, host, header fields, body, the request that this is an attempt for, if it is one of ours)"""


def url_of(scheme: str, address: str) -> httpx.URL:
    """Returns the URL that stands for an endpoint in every request to it."""
    return httpx.URL(f"{scheme}://{address}/")


def request_parts(request: httpx.Request) -> Parts:
    """Takes any httpx.Request apart."""
    if type(request) is UpstreamRequest:
        core = request.core
        return core.method, core.target, core.authority, core.headers, core.body, core
    target = request.extensions.get("target", request.url.raw_path)
    fields = [(name.lower(), value) for name, value in request.headers.raw]
    host = request.headers.get("host", request.url.netloc.decode("ascii")).encode("ascii")
    fields = [pair for pair in fields if pair[0] not in (b"host", b"connection", b"transfer-encoding")]
    method = request.method.encode("ascii")
    return method, target, host, fields, body_of(request.stream), request.extensions.get(EXTENSION)


def response_parts(response: httpx.Response) -> tuple[Headers, Body]:
    """Returns (header fields, body) of any httpx.Response."""
    if type(response) is UpstreamResponse:
        return response.fields, response.body
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
