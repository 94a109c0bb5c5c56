"""A strict HTTP/1.1 reader for tests: it refuses whatever the proxy should never have written."""

import re
import socket
from dataclasses import dataclass, field

_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")


class Closed(Exception):
    """The peer closed where the message was not complete; `data` is what had come of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        super().__init__(f"closed after {data[-200:]!r}")


@dataclass
class Message:
    """One request or response: the first line, header fields with lower-case names in order, body and trailers."""

    start: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    head: bytes = b""

    @property
    def status(self) -> int:
        return int(self.start.split(b" ", 2)[1])

    @property
    def method(self) -> str:
        return self.start.split(b" ")[0].decode()

    @property
    def target(self) -> str:
        return self.start.split(b" ")[1].decode("latin-1")

    def __getitem__(self, name: str) -> str:
        """Returns all values of a field as one list value; raises KeyError when there is none."""
        if name not in self:
            raise KeyError(name)
        return ", ".join(self.all(name))

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    def get(self, name: str) -> str | None:
        """Returns all values of a field as one list value, or None."""
        return ", ".join(self.all(name)) or None

    def all(self, name: str) -> list[str]:
        """Returns the values of a field in order."""
        wanted = name.lower().encode()
        return [value.decode("latin-1") for key, value in self.headers if key == wanted]


class Reader:
    """Reads messages from a socket; `raw` keeps every byte that came."""

    def __init__(self, sock: socket.socket, keep: bool = True) -> None:
        self.sock = sock
        self.buffer = b""
        self.raw = bytearray()
        self._keep = keep

    def more(self) -> bytes:
        """Receives some bytes into the buffer and returns them; b"" at the end."""
        try:
            data = self.sock.recv(262_144)
        except ConnectionError:
            return b""
        if self._keep:
            self.raw += data
        self.buffer += data
        return data

    def until(self, mark: bytes) -> bytes:
        """Returns all up to and including `mark`."""
        start = 0
        while (at := self.buffer.find(mark, start)) < 0:
            start = max(0, len(self.buffer) - len(mark))
            if not self.more():
                raise Closed(self.buffer)
        return self._cut(at + len(mark))

    def exactly(self, size: int) -> bytes:
        """Returns `size` bytes."""
        while len(self.buffer) < size:
            if not self.more():
                raise Closed(self.buffer)
        return self._cut(size)

    def rest(self) -> bytes:
        """Returns all that comes until the peer closes."""
        while self.more():
            pass
        return self._cut(len(self.buffer))

    def head(self) -> Message:
        """Reads a start line and header fields."""
        raw = self.until(b"\r\n\r\n")
        start, *lines = raw[:-4].split(b"\r\n")
        assert start and b"\r" not in start and b"\n" not in start, raw
        return Message(start, [_parse(line) for line in lines], head=raw)

    def request(self) -> Message:
        """Reads one request with its body; raises Closed when the connection ends first."""
        message = self.head()
        self.body(message, until_close=False)
        return message

    def response(self, method: str = "GET", interim: bool = False) -> Message:
        """Reads one response to `method`; passes over 1xx unless `interim`."""
        while True:
            message = self.head()
            if 100 <= message.status < 200 and message.status != 101:
                if interim:
                    return message
                continue
            if method != "HEAD" and message.status not in (101, 204, 304):
                self.body(message, until_close=True)
            return message

    def body(self, message: Message, until_close: bool) -> None:
        """Reads the body and trailers that belong to a head."""
        lengths, codings = message.all("content-length"), message.all("transfer-encoding")
        assert len(lengths) + len(codings) <= 1, f"ambiguous framing: {message.head!r}"
        if codings:
            assert codings == ["chunked"], message.head
            chunks = []
            while size := int(self.until(b"\r\n")[:-2], 16):
                chunks.append(self.exactly(size))
                assert self.exactly(2) == b"\r\n"
            message.body = b"".join(chunks)
            while line := self.until(b"\r\n")[:-2]:
                message.trailers.append(_parse(line))
        elif lengths:
            message.body = self.exactly(int(lengths[0]))
        elif until_close:
            message.body = self.rest()

    def _cut(self, size: int) -> bytes:
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data


def _parse(line: bytes) -> tuple[bytes, bytes]:
    match = _FIELD.fullmatch(line)
    assert match, f"not a header field: {line!r}"
    return match[1].lower(), match[2].rstrip(b" \t")
