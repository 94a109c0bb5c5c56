"""`l7proxy explain` as its users run it, on a configuration with routes that win and lose and policies that refuse."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.test_check import l7proxy
from tests.config.test_load import SIDECAR, document, route, upstream

SHOP = "spiffe://demo/ns/shop/sa/checkout"
CONFIG = (
    SIDECAR
    + upstream("payments", "{endpoints: [10.0.0.5:9090, 10.0.0.6:9090], connectTimeout: 1s}")
    + document(
        "Route",
        "write",
        """
  matches: [{path: {prefix: /v1/orders}, methods: [POST]}]
  policies:
    rateLimit: {requests: 1, per: 1h}
    authorization:
      deny: [{name: no-guests, identities: [spiffe://demo/ns/guest/*]}]
      allow: [{name: shop, namespaces: [shop]}]
    timeout: {request: 2s}
""",
    )
    + route("read", "{matches: [{path: {prefix: /v1}}], policies: {headers: {response: {set: {x-a: b}}}}}")
    + route("old", "{matches: [{path: {exact: /old}}], redirect: {status: 308, path: /v1}}")
    + route("pay", "{direction: outbound, hosts: [pay.svc], upstream: payments, rewrite: {prefix: /v2}}")
    + route("lab", "{direction: outbound, hosts: [lab.svc], split: [{upstream: app, weight: 0}, {upstream: payments}]}")
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(CONFIG)
    return tmp_path


def line(text: str) -> int:
    """The line of the configuration that holds a text."""
    return CONFIG[: CONFIG.index(text)].count("\n") + 1


def explain(folder: Path, *arguments: str) -> str:
    status, out, err = l7proxy("explain", "-c", "a.yaml", *arguments, folder=folder)
    assert (status, err) == (0, "")
    return out


def told(folder: Path, *arguments: str) -> dict:
    return json.loads(explain(folder, "--json", *arguments))


def test_the_decision_is_told_from_the_route_to_the_answer(config):
    out = explain(config, "POST", "http://shop.example/v1/orders/../orders?x=1", "--identity", SHOP)
    assert out == (
        "request   POST http://shop.example/v1/orders (inbound)\n"
        f"from      {SHOP} at 127.0.0.1\n"
        "note      the inbound listener speaks no TLS: on it no caller has an identity\n"
        "host      the host matches '*'\n"
        f"route     write (/v1/orders), a.yaml:{line('name: write') - 2}\n"
        f"policy    authorization  allowed: shop, a.yaml:{line('allow: [')}\n"
        f"policy    rateLimit      allowed: global: 0 left, a.yaml:{line('rateLimit')}\n"
        f"policy    timeout        applies, a.yaml:{line('timeout:')}\n"
        "policy    retry          applies\n"
        "timeouts  connect 5s, request 2s\n"
        "retries   2 on connect-failure, refused-stream\n"
        "upstream  app: 127.0.0.1:8080 (http1)\n"
        "asked     POST /v1/orders?x=1, host shop.example\n"
        "answer    the upstream's\n"
        "          ratelimit-limit: 1\n"
        "          ratelimit-remaining: 0\n"
        "          ratelimit-reset: 3600\n"
    )


def test_a_denial_names_its_rule_and_what_was_not_reached(config):
    out = told(config, "POST", "/v1/orders", "--identity", "spiffe://demo/ns/guest/sa/a")
    assert out["allowed"] is False
    assert out["answer"]["status"] == 403
    assert out["answer"]["code"] == "denied"
    assert "no-guests" in out["answer"]["detail"]
    assert out["upstream"] is None
    assert [(step["policy"], step["outcome"], step["rule"]) for step in out["policies"]] == [
        ("authorization", "denied", "no-guests"),
        ("rateLimit", "not reached", ""),
        ("timeout", "not reached", ""),
    ]
    assert out["policies"][0]["where"] == f"a.yaml:{line('deny: [')}"


def test_better_candidates_say_why_they_lost(config):
    out = told(config, "GET", "/v1/orders")
    assert out["route"]["name"] == "read"
    assert [(other["route"], other["why"]) for other in out["passedOver"]] == [("write", "method POST does not hold")]
    assert dict(out["answer"]["headers"]) == {"x-a": "b"}


def test_answers_of_the_route_itself(config):
    out = told(config, "GET", "https://shop.example/old")
    assert (out["answer"]["by"], out["answer"]["status"]) == ("route", 308)
    assert dict(out["answer"]["headers"])["location"] == "https://shop.example/v1"
    assert told(config, "GET", "/nothing")["answer"]["code"] == "no_route"
    assert told(config, "GET", "/a%00b")["answer"]["status"] == 400


def test_outbound_requests_show_endpoints_rewrite_and_shares(config):
    out = told(config, "GET", "http://pay.svc/charges?a=b", "--direction", "outbound", "--header", "x-tenant: blue")
    assert out["upstream"]["name"] == "payments"
    assert out["upstream"]["target"] == "/v2/charges?a=b"
    assert ["x-tenant", "blue"] in out["upstream"]["headers"]
    assert [end["address"] for end in out["upstream"]["endpoints"]] == ["10.0.0.5:9090", "10.0.0.6:9090"]
    assert out["timeouts"]["connect"] == 1
    shared = told(config, "GET", "http://lab.svc/", "--direction", "outbound")
    assert (shared["upstream"]["name"], shared["upstream"]["split"]) == ("payments", {"payments": 1})
    assert told(config, "GET", "http://evil.org/", "--direction", "outbound")["answer"]["code"] == "egress_blocked"


def test_a_connection_that_does_not_come_about_is_told_as_that(config, tmp_path):
    (tmp_path / "a.yaml").write_text(CONFIG.replace("{app:", "{denyIPs: [192.0.2.0/24], app:"))
    out = explain(config, "GET", "/v1", "--source-ip", "192.0.2.7")
    assert out.splitlines()[-1] == "refused   192.0.2.7 may not connect (inbound.allowIPs, inbound.denyIPs)"
    assert told(config, "GET", "/v1", "--source-ip", "192.0.3.7")["allowed"] is True


def test_wrong_configuration_is_1_and_wrong_usage_2(config, tmp_path):
    assert l7proxy("explain", "GET", "/", folder=tmp_path)[0] == 2
    for wrong in (("GET", "ftp://a/"), ("GET", "http:///a"), ("GET", "/", "--identity", "spiffe://x"),
                  ("GET", "/", "--source-ip", "1.2.3"), ("GET", "/", "--header", "nothing")):  # fmt: skip
        status, out, err = l7proxy("explain", "-c", "a.yaml", *wrong, folder=config)
        assert (status, out) == (2, ""), wrong
        assert "l7proxy explain: " in err
    (tmp_path / "a.yaml").write_text(CONFIG.replace("namespaces", "namespace"))
    status, out, err = l7proxy("explain", "-c", "a.yaml", "GET", "/", folder=config)
    assert (status, out) == (1, "")
    assert "did you mean 'namespaces'?" in err


def test_the_incidents_of_the_page_go_as_they_are_told(tmp_path):
    page = (Path(__file__).parents[2] / "docs/explain.md").read_text()
    config, cases, invariants, *_ = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for name, text in (("base/policies", config), ("policies", config), ("tests", cases)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "orders.yaml").write_text(text)
    (tmp_path / "never.yaml").write_text(invariants)
    shown = re.findall(r"^```console\n\$ l7proxy (.*?)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert [command.split()[0] for command, _ in shown] == ["explain", "explain", "test", "test", "why", "diff", "diff"]
    line = re.findall(r"^```json\n(.*?)\n```$", page, re.MULTILINE)[-1]
    version = json.loads(l7proxy("explain", "-c", "policies/", "GET", "/", "--json", folder=tmp_path)[1])["version"]
    for command, output in shown:
        arguments = command.split()
        if arguments[0] == "why":
            assert json.loads(line)["request_id"] == arguments[1]
            arguments = ["why", "--against", "policies/", "--log", line.replace("VERSION", version)]
            output = output.replace("VERSION", version)
        elif "--replay" in arguments:
            change(tmp_path / "policies/orders.yaml", page)
            (tmp_path / "access.log").write_text("".join(map(served, [line] * 5, [1, 7, 7, 8, 9], "wccc-")))
        out = l7proxy(*arguments, folder=tmp_path)[1]
        assert re.sub("in [0-9]+ ms", "in 2 ms", out) == output


def change(file: Path, page: str) -> None:
    """Does to a file what the page shows as a change."""
    [patch] = re.findall(r"^```diff\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    before, now = ("".join(f"{text[1:]}\n" for text in patch.splitlines() if text[0] == sign) for sign in "-+")
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, now))


def served(line: str, order: int, caller: str) -> str:
    """The line of a request for an order that was served, made of the one that the page shows."""
    name = {"w": "shop/sa/web", "c": "shop/sa/checkout", "-": "reports/sa/nightly"}[caller]
    record = json.loads(line) | {
        "path": f"/v1/orders/{order}",
        "route": "read",
        "status": 200,
        "code": "",
        "detail": "",
    }
    return json.dumps(record | {"peer": f"spiffe://demo/ns/{name}", "source": "10.0.3.8"}) + "\n"
