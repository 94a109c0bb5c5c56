"""Service graph: who calls whom, as the identities of callers tell."""

from grafana_foundation_sdk.builders import nodegraph
from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink
from grafana_foundation_sdk.models.dashboard import DataTransformerConfig

from grafana.parts import SOURCE, WIDTH, Panel, board, latest, mesh_variable, rows_of, to_service
from grafana.promql import ratio

RATE = 'edge:l7proxy_requests:rate5m{l7proxy_mesh=~"$mesh"}'
ERRORS = 'edge:l7proxy_errors:rate5m{l7proxy_mesh=~"$mesh"}'
P99 = 'edge:l7proxy_duration:p99_5m{l7proxy_mesh=~"$mesh"}'


def dashboard() -> Dashboard:
    return board(
        "l7proxy-graph",
        "Service graph",
        "Who calls whom, how often and how well.",
        [mesh_variable()],
        [("Graph", [_graph()]), ("Edges", [_edges()])],
    )


def _graph() -> Panel:
    # The node graph knows its fields by name: id, title, source, target and mainstat.
    called = f"sum by (id) ({_copy(RATE, 'service_name', 'id')})"
    nodes = f"{called} or 0 * sum by (id) ({_copy(RATE, 'caller', 'id')})"
    ends = _copy(_copy(RATE, "caller", "source"), "service_name", "target")
    edges = f'label_join(sum by (source, target) ({ends}), "id", " > ", "source", "target")'
    names = {"Value": "mainstat", "Value #nodes": "mainstat", "Value #edges": "mainstat"}
    return (
        nodegraph.Panel()
        .title("Calls")
        .description("Requests per second. A caller is called by the last part of its identity.")
        .nodes(nodegraph.NodeOptions().main_stat_unit("reqps"))
        .edges(nodegraph.EdgeOptions().main_stat_unit("reqps"))
        .data_links([DashboardLink("Open").url(to_service('__data.fields["id"]'))])
        .datasource(SOURCE)
        .span(WIDTH)
        .height(16)
        .targets([latest(_copy(nodes, "id", "title"), "nodes"), latest(edges, "edges")])
        .with_transformation(
            DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}, "renameByName": names})
        )
    )


def _edges() -> Panel:
    return rows_of(
        "Calls",
        [("requests", "reqps", RATE), ("errors", "percentunit", ratio(ERRORS, RATE)), ("p99", "s", P99)],
        [("service_name", "service"), ("caller", "caller"), ("l7proxy_peer", "identity"), ("l7proxy_mesh", "mesh")],
        link=to_service('__data.fields["service"]'),
    )


def _copy(expression: str, label: str, to: str) -> str:
    return f'label_replace({expression}, "{to}", "$1", "{label}", "(.+)")'
