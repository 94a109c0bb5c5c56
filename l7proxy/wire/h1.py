"""HTTP/1.1 as a sans-IO codec: `RequestReader` for what clients send, `ResponseReader` for what upstreams answer.

A reader is fed bytes and asked for the next event: a head, body bytes, or END. The grammar is one regular expression
for each kind of head; heads that do not match it are diagnosed apart, off the fast path. See RFC 9112.
"""

import re
from copy import copy
from enum import Enum
from http import HTTPStatus
from operator import itemgetter
from typing import Any, Final, cast

from l7proxy.core.headers import Headers
from l7proxy.wire.framing import (
    CHUNKED,
    FIELDS,
    TOKEN,
    UNTIL_CLOSE,
    Head,
    Limits,
    Malformed,
    check_host,
    fault_in,
    fault_in_fields,
    has_port,
    interpret,
    offered,
    trailers_of,
)

# Neither a backslash nor a fragment: the latter is the client's own business (RFC 9112 3.2), and some apps cut there.
_TARGET = rb"([!\"$-\[\]-~]+)"
_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb"{1,32}) " + _TARGET + rb" HTTP/1\.([01])\r\n")
_RESPONSE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]*)?\r\n" + FIELDS)
_SECTION = re.compile(FIELDS)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})(;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
# Chunks of 1 to 15 bytes are read in runs, at a quarter of what they cost one by one.
_TINY = b"|".join(b"[%x%X]\r\n.{%d}\r\n" % (size, size, size) for size in range(1, 16))
_TINY_CHUNK = re.compile(_TINY, re.DOTALL)
_TINY_CHUNKS = re.compile(b"(?:%b)+" % _TINY, re.DOTALL)
_TINY_DATA = itemgetter(slice(3, -2))
_TINY_RUN = 1024
"""Bytes of one run, so that a budget is not exceeded by much."""
_MAX_CHUNKS = 512
"""Chunks that are read in one turn of the event loop, give or take a run."""
_SCHEME = re.compile(rb"(https?)://([^/?#@]*)([/?].*)?", re.IGNORECASE | re.DOTALL)
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")
_EMPTY_STARTS = (b"\r", b"")
_EMPTY_LINES = re.compile(rb"(?:\r\n)++")


class End(Enum):
    """The event after the last body byte."""

    END = "end"


END: Final = End.END


class RequestHead(Head):
    """The head of one request.

    `target` is in origin form (`*` and CONNECT's authority as they came). `size` is the number of body bytes or
    CHUNKED. `headers` are the end-to-end fields without Host, which is `authority`. `upgrade` is None unless Connection
    names it (RFC 9110 7.8); h2c is left out of it (RFC 9113 3.1).
    """

    method: bytes = b""
    target: bytes = b""
    authority: bytes = b""
    size: int = 0
    keep_alive: bool = True

    @property
    def expects_continue(self) -> bool:
        return self.expect is not None and self.minor == 1


class ResponseHead(Head):
    """The head of one response; `size` is the number of body bytes, CHUNKED or UNTIL_CLOSE."""

    status: int = 0
    size: int = 0
    keep_alive: bool = True


class _Reader:
    """The bytes that are there, and where in a body they are."""

    def __init__(self, limits: Limits, request: bool) -> None:
        self.limits = limits
        self._request = request
        self._buffer = b""
        self._at = 0
        """Where in the buffer the bytes begin that were not made into events yet."""
        self._remaining = 0
        self._chunked = False
        self._chunk_line = False
        self._chunk_end = False
        self.over_budget = False
        """Whether `body` stopped before the end of the buffer: it may be called again in another turn of the loop."""
        self.trailers: Headers | None = None
        self._seen = 0
        """Bytes of an incomplete section that were looked at, so that one in single bytes costs linear time."""

    def feed(self, data: bytes) -> None:
        """Adds bytes that arrived."""
        self._buffer = self._buffer[self._at :] + data if self._buffer else data
        self._at = 0

    @property
    def buffered(self) -> int:
        """Bytes that were fed and not yet made into events."""
        return len(self._buffer) - self._at

    def take_rest(self) -> bytes:
        """Gives up all buffered bytes, as the first of a tunnel."""
        rest = self._rest()
        self._advance(len(self._buffer))
        return rest

    def _rest(self) -> bytes:
        """Returns the bytes that were not made into events yet."""
        return self._buffer[self._at :] if self._at else self._buffer

    def _advance(self, at: int) -> None:
        """Moves on to `at`, and lets go of a buffer that is used up."""
        if at < len(self._buffer):
            self._at = at
        else:
            self._buffer = b""
            self._at = 0

    def _still_open(self) -> bool:
        """Tells whether a section that was incomplete at the last look certainly still is."""
        return self._buffer.find(b"\r\n\r\n", self._at + max(self._seen - 3, 0)) < 0

    def _check_new(self, section: bytes) -> None:
        """Raises for bytes that no head holds, among those that came since the last look."""
        start = self._seen
        self._seen = len(section)
        if start and section[start - 1] == 13:
            # A CR was the last byte: whether it is a bare one shows now.
            start -= 1
        if fault := fault_in(section[start:]):
            raise Malformed(fault)

    def _begin_body(self, size: int) -> None:
        self._chunked = self._chunk_line = size == CHUNKED
        self._chunk_end = False
        self._remaining = 0 if size == CHUNKED else size
        self.trailers = None

    def whole(self) -> bytes | None:
        """Returns the body and passes its end when all of it is there and its length was said, else None."""
        size = self._remaining
        at = self._at
        end = at + size
        buffer = self._buffer
        if size <= 0 or len(buffer) < end:
            return None
        self._remaining = 0
        self._advance(end)
        return buffer if not at and len(buffer) == end else buffer[at:end]

    def body(self) -> bytes | End | None:
        """Returns the next body bytes, END after the last, or None when more bytes must be fed. Raises Malformed."""
        if self._chunked:
            return self._chunks()
        remaining = self._remaining
        if remaining == 0:
            return END
        data = self._rest()
        if not data:
            return None
        if remaining == UNTIL_CLOSE:
            self._advance(len(self._buffer))
            return data
        if len(data) > remaining:
            data = data[:remaining]
        self._advance(self._at + len(data))
        self._remaining = remaining - len(data)
        return data

    def _chunks(self) -> bytes | End | None:
        """Takes the chunk data that is there (RFC 9112 7.1), up to a number of chunks: tiny ones cost as much as big.

        What is left then waits for another turn of the event loop, for which others wait too (`over_budget`).
        """
        buffer = self._buffer
        at = self._at
        self.over_budget = False
        parts: list[bytes] = []
        try:
            while True:
                if self._remaining:
                    part = buffer[at : at + self._remaining]
                    if not part:
                        break
                    parts.append(part)
                    at += len(part)
                    self._remaining -= len(part)
                    if self._remaining:
                        break
                    self._chunk_end = True
                if self._chunk_end:
                    crlf = buffer[at : at + 2]
                    if crlf != b"\r\n":
                        if b"\r\n".startswith(crlf):
                            break
                        raise Malformed("chunk_data")
                    at += 2
                    self._chunk_end = False
                    self._chunk_line = True
                if self._chunk_line:
                    if len(parts) >= _MAX_CHUNKS:
                        self.over_budget = at < len(buffer)
                        break
                    if run := _TINY_CHUNKS.match(buffer, at, at + _TINY_RUN):
                        parts += map(_TINY_DATA, _TINY_CHUNK.findall(buffer, at, run.end()))
                        at = run.end()
                        continue
                    match = _CHUNK.match(buffer, at)
                    if match is None:
                        self._check_partial_chunk_line(buffer, at)
                        break
                    if match[2] is not None and len(match[2]) > self.limits.chunk_extension:
                        raise Malformed("chunk_extension")
                    at = match.end()
                    self._remaining = int(match[1], 16)
                    self._chunk_line = False
                    if self._remaining:
                        continue
                # The last chunk has been read: what follows is the trailer section.
                if parts:
                    break
                self._at = at
                if self._seen and self._still_open() and not buffer.startswith(b"\r\n", at):
                    match = None
                else:
                    match = _SECTION.match(buffer, at)
                if match is None:
                    self._check_partial_trailers(buffer[at:])
                    break
                self._seen = 0
                at = match.end()
                self.trailers = trailers_of(match[1], self.limits, self._request) if match[1] else None
                return END
        finally:
            self._advance(at)
        if parts:
            return parts[0] if len(parts) == 1 else b"".join(parts)
        return None

    def _check_partial_chunk_line(self, buffer: bytes, at: int) -> None:
        line = buffer[at : at + self.limits.chunk_extension + 19]
        size, semicolon, extension = line.partition(b";")
        if semicolon:
            if b"\n" in extension or re.search(rb"[\x00-\x08\x0a-\x0c\x0e-\x1f\x7f]|\r(?!\Z)", extension):
                raise Malformed("chunk_extension")
            if len(extension) > self.limits.chunk_extension:
                raise Malformed("chunk_extension")
            whole = size
        else:
            whole = size.removesuffix(b"\r")
        if not re.fullmatch(rb"[0-9A-Fa-f]{0,16}", whole) or (size != whole and not whole) or (semicolon and not whole):
            raise Malformed("chunk_size")

    def _check_partial_trailers(self, section: bytes) -> None:
        if len(section) > self.limits.head:
            raise Malformed("trailers_too_large", "headers_too_large")
        self._check_new(section)
        if b"\r\n\r\n" in section or section.startswith((b" ", b"\t")):
            raise Malformed(fault_in_fields(section.partition(b"\r\n\r\n")[0]))


class RequestReader(_Reader):
    """Reads the requests of one connection, one after the other.

    `_fields` are the header lines of the last head, and `_repeated` what they mean once they have come twice in a row:
    a client mostly sends the same lines with each request, and to compare them costs a tenth of parsing.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits, True)
        self.head_size = 0
        """Bytes of the last head."""
        self._fields = b""
        self._repeated: RequestHead | None = None

    def head(self) -> RequestHead | None:
        """Returns the next head, or None when more bytes must be fed. Raises Malformed, after which all is lost."""
        buffer = self._buffer
        at = self._at
        # RFC 9112 2.2: empty lines before the request line are ignored, in however many pieces they come.
        if buffer[at : at + 1] in _EMPTY_STARTS:
            if empty := _EMPTY_LINES.match(buffer, at):
                self._advance(empty.end())
                buffer, at = self._buffer, self._at
            if not buffer or buffer[at:] == b"\r":
                return None
        limits = self.limits
        line = None if self._seen and self._still_open() else _REQUEST_LINE.match(buffer, at)
        if line is None:
            self._refuse_or_wait(self._rest())
            return None
        method, target, minor = line.groups()
        if len(target) > limits.target:
            raise Malformed("target_too_long", "uri_too_long")
        start = line.end()
        repeated = self._repeated
        if (
            repeated is not None
            and buffer.startswith(self._fields, start)
            and target[0] == 47  # "/"
            and method != b"CONNECT"
            and minor == b"1"
            and (end := start + len(self._fields)) - at <= limits.head
        ):
            head: RequestHead = cast(Any, repeated).__copy__()
            head.headers = repeated.headers.copy()
        else:
            fields = _SECTION.match(buffer, start)
            if fields is None or (end := fields.end()) - at > limits.head:
                self._refuse_or_wait(self._rest())
                return None
            head = self._interpret(fields[1], method, target, 1 if minor == b"1" else 0)
        self._seen = 0
        self._advance(end)
        self.head_size = end - at
        head.method = method
        if target[0] == 47:
            head.target = target
        if head.size:
            self._begin_body(head.size)
        return head

    def _interpret(self, block: bytes, method: bytes, target: bytes, minor: int) -> RequestHead:
        """Returns what the fields of a head say, and keeps it where the same ones may come again. Raises Malformed."""
        head = RequestHead(minor, [])
        interpret(head, block, self.limits)
        authority = head.host
        plain = target[0] == 47 and method != b"CONNECT"
        if not plain:
            head.target, authority = _other_form(method, target, authority, minor)
        elif authority is None:
            if minor:
                raise Malformed("no_host")
            authority = b""
        else:
            check_host(authority)
        head.authority = authority
        connection = head.connection
        if connection or not minor:
            head.keep_alive = b"close" not in connection and (minor == 1 or b"keep-alive" in connection)
        if head.upgrade is not None:
            fits = minor and not head.length and b"upgrade" in connection
            head.upgrade = offered(head.upgrade) if fits else None
        if head.te_trailers:
            head.headers.append((b"te", b"trailers"))
        if head.expect is not None and head.expect != b"100-continue":
            raise Malformed("expect")
        head.size = head.length or 0
        again, self._fields, self._repeated = self._fields, block + b"\r\n", None
        if plain and minor and self._fields == again and len(block) <= _MAX_KNOWN:
            self._repeated = copy(head)
            self._repeated.headers = head.headers.copy()
        return head

    def _refuse_or_wait(self, buffer: bytes) -> None:
        """Raises for a head that no further byte can mend; returns when it is only incomplete."""
        limits = self.limits
        line, crlf, rest = buffer.partition(b"\r\n")
        if len(line) > limits.target + 64:
            raise Malformed("target_too_long", "uri_too_long")
        if self._seen < len(line) + 2:
            self._check_new(line + crlf)
            parts = line.split(b" ")
            if not re.fullmatch(TOKEN + rb"{1,32}", parts[0]):
                raise Malformed("method")
            if crlf:
                _check_request_line(parts, limits)
        self._check_new(buffer)
        _check_partial_fields(buffer, rest, limits)


def _check_request_line(parts: list[bytes], limits: Limits) -> None:
    if len(parts) != 3:
        raise Malformed("request_line")
    _, target, version = parts
    if not re.fullmatch(_TARGET, target):
        raise Malformed("target")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Malformed("version", "http_version" if _VERSION.fullmatch(version) else "bad_request")
    if len(target) > limits.target:
        raise Malformed("target_too_long", "uri_too_long")


_MAX_HEADS = 64
_MAX_KNOWN = 1024


class ResponseReader(_Reader):
    """Reads the responses on one upstream connection, one after the other.

    `known` holds heads that were read, by their bytes: within one second most answers of a service begin alike, and a
    look-up costs a tenth of parsing. Readers with the same limits may share it.
    """

    def __init__(self, limits: Limits, known: dict[bytes, ResponseHead] | None = None) -> None:
        super().__init__(limits, False)
        self._known = {} if known is None else known

    def head(self, method: bytes) -> ResponseHead | None:
        """Returns the next head (interim ones too), or None when more bytes must be fed.

        `method` is that of the request, since HEAD decides the framing. Raises Malformed with code upstream_protocol.
        """
        buffer = self._buffer
        if not buffer:
            return None
        at = self._at
        end = buffer.find(b"\r\n\r\n", at) + 4
        known = self._known.get(buffer[at:end]) if end - at <= _MAX_KNOWN else None
        if known is not None and method != b"HEAD" and method != b"CONNECT":
            self._advance(end)
            self._seen = 0
            head: ResponseHead = cast(Any, known).__copy__()
            head.headers = known.headers.copy()
            if head.size:
                self._begin_body(head.size)
            return head
        match = None if self._seen and self._still_open() else _RESPONSE.match(buffer, at)
        if match is None or match.end() - at > self.limits.head:
            try:
                self._refuse_or_wait(self._rest())
            except Malformed as error:
                raise Malformed(error.reason, "upstream_protocol") from None
            return None
        self._seen = 0
        minor_digit, status_digits, block = match.groups()
        end = match.end()
        self._advance(end)
        head = ResponseHead(1 if minor_digit == b"1" else 0, [])
        try:
            interpret(head, block, self.limits)
        except Malformed as error:
            raise Malformed(error.reason, "upstream_protocol") from None
        status = head.status = int(status_digits)
        connection = head.connection
        if connection or not head.minor:
            head.keep_alive = b"close" not in connection and (head.minor == 1 or b"keep-alive" in connection)
        # RFC 9112 6.3, items 1, 2, 4, 6 and 8.
        if method == b"HEAD" or status < 200 or status in (204, 304) or (method == b"CONNECT" and status < 300):
            size = 0
        elif head.length is None:
            size = UNTIL_CLOSE
            head.keep_alive = False
        else:
            size = head.length
        if size:
            head.size = size
            self._begin_body(size)
        if end - at <= _MAX_KNOWN and method != b"HEAD" and method != b"CONNECT":
            if len(self._known) >= _MAX_HEADS:
                self._known.clear()
            kept = copy(head)
            kept.headers = head.headers.copy()
            self._known[buffer[at:end]] = kept
        return head

    def body(self) -> bytes | End | None:
        try:
            return super().body()
        except Malformed as error:
            raise Malformed(error.reason, "upstream_protocol") from None

    def _refuse_or_wait(self, buffer: bytes) -> None:
        line, crlf, rest = buffer.partition(b"\r\n")
        if self._seen < len(line) + 2:
            self._check_new(line + crlf)
            whole = re.fullmatch(rb"HTTP/1\.[01] [1-5][0-9][0-9](?: .*)?", line) if crlf else True
            if not whole or not b"HTTP/1.".startswith(line[:7]) or len(line) > self.limits.target:
                raise Malformed("status_line")
        self._check_new(buffer)
        _check_partial_fields(buffer, rest, self.limits)


def _check_partial_fields(head: bytes, fields: bytes, limits: Limits) -> None:
    end = head.find(b"\r\n\r\n")
    if (len(head) if end < 0 else end + 4) > limits.head:
        raise Malformed("head_too_large", "headers_too_large")
    if end >= 0 or fields.startswith((b" ", b"\t")):
        raise Malformed(fault_in_fields(fields.partition(b"\r\n\r\n")[0]))


def _other_form(method: bytes, target: bytes, host: bytes | None, minor: int) -> tuple[bytes, bytes]:
    """Returns (origin-form target, authority) of the rarer request targets (RFC 9112 3.2.2 to 3.2.4)."""
    if host is None and minor:
        raise Malformed("no_host")
    if method == b"CONNECT":
        check_host(target)
        if not has_port(target):
            raise Malformed("connect")
        if host is not None and host != target:
            raise Malformed("authority_differs_from_host")
        return target, target
    if target == b"*" and method == b"OPTIONS":
        check_host(host or b"localhost")
        return target, host or b""
    match = _SCHEME.fullmatch(target)
    if match is None:
        raise Malformed("target")
    # RFC 9112 3.2.4: a URI without a path asks for OPTIONS of the server as a whole.
    authority, rest = match[2], match[3] or (b"*" if method == b"OPTIONS" else b"/")
    check_host(authority)
    # RFC 9112 3.2.2 would ignore Host; one that differs is nobody's honest request.
    if host is not None and host.lower() != authority.lower():
        raise Malformed("authority_differs_from_host")
    return (b"/" + rest if rest[:1] == b"?" else rest), authority


_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
STATUS_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b"Unknown")) for status in range(100, 600)
}


_FIELD = b": ".join


def encode_fields(headers: Headers) -> bytes:
    """Returns the field lines of `headers`, each with its CRLF; names and values are those of a checked message."""
    return b"\r\n".join(map(_FIELD, headers)) + b"\r\n" if headers else b""


def encode_chunk(data: bytes) -> bytes:
    """Returns one chunk; `data` is not empty, since an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def encode_last_chunk(trailers: Headers | None) -> bytes:
    """Returns the last chunk with its trailer section."""
    return b"0\r\n%b\r\n" % encode_fields(trailers) if trailers else b"0\r\n\r\n"
