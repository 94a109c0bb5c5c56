"""Every answer that the proxy makes itself: its code, Proxy-Status, JSON, log line and metric."""

import json
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.client import Client
from tests.support.message import Message
from tests.support.net import free_address, wait_for
from tests.support.server import Connection
from tests.support.sidecar import Sidecar, route, upstream


def check(proxy: Sidecar, answer: Message, status: int, code: str, kind: str, flag: str, **labels: str) -> None:
    """Holds an answer to the contract, and the log and the metric to the answer."""
    assert (answer.status, answer["x-l7proxy-error"]) == (status, code)
    assert answer["proxy-status"] == f"{proxy.name}; error={kind}"
    assert answer["content-type"] == "application/json"
    body = json.loads(answer.body)
    assert body["error"] == code
    assert body["message"]
    line = proxy.log_lines()[-1]
    assert (line["status"], line["code"], line["flags"]) == (status, code, flag)
    samples = proxy.metrics()
    assert samples(
        "http_server_request_duration_seconds_count",
        error_type=code,
        http_response_status_code=str(status),
        l7proxy_flags=flag,
        **labels,
    ) == 1  # fmt: skip


def test_no_route(sidecar: StartSidecar) -> None:
    proxy = sidecar(route("only", hosts=["only"], directResponse={"status": 200}))
    check(proxy, proxy.get(), 404, "no_route", "destination_not_found", "NR", l7proxy_direction="inbound")


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("orders-v1", "orders-v1"),
        ("Orders v1", '"Orders v1"'),
        ("1st", '"1st"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("größe\r\nx: y", '"gr??e??x: y"'),
    ],
)
def test_proxy_status_is_a_structured_field_whatever_the_service_is_called(
    name: str, written: str, sidecar: StartSidecar
) -> None:
    proxy = sidecar(route("only", hosts=["only"], directResponse={"status": 200}), service={"name": name})
    assert proxy.get()["proxy-status"] == f"{written}; error=destination_not_found"
    with proxy.client() as client:
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        assert client.read()["proxy-status"] == f"{written}; error=http_request_error"


def test_upstream_connect(sidecar: StartSidecar) -> None:
    proxy = sidecar(app=free_address())
    check(proxy, proxy.get(), 503, "upstream_connect", "connection_refused", "UF")


def test_upstream_reset(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()

    proxy = sidecar(app=serve(script).address)
    check(proxy, proxy.get(), 502, "upstream_reset", "connection_terminated", "UC")


def test_upstream_protocol(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"nonsense\r\n\r\n")

    proxy = sidecar(app=serve(script).address)
    check(proxy, proxy.get(), 502, "upstream_protocol", "http_protocol_error", "UPE")


def test_upstream_timeout(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.wait_for_close()

    proxy = sidecar(route("all", policies={"timeout": {"request": "50ms"}}), app=serve(script).address)
    check(proxy, proxy.get(), 504, "upstream_timeout", "http_response_timeout", "UT", l7proxy_route="all")


def test_overflow(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.wait_for_close()

    app = serve(script)
    breakers = {"requests": 1}
    proxy = sidecar(upstream("one", app.address, breakers=breakers), route("all", upstream="one"))
    with proxy.client() as busy:
        busy.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        app.wait_for_requests(1)
        check(proxy, proxy.get(), 503, "overflow", "connection_limit_reached", "UO")


def test_rate_limited(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(route("all", policies={"rateLimit": {"requests": 1, "per": "1h"}}), app=serve().address)
    assert proxy.get().status == 200
    check(proxy, proxy.get(), 429, "rate_limited", "http_request_denied", "RL")


def test_egress_blocked(sidecar: StartSidecar) -> None:
    proxy = sidecar(outbound={"policy": "REGISTRY_ONLY"})
    with Client(proxy.outbound) as client:
        answer = client.get("/", "elsewhere.example")
    check(proxy, answer, 502, "egress_blocked", "destination_ip_prohibited", "NR", l7proxy_direction="outbound")


def test_method_not_allowed(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address)
    with proxy.client() as client:
        answer = client.request(b"CONNECT test:443 HTTP/1.1\r\nhost: test:443\r\n\r\n")
    check(proxy, answer, 405, "method_not_allowed", "http_request_denied", "DPE")


def test_an_ambiguous_path_is_a_bad_request(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address)
    answer = proxy.get("/%00")
    check(proxy, answer, 400, "bad_request", "http_request_error", "DPE")
    assert answer.all("connection") == ["close"]


MALFORMED = {
    "headers_too_large": (431, b"GET / HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 101 + b"\r\n"),
    "uri_too_long": (414, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nhost: a\r\n\r\n"),
    "not_implemented": (501, b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n"),
    "http_version": (505, b"GET / HTTP/1.9\r\nhost: a\r\n\r\n"),
    "bad_request": (400, b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n"),
}


@pytest.mark.parametrize("code", MALFORMED)
def test_what_is_refused_before_any_route(code: str, sidecar: StartSidecar, serve: StartServer) -> None:
    status, data = MALFORMED[code]
    proxy = sidecar(app=serve().address)
    with proxy.client() as client:
        answer = client.request(data)
        assert client.closed()
    assert (answer.status, answer["x-l7proxy-error"]) == (status, code)
    assert answer["proxy-status"] == "sidecar; error=http_request_error"
    assert json.loads(answer.body)["error"] == code
    assert proxy.metrics()("l7proxy_bad_requests_total") == 1


def test_an_answer_of_the_app_is_not_taken_for_ours(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy")

    answer = sidecar(app=serve(script).address).get()
    assert (answer.status, answer.body) == (503, b"busy")
    assert "x-l7proxy-error" not in answer
    assert "proxy-status" not in answer


def test_with_two_sidecars_in_a_row_one_sees_which_answered(sidecar: StartSidecar) -> None:
    second = sidecar(app=free_address(), name="second")
    first = sidecar(app=second.inbound, name="first")
    answer = first.get()
    assert answer.status == 503
    assert "second" in answer["proxy-status"]
    assert "first" not in answer["proxy-status"]


def test_a_grpc_call_gets_a_grpc_status(sidecar: StartSidecar) -> None:
    proxy = sidecar(app=free_address())
    with proxy.client() as client:
        answer = client.request(
            b"POST /a.B/C HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n"
        )
    assert (answer.status, answer["grpc-status"], answer["x-l7proxy-error"]) == (200, "14", "upstream_connect")


def test_a_head_request_gets_no_body_of_an_error(sidecar: StartSidecar) -> None:
    proxy = sidecar(app=free_address())
    with proxy.client() as client:
        assert client.request(b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").status == 503
        assert client.get().status == 503


def test_the_client_never_sees_the_detail(sidecar: StartSidecar) -> None:
    address = free_address()
    proxy = sidecar(app=address)
    answer = proxy.get()
    assert str(address[1]).encode() not in answer.head + answer.body
    assert str(address[1]) in json.dumps(proxy.log_lines())


def test_counts_agree_with_what_clients_saw(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    routes = (
        route(
            "limited", matches=[{"path": {"prefix": "/limited"}}], policies={"rateLimit": {"requests": 3, "per": "1h"}}
        ),
        route("rest", hosts=["test"]),
    )
    proxy = sidecar(*routes, app=app.address)
    seen: dict[tuple[str, int], int] = {}
    with proxy.client() as client:
        for target, host in [("/limited", "x"), ("/", "test"), ("/x", "x")] * 7:
            status = client.get(target, host).status
            seen[host, status] = seen.get((host, status), 0) + 1
    assert seen == {("x", 200): 3, ("x", 429): 4, ("test", 200): 7, ("x", 404): 7}
    samples = proxy.metrics()

    def count(**labels: Any) -> float:
        return samples("http_server_request_duration_seconds_count", **labels)

    assert count(http_response_status_code="200") == 10
    assert count(http_response_status_code="429", l7proxy_route="limited") == 4
    assert count(http_response_status_code="404") == 7
    assert count(l7proxy_direction="inbound") == 21
    assert samples("http_server_request_duration_seconds_bucket", le="+Inf") == 21
    wait_for(lambda: len(proxy.log_lines(21)) == 21)
