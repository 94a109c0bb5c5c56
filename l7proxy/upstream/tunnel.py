"""What CONNECT opens: the bytes of a TCP connection to an endpoint, in both directions, as they are."""

import asyncio
from collections.abc import Callable
from typing import cast

from l7proxy.core.buffers import BufferAccount
from l7proxy.core.errors import ProxyError
from l7proxy.core.message import Body, Request
from l7proxy.core.stream import WRITE_BUFFER, Stream
from l7proxy.upstream.dial import Dial, Expiring, PoolMetrics, connect, time_left
from l7proxy.upstream.waiting import Queue, Share


class Tunnel(Expiring):
    """One connection; `received` are the endpoint's bytes. `ended()` is called once when it is over."""

    def __init__(self, ended: Callable[[], None], account: BufferAccount) -> None:
        self.received = Stream(self._consumed, self._give_up, account)
        self._ended = ended
        self._drained: asyncio.Future[None] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._written = 0
        self._sent = False
        """Whether the endpoint has been told that the client says no more."""

    def begin(self, body: Stream) -> None:
        """Passes the client's bytes on."""
        self._sender = asyncio.get_running_loop().create_task(self._send(body))

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(WRITE_BUFFER)

    def data_received(self, data: bytes) -> None:
        self.received.feed(data)
        if self.received.above_high_water:
            self._pause_reading()

    def eof_received(self) -> bool:
        """One direction may end before the other, where the transport can say so; with both, the connection ends."""
        self.received.end()
        return self.transport is not None and self.transport.can_write_eof() and not self._sent

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self.transport = None
        if error is None:
            self.received.end()
        else:
            self.received.fail(ProxyError("upstream_reset", f"the tunnel broke: {error}"))
        if self._drained is not None and not self._drained.done():
            self._drained.cancel()
        self._stop_sending()
        self._ended()

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # Inside.

    def _pass_on(self, data: bytes) -> bool:
        if self.transport is not None:
            self._written = len(data)
            self.transport.write(data)
        return self._drained is None and self.transport is not None

    async def _send(self, body: Stream) -> None:
        try:
            while data := await body.read():
                if self.transport is None:
                    break
                self._written = len(data)
                self.transport.write(data)
                data = b""
                await self._until_drained(body.account)
                await body.splice(self._pass_on)
                await self._until_drained(body.account)
            self._sent = True
            if self.transport is not None and self.transport.can_write_eof():
                self.transport.write_eof()
                if self.received.ended:
                    self.transport.close()
        except Exception:
            # The client's side broke: half of what it said must not look like all.
            if self.transport is not None:
                self.transport.abort()
        finally:
            body.close()

    async def _until_drained(self, account: BufferAccount) -> None:
        """Waits for a slow endpoint; what it has not taken yet is the client's to answer for."""
        if self._drained is not None:
            unsent = self._written
            account.add(unsent)
            try:
                await self._drained
            finally:
                account.add(-unsent)

    def _stop_sending(self) -> None:
        # A task that was cancelled holds its frames, which lead back here: it is not kept.
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.cancel()

    def _consumed(self, size: int) -> None:
        self._resume_reading()

    def _give_up(self) -> None:
        if self.transport is not None:
            self.transport.abort()


async def open_tunnel(dial: Dial, share: Share, metrics: PoolMetrics, ledger: Request, body: Body) -> Stream:
    """Opens a tunnel to an endpoint for the bytes of `body`, and returns what the endpoint says. Raises ProxyError."""
    opened = False

    def ended() -> None:
        if opened:
            share.release()
            metrics.connections.value -= 1

    if not share.take():
        await Queue[Tunnel](share, dial.connect_timeout).wait(ledger)
    tunnel = await connect(
        dial, share, metrics, lambda: Tunnel(ended, ledger.account), time_left(ledger, dial.connect_timeout)
    )
    opened = True
    tunnel.begin(cast(Stream, body))
    return tunnel.received
