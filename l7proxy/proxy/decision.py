"""What is asked of a configuration: a request that nobody sends, and the exchange that it is put into."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from l7proxy.core.address import address_of
from l7proxy.core.buffers import UNACCOUNTED
from l7proxy.core.exchange import CONNECT
from l7proxy.core.headers import Headers, find, without
from l7proxy.core.message import Body
from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.identity.peer import peer_named


class Question(Struct, frozen=True):
    """A request that nobody sends.

    `url` may be a path alone, or the `*` of OPTIONS: the host is then that of the `host` header, else `localhost`.
    `identity` is what the caller's certificate says, "" for a caller without one.
    """

    method: str
    url: str
    identity: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    source: str = "127.0.0.1"
    inbound: bool = True


class Asked:
    """The Exchange of a question, and what is answered to it. Raises ValueError for what no client can send."""

    def __init__(self, question: Question) -> None:
        headers = [(_text(name).lower(), _text(value)) for name, value in question.headers]
        host = find(headers, b"host")
        scheme, authority, target = _split(question.method, question.url)
        if scheme not in ("http", "https"):
            raise ValueError(f"{question.url!r} is not a URL like https://orders.example.com/v1, nor a path")
        path, _, query = _text(target).partition(b"?")
        self.method = _text(question.method)
        self.scheme = scheme.encode()
        self.authority = host or _text(authority)
        self.path = path
        self.query = query
        self.version = "1.1"
        self.headers: Headers = without(headers, b"host")
        self.body: Body = b""
        self.upgrade = CONNECT if question.method == "CONNECT" else None
        self.peer: Peer = peer_named(question.identity) if question.identity else ANONYMOUS
        self.client: tuple[str, int] | None = (str(address_of(question.source)), 0)
        self.server: tuple[str, int] | None = None
        self.destination: tuple[str, int] | None = None
        self.account = UNACCOUNTED
        self.status = 0
        self.answer: Headers = []
        self.content = b""

    @property
    def serves(self) -> Callable[[bytes], bool] | None:
        return None

    @property
    def write_now(self) -> Callable[[bytes], bool] | None:
        return None

    @property
    def extensions(self) -> dict[str, Any]:
        return {}

    async def respond(self, status: int, headers: Headers, body: bytes, trailers: Headers | None = None) -> None:
        await self.start(status, headers, body)

    async def start(self, status: int, headers: Headers, data: bytes, trailers: bool = False) -> None:
        self.status, self.answer, self.content = status, headers, data

    async def write(self, data: bytes) -> None:
        self.content += data

    async def end(self, trailers: Headers | None = None) -> None:
        pass


def field(text: str) -> tuple[str, str]:
    """Returns (name, value) of a header field as `x-tenant: blue`; raises ValueError for what is none."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise ValueError(f"{text!r} is not a header field like 'x-tenant: blue'")
    return name.strip(), value.strip()


def _split(method: str, url: str) -> tuple[str, str, str]:
    """Returns (scheme, authority, target), each as it is written: the proxy must see the path that a client sends."""
    if method == "CONNECT":
        return "http", url, "/"
    if url.startswith("/") or (url == "*" and method == "OPTIONS"):
        return "http", "localhost", url
    scheme, _, rest = url.partition("://")
    cut = min((rest.index(mark) for mark in "/?#" if mark in rest), default=len(rest))
    if not cut:
        raise ValueError(f"{url!r} names no host")
    target = rest[cut:]
    return scheme.lower(), rest[:cut], target if target.startswith("/") else f"/{target}"


def _text(text: str) -> bytes:
    if any(mark in text for mark in "\r\n\0"):
        raise ValueError(f"{text!r} holds a line break or NUL, which no request can")
    return text.encode()
