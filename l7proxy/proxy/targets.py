"""The innermost handlers: where a route's requests end up."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from random import Random

from l7proxy.config.model import DirectResponse, Match, Redirect, Rewrite
from l7proxy.config.precedence import prefix_key
from l7proxy.core.handler import Handler
from l7proxy.core.headers import Headers
from l7proxy.core.message import Request, Response


def split(backends: Sequence[tuple[Handler, int]], random: Random) -> Handler:
    """Sends each request to one of several handlers by weight."""
    bounds = list(accumulate(weight for _, weight in backends))
    handlers = [handler for handler, _ in backends]
    total, draw = bounds[-1], random.random

    async def handle(request: Request) -> Response:
        return await handlers[bisect_right(bounds, draw() * total)](request)

    return handle


def redirect(spec: Redirect, matches: Sequence[Match]) -> Handler:
    """Answers with a Location; what the redirect does not name stays as it was asked for."""
    whole = spec.path.encode() if spec.path is not None else None
    moved = _moved(spec.prefix, matches) if spec.prefix is not None else None

    async def handle(request: Request) -> Response:
        scheme = (spec.scheme or request.scheme.decode("ascii")).encode()
        host, colon, port = _split_port(request.authority)
        if spec.host is not None:
            host, colon, port = spec.host.encode(), b"", b""
        elif spec.scheme is not None and spec.scheme.encode() != request.scheme:
            # The port of another scheme is not this one's.
            colon = port = b""
        if spec.port is not None:
            colon, port = (b"", b"") if spec.port == _DEFAULT[scheme] else (b":", b"%d" % spec.port)
        path = whole or (moved(request.path) if moved is not None else request.path)
        query = b"?" + request.query if request.query else b""
        location = b"%b://%b%b%b%b%b" % (scheme, host, colon, port, path, query)
        return Response(spec.status, [(b"location", location), (b"content-length", b"0")])

    return handle


def direct(spec: DirectResponse) -> Handler:
    """Answers without an upstream."""
    body = spec.body.encode()
    headers: Headers = [(name.encode(), value.encode("latin-1", "replace")) for name, value in spec.headers.items()]
    if body and "content-type" not in spec.headers:
        headers.append((b"content-type", b"text/plain; charset=utf-8"))

    async def handle(request: Request) -> Response:
        return Response(spec.status, headers.copy(), body)

    return handle


def rewrite(inner: Handler, spec: Rewrite, matches: Sequence[Match]) -> Handler:
    """Changes the path and host that the upstream is asked for (Gateway API's URLRewrite)."""
    host = spec.host.encode() if spec.host is not None else None
    whole = spec.path.encode() if spec.path is not None else None
    moved = _moved(spec.prefix, matches) if spec.prefix is not None else None

    async def handle(request: Request) -> Response:
        path = whole if moved is None else moved(request.path)
        if path is not None:
            request.target = b"%b?%b" % (path, request.query) if request.query else path
        if host is not None:
            request.authority = host
        return await inner(request)

    return handle


def _moved(prefix: str, matches: Sequence[Match]) -> Callable[[bytes], bytes]:
    """Returns what puts `prefix` in place of the prefix that a path was matched by."""
    new = prefix.rstrip("/").encode()
    # The longest prefix of the route that fits is the one that matched.
    matched = sorted(
        (prefix_key(match.path.prefix) for match in matches if match.path.prefix is not None), key=len, reverse=True
    )

    def moved(path: bytes) -> bytes:
        for old in matched:
            if path.startswith(old):
                return new + path[len(old) :] or b"/"
        return path

    return moved


_DEFAULT = {b"http": 80, b"https": 443}


def _split_port(authority: bytes) -> tuple[bytes, bytes, bytes]:
    host, colon, port = authority.rpartition(b":")
    if colon and port.isdigit():
        return host, colon, port
    return authority, b"", b""
