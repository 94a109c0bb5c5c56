"""Which bytes are one HTTP/1.1 message: the header grammar and the only Content-Length / Transfer-Encoding decision.

Everything that two parsers could read differently is refused, for requests and for responses alike. Each refusal
carries a reason, which is the label of a counter.
"""

import re
from collections.abc import Iterable

from msgspec import Struct

from l7proxy.core.errors import ProxyError
from l7proxy.core.headers import Headers, tokens
from l7proxy.wire.fields import SPECIAL, may_trail

CHUNKED = -1
UNTIL_CLOSE = -2

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
VALUE = rb"[^\x00-\x08\x0a-\x1f\x7f]"
# RFC 9112 5: no blank before the colon, no folding, CRLF alone ends a line. Possessive: this never backtracks.
FIELDS = rb"((?:" + TOKEN + rb"++:" + VALUE + rb"*+\r\n)*+)\r\n"

_FIELD_LINE = re.compile(TOKEN + rb"+:" + VALUE + rb"*")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_BARE_CR = re.compile(rb"\r(?!\n|\Z)")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?")
# What Connection says that names no field, or one that is dealt with anyway.
_OPTIONS = frozenset((b"close", b"keep-alive", b"upgrade", b"te"))
# What a peer may not strip by naming it in Connection: the app relies on it.
_KEPT = re.compile(
    rb"(?:host|content-length|transfer-encoding|authorization|cookie|set-cookie|forwarded|date|via|cdn-loop|traceparent|tracestate"
    rb"|content-type|content-encoding|content-range|range|origin|expect|x-forwarded-.*|x-request-id|x-real-ip"
    rb"|x-l7proxy-.*|x-envoy-.*|x-b3-.*|b3)"
)
_CARRIES_HTTP = (b"h2c", b"h2", b"h3", b"http", b"tls")


class Malformed(ProxyError):
    """Bytes that are not one HTTP message beyond doubt; `reason` is the label of the counter."""

    def __init__(self, reason: str, code: str = "bad_request") -> None:
        super().__init__(code, reason)
        self.reason = reason


class Limits(Struct, frozen=True):
    """Sizes in bytes and counts above which a head is refused."""

    target: int = 8 * 1024
    head: int = 60 * 1024
    header: int = 16 * 1024
    headers: int = 100
    chunk_extension: int = 256


class Head(Struct):
    """What the header fields say of the message that they head.

    `headers` are the end-to-end fields. `length` is the number of body bytes, CHUNKED, or None when nothing says it.
    `host` is the one Host value; `connection` the tokens of Connection; `upgrade` is lower case; `idle` the seconds of
    `Keep-Alive: timeout`.
    """

    minor: int
    headers: Headers = []
    length: int | None = None
    host: bytes | None = None
    connection: tuple[bytes, ...] = ()
    upgrade: bytes | None = None
    expect: bytes | None = None
    te_trailers: bool = False
    idle: float | None = None


_lines: dict[bytes, tuple[bytes, bytes]] = {}
"""Field lines that were seen, parsed: most lines repeat, and a look-up costs a third of parsing one."""

_MAX_LINES = 4096
_MAX_LINE = 128
_hosts: set[bytes] = set()
_connections: dict[bytes, tuple[bytes, ...]] = {b"keep-alive": (), b"close": (b"close",), b"": ()}


def interpret(head: Head, block: bytes, limits: Limits) -> None:
    """Reads the field lines of a head (without the final CRLF): splits off what is hop-by-hop and decides the framing.

    `block` matches FIELDS. Raises Malformed.
    """
    headers = head.headers
    special: Headers | None = None
    lines = block.split(b"\r\n")
    if len(block) > limits.header and max(map(len, lines)) > limits.header:
        raise Malformed("header_too_large", "headers_too_large")
    # The block ends with CRLF, so the split ends with one empty piece.
    lines.pop()
    if len(lines) > limits.headers:
        raise Malformed("too_many_headers", "headers_too_large")
    known = _lines.get
    for line in lines:
        pair = known(line) or _read(line)
        if pair[0] in SPECIAL:
            if special is None:
                special = [pair]
            else:
                special.append(pair)
        else:
            headers.append(pair)
    if special is not None:
        _shape(head, special)


def _read(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    pair = (name.lower(), value.strip(b" \t"))
    if len(line) <= _MAX_LINE:
        # Peers choose what is in here: forgetting all of it now and then is what bounds the memory.
        if len(_lines) >= _MAX_LINES:
            _lines.clear()
        _lines[line] = pair
    return pair


def _shape(head: Head, special: Headers) -> None:
    length: bytes | None = None
    coding: bytes | None = None
    named: tuple[bytes, ...] = ()
    for name, value in special:
        if name == b"host":
            if head.host is not None:
                raise Malformed("two_hosts")
            head.host = value
        elif name == b"content-length":
            # RFC 9110 8.6 lets a recipient merge identical ones; two parsers that disagree are not worth it.
            if length is not None:
                raise Malformed("two_content_lengths")
            length = value
        elif name == b"connection":
            # Keep-alive is what HTTP/1.1 does anyway; in HTTP/1.0 it has to be said.
            found = _connections.get(value) if head.minor else None
            named += tuple(tokens(value)) if found is None else found
        elif name == b"transfer-encoding":
            coding = value if coding is None else coding + b"," + value
        elif name == b"upgrade":
            head.upgrade = value.lower() if head.upgrade is None else head.upgrade + b"," + value.lower()
        elif name == b"expect":
            head.expect = value.lower() if head.expect is None else head.expect + b"," + value.lower()
        elif name == b"te":
            head.te_trailers = head.te_trailers or b"trailers" in tokens(value)
        elif name == b"keep-alive":
            head.idle = _keep_alive(value)
    if coding is not None:
        if length is not None:
            raise Malformed("content_length_and_transfer_encoding")
        if head.minor == 0:
            raise Malformed("transfer_encoding_in_http_1_0")
        if coding.lower() != b"chunked":
            # RFC 9112 6.1: an unknown coding gets 501; a chunked that is not last, or twice, is malformed.
            known = [token.split(b";")[0].strip() for token in coding.lower().split(b",")]
            unknown = b"chunked" not in known and all(re.fullmatch(TOKEN + b"+", token) for token in known)
            raise Malformed("transfer_encoding", "not_implemented" if unknown else "bad_request")
        head.length = CHUNKED
    elif length is not None:
        if not length.isdigit() or len(length) > 19 or int(length) >= 1 << 63:
            raise Malformed("content_length")
        head.length = int(length)
        head.headers.append((b"content-length", length))
    if named:
        head.connection = named
        if not _OPTIONS.issuperset(named):
            head.headers = without_named(head.headers, named)


def without_named(headers: Headers, named: Iterable[bytes]) -> Headers:
    """Returns the fields less those that Connection names, but for what the app relies on (RFC 9110 7.6.1)."""
    gone = {token for token in set(named) - _OPTIONS if not _KEPT.fullmatch(token)}
    return [pair for pair in headers if pair[0] not in gone] if gone else headers


def offered(upgrade: bytes) -> bytes | None:
    """Returns the protocols of an Upgrade list (lower case) that may be switched to, or None if there are none.

    What carries HTTP itself may not: its requests would pass by every policy. RFC 9113 3.1 ended `h2c` anyhow.
    """
    protocols = tokens(upgrade)
    return b", ".join(name for name in protocols if name.partition(b"/")[0] not in _CARRIES_HTTP) or None


def _keep_alive(value: bytes) -> float | None:
    for token in tokens(value):
        key, _, seconds = token.partition(b"=")
        if key == b"timeout" and seconds.isdigit() and len(seconds) < 7:
            return float(seconds)
    return None


def check_host(host: bytes) -> None:
    """Raises Malformed unless `host` is a reg-name, IPv4 or bracketed IPv6 address with an optional port."""
    if host in _hosts:
        return
    match = _HOST.fullmatch(host)
    if match is None or (match[1] and int(match[1]) > 65535):
        raise Malformed("host")
    if len(_hosts) >= _MAX_LINES:
        _hosts.clear()
    _hosts.add(host)


def has_port(authority: bytes) -> bool:
    """Tells whether a valid authority names a port, as that of CONNECT must (RFC 9110 9.3.6)."""
    match = _HOST.fullmatch(authority)
    return match is not None and int(match[1] or 0) > 0


def trailers_of(block: bytes, limits: Limits, request: bool) -> Headers:
    """Reads a trailer section that matches FIELDS, less the fields that may not come in one."""
    if len(block) > limits.head:
        raise Malformed("trailers_too_large", "headers_too_large")
    trailers = []
    for line in block.split(b"\r\n")[:-1]:
        if len(line) > limits.header:
            raise Malformed("header_too_large", "headers_too_large")
        name, _, value = line.partition(b":")
        if may_trail(name := name.lower(), request):
            trailers.append((name, value.strip(b" \t")))
    if len(trailers) > limits.headers:
        raise Malformed("too_many_trailers", "headers_too_large")
    return trailers


def fault_in(head: bytes) -> str | None:
    """Names what is wrong with a complete or partial head whose first line has been read, or returns None.

    Slow: for heads that did not parse, and for partial ones that might wait for bytes that can never mend them.
    """
    if _BARE_CR.search(head):
        return "bare_cr"
    if _BARE_LF.search(head):
        return "bare_lf"
    if _CONTROL.search(head):
        return "control_character"
    return None


def fault_in_fields(block: bytes) -> str:
    """Names what is wrong with field lines that do not match FIELDS."""
    for index, line in enumerate(block.split(b"\r\n")):
        if line[:1] in (b" ", b"\t"):
            return "obs_fold" if index else "blank_before_header"
        if line and not _FIELD_LINE.fullmatch(line):
            name, colon, _ = line.partition(b":")
            if not colon:
                return "header_without_colon"
            return "blank_before_colon" if name.rstrip(b" \t") != name else "header_name"
    return "header_name"
