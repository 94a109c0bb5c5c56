"""An endpoint of which ALPN tells what it speaks: HTTP/2 or HTTP/1.1."""

import httpx

from l7proxy.upstream.dial import Dial, PoolMetrics, WrongProtocol
from l7proxy.upstream.h2_pool import H2Transport
from l7proxy.upstream.pool import H1Transport
from l7proxy.upstream.waiting import Load


class AutoTransport(httpx.AsyncBaseTransport):
    """Speaks what the server chose last, and the other as soon as it chooses that.

    The handshake that told so is the only one that is wasted. Plain text is HTTP/1.1.
    """

    def __init__(self, dial: Dial, load: Load, metrics: PoolMetrics) -> None:
        self._h1 = H1Transport(dial, load, metrics)
        self._h2 = H2Transport(dial, load, metrics)
        self._live: H1Transport | H2Transport = self._h1 if dial.tls is None else self._h2

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        transport = self._live
        try:
            return await transport.handle_async_request(request)
        except WrongProtocol:
            # What the other pool still has open ends by itself when it has rested long enough.
            other = self._live = self._h1 if transport is self._h2 else self._h2
            return await other.handle_async_request(request)

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """Ends idle connections now and busy ones after their responses."""
        self._h1.close()
        self._h2.close()
