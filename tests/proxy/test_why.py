"""What the admin API tells of a finished request: each attempt, and which rule of which version decided."""

from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.message import Message
from tests.support.net import free_address, wait_for
from tests.support.server import Connection, answering
from tests.support.sidecar import Sidecar, route, upstream
from tests.test_admin import ask

BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
CLOSED = {"authorization": {"deny": [{"name": "no-secrets", "paths": ["/v1/secret"]}]}}


def why(proxy: Sidecar, name: str) -> Any:
    answer = ask(proxy.admin, f"/why?id={quote(name)}")
    assert answer.status == 200
    return answer.json


def only(proxy: Sidecar, answer: Message) -> Any:
    """What is told of the request with this answer of the proxy's own."""
    [told] = why(proxy, answer["x-request-id"])
    return told


def of_last(proxy: Sidecar) -> Any:
    [told] = why(proxy, proxy.log_lines()[-1]["request_id"])
    return told


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def workers(request: pytest.FixtureRequest) -> int:
    return request.param


def test_a_denial_is_told_with_its_rule_and_place(sidecar: StartSidecar, serve: StartServer, workers: int) -> None:
    proxy = sidecar(route("read", policies=CLOSED), app=serve().address, workers=workers)
    answers = [proxy.get("/v1/secret") for _ in range(8)]
    for answer in answers:
        assert answer.status == 403
        told = only(proxy, answer)
        line, explanation = told["request"], told["explanation"]
        assert (line["status"], line["code"], line["route"], line["path"]) == (403, "denied", "read", "/v1/secret")
        assert line["detail"].startswith(f"rule no-secrets at {proxy.config}:")
        assert told["attempts"] == []
        assert explanation["version"] == line["config_version"]
        [verdict] = [policy for policy in explanation["policies"] if policy["policy"] == "authorization"]
        assert (verdict["outcome"], verdict["rule"]) == ("denied", "no-secrets")
        assert line["detail"].endswith(verdict["where"])
        assert told["notes"] == []
    assert [line["code"] for line in ask(proxy.admin, "/failures").json] == ["denied"] * 8


def test_each_attempt_is_told_with_its_endpoint_and_times(sidecar: StartSidecar, serve: StartServer) -> None:
    busy, fine, gone = serve(answering(BUSY)), serve(), free_address()
    proxy = sidecar(
        upstream("pool", busy.address, fine.address, balance="roundRobin"),
        upstream("away", gone),
        route("retried", upstream="pool", policies={"retry": {"attempts": 2, "on": ["503"]}}),
        route("lost", hosts=["lost"], upstream="away", policies={"retry": {"attempts": 1, "on": ["connect-failure"]}}),
    )
    assert [proxy.get().status for _ in range(2)] == [200, 200]
    # In turn: one of the two met the busy endpoint first.
    [retried] = [line for line in proxy.log_lines(2) if line["attempts"] == 2]
    [told] = why(proxy, retried["request_id"])
    first, second = told["attempts"]
    assert (first["endpoint"], first["status"], first["reason"]) == (f"127.0.0.1:{busy.port}", 503, "503")
    assert (second["endpoint"], second["status"], second["reason"]) == (f"127.0.0.1:{fine.port}", 200, "")
    assert 0 <= first["queue_ms"] <= first["queue_ms"] + first["first_byte_ms"] <= second["queue_ms"]
    assert second["queue_ms"] + second["duration_ms"] == pytest.approx(told["request"]["duration_ms"], abs=0.01)
    assert told["explanation"]["retries"] == {"attempts": 2, "on": ["503"]}
    assert told["notes"] == []
    lost = only(proxy, proxy.get(host="lost"))
    assert [(tried["code"], tried["status"], tried["endpoint"]) for tried in lost["attempts"]] == [
        ("upstream_connect", 0, f"127.0.0.1:{gone[1]}")
    ] * 2
    assert (lost["request"]["code"], lost["explanation"]["allowed"], lost["notes"]) == ("upstream_connect", True, [])


def test_requests_of_one_trace_are_told_together(sidecar: StartSidecar, serve: StartServer, workers: int) -> None:
    proxy = sidecar(app=serve().address, workers=workers)
    trace = "0af7651916cd43dd8448eb211c80319c"
    for target in ("/1", "/2", "/3"):
        proxy.get(target, traceparent=f"00-{trace}-b7ad6b7169203331-00")
    assert [told["request"]["path"] for told in why(proxy, trace)] == ["/1", "/2", "/3"]


def test_a_request_is_explained_by_the_configuration_that_served_it(
    sidecar: StartSidecar, serve: StartServer, workers: int
) -> None:
    proxy = sidecar(route("old", policies=CLOSED), app=serve().address, workers=workers)
    denied = proxy.get("/v1/secret")
    proxy.reconfigure(route("new"))
    assert proxy.get("/v1/secret").status == 200
    told = only(proxy, denied)
    assert (told["explanation"]["route"]["name"], told["explanation"]["allowed"]) == ("old", False)
    version = told["request"]["config_version"]
    assert version != ask(proxy.admin, "/config").json["version"]
    before = ask(proxy.admin, f"/explain?url=http://test/v1/secret&version={version}").json
    now = ask(proxy.admin, "/explain?url=http://test/v1/secret").json
    assert ((before["allowed"], before["version"]), now["allowed"]) == ((False, version), True)


def test_what_is_no_longer_kept_is_said(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(route("r0", policies=CLOSED), app=serve().address)
    denied = proxy.get("/v1/secret")
    for number in range(1, 9):
        proxy.reconfigure(route(f"r{number}"))
        assert only(proxy, denied)["explanation"] is not None
    proxy.reconfigure(route("r9"))
    told = only(proxy, denied)
    version = told["request"]["config_version"]
    assert (told["request"]["code"], told["explanation"]) == ("denied", None)
    assert told["notes"] == [f"configuration {version} is no longer kept: only what was taken down is told"]
    refused = ask(proxy.admin, f"/explain?url=/&version={version}")
    assert (refused.status, refused.json) == (400, {"error": f"configuration {version} is no longer kept"})


def test_what_was_not_taken_down_is_said_to_make_the_difference(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(
        route("canary", matches=[{"headers": {"x-canary": "1"}}]), route("stable"), app=serve(answering(BUSY)).address
    )
    proxy.get("/", x_canary="1")
    [note] = of_last(proxy)["notes"]
    assert note.startswith("as far as it is known it would take route stable: ")


def test_a_limit_is_told_as_what_it_was(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(route("r", policies={"rateLimit": {"requests": 1, "per": "1h"}}), app=serve().address)
    proxy.get()
    told = only(proxy, proxy.get())
    assert (told["request"]["code"], told["explanation"]["allowed"], told["notes"]) == ("rate_limited", True, [])


def test_what_never_was_routed_is_not_explained(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(route("r"), app=serve().address)
    told = only(proxy, proxy.get("/a%00"))
    assert (told["request"]["code"], told["explanation"]) == ("bad_request", None)
    assert "before a route was looked for" in told["notes"][0]
    assert ask(proxy.admin, "/failures").json[0]["code"] == "bad_request"


def test_a_request_that_was_cut_short_is_a_failure(sidecar: StartSidecar, serve: StartServer) -> None:
    def half(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")

    proxy = sidecar(app=serve(half).address)
    with proxy.client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        client.closed()
    [line] = wait_for(lambda: ask(proxy.admin, "/failures").json, 5, lambda: "nothing failed")
    assert (line["status"], line["code"]) == (200, "upstream_reset")
    [told] = why(proxy, line["request_id"])
    assert [(tried["status"], tried["code"]) for tried in told["attempts"]] == [(200, "upstream_reset")]


def test_an_unknown_id_finds_nothing(sidecar: StartSidecar) -> None:
    proxy = sidecar(app=free_address())
    assert why(proxy, "no-such-id") == []
    assert ask(proxy.admin, "/why").status == 400
