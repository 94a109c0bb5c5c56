"""WebSocket round trips: `python -m bench.parts.ws_load HOST PORT PATH CONNECTIONS SECONDS` prints one JSON object."""

import asyncio
import json
import sys
import time
from functools import partial
from typing import cast

import uvloop

from bench.stats import percentile

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ACCEPTED = b"s3pplmbitxaq9kygzzhzrbk+xoo="  # RFC 6455 1.3, in lower case
PAYLOAD = b"sixty-four bytes of payload, the size of a small JSON message..."
# A zero mask is a legal mask (RFC 6455 5.3) and leaves the payload as it is.
QUESTION = bytes((0x82, 0x80 | len(PAYLOAD))) + b"\0\0\0\0" + PAYLOAD
ANSWER = bytes((0x82, len(PAYLOAD))) + PAYLOAD


class Client(asyncio.Protocol):
    """Sends the next frame when the echo of the last is complete and equal."""

    transport: asyncio.Transport

    def __init__(self, head: bytes, opened: "asyncio.Future[None]", times: list[float]) -> None:
        self.head = head
        self.opened = opened
        self.times = times
        self.buffer = b""
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.head)

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
            self.buffer = b""
        if data == ANSWER:
            now = time.perf_counter()
            self.times.append(now - self.sent)
            self.sent = now
            self.transport.write(QUESTION)
        elif self.opened.done():
            if not ANSWER.startswith(data):
                raise SystemExit(f"not an echo: {data[:80]!r}")
            self.buffer = data
        elif b"\r\n\r\n" in data:
            if not data.startswith(b"HTTP/1.1 101") or ACCEPTED not in data.lower():
                raise SystemExit(f"not accepted: {data[:200]!r}")
            self.opened.set_result(None)
        else:
            self.buffer = data

    def start(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(QUESTION)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None or not self.transport.is_closing():
            raise SystemExit(f"connection lost: {exc}")


def _given(client: Client) -> Client:
    return client


async def main(host: str, port: int, path: str, connections: int, seconds: float) -> None:
    """Opens all connections, then plays ping-pong on each for `seconds`."""
    loop = asyncio.get_running_loop()
    head = HANDSHAKE.format(path=path, host=host, port=port).encode()
    times: list[float] = []
    clients: list[Client] = []
    for _ in range(connections):
        client = Client(head, loop.create_future(), times)
        await loop.create_connection(partial(_given, client), host, port)
        await asyncio.wait_for(client.opened, 5)
        clients.append(client)
    began = time.perf_counter()
    for client in clients:
        client.start()
    await asyncio.sleep(seconds)
    ended = time.perf_counter()
    done = list(times)
    if len(done) < connections:
        raise SystemExit(f"only {len(done)} echoes")
    figures = {"p50": percentile(done, 0.5), "p99": percentile(done, 0.99)}
    print(json.dumps({"requests": len(done), "seconds": ended - began, **figures}), flush=True)
    for client in clients:
        client.transport.abort()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
