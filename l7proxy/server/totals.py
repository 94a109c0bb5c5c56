"""The metrics of several processes as those of one."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from l7proxy.core.stats import Counter, Family, Gauge, Histogram, Labels, Metric, Stats

_SERIES = 200
"""Series that are read without a turn for anybody else."""

_GREATEST = frozenset(
    (
        "l7proxy_config_version",
        "l7proxy_config_live_since_seconds",
        "l7proxy_config_accepted_total",
        "l7proxy_endpoints",
        "l7proxy_endpoints_ejected",
        "process_max_fds",
    )
)
"""What every process has of its own and a sum would not tell."""
_LEAST = frozenset(("l7proxy_certificate_expiry_seconds", "process_start_time_seconds"))

Values = list[tuple[Labels, Any]]
Dump = list[tuple[str, str, str, str, Values]]
"""Name, kind, help, unit and series of each metric: what is sent from process to process."""


async def dump(stats: Stats) -> Dump:
    """Returns all metrics as plain data."""
    for refresh in stats.refresh:
        refresh()
    families: Dump = []
    for family in stats:
        values: Values = []
        families.append((family.name, family.kind, family.help, family.unit, values))
        for labels, metric in list(family.children.items()):
            if isinstance(metric, Histogram):
                values.append((labels, (list(metric.buckets), metric.sum, metric.exemplar)))
            else:
                values.append((labels, metric.value))
            if len(values) % _SERIES == 0:
                await asyncio.sleep(0)
    return families


def add_up(dumps: Iterable[Dump], lasting: bool = False) -> Stats:
    """Returns the sum; with `lasting` only of what counts on after its process has ended."""
    total = Stats()
    for families in dumps:
        for name, kind, help, unit, values in families:
            if lasting and (kind == "gauge" or name in _GREATEST):
                continue
            family = total.families.get(name)
            if family is None:
                family = total.families[name] = Family(name, kind, help, unit)
            for labels, value in values:
                _add(family, labels, value)
    return total


def _add(family: Family, labels: Labels, value: Any) -> None:
    metric = family.children.get(labels)
    known = metric is not None
    if metric is None:
        metric = family.children[labels] = _KINDS[family.kind]()
    if isinstance(metric, Histogram):
        buckets, total, exemplar = value
        metric.buckets = [one + other for one, other in zip(metric.buckets, buckets, strict=True)]
        metric.sum += total
        if exemplar is not None and (metric.exemplar is None or exemplar[3] > metric.exemplar[3]):
            metric.exemplar = exemplar
    elif not known:
        metric.value = value
    elif family.name in _GREATEST:
        metric.value = max(metric.value, value)
    elif family.name in _LEAST:
        metric.value = min(metric.value, value)
    else:
        metric.value += value


_KINDS: dict[str, Callable[[], Metric]] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
