"""Which fields never go on as they came, whether HTTP/1.1 or HTTP/2 brought them: one list for both.

An application that merges `-` and `_` (CGI, WSGI, PHP) would take `Transfer_Encoding` for what it is not: such a
spelling of these fields is dropped.
"""

from l7proxy.core.headers import merged, vouches

CONNECTION_FIELDS = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
"""What speaks of an HTTP/1.1 connection; a message of HTTP/2 with one of these is malformed (RFC 9113 8.2.2)."""

_READ = CONNECTION_FIELDS | {b"content-length", b"expect", b"host", b"http2-settings", b"te", b"trailer"}
_MERGED = frozenset(name.replace(b"-", b"_") for name in _READ if b"-" in name)

SPECIAL = _READ | _MERGED
"""Fields that shape or name the message or are taken for one that does: read by the protocol, if at all."""

DROPPED = SPECIAL - {b"content-length"}
"""Those of them that are in no message once it has been read, but for the `te: trailers` that is made anew."""

_NOT_IN_TRAILERS = (
    _READ
    | {b"authorization", b"cache-control", b"content-encoding", b"content-range", b"content-type", b"cookie"}
    | {b"forwarded", b"max-forwards", b"proxy-authorization", b"range", b"set-cookie", b"x-forwarded-client-cert"}
    | {b"x-forwarded-for"}
)


def may_trail(name: bytes, request: bool) -> bool:
    """Tells whether a field (lower case) may come in a trailer section (RFC 9110 6.5.1).

    What shapes, routes or authorises a message may not, nor, in a request, what says who its client is; in no spelling.
    """
    return merged(name) not in _NOT_IN_TRAILERS and not (request and vouches(name))
