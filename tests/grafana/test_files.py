"""The committed files: what the generator writes, what Grafana's schema allows, what promtool accepts."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from grafana.files import files
from tests.grafana.queries import BOARDS, GRAFANA, QUERIES, RULES, RULES_FILE, metrics_of, panels

SCHEMAS = sorted((Path(__file__).parent / "schema").glob("grafana-*.json"))


def test_the_committed_files_are_what_the_generator_writes() -> None:
    made = files()
    assert {path: (GRAFANA / path).read_text() for path in made} == made
    committed = [path for folder in ("dashboards", "rules", "kubernetes") for path in GRAFANA.glob(f"{folder}/*")]
    assert {str(path.relative_to(GRAFANA)) for path in committed} == set(made)


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
@pytest.mark.parametrize("board", BOARDS)
def test_dashboards_are_valid_by_grafanas_published_schema(board: str, path: Path) -> None:
    schemas = json.loads(path.read_text())
    jsonschema.Draft7Validator(schemas["dashboard"]).validate(BOARDS[board])
    for panel in panels(board):
        custom = panel.get("fieldConfig", {}).get("defaults", {}).get("custom", {})
        validator = jsonschema.Draft7Validator(schemas[panel["type"].lower()])
        validator.validate({"options": panel.get("options", {}), "custom": custom})


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.stem)
def test_the_schema_refuses_what_grafana_does_not_know(path: Path) -> None:
    schemas = json.loads(path.read_text())
    [stat] = [panel for panel in panels("fleet") if panel["title"] == "Services" and panel["type"] == "stat"]
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("dashboard", {**BOARDS["fleet"], "pannels": []}),
        ("dashboard", {**BOARDS["fleet"], "schemaVersion": "41"}),
        ("stat", {"options": {**stat["options"], "graphMode": "volume"}}),
    ]
    for kind, instance in wrong:
        assert not jsonschema.Draft7Validator(schemas[kind]).is_valid(instance)


@pytest.mark.parametrize("board", BOARDS)
def test_panels_have_numbers_of_their_own_and_do_not_overlap(board: str) -> None:
    everything = BOARDS[board]["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_links_lead_to_dashboards_and_set_variables_that_they_have() -> None:
    variables = {board["uid"]: {item["name"] for item in board["templating"]["list"]} for board in BOARDS.values()}
    links = re.findall(r'"(/d/[^"\s]+?)"', json.dumps(BOARDS).replace('\\"', "'"))
    assert len(links) > 10
    for link in links:
        uid, _, rest = link.removeprefix("/d/").partition("/")
        assert uid in variables, link
        assert set(re.findall(r"var-(\w+)=", link)) <= variables[uid], link
        assert "mesh:queryparam" in rest


@pytest.mark.parametrize("board", BOARDS)
def test_queries_use_only_variables_that_the_dashboard_has(board: str) -> None:
    known = {item["name"] for item in BOARDS[board]["templating"]["list"]} | {"__rate_interval", "__range", "1"}
    text = " ".join(query.expression for query in QUERIES if query.board == board)
    assert set(re.findall(r"\$(\w+)", text)) <= known


def test_provisioning_points_at_the_dashboards_and_their_data_sources() -> None:
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/l7proxy.yaml").read_text())["providers"]
    path = provider["options"]["path"].replace("${GF_PATHS_PROVISIONING}", str(GRAFANA / "provisioning"))
    assert {file.stem for file in Path(path).glob("*.json")} == set(BOARDS)
    sources = yaml.safe_load((GRAFANA / "provisioning/datasources/l7proxy.yaml").read_text())["datasources"]
    by_uid = {source["uid"]: source for source in sources}
    [metrics] = [source for source in sources if source["type"] == "prometheus"]
    [exemplars] = metrics["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars["name"] == "trace_id"
    assert by_uid[exemplars["datasourceUid"]]["type"] == "tempo"


@pytest.mark.needs("promtool")
def test_promtool_accepts_the_rules() -> None:
    check = subprocess.run(["promtool", "check", "rules", RULES_FILE], capture_output=True, text=True, timeout=20)
    assert check.returncode == 0, check.stdout + check.stderr
    assert f"{len(RULES)} rules found" in check.stdout


@pytest.mark.needs("promtool")
def test_promtools_unit_tests_pass() -> None:
    tests = Path(__file__).parent / "rules_test.yaml"
    ran = subprocess.run(["promtool", "test", "rules", tests], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_has_a_unit_test() -> None:
    tested = yaml.safe_load((Path(__file__).parent / "rules_test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tested for case in test.get("alert_rule_test", []) if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES if "alert" in rule}


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (a) (rate(x_total{b="y"}[5m]) or 0 * z:w) / (v > 0)', {"x_total", "z:w", "v"}),
        ('label_replace(x * on (job) group_left (n) info, "to", "$1", "from", "(.+)")', {"x", "info"}),
        ('count_values by (s) ("version", x{i=~"$i"})', {"x"}),
    ],
)
def test_metrics_are_found_in_expressions(expression: str, names: set[str]) -> None:
    assert metrics_of(expression) == names
