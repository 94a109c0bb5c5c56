"""What is asked of a configuration, and the trace that the live path's own functions leave on the way to an answer."""

import ipaddress
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from l7proxy.core.errors import ProxyError
from l7proxy.core.exchange import CONNECT
from l7proxy.core.headers import Headers, find, without
from l7proxy.core.message import Body, Request
from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.identity.peer import peer_named
from l7proxy.proxy.router import Trace


class Question(Struct, frozen=True):
    """A request that nobody sends.

    `url` may be a path alone: the host is then that of the `host` header, else `localhost`. `identity` is what the
    caller's certificate says, "" for a caller without one.
    """

    method: str
    url: str
    identity: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    source: str = "127.0.0.1"
    inbound: bool = True


class Step(Struct):
    """What one policy did; `outcome` is empty where it had nothing to say, `where` is the `file:line` of the rule."""

    policy: str
    outcome: str = ""
    rule: str = ""
    where: str = ""


class Sent(Struct, frozen=True):
    """What an upstream would have been asked, and how long the request might have waited for it, in seconds."""

    authority: bytes
    target: bytes
    headers: Headers
    timeout: float | None
    per_try: float | None


class Decision:
    """Stands in `Request.trace`: policies tell it their verdicts, and the explaining compiler where the request is."""

    def __init__(self) -> None:
        self.request: Request | None = None
        self.candidates: Trace = []
        self.steps: list[Step] = []
        self.upstream: str | None = None
        """Where the request ended: an upstream's name, "" for the route's own answer, None if it got to neither."""
        self.sent: Sent | None = None
        self._blamed = False

    def verdict(self, policy: str, rule: str, outcome: str, where: str) -> None:
        """A policy says what it decided, by which rule, and where that stands."""
        last = self.steps[-1] if self.steps else None
        if last is None or last.policy != policy or last.outcome:
            last = self.enter(policy)
        last.outcome, last.rule, last.where = outcome, rule, where

    def enter(self, policy: str) -> Step:
        """The request comes to a policy."""
        step = Step(policy)
        self.steps.append(step)
        return step

    def leave(self, step: Step) -> None:
        """A policy has answered: by itself where the request got no further."""
        if self.upstream is None and self.steps[-1] is step and not step.outcome:
            step.outcome = "answered"

    def blame(self, step: Step, error: Exception) -> None:
        """A policy has raised an error, its own unless one within it has been blamed already."""
        if not self._blamed and not step.outcome:
            step.outcome = error.code.name if isinstance(error, ProxyError) else "filter_error"
        self._blamed = True

    def arrive(self, request: Request, upstream: str) -> None:
        """The request has come through every policy."""
        self.upstream = upstream
        headers = request.headers.copy()
        self.sent = Sent(request.authority, request.target, headers, request.timeout, request.per_try)


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
        self.client: tuple[str, int] | None = (str(ipaddress.ip_address(question.source)), 0)
        self.server: tuple[str, int] | None = None
        self.destination: tuple[str, int] | None = None
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
    if url.startswith("/"):
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
