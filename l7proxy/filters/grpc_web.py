"""gRPC-Web: calls of browsers, which know no trailers, for services that speak gRPC.

See https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md: the trailers come last in the body, in a frame of
their own, and the `-text` form is base64 throughout.
"""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import ClassVar

from l7proxy.core import grpc
from l7proxy.core.errors import ProxyError
from l7proxy.core.handler import Build, Filter, Handler
from l7proxy.core.headers import Headers, find, without
from l7proxy.core.message import Body, Request, Response
from l7proxy.core.stream import Stream

_WEB = b"application/grpc-web"
_TEXT = b"application/grpc-web-text"
_TRAILERS = 0x80


class GrpcWeb(Filter, frozen=True):
    """Translates gRPC-Web, binary and text, to gRPC; requests of any other kind pass untouched.

    The upstream speaks `http2`. Browsers ask for leave first: that is the CORS policy's business.
    """

    name: ClassVar[str] = "grpcWeb"

    def wrap(self, inner: Handler, build: Build) -> Handler:
        calls = build.stats.counter(
            "l7proxy_grpc_web_calls_total", "gRPC-Web calls that were translated", l7proxy_route=build.route.name
        )

        async def handle(request: Request) -> Response:
            kind = find(request.headers, b"content-type")
            if kind is None or not kind.startswith(_WEB) or request.method != b"POST":
                return await inner(request)
            calls.value += 1
            text = kind.startswith(_TEXT)
            suffix = kind[len(_TEXT if text else _WEB) :]
            _to_grpc(request, suffix, text)
            return _to_web(request, await inner(request), text)

        return handle


def _to_grpc(request: Request, suffix: bytes, text: bool) -> None:
    headers = without(request.headers, b"content-type", b"x-grpc-web", b"te", b"content-length", b"accept")
    headers += ((b"content-type", b"application/grpc" + suffix), (b"te", b"trailers"))
    request.headers = headers
    grpc.begin(request)
    if text:
        body = request.body
        request.body = _decode(body) if type(body) is bytes else _Decoded(body)


def _to_web(request: Request, response: Response, text: bool) -> Response:
    kind = find(response.headers, b"content-type") or b""
    if not kind.startswith(b"application/grpc"):
        return response
    response.headers = without(response.headers, b"content-type", b"content-length")
    response.headers.append((b"content-type", (_TEXT if text else _WEB) + kind[len(b"application/grpc") :]))
    body = response.body
    if type(body) is not bytes:
        response.body = _Encoded(body, request, text)
    elif body or response.trailers is not None:
        # Without either the head stands for the trailers, for browsers too.
        body += _frame(response.trailers or [])
        grpc.read_status(request, response.status, response.trailers or [])
        response.body = b64encode(body) if text else body
        response.trailers = None
    return response


def _frame(trailers: Headers) -> bytes:
    block = b"".join([b"%b: %b\r\n" % pair for pair in trailers])
    return b"%c%b%b" % (_TRAILERS, len(block).to_bytes(4, "big"), block)


def _decode(text: bytes) -> bytes:
    """Decodes base64 that may be several padded pieces, one behind the other."""
    pieces = []
    at = 0
    try:
        while at < len(text):
            padding = text.find(b"=", at)
            end = len(text) if padding < 0 else (padding | 3) + 1
            pieces.append(b64decode(text[at:end], validate=True))
            at = end
        return b"".join(pieces)
    except Base64Error as error:
        raise ProxyError("bad_request", f"gRPC-Web text is no base64: {error}") from None


class _Derived(Stream):
    """A body that is made of another as it is read."""

    __slots__ = ("_source",)

    def __init__(self, source: Body) -> None:
        super().__init__()
        assert isinstance(source, Stream)
        self._source = source

    def take(self) -> bytes:
        return b""

    def close(self, error: BaseException | None = None) -> None:
        self.ended = True
        self._source.close(error)


class _Decoded(_Derived):
    """The bytes that base64 on its way stands for."""

    __slots__ = ("_rest",)

    def __init__(self, source: Body) -> None:
        super().__init__(source)
        self._rest = b""

    async def read(self) -> bytes:
        while data := await self._source.read():
            self.total = self._source.total
            data = self._rest + data
            whole = len(data) & ~3
            self._rest = data[whole:]
            if whole:
                data = _decode(data[:whole])
                self.taken += len(data)
                return data
        self.ended = True
        if self._rest:
            raise ProxyError("bad_request", "gRPC-Web text ends within a group of four")
        return b""


class _Encoded(_Derived):
    """A gRPC answer on its way, with its trailers as the last frame."""

    __slots__ = ("_request", "_text")

    def __init__(self, source: Body, request: Request, text: bool) -> None:
        super().__init__(source)
        self._request = request
        self._text = text

    async def read(self) -> bytes:
        if self.ended:
            return b""
        data = await self._source.read()
        if not data:
            self.ended = True
            trailers = self._source.trailers or []
            grpc.read_status(self._request, 200, trailers)
            data = _frame(trailers)
        self.total += len(data)
        return b64encode(data) if self._text else data
