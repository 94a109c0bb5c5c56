"""The admin API and its smaller neighbours, asked over real sockets of a real process."""

import gzip
import http.client
import json
import re
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient
from tests.support.client import Client
from tests.support.net import Address, free_address, wait_for
from tests.support.process import Process
from tests.support.sidecar import Sidecar, route, upstream

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


class Answer:
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(address: Address, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(*address, timeout=10)
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=fields)
    response = connection.getresponse()
    answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    connection.close()
    return answer


@pytest.fixture(scope="module")
def proxy(shared_sidecar: StartSidecar) -> Sidecar:
    """A sidecar whose application is away; nothing here needs it."""
    health = free_address()
    sidecar = shared_sidecar(
        route("orders", hosts=["orders.example.com"], upstream="payments"),
        upstream("payments", ("127.0.0.1", 1)),
        app=free_address(),
        health={"listen": f"{health[0]}:{health[1]}"},
    )
    sidecar.health = health  # type: ignore[attr-defined]
    return sidecar


def test_the_index_names_every_path_and_how_to_ask(proxy: Sidecar) -> None:
    index = ask(proxy.admin, "/").json
    assert index["/loglevel"] == ["GET", "POST"]
    assert index["/drain"] == index["/quit"] == ["POST"]
    for path in ("/ready", "/live", "/metrics", "/config", "/routes", "/clusters", "/certs", "/stats", "/openapi.json"):
        assert index[path] == ["GET"]
        assert ask(proxy.admin, path).status == 200


def test_config_is_what_was_written_with_its_version(proxy: Sidecar) -> None:
    config = ask(proxy.admin, "/config").json
    proxy.get()
    assert config["version"] == proxy.log_lines()[0]["config_version"]
    assert [(document["kind"], document["name"]) for document in config["documents"]] == [
        ("Sidecar", "sidecar"),
        ("Upstream", "payments"),
        ("Route", "orders"),
    ]


def test_routes_and_clusters_are_told(proxy: Sidecar) -> None:
    [orders] = ask(proxy.admin, "/routes").json
    assert (orders["name"], orders["hosts"], orders["upstream"]) == ("orders", ["orders.example.com"], "payments")
    clusters = {cluster["name"]: cluster for cluster in ask(proxy.admin, "/clusters").json}
    assert clusters["payments"]["endpoints"][0]["address"] == "127.0.0.1:1"


def test_requests_under_way_are_counted_by_route(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(
        route("slow", matches=[{"path": {"prefix": "/slow"}}]),
        route("ws", matches=[{"path": {"prefix": "/ws"}}]),
        route("out", direction="outbound", upstream="app"),
        app=uvicorn_app,
    )
    slow = b"GET /slow/20000 HTTP/1.1\r\nhost: test\r\n\r\n"
    with (
        proxy.client() as one,
        Client(proxy.outbound) as two,
        RawClient(proxy.inbound) as h2,
        connect(f"ws://127.0.0.1:{proxy.inbound[1]}/ws", compression=None),
    ):
        assert ask(proxy.admin, "/requests").json == [{"direction": "inbound", "route": "ws", "active": 1}]
        one.send(slow)
        two.send(slow)
        for _ in range(2):
            h2.request(
                [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"test"), (b":path", b"/slow/20000")]
            )
        wait_for(lambda: proxy.metrics()("l7proxy_requests") == 5)
        active = {(item["direction"], item["route"]): item["active"] for item in ask(proxy.admin, "/requests").json}
        assert active == {("inbound", "slow"): 3, ("inbound", "ws"): 1, ("outbound", "out"): 1}
    wait_for(lambda: ask(proxy.admin, "/requests").json == [])


def test_stats_are_the_metrics_as_json(proxy: Sidecar) -> None:
    proxy.get()
    stats = ask(proxy.admin, "/stats?name=http_server_").json
    assert list(stats) == ["http_server_request_duration_seconds"]
    samples = ask(proxy.admin, "/stats").json
    assert samples["l7proxy_config_rejected_total"]["series"] == [{"labels": {}, "value": 0}]
    two = ask(proxy.admin, "/stats?name=http_client_&name=l7proxy_config_").json
    assert {name.rpartition("_")[0] for name in two} >= {"http_client_request_duration", "l7proxy_config_rejected"}
    assert not [name for name in two if not name.startswith(("http_client_", "l7proxy_config_"))]
    total = sum(series["count"] for series in stats["http_server_request_duration_seconds"]["series"])
    assert total == proxy.metrics()("http_server_request_duration_seconds_count")


def test_a_request_is_explained_by_the_live_configuration(proxy: Sidecar) -> None:
    before = proxy.metrics()("http_server_request_duration_seconds_count")
    told = ask(proxy.admin, "/explain?method=PUT&url=http://orders.example.com/v1&header=x-a:b&source_ip=10.0.0.1").json
    assert (told["route"]["name"], told["upstream"]["name"]) == ("orders", "payments")
    assert told["upstream"]["endpoints"] == [{"address": "127.0.0.1:1", "ejected": False}]
    assert ["x-a", "b"] in told["upstream"]["headers"]
    assert (told["method"], told["source"]) == ("PUT", "10.0.0.1")
    assert told["version"] == ask(proxy.admin, "/config").json["version"]
    elsewhere = ask(proxy.admin, "/explain?url=/&direction=outbound").json
    assert (elsewhere["route"], elsewhere["answer"]["code"]) == (None, "egress_blocked")
    assert proxy.metrics()("http_server_request_duration_seconds_count") == before


@pytest.mark.parametrize(
    "query", ["", "url=ftp://a/", "url=/&direction=sideways", "url=/&identity=spiffe:/x", "url=/&header=a", "uri=/"]
)
def test_a_question_that_makes_no_sense_is_a_bad_request(proxy: Sidecar, query: str) -> None:
    answer = ask(proxy.admin, f"/explain?{query}")
    assert answer.status == 400
    assert answer.json["error"]


def test_explain_follows_a_new_configuration(sidecar: StartSidecar) -> None:
    proxy = sidecar(route("a"), app=free_address())
    assert ask(proxy.admin, "/explain?url=/").json["route"]["name"] == "a"
    proxy.reconfigure(route("b", policies={"authorization": {"allow": []}}))
    told = ask(proxy.admin, "/explain?url=/").json
    assert (told["route"]["name"], told["allowed"], told["answer"]["status"]) == ("b", False, 403)


def test_the_log_level_is_changed_by_post_only(proxy: Sidecar) -> None:
    assert ask(proxy.admin, "/loglevel?level=debug").json == {"error": "GET /loglevel takes no parameters"}
    assert ask(proxy.admin, "/loglevel").json == {"level": "info"}
    assert ask(proxy.admin, "/loglevel?level=debug", "POST").json == {"level": "debug"}
    assert ask(proxy.admin, "/loglevel").json == {"level": "debug"}
    wrong = ask(proxy.admin, "/loglevel?level=loud", "POST")
    assert (wrong.status, wrong.json) == (400, {"error": "level must be one of debug, info, warning, error"})
    assert ask(proxy.admin, "/loglevel?level=info", "POST").json == {"level": "info"}


@pytest.mark.parametrize(
    ("method", "path", "allow"), [("GET", "/drain", "POST"), ("GET", "/quit", "POST"), ("POST", "/config", "GET, HEAD")]
)
def test_what_changes_something_is_post_and_the_rest_is_not(proxy: Sidecar, method: str, path: str, allow: str) -> None:
    answer = ask(proxy.admin, path, method)
    assert (answer.status, sorted(answer.headers["allow"].split(", "))) == (405, allow.split(", "))
    assert ask(proxy.admin, "/ready").status == 200


def test_there_is_nothing_else(proxy: Sidecar) -> None:
    wrong = ask(proxy.admin, "/stats?prefix=l7proxy_")
    assert (wrong.status, wrong.json) == (400, {"error": "unknown parameter 'prefix'; there are name"})
    wrong = ask(proxy.admin, "/failures?limit=5")
    assert (wrong.status, wrong.json) == (400, {"error": "GET /failures takes no parameters"})
    assert ask(proxy.admin, "/ready?from=a-probe").status == 200
    answer = ask(proxy.admin, "/config/")
    assert (answer.status, answer.json) == (404, {"error": "Not Found"})
    assert ask(proxy.metrics_at, "/config").status == 404
    assert ask(proxy.metrics_at, "/ready").status == 404
    assert ask(proxy.health, "/metrics").status == 404  # type: ignore[attr-defined]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "", "127.0.0.1.evil"])
def test_a_name_that_was_pointed_here_is_refused(proxy: Sidecar, host: str) -> None:
    for address, path in ((proxy.admin, "/config"), (proxy.admin, "/drain"), (proxy.metrics_at, "/metrics")):
        method = "POST" if path == "/drain" else "GET"
        answer = ask(address, path, method, host=host)
        assert answer.status in (400, 421)
        assert b"http_server" not in answer.body
    assert ask(proxy.admin, "/ready").status == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:15000", "127.0.0.1", "[::1]:15000", socket.gethostname()])
def test_this_machine_may_be_called_by_address_and_name(proxy: Sidecar, host: str) -> None:
    assert ask(proxy.admin, "/ready", host=host).status == 200


def test_a_page_in_a_browser_changes_nothing(proxy: Sidecar) -> None:
    answer = ask(proxy.admin, "/drain", "POST", origin="http://evil.example")
    assert (answer.status, answer.json) == (403, {"error": "not from a web page"})
    assert ask(proxy.admin, "/ready").status == 200


def test_probes_have_a_listener_of_their_own(proxy: Sidecar) -> None:
    for path in ("/ready", "/live"):
        answer = ask(proxy.health, path)  # type: ignore[attr-defined]
        assert (answer.status, answer.body) == (200, b"ok\n")


@pytest.mark.parametrize("listener", ["admin", "metrics_at"])
def test_metrics_come_in_the_format_that_is_asked_for(proxy: Sidecar, listener: str) -> None:
    address = getattr(proxy, listener)
    plain = ask(address, "/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert plain.body.startswith(b"# HELP target_info")
    modern = ask(address, "/metrics", accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert modern.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert modern.body.endswith(b"# EOF\n")
    packed = ask(address, "/metrics", accept_encoding="gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body).startswith(b"# HELP target_info")
    assert ask(address, "/metrics", "HEAD").body == b""


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])
def test_the_otel_exporter_says_the_same(proxy: Sidecar, accept: str) -> None:
    proxy.get("/some", host="orders.example.com")

    def lines(path: str) -> list[str]:
        # What changes by itself between two looks is left out.
        text = ask(proxy.admin, path, accept=accept).body.decode()
        return [line for line in text.splitlines() if not re.match(r"process_|l7proxy_(event_loop|downstream)_", line)]

    assert lines("/metrics") == lines("/metrics/otel")


def test_a_scraper_that_stops_reading_holds_up_nobody(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(*[route(f"r{number}", hosts=[f"h{number}"]) for number in range(500)], app=serve().address)
    stuck = [Client(proxy.metrics_at, receive_buffer=4096) for _ in range(10)]
    before = proxy.process.rss
    for client in stuck:
        client.send(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")
    for number in range(100):
        assert proxy.get("/", host=f"h{number}").status == 200
    assert proxy.metrics()("http_server_request_duration_seconds_count") == 100
    assert proxy.process.rss - before < 16 << 20
    for client in stuck:
        client.close()


def test_drain_fails_readiness_and_goes_on_serving(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address)
    with proxy.client() as client:
        assert client.request(GET).get("connection") is None
        assert ask(proxy.admin, "/drain", "POST").json == {"draining": True}
        answer = ask(proxy.admin, "/ready")
        assert (answer.status, answer.body) == (503, b"draining\n")
        assert ask(proxy.admin, "/live").status == 200
    with proxy.client() as client:
        last = client.request(GET)
        assert (last.status, last.get("connection")) == (200, "close")
    time.sleep(0.2)
    assert proxy.process.popen.poll() is None


def test_the_admin_api_can_listen_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    config = tmp_path / "sidecar.yaml"
    config.write_text(
        f"apiVersion: l7proxy.io/v1\nkind: Sidecar\nmetadata: {{name: a}}\nspec: {{admin: {{listen: 'unix:{path}'}}}}\n"
    )
    command = [sys.executable, "-m", "l7proxy", "run", "-c", str(config)]
    process = Process("l7proxy", command, tmp_path, {"PYTHONPATH": str(Path(__file__).parents[1])})
    try:
        process.wait_until(path.exists)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"GET /ready HTTP/1.1\r\nhost: anything\r\nconnection: close\r\n\r\n")
            received = b""
            while data := sock.recv(4096):
                received += data
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    finally:
        process.stop()
