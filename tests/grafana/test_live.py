"""Every query of every dashboard and rule, asked of a real Prometheus that scrapes real sidecars under traffic."""

import collections
import re
import time
from collections.abc import Iterator

import pytest

from tests.grafana.prometheus import Prometheus
from tests.grafana.queries import BOARDS, QUERIES, RECORDED, RULES, RULES_FILE, Query, metrics_of
from tests.grafana.world import BATCH, World
from tests.identity.pki import WEB
from tests.support.net import Address, wait_for
from tests.telemetry.collector import Collector

pytestmark = pytest.mark.needs("prometheus")

COUNT = "http_server_request_duration_seconds_count"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, uvicorn_app: Address) -> Iterator[World]:
    collector = Collector()
    made = World(tmp_path_factory.mktemp("world"), uvicorn_app, collector.url)
    yield made
    made.close()
    collector.close()


@pytest.fixture(scope="module")
def prometheus(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Has scraped the sidecars after each of two rounds of traffic: only so does a rate see a series that is new."""
    folder = tmp_path_factory.mktemp("prometheus")
    world.traffic()
    started = Prometheus(folder, [world.orders.metrics_at, world.web.metrics_at], RULES_FILE)
    try:
        world.traffic()
        world.reject_a_configuration()
        rejected = "sum(increase(l7proxy_config_rejected_total[5m]))"
        wait_for(lambda: started.value(rejected) > 0 and started.value(f"sum({COUNT})") == _counted(world), 20)
        started.wait_for_rules()
        yield started
    finally:
        started.process.stop()


def _counted(world: World) -> float:
    return sum(sidecar.metrics()(COUNT) for sidecar in (world.orders, world.web))


@pytest.fixture(scope="module")
def orders(world: World) -> str:
    return f"127.0.0.1:{world.orders.metrics_at[1]}"


@pytest.mark.usefixtures("prometheus")
def test_metrics_that_are_asked_for_exist(world: World) -> None:
    known = world.orders.metrics().names() | world.web.metrics().names() | RECORDED | {"ALERTS", "up"}
    asked = {str(query): metrics_of(query.expression) for query in QUERIES}
    asked |= {rule.get("record", rule.get("alert")): metrics_of(rule["expr"]) for rule in RULES}
    assert all(asked.values())
    assert {name: missing for name, names in asked.items() if (missing := names - known)} == {}


def test_every_panel_has_data(prometheus: Prometheus, orders: str) -> None:
    def shows(query: Query) -> bool:
        instance = orders if query.board == "service" else ".*"
        return prometheus.has_data(query.filled(mesh="demo", instance=instance, route=".*"))

    assert [str(query) for query in QUERIES if not shows(query)] == []


def test_every_rule_has_data(prometheus: Prometheus) -> None:
    """Of an alert, what it compares has; a sidecar that is down is one that was up."""

    def has_data(rule: dict[str, str]) -> bool:
        expression = rule["expr"]
        if "alert" in rule:
            prometheus.query(expression)
            expression = re.sub(r" [<>] [\d.]+", "", expression).replace("up == 0", "up == 1")
        return prometheus.has_data(expression)

    assert [rule.get("record") or rule["alert"] for rule in RULES if not has_data(rule)] == []


def test_faults_that_were_made_are_alerted(prometheus: Prometheus) -> None:
    seen = {labels["alertname"] for labels, _ in prometheus.query("ALERTS")}
    made = {"AvailabilityBurn", "ConfigRejected", "EndpointEjected", "BreakerOpen", "HandshakesFail"}
    assert {f"L7proxy{name}" for name in made} <= seen
    quiet = {"Down", "CertificateNotRenewed", "CertificateExpires", "CertificateRejected", "TelemetryLost"}
    assert not {f"L7proxy{name}" for name in quiet} & seen


def test_counters_agree_with_the_clients_exactly(world: World, prometheus: Prometheus, orders: str) -> None:
    here = f'{COUNT}{{instance="{orders}", l7proxy_direction="inbound", rpc_response_status_code=""}}'
    by = "l7proxy_route, http_response_status_code"
    counted = {
        (labels.get("l7proxy_route", ""), int(labels["http_response_status_code"])): value
        for labels, value in prometheus.query(f"sum by ({by}) ({here}) > 0")
    }
    assert counted == dict(world.seen)
    callers = prometheus.query(f'sum by (l7proxy_peer) ({COUNT}{{instance="{orders}", l7proxy_route!~"grpc|"}}) > 0')
    known = collections.Counter(world.by_caller)
    known[WEB] -= world.seen["", 404]
    assert {labels["l7proxy_peer"]: value for labels, value in callers} == dict(known)


def test_grpc_statuses_agree_with_the_clients_exactly(world: World, prometheus: Prometheus, orders: str) -> None:
    rows = prometheus.query(
        f'sum by (rpc_response_status_code) ({COUNT}{{instance="{orders}", l7proxy_route="grpc", '
        'rpc_response_status_code=~"OK|FAILED_PRECONDITION"}) > 0'
    )
    assert {labels["rpc_response_status_code"]: value for labels, value in rows} == dict(world.grpc_seen)


def test_policies_agree_with_the_clients_exactly(world: World, prometheus: Prometheus) -> None:
    seen = world.seen
    assert prometheus.value('sum(l7proxy_denied_total{rule="no-batch"})') == seen["private", 403]
    assert prometheus.value('sum(l7proxy_shadow_denied_total{rule="later"})') == seen["shadow", 200]
    assert prometheus.value("sum(l7proxy_rate_limited_total)") == seen["limited", 429]
    assert prometheus.value('sum(l7proxy_retries_total{l7proxy_route="flaky"})') == seen["flaky", 200]
    assert prometheus.value('sum(l7proxy_breaker_overflows_total{l7proxy_upstream="held"})') == seen["held", 503]
    assert prometheus.value("sum(l7proxy_tls_handshake_failures_total)") == world.refused
    assert prometheus.value("sum(l7proxy_config_rejected_total)") == 1


def test_the_graph_has_an_edge_for_each_caller(prometheus: Prometheus) -> None:
    edges = {
        (labels["caller"], labels["service_name"]) for labels, _ in prometheus.query("edge:l7proxy_requests:rate5m > 0")
    }
    assert {("web", "orders"), ("batch", "orders")} <= edges
    [nodes, ends] = [query for query in QUERIES if query.board == "service-graph" and query.ref in ("nodes", "edges")]
    ids = {labels["id"] for labels, _ in prometheus.query(nodes.filled(mesh="demo"))}
    rows = prometheus.query(ends.filled(mesh="demo"))
    assert {end for labels, _ in rows for end in (labels["source"], labels["target"])} <= ids
    assert {"web > orders", "batch > orders"} <= {labels["id"] for labels, _ in rows}


def test_denials_are_shown_by_rule_and_caller(prometheus: Prometheus) -> None:
    def shown(panel: str) -> list[dict[str, str]]:
        [query] = [query for query in QUERIES if (query.board, query.panel) == ("security", panel)]
        return [labels for labels, value in prometheus.query(query.filled(instance=".*")) if value > 0]

    assert [(row["service_name"], row["rule"]) for row in shown("Denied by rule")] == [("orders", "no-batch")]
    assert [(row["service_name"], row["l7proxy_peer"]) for row in shown("Denied by caller")] == [("orders", BATCH)]


def test_latencies_lead_to_traces(prometheus: Prometheus, orders: str) -> None:
    now = time.time()
    linked = [query for query in QUERIES if query.exemplars]
    assert len(linked) > 5
    for query in linked:
        expression = query.filled(instance=orders, route=".*")
        found = prometheus.ask("query_exemplars", query=expression, start=now - 300, end=now + 1)
        traces = {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}
        assert traces, str(query)
        assert all(re.fullmatch("[0-9a-f]{32}", trace) for trace in traces)


def test_variables_have_values(prometheus: Prometheus, orders: str) -> None:
    expected = {"mesh": "demo", "service": "orders", "instance": orders, "route": "status"}
    for item in (item for board in BOARDS.values() for item in board["templating"]["list"] if item["type"] == "query"):
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", item["query"])
        assert match, item["query"]
        series = match[1].replace("$mesh", "demo").replace("$service", "orders").replace("$instance", orders)
        assert expected[item["name"]] in prometheus.ask(f"label/{match[2]}/values", **{"match[]": series})
