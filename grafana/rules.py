"""Prometheus' rules: recorded series by service and by edge, objectives with burn-rate alerts, alerts of the proxy."""

from dataclasses import dataclass
from typing import Any

import yaml

from grafana import alerts
from grafana.promql import DURATIONS, INBOUND, NO_TUNNELS, REQUESTS, by_service, failures, rate, ratio, total

Rule = dict[str, Any]

HEAD = "# Written by `python -m grafana`: change grafana/rules.py and grafana/alerts.py instead.\n"
SERVICE = ("l7proxy_mesh", "service_name")


@dataclass(frozen=True)
class Objective:
    """A share of a service's inbound requests in 30 days: those that do not fail, or with `bound` those as fast.

    `bound` is in seconds, and one of the histogram's.
    """

    name: str
    target: float
    bound: str = ""


AVAILABILITY = Objective("availability", 0.999)
LATENCY = Objective("latency", 0.99, bound="0.5")

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d")

# The four pairs of Google's SRE Workbook, chapter 5: the long window says that it matters, the short one that it lasts.
BURNS = (("1h", "5m", 14.4, "page"), ("6h", "30m", 6, "page"), ("1d", "2h", 3, "ticket"), ("3d", "6h", 1, "ticket"))


def text() -> str:
    """Returns the rules as Prometheus reads them."""
    objectives = (AVAILABILITY, LATENCY)
    groups = [
        {"name": "l7proxy-red", "rules": _red()},
        {"name": "l7proxy-edges", "rules": _edges()},
        {"name": "l7proxy-objectives", "rules": [rule for slo in objectives for rule in _objective(slo)]},
        {"name": "l7proxy-burn", "rules": [rule for slo in objectives for rule in _burns(slo)]},
        {"name": "l7proxy-proxy", "rules": alerts.of_the_proxy()},
    ]
    return HEAD + yaml.safe_dump({"groups": groups}, sort_keys=False, width=10_000)


def _record(name: str, expression: str, **labels: str) -> Rule:
    return {"record": name, "expr": expression, **({"labels": labels} if labels else {})}


def _red() -> list[Rule]:
    failed = by_service(failures(window="5m"), "l7proxy_direction")
    buckets = by_service(rate(DURATIONS, NO_TUNNELS, window="5m"), "l7proxy_direction", "le")
    return [
        _record("service:l7proxy_requests:rate5m", by_service(rate(REQUESTS, window="5m"), "l7proxy_direction")),
        # 0 where there was none: a window of this series has as many points as one of the requests.
        _record("service:l7proxy_errors:rate5m", f"{failed} or 0 * service:l7proxy_requests:rate5m"),
        _record("service:l7proxy_duration_bucket:rate5m", buckets),
    ]


def _edges() -> list[Rule]:
    buckets = _edge(rate(DURATIONS, INBOUND, NO_TUNNELS, window="5m"), "le")
    failed = _edge(failures(INBOUND, window="5m"))
    return [
        _record("edge:l7proxy_requests:rate5m", _edge(rate(REQUESTS, INBOUND, window="5m"))),
        _record("edge:l7proxy_errors:rate5m", f"{failed} or 0 * edge:l7proxy_requests:rate5m"),
        _record("edge:l7proxy_duration:p99_5m", f"histogram_quantile(0.99, {buckets})"),
    ]


def _edge(expression: str, *labels: str) -> str:
    """Returns the sum by service and caller, who is called by the last part of its identity, or anonymous."""
    by_peer = by_service(expression, "l7proxy_peer", *labels)
    named = f'label_replace({by_peer}, "caller", "$1", "l7proxy_peer", "(?:.*/)?([^/]+)")'
    return f'label_replace({named}, "caller", "anonymous", "l7proxy_peer", "")'


def _objective(slo: Objective) -> list[Rule]:
    """Records the rates of all and of bad requests, how fast the bad ones spend the budget, and what is left of it."""
    name = f"service:l7proxy_{slo.name}"
    if slo.bound:
        every, fast = (
            total(f'service:l7proxy_duration_bucket:rate5m{{{INBOUND}, le="{le}"}}', *SERVICE)
            for le in ("+Inf", slo.bound)
        )
        bad = f"{every} - {fast}"
    else:
        every = total(f"service:l7proxy_requests:rate5m{{{INBOUND}}}", *SERVICE)
        bad = total(f"service:l7proxy_errors:rate5m{{{INBOUND}}}", *SERVICE)
    rules = [_record(f"{name}_all:rate5m", every), _record(f"{name}_bad:rate5m", bad)]
    for window in WINDOWS:
        # Sums over recorded points instead of rates over raw ones: 30 days of them are cheap.
        share = ratio(*(f"sum_over_time({name}_{which}:rate5m[{window}])" for which in ("bad", "all")))
        rules.append(_record(f"service:l7proxy_burn:rate{window}", f"{share} / {1 - slo.target:.6g}", slo=slo.name))
    left = f'1 - service:l7proxy_burn:rate30d{{slo="{slo.name}"}}'
    return [*rules, _record("service:l7proxy_budget_left:ratio30d", left, slo=slo.name)]


def _burns(slo: Objective) -> list[Rule]:
    what = f"took more than {slo.bound} s" if slo.bound else "failed"
    return [
        alerts.alert(
            f"L7proxy{slo.name.capitalize()}Burn",
            severity,
            " and ".join(f'service:l7proxy_burn:rate{at}{{slo="{slo.name}"}} > {factor}' for at in (long, short)),
            f"{{{{ $labels.service_name }}}} spends its {slo.name} budget {{{{ $value | humanize }}}} times too fast",
            f"Too many requests {what} in the last {long}, and in the last {short} still. At {factor} times the budget "
            f"of 30 days lasts {720 / factor:.0f} hours.",
            window=long,
        )
        for long, short, factor, severity in BURNS
    ]
