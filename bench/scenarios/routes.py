"""Many routes: what they cost a request, and what taking up a change of theirs costs live traffic."""

from dataclasses import dataclass
from typing import ClassVar

from bench.compare import Comparison, Entry, Plan
from bench.contenders import BARE, FULL, L7PROXY, Proxy, Setup
from bench.every import Every
from bench.lab import Lab
from bench.live import Live
from bench.load import Load, h2load_rate, wrk
from bench.model import Finding, Result, Row
from bench.process import BenchError
from bench.stats import median

FEW, MANY = 100, 10_000


def documents(count: int) -> str:
    """Returns that many Routes, each with a host and a path of its own."""
    return "".join(
        "---\napiVersion: l7proxy.io/v1\nkind: Route\n"
        f"metadata: {{name: route-{number}}}\n"
        f"spec: {{hosts: [h{number}.bench], matches: [{{path: {{prefix: /1k}}}}], upstream: app}}\n"
        for number in range(count)
    )


def _middle(proxy: Proxy, seconds: int) -> Load:
    return wrk(proxy.url("/1k"), 32, seconds, host=f"h{FEW // 2}.bench")


def _difference(rows: dict[str, Row]) -> list[Finding]:
    few, many = rows[f"{FEW} routes"], rows[f"{MANY} routes"]
    pairs = zip(many.samples, few.samples, strict=True)
    value = median([one.cpu / one.requests / (other.cpu / other.requests) for one, other in pairs])
    return [Finding(f"CPU of a request, {MANY:,} routes / {FEW}", value, "x", "<= 1.05x", value <= 1.05)]


@dataclass(frozen=True, slots=True)
class Reload:
    """Changes one of 10,000 routes again and again, first at rest, then under 1,000 requests/s."""

    name: ClassVar[str] = "reload"
    title: ClassVar[str] = f"l7proxy: a change among {MANY:,} routes, features on"

    def run(self, lab: Lab, plan: Plan) -> Result:
        result = Result(self.name, self.title)
        if not plan.wants(L7PROXY):
            return result
        live = Live(lab, FULL, more=documents(MANY))
        start = live.proxy.process.cpu_with_children()
        result.findings.append(Finding(f"CPU of the start with {MANY:,} routes", start, "s"))
        try:
            self._at_rest(live, result, plan.rounds)
            self._under_load(live, result, plan)
        finally:
            live.proxy.process.stop()
        return result

    def _at_rest(self, live: Live, result: Result, rounds: int) -> None:
        spent, taken = [], []
        for _ in range(max(3, rounds)):
            before = live.proxy.process.cpu_with_children()
            taken.append(live.reload())
            spent.append(live.proxy.process.cpu_with_children() - before)
        value = median(spent)
        result.findings.append(Finding("CPU of a reload, reading the YAML included", value, "s", "<= 1 s", value <= 1))
        result.findings.append(Finding("from the file's change to the first answer by it", median(taken), "s"))

    def _under_load(self, live: Live, result: Result, plan: Plan) -> None:
        seconds = max(6, plan.seconds)
        quiet, busy, reloads = [], [], 0
        for _ in range(plan.rounds):
            quiet.append(h2load_rate(live.proxy.url("/1k"), 1000, seconds).p99 or 0.0)
            with Every(2.0, live.reload) as reloader:
                busy.append(h2load_rate(live.proxy.url("/1k"), 1000, seconds).p99 or 0.0)
            reloads += reloader.done
        if not reloads:
            raise BenchError("no change went live under load")
        rise = median([1000 * (with_reloads - without) for with_reloads, without in zip(busy, quiet, strict=True)])
        result.findings += [
            Finding("p99 at 1,000 requests/s, nothing changes", 1000 * median(quiet), "ms"),
            Finding("p99 at 1,000 requests/s, a reload every 2 s", 1000 * median(busy), "ms"),
            Finding("rise of the p99 by the reloads", rise, "ms", "<= 2 ms", rise <= 2),
        ]
        result.notes.append(f"{reloads} changes went live under load; every request was answered 200.")


SCENARIOS = (
    Comparison(
        name="routes",
        title=f"l7proxy: a request among {MANY:,} routes and among {FEW}, bare",
        entries=(
            Entry(L7PROXY, Setup(chain=BARE.chain, telemetry=BARE.telemetry, more=documents(FEW)), f"{FEW} routes"),
            Entry(L7PROXY, Setup(chain=BARE.chain, telemetry=BARE.telemetry, more=documents(MANY)), f"{MANY} routes"),
        ),
        drive=_middle,
        derive=_difference,
        reference=f"{FEW} routes",
    ),
    Reload(),
)
