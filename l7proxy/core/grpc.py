"""What every layer knows of gRPC: which requests are calls, their deadline on the way in, their status on the way out.

See https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md and http-grpc-status-mapping.md beside it.
"""

import asyncio
from typing import Final

from l7proxy.core.errors import CODES, ProxyError
from l7proxy.core.headers import Headers, find
from l7proxy.core.message import Request

_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_OF_HTTP: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
_CANCELLED = 1
_UNKNOWN = 2
_UNAVAILABLE = 14


def is_call(headers: Headers) -> bool:
    """Tells whether a POST with these header fields is a gRPC call."""
    kind = find(headers, b"content-type")
    # `application/grpc-web` is something else, and speaks plain HTTP.
    return kind is not None and kind.startswith(b"application/grpc") and kind[16:17] in (b"", b"+", b";")


def begin(request: Request) -> None:
    """Marks a POST that is a gRPC call, and takes its deadline from `grpc-timeout`."""
    if not is_call(request.headers):
        return
    request.grpc = True
    timeout = find(request.headers, b"grpc-timeout")
    if timeout is not None and len(timeout) < 10 and timeout[:-1].isdigit() and timeout[-1:] in _UNITS:
        deadline = request.t_start + int(timeout[:-1]) * _UNITS[timeout[-1:]]
        if request.deadline is None or deadline < request.deadline:
            request.deadline = deadline


def status_fields(number: int, text: str) -> Headers:
    """Returns the header fields of a trailers-only answer: of status 200, with all that there is to tell."""
    return [
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"%d" % number),
        (b"grpc-message", text.encode()),
    ]


def status_of(http: int, fields: Headers) -> int:
    """Returns the status that a call ended with by its trailers, or by the head that stands for them; -1 for none."""
    value = find(fields, b"grpc-status")
    if value is not None and value.isdigit():
        return int(value)
    return -1 if http == 200 else _OF_HTTP.get(http, _UNKNOWN)


def read_status(request: Request, http: int, fields: Headers) -> None:
    """Notes the status of a call that has ended."""
    status = status_of(http, fields)
    if status >= 0:
        request.grpc_status = status


def blame(request: Request, failure: BaseException) -> None:
    """Notes the status that the client will make of a call that was cut short."""
    if isinstance(failure, asyncio.CancelledError):
        # The server says with which error it answers in our place; without one the client is gone.
        code = CODES.get(failure.args[0]) if failure.args else None
        request.grpc_status = code.grpc if code is not None else _CANCELLED
    else:
        request.grpc_status = failure.grpc if isinstance(failure, ProxyError) else _UNAVAILABLE
