"""HTTP/2 spoken by hand on a real socket, from either side."""

import socket
import time
from collections.abc import Callable
from types import TracebackType

from tests.support.net import Address
from tests.support.server import Connection
from tests.wire.h2_peer import GET, HELLO, Fields, Reader, data, headers, settings, window_update


class RawClient:
    """One connection to the sidecar. `reader` holds what came; every wait is bounded by `timeout` seconds."""

    def __init__(
        self, address: Address, hello: bytes = HELLO, timeout: float = 10.0, buffer: int | None = None
    ) -> None:
        self.sock = socket.socket()
        if buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.sock.settimeout(timeout)
        self.sock.connect(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = Reader()
        self.timeout = timeout
        self.closed = False
        self.next_stream = 1
        self.send(hello)

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.sock.close()

    def send(self, raw: bytes) -> None:
        """Sends all of `raw`; a peer that has closed meanwhile is no error, for what it said is still to be read."""
        try:
            self.sock.sendall(raw)
        except (ConnectionError, BrokenPipeError):
            pass

    def request(self, fields: Fields = GET, end: bool = True) -> int:
        """Opens a stream and returns its id."""
        stream = self.next_stream
        self.next_stream += 2
        self.send(headers(stream, fields, end))
        return stream

    def until(self, ready: Callable[[Reader], object]) -> Reader:
        """Reads until `ready(reader)` or the peer closes."""
        end = time.monotonic() + self.timeout
        while not ready(self.reader) and not self.closed:
            assert time.monotonic() < end, "nothing more came in time"
            try:
                raw = self.sock.recv(1 << 20)
            except ConnectionResetError:
                raw = b""
            self.closed = not raw
            self.reader.feed(raw)
        return self.reader

    def answer(self, stream: int) -> dict[str, str]:
        """Reads until a stream has its answer whole, and returns the fields of its head."""
        self.until(lambda reader: stream in reader.ended or stream in reader.resets)
        assert stream in self.reader.heads, f"stream {stream} was reset: {self.reader.resets}"
        return self.reader.heads[stream][-1] if len(self.reader.heads[stream]) == 1 else self.reader.heads[stream][0]

    def get(self, path: str = "/", host: str = "test") -> str:
        """Sends one GET on a stream of its own and returns the status of its answer."""
        fields = [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":authority", host.encode()),
            (b":path", path.encode()),
        ]
        return self.answer(self.request(fields))[":status"]


class RawServer:
    """The server's side of one connection of a scripted server: greets, then hands over frames as they come."""

    def __init__(self, connection: Connection, *pairs: tuple[int, int]) -> None:
        self.connection = connection
        self.sock = connection.sock
        self.reader = Reader()
        self._preface = 24
        self._taken: set[int] = set()
        self.send(settings(*pairs))

    def send(self, raw: bytes) -> None:
        """Sends all of `raw`."""
        self.sock.sendall(raw)

    def until(self, ready: Callable[[Reader], object]) -> Reader:
        """Reads until `ready(reader)`; raises OSError when the proxy closes."""
        while not ready(self.reader):
            raw = self.sock.recv(1 << 16)
            if not raw:
                raise ConnectionResetError("the proxy closed")
            if self._preface:
                cut = min(self._preface, len(raw))
                self._preface -= cut
                raw = raw[cut:]
            self.reader.feed(raw)
        return self.reader

    def request(self) -> int:
        """Waits for the next whole request, in the order of streams, and returns its stream."""
        self.until(lambda reader: reader.ended - self._taken)
        stream = min(self.reader.ended - self._taken)
        self._taken.add(stream)
        return stream

    def answer(self, stream: int, body: bytes = b"ok", status: bytes = b"200") -> None:
        """Answers a stream."""
        self.send(headers(stream, [(b":status", status)], end=False) + data(stream, body, end=True))

    def rest(self) -> None:
        """Waits until the proxy closes."""
        while self.sock.recv(1 << 16):
            pass


def wide_open(stream_window: int = 2**31 - 1) -> bytes:
    """A greeting that opens every window."""
    return HELLO + settings((4, stream_window)) + window_update(0, 2**31 - 1 - 65_535)
