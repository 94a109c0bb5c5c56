"""What a run finds: samples of each round, rows of each contender, findings against goals."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bench.process import BenchError
from bench.stats import median

Measure = Literal["rate", "per_core", "p50", "p99", "rss"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one contender: seconds everywhere, `cpu` is what the proxy used for it."""

    requests: int
    seconds: float
    cpu: float
    p50: float | None = None
    p99: float | None = None
    others: float = 0.0
    """The part of the proxy's core that was gone to others during the round."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def per_core(self) -> float:
        """Requests for each CPU second of the proxy: what one core carries, whoever waited for whom."""
        return self.requests / self.cpu

    @property
    def busy(self) -> float:
        """The part of the core that the proxy used; well below 1 the generator or the backend was the limit."""
        return self.cpu / self.seconds


@dataclass(slots=True)
class Row:
    """One contender in one scenario."""

    label: str
    samples: list[Sample] = field(default_factory=list)
    rss: int = 0
    proofs: list[str] = field(default_factory=list)

    def values(self, measure: Measure) -> list[float]:
        """Returns the measure of each round, or nothing when the generator does not tell it."""
        if measure == "rss":
            return [float(self.rss)] if self.rss else []
        found = [getattr(sample, measure) for sample in self.samples]
        return [value for value in found if value is not None]

    def value(self, measure: Measure) -> float | None:
        """Returns the median over the rounds."""
        values = self.values(measure)
        return median(values) if values else None

    def cpu_per_thousand(self) -> float:
        """Returns the CPU seconds for 1,000 requests, the median over the rounds."""
        return median([1000 * sample.cpu / sample.requests for sample in self.samples])

    def busy(self) -> float:
        return median([sample.busy for sample in self.samples])


def ratio(row: Row, against: Row, measure: Measure) -> float | None:
    """Returns the median over the rounds of the ratio within each round, which noise from outside hits alike."""
    pairs = list(zip(row.values(measure), against.values(measure), strict=False))
    return median([one / other for one, other in pairs if other]) if any(other for _, other in pairs) else None


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure that a goal is about; `met` is None where there is no goal."""

    text: str
    value: float
    unit: str
    goal: str = ""
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio of two contenders that has to be at least, or at most, `bound`."""

    label: str
    against: str
    measure: Measure
    bound: float
    at_least: bool = True

    def judge(self, rows: dict[str, Row]) -> Finding | None:
        """Returns the finding, or None when one of the two was not measured."""
        if self.label not in rows or self.against not in rows:
            return None
        value = ratio(rows[self.label], rows[self.against], self.measure)
        if value is None:
            return None
        met = value >= self.bound if self.at_least else value <= self.bound
        names = {"rate": "requests/s", "per_core": "requests per core", "rss": "RSS"}
        text = f"{self.label} / {self.against}, {names.get(self.measure, self.measure)}"
        return Finding(text, value, "x", f"{'>=' if self.at_least else '<='} {self.bound:g}x", met)


@dataclass(slots=True)
class Result:
    """One scenario: rows that compare, findings that judge, notes that say what the figures rest on."""

    name: str
    title: str
    reference: str = "envoy"
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    """Why a contender, or the scenario under its own name, has no figures."""
    unit: str = "requests"

    @contextmanager
    def without(self, label: str) -> Iterator[None]:
        """Goes on without `label` when the block raises BenchError."""
        try:
            yield
        except BenchError as error:
            self.errors.setdefault(label, str(error))

    def by_label(self) -> dict[str, Row]:
        return {row.label: row for row in self.rows}

    def json(self) -> dict[str, Any]:
        """Returns everything, the samples of each round included."""
        return asdict(self)


Derive = Callable[[dict[str, Row]], list[Finding]]
