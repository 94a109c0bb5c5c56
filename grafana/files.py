"""The text of every generated file."""

from collections.abc import Callable
from pathlib import Path
from textwrap import indent

from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import table
from grafana_foundation_sdk.models.dashboard import Panel

from grafana import fleet, graph, rules, security, service, sidecar

ROOT = Path(__file__).parent

DASHBOARDS: dict[str, Callable[[], Dashboard]] = {
    "fleet": fleet.dashboard,
    "service": service.dashboard,
    "service-graph": graph.dashboard,
    "security": security.dashboard,
    "sidecar": sidecar.dashboard,
}


def files() -> dict[str, str]:
    """Returns the generated files by their path under `grafana/`."""
    made = {f"dashboards/{name}.json": _json(make()) for name, make in DASHBOARDS.items()}
    return {**made, "rules/l7proxy.yaml": rules.text(), "kubernetes/prometheusrule.yaml": _prometheus_rule()}


def _prometheus_rule() -> str:
    """Returns the same rules for the Prometheus Operator."""
    notice, _, groups = rules.text().partition("\n")
    head = "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata: {name: l7proxy}\nspec:\n"
    return f"{notice}\n{head}{indent(groups, '  ')}"


def _json(dashboard: Dashboard) -> str:
    built = dashboard.build()
    for number, panel in enumerate(built.panels or [], 1):
        panel.id_val = number
        if isinstance(panel, Panel) and isinstance(panel.options, table.Options):
            # Off by default; Grafana 13 keeps it elsewhere.
            panel.options.footer = None
    for variable in (built.templating and built.templating.list_val) or []:
        # The SDK writes what only variables of the type "interval" may have into every one.
        variable.auto = variable.auto_min = variable.auto_count = None
    return JSONEncoder(sort_keys=True, indent=2).encode(built) + "\n"
