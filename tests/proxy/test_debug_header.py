"""A request with a signed header is told how it was decided, and nobody else is."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from l7proxy.core.message import Request
from l7proxy.core.stats import Stats
from l7proxy.proxy.debug import HEADER, Debugging, sign
from tests.cli.test_check import l7proxy
from tests.conftest import StartServer, StartSidecar
from tests.support.client import Client
from tests.support.message import Message
from tests.support.net import wait_for
from tests.support.server import Server
from tests.support.sidecar import Sidecar, route

KEY = "0123456789abcdef" * 4
ROUTES = (
    route("write", matches=[{"path": {"prefix": "/v1"}, "methods": ["POST"]}]),
    route(
        "read",
        matches=[{"path": {"prefix": "/v1"}}],
        policies={
            "authorization": {"deny": [{"name": "no-secrets", "paths": ["/v1/secret"]}]},
            "timeout": {"request": "5s"},
        },
    ),
    route("out", direction="outbound", hosts=["test"]),
)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "debug.key"
    path.write_text(f"{KEY}\n")
    return path


@pytest.fixture(scope="module")
def app() -> Any:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def proxy(shared_sidecar: StartSidecar, app: Server, key: Path) -> Sidecar:
    return shared_sidecar(*ROUTES, app=app.address, debug={"key": str(key)})


def signed(key: Path, *arguments: str) -> str:
    """The value of the header that the command line makes."""
    status, out, err = l7proxy("explain", "--sign", str(key), *arguments, folder=key.parent)
    assert (status, err) == (0, "")
    name, _, value = out.strip().partition(": ")
    assert name == "x-l7proxy-debug"
    return value


def ask(proxy: Sidecar, value: str, target: str = "/v1/a") -> Message:
    return proxy.get(target, x_l7proxy_debug=value)


def told(answer: Message) -> Any:
    return json.loads(answer["x-l7proxy-decision"])


def test_a_signed_request_is_told_how_it_was_decided(proxy: Sidecar, app: Server, key: Path) -> None:
    answer = ask(proxy, signed(key, "GET", "http://test/v1/a?x=1"), "/v1/a?x=1")
    assert (answer.status, answer.body) == (200, b"ok")
    decision = told(answer)
    assert (decision["route"]["name"], decision["upstream"], decision["attempts"]) == ("read", "app", 1)
    assert decision["endpoint"] == f"127.0.0.1:{app.port}"
    assert [other["route"] for other in decision["passedOver"]] == ["write"]
    outcomes = {policy["policy"]: policy["outcome"] for policy in decision["policies"]}
    assert outcomes == {"authorization": "allowed", "timeout": "applies", "retry": "applies"}
    assert re.fullmatch(r".*\.yaml:\d+", decision["policies"][0]["where"])
    assert "x-l7proxy-debug" not in app.requests[-1]


def test_a_denial_is_told_with_its_rule_and_what_was_not_reached(proxy: Sidecar, key: Path) -> None:
    answer = ask(proxy, signed(key, "GET", "http://test/v1/secret"), "/v1/secret")
    assert answer.status == 403
    decision = told(answer)
    assert (decision["code"], decision["upstream"]) == ("denied", "")
    outcomes = {policy["policy"]: (policy["outcome"], policy["rule"]) for policy in decision["policies"]}
    assert outcomes == {"authorization": ("denied", "no-secrets"), "timeout": ("not reached", "")}


def test_what_no_route_takes_is_told_too(proxy: Sidecar, key: Path) -> None:
    decision = told(ask(proxy, signed(key, "GET", "http://test/v2"), "/v2"))
    assert (decision["route"], decision["code"], decision["host"]) == (None, "no_route", "the host matches '*'")


def test_the_application_may_ask_of_its_own_requests(proxy: Sidecar, key: Path, app: Server) -> None:
    with Client(proxy.outbound) as client:
        answer = client.get("/x", "test", x_l7proxy_debug=signed(key, "GET", "http://test/x"))
    assert told(answer)["route"]["name"] == "out"
    assert "x-l7proxy-debug" not in app.requests[-1]


def value(method: str = "GET", host: str = "test", path: str = "/v1/a", valid: float = 60, key: str = KEY) -> str:
    expiry = int(time.time() + valid)
    return sign(key.encode(), method.encode(), host.encode(), path.encode(), b"", expiry).decode()


@pytest.mark.parametrize(
    ("header", "outcome"),
    [
        (value(key="f" * 64), "refused"),
        (value(method="POST"), "refused"),
        (value(host="other"), "refused"),
        (value(path="/v1/b"), "refused"),
        (value(valid=7200), "refused"),
        (value(valid=-10), "expired"),
        (re.sub(r"^\d+", lambda match: str(int(match[0]) + 1), value()), "refused"),
        (value().upper(), "refused"),
        ("1", "refused"),
        ("", "refused"),
    ],
    ids=[
        "another key",
        "method",
        "host",
        "path",
        "too long",
        "expired",
        "moved expiry",
        "upper case",
        "no form",
        "empty",
    ],
)
def test_nothing_is_told_to_who_has_no_signature_for_this_request(
    proxy: Sidecar, app: Server, header: str, outcome: str
) -> None:
    before = proxy.metrics()
    answer = ask(proxy, header)
    assert (answer.status, answer.get("x-l7proxy-decision")) == (200, None)
    assert "x-l7proxy-debug" not in app.requests[-1]
    after = proxy.metrics()
    for other in ("accepted", "expired", "refused"):
        count = after("l7proxy_debug_requests_total", outcome=other) - before(
            "l7proxy_debug_requests_total", outcome=other
        )
        assert count == (other == outcome)


def test_two_headers_are_none(proxy: Sidecar) -> None:
    with proxy.client() as client:
        fields = f"x-l7proxy-debug: {value()}\r\n" * 2
        answer = client.request(f"GET /v1/a HTTP/1.1\r\nhost: test\r\n{fields}\r\n".encode())
    assert (answer.status, answer.get("x-l7proxy-decision")) == (200, None)


def test_the_unsigned_are_told_nothing(proxy: Sidecar) -> None:
    assert proxy.get("/v1/secret").get("x-l7proxy-decision") is None


def test_without_a_key_the_header_means_nothing(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(app=app.address)
    assert ask(proxy, value()).get("x-l7proxy-decision") is None
    assert "x-l7proxy-debug" not in app.requests[-1]


def test_a_key_that_changes_is_taken_up(sidecar: StartSidecar, serve: StartServer, tmp_path: Path) -> None:
    key = tmp_path / "debug.key"
    key.write_text(KEY)
    proxy = sidecar(app=serve().address, debug={"key": str(key)})
    assert told(ask(proxy, value()))["code"] == ""
    key.write_text("9" * 40)
    wait_for(lambda: "x-l7proxy-decision" in ask(proxy, value(key="9" * 40)), 10, lambda: "the new key does not count")
    assert "x-l7proxy-decision" not in ask(proxy, value())


def test_a_key_that_becomes_no_key_stays_as_it_was(tmp_path: Path) -> None:
    key = tmp_path / "debug.key"
    key.write_text(KEY)
    now = [time.time()]
    debugging = Debugging(str(key), Stats(), lambda: now[0])

    def accepted(by: str) -> bool:
        now[0] += 2
        header = sign(by.encode(), b"GET", b"test", b"/v1/a", b"", int(now[0]) + 60)
        return debugging.asks(Request(b"GET", b"http", b"test", b"/", b"", b"/v1/a", [(HEADER, header)], b""))

    assert accepted(KEY)
    key.write_text("short")
    assert accepted(KEY)
    key.unlink()
    assert accepted(KEY)
    key.write_text("9" * 40)
    assert not accepted(KEY)
    assert accepted("9" * 40)


@pytest.mark.parametrize(("content", "why"), [("short", "at least 32 bytes"), (None, "No such file")])
def test_a_key_that_cannot_be_used_keeps_the_sidecar_from_starting(
    tmp_path: Path, content: str | None, why: str
) -> None:
    if content is not None:
        (tmp_path / "debug.key").write_text(content)
    (tmp_path / "a.yaml").write_text(
        "apiVersion: l7proxy.io/v1\nkind: Sidecar\nmetadata: {name: a}\n"
        "spec:\n  inbound: {listen: '127.0.0.1:0', app: 'http://127.0.0.1:1'}\n  debug: {key: debug.key}\n"
    )
    status, out, err = l7proxy("run", "-c", "a.yaml", folder=tmp_path)
    assert status == 1
    assert "a.yaml:6:" in out + err
    assert why in out + err


@pytest.mark.parametrize(
    ("arguments", "status"), [(("--valid", "2h"), 2), (("--valid", "soon"), 2), ((), 0), (("-c", "a.yaml"), 2)]
)
def test_a_header_is_made_for_an_hour_at_most(key: Path, arguments: tuple[str, ...], status: int) -> None:
    done, _, err = l7proxy("explain", "--sign", str(key), "GET", "/x", *arguments, folder=key.parent)
    assert done == status
    assert bool(err) == bool(status)


def test_a_key_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    status, out, err = l7proxy("explain", "--sign", "no.key", "GET", "/x", folder=tmp_path)
    assert (status, out, err) == (1, "", "l7proxy explain: no.key: No such file or directory\n")
