"""One process that serves: its listeners, configuration and telemetry, from the first socket to the last byte."""

import asyncio
import gc
import signal
from typing import Any

from l7proxy.admin.app import admin_app, health_app, metrics_app
from l7proxy.config.model import Model, Sidecar
from l7proxy.core.handler import Source
from l7proxy.core.stats import Stats
from l7proxy.proxy.control import Control, warn
from l7proxy.server.drain import Drain, Report, patience
from l7proxy.server.hosting import hosted
from l7proxy.server.listeners import TRAFFIC, Listeners, Sockets, addresses
from l7proxy.server.takeover import Offer, Predecessor
from l7proxy.server.view import View
from l7proxy.telemetry.facade import Telemetry
from l7proxy.telemetry.log import Level, Log

APPS = {"admin": admin_app, "metrics": metrics_app, "health": health_app}
"""What operators are served, by listener."""


class Process:
    """Everything of a sidecar that serves on `sockets`. Raises ConfigError when the model cannot be compiled."""

    def __init__(self, model: Model, sockets: Sockets, level: Level) -> None:
        self._loop = asyncio.get_running_loop()
        stats = Stats()
        self.telemetry = Telemetry(stats, Log(stats, level=level))
        log_failures(self._loop, self.telemetry.log)
        self.control = Control(self.telemetry, model)
        spec = model.sidecar.spec
        self.listeners = Listeners(stats, spec)
        self.drain = Drain(self.listeners, spec)
        self.view = View(self.control, self.listeners, self.drain)
        live = self.control.live
        stats.gauge("l7proxy_requests", "Requests under way", lambda: live.active)
        stats.gauge(
            "l7proxy_buffered_bytes",
            "Bytes of requests and responses that wait for a slower reader",
            lambda: live.inbound_buffers.size + live.outbound_buffers.size,
        )
        for name, opened in sockets.items():
            if name in TRAFFIC:
                self.listeners.carry(name, live, opened, self.telemetry.log)
            else:
                self.listeners.operate(name, hosted(APPS[name](self.view)), opened)

    def start(self) -> None:
        """Begins what goes on beside the requests."""
        self.telemetry.start(self._loop)
        # What is here now stays: a collection that walked it would only make requests wait.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)

    async def close(self) -> None:
        """Ends everything; what could not be written within two seconds is lost."""
        self.listeners.close()
        self.control.close()
        await asyncio.sleep(0)
        self.telemetry.close()


def log_failures(loop: asyncio.AbstractEventLoop, log: Log) -> None:
    """Logs in one line what nobody else deals with."""

    def failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        task = context.get("task")
        log(
            "error",
            "internal error",
            message=str(context.get("message", "")),
            error=f"{type(error).__name__}: {error}" if error is not None else "",
            **({"task": repr(task)} if task is not None else {}),
        )

    loop.set_exception_handler(failed)


class Endings:
    """The signals that end the process: the first begins the end, the second cuts it short.

    Who presses Ctrl-C or asks for the end over the admin API (`interactive`) waits for it, and routes nothing to us. To
    be `relieved` is a first signal too: another process has our listening sockets.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self.interactive = False
        self.relieved = False
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._came, number)

    def _came(self, number: int) -> None:
        if self.first.is_set():
            self.second.set()
        self.first.set()
        self.interactive = number == signal.SIGINT

    def quit(self) -> None:
        """The application is done. Once the end has begun this says nothing new."""
        if not self.first.is_set():
            self.interactive = True
            self.first.set()

    def relieve(self) -> None:
        """Another process serves in our place."""
        self.relieved = True
        self.first.set()


class Handover:
    """The places of this process in a row of processes that serve the same addresses, one after the other.

    Without a `path` it is alone.
    """

    def __init__(self, path: str | None, predecessor: Predecessor | None, spec: Sidecar, sockets: Sockets) -> None:
        self._path = path
        self._predecessor = predecessor
        self._addresses = addresses(spec)
        self._sockets = sockets
        self._offer: Offer | None = None

    @property
    def succeeds(self) -> bool:
        """Whether another process has served until now."""
        return self._predecessor is not None

    def complete(self, endings: Endings, log: Log) -> None:
        """This process serves: its predecessor may go, and a successor may come."""

        def taken(pid: int) -> None:
            log("info", "taken over", by=pid)
            self.close()
            endings.relieve()

        if self._path is not None:
            self._offer = Offer(self._path, self._sockets, self._addresses, taken)
        # Only now: the predecessor removes its own offer from the path, and must find ours there.
        if self._predecessor is not None:
            self._predecessor.relieve()

    def close(self) -> None:
        """Nobody can take over any more."""
        if self._offer is not None:
            self._offer.close()


async def serve(process: Process, source: Source | None, handover: Handover) -> None:
    """Runs the only process of a sidecar until a signal ends it, or another process takes its place."""
    loop = asyncio.get_running_loop()
    log = process.telemetry.log
    endings = Endings(loop)
    process.view.quit = endings.quit
    loop.add_signal_handler(signal.SIGUSR1, process.telemetry.reopen)
    warn(process.control.snapshot.model.warnings, process.telemetry)
    if source is not None:
        process.control.spawn(process.control.follow(source))
        hear_reload(loop, source)
    process.start()
    for name, address in process.listeners.addresses().items():
        log("info", "listening", listener=name, address=address)
    handover.complete(endings, log)
    await endings.first.wait()
    drain = process.drain
    drain.begin()
    if endings.interactive:
        drain.press()
    if endings.relieved:
        process.listeners.resign()
        drain.expect_nobody()
    why = await patience(drain.idle, endings.second, process.control.snapshot.model.sidecar.spec.drain.grace)
    handover.close()
    tell(log, await drain.finish(why))
    await process.close()


def hear_reload(loop: asyncio.AbstractEventLoop, source: Source) -> None:
    """SIGHUP asks the source for what it has now."""
    reload = getattr(source, "reload", None)
    if reload is not None:
        loop.add_signal_handler(signal.SIGHUP, reload)


def tell(log: Log, report: Report) -> None:
    """Writes the one line at the end."""
    log(
        "info",
        "drained",
        seconds=report.seconds,
        finished=report.finished,
        cut=report.cut,
        why=report.why,
        requests=report.requests,
        connections_closed=report.connections_closed,
    )
