"""The same metrics through the OTel SDK and its Prometheus exporter: the reference that our own text is held to.

Imported only by who asks for it: the SDK and the exporter take 16 MB and 0.15 s.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter, ObservableGauge
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from l7proxy.core import stats as core
from l7proxy.core.stats import LATENCY_BUCKETS, Family, Stats

SERIES = 1_000_000
"""Above it the SDK folds series into one. Our own are bounded by the configuration and by the number of peers."""

SCOPE = "l7proxy"


class Exposition:
    """Serves `stats` by way of the SDK: `target` are the resource's attributes."""

    def __init__(self, stats: Stats, target: Mapping[str, str]) -> None:
        self._stats = stats
        self._registry = CollectorRegistry()
        self._resource = Resource(dict(target))
        provider = MeterProvider([_Reader(stats, self._registry)], self._resource, shutdown_on_exit=False)
        self._meter = provider.get_meter(SCOPE)
        self._known: set[str] = set()

    def render(self, openmetrics: bool = False) -> bytes:
        """Returns the whole text."""
        for refresh in self._stats.refresh:
            refresh()
        for family in self._stats:
            if family.name not in self._known:
                self._known.add(family.name)
                self._observe(family)
        return (generate_openmetrics if openmetrics else generate_latest)(self._registry)

    def _observe(self, family: Family) -> None:
        if family.kind == "counter":
            self._meter.create_observable_counter(_name(family), [_callback(family)], family.unit, family.help)
        elif family.kind == "gauge":
            self._meter.create_observable_gauge(_name(family), [_callback(family)], family.unit, family.help)


class _Reader(PrometheusMetricReader):
    """The exporter's reader, which gets our histograms as finished data points: no instrument observes a histogram."""

    def __init__(self, stats: Stats, registry: CollectorRegistry) -> None:
        limits: dict[Any, int] = {ObservableCounter: SERIES, ObservableGauge: SERIES}
        super().__init__(scope_info_enabled=False, registry=registry, cardinality_limits=limits)
        self._stats = stats

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        now = time.time_ns()
        observed = {
            metric.name: metric
            for resource in metrics_data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }
        metrics = []
        for family in self._stats:
            if family.kind == "histogram":
                observed[_name(family)] = _histograms(family, now)
            if family.children and _name(family) in observed:
                metrics.append(observed[_name(family)])
        scope = ScopeMetrics(InstrumentationScope(SCOPE), metrics, "")
        whole = MetricsData([ResourceMetrics(metrics_data.resource_metrics[0].resource, [scope], "")])
        super()._receive_metrics(whole, timeout_millis, **kwargs)


def _name(family: Family) -> str:
    """Returns the instrument's name: the exporter adds the suffixes of counters and of units."""
    if family.kind == "counter":
        return family.name.removesuffix("_total")
    return family.name.removesuffix("_seconds") if family.unit == "s" else family.name


def _callback(family: Family) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for labels, child in list(family.children.items()):
            assert not isinstance(child, core.Histogram)
            yield Observation(child.value, dict(labels))

    return observe


def _histograms(family: Family, now: int) -> Metric:
    points = []
    for labels, child in list(family.children.items()):
        assert isinstance(child, core.Histogram)
        counts = list(child.buckets)
        # The least and the greatest value are not kept: the text has no place for them.
        points.append(HistogramDataPoint(dict(labels), 0, now, sum(counts), child.sum, counts, LATENCY_BUCKETS, 0, 0))
    return Metric(_name(family), family.help, family.unit, Histogram(points, AggregationTemporality.CUMULATIVE))
