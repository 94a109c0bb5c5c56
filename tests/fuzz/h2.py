"""Mutated HTTP/2 connections for the session of `l7proxy.wire.h2`, in both roles.

What must hold for any bytes: nothing is raised; any split of the bytes gives the same events and the same output; what
is kept and what is said are bounded by what came; a request that is accepted is one HTTP/1.1 request too, and no other;
a header block reads as it does in `hpack`, an independent decoder, or is refused.
"""

import random
import time
from collections.abc import Sequence

import hpack

from l7proxy.wire.framing import Limits as H1Limits
from l7proxy.wire.h1 import RequestReader
from l7proxy.wire.h2 import Session
from l7proxy.wire.h2_events import Data, Event, RequestHead, ResponseHead, Trailers
from l7proxy.wire.h2_fields import RequestFields
from l7proxy.wire.h2_frames import HEADER, PREFACE
from l7proxy.wire.h2_hpack import Decoder, HpackError
from l7proxy.wire.h2_limits import H2Limits
from tests.wire.h2_peer import (
    CONTINUATION,
    GET,
    HEADERS,
    PING,
    POST,
    PRIORITY,
    Fields,
    block,
    data,
    frame,
    headers,
    rst_stream,
    settings,
    window_update,
)

LIMITS = H2Limits(streams=8)
H1_LIMITS = H1Limits(head=1 << 20, header=1 << 20, headers=10_000, target=1 << 20)

_HEADS: tuple[Fields, ...] = (
    GET,
    POST,
    [*GET, (b"accept", b"*/*"), (b"x-a", b"1"), (b"x-a", b"2")],
    [*POST, (b"content-length", b"5")],
    [*POST, (b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"grpc-timeout", b"1S")],
    [*GET, (b"cookie", b"a=1"), (b"cookie", b"b=2")],
    [(b":method", b"CONNECT"), (b":authority", b"a.test:443")],
    [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]],
    [(b":method", b"OPTIONS"), *GET[1:3], (b":path", b"*")],
    [GET[0], GET[1], GET[3], (b"host", b"b.test")],
)
_ANSWERS: tuple[Fields, ...] = (
    [(b":status", b"200"), (b"content-type", b"text/plain")],
    [(b":status", b"200"), (b"content-length", b"5")],
    [(b":status", b"103"), (b"link", b"</a>")],
    [(b":status", b"204")],
)
TOKENS: tuple[bytes, ...] = (
    *(
        b"\0",
        b"\r\n",
        b" ",
        b":",
        b"\xff",
        b"\x80",
        b"\x3f\xe1\x1f",
        b"\x20",
        b"\x82\x86\x84",
        b"\xbe",
        b"\x7f\xff\x0f",
    ),
    *(b"transfer-encoding", b"content-length", b"connection", b":path", b":method", b"chunked", b"GET / HTTP/1.1\r\n"),
    *(b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x01", b"\x00\x00\x00\x04\x01\x00\x00\x00\x00", PREFACE),
    *(b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678", b"\x00\x00\x00\x00\x00\x00\x00\x00\x01", b"a" * 300),
)


def script(rng: random.Random, client: bool) -> list[bytes]:
    """Returns the frames of one plausible connection."""
    out = [settings((4, rng.choice((0, 100, 65_535))))]
    stream = 1
    for _ in range(rng.randint(1, 8)):
        open_stream = rng.choice((stream, max(stream - 2, 1)))
        fields = rng.choice(_ANSWERS if client else _HEADS)
        if rng.random() < 0.4:
            fields = _strange(rng, fields)
        kind = rng.randrange(10)
        if kind < 4:
            end = rng.random() < 0.5
            raw = block(fields) if rng.random() < 0.5 else hpack.Encoder().encode(fields)
            if rng.random() < 0.2:
                cut = rng.randint(0, len(raw))
                out += (frame(HEADERS, int(end), stream, raw[:cut]), frame(CONTINUATION, 4, stream, raw[cut:]))
            else:
                out.append(frame(HEADERS, 4 | int(end), stream, raw))
            stream += 2
        elif kind < 6:
            out.append(data(open_stream, rng.choice((b"", b"hello", b"x" * 1000)), end=rng.random() < 0.4))
        elif kind == 6:
            out.append(headers(open_stream, [(b"x-sum", b"1")]))
        elif kind == 7:
            out.append(window_update(rng.choice((0, open_stream)), rng.choice((0, 1, 1000, 2**31 - 1))))
        elif kind == 8:
            out.append(rst_stream(open_stream))
        else:
            out.append(rng.choice((frame(PING, 0, 0, b"12345678"), frame(PRIORITY, 0, 1, b"\0" * 5), settings())))
    return out


def _strange(rng: random.Random, fields: Fields) -> Fields:
    """Returns the fields with something put into one name or value."""
    out = list(fields)
    at = rng.randrange(len(out))
    parts = list(out[at])
    which = rng.choice((0, 1, 1, 1))
    cut_at = rng.randint(0, len(parts[which]))
    word = rng.choice((rng.randbytes(1), rng.choice(TOKENS)))
    parts[which] = parts[which][:cut_at] + word + parts[which][cut_at:]
    out[at] = (parts[0], parts[1])
    return out


def mutate(rng: random.Random, client: bool) -> bytes:
    """Returns the bytes of a connection that went wrong somewhere."""
    frames = script(rng, client)
    for _ in range(rng.randint(0, 3)):
        at = rng.randrange(len(frames))
        what = rng.randrange(5)
        if what == 0:
            frames.insert(at, rng.choice(frames))
        elif what == 1 and len(frames) > 1:
            del frames[at]
        elif what == 2:
            word, flags, stream = HEADER.unpack_from(frames[at])
            flags, stream = rng.choice(((flags ^ 1 << rng.randrange(8), stream), (flags, rng.randrange(8))))
            frames[at] = HEADER.pack(word, flags, stream) + frames[at][9:]
        elif what == 3:
            frames[at] = frames[at][:3] + bytes((rng.randrange(12),)) + frames[at][4:]
        else:
            other = rng.randrange(len(frames))
            frames[at], frames[other] = frames[other], frames[at]
    raw = bytearray((b"" if client else PREFACE) + b"".join(frames))
    for _ in range(rng.choice((0, 0, 1, 2, 5))):
        at = rng.randrange(len(raw))
        what = rng.randrange(4)
        if what == 0:
            raw[at] = rng.randrange(256)
        elif what == 1:
            raw[at:at] = rng.choice(TOKENS)
        elif what == 2:
            del raw[at : at + rng.randint(1, 20)]
        else:
            raw[at : at + 4] = rng.randbytes(4)
        if not raw:
            break
    return bytes(raw)


def cut(rng: random.Random, raw: bytes) -> list[bytes]:
    """Cuts bytes into pieces."""
    cuts = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.randint(0, 12)))
    return [raw[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


def check(raw: bytes, pieces: Sequence[bytes], client: bool) -> None:
    """Raises AssertionError when one of this module's promises does not hold."""
    whole_events, whole_output = _receive([raw], client)
    events, output = _receive(pieces, client)
    assert events == whole_events, (raw, pieces)
    assert output == whole_output, (raw, pieces)
    # An acknowledgement, a reset and a goodbye are no longer than what they answer.
    assert len(output) < 400 + 2 * len(raw), raw


def _receive(pieces: Sequence[bytes], client: bool) -> tuple[list[object], bytes]:
    session = Session(client, LIMITS)
    if client:
        for fields in (GET, POST, GET):
            session.open(fields, end=True)
    output = session.take()
    out: list[object] = []
    for piece in pieces:
        for event in session.receive(piece, 0.0):
            out += _described(event)
        assert 0 <= session.unread <= sum(map(len, pieces)), pieces
        assert len(session.streams) <= LIMITS.streams, pieces
        assert len(session._tail) <= LIMITS.frame + 9 or session.ended, pieces
    return out, output + (session.take() if session.has_output else b"")


def _described(event: Event) -> list[object]:
    if isinstance(event, RequestHead):
        check_request(event.head)
        return [("request", event.stream.id, event.head, event.ended)]
    if isinstance(event, ResponseHead):
        return [("response", event.stream.id, event.head, event.ended)]
    if isinstance(event, Trailers):
        return [("trailers", event.stream.id, event.headers)]
    if isinstance(event, Data):
        return [("data", event.stream.id, event.data, event.ended)]
    return [(type(event).__name__, getattr(event, "reason", ""), getattr(event, "code", 0))]


def check_request(head: RequestFields) -> None:
    """What was accepted must be one HTTP/1.1 request with the same parts."""
    target = head.authority if head.method == b"CONNECT" and head.protocol is None else head.target
    method = b"GET" if head.protocol is not None else head.method
    lines = b"".join(b"%b: %b\r\n" % pair for pair in head.headers if pair[0] != b"content-length")
    reader = RequestReader(H1_LIMITS)
    reader.feed(b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (method, target, head.authority, lines))
    read = reader.head()
    assert read is not None, head
    assert reader.buffered == 0, head
    assert (read.method, read.target, read.authority) == (method, target, head.authority), head
    assert read.headers == [pair for pair in head.headers if pair[0] != b"content-length"], head


def check_block(raw: bytes) -> None:
    """A header block is refused, or reads as `hpack` reads it."""
    ours, theirs = Decoder(), hpack.Decoder()
    try:
        fields, size = ours.decode(raw, 1 << 20)
    except HpackError:
        return
    expected = [(bytes(name), bytes(value)) for name, value in theirs.decode(raw, raw=True)]
    assert fields == expected, raw
    assert size == sum(32 + len(name) + len(value) for name, value in expected), raw


def run(seconds: float, seed: int) -> int:
    """Feeds mutated connections and header blocks until the time is over; returns how many."""
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        client = tried % 3 == 2
        raw = mutate(rng, client)
        try:
            check(raw, cut(rng, raw), client)
            junk = bytearray(hpack.Encoder().encode(rng.choice(_HEADS), huffman=rng.random() < 0.5))
            for _ in range(rng.randint(0, 3)):
                junk[rng.randrange(len(junk))] = rng.randrange(256)
            check_block(bytes(junk))
        except Exception as error:
            raise AssertionError(
                f"seed {seed}, input {tried}: {raw!r} as {'client' if client else 'server'}"
            ) from error
        tried += 1
    return tried
