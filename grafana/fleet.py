"""Fleet: how every service does, and which is worst. Drawn from recorded series: it stays fast with many services."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.parts import Panel, bars, board, lines, mesh_variable, number, query, rows_of, to_service
from grafana.promql import FLEET, ratio
from grafana.rules import AVAILABILITY, LATENCY

RATE = f"service:l7proxy_requests:rate5m{{{FLEET}}}"
ERRORS = f"service:l7proxy_errors:rate5m{{{FLEET}}}"
BUCKETS = f"service:l7proxy_duration_bucket:rate5m{{{FLEET}}}"
SHARE = ratio(ERRORS, RATE)
P99 = f"histogram_quantile(0.99, {BUCKETS})"
BUDGET = f'service:l7proxy_budget_left:ratio30d{{l7proxy_mesh=~"$mesh", slo="{AVAILABILITY.name}"}}'
FIRING = 'ALERTS{alertname=~"L7proxy.+", alertstate="firing"}'
LEGEND = "{{service_name}}"
LINK = to_service("__field.labels.service_name")


def dashboard() -> Dashboard:
    return board(
        "l7proxy-fleet",
        "Fleet",
        "Rate, errors and duration of every service, what is left of its error budget, and who is worst.",
        [mesh_variable()],
        [("Now", _now()), ("Who is worst", _worst()), ("RED", _red()), ("Error budgets", _budgets())],
    )


def _now() -> list[Panel]:
    return [
        number("Services", "short", f"count({RATE})"),
        number("Sidecars", "short", 'count(target_info{l7proxy_mesh=~"$mesh"})'),
        number("Requests", "reqps", f"sum({RATE})"),
        number("Errors", "percentunit", ratio(f"sum({ERRORS})", f"sum({RATE})"), bad=0.01),
        number("p99", "s", f"histogram_quantile(0.99, sum by (le) ({BUCKETS}))"),
        number("Alerts", "short", f"count({FIRING}) or vector(0)", bad=1),
    ]


def _worst() -> list[Panel]:
    return [
        rows_of(
            "Services",
            [
                ("errors", "percentunit", SHARE),
                ("requests", "reqps", RATE),
                ("p99", "s", P99),
                ("budget left", "percentunit", BUDGET),
            ],
            [("service_name", "service"), ("l7proxy_mesh", "mesh")],
            about="Inbound requests. Errors are 5xx and the gRPC statuses that mean the same.",
            width=14,
            link=to_service('__data.fields["service"]'),
        ),
        rows_of(
            "Firing alerts",
            [("firing", "none", FIRING)],
            [("alertname", "alert"), ("service_name", "service"), ("severity", "severity"), ("instance", "instance")],
            width=10,
        ),
    ]


def _red() -> list[Panel]:
    return [
        lines("Requests", "reqps", query(RATE, LEGEND), link=LINK),
        lines("Errors", "percentunit", query(SHARE, LEGEND), link=LINK),
        lines("p99", "s", query(P99, LEGEND), link=LINK),
    ]


def _budgets() -> list[Panel]:
    def burn(slo: str) -> str:
        return f'service:l7proxy_burn:rate1h{{l7proxy_mesh=~"$mesh", slo="{slo}"}}'

    return [
        bars(
            "Budget left of 30 days",
            "percentunit",
            BUDGET,
            LEGEND,
            about=f"Of the {1 - AVAILABILITY.target:.2%} of requests that may fail.",
        ),
        lines(
            "Availability: budget burn, last hour",
            "none",
            query(burn(AVAILABILITY.name), LEGEND),
            about="At 1 the budget lasts 30 days; 14.4 spends a fiftieth of it in an hour and pages.",
            link=LINK,
        ),
        lines(
            "Latency: budget burn, last hour",
            "none",
            query(burn(LATENCY.name), LEGEND),
            about=f"Of the {1 - LATENCY.target:.2%} of requests that may take more than {LATENCY.bound} s.",
            link=LINK,
        ),
    ]
