"""Servers in the event loop of a test that answer when they are told to: HTTP/1.1, and HTTP/2 by the `h2` package."""

import asyncio
from collections.abc import Callable
from typing import cast

import h2.config
import h2.connection
import h2.events
import h2.settings

STREAMS = 2
"""Requests that an HTTP/2 server takes at once on one connection."""


class Backend:
    """One listening socket. `held` are the requests that have no answer yet: calling one answers it."""

    def __init__(self, make: Callable[["Backend"], asyncio.Protocol]) -> None:
        self.connections: list[asyncio.Transport] = []
        self.held: list[Callable[[], None]] = []
        self.at_once = False
        """Whether requests are answered as they come."""
        self._make = make

    async def start(self) -> "Backend":
        server = await asyncio.get_running_loop().create_server(lambda: self._make(self), "127.0.0.1", 0)
        self.server = server
        self.port: int = server.sockets[0].getsockname()[1]
        return self

    def take(self, answer: Callable[[], None]) -> None:
        self.held.append(answer)
        if self.at_once:
            self.answer_all()

    def answer_all(self) -> None:
        held, self.held = self.held, []
        for answer in held:
            answer()


class _Connection(asyncio.Protocol):
    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.backend.connections.append(self.transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.backend.connections.remove(self.transport)

    def send(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)


class Http1(_Connection):
    """Serves requests without a body."""

    buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            self.buffer = self.buffer.partition(b"\r\n\r\n")[2]
            self.backend.take(lambda: self.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"))


class Http2(_Connection):
    """Serves requests without a body, `STREAMS` at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.state.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS}
        )
        self.state.initiate_connection()
        self.send(self.state.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.state.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                stream = event.stream_id
                self.backend.take(lambda stream=stream: self._answer(stream))  # type: ignore[misc]
        self.send(self.state.data_to_send())

    def _answer(self, stream: int) -> None:
        try:
            self.state.send_headers(stream, [(":status", "200")], end_stream=True)
        except h2.exceptions.ProtocolError:
            return  # The client has given the stream up.
        self.send(self.state.data_to_send())
