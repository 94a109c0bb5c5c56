"""One of several workers: carries traffic as its parent says. `python -m l7proxy.server.worker FD` is started by it."""

import asyncio
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from l7proxy.config.model import Model
from l7proxy.core.loops import loops
from l7proxy.proxy.tap import Batch, Tap, Wanted
from l7proxy.server import channel
from l7proxy.server.drain import Report, patience
from l7proxy.server.listeners import TRAFFIC
from l7proxy.server.parcel import Digest, Pieces
from l7proxy.server.process import Process, tell
from l7proxy.server.program import leave, loop_until_done, prepare
from l7proxy.server.totals import Dump, dump
from l7proxy.telemetry.lines import LineWriter
from l7proxy.telemetry.log import Level


class Worker:
    """What the parent may call, by name."""

    def __init__(self) -> None:
        self._pieces = Pieces()
        self._running: Process | None = None
        self._taps: dict[int, Tap] = {}

    @property
    def _process(self) -> Process:
        assert self._running is not None
        return self._running

    def ping(self) -> None:
        """Says that we live: the answer is all that is asked for."""

    def missing(self, digests: list[Digest]) -> list[Digest]:
        return self._pieces.missing(digests)

    def add(self, digest: Digest, data: bytes) -> None:
        self._pieces.add(digest, data)

    def start(
        self,
        head: Model,
        digests: list[Digest],
        descriptors: dict[str, list[int]],
        level: Level,
        addresses: Sequence[tuple[str, int]],
        token: str,
    ) -> None:
        """Compiles the first model and begins to serve on open sockets. Raises ConfigError.

        What all processes of the sidecar listen on, and the token that they have together, are for `loops`.
        """
        loops.begin(addresses, token)
        sockets = {name: [socket.socket(fileno=number) for number in numbers] for name, numbers in descriptors.items()}
        self._running = Process(self._pieces.build(head, digests), sockets, level)
        self._running.start()

    async def prepare(self, head: Model, digests: list[Digest]) -> None:
        """Compiles a model. Raises ConfigError; else `commit` or `rollback` must follow."""
        await self._process.control.prepare(self._pieces.build(head, digests))

    async def commit(self) -> None:
        await self._process.control.commit()

    def rollback(self) -> None:
        self._process.control.rollback()

    async def dump(self) -> Dump:
        return await dump(self._process.telemetry.stats)

    def view(self, name: str, *arguments: Any) -> Any:
        """Returns what the admin API of this process alone would."""
        return getattr(self._process.view, name)(*arguments)

    def open_tap(self, number: int, wanted: Wanted) -> None:
        self._taps[number] = self._process.control.taps.open(wanted)

    async def take_from_tap(self, number: int, seconds: float) -> Batch:
        tap = self._taps.get(number)
        return await tap.take(seconds) if tap is not None else Batch()

    def close_tap(self, number: int) -> None:
        tap = self._taps.pop(number, None)
        if tap is not None:
            tap.close()

    def set_level(self, level: Level) -> None:
        self._process.view.set_level(level)

    def reopen(self) -> None:
        self._process.telemetry.reopen()

    def begin_drain(self) -> None:
        self._process.drain.begin()

    def expect_nobody(self) -> None:
        self._process.listeners.stop_accepting(TRAFFIC)
        self._process.drain.expect_nobody()

    def press(self) -> None:
        self._process.drain.press()

    async def idle(self) -> bool:
        return await self._process.drain.idle()

    async def finish(self, why: str) -> Report:
        return await self._process.drain.finish(why)

    async def close(self) -> None:
        process, self._running = self._running, None
        if process is not None:
            await process.close()

    async def orphaned(self) -> None:
        """Nobody tells us what to do any more: ends by itself, in favour of whoever serves the ports next."""
        if self._running is None:
            return
        process = self._running
        process.telemetry.log("error", "the parent process is gone")
        process.listeners.stop_accepting(TRAFFIC)
        process.drain.begin()
        process.drain.expect_nobody()
        grace = process.control.snapshot.model.sidecar.spec.drain.grace
        tell(
            process.telemetry.log,
            await process.drain.finish(await patience(process.drain.idle, asyncio.Event(), grace)),
        )
        await self.close()


async def work(descriptor: int) -> int:
    """Does what the parent says until it hangs up."""
    worker = Worker()
    await channel.answer(socket.socket(fileno=descriptor), lambda name: getattr(worker, name))
    await worker.orphaned()
    return 0


if __name__ == "__main__":
    # The parent hears the signals, and tells what they are to mean.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    prepare()
    LineWriter.shared = True
    leave(loop_until_done(work(int(sys.argv[1]))))
