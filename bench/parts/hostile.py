"""Clients that cost more than they pay, one kind a run: `python -m bench.parts.hostile KIND PORT SECONDS`.

Prints `ready` once the attack has begun; ends by itself.
"""

import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

GET = b"GET /1m HTTP/1.1\r\nHost: bench\r\n\r\n"
POST = b"POST /upload HTTP/1.1\r\nHost: bench\r\nTransfer-Encoding: chunked\r\n\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
UPLOADS = 16
READERS = 1250
STREAMS = 900


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Returns one HTTP/2 frame."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def text(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def head(method: bytes, path: bytes) -> bytes:
    """Returns a header block without table and Huffman code: method, path, scheme http, authority."""
    # RFC 7541 appendix A: the names 2, 4, 6 and 1 of the static table, literal values that are not indexed.
    return b"\x02" + text(method) + b"\x04" + text(path) + b"\x06" + text(b"http") + b"\x01" + text(b"bench")


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


def send(sock: socket.socket, data: bytes, until: float) -> None:
    """Sends `data` again and again until then, or until the proxy has had enough."""
    sock.settimeout(0.5)
    while time.monotonic() < until:
        with suppress(TimeoutError):
            try:
                sock.sendall(data)
            except ConnectionError:
                return


def each(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    for thread in threads:
        thread.join()


def pipelining(port: int, until: float) -> None:
    """One connection that sends requests without end and reads no answer."""
    small = b"GET /1k HTTP/1.1\r\nHost: bench\r\n\r\n" * 2000
    each(1, lambda _: send(connect(port), small, until))


def chunks(port: int, until: float) -> None:
    """Uploads in chunks of one byte."""

    def upload(_: int) -> None:
        sock = connect(port)
        sock.sendall(POST)
        send(sock, b"1\r\nx\r\n" * 10_000, until)

    each(UPLOADS, upload)


def frames(port: int, until: float) -> None:
    """Uploads over HTTP/2 in DATA frames of one byte."""

    def upload(_: int) -> None:
        sock = connect(port)
        sock.sendall(PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, head(b"POST", b"/upload")))
        threading.Thread(target=drain, args=(sock, until), daemon=True).start()
        send(sock, frame(0, 0, 1, b"x") * 6_000, until)

    each(UPLOADS, upload)


def drain(sock: socket.socket, until: float) -> None:
    """Reads and acknowledges what comes, and gives back the windows that it uses."""
    while time.monotonic() < until:
        with suppress(OSError):
            if not sock.recv(65536):
                return


def window(port: int, until: float) -> None:
    """One HTTP/2 connection with a window of 0 that asks for a megabyte over and over."""
    sock = connect(port)
    settings = frame(4, 0, 0, struct.pack(">HI", 4, 0))
    asks = b"".join(frame(1, 5, 2 * number + 1, head(b"GET", b"/1m")) for number in range(STREAMS))
    sock.sendall(PREFACE + settings + asks)
    print("ready", flush=True)
    sock.settimeout(0.5)
    while time.monotonic() < until:
        with suppress(TimeoutError):
            if not sock.recv(65536):
                return


def readers(port: int, until: float) -> None:
    """Many HTTP/1.1 connections that ask for a megabyte and read nothing."""
    held = []
    for _ in range(READERS):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(10)
        with suppress(OSError):
            sock.connect(("127.0.0.1", port))
            sock.sendall(GET)
        held.append(sock)
    print("ready", flush=True)
    time.sleep(max(0.0, until - time.monotonic()))
    for sock in held:
        sock.close()


KINDS = {"pipelining": pipelining, "window": window, "readers": readers, "chunks": chunks, "frames": frames}

if __name__ == "__main__":
    KINDS[sys.argv[1]](int(sys.argv[2]), time.monotonic() + float(sys.argv[3]))
