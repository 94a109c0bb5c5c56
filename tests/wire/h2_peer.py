"""What the HTTP/2 tests say on the wire: frames built by hand, so that they can be wrong."""

from collections.abc import Iterator

import hpack

from l7proxy.wire.h2_frames import HEADER, PREFACE, SETTING, WORD

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x4, 0x8, 0x20

Fields = list[tuple[bytes, bytes]]

GET: Fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.test"), (b":path", b"/")]
POST: Fields = [(b":method", b"POST"), *GET[1:]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(len(payload) << 8 | kind, flags, stream) + payload


def block(fields: Fields) -> bytes:
    """A header block that leaves the tables alone, so that blocks can be sent in any order and dropped."""
    out = bytearray()
    for name, value in fields:
        out += b"\x00"
        for text in (name, value):
            size = len(text)
            out += bytes((size,)) if size < 127 else b"\x7f" + varint(size - 127)
            out += text
    return bytes(out)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def headers(stream: int, fields: Fields, end: bool = True) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block(fields))


def data(stream: int, payload: bytes, end: bool = False) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, payload)


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*pair) for pair in pairs))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, WORD.pack(increment))


def rst_stream(stream: int, code: int = 8) -> bytes:
    return frame(RST_STREAM, 0, stream, WORD.pack(code))


HELLO = PREFACE + settings()


def frames(raw: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Splits what was sent into (kind, flags, stream, payload)."""
    at = 0
    while at < len(raw):
        word, flags, stream = HEADER.unpack_from(raw, at)
        size = word >> 8
        yield word & 0xFF, flags, stream, raw[at + 9 : at + 9 + size]
        at += 9 + size


class Reader:
    """Reads what a server sent: the goaway code, the resets, the responses."""

    def __init__(self, raw: bytes = b"") -> None:
        self.decoder = hpack.Decoder()
        self.goaway: tuple[int, int, bytes] | None = None
        self.goaways: list[tuple[int, int, bytes]] = []
        self.resets: dict[int, int] = {}
        self.heads: dict[int, list[dict[str, str]]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.kinds: list[int] = []
        self.settings: dict[int, int] = {}
        self.pongs: list[bytes] = []
        self.increments: dict[int, int] = {}
        self._tail = b""
        self.feed(raw)

    def feed(self, raw: bytes) -> None:
        raw = self._tail + raw
        whole = 0
        while len(raw) - whole >= 9:
            size = int.from_bytes(raw[whole : whole + 3], "big")
            if whole + 9 + size > len(raw):
                break
            whole += 9 + size
        self._tail = raw[whole:]
        for kind, flags, stream, payload in frames(raw[:whole]):
            self.kinds.append(kind)
            if kind == GOAWAY:
                last, code = int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big")
                self.goaway = (last, code, payload[8:])
                self.goaways.append(self.goaway)
            elif kind == RST_STREAM:
                self.resets[stream] = int.from_bytes(payload, "big")
            elif kind == HEADERS:
                fields = self.decoder.decode(payload)
                self.heads.setdefault(stream, []).append({str(name): str(value) for name, value in fields})
            elif kind == DATA:
                self.bodies[stream] = self.bodies.get(stream, b"") + payload
            elif kind == SETTINGS and not flags & 1:
                self.settings.update(SETTING.iter_unpack(payload))
            elif kind == PING and flags & 1:
                self.pongs.append(payload)
            elif kind == WINDOW_UPDATE:
                self.increments[stream] = self.increments.get(stream, 0) + int.from_bytes(payload, "big")
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                self.ended.add(stream)
