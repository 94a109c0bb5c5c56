"""A WebSocket application that echoes small frames, as fast as Python can: `python -m bench.parts.ws_echo PORT`."""

import asyncio
import base64
import hashlib
import re
import sys
from typing import cast

import uvloop

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KEY = re.compile(rb"sec-websocket-key:\s*(\S+)", re.IGNORECASE)


class Echo(asyncio.Protocol):
    """One connection: the handshake, then each masked frame of up to 125 bytes is sent back unmasked."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = b""
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.open:
            head, end, rest = self.buffer.partition(b"\r\n\r\n")
            if not end:
                return
            self.buffer, self.open = rest, True
            self.transport.write(_accept(head))
        while (frame := self._frame()) is not None:
            self.transport.write(frame)

    def _frame(self) -> bytes | None:
        buffer = self.buffer
        size = (buffer[1] & 0x7F) + 6 if len(buffer) > 1 else 6
        if len(buffer) < size:
            return None
        self.buffer = buffer[size:]
        if buffer[0] & 0x0F == 8:
            self.transport.close()
        mask = buffer[2:6]
        payload = buffer[6:size]
        if mask != b"\0\0\0\0":
            payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        return bytes((buffer[0], size - 6)) + payload


def _accept(head: bytes) -> bytes:
    found = KEY.search(head)
    if found is None:
        return b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
    token = base64.b64encode(hashlib.sha1(found[1] + GUID).digest())
    return b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + (
        b"Sec-WebSocket-Accept: " + token + b"\r\n\r\n"
    )


async def serve(port: int) -> None:
    """Listens on the loopback interface until the process ends."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
