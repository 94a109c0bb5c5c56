"""HPACK (RFC 7541): header fields as one block of bytes, with a table of recent fields kept alike on both sides.

Decoded sizes are counted as they grow, so that no block costs more memory than the limit, however small on the wire.
Strings are sent without Huffman coding, which would save a third of a literal for a microsecond per ten bytes.
"""

from collections import deque

from l7proxy.core.headers import Headers
from l7proxy.wire.h2_huffman import HuffmanError
from l7proxy.wire.h2_huffman import decode as decode_huffman

DEFAULT_TABLE_SIZE = 4096
ENTRY_OVERHEAD = 32

Field = tuple[bytes, bytes]

# RFC 7541 Appendix A; index 1 is the first.
STATIC: tuple[Field, ...] = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
)
_FIRST = len(STATIC) + 1
_STATIC_FIELDS = {field: index for index, field in reversed(list(enumerate(STATIC, 1)))}
_STATIC_NAMES = {name: index for index, (name, _) in reversed(list(enumerate(STATIC, 1)))}

# Values that differ from message to message would only push out those that do not.
_CHANGING = frozenset(
    (b":path", b"age", b"content-length", b"content-range", b"cookie", b"date", b"etag", b"expires", b"grpc-timeout")
    + (b"if-match", b"if-modified-since", b"if-none-match", b"last-modified", b"location", b"range", b"set-cookie")
    + (b"b3", b"traceparent", b"tracestate", b"x-b3-spanid", b"x-b3-traceid", b"x-request-id", b"x-l7proxy-error")
)
# RFC 7541 7.1.3: what an attacker could guess by watching sizes stays out of every table on the way.
_SECRET = frozenset((b"authorization", b"proxy-authorization"))


class NeverIndexed(bytes):
    """A value that came as a never-indexed literal and must go on as one (RFC 7541 6.2.3)."""

    __slots__ = ()


class HpackError(ValueError):
    """A header block that cannot be decoded: the connection's table is lost with it."""


class HpackBomb(HpackError):
    """A header block that decodes to several times the limit."""


class Decoder:
    """The decoding half of one connection."""

    __slots__ = ("_fields", "_sizes", "_size", "_capacity", "_maximum", "inserted")

    def __init__(self, table_size: int = DEFAULT_TABLE_SIZE) -> None:
        # One list holds the static table and behind it the dynamic one, newest first: an index is one look-up.
        self._fields: list[Field] = [(b"", b""), *STATIC]
        self._sizes = [ENTRY_OVERHEAD + len(name) + len(value) for name, value in self._fields]
        self._size = 0
        self._capacity = self._maximum = table_size
        self.inserted = 0
        """Changes whenever the table does."""

    def decode(self, block: bytes, limit: int) -> tuple[list[Field], int]:
        """Returns the fields and their size as RFC 9113 6.5.2 counts it.

        Fields past `limit` are read and dropped, so that the table stays in step, until the size is four times `limit`:
        then raises HpackBomb. Raises HpackError.
        """
        out: list[Field] = []
        append = out.append
        fields = self._fields
        sizes = self._sizes
        total = at = 0
        end = len(block)
        try:
            while at < end:
                byte = block[at]
                at += 1
                if byte >= 0x80:
                    index = byte & 0x7F
                    if index == 0x7F:
                        index, at = _integer(block, at, 0x7F)
                    if not index:
                        raise HpackError("index 0")
                    total += sizes[index]
                    if total <= limit:
                        append(fields[index])
                    elif total > 4 * limit:
                        raise HpackBomb("header list too large")
                    continue
                if byte >= 0x40:
                    index = byte & 0x3F
                    if index == 0x3F:
                        index, at = _integer(block, at, 0x3F)
                elif byte >= 0x20:
                    if total:
                        raise HpackError("table size update after a field")
                    size = byte & 0x1F
                    if size == 0x1F:
                        size, at = _integer(block, at, 0x1F)
                    self._resize(size)
                    continue
                else:
                    index = byte & 0x0F
                    if index == 0x0F:
                        index, at = _integer(block, at, 0x0F)
                if index:
                    name = fields[index][0]
                else:
                    name, at = _string(block, at, end)
                value, at = _string(block, at, end)
                size = ENTRY_OVERHEAD + len(name) + len(value)
                total += size
                if byte >= 0x40:
                    field = (name, value)
                    self._insert(field, size)
                elif byte & 0x10:
                    field = (name, NeverIndexed(value))
                else:
                    field = (name, value)
                if total <= limit:
                    append(field)
                elif total > 4 * limit:
                    raise HpackBomb("header list too large")
        except IndexError:
            raise HpackError("truncated, or an index out of range") from None
        except HuffmanError as error:
            raise HpackError(str(error)) from None
        return out, total

    def _insert(self, field: Field, size: int) -> None:
        self.inserted += 1
        self._fields.insert(_FIRST, field)
        self._sizes.insert(_FIRST, size)
        self._size += size
        if self._size > self._capacity:
            self._evict()

    def _resize(self, capacity: int) -> None:
        if capacity > self._maximum:
            raise HpackError("table size over what was granted")
        self.inserted += 1
        self._capacity = capacity
        self._evict()

    def _evict(self) -> None:
        while self._size > self._capacity:
            self._fields.pop()
            self._size -= self._sizes.pop()


def _integer(block: bytes, at: int, value: int) -> tuple[int, int]:
    """Reads the rest of an integer whose prefix was all ones (RFC 7541 5.1), at most four bytes more."""
    for shift in (0, 7, 14, 21):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise HpackError("integer too large")


def _string(block: bytes, at: int, end: int) -> tuple[bytes, int]:
    first = block[at]
    at += 1
    length = first & 0x7F
    if length == 0x7F:
        length, at = _integer(block, at, 0x7F)
    stop = at + length
    if stop > end:
        raise HpackError("string past the end of the block")
    value = block[at:stop]
    return (decode_huffman(value) if first >= 0x80 else value), stop


class Encoder:
    """The encoding half of one connection."""

    __slots__ = ("_index", "_entries", "_size", "_capacity", "_inserted", "_update")

    def __init__(self) -> None:
        self._index: dict[Field, int] = {}
        self._entries: deque[tuple[Field, int]] = deque()
        self._size = 0
        self._capacity = DEFAULT_TABLE_SIZE
        # The running number of the newest entry: its index on the wire is _FIRST, older ones count up from there.
        self._inserted = 0
        self._update: list[int] = []

    def resize(self, granted: int) -> None:
        """Takes the peer's SETTINGS_HEADER_TABLE_SIZE; more than the default is not used."""
        capacity = min(granted, DEFAULT_TABLE_SIZE)
        if capacity != self._capacity or self._update:
            # RFC 7541 4.2: the smallest size in between must be signalled too, before the final one.
            smallest = min(self._update[0], capacity) if self._update else capacity
            self._update = [smallest, capacity] if smallest < capacity else [capacity]
            self._capacity = capacity
            while self._size > smallest:
                self._evict()

    def encode(self, fields: Headers) -> bytes:
        """Returns the header block for lower-case fields, pseudo-header fields first."""
        out = bytearray()
        if self._update:
            for size in self._update:
                _put_integer(out, 0x20, 0x1F, size)
            self._update = []
        index = self._index
        for field in fields:
            name, value = field
            if type(value) is NeverIndexed:
                _put_literal(out, 0x10, 0x0F, name, value)
                continue
            number = index.get(field)
            if number is not None:
                position = _FIRST + self._inserted - number
                if position < 0x7F:
                    out.append(0x80 | position)
                else:
                    _put_integer(out, 0x80, 0x7F, position)
                continue
            static = _STATIC_FIELDS.get(field)
            if static is not None:
                out.append(0x80 | static)
                continue
            if name in _SECRET:
                _put_literal(out, 0x10, 0x0F, name, value)
                continue
            size = ENTRY_OVERHEAD + len(name) + len(value)
            if name in _CHANGING or size > self._capacity >> 2:
                _put_literal(out, 0x00, 0x0F, name, value)
            else:
                _put_literal(out, 0x40, 0x3F, name, value)
                self._insert(field, size)
        return bytes(out)

    def _insert(self, field: Field, size: int) -> None:
        self._inserted += 1
        self._index[field] = self._inserted
        self._entries.append((field, size))
        self._size += size
        while self._size > self._capacity:
            self._evict()

    def _evict(self) -> None:
        field, size = self._entries.popleft()
        self._size -= size
        del self._index[field]


def _put_integer(out: bytearray, pattern: int, maximum: int, value: int) -> None:
    if value < maximum:
        out.append(pattern | value)
        return
    out.append(pattern | maximum)
    value -= maximum
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _put_literal(out: bytearray, pattern: int, maximum: int, name: bytes, value: bytes) -> None:
    index = _STATIC_NAMES.get(name)
    if index is not None:
        _put_integer(out, pattern, maximum, index)
    else:
        out.append(pattern)
        _put_integer(out, 0x00, 0x7F, len(name))
        out += name
    _put_integer(out, 0x00, 0x7F, len(value))
    out += value
