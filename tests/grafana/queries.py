"""What the committed dashboards and rules ask Prometheus."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from grafana.live import filled

GRAFANA = Path(__file__).parents[2] / "grafana"
BOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}
RULES_FILE = GRAFANA / "rules/l7proxy.yaml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES_FILE.read_text())["groups"] for rule in group["rules"]
]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


class Query(NamedTuple):
    """One query of a panel."""

    board: str
    panel: str
    ref: str
    expression: str
    exemplars: bool

    def __str__(self) -> str:
        return f"{self.board}: {self.panel}, {self.ref}"

    def filled(self, **variables: str) -> str:
        """Returns the expression as Grafana sends it."""
        return filled(self.expression, "5m", **variables)


def panels(board: str) -> list[dict[str, Any]]:
    return [panel for panel in BOARDS[board]["panels"] if panel["type"] != "row"]


QUERIES = [
    Query(board, panel["title"], target["refId"], target["expr"], target.get("exemplar", False))
    for board in BOARDS
    for panel in panels(board)
    for target in panel["targets"]
]

_KEYWORDS = {"and", "or", "unless", "on", "by", "without", "ignoring", "group_left", "group_right", "bool"}


def metrics_of(expression: str) -> set[str]:
    """Returns the names of the metrics that an expression reads."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(?:by|on|group_left|without|ignoring)\s*\([^)]*\)", " ", bare)
    names = re.findall(r"(?<![\w$:.])([a-zA-Z_:][\w:]*)(?!\s*\()(?![\w:])", bare)
    return {name for name in names if name not in _KEYWORDS}
