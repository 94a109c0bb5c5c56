"""Several processes that answer as one: the parent hears signals, follows the configuration and serves operators.

The parent opens the listening sockets, one for each worker, and keeps them open: when a worker dies, connections that
nobody has accepted yet wait for the one that takes its place. Nothing of this is there with `workers: 1`.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from l7proxy.admin.app import AdminView
from l7proxy.config.model import Model
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.handler import Source
from l7proxy.core.loops import loops
from l7proxy.core.slices import between
from l7proxy.core.stats import Stats
from l7proxy.proxy.control import follow, warn
from l7proxy.server.channel import Caller, WorkerGone, connect
from l7proxy.server.drain import TOLD, Report, patience
from l7proxy.server.hosting import hosted
from l7proxy.server.listeners import TRAFFIC, Listeners, Sockets, addresses
from l7proxy.server.parcel import Digest, Piece, pack
from l7proxy.server.process import APPS, Endings, Handover, hear_reload, log_failures, tell
from l7proxy.server.totals import Dump, add_up, dump
from l7proxy.telemetry.facade import Telemetry, resource
from l7proxy.telemetry.log import Level, Log

BACKOFF = 0.1
"""Seconds before a worker that died is replaced, twice as many each time that it dies young again."""
BACKOFF_MAX = 10.0
YOUNG = 30.0
"""Seconds after which a worker is not held for one that dies as soon as it starts."""
SILENCE = 10
"""Seconds without a sign of life after which a worker is ended: all that is done in every worker waits for it."""
PATIENCE = 2.0
"""Seconds that probes and scrapes wait for a worker that may hang."""
_STARTING, _CLOSING = 60.0, 5.0
"""Seconds for a worker to begin to serve, and to end."""


class Worker:
    """The parent's side of one worker."""

    def __init__(self, number: int, popen: subprocess.Popen[bytes], caller: Caller) -> None:
        self.number = number
        self.popen = popen
        self.caller = caller
        self.call = caller.call
        self.last: Dump = []
        """Its metrics when they were last asked for."""

    async def load(self, pieces: list[Piece]) -> list[Digest]:
        """Sends what the worker does not have of a model; returns what tells it how to put it together."""
        digests = [digest for digest, _ in pieces]
        missing = set(await self.call("missing", digests))
        for digest, data in pieces:
            if digest in missing:
                await self.call("add", digest, data)
        return digests

    async def prepare(self, head: Model, pieces: list[Piece]) -> None:
        """Lets the worker compile a model. Raises ConfigError."""
        await self.call("prepare", head, await self.load(pieces))

    async def ended(self) -> bool:
        """Returns once the worker is gone: True if it is still there, but has given no sign of life for too long."""
        while not self.caller.gone.done():
            sign = asyncio.create_task(self._sign())
            # In turns of our event loop: where all processes were stopped, the clock alone says nothing of this one.
            for _ in range(SILENCE):
                if (await asyncio.wait([sign], timeout=1))[0]:
                    break
            else:
                sign.cancel()
                return True
            await asyncio.wait([self.caller.gone], timeout=1)
        return False

    async def _sign(self) -> None:
        with suppress(WorkerGone):
            await self.call("ping")

    async def end(self) -> int:
        """Hangs up, and waits until the process is gone; returns its exit status."""
        self.caller.close()
        for _ in range(100):
            if self.popen.poll() is not None:
                break
            await asyncio.sleep(0.02)
        else:
            self.popen.kill()
        return self.popen.wait()


class Workers:
    """The workers of one sidecar, and what is served beside them."""

    def __init__(self, model: Model, sockets: Sockets, level: Level) -> None:
        self._loop = asyncio.get_running_loop()
        self.model = model
        self.sockets = sockets
        self.endings = Endings(self._loop)
        self._stats = Stats()
        self.telemetry = Telemetry(self._stats, Log(self._stats, level=level))
        log_failures(self._loop, self.telemetry.log)
        self._restarts = self._stats.counter("l7proxy_worker_restarts_total", "Workers that died and were replaced")
        self._stats.gauge("l7proxy_workers", "Workers that serve", lambda: len(self.live))
        self.live: dict[int, Worker] = {}
        self._departed: Dump = []
        self._packed: tuple[Model, list[Piece]] = (model, [])
        self._lock = asyncio.Lock()
        self._keepers: list[asyncio.Task[None]] = []
        self.complete = False
        """Whether all workers served once."""
        self.draining = False
        self.listeners = Listeners(self._stats, model.sidecar.spec)

    def operate(self, view: AdminView) -> None:
        """Serves operators, who see all workers by `view`."""
        for name, opened in self.sockets.items():
            if name not in TRAFFIC:
                self.listeners.operate(name, hosted(APPS[name](view)), opened)

    async def start(self) -> None:
        """Starts the workers; raises ConfigError when one cannot compile the model, WorkerGone when one died."""
        self.telemetry.target = resource(self.model.sidecar.spec.service)
        self._packed = await between(pack(self.model))
        numbers = range(self.model.sidecar.spec.workers)
        for outcome in await asyncio.gather(*map(self._spawn, numbers), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        self.complete = True
        self._keepers = [self._loop.create_task(self._keep(number)) for number in numbers]

    async def serve(self, source: Source | None, handover: Handover) -> None:
        """Serves until a signal ends it, or another process takes its place."""
        endings = self.endings
        self._loop.add_signal_handler(signal.SIGUSR1, self._reopen)
        self.telemetry.start(self._loop)
        warn(self.model.warnings, self.telemetry)
        if source is not None:
            self._keepers.append(
                self._loop.create_task(follow(source, self.apply, self.telemetry, self.model.sidecar.spec))
            )
            hear_reload(self._loop, source)
        for name, address in addresses(self.model.sidecar.spec).items():
            self.telemetry.log("info", "listening", listener=name, address=address)
        handover.complete(endings, self.telemetry.log)
        await endings.first.wait()
        await self.begin_drain()
        if endings.interactive:
            await self.every("press")
        if endings.relieved:
            self._close_sockets()
            self.listeners.resign()
            await self.every("expect_nobody")
        why = await patience(self._idle, endings.second, self.model.sidecar.spec.drain.grace)
        handover.close()
        tell(self.telemetry.log, await self._finish(why))
        await self.close()

    async def every(self, name: str, *arguments: Any) -> list[Any]:
        """Calls a function of every worker; returns what those said that lived to answer."""

        async def ask(worker: Worker) -> list[Any]:
            try:
                return [await worker.call(name, *arguments)]
            except WorkerGone:
                return []

        answers = await asyncio.gather(*map(ask, list(self.live.values())))
        return [answer for one in answers for answer in one]

    async def apply(self, model: Model) -> None:
        """Makes a model live in all workers, or raises ConfigError and changes nothing in any."""
        async with self._lock:
            if model.version == self.model.version:
                return
            packed = await between(pack(model))
            workers = list(self.live.values())
            asked = [worker.prepare(*packed) for worker in workers]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            errors = [answer for answer in answers if answer is not None and not isinstance(answer, WorkerGone)]
            verdict = "rollback" if errors else "commit"
            ready = [worker for worker, answer in zip(workers, answers, strict=True) if answer is None]
            await asyncio.gather(*(worker.call(verdict) for worker in ready), return_exceptions=True)
            for error in errors:
                if isinstance(error, ConfigError):
                    raise error
                raise ConfigError([Problem(model.sidecar.file, 0, f"a worker failed: {error}")])
            self.model, self._packed = model, packed
            self.telemetry.target = resource(model.sidecar.spec.service)

    async def begin_drain(self) -> None:
        """Asks every client to leave."""
        self.draining = True
        await self.every("begin_drain")

    async def collect(self) -> Stats:
        """Returns the metrics of all processes added up, with what those counted that have ended."""

        async def look(worker: Worker) -> None:
            with suppress(WorkerGone, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    worker.last = await worker.call("dump")

        await asyncio.gather(*map(look, list(self.live.values())))
        return add_up([await dump(self._stats), *(worker.last for worker in self.live.values()), self._departed])

    async def close(self) -> None:
        """Ends everything."""
        for keeper in self._keepers:
            keeper.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await self.every("close")
        self.listeners.close()
        await asyncio.gather(*(worker.end() for worker in self.live.values()))
        self.telemetry.close()

    async def _idle(self) -> bool:
        return all(await self.every("idle"))

    async def _finish(self, why: str) -> Report:
        self._close_sockets()
        total = Report()
        for report in await self.every("finish", why):
            total.seconds = max(total.seconds, report.seconds)
            total.finished += report.finished
            total.cut += report.cut
            total.connections_closed += report.connections_closed
            total.why = total.why or report.why
            total.requests = (total.requests + report.requests)[:TOLD]
        return total

    def _close_sockets(self) -> None:
        for name in TRAFFIC:
            for sock in self.sockets.get(name, ()):
                sock.close()

    def _reopen(self) -> None:
        self._loop.create_task(self.every("reopen"))

    async def _spawn(self, number: int) -> None:
        """Starts a worker, which serves when this returns."""
        ours, theirs = socket.socketpair()
        sockets = {name: self._share(name, number) for name in TRAFFIC if name in self.sockets}
        descriptors = {name: [sock.fileno() for sock in share] for name, share in sockets.items()}
        popen = _launch(theirs, descriptors)
        theirs.close()
        worker = Worker(number, popen, await connect(ours))
        head, pieces = self._packed
        try:
            async with asyncio.timeout(_STARTING):
                digests, level = await worker.load(pieces), self.telemetry.log.level
                await worker.call("start", head, digests, descriptors, level, loops.addresses, loops.token)
                if self.draining:
                    await worker.call("begin_drain")
        except BaseException:
            await worker.end()
            raise
        self.live[number] = worker

    def _share(self, name: str, number: int) -> list[socket.socket]:
        """Returns the sockets that a worker accepts from; where there are too few for all, some share one."""
        sockets, workers = self.sockets[name], self.model.sidecar.spec.workers
        return sockets[number::workers] or [sockets[number % len(sockets)]]

    async def _keep(self, number: int) -> None:
        """Replaces a worker whenever it dies."""
        pause = BACKOFF
        while True:
            worker, born = self.live[number], time.monotonic()
            if await worker.ended():
                self.telemetry.log("error", "worker hangs", worker=number, pid=worker.popen.pid, seconds=SILENCE)
                worker.popen.kill()
                await asyncio.wait([worker.caller.gone])
            del self.live[number]
            status = await worker.end()
            self._restarts.value += 1
            self.telemetry.log("error", "worker died", worker=number, pid=worker.popen.pid, status=status)
            self._departed = await dump(add_up([self._departed, worker.last], lasting=True))
            if time.monotonic() - born > YOUNG:
                pause = BACKOFF
            while number not in self.live:
                await asyncio.sleep(pause)
                pause = min(pause * 2, BACKOFF_MAX)
                try:
                    async with self._lock:
                        await self._spawn(number)
                except (ConfigError, WorkerGone, RuntimeError, OSError) as error:
                    self.telemetry.log("error", "worker not replaced", worker=number, error=str(error))


def _launch(channel: socket.socket, descriptors: dict[str, list[int]]) -> subprocess.Popen[bytes]:
    # What this process imports from, and nothing that happens to lie in the current folder.
    path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "l7proxy.server.worker", str(channel.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=[channel.fileno(), *(number for numbers in descriptors.values() for number in numbers)],
        env={**os.environ, "PYTHONPATH": path},
    )
