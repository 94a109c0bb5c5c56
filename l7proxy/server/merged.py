"""One tap on all workers: each is asked for more when the last of it was taken, so that nothing piles up here."""

import asyncio
import itertools
from contextlib import suppress

from l7proxy.proxy.tap import Batch, Wanted
from l7proxy.server.channel import WorkerGone
from l7proxy.server.workers import Worker, Workers

LOOK = 0.5
"""Seconds between two looks for workers that took the place of others."""

_numbers = itertools.count()


class MergedTap:
    """A tap on every worker, also on those that come later; see `proxy.tap.Tap`."""

    def __init__(self, workers: Workers, wanted: Wanted) -> None:
        self._workers = workers
        self._wanted = wanted
        self._number = next(_numbers)
        self._known: set[Worker] = set()
        self._asked: dict[Worker, asyncio.Task[Batch]] = {}

    async def begin(self) -> None:
        """Returns once every worker looks."""
        await asyncio.gather(*map(self._begin, list(self._workers.live.values())))

    async def take(self, seconds: float) -> Batch:
        """Returns what the workers have to tell, perhaps nothing, after some seconds at the latest."""
        for worker in self._workers.live.values():
            if worker not in self._asked:
                self._asked[worker] = asyncio.create_task(self._ask(worker))
        total = Batch()
        if not self._asked:
            await asyncio.sleep(min(seconds, LOOK))
            return total
        timeout = min(seconds, LOOK)
        await asyncio.wait(self._asked.values(), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for worker, task in list(self._asked.items()):
            if task.done():
                total.add(self._asked.pop(worker).result())
        return total

    def close(self) -> None:
        """Looks no longer."""
        for task in self._asked.values():
            task.cancel()
        asyncio.get_running_loop().create_task(self._workers.every("close_tap", self._number))

    async def _begin(self, worker: Worker) -> None:
        with suppress(WorkerGone):
            await worker.call("open_tap", self._number, self._wanted)
        self._known.add(worker)

    async def _ask(self, worker: Worker) -> Batch:
        if worker not in self._known:
            await self._begin(worker)
        try:
            batch: Batch = await worker.call("take_from_tap", self._number, LOOK)
        except WorkerGone:
            await asyncio.sleep(LOOK)
            batch = Batch()
        return batch
