"""What the admin API is told of several processes; see `admin.app.AdminView`."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from l7proxy.admin import answers
from l7proxy.admin.declare import Refused
from l7proxy.admin.tapping import Source
from l7proxy.core.stats import Stats
from l7proxy.identity.report import ShownIdentity
from l7proxy.proxy.control import NotKept
from l7proxy.proxy.decision import Question
from l7proxy.proxy.explanation import Explanation
from l7proxy.proxy.tap import Wanted
from l7proxy.proxy.why import Why
from l7proxy.server.channel import WorkerGone
from l7proxy.server.merged import MergedTap
from l7proxy.server.view import ALIKE, FAILURES, log_tap
from l7proxy.server.workers import PATIENCE, Workers
from l7proxy.telemetry.access import Record
from l7proxy.telemetry.log import Level


class SeveralView:
    """The live state of all workers, as plain data."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    @property
    def level(self) -> Level:
        return self._workers.telemetry.log.level

    async def set_level(self, level: Level) -> None:
        self._workers.telemetry.log.level = level
        await self._workers.every("set_level", level)

    @property
    def target(self) -> Mapping[str, str]:
        return self._workers.telemetry.target

    async def collect(self) -> Stats:
        return await self._workers.collect()

    async def not_ready(self) -> str:
        if self._workers.draining:
            return "draining"
        if not self._workers.complete:
            return "waiting for workers"
        try:
            async with asyncio.timeout(PATIENCE):
                answers = await self._workers.every("view", "not_ready")
        except TimeoutError:
            return "a worker does not answer"
        return next(filter(None, answers), "") if answers else "no worker serves"

    def not_live(self) -> str:
        return ""

    async def config(self) -> answers.Config:
        return cast(answers.Config, await self._any("config"))

    async def routes(self) -> list[answers.Route]:
        return cast(list[answers.Route], await self._any("routes"))

    async def certs(self) -> list[ShownIdentity]:
        return cast(list[ShownIdentity], await self._any("certs"))

    async def explain(self, question: Question, version: str = "") -> Explanation:
        return cast(Explanation, await self._any("explain", question, version))

    async def why(self, name: str) -> list[Why]:
        told = await self._workers.every("view", "why", name)
        return sorted((why for one in told for why in one), key=lambda why: why.request.time)[-ALIKE:]

    async def failures(self) -> list[Record]:
        told = await self._workers.every("view", "failures")
        return sorted((line for one in told for line in one), key=lambda line: line.time, reverse=True)[:FAILURES]

    async def clusters(self) -> list[answers.Cluster]:
        """Adds up what each worker has under way; latencies are those of the slowest."""
        total: dict[str, answers.Cluster] = {}
        for clusters in await self._workers.every("view", "clusters"):
            for cluster in clusters:
                known = total.setdefault(cluster["name"], cluster)
                if known is not cluster:
                    _add_cluster(known, cluster)
        return list(total.values())

    async def requests(self) -> list[answers.Active]:
        total: dict[tuple[str, str], answers.Active] = {}
        for one in await self._workers.every("view", "requests"):
            for item in one:
                known = total.setdefault((item["direction"], item["route"]), item)
                if known is not item:
                    known["active"] += item["active"]
        return list(total.values())

    async def tap(self, wanted: Wanted) -> Source:
        tap = MergedTap(self._workers, wanted)
        await tap.begin()
        log_tap(self._workers.telemetry.log, wanted)
        return tap

    async def drain(self) -> None:
        await self._workers.begin_drain()

    def quit(self) -> None:
        self._workers.endings.quit()

    async def _any(self, name: str, *arguments: Any) -> Any:
        """Asks one worker, as all have the same configuration; raises Refused where none serves.

        Earlier configurations are kept by those that had them: raises NotKept where no worker did.
        """
        refusal: Exception = Refused(503, "no worker serves")
        for worker in list(self._workers.live.values()):
            try:
                return await worker.call("view", name, *arguments)
            except WorkerGone:
                continue
            except NotKept as error:
                refusal = error
        raise refusal


def _add_cluster(total: answers.Cluster, more: answers.Cluster) -> None:
    for key in ("requests", "pending", "connections"):
        total[key] += more[key]
    endpoints = {endpoint["address"]: endpoint for endpoint in total["endpoints"]}
    for endpoint in more["endpoints"]:
        known = endpoints.get(endpoint["address"])
        if known is None:
            total["endpoints"].append(endpoint)
        else:
            known["active"] += endpoint["active"]
            known["latency_ms"] = max(known["latency_ms"], endpoint["latency_ms"])
            known["ejected_for_s"] = max(known["ejected_for_s"], endpoint["ejected_for_s"])
