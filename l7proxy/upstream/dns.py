"""Addresses of an upstream by name: resolved in the background, the last good answer kept."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from l7proxy.core.stats import Stats

PERIOD = 5.0
"""Seconds between two look-ups (Envoy's dns_refresh_rate): the system's resolver caches for as long as the TTL says."""

FAILED_PERIOD = 1.0

FIRST = 5.0


class Resolver:
    """Looks a name up again and again and hands over its addresses when they change.

    A failed look-up, or an answer without addresses, changes nothing: an empty answer must not empty an upstream.
    """

    def __init__(
        self, host: str, port: int, apply: Callable[[Sequence[str]], None], stats: Stats, upstream: str
    ) -> None:
        self.host = host
        self.port = port
        self._apply = apply
        self._known: list[str] = []
        self._task: asyncio.Task[None] | None = None
        self.resolved = asyncio.Event()
        self._failures = stats.counter(
            "l7proxy_dns_failures_total", "Look-ups that gave no address", l7proxy_upstream=upstream
        )

    def start(self) -> None:
        """Begins to resolve."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def first(self) -> None:
        """Waits for the first look-up, but no longer than a connection may take."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST):
                await self.resolved.wait()

    def close(self) -> None:
        """Stops."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            addresses: list[str] = []
            with suppress(OSError, UnicodeError):
                infos = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
                addresses = sorted({_text(info[4][0], self.port) for info in infos})
            if addresses and addresses != self._known:
                self._known = addresses
                self._apply(addresses)
            if not addresses:
                self._failures.value += 1
            self.resolved.set()
            await asyncio.sleep(PERIOD if addresses else FAILED_PERIOD)


def _text(host: object, port: int) -> str:
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
