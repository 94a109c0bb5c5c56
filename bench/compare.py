"""Scenarios that give several contenders the same load, in interleaved rounds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.contenders import Contender, Proxy, Setup
from bench.lab import Lab
from bench.load import Load
from bench.model import Derive, Goal, Result, Row, Sample
from bench.process import PROXY_CORE, BenchError, core_busy
from bench.prove import Proofs
from bench.stats import median


@dataclass(frozen=True, slots=True)
class Plan:
    """How long the run may take: rounds, seconds of load in each, and only these contenders where some are named."""

    rounds: int = 5
    seconds: int = 5
    contenders: frozenset[str] = frozenset()

    def wants(self, contender: Contender) -> bool:
        return not self.contenders or contender.name in self.contenders


class Scenario(Protocol):
    """Anything with a name that runs in a lab and returns what it found."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    def run(self, lab: Lab, plan: Plan) -> Result: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a comparison; the label is the contender's name unless several of its setups are compared."""

    contender: Contender
    setup: Setup
    name: str = ""

    @property
    def label(self) -> str:
        return self.name or self.contender.name


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same `drive` for all entries; `check` proves what is special to the scenario, `derive` adds findings."""

    name: str
    title: str
    entries: Sequence[Entry]
    drive: Callable[[Proxy, int], Load]
    goals: Sequence[Goal] = ()
    reference: str = "envoy"
    check: Callable[[Proxy], Sequence[str]] = lambda proxy: ()
    derive: Derive = lambda rows: []
    notes: Sequence[str] = ()
    unit: str = "requests"
    logged: bool = True
    """Whether each unit is one request, with its line in the access log."""

    def run(self, lab: Lab, plan: Plan) -> Result:
        """Starts all contenders, proves, loads them in turn round by round, proves again, stops them.

        A contender that does not start or whose proof fails gets no figures, and the others go on.
        """
        result = Result(self.name, self.title, self.reference, notes=list(self.notes), unit=self.unit)
        runners: list[Runner] = []
        try:
            for entry in self.entries:
                if plan.wants(entry.contender):
                    with result.without(entry.label):
                        runners.append(self._start(lab, entry))
            for turn in range(-1, plan.rounds):  # the first turn only warms up
                for step in range(len(runners)):
                    runner = runners[(turn + step) % len(runners)]
                    with result.without(runner.proxy.label):
                        self._turn(runner, plan.seconds if turn >= 0 else 1, count=turn >= 0)
            for runner in runners:
                with result.without(runner.proxy.label):
                    result.rows.append(self._finish(runner))
        finally:
            for runner in runners:
                runner.proxy.process.stop()
        result.rows = [row for row in result.rows if row.label not in result.errors]
        if taken := [sample.others for row in result.rows for sample in row.samples]:
            result.notes.append(_disturbance(median(taken), max(taken)))
        rows = result.by_label()
        result.findings = [finding for goal in self.goals if (finding := goal.judge(rows)) is not None]
        if len(rows) == len(self.entries):
            result.findings += self.derive(rows)
        return result

    def _start(self, lab: Lab, entry: Entry) -> "Runner":
        proxy = entry.contender.start(lab, entry.setup, entry.label)
        runner = Runner(proxy, Proofs(proxy), Row(proxy.label))
        try:
            runner.proofs.done.extend(self.check(proxy))
            runner.proofs.before()
        except BenchError:
            proxy.process.stop()
            raise
        return runner

    def _turn(self, runner: "Runner", seconds: int, count: bool) -> None:
        process = runner.proxy.process
        _settle()
        before, busy, began = process.cpu(), core_busy(PROXY_CORE), time.monotonic()
        load = self.drive(runner.proxy, seconds)
        cpu = process.cpu() - before
        others = max(0.0, core_busy(PROXY_CORE) - busy - cpu) / (time.monotonic() - began)
        if not process.alive() or load.requests == 0:
            raise BenchError(f"{runner.proxy.label} answered nothing:\n{process.tail()}")
        runner.answered += load.requests
        runner.cut_off += load.unfinished
        if count:
            runner.row.samples.append(Sample(load.requests, load.seconds, cpu, load.p50, load.p99, others))

    def _finish(self, runner: "Runner") -> Row:
        runner.row.rss = runner.proxy.process.rss()
        if self.logged:
            runner.proofs.after(runner.answered, runner.cut_off)
        runner.row.proofs = runner.proofs.done
        return runner.row


def _settle() -> None:
    """Waits, 3 s at most, for the proxies' core to fall silent: who was loaded before may still be cleaning up."""
    for _ in range(30):
        busy = core_busy(PROXY_CORE)
        time.sleep(0.1)
        if core_busy(PROXY_CORE) - busy < 0.005:
            return


def _disturbance(usual: float, most: float) -> str:
    """Says how much of the proxies' core was gone to others, and when that makes the figures worthless."""
    words = f"Other processes had {usual:.0%} of the proxies' core (median of the rounds), at most {most:.0%}."
    return f"**Disturbed: do not quote.** {words}" if usual > 0.05 else words


@dataclass(slots=True)
class Runner:
    """A proxy in its rounds: the answers so far, and how many may have been cut off at the end of a round."""

    proxy: Proxy
    proofs: Proofs
    row: Row
    answered: int = 0
    cut_off: int = 0
