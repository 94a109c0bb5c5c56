"""The end of a process: it serves on while its clients move away, cuts what is left, and tells what became of it.

A connection that is open is asked to end (`connection: close`, GOAWAY) and may be used a little longer. New ones are
served as before: who routes to us hears of the end later than we do.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from msgspec import Struct

from l7proxy.config.model import Sidecar
from l7proxy.core.exchange import Exchange
from l7proxy.server.listener import Listener
from l7proxy.server.listeners import TRAFFIC, Listeners

_TICK = 0.05
TOLD = 10
"""Requests that are named in a report."""
_LAST_WORDS = 0.1
"""Seconds for the last answers to leave."""


class Report(Struct):
    """What became of the requests that were under way or came while the process drained.

    `finished` were answered, `cut` were not, or not to their end; `requests` names some of these and `why` says what
    ended the patience with them. `connections_closed` were still open.
    """

    seconds: float = 0.0
    finished: int = 0
    cut: int = 0
    connections_closed: int = 0
    why: str = ""
    requests: list[str] = []


async def patience(idle: Callable[[], Awaitable[bool]], hurry: asyncio.Event, grace: float) -> str:
    """Returns "" once nothing is left to do, or says what came before that."""
    until = time.monotonic() + grace
    while not hurry.is_set():
        if await idle():
            return ""
        if time.monotonic() >= until:
            return "the grace period was over"
        await asyncio.sleep(_TICK)
    return "a second signal"


class Drain:
    """The drain of one process: `begin` asks clients to leave, `finish` cuts those who are still here."""

    def __init__(self, listeners: Listeners, spec: Sidecar) -> None:
        self._all = listeners
        self._spec = spec
        self._began = 0.0
        self._before = 0
        self._quiet = spec.drain.quiet
        self._accepted = 0.0
        self._came = 0.0

    @property
    def _listeners(self) -> list[Listener]:
        return self._all.traffic

    @property
    def began(self) -> bool:
        """Whether clients were asked to leave."""
        return self._began > 0

    def begin(self) -> None:
        """Asks clients to leave, and goes on serving them."""
        if not self.began:
            self._began = time.monotonic()
            self._before = sum(listener.answered for listener in self._listeners)
            for listener in self._listeners:
                listener.drain()

    def expect_nobody(self) -> None:
        """No client will come any more: the end need not wait for any, nor for the application."""
        self._quiet = 0.0

    def press(self) -> None:
        """Somebody waits for the end: connections without a request are closed, and no client is waited for."""
        self.expect_nobody()
        for listener in self._listeners:
            listener.patience = 0.0
            listener.drain()

    async def idle(self) -> bool:
        """Says whether nothing is left to do."""
        accepted = sum(listener.accepted.value for listener in self._listeners)
        now = time.monotonic()
        if accepted != self._accepted:
            self._accepted, self._came = accepted, now
        if self._all.opening or any(listener.connections for listener in self._listeners):
            return False
        if not self._quiet:
            return True
        return now - self._began >= self._quiet and now - self._came >= self._quiet and await self._app_gone()

    async def finish(self, why: str) -> Report:
        """Cuts what is left, and tells what became of all."""
        report = Report(round(time.monotonic() - self._began, 3))
        report.finished = sum(listener.answered for listener in self._listeners) - self._before
        self._all.stop_accepting(TRAFFIC)
        for listener in self._listeners:
            for connection in list(listener.connections):
                report.connections_closed += 1
                for exchange in connection.exchanges:
                    report.cut += 1
                    if len(report.requests) < TOLD:
                        report.requests.append(_name(listener, exchange))
                connection.cut("draining")
        if report.cut:
            report.why = why
            await asyncio.sleep(_LAST_WORDS)
        return report

    async def _app_gone(self) -> bool:
        """Says whether nobody is left who might call others through us."""
        inbound = self._spec.inbound
        if self._spec.outbound is None or inbound is None or inbound.app is None:
            return True
        url = urlsplit(inbound.app)
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            async with asyncio.timeout(0.5):
                _, writer = await asyncio.open_connection(url.hostname, port)
        except TimeoutError:
            return False
        except OSError:
            return True
        writer.close()
        # It is still there, and need not be asked many times a second.
        await asyncio.sleep(0.5)
        return False


def _name(listener: Listener, exchange: Exchange) -> str:
    text = b"%b %b%b" % (exchange.method, exchange.authority, exchange.path)
    return f"{listener.name} {text[:200].decode('utf-8', 'replace')}"
