"""The committed dashboards without Grafana: a panel's own queries, asked of a Prometheus."""

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any, NamedTuple

from grafana.files import ROOT


@dataclass(frozen=True)
class Series:
    """A curve: (time in seconds of the epoch, value) by time, without what is not a number."""

    name: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Answered:
    """A panel and what its queries returned: `bad` is the value from which it is red, if there is one."""

    title: str
    kind: str
    unit: str
    series: list[Series]
    bad: float | None

    def shows(self) -> bool:
        """Says whether there is anything but zeros."""
        return any(value for series in self.series for _, value in series.points)


class Span(NamedTuple):
    """A time range: begin and end in seconds of the epoch, and the step between two points."""

    begin: float
    end: float
    step: float


def ask(url: str, path: str, **parameters: str | float) -> Any:
    """Returns the data of an answer of Prometheus' API at `url`.

    Raises ValueError with Prometheus' words when it refuses, OSError while it starts.
    """
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        if error.code == 503:
            raise
        raise ValueError(f"{parameters}: {error.read().decode()}") from None


def filled(expression: str, window: str, **variables: str) -> str:
    """Returns a query as Grafana sends it; raises ValueError where a variable has no value."""
    values = {"__rate_interval": window, "__range": window, **variables}
    # $1 is the group of a label_replace.
    text = re.sub(r"\$([a-z_]\w*)", lambda name: values.get(name[1], name[0]), expression)
    if left := re.search(r"\$[a-z_]\w*", text):
        raise ValueError(f"{left[0]} has no value in {expression}")
    return text


def answered(url: str, board: str, title: str, service: str, span: Span, window: str) -> Answered:
    """Returns the panel `title` of a dashboard as the sidecars of `service` fill it, rates over `window`."""
    dashboard = json.loads((ROOT / "dashboards" / f"{board}.json").read_text())
    [panel] = [panel for panel in dashboard["panels"] if panel["title"] == title and panel["type"] != "row"]
    variables = _variables(url, dashboard, service)
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    steps = defaults.get("thresholds", {}).get("steps", [])
    series: list[Series] = []
    for target in panel["targets"]:
        query = filled(target["expr"], window, **variables)
        rows = ask(url, "query_range", query=query, start=span.begin, end=span.end, step=span.step)["result"]
        series += [_series(target["legendFormat"], row) for row in rows]
    return Answered(
        title,
        panel["type"],
        defaults.get("unit", ""),
        sorted((one for one in series if one.points), key=lambda one: one.name),
        next((step["value"] for step in steps if step["color"] == "red"), None),
    )


def _variables(url: str, dashboard: dict[str, Any], service: str) -> dict[str, str]:
    """Returns what the dashboard's variables are once `service` is chosen, and everything else is left at All."""
    chosen = {"service": service}
    for item in dashboard["templating"]["list"]:
        if item["type"] != "query" or item["name"] in chosen:
            continue
        if "allValue" in item:
            chosen[item["name"]] = item["allValue"]
            continue
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", item["query"])
        assert match, item["query"]
        selector = filled(match[1], "", **chosen)
        chosen[item["name"]] = "|".join(ask(url, f"label/{match[2]}/values", **{"match[]": selector}))
    return chosen


def _series(legend: str, row: dict[str, Any]) -> Series:
    name = re.sub(r"\{\{(\w+)\}\}", lambda label: row["metric"].get(label[1], ""), legend).strip()
    points = [(float(time), float(value)) for time, value in row["values"]]
    return Series(name, [(time, value) for time, value in points if math.isfinite(value)])
