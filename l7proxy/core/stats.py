"""Counters, gauges and histograms as plain attributes: the hot path bumps them, telemetry reads them."""

from bisect import bisect_left
from collections.abc import Callable, Iterator

Labels = tuple[tuple[str, str], ...]

LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075) + (
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)


class Counter:
    """A number that only grows: `counter.value += 1`."""

    __slots__ = ("value",)
    kind = "counter"

    def __init__(self) -> None:
        self.value: float = 0


class Gauge:
    """A number that goes up and down, or that `read` tells when it is asked for."""

    __slots__ = ("_value", "read")
    kind = "gauge"

    def __init__(self, read: Callable[[], float] | None = None) -> None:
        self._value: float = 0
        self.read = read

    @property
    def value(self) -> float:
        return self._value if self.read is None else self.read()

    @value.setter
    def value(self, value: float) -> None:
        self._value = value


class Histogram:
    """Counts per bucket (not cumulative; the last is for values above the greatest bound), their sum and number.

    `exemplar` is the last (value, trace id, span id, epoch seconds) of a sampled observation. Who expires idle series
    keeps the rest: `used` is when, and `seen` at which count, it was last found to have moved, `pins` how many hold it.
    """

    __slots__ = ("buckets", "sum", "exemplar", "used", "seen", "pins")
    kind = "histogram"
    bounds = LATENCY_BUCKETS

    def __init__(self) -> None:
        self.buckets = [0] * (len(LATENCY_BUCKETS) + 1)
        self.sum = 0.0
        self.exemplar: tuple[float, str, str, float] | None = None
        self.used = 0.0
        self.seen = 0
        self.pins = 0

    def observe(self, value: float) -> None:
        """Adds one value in seconds."""
        self.buckets[bisect_left(LATENCY_BUCKETS, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.buckets)


Metric = Counter | Gauge | Histogram


class Family:
    """All series of one metric name: the help text, the unit and a child for each set of labels."""

    __slots__ = ("name", "kind", "help", "unit", "children")

    def __init__(self, name: str, kind: str, help: str, unit: str) -> None:
        self.name = name
        self.kind = kind
        self.help = help
        self.unit = unit
        self.children: dict[Labels, Metric] = {}


class Stats:
    """The registry of every metric of the process; asking twice for the same name and labels gives the same object.

    Names are Prometheus names in full (`l7proxy_retries_total`). A metric that changes kind raises ValueError, as do a
    counter without that suffix, and a counter `x_total` beside another metric `x`: to OpenMetrics both are `x`.
    """

    def __init__(self) -> None:
        self.families: dict[str, Family] = {}
        self.refresh: list[Callable[[], None]] = []
        """Called before the metrics are read, to set those that nobody counts (the CPU time of the process)."""

    def counter(self, name: str, help: str, **labels: str) -> Counter:
        """Returns the counter; `name` ends in `_total`."""
        children = self._family(name, "counter", help, "").children
        key = tuple(sorted(labels.items()))
        child = children.get(key)
        if child is None:
            child = children[key] = Counter()
        assert isinstance(child, Counter)
        return child

    def gauge(self, name: str, help: str, read: Callable[[], float] | None = None, **labels: str) -> Gauge:
        """Returns the gauge; a `read` replaces the one that it had, so that a swap re-binds it."""
        children = self._family(name, "gauge", help, "").children
        key = tuple(sorted(labels.items()))
        child = children.get(key)
        if child is None:
            child = children[key] = Gauge(read)
        assert isinstance(child, Gauge)
        if read is not None:
            child.read = read
        return child

    def histogram(self, name: str, help: str, **labels: str) -> Histogram:
        """Returns the histogram in seconds with the contract's buckets; `name` ends in `_seconds`."""
        return self.histogram_at(name, help, tuple(sorted(labels.items())))

    def histogram_at(self, name: str, help: str, labels: Labels) -> Histogram:
        """Returns the histogram of labels that are sorted already."""
        children = self._family(name, "histogram", help, "s").children
        child = children.get(labels)
        if child is None:
            child = children[labels] = Histogram()
        assert isinstance(child, Histogram)
        return child

    def forget(self, name: str, **labels: str) -> None:
        """Removes one series, for what no longer exists (a removed endpoint, an idle peer)."""
        family = self.families.get(name)
        if family is not None:
            family.children.pop(tuple(sorted(labels.items())), None)

    def __iter__(self) -> Iterator[Family]:
        return iter(list(self.families.values()))

    def _family(self, name: str, kind: str, help: str, unit: str) -> Family:
        family = self.families.get(name)
        if family is None:
            if kind == "counter" and not name.endswith("_total"):
                raise ValueError(f"counter {name} does not end in _total")
            other = name.removesuffix("_total") if kind == "counter" else f"{name}_total"
            if other in self.families:
                raise ValueError(f"metric {name} would be one with {other}")
            family = self.families[name] = Family(name, kind, help, unit)
        elif family.kind != kind:
            raise ValueError(f"metric {name} is a {family.kind}, not a {kind}")
        return family
