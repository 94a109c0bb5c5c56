"""Mutated HTTP/1.1 messages for the codecs of `l7proxy.wire.h1`.

What must hold for any bytes: nothing but Malformed is raised; any split of the bytes gives the same messages and the
same verdict; what is accepted reads the same in h11, an independent parser; what waits for more bytes is bounded.
"""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import h11

from l7proxy.wire.framing import CHUNKED, Limits, Malformed
from l7proxy.wire.h1 import END, RequestHead, RequestReader, ResponseHead, ResponseReader

LIMITS = Limits()

REQUESTS = (
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    b"GET /a/b?c=d HTTP/1.1\r\nHost: a.example:8080\r\nAccept: */*\r\nX-A: 1\r\nX-A: 2\r\n\r\n",
    b"POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
    b"POST /p HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\n\r\n",
    b"PUT /p HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: Chunked\r\nTrailer: x-t\r\n\r\n1\r\na\r\n0\r\nX-T: v\r\n\r\n",
    b"GET http://a.example/x HTTP/1.1\r\nhost: a.example\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, x-a\r\nupgrade: websocket\r\nx-a: 1\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nok",
)
RESPONSES = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-t: v\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\netag: x\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\nuntil close",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nraw",
)
TOKENS = (
    *(
        b"\r\n",
        b"\r",
        b"\n",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b"\0",
        b":",
        b",",
        b";",
        b"0",
        b"-1",
        b"+5",
        b"0x5",
        b"\x80",
        b"\xff",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Host: b\r\n",
        b"HTTP/1.1",
        b"HTTP/1.0",
    ),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding : chunked\r\n"),
    *(
        b"\r\n folded\r\n",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"ffffffffffffffff\r\n",
        b"f" * 17,
        b"GET ",
        b"HEAD ",
        b"POST ",
    ),
    *(b"Connection: close\r\n", b"Connection: content-length\r\n", b"Upgrade: h2c\r\n", b"Expect: 100-continue\r\n"),
    *(b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n", b"%00", b"a" * 300, b"x: y\r\n" * 101, b";" + b"e" * 300),
)


def mutate(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Returns a few messages in a row with a few random edits."""
    data = bytearray(b"".join(rng.choice(seeds) for _ in range(rng.randint(1, 3))))
    for _ in range(rng.randint(0, 4)):
        at = rng.randint(0, len(data))
        kind = rng.randint(0, 5)
        if kind == 0:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 1:
            data[at : at + rng.randint(1, 8)] = b""
        elif kind == 2 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 3:
            end = at + rng.randint(1, 40)
            data[at:at] = data[at:end]
        elif kind == 4 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        else:
            # A token between two lines is what smuggling is made of.
            line = data.find(b"\r\n", at)
            if line >= 0:
                data[line + 2 : line + 2] = rng.choice(TOKENS)
    return bytes(data)


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    """Splits `data` at random places; sometimes into single bytes."""
    if rng.random() < 0.2:
        return [data[at : at + 1] for at in range(len(data))]
    places = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(0, 6)))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def read_requests(pieces: Sequence[bytes]) -> tuple[list[tuple[Any, bytes, Any]], str]:
    """Returns ((head, body, trailers) of each request, verdict); a verdict is "", or the error's code."""
    reader = RequestReader(LIMITS)
    return _read(pieces, reader, reader.head, lambda head: bool(head.upgrade) or head.method == b"CONNECT")


def read_responses(pieces: Sequence[bytes], method: bytes) -> tuple[list[tuple[Any, bytes, Any]], str]:
    """As `read_requests`, for the responses to requests with `method`."""
    reader = ResponseReader(LIMITS)
    return _read(pieces, reader, lambda: reader.head(method), lambda head: head.status == 101)


def _read(
    pieces: Sequence[bytes],
    reader: RequestReader | ResponseReader,
    next_head: Callable[[], Any],
    ends: Callable[[Any], bool],
) -> tuple[list[tuple[Any, bytes, Any]], str]:
    messages: list[tuple[Any, bytes, Any]] = []
    head: Any = None
    body = bytearray()
    for piece in pieces:
        if piece:
            reader.feed(piece)
        try:
            while True:
                if head is None:
                    if (head := next_head()) is None:
                        break
                    body.clear()
                    if head.size == 0:
                        messages.append((head, b"", None))
                        if ends(head):
                            return messages, "tunnel"
                        head = None
                    continue
                event = reader.body()
                if event is None:
                    break
                if event is END:
                    messages.append((head, bytes(body), reader.trailers))
                    head = None
                else:
                    assert event, "an empty body event"
                    body += event
        except Malformed as error:
            return messages, error.code.name
        assert reader.buffered <= LIMITS.head + len(piece) + LIMITS.target, "the buffer is not bounded"
    return messages, f"open:{head}:{bytes(body)!r}" if head else ""


def check_requests(data: bytes, pieces: Sequence[bytes]) -> None:
    """Raises AssertionError when a promise is broken for this input."""
    whole = read_requests([data])
    assert read_requests(pieces) == whole, "the split changes what is read"
    messages, verdict = whole
    _compare_with_h11(data, messages)
    assert verdict == "" or messages or verdict.startswith(("open", "tunnel")) or verdict in _REFUSALS, verdict


def check_responses(data: bytes, pieces: Sequence[bytes], method: bytes) -> None:
    """Raises AssertionError when a promise is broken for this input."""
    whole = read_responses([data], method)
    assert read_responses(pieces, method) == whole, "the split changes what is read"
    messages, verdict = whole
    assert verdict in ("", "tunnel", "upstream_protocol") or verdict.startswith("open"), verdict
    final = [message for message in messages if message[0].status >= 200 or message[0].status == 101]
    if final and verdict != "tunnel":
        _compare_response_with_h11(data, final[0], method)


_REFUSALS = ("bad_request", "uri_too_long", "headers_too_large", "not_implemented", "http_version")


def _compare_with_h11(data: bytes, messages: Sequence[tuple[RequestHead, bytes, Any]]) -> None:
    """Raises AssertionError when h11 reads any message that was accepted as another one."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    # h11 does not pass over empty lines before a request.
    while data.startswith(b"\r\n"):
        data = data[2:]
    connection.receive_data(data)
    for head, body, trailers in messages:
        read = bytearray()
        try:
            request = connection.next_event()
            while isinstance(event := connection.next_event(), h11.Data):
                read += event.data
        except h11.RemoteProtocolError as error:
            # Fields that may not come in a trailer section are dropped here (RFC 9110 6.5.1); h11 refuses some.
            assert head.size == CHUNKED and read == body, f"h11 refuses what was accepted: {error}"
            return
        assert isinstance(request, h11.Request) and isinstance(event, h11.EndOfMessage), (request, event)
        assert request.method == head.method
        assert request.target.endswith(head.target.removeprefix(b"/")), f"{request.target!r} and {head.target!r}"
        assert read == body, f"the body differs: {bytes(read)!r} and {body!r}"
        for name, value in head.headers:
            assert (name, value) in request.headers, f"h11 sees no {name!r}: {value!r}"
        for pair in trailers or ():
            assert pair in event.headers, f"h11 sees no trailer {pair!r}"
        if connection.their_state is not h11.DONE:
            return
        connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is not h11.DONE or connection.trailing_data[0].startswith(b"\r"):
            return
        connection.start_next_cycle()


def _compare_response_with_h11(data: bytes, message: tuple[ResponseHead, bytes, Any], method: bytes) -> None:
    """Raises AssertionError when h11 reads a response that was accepted as another one."""
    head, body, _ = message
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=method, target="/", headers=[("host", "a"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    read = bytearray()
    try:
        while isinstance(response := connection.next_event(), h11.InformationalResponse):
            pass
        while isinstance(event := connection.next_event(), h11.Data):
            read += event.data
    except h11.RemoteProtocolError as error:
        assert head.size == CHUNKED and read == body, f"h11 refuses what was accepted: {error}"
        return
    assert isinstance(response, h11.Response) and isinstance(event, h11.EndOfMessage), (response, event)
    assert response.status_code == head.status
    assert read == body, f"the body differs: {bytes(read)!r} and {body!r}"
    for pair in head.headers:
        assert pair in response.headers, f"h11 sees no {pair!r}"


def run(seconds: float, seed: int) -> int:
    """Tries random inputs for `seconds`; returns how many."""
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        tried += 1
        if rng.random() < 0.7:
            data = mutate(rng, REQUESTS)
            pieces = cut(rng, data)
            _explain(lambda data=data, pieces=pieces: check_requests(data, pieces), data, pieces)
        else:
            data, method = mutate(rng, RESPONSES), rng.choice((b"GET", b"HEAD", b"POST"))
            pieces = cut(rng, data)
            check = lambda data=data, pieces=pieces, method=method: check_responses(data, pieces, method)  # noqa: E731
            _explain(check, data, pieces)
    return tried


def _explain(check: Callable[[], None], data: bytes, pieces: Sequence[bytes]) -> None:
    try:
        check()
    except Exception as error:
        raise AssertionError(f"{error}\ninput: {data!r}\npieces: {list(pieces)!r}") from error
