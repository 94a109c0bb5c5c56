"""Traces of a real sidecar at a real collector: which requests, over which protocol, and what the next hop is told."""

import collections
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.conftest import StartServer, StartSidecar
from tests.h2.grpc_service import Calls, GrpcServer, run
from tests.identity.pki import ORDERS, WEB, Authority, TlsClient, context
from tests.support.client import Client
from tests.support.net import free_address, wait_for
from tests.support.server import OK, Connection
from tests.support.sidecar import route, upstream
from tests.telemetry.collector import Collector, Taken, attributes, value

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
SERVER = "http_server_request_duration_seconds_count"
CLIENT = "http_client_request_duration_seconds_count"
BUSY = OK.replace(b"200 OK", b"503 Busy")


def servers(spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]


def refusing_first(connection: Connection) -> None:
    """Answers the first request of all with 503, the others with 200."""
    while True:
        connection.read()
        first = len(connection.server.requests) == 1
        connection.send(BUSY if first else OK)


def by_path(connection: Connection) -> None:
    """Answers 503 to /bad and 200 to all else."""
    while True:
        bad = connection.read().target.startswith("/bad")
        connection.send(BUSY if bad else OK)


# The collector.


def test_a_collector_gets_the_spans_and_the_pod_that_they_are_of(
    sidecar: StartSidecar, serve: StartServer, either: Taken
) -> None:
    pod = {
        "POD_NAME": "orders-7d",
        "POD_NAMESPACE": "shop",
        "POD_UID": "8c0b",
        "NODE_NAME": "node-3",
        "POD_IP": "10.1.2.3",
    }
    proxy = sidecar(app=serve().address, tracing={"sampling": 1, "otlp": either.url}, env=pod)
    assert proxy.get("/a").status == 200
    [server] = servers(either.wait(2))
    assert proxy.log_lines()[0]["trace_id"] == server.trace_id.hex()
    expected = {
        "service.name": "sidecar",
        "k8s.pod.name": "orders-7d",
        "k8s.namespace.name": "shop",
        "k8s.pod.uid": "8c0b",
        "k8s.pod.ip": "10.1.2.3",
        "k8s.node.name": "node-3",
    }
    assert expected.items() <= either.resources[0].items()
    [info] = proxy.metrics().series("target_info")
    assert (info["k8s_pod_name"], info["k8s_node_name"]) == ("orders-7d", "node-3")


def test_a_collector_that_hangs_delays_neither_requests_nor_the_end(
    sidecar: StartSidecar, serve: StartServer, either: Taken
) -> None:
    either.hang.clear()
    proxy = sidecar(app=serve().address, tracing={"sampling": 1, "otlp": either.url})
    with proxy.client() as client:
        for _ in range(50):
            assert client.get().status == 200
    wait_for(lambda: either.posts == 1, 20, lambda: "nothing was sent")
    proxy.stop(timeout=15)


def test_grpc_without_grpcio_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ImportError('not installed')\n")
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        "apiVersion: l7proxy.io/v1\nkind: Sidecar\nmetadata: {name: a}\nspec:\n"
        "  inbound: {listen: '127.0.0.1:0', app: 'http://127.0.0.1:1'}\n"
        "  tracing:\n    otlp: grpc://127.0.0.1:4317\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    command = [sys.executable, "-m", "l7proxy", "run", "-c", str(config)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, env=env)
    assert run.returncode == 1
    [line] = run.stderr.splitlines()
    assert f"{config}:7: tracing.otlp: " in line
    assert "pip install 'l7proxy[grpc]'" in line


def test_grpcio_is_not_imported_for_a_collector_over_http(tmp_path: Path, collector: Collector) -> None:
    code = (
        "import sys\n"
        "from l7proxy.core.stats import Stats\n"
        "from l7proxy.telemetry.export import Exporter\n"
        f"Exporter(Stats(), {collector.url!r}, print).close(5)\n"
        "assert 'grpc' not in sys.modules\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, timeout=30)


# What it is told.


def test_who_calls_is_in_metrics_log_and_span(
    sidecar: StartSidecar, serve: StartServer, collector: Collector, tmp_path: Path
) -> None:
    ca = Authority(tmp_path)
    orders, web = ca.issue("orders", ORDERS), ca.issue("web", WEB)
    proxy = sidecar(
        app=serve().address,
        inbound={"tls": {"mode": "PERMISSIVE", "cert": str(orders.cert), "key": str(orders.key), "ca": str(ca.file)}},
        tracing={"sampling": 1, "otlp": collector.url},
    )
    with TlsClient(proxy.inbound, context(ca, web)) as client:
        for _ in range(3):
            assert client.get("/", "orders").status == 200
    assert proxy.get().status == 200
    metrics = proxy.metrics()
    assert metrics(SERVER, l7proxy_peer=WEB, url_scheme="https", http_response_status_code="200") == 3
    assert metrics(SERVER, l7proxy_peer="", url_scheme="http", http_response_status_code="200") == 1
    assert [line["peer"] for line in proxy.log_lines(4)] == [WEB, WEB, WEB, ""]
    peers = [attributes(span).get("l7proxy.peer") for span in collector.wait(8) if span.kind == Span.SPAN_KIND_SERVER]
    assert peers == [WEB, WEB, WEB, None]


def test_app_and_collector_see_one_trace_through_the_sidecar(
    sidecar: StartSidecar, serve: StartServer, collector: Collector
) -> None:
    app = serve()
    proxy = sidecar(
        route("all", matches=[{"path": {"prefix": "/v1"}}]),
        app=app.address,
        tracing={"sampling": 0, "otlp": collector.url},
        service={"name": "orders", "mesh": "demo", "labels": {"version": "v3"}},
    )
    proxy.get("/v1/x", traceparent=SAMPLED, tracestate="a=b", user_agent="test")
    client, server = sorted(collector.wait(2), key=lambda span: span.kind, reverse=True)
    assert (client.kind, server.kind) == (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER)
    assert server.parent_span_id.hex() == SPAN
    assert client.parent_span_id == server.span_id
    assert app.requests[0].get("traceparent") == f"00-{TRACE}-{client.span_id.hex()}-01"
    assert app.requests[0].get("tracestate") == "a=b"
    assert (server.name, attributes(server)["l7proxy.route"]) == ("GET /v1", "all")
    assert attributes(client)["server.port"] == app.address[1]
    assert server.start_time_unix_nano <= client.start_time_unix_nano
    assert client.end_time_unix_nano <= server.end_time_unix_nano
    [line] = proxy.log_lines()
    assert (line["trace_id"], line["request_id"]) == (TRACE, attributes(server)["l7proxy.request_id"])
    resource = collector.resources[0]
    assert (resource["service.name"], resource["service.version"], resource["l7proxy.mesh"]) == ("orders", "v3", "demo")


def test_every_attempt_has_its_span(sidecar: StartSidecar, serve: StartServer, collector: Collector) -> None:
    app = serve(refusing_first)
    proxy = sidecar(
        route("all", policies={"retry": {"attempts": 2, "on": ["503"]}}),
        app=app.address,
        tracing={"sampling": 1, "otlp": collector.url},
    )
    assert proxy.get().status == 200
    spans = collector.wait(3)
    clients = [span for span in spans if span.kind == Span.SPAN_KIND_CLIENT]
    assert [attributes(span)["http.response.status_code"] for span in clients] == [503, 200]
    assert attributes(clients[1])["http.request.resend_count"] == 1
    parents = [request.get("traceparent") for request in app.requests]
    assert parents == [f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01" for span in clients]
    assert proxy.metrics()(SERVER) == 1
    assert proxy.metrics()(CLIENT) == 2


def test_the_spans_of_a_grpc_call_tell_its_status(sidecar: StartSidecar, collector: Collector) -> None:
    echo = GrpcServer()
    proxy = sidecar(
        upstream("echo", echo.address, protocol="http2"),
        route("calls", upstream="echo", policies={"retry": {"attempts": 1, "on": ["failed-precondition"]}}),
        tracing={"sampling": 1, "otlp": collector.url},
    )

    async def call(calls: Calls) -> None:
        assert await calls.unary(b"hello") == b"hello"
        with pytest.raises(grpc.aio.AioRpcError):
            await calls.unary(b"fail")

    run(call, proxy.inbound)
    spans = [(span.kind, attributes(span)) for span in collector.wait(5)]
    echo.close()
    statuses = collections.Counter((kind, told["rpc.response.status_code"]) for kind, told in spans)
    assert statuses == {
        (Span.SPAN_KIND_SERVER, "OK"): 1,
        (Span.SPAN_KIND_CLIENT, "OK"): 1,
        (Span.SPAN_KIND_SERVER, "FAILED_PRECONDITION"): 1,
        (Span.SPAN_KIND_CLIENT, "FAILED_PRECONDITION"): 2,
    }
    reasons = [told["l7proxy.retry_reason"] for _, told in spans if "l7proxy.retry_reason" in told]
    assert reasons == ["failed-precondition"]


def test_a_request_that_no_route_takes_is_traced(sidecar: StartSidecar, collector: Collector) -> None:
    proxy = sidecar(route("a", hosts=["a"]), app=free_address(), tracing={"sampling": 1, "otlp": collector.url})
    assert proxy.get(host="b").status == 404
    [span] = collector.wait(1)
    assert (span.name, attributes(span)["l7proxy.code"]) == ("GET", "no_route")
    assert proxy.log_lines()[0]["trace_id"] == span.trace_id.hex()


def events(span: Span) -> list[tuple[str, dict[str, Any]]]:
    return [(event.name, {pair.key: value(pair.value) for pair in event.attributes}) for event in span.events]


def test_a_sampled_request_carries_its_decision(
    sidecar: StartSidecar, serve: StartServer, collector: Collector
) -> None:
    rules = {"deny": [{"name": "no-secrets", "paths": ["/v1/secret"]}]}
    proxy = sidecar(
        route("write", matches=[{"path": {"prefix": "/v1"}, "methods": ["POST"]}]),
        route(
            "read", matches=[{"path": {"prefix": "/v1"}}], policies={"authorization": rules, "timeout": {"idle": "5s"}}
        ),
        app=serve().address,
        tracing={"sampling": 1, "otlp": collector.url},
    )
    assert proxy.get("/v1/secret").status == 403
    [denied] = collector.wait(1)
    assert [(name, told.get("l7proxy.policy"), told.get("l7proxy.outcome")) for name, told in events(denied)] == [
        ("l7proxy.route", None, None),
        ("l7proxy.policy", "authorization", "denied"),
    ]
    (_, chosen), (_, verdict) = events(denied)
    assert (chosen["l7proxy.route"], chosen["l7proxy.host"]) == ("read", "the host matches '*'")
    assert [text.partition(":")[0] for text in list_of(chosen["l7proxy.passed_over"])] == ["write"]
    assert verdict["l7proxy.rule"] == "no-secrets"
    assert verdict["l7proxy.where"].startswith(f"{proxy.config}:")
    assert all(denied.start_time_unix_nano <= event.time_unix_nano for event in denied.events)
    assert proxy.get("/v1").status == 200
    [allowed] = [span for span in collector.wait(3) if span.kind == Span.SPAN_KIND_SERVER][1:]
    outcomes = {told["l7proxy.policy"]: told["l7proxy.outcome"] for _, told in events(allowed)[1:]}
    assert outcomes == {"authorization": "allowed"}
    assert all(event.time_unix_nano <= allowed.end_time_unix_nano for event in allowed.events)


def list_of(array: Any) -> list[Any]:
    return [value(item) for item in array.values]


def test_context_passes_without_any_tracing(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(app=app.address)
    proxy.get(traceparent=SAMPLED, tracestate="a=b")
    assert (app.requests[0].get("traceparent"), app.requests[0].get("tracestate")) == (SAMPLED, "a=b")
    assert proxy.log_lines()[0]["trace_id"] == TRACE


def test_a_collector_that_is_away_costs_a_counter_only(sidecar: StartSidecar, serve: StartServer) -> None:
    host, port = free_address()
    proxy = sidecar(app=serve().address, tracing={"sampling": 1, "otlp": f"http://{host}:{port}"})
    with proxy.client() as client:
        for _ in range(50):
            assert client.get().status == 200
    wait_for(lambda: proxy.metrics()("l7proxy_spans_dropped_total") == 100, 60, lambda: proxy.metrics().text)
    assert proxy.process.stderr.count("spans are dropped") == 1


def test_exemplars_lead_from_latency_to_a_trace(
    sidecar: StartSidecar, serve: StartServer, collector: Collector
) -> None:
    proxy = sidecar(app=serve().address, tracing={"sampling": 0, "otlp": collector.url})
    proxy.get(traceparent=SAMPLED)
    [server] = [span for span in collector.wait(2) if span.kind == Span.SPAN_KIND_SERVER]
    request = urllib.request.Request(
        f"http://127.0.0.1:{proxy.metrics_at[1]}/metrics", headers={"accept": "application/openmetrics-text"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        text = answer.read().decode()
    assert f'# {{span_id="{server.span_id.hex()}",trace_id="{TRACE}"}}' in text


# Which requests.


def test_a_route_has_a_probability_of_its_own(sidecar: StartSidecar, serve: StartServer, collector: Collector) -> None:
    app = serve()
    proxy = sidecar(
        route("always", matches=[{"path": {"prefix": "/always"}}], tracing={"sampling": 1}),
        route("never", matches=[{"path": {"prefix": "/never"}}], tracing={"sampling": 0}),
        route("rest"),
        app=app.address,
        tracing={"sampling": 0, "otlp": collector.url},
    )
    for path in ("/never", "/rest", "/always"):
        proxy.get(path)
    spans = collector.wait(2)
    flags = [(request.get("traceparent") or "")[-2:] for request in app.requests]
    assert flags == ["00", "00", "01"]
    [client] = [span for span in spans if span.kind == Span.SPAN_KIND_CLIENT]
    assert app.requests[2].get("traceparent") == f"00-{client.trace_id.hex()}-{client.span_id.hex()}-01"
    assert [line["trace_id"] for line in proxy.log_lines(3)][2] == client.trace_id.hex()
    proxy.reconfigure(
        route("always", matches=[{"path": {"prefix": "/always"}}], tracing={"sampling": 1}),
        route("never", matches=[{"path": {"prefix": "/never"}}], tracing={"sampling": 0}),
        route("rest"),
        tracing={"sampling": 1},
    )
    for path in ("/never", "/rest", "/always"):
        proxy.get(path)
    collector.wait(6)
    flags = [(request.get("traceparent") or "")[-2:] for request in app.requests[3:]]
    assert flags == ["00", "01", "01"]
    assert [attributes(span)["l7proxy.route"] for span in servers(collector.spans)] == ["always", "rest", "always"]


def test_a_callers_decision_holds_whatever_the_route_says(
    sidecar: StartSidecar, serve: StartServer, collector: Collector
) -> None:
    app = serve()
    proxy = sidecar(
        route("always", matches=[{"path": {"prefix": "/always"}}], tracing={"sampling": 1}),
        route("never", matches=[{"path": {"prefix": "/never"}}], tracing={"sampling": 0}),
        app=app.address,
        tracing={"sampling": 1, "otlp": collector.url},
    )
    proxy.get("/always", traceparent=f"00-{TRACE}-{SPAN}-00")
    proxy.get("/never", traceparent=f"00-{TRACE}-{SPAN}-01")
    [server] = servers(collector.wait(2))
    assert attributes(server)["l7proxy.route"] == "never"
    assert app.requests[0].get("traceparent") == f"00-{TRACE}-{SPAN}-00"


def test_a_route_decides_for_a_b3_caller_that_did_not(
    sidecar: StartSidecar, serve: StartServer, collector: Collector
) -> None:
    app = serve()
    proxy = sidecar(
        route("always", matches=[{"path": {"prefix": "/always"}}], tracing={"sampling": 1}),
        route("never", tracing={"sampling": 0}),
        app=app.address,
        tracing={"sampling": 0.5, "otlp": collector.url, "b3": True},
    )
    for _ in range(8):
        proxy.get("/always", b3=f"{TRACE}-{SPAN}")
        proxy.get("/never", b3=f"{TRACE}-{SPAN}")
    spans = servers(collector.wait(16))
    assert {(span.trace_id.hex(), span.parent_span_id.hex()) for span in spans} == {(TRACE, SPAN)}
    assert {attributes(span)["l7proxy.route"] for span in spans} == {"always"}
    told = [request.get("b3") or "" for request in app.requests]
    assert [b3[-1] for b3 in told] == ["1", "0"] * 8
    assert {b3[:32] for b3 in told} == {TRACE}


def test_a_failed_request_is_traced_though_nobody_sampled_it(
    sidecar: StartSidecar, serve: StartServer, collector: Collector
) -> None:
    app = serve(by_path)
    proxy = sidecar(
        route("all", policies={"retry": {"attempts": 1, "on": ["503"]}}),
        app=app.address,
        tracing={"sampling": 0, "otlp": collector.url, "errors": True},
    )
    assert proxy.get("/good").status == 200
    assert proxy.get("/bad").status == 503
    spans = collector.wait(3)
    [server] = servers(spans)
    clients = [span for span in spans if span.kind == Span.SPAN_KIND_CLIENT]
    assert [attributes(span).get("l7proxy.retry_reason") for span in clients] == [None, "503"]
    told = {request.get("traceparent") for request in app.requests[1:]}
    assert told == {f"00-{server.trace_id.hex()}-{server.span_id.hex()}-00"}
    lines = proxy.log_lines(2)
    assert lines[1]["trace_id"] == server.trace_id.hex()
    assert lines[0]["trace_id"] not in ("", server.trace_id.hex())
    took = server.end_time_unix_nano - server.start_time_unix_nano
    assert 0 < took / 1e6 < lines[1]["duration_ms"] + 50
    accept = {"accept": "application/openmetrics-text"}
    url = f"http://127.0.0.1:{proxy.metrics_at[1]}/metrics"
    with urllib.request.urlopen(urllib.request.Request(url, headers=accept), timeout=5) as answer:
        exemplars = [line for line in answer.read().decode().splitlines() if "# {" in line]
    assert all(server.trace_id.hex() in line and 'status_code="503"' in line for line in exemplars)
    assert len(exemplars) == 1


def test_the_hops_of_a_failed_request_make_one_trace(
    sidecar: StartSidecar, serve: StartServer, collector: Collector
) -> None:
    tracing = {"sampling": 0, "otlp": collector.url, "errors": True}
    orders = sidecar(route("in"), app=serve(by_path).address, tracing=tracing, name="orders")
    web = sidecar(
        upstream("orders", orders.inbound),
        route("out", direction="outbound", hosts=["orders"], upstream="orders"),
        app=serve().address,
        tracing=tracing,
        name="web",
    )
    with Client(web.outbound) as client:
        assert client.get("/bad", "orders", traceparent=f"00-{TRACE}-{SPAN}-00").status == 503
    spans = collector.wait(4)
    outer, inner = sorted(servers(spans), key=lambda span: attributes(span)["l7proxy.direction"], reverse=True)
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert outer.parent_span_id.hex() == SPAN
    assert inner.parent_span_id == outer.span_id
