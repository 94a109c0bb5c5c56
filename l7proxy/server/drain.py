"""The end of a process: it serves on while its clients move away, cuts what is left, and tells what became of it.

A connection that is open is asked to end (`connection: close`, GOAWAY) and may be used a little longer. New ones are
served as before: who routes to us hears of the end later than we do.
"""

import asyncio
import time
from urllib.parse import urlsplit

from msgspec import Struct

from l7proxy.config.model import Sidecar
from l7proxy.core.exchange import Exchange
from l7proxy.server.listener import Listener
from l7proxy.server.listeners import Listeners

_TICK = 0.05
_TOLD = 10
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


class Drain:
    """The drain of one process: `begin` asks clients to leave, `run` waits for them as long as the grace period lasts.

    `impatient` means that somebody waits for the end: it comes as soon as no request is under way and no client that
    has been told to leave remains.
    """

    def __init__(self, listeners: Listeners, spec: Sidecar) -> None:
        self._all = listeners
        self._spec = spec
        self._hurry = asyncio.Event()
        self._began = 0.0
        self._before = 0
        self._why = ""

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
            self._before = self._answered()
            for listener in self._listeners:
                listener.drain()

    def hurry(self, why: str) -> None:
        """Ends the patience now."""
        self._why = self._why or why
        self._hurry.set()

    async def run(self, impatient: bool = False) -> Report:
        """Returns once nothing is left to do, or what is left has been cut."""
        self.begin()
        started = time.monotonic()
        drain = self._spec.drain
        quiet = 0.0 if impatient else drain.quiet
        accepted, came = self._accepted(), started
        if impatient:
            for listener in self._listeners:
                listener.patience = 0.0
                listener.drain()
        while not self._hurry.is_set():
            now = time.monotonic()
            if now - started >= drain.grace:
                self._why = "the grace period was over"
                break
            if accepted != (accepted := self._accepted()):
                came = now
            if (
                not any(listener.connections for listener in self._listeners)
                and now - came >= quiet
                and (not quiet or await self._app_gone())
            ):
                break
            await asyncio.sleep(_TICK)
        return await self._end(started)

    async def _end(self, started: float) -> Report:
        report = Report(round(time.monotonic() - started, 3), self._answered() - self._before)
        for listener in self._listeners:
            for connection in list(listener.connections):
                report.connections_closed += 1
                for exchange in connection.exchanges:
                    report.cut += 1
                    if len(report.requests) < _TOLD:
                        report.requests.append(_name(listener, exchange))
                connection.cut("draining")
        if report.cut:
            report.why = self._why
            await asyncio.sleep(_LAST_WORDS)
        return report

    def _accepted(self) -> float:
        return sum(listener.accepted.value for listener in self._listeners)

    def _answered(self) -> int:
        return sum(listener.answered for listener in self._listeners)

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
