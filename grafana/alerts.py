"""Alerts about the proxies themselves: certificates, configuration, endpoints, limits, and what they lose."""

from typing import Any

from grafana.promql import NAMED, by_service, increase, rate, ratio

WHO = "{{ $labels.service_name }}"
ONE = "{{ $labels.instance }} of {{ $labels.service_name }}"
EXPIRY = "l7proxy_certificate_expiry_seconds"
LOSSES = {
    "access log lines": "l7proxy_access_log_dropped_total",
    "events": "l7proxy_log_dropped_total",
    "spans": "l7proxy_spans_dropped_total",
}


def alert(
    name: str, severity: str, expression: str, summary: str, about: str, wait: str = "", **labels: str
) -> dict[str, Any]:
    """Returns an alert; `wait` is how long the expression must hold."""
    return {
        "alert": name,
        "expr": expression,
        **({"for": wait} if wait else {}),
        "labels": {"severity": severity, **labels},
        "annotations": {"summary": summary, "description": about},
    }


def of_the_proxy() -> list[dict[str, Any]]:
    return [
        alert(
            "L7proxyDown",
            "page",
            "up == 0 and on (job, instance) last_over_time(target_info[1h])",
            "{{ $labels.instance }} is not scraped",
            "Prometheus reached this sidecar within the last hour and does so no longer.",
            "5m",
        ),
        *_certificates(),
        alert(
            "L7proxyConfigRejected",
            "ticket",
            f"{by_service(increase('l7proxy_config_rejected_total', window='15m'))} > 0",
            f"{WHO} refused a configuration",
            "The last good one stays live; the event log names the file and the line.",
        ),
        *_upstreams(),
        *_limits(),
        alert(
            "L7proxyTelemetryLost",
            "ticket",
            " or ".join(
                f'label_replace({by_service(increase(metric, window="10m"), "reason")} > 0, "lost", "{lost}", "", "")'
                for lost, metric in LOSSES.items()
            ),
            f"{WHO} loses {{{{ $labels.lost }}}}",
            "Lost in ten minutes ({{ $labels.reason }}): {{ $value | humanize }}.",
        ),
    ]


def _certificates() -> list[dict[str, Any]]:
    handshakes = by_service(rate("l7proxy_tls_handshakes_total", window="10m"))
    failed = by_service(rate("l7proxy_tls_handshake_failures_total", window="10m"))
    return [
        alert(
            "L7proxyCertificateNotRenewed",
            "ticket",
            # Lifetimes differ from an hour to years: what was seen at best is the measure.
            f"({EXPIRY} < 0.2 * max_over_time({EXPIRY}[30d])) {NAMED}",
            f"The {{{{ $labels.role }}}} certificate of {ONE} is not renewed",
            "Less than a fifth is left of the longest life seen in 30 days: {{ $value | humanizeDuration }}.",
            "2m",
        ),
        alert(
            "L7proxyCertificateExpires",
            "page",
            f"({EXPIRY} < 300) {NAMED}",
            f"The {{{{ $labels.role }}}} certificate of {ONE} is at its end",
            "Once it has expired every handshake fails. Left: {{ $value | humanizeDuration }}.",
        ),
        alert(
            "L7proxyCertificateRejected",
            "ticket",
            f"{by_service(increase('l7proxy_certificate_rejected_total', window='15m'), 'certificate')} > 0",
            f"{WHO} refused a new certificate",
            "The old one stays in use until it expires; the event log says what is wrong with the new one.",
        ),
        alert(
            "L7proxyHandshakesFail",
            "ticket",
            f"{ratio(failed, f'({handshakes} or 0 * {failed}) + {failed}')} > 0.1",
            f"More than a tenth of the TLS handshakes with {WHO} fail",
            "The Security dashboard tells for what reasons.",
            "10m",
        ),
    ]


def _upstreams() -> list[dict[str, Any]]:
    return [
        alert(
            "L7proxyEndpointEjected",
            "ticket",
            f"{by_service('l7proxy_endpoints_ejected', 'l7proxy_upstream')} > 0",
            f"{WHO} leaves out endpoints of {{{{ $labels.l7proxy_upstream }}}}",
            "Their requests failed in a row. Left out: {{ $value }}.",
            "5m",
        ),
        alert(
            "L7proxyBreakerOpen",
            "ticket",
            f"{by_service(increase('l7proxy_breaker_overflows_total', window='5m'), 'l7proxy_upstream')} > 0",
            f"{WHO} refuses requests to {{{{ $labels.l7proxy_upstream }}}}",
            "A limit of the upstream's `breakers` was reached. Refused in five minutes: {{ $value | humanize }}.",
            "2m",
        ),
    ]


def _limits() -> list[dict[str, Any]]:
    lag = rate("l7proxy_event_loop_lag_seconds_bucket", window="5m")
    return [
        alert(
            "L7proxyEventLoopLag",
            "ticket",
            f"(histogram_quantile(0.99, sum by (job, instance, le) ({lag})) > 0.1) {NAMED}",
            f"The event loop of {ONE} is late",
            "One time in a hundred it is {{ $value | humanizeDuration }} late or more, and every request with it.",
            "5m",
        ),
        alert(
            "L7proxyDescriptorsScarce",
            "ticket",
            f"(process_open_fds / process_max_fds > 0.8) {NAMED}",
            f"{ONE} runs out of descriptors",
            "At the limit no connection is accepted. In use: {{ $value | humanizePercentage }}.",
            "5m",
        ),
    ]
