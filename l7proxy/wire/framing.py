"""Which bytes are one HTTP/1.1 message: the header grammar and the only Content-Length / Transfer-Encoding decision.

Everything that two parsers could read differently is refused, for requests and for responses alike. Each refusal
carries a reason, which is the label of a counter.
"""

import re

from msgspec import Struct

from l7proxy.core.errors import ProxyError
from l7proxy.core.headers import Headers, tokens

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
_LENGTH = re.compile(rb"[0-9]{1,19}")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{0,5}))?")
# Fields that shape or name the message: `interpret` reads them, and they never go on as they came.
_SPECIAL = frozenset(
    (
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# What a peer may not strip by naming it in Connection: the app relies on it.
_KEPT = re.compile(
    rb"(?:host|content-length|transfer-encoding|authorization|cookie|set-cookie|forwarded|date|via|traceparent|tracestate"
    rb"|content-type|content-encoding|content-range|range|origin|expect|x-forwarded-.*|x-request-id|x-real-ip"
    rb"|x-l7proxy-.*|x-envoy-.*|x-b3-.*|b3)"
)
FORBIDDEN_TRAILERS = frozenset(
    (b"authorization", b"content-encoding", b"content-length", b"content-range", b"content-type", b"host", b"te")
    + (b"transfer-encoding", b"connection", b"trailer", b"upgrade", b"cookie", b"set-cookie", b"forwarded")
    + (b"x-forwarded-for", b"x-forwarded-client-cert", b"cache-control", b"expect", b"max-forwards", b"range")
)


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


class Framing(Struct):
    """What the header fields say of the message that they head.

    `headers` are the end-to-end fields. `length` is the number of body bytes, CHUNKED, or None when nothing says it.
    `host` is the one Host value; `connection` the tokens of Connection; `idle` the seconds of `Keep-Alive: timeout`.
    """

    headers: Headers
    length: int | None = None
    host: bytes | None = None
    connection: list[bytes] = []
    upgrade: bytes | None = None
    expect: bytes | None = None
    te_trailers: bool = False
    idle: float | None = None


def interpret(block: bytes, minor: int, limits: Limits) -> Framing:
    """Reads the field lines of a head (without the final CRLF): splits off what is hop-by-hop and decides the framing.

    `block` matches FIELDS. `minor` is the HTTP/1 minor version. Raises Malformed.
    """
    headers: Headers = []
    special: Headers | None = None
    if len(block) > limits.header:
        for line in block.split(b"\r\n"):
            if len(line) > limits.header:
                raise Malformed("header_too_large", "headers_too_large")
    for line in block.split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _SPECIAL:
            if special is None:
                special = []
            special.append((name, value.strip(b" \t")))
        else:
            headers.append((name, value.strip(b" \t")))
    if headers:
        # The block ends with CRLF, so the split ends with one empty piece.
        headers.pop() if headers[-1][0] == b"" else None
    framing = Framing(headers)
    if special is not None:
        if len(headers) + len(special) > limits.headers:
            raise Malformed("too_many_headers", "headers_too_large")
        _shape(framing, special, minor)
    elif len(headers) > limits.headers:
        raise Malformed("too_many_headers", "headers_too_large")
    return framing


def _shape(framing: Framing, special: Headers, minor: int) -> None:
    length: bytes | None = None
    coding: bytes | None = None
    for name, value in special:
        if name == b"host":
            if framing.host is not None:
                raise Malformed("two_hosts")
            framing.host = value
        elif name == b"content-length":
            # RFC 9110 8.6 lets a recipient merge identical ones; two parsers that disagree are not worth it.
            if length is not None:
                raise Malformed("two_content_lengths")
            length = value
        elif name == b"transfer-encoding":
            coding = value if coding is None else coding + b"," + value
        elif name == b"connection":
            framing.connection = framing.connection + tokens(value)
        elif name == b"upgrade":
            framing.upgrade = value.lower()
        elif name == b"expect":
            framing.expect = value.lower()
        elif name == b"te":
            framing.te_trailers = framing.te_trailers or b"trailers" in tokens(value)
        elif name == b"keep-alive":
            framing.idle = _keep_alive(value)
    if coding is not None:
        if length is not None:
            raise Malformed("content_length_and_transfer_encoding")
        if minor == 0:
            raise Malformed("transfer_encoding_in_http_1_0")
        if coding.lower() != b"chunked":
            # RFC 9112 6.1: an unknown coding gets 501; a chunked that is not last, or twice, is malformed.
            known = [token.split(b";")[0].strip() for token in coding.lower().split(b",")]
            unknown = b"chunked" not in known and all(re.fullmatch(TOKEN + b"+", token) for token in known)
            raise Malformed("transfer_encoding", "not_implemented" if unknown else "bad_request")
        framing.length = CHUNKED
    elif length is not None:
        if not _LENGTH.fullmatch(length) or int(length) >= 1 << 63:
            raise Malformed("content_length")
        framing.length = int(length)
        framing.headers.append((b"content-length", length))
    for token in framing.connection:
        if token not in (b"close", b"keep-alive", b"upgrade", b"te") and not _KEPT.fullmatch(token):
            framing.headers[:] = [pair for pair in framing.headers if pair[0] != token]


def _keep_alive(value: bytes) -> float | None:
    for token in tokens(value):
        key, _, seconds = token.partition(b"=")
        if key == b"timeout" and seconds.isdigit() and len(seconds) < 7:
            return float(seconds)
    return None


def check_host(host: bytes) -> None:
    """Raises Malformed unless `host` is a reg-name, IPv4 or bracketed IPv6 address with an optional port."""
    match = _HOST.fullmatch(host)
    if match is None or (match[1] and int(match[1]) > 65535):
        raise Malformed("host")


def trailers_of(block: bytes, limits: Limits) -> Headers:
    """Reads a trailer section that matches FIELDS, less the fields that may not come in one (RFC 9110 6.5.1)."""
    if len(block) > limits.head:
        raise Malformed("trailers_too_large", "headers_too_large")
    trailers = []
    for line in block.split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        if (name := name.lower()) not in FORBIDDEN_TRAILERS:
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
