"""Sidecar: the processes themselves."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.parts import Panel, board, heat, lines, number, query, rows_of, service_variables
from grafana.promql import INSTANCE, NAMED, increase, quantile, rate, total

LAG = rate("l7proxy_event_loop_lag_seconds_bucket", INSTANCE)


def dashboard() -> Dashboard:
    return board(
        "l7proxy-sidecar",
        "Sidecar",
        "What the proxies themselves use, which configuration they run, and what they had to drop.",
        service_variables(many=True),
        [
            ("Process", _process()),
            ("Event loop", _loop()),
            ("Connections", _connections()),
            ("Configuration", _configuration()),
            ("Losses", _losses()),
        ],
    )


def _here(metric: str) -> str:
    return f"{metric}{{{INSTANCE}}}"


def _process() -> list[Panel]:
    descriptors = f"{_here('process_open_fds')} / {_here('process_max_fds')}"
    return [
        lines("CPU", "percentunit", query(rate("process_cpu_seconds_total", INSTANCE), "{{instance}}")),
        lines("Memory", "bytes", query(_here("process_resident_memory_bytes"), "{{instance}}")),
        lines("Descriptors", "percentunit", query(descriptors, "{{instance}}"), about="A share of those allowed."),
    ]


def _loop() -> list[Panel]:
    return [
        heat("Lag", total(LAG, "le"), about="How late the event loop does what is due: every request waits as long."),
        lines("Lag, p99", "s", query(quantile(0.99, LAG, "instance"), "{{instance}}"), width=12),
    ]


def _connections() -> list[Panel]:
    def by_listener(metric: str) -> str:
        return total(rate(metric, INSTANCE), "listener")

    return [
        lines(
            "Open",
            "short",
            query(total(_here("l7proxy_downstream_connections"), "listener"), "{{listener}}"),
            query(total(_here("l7proxy_upstream_connections")), "to upstreams"),
            query(total(_here("l7proxy_tls_handshakes_pending")), "in a handshake"),
            width=6,
        ),
        lines(
            "New",
            "ops",
            query(by_listener("l7proxy_downstream_accepted_total"), "{{listener}}"),
            query(total(rate("l7proxy_upstream_connects_total", INSTANCE)), "to upstreams"),
            query(by_listener("l7proxy_accept_paused_total"), "{{listener}} paused at a limit"),
            query(by_listener("l7proxy_downstream_cut_total"), "{{listener}} cut for their memory"),
            width=6,
        ),
        lines(
            "Bytes",
            "Bps",
            query(by_listener("l7proxy_downstream_received_bytes_total"), "{{listener}} received"),
            query(by_listener("l7proxy_downstream_sent_bytes_total"), "{{listener}} sent"),
            width=6,
        ),
        lines("Requests under way", "short", query(_here("l7proxy_requests"), "{{instance}}"), width=6),
    ]


def _configuration() -> list[Panel]:
    version = _here("l7proxy_config_version")
    return [
        number(
            "Versions live",
            "short",
            f'count(count_values("version", {version}))',
            about="The number stands for the content: two within a service are a rollout under way, or one that stuck.",
        ),
        number(
            "Refused, last hour",
            "short",
            total(increase("l7proxy_config_rejected_total", INSTANCE, window="1h")),
            bad=1,
        ),
        rows_of(
            "Sidecars by version",
            [("sidecars", "short", f'count_values by (service_name) ("version", {version} {NAMED})')],
            [("service_name", "service"), ("version", "version")],
            width=8,
        ),
        lines(
            "Changes",
            "short",
            query(total(increase("l7proxy_config_accepted_total", INSTANCE)), "live"),
            query(total(increase("l7proxy_config_rejected_total", INSTANCE)), "refused"),
            width=8,
        ),
    ]


def _losses() -> list[Panel]:
    def by_reason(metric: str) -> str:
        return total(rate(metric, INSTANCE), "reason")

    return [
        lines(
            "Log lines dropped",
            "ops",
            query(by_reason("l7proxy_access_log_dropped_total"), "access log, {{reason}}"),
            query(by_reason("l7proxy_log_dropped_total"), "events, {{reason}}"),
            width=12,
        ),
        lines(
            "Spans",
            "ops",
            query(total(rate("l7proxy_spans_exported_total", INSTANCE)), "exported"),
            query(by_reason("l7proxy_spans_dropped_total"), "dropped, {{reason}}"),
            width=12,
        ),
    ]
