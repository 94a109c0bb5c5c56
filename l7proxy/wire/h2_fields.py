"""Which header lists are one HTTP message: RFC 9113 8.2 and 8.3 for requests, responses and trailers.

Whatever HTTP/1.1 could read differently is refused here, so that nothing malformed is ever forwarded. Each refusal
names a reason, which is the label of a counter.
"""

import re

from msgspec import Struct

from l7proxy.core.headers import Headers
from l7proxy.wire.fields import CONNECTION_FIELDS, DROPPED, SPECIAL, may_trail
from l7proxy.wire.framing import has_port
from l7proxy.wire.h2_hpack import Field

_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_PATH = re.compile(rb"/[!\"$-\[\]-~]*|\*")
_AUTHORITY = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?")
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]{0,15}")
_PROTOCOL = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z/]{1,32}")
_STATUS = re.compile(rb"[1-5][0-9][0-9]")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]{1,1024}")

_TEXT = bytes((0x09, *range(0x20, 0x7F), *range(0x80, 0x100)))

_SPECIAL = SPECIAL - CONNECTION_FIELDS | {b"cookie"}
# Names that were found good and need no more attention; bounded, since peers choose them.
_plain: set[bytes] = set()
_PLAIN_MAX = 4096


class Malformed(Exception):
    """A header list that is no HTTP message; `reason` is the label of the counter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RequestFields(Struct):
    """The head of one request. `headers` are the end-to-end fields without Host, which is `authority`.

    `protocol` is that of an extended CONNECT (RFC 8441), whose `target` is a path; a plain CONNECT has an empty one.
    `length` is -1 when no content-length says it; `size` is that of the encoded head in bytes.
    """

    method: bytes
    scheme: bytes
    authority: bytes
    target: bytes
    protocol: bytes | None
    headers: Headers
    length: int = -1
    expect: bool = False
    te_trailers: bool = False
    size: int = 0


class ResponseFields(Struct):
    """The head of one response; `length` is -1 when no content-length says it."""

    status: int
    headers: Headers
    length: int = -1


def request_of(fields: list[Field], extended_connect: bool) -> RequestFields:
    """Reads the head of a request. Raises Malformed."""
    pseudo: dict[bytes, bytes] = {}
    for field in fields:
        if field[0][:1] != b":":
            break
        pseudo[field[0]] = field[1]
    headers = fields[len(pseudo) :]
    head = RequestFields(b"", b"", b"", b"", None, headers)
    host = _check(head, headers)
    pop = pseudo.pop
    method = pop(b":method", None)
    scheme = pop(b":scheme", None)
    path = pop(b":path", None)
    authority = pop(b":authority", None)
    protocol = pop(b":protocol", None) if extended_connect else None
    if pseudo:
        raise Malformed("pseudo_header_unknown")
    if method is None or not _METHOD.fullmatch(method):
        raise Malformed("method")
    if method == b"CONNECT" and protocol is None:
        # RFC 9113 8.5: a tunnel has an authority with a port, and neither scheme nor path.
        if scheme is not None or path is not None:
            raise Malformed("connect")
        scheme = path = b""
    elif protocol is not None and (method != b"CONNECT" or not _PROTOCOL.fullmatch(protocol)):
        raise Malformed("connect_protocol")
    elif scheme is None or not _SCHEME.fullmatch(scheme):
        raise Malformed("scheme")
    elif path is None or not _PATH.fullmatch(path) or (path == b"*" and method != b"OPTIONS"):
        raise Malformed("path")
    if authority is None:
        authority = host
    elif host is not None and host.lower() != authority.lower():
        raise Malformed("authority_unlike_host")
    if authority is None:
        raise Malformed("authority_missing")
    match = _AUTHORITY.fullmatch(authority)
    if match is None or (match[1] and int(match[1]) > 65535):
        raise Malformed("authority")
    if method == b"CONNECT" and protocol is None and not has_port(authority):
        raise Malformed("connect")
    head.method = method
    head.scheme = scheme
    head.authority = authority
    head.target = path
    head.protocol = protocol
    return head


def response_of(fields: list[Field]) -> ResponseFields:
    """Reads the head of a response. Raises Malformed."""
    if not fields or fields[0][0] != b":status" or not _STATUS.fullmatch(fields[0][1]):
        raise Malformed("status")
    headers = fields[1:]
    head = ResponseFields(int(fields[0][1]), headers)
    _check(head, headers)
    # RFC 9113 8.6: there is nothing to switch to.
    if head.status == 101:
        raise Malformed("status")
    return head


def trailers_of(fields: list[Field], request: bool) -> Headers:
    """Reads a trailer section, less the fields that may not come in one (RFC 9110 6.5.1). Raises Malformed."""
    if not fields:
        return []
    _check_values(fields)
    for name, _ in fields:
        if name not in _plain:
            _learn(name)
    return [field for field in fields if may_trail(field[0], request)]


def _check(head: RequestFields | ResponseFields, headers: Headers) -> bytes | None:
    """Checks every field, puts what is special into the head, and returns the value of Host."""
    if not headers:
        return None
    _check_values(headers)
    host = None
    dropped = False
    cookies: list[bytes] | None = None
    plain = _plain
    for name, value in headers:
        if name in plain:
            continue
        if name not in _SPECIAL:
            _learn(name)
        elif name == b"content-length":
            if head.length >= 0 or not _LENGTH.fullmatch(value):
                raise Malformed("content_length")
            head.length = int(value)
        elif name == b"cookie":
            if cookies is None:
                cookies = []
            cookies.append(value)
        else:
            dropped = True
            if type(head) is not RequestFields:
                continue
            if name == b"host":
                if host is not None:
                    raise Malformed("two_hosts")
                host = value
            elif name == b"te":
                if value.lower() != b"trailers":
                    raise Malformed("te")
                head.te_trailers = True
            elif name == b"expect":
                if head.expect or value.lower() != b"100-continue":
                    raise Malformed("expect")
                head.expect = True
    if dropped:
        headers = head.headers = [field for field in headers if field[0] not in DROPPED]
    if cookies is not None and len(cookies) > 1:
        # RFC 9113 8.2.3: crumbs are put together before they meet anything that is not HTTP/2.
        head.headers = [field for field in headers if field[0] != b"cookie"]
        head.headers.append((b"cookie", b"; ".join(cookies)))
    return host


def _check_values(fields: list[Field]) -> None:
    """Refuses controls anywhere and blanks around a value, for all values of a non-empty list at once."""
    text = b"\n".join([field[1] for field in fields])
    # What is left are the line feeds between the values, if all is well.
    if len(text.translate(None, _TEXT)) != len(fields) - 1:
        raise Malformed("control_character")
    if b" \n" in text or b"\n " in text or b"\t" in text or text[:1] == b" " or text[-1:] == b" ":
        for _, value in fields:
            if value != value.strip(b" \t"):
                raise Malformed("blank_around_value")


def _learn(name: bytes) -> None:
    if name[:1] == b":":
        raise Malformed("pseudo_header_misplaced")
    if not _NAME.fullmatch(name):
        raise Malformed("header_name")
    if name in CONNECTION_FIELDS:
        raise Malformed("connection_header")
    if name not in _SPECIAL and len(name) <= 64:
        if len(_plain) >= _PLAIN_MAX:
            _plain.clear()
        _plain.add(name)
