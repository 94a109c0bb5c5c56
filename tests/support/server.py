"""A server that plays a script byte by byte and keeps what it was sent: the app, or a broken upstream."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType

from tests.support.message import Closed, Message, Reader
from tests.support.net import Address, free_address, wait_for

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Connection:
    """One accepted connection, handed to the script."""

    def __init__(self, sock: socket.socket, server: "Server", number: int) -> None:
        self.sock = sock
        self.server = server
        self.number = number
        """Counts from 0 in the order in which connections were accepted."""
        self.reader = Reader(sock)
        self.ended = threading.Event()

    @property
    def received(self) -> bytes:
        """Every byte that came on this connection."""
        return bytes(self.reader.raw)

    def read_head(self) -> Message:
        """Reads a request's head; what follows stays to be read."""
        message = self.reader.head()
        self.server.requests.append(message)
        return message

    def read(self) -> Message:
        """Reads one whole request."""
        message = self.reader.request()
        self.server.requests.append(message)
        return message

    def send(self, data: bytes) -> None:
        """Sends all of `data`."""
        self.sock.sendall(data)

    def send_slowly(self, data: bytes, pause: float = 0.002, step: int = 1) -> None:
        """Sends `data` in segments of `step` bytes."""
        for at in range(0, len(data), step):
            self.sock.sendall(data[at : at + step])
            time.sleep(pause)

    def wait_for_close(self) -> bytes:
        """Waits until the proxy closes and returns the bytes that came before."""
        return self.reader.rest()

    def reset(self) -> None:
        """Closes with a TCP RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        with contextlib.suppress(OSError):
            self.sock.close()
        self.ended.set()


Script = Callable[[Connection], None]


def answering(*answers: bytes) -> Script:
    """A script that answers each whole request with the next of `answers`, the last one from then on, keeping alive."""

    def script(connection: Connection) -> None:
        left = list(answers)
        while True:
            connection.read()
            connection.send(left.pop(0) if len(left) > 1 else left[0])

    return script


class Server:
    """Plays `script` for every connection on a thread of its own, then closes it.

    `requests` collects what the scripts read. An exception of a script other than the end of its connection is raised
    by `close`.
    """

    def __init__(self, script: Script | None = None, address: Address | None = None) -> None:
        self.script = script or answering(OK)
        self.requests: list[Message] = []
        self.connections: list[Connection] = []
        self._errors: list[BaseException] = []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(address or free_address())
        self._listener.listen(1024)
        self.address: Address = self._listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def port(self) -> int:
        return self.address[1]

    def receive_little(self) -> None:
        """Gives the connections to come a small receive buffer."""
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def wait_for_requests(self, count: int, timeout: float = 5.0) -> list[Message]:
        """Returns the requests once there are at least `count`."""
        return wait_for(
            lambda: self.requests if len(self.requests) >= count else None,
            timeout,
            lambda: f"{len(self.requests)} requests came, not {count}",
        )

    def close(self) -> None:
        """Stops accepting, closes every connection and raises the first error of a script."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()
        if self._errors:
            raise self._errors[0]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(30)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, self, len(self.connections))
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        try:
            self.script(connection)
        except (Closed, OSError):
            pass  # The proxy closed: every script ends so.
        except BaseException as error:
            self._errors.append(error)
        finally:
            connection.close()
