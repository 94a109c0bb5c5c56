"""Service: one service by route, by caller and by upstream, and where its proxies are near a limit."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.parts import KEEP, Panel, board, heat, lines, number, query, service_variables, variable
from grafana.promql import (
    ATTEMPT_DURATIONS,
    ATTEMPTS,
    DURATIONS,
    INBOUND,
    INSTANCE,
    NO_TUNNELS,
    REQUESTS,
    ROUTE,
    failures,
    quantile,
    rate,
    ratio,
    total,
)

HERE = (INSTANCE, INBOUND, ROUTE)
ALL = rate(REQUESTS, *HERE)
BUCKETS = rate(DURATIONS, *HERE, NO_TUNNELS)
UPSTREAM = "{{l7proxy_upstream}}"


def dashboard() -> Dashboard:
    routes = f"label_values({REQUESTS}{{{INSTANCE}, {INBOUND}}}, l7proxy_route)"
    return board(
        "l7proxy-service",
        "Service",
        "One service: rate, errors and duration by route, caller and upstream; limits that are near.",
        # Requests that no route matched have an empty one, which is not on the list.
        [*service_variables(many=False), variable("route", routes, everything=".*")],
        [
            ("Now", _now()),
            ("By route", _split("route", "l7proxy_route")),
            ("By caller", _split("caller", "l7proxy_peer")),
            ("Latency", _latency()),
            ("Answers", _answers()),
            ("By upstream", _upstreams()),
            ("Saturation", _saturation()),
        ],
    )


def _now() -> list[Panel]:
    return [
        number("Requests", "reqps", total(ALL), width=6),
        number("Errors", "percentunit", ratio(total(failures(*HERE)), total(ALL)), width=6, bad=0.01),
        number("p50", "s", quantile(0.5, BUCKETS), width=6),
        number("p99", "s", quantile(0.99, BUCKETS), width=6),
    ]


def _split(name: str, label: str) -> list[Panel]:
    legend = f"{{{{{label}}}}}"
    errors = ratio(total(failures(*HERE), label), total(ALL, label))
    security = f"/d/l7proxy-security/security?{KEEP}&${{service:queryparam}}"
    return [
        lines(f"Requests by {name}", "reqps", query(total(ALL, label), legend), link=security),
        lines(f"Errors by {name}", "percentunit", query(errors, legend), link=security),
        lines(f"p99 by {name}", "s", query(quantile(0.99, BUCKETS, label), legend, exemplars=True)),
    ]


def _latency() -> list[Panel]:
    shares = (0.5, 0.9, 0.99, 0.999)
    return [
        heat("Durations", total(BUCKETS, "le"), about="Whole requests, tunnels left out.", exemplars=True),
        lines(
            "Percentiles",
            "s",
            *(query(quantile(share, BUCKETS), f"p{100 * share:g}", exemplars=True) for share in shares),
            width=12,
        ),
    ]


def _answers() -> list[Panel]:
    status, grpc, code, flags = (
        "http_response_status_code",
        "rpc_response_status_code",
        "error_type",
        "l7proxy_flags",
    )
    grpc_only = rate(REQUESTS, *HERE, f'{grpc}!=""')
    own = rate(REQUESTS, *HERE, f'{flags}!=""')
    return [
        lines("Status", "reqps", query(total(ALL, status), f"{{{{{status}}}}}"), width=6),
        lines("gRPC status", "reqps", query(total(grpc_only, grpc), f"{{{{{grpc}}}}}"), width=6),
        lines(
            "Answers of the proxy itself",
            "reqps",
            query(total(own, code, flags), f"{{{{{code}}}}} ({{{{{flags}}}}})"),
            about="By code and response flag.",
            width=6,
        ),
        lines(
            "Retries and rate limits",
            "reqps",
            query(total(rate("l7proxy_retries_total", INSTANCE, ROUTE)), "retries"),
            query(total(rate("l7proxy_retry_budget_exhausted_total", INSTANCE, ROUTE)), "retries without budget"),
            query(total(rate("l7proxy_rate_limited_total", INSTANCE, ROUTE)), "rate limited"),
            width=6,
        ),
    ]


def _upstreams() -> list[Panel]:
    attempts = total(rate(ATTEMPTS, INSTANCE), "l7proxy_upstream")
    failed = rate(ATTEMPTS, INSTANCE, 'error_type!=""', 'http_response_status_code!~"4.."')
    p99 = quantile(0.99, rate(ATTEMPT_DURATIONS, INSTANCE), "l7proxy_upstream")
    return [
        lines("Attempts", "reqps", query(attempts, UPSTREAM), about="Each retry is one more."),
        lines("Failed attempts", "percentunit", query(ratio(total(failed, "l7proxy_upstream"), attempts), UPSTREAM)),
        lines("p99 of attempts", "s", query(p99, UPSTREAM)),
    ]


def _saturation() -> list[Panel]:
    def of(expression: str) -> str:
        return total(expression, "l7proxy_upstream")

    def gauge(metric: str) -> str:
        return of(f"{metric}{{{INSTANCE}}}")

    return [
        lines(
            "Pools",
            "short",
            query(gauge("l7proxy_upstream_connections"), f"{UPSTREAM} connections"),
            query(gauge("l7proxy_upstream_requests"), f"{UPSTREAM} requests"),
            query(gauge("l7proxy_upstream_pending"), f"{UPSTREAM} waiting"),
        ),
        lines(
            "Breakers and failed connects",
            "ops",
            query(of(rate("l7proxy_breaker_overflows_total", INSTANCE)), f"{UPSTREAM} refused at a limit"),
            query(of(rate("l7proxy_upstream_connect_failures_total", INSTANCE)), f"{UPSTREAM} not connected"),
        ),
        lines(
            "Endpoints",
            "short",
            query(gauge("l7proxy_endpoints"), f"{UPSTREAM} known"),
            query(gauge("l7proxy_endpoints_ejected"), f"{UPSTREAM} left out"),
        ),
    ]
