"""A client that sends exactly the bytes it is told to and sees exactly what comes back."""

import socket
import struct
import time
from types import TracebackType

from tests.support.message import Closed, Message, Reader
from tests.support.net import Address


class Client:
    """One TCP connection. Every wait is bounded by `timeout` seconds (TimeoutError)."""

    def __init__(self, address: Address, timeout: float = 10.0, receive_buffer: int | None = None) -> None:
        self.sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        self.sock.connect(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = Reader(self.sock)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Sends all of `data`."""
        self.sock.sendall(data)

    def send_slowly(self, data: bytes, pause: float = 0.002, step: int = 1) -> None:
        """Sends `data` in segments of `step` bytes."""
        for at in range(0, len(data), step):
            self.sock.sendall(data[at : at + step])
            time.sleep(pause)

    def read(self, method: str = "GET", interim: bool = False) -> Message:
        """Reads one whole response to `method`."""
        return self.reader.response(method, interim)

    def request(self, data: bytes) -> Message:
        """Sends one request and reads its response."""
        self.send(data)
        return self.read(data.split(b" ", 1)[0].decode("latin-1"))

    def get(self, target: str = "/", host: str = "test", **headers: str) -> Message:
        """Sends a GET with `headers` (`_` stands for `-`) and reads the response."""
        fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        return self.request(f"GET {target} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n".encode("latin-1"))

    def closed(self) -> bool:
        """Waits for the peer's close: True when it closes with nothing left to read, False when bytes come."""
        return not self.reader.buffer and not self.reader.more()

    def is_open(self, wait: float = 0.1) -> bool:
        """True when the peer has neither sent nor closed anything within `wait` seconds."""
        before = self.sock.gettimeout()
        self.sock.settimeout(wait)
        try:
            self.reader.more()
        except TimeoutError:
            return not self.reader.buffer
        finally:
            self.sock.settimeout(before)
        return False

    def half_close(self) -> None:
        """Ends the sending side."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Closes with a TCP RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        """Closes the connection."""
        self.sock.close()


def exchange(address: Address, data: bytes, timeout: float = 10.0) -> tuple[list[Message], bool]:
    """Sends `data` on a connection of its own, reads responses until the peer closes; (responses, closed cleanly)."""
    answers: list[Message] = []
    with Client(address, timeout) as client:
        try:
            client.send(data)
        except ConnectionError:  # The peer answered and closed before it had read all: what it said is still there.
            pass
        while True:
            try:
                answers.append(client.read())
            except Closed as error:
                return answers, not error.data
