"""Telemetry of a real sidecar under traffic: what it counts, logs and traces is what its clients saw."""

import collections
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.client import exchange
from tests.support.net import free_address, wait_for
from tests.support.process import Process
from tests.support.server import Connection
from tests.support.sidecar import route, upstream
from tests.telemetry.collector import Collector

SERVER = "http_server_request_duration_seconds_count"
CLIENT = "http_client_request_duration_seconds_count"


def by_path(connection: Connection) -> None:
    """Answers /status/N with N."""
    while True:
        status = connection.read().target.rpartition("/")[2]
        connection.send(b"HTTP/1.1 %b X\r\ncontent-length: 2\r\n\r\nok" % status.encode())


def test_counters_and_log_lines_agree_with_what_clients_saw(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(by_path).address
    proxy = sidecar(
        route("status", matches=[{"path": {"prefix": "/status"}}]),
        route("away", matches=[{"path": {"prefix": "/away"}}], upstream="nowhere"),
        upstream("nowhere", free_address()),
        app=app,
    )
    seen: collections.Counter[tuple[str, int]] = collections.Counter()
    for index in range(120):
        path = ["/status/200", "/status/404", "/status/503", "/away", "/other"][index % 5]
        with proxy.client() as client:
            for _ in range(1 + index % 3):
                seen["/" + path.split("/")[1], client.get(path).status] += 1
    assert {status for _, status in seen} == {200, 404, 503}
    metrics = proxy.metrics()
    routes = {"/status": "status", "/away": "away", "/other": ""}
    for (path, status), count in seen.items():
        labels = {"l7proxy_route": routes[path], "http_response_status_code": str(status)}
        assert metrics(SERVER, l7proxy_direction="inbound", **labels) == count
    assert metrics(SERVER) == sum(seen.values())
    assert metrics(SERVER, error_type="upstream_connect", l7proxy_flags="UF") == seen["/away", 503]
    assert metrics(SERVER, error_type="no_route", l7proxy_flags="NR") == seen["/other", 404]
    assert metrics(CLIENT, l7proxy_upstream="app") == sum(n for (path, _), n in seen.items() if path == "/status")
    lines = proxy.log_lines(sum(seen.values()))
    logged = collections.Counter(("/" + line["path"].split("/")[1], line["status"]) for line in lines)
    assert logged == seen
    assert len({line["request_id"] for line in lines}) == len(lines)


def test_a_client_that_went_away_is_counted_and_logged(sidecar: StartSidecar, serve: StartServer) -> None:
    def silent(connection: Connection) -> None:
        connection.read()
        connection.wait_for_close()

    proxy = sidecar(app=serve(silent).address)
    client = proxy.client()
    client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
    wait_for(lambda: proxy.metrics()("l7proxy_upstream_requests") == 1, 5, lambda: proxy.metrics().text)
    client.reset()
    wait_for(lambda: proxy.metrics()(SERVER, http_response_status_code="499", l7proxy_flags="DC") == 1, 5)
    wait_for(lambda: proxy.metrics()(CLIENT, http_response_status_code="", error_type="cancelled") == 1, 5)
    [line] = proxy.log_lines()
    assert (line["status"], line["flags"], line["first_byte_ms"]) == (499, "DC", None)


def test_a_body_that_stands_still_is_counted_as_it_was_answered(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address, timeouts={"streamIdle": "300ms"})
    with proxy.client() as client:
        client.send(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nabc")
        assert client.read().status == 408
    [line] = proxy.log_lines()
    assert (line["status"], line["code"], line["flags"]) == (408, "request_timeout", "SI")
    assert proxy.metrics()(SERVER, http_response_status_code="408", error_type="request_timeout") == 1
    assert proxy.metrics()(SERVER) == 1


@pytest.mark.parametrize(
    ("data", "status", "code", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400, "bad_request", "host"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"x" * 70_000 + b"\r\n\r\n", 431, "headers_too_large", ""),
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414, "uri_too_long", ""),
    ],
)
def test_what_never_became_a_request_is_counted_and_logged_too(
    sidecar: StartSidecar, data: bytes, status: int, code: str, reason: str
) -> None:
    proxy = sidecar(app=free_address())
    answers, _ = exchange(proxy.inbound, data)
    assert [answer.status for answer in answers] == [status]
    metrics = proxy.metrics()
    assert metrics(SERVER, error_type=code, http_response_status_code=str(status), l7proxy_flags="DPE") == 1
    assert metrics(SERVER) == metrics("l7proxy_bad_requests_total") == 1
    [line] = proxy.log_lines()
    assert (line["status"], line["code"], line["flags"], line["source"]) == (status, code, "DPE", "127.0.0.1")
    assert reason in line["detail"]


def test_configured_routes_are_counted_from_zero(sidecar: StartSidecar) -> None:
    proxy = sidecar(
        route("a", matches=[{"path": {"prefix": "/a"}, "methods": ["POST"]}, {"path": {"exact": "/b"}}]),
        app=free_address(),
    )
    found = {
        (labels["http_route"], labels["http_request_method"])
        for labels in proxy.metrics().series(SERVER, l7proxy_route="a", http_response_status_code="200")
    }
    assert found == {("/a", "POST"), ("/b", "GET")}
    assert proxy.metrics()(SERVER) == 0
    assert len(proxy.metrics().series(CLIENT, l7proxy_upstream="app")) == 1


def test_the_log_tells_the_times_and_sizes_of_a_request(sidecar: StartSidecar, serve: StartServer) -> None:
    arrived = threading.Event()

    def slow(connection: Connection) -> None:
        connection.read()
        time.sleep(0.1)
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe")
        assert arrived.wait(20)
        time.sleep(0.1)
        connection.send(b"llo")

    proxy = sidecar(app=serve(slow).address)
    with proxy.client() as client:
        client.send(b"POST /x?token=secret HTTP/1.1\r\nhost: Test:1\r\ncontent-length: 3\r\n\r\nabc")
        assert client.reader.head().status == 200
        arrived.set()
        assert client.reader.exactly(5) == b"hello"
    [line] = proxy.log_lines()
    assert (line["bytes_in"], line["bytes_out"], line["attempts"], line["upstream"]) == (3, 5, 1, "app")
    assert (line["path"], line["authority"].lower(), line["source"]) == ("/x", "test:1", "127.0.0.1")
    assert 100 <= line["first_byte_ms"] <= line["duration_ms"] - 100
    assert 0 <= line["queue_ms"] <= line["queue_ms"] + line["connect_ms"] < line["first_byte_ms"]
    assert "secret" not in json.dumps(line)


def test_a_tunnel_is_logged_when_it_opens_and_when_it_ends(sidecar: StartSidecar, serve: StartServer) -> None:
    def upgrade(connection: Connection) -> None:
        connection.read_head()
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n")
        connection.send(connection.sock.recv(100))

    proxy = sidecar(app=serve(upgrade).address)
    with proxy.client() as client:
        client.send(b"GET /ws HTTP/1.1\r\nhost: test\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n")
        assert client.reader.head().status == 101
        [opened] = proxy.log_lines(1)
        assert (opened["event"], opened["status"]) == ("tunnel_open", 101)
        client.send(b"hello")
        assert client.reader.exactly(5) == b"hello"
    ended = proxy.log_lines(2)[1]
    assert (ended["event"], ended["request_id"]) == ("tunnel_end", opened["request_id"])
    assert (ended["bytes_in"], ended["bytes_out"]) == (5, 5)


def test_a_full_pipe_as_log_holds_up_no_request(sidecar: StartSidecar, serve: StartServer, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    proxy = sidecar(app=serve().address, accessLog={"path": str(pipe)})
    with proxy.client() as client:
        for _ in range(1000):
            assert client.get("/" + "x" * 1000).status == 200
    assert proxy.metrics()(SERVER) == 1000
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    received = bytearray()

    def all_there() -> bool:
        try:
            received.extend(os.read(reader, 1 << 20))
        except BlockingIOError:
            pass
        return received.count(b"\n") + proxy.metrics()("l7proxy_access_log_dropped_total") == 1000

    wait_for(all_there, 10, lambda: f"{received.count(10)} lines")
    os.close(reader)


def test_every_line_is_there_when_the_process_has_ended(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address)
    with proxy.client() as client:
        for _ in range(300):
            client.get("/")
    proxy.stop()
    assert len(proxy.log.read_text().splitlines()) == 300


def test_usr1_opens_the_log_anew(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address)
    with proxy.client() as client:
        client.get("/1")
        old = proxy.log.with_suffix(".1")
        proxy.log.rename(old)
        proxy.process.kill(signal.SIGUSR1)
        wait_for(proxy.log.exists, 5, lambda: "the log was not opened anew")
        client.get("/2")
        [line] = proxy.log_lines(1)
    assert line["path"] == "/2"
    assert [json.loads(text)["path"] for text in old.read_text().splitlines()] == ["/1"]


@pytest.mark.parametrize("path", ["/no/such/folder/log", "/"])
def test_a_log_that_cannot_be_opened_is_one_clear_line(tmp_path: Path, path: str) -> None:
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        "apiVersion: l7proxy.io/v1\nkind: Sidecar\nmetadata: {name: a}\n"
        f"spec: {{inbound: {{listen: '127.0.0.1:0', app: 'http://127.0.0.1:1'}}, accessLog: {{path: {path}}}}}\n"
    )
    command = [sys.executable, "-m", "l7proxy", "run", "-c", str(config)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(command, capture_output=True, text=True, timeout=20, env=env)
    assert run.returncode == 1
    assert path in run.stderr
    assert "Traceback" not in run.stderr
    assert len(run.stderr.splitlines()) == 1


# Prometheus.


@pytest.mark.needs("promtool")
def test_promtool_has_nothing_to_say_about_any_metric(
    sidecar: StartSidecar, serve: StartServer, collector: Collector
) -> None:
    policies = {
        "retry": {"attempts": 1, "on": ["503"]},
        "rateLimit": {"requests": 1, "per": "1h"},
        "timeout": {"request": "5s"},
        "authorization": {"allow": [{"methods": ["GET"]}], "deny": [{"paths": ["/no"], "mode": "SHADOW"}]},
    }
    proxy = sidecar(
        route("all", policies=policies), app=serve(by_path).address, tracing={"sampling": 1, "otlp": collector.url}
    )
    for path in ("/status/200", "/status/503", "/no"):
        proxy.get(path)
    text = proxy.metrics().text
    check = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=20)
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


@pytest.mark.needs("prometheus")
def test_a_real_prometheus_scrapes_what_clients_saw(sidecar: StartSidecar, serve: StartServer, tmp_path: Path) -> None:
    proxy = sidecar(route("r", matches=[{"path": {"prefix": "/status"}}]), app=serve(by_path).address)
    with proxy.client() as client:
        for _ in range(70):
            client.get("/status/200")
        for _ in range(30):
            client.get("/status/503")
    at = free_address()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        f"- {{job_name: sidecars, static_configs: [{{targets: ['127.0.0.1:{proxy.metrics_at[1]}']}}]}}\n"
    )
    command = ["prometheus", f"--config.file={config}", f"--web.listen-address={at[0]}:{at[1]}"]
    server = Process("prometheus", [*command, f"--storage.tsdb.path={tmp_path / 'tsdb'}"], tmp_path)

    def query(expression: str) -> list[Any]:
        url = f"http://{at[0]}:{at[1]}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return [(row["metric"], float(row["value"][1])) for row in json.load(answer)["data"]["result"]]
        except OSError:
            return []

    try:
        server.wait_until(lambda: query("up == 1"), timeout=30)
        by_status = {
            labels["http_response_status_code"]: value
            for labels, value in query(f'sum by (http_response_status_code) ({SERVER}{{l7proxy_route="r"}})')
        }
        assert by_status == {"200": 70, "503": 30}
        [(_, quantile)] = query("histogram_quantile(0.5, sum by (le) (http_server_request_duration_seconds_bucket))")
        assert 0 < quantile < 10
        [(target, _)] = query("target_info")
        assert target["service_name"] == "sidecar"
        [(_, memory)] = query("process_resident_memory_bytes")
        assert 10e6 < memory < 200e6
        [(_, lag)] = query("l7proxy_event_loop_lag_seconds_count")
        assert lag > 0
    finally:
        server.stop()
