"""Security: what was denied to whom, what would be, and what certificates and handshakes do."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from grafana.parts import Panel, board, lines, query, rows_of, service_variables
from grafana.promql import INBOUND, INSTANCE, NAMED, REQUESTS, by_service, increase, rate, total

EXPIRY = f"l7proxy_certificate_expiry_seconds{{{INSTANCE}}} {NAMED}"
RULE = "{{service_name}} {{l7proxy_route}} {{rule}}"


def dashboard() -> Dashboard:
    return board(
        "l7proxy-security",
        "Security",
        "Denials by rule and caller, rules in the shadow, certificates, handshakes.",
        service_variables(many=True),
        [
            ("Denials", _denials()),
            ("Rules in the shadow", _shadow()),
            ("Certificates", _certificates()),
            ("Refused before a route", _refused()),
        ],
    )


def _denials() -> list[Panel]:
    by_rule = by_service(rate("l7proxy_denied_total", INSTANCE), "l7proxy_route", "rule")
    denied = rate(REQUESTS, INSTANCE, INBOUND, 'error_type=~"denied|unauthenticated"')
    limited = by_service(rate("l7proxy_rate_limited_total", INSTANCE), "l7proxy_route")
    return [
        lines("Denied by rule", "reqps", query(by_rule, RULE)),
        lines(
            "Denied by caller",
            "reqps",
            query(by_service(denied, "l7proxy_peer"), "{{l7proxy_peer}} at {{service_name}}"),
            about="A caller without an identity has no name here.",
        ),
        lines("Rate limited", "reqps", query(limited, "{{service_name}} {{l7proxy_route}}")),
    ]


def _shadow() -> list[Panel]:
    counted = by_service(increase("l7proxy_shadow_denied_total", INSTANCE, window="$__range"), "l7proxy_route", "rule")
    now = by_service(rate("l7proxy_shadow_denied_total", INSTANCE), "l7proxy_route", "rule")
    return [
        rows_of(
            "Would have been denied",
            [("requests", "short", counted)],
            [("service_name", "service"), ("l7proxy_route", "route"), ("rule", "rule"), ("l7proxy_mesh", "mesh")],
            about="Over the dashboard's time range. A rule that stays at 0 denies nothing when it leaves the shadow.",
            width=12,
        ),
        lines("Would be denied", "reqps", query(now, RULE), width=12),
    ]


def _certificates() -> list[Panel]:
    labels = [("service_name", "service"), *((name, name) for name in ("instance", "certificate", "role"))]
    rejected = by_service(increase("l7proxy_certificate_rejected_total", INSTANCE))
    return [
        rows_of("Certificates", [("expires in", "s", EXPIRY)], labels, width=12),
        lines(
            "Least time left",
            "s",
            query(f"min by (service_name, role) ({EXPIRY})", "{{service_name}} {{role}}"),
            width=6,
        ),
        lines("New certificates refused", "short", query(rejected, "{{service_name}}"), width=6),
    ]


def _refused() -> list[Panel]:
    handshakes = total(rate("l7proxy_tls_handshakes_total", INSTANCE), "listener", "resumed")
    failed = by_service(rate("l7proxy_tls_handshake_failures_total", INSTANCE), "reason")
    malformed = by_service(rate("l7proxy_bad_requests_total", INSTANCE), "reason")
    by_address = by_service(rate("l7proxy_connections_refused_total", INSTANCE), "listener")
    return [
        lines("Handshakes", "ops", query(handshakes, "{{listener}}, resumed: {{resumed}}"), width=6),
        lines("Failed handshakes", "ops", query(failed, "{{service_name}} {{reason}}"), width=6),
        lines("Malformed requests", "reqps", query(malformed, "{{service_name}} {{reason}}"), width=6),
        lines("Refused by address", "ops", query(by_address, "{{service_name}} {{listener}}"), width=6),
    ]
