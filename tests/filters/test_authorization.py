"""`policies.authorization` on a sidecar: who is let through, who is not, and what is said of it."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from l7proxy.core.message import Request
from l7proxy.core.peer import Peer
from l7proxy.filters.authorizer import Authorizer, Clause, Rule, RuleSet, template
from tests.conftest import StartServer, StartSidecar
from tests.identity.pki import ORDERS, WEB, Authority, TlsClient, context
from tests.support.client import Client
from tests.support.sidecar import Sidecar, istio, route

BATCH = "spiffe://demo/ns/night/sa/batch"


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def start(sidecar: StartSidecar, serve: StartServer, ca: Authority, policy: dict[str, Any], **inbound: Any) -> Sidecar:
    pair = ca.issue("orders", ORDERS)
    tls = {"mode": "PERMISSIVE", "cert": str(pair.cert), "key": str(pair.key), "ca": str(ca.file)}
    document = route("orders", policies={"authorization": policy})
    return sidecar(document, app=serve().address, inbound={"tls": tls, **inbound})


def status(started: Sidecar, ca: Authority, identity: str | None, request: str = "GET /", **headers: str) -> int:
    """Returns the status that a caller with this identity gets, None being one without a certificate."""
    method, _, target = request.partition(" ")
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    data = f"{method} {target} HTTP/1.1\r\nhost: orders\r\n{fields}\r\n".encode()
    if identity is None:
        with Client(started.inbound) as client:
            return client.request(data).status
    with TlsClient(started.inbound, context(ca, ca.issue("caller", identity))) as client:
        return client.request(data).status


def test_only_the_identities_of_a_rule_get_through(sidecar: StartSidecar, serve: StartServer, ca: Authority) -> None:
    started = start(sidecar, serve, ca, {"allow": [{"identities": [WEB, "spiffe://demo/ns/night/*"]}]})
    assert status(started, ca, WEB) == 200
    assert status(started, ca, BATCH) == 200
    assert status(started, ca, "spiffe://demo/ns/shop/sa/web2") == 403
    assert status(started, ca, None) == 403
    assert started.metrics()("l7proxy_denied_total", l7proxy_route="orders", rule="no allow rule") == 2


def test_every_key_of_a_rule_must_match_and_one_entry_of_each(
    sidecar: StartSidecar, serve: StartServer, ca: Authority
) -> None:
    rule = {
        "namespaces": ["shop", "day"],
        "methods": ["GET", "HEAD"],
        "paths": ["/v1/*", "*.json"],
        "headers": {"x-tenant": ["blue", "gr*"]},
        "sourceIPs": ["127.0.0.0/8"],
    }
    started = start(sidecar, serve, ca, {"allow": [rule]})
    assert status(started, ca, WEB, "GET /v1/a", x_tenant="blue") == 200
    assert status(started, ca, WEB, "HEAD /b.json", x_tenant="green") == 200
    assert status(started, ca, BATCH, "GET /v1/a", x_tenant="blue") == 403
    assert status(started, ca, WEB, "PUT /v1/a", x_tenant="blue", content_length="0") == 403
    assert status(started, ca, WEB, "GET /v2/a", x_tenant="blue") == 403
    assert status(started, ca, WEB, "GET /v1/a", x_tenant="red") == 403
    assert status(started, ca, WEB, "GET /v1/a") == 403


def test_deny_comes_before_allow(sidecar: StartSidecar, serve: StartServer, ca: Authority) -> None:
    policy = {
        "allow": [{"identities": ["*"]}],
        "deny": [{"name": "no admin", "paths": ["/admin/*"]}],
    }
    started = start(sidecar, serve, ca, policy)
    assert status(started, ca, WEB) == 200
    assert status(started, ca, WEB, "GET /admin/x") == 403
    assert status(started, ca, None) == 403
    (line,) = [line for line in started.log_lines(3) if "no admin" in line["detail"]]
    assert line["detail"].startswith("rule no admin at ")
    assert line["detail"].endswith(f"{started.config}:{_line_of(started, 'no admin')}")


@pytest.mark.parametrize(
    "spelling", ["/admin/x", "/a/../admin/x", "/%61dmin/x", "//admin//x", "/./admin/x", "/admin/./x"]
)
def test_no_spelling_of_a_path_dodges_a_rule(
    spelling: str, sidecar: StartSidecar, serve: StartServer, ca: Authority
) -> None:
    started = start(sidecar, serve, ca, {"deny": [{"paths": ["/admin/*"]}]})
    assert status(started, ca, None, f"GET {spelling}") == 403


@pytest.mark.parametrize("spelling", ["/admin%2fx", "/a/..%2fadmin/x", "/admin%5cx"])
def test_an_ambiguous_path_is_refused_where_there_are_rules(
    spelling: str, sidecar: StartSidecar, serve: StartServer, ca: Authority
) -> None:
    started = start(sidecar, serve, ca, {"deny": [{"paths": ["/admin/*"]}]})
    assert status(started, ca, None, f"GET {spelling}") == 400


@pytest.mark.parametrize(
    ("written", "spelling"),
    [
        ("/v1/orders:cancel", "/v1/orders%3Acancel"),
        ("/v1/orders:cancel", "/v1/orders%3acancel"),
        ("/v1/orders%3acancel", "/v1/orders:cancel"),
        ("/a(b)/*", "/a%28b%29/c"),
        ("/café/*", "/caf%C3%A9/x"),
        ("/café/*", "/caf%c3%a9/x"),
        ("/caf%c3%a9/*", "/caf%C3%A9/x"),
        ("/two words", "/two%20words"),
        ("*%7Euser", "/home/~user"),
        ("/%61dmin", "/admin"),
    ],
)
def test_a_rule_holds_however_it_and_the_request_spell_the_path(
    written: str, spelling: str, sidecar: StartSidecar, serve: StartServer, ca: Authority
) -> None:
    started = start(sidecar, serve, ca, {"deny": [{"paths": [written]}]})
    assert status(started, ca, None, f"GET {spelling}") == 403
    assert status(started, ca, None, "GET /other") == 200


@pytest.mark.parametrize("spelling", ["/v1/orders%3Acancel", "/v1/orders%3acancel"])
def test_no_spelling_leads_to_a_route_with_other_rules(
    spelling: str, sidecar: StartSidecar, serve: StartServer
) -> None:
    guarded = route(
        "guarded",
        matches=[{"path": {"exact": "/v1/orders:cancel"}}],
        policies={"authorization": {"allow": [{"identities": [WEB]}]}},
    )
    started = sidecar(guarded, route("open"), app=serve().address)
    assert started.get("/v1/orders:cancel").status == 403
    assert started.get(spelling).status == 400
    assert started.get("/v1/orders/%3Acancel").status == 200


@pytest.mark.parametrize("policies", [{}, {"authorization": {"allow": [{"sourceIPs": ["127.0.0.0/8"]}]}}])
@pytest.mark.parametrize("path", [{"prefix": "/café"}, {"prefix": "/caf%c3%a9"}, {"regex": "/caf%C3%A9(/.*)?"}])
def test_a_route_beyond_ascii_takes_what_clients_send(
    path: dict[str, str], policies: dict[str, Any], sidecar: StartSidecar, serve: StartServer
) -> None:
    app = serve()
    routes = [
        route("menu", matches=[{"path": path}], policies=policies),
        route("open", matches=[{"path": {"regex": "/.*"}}], directResponse={"status": 204}),
    ]
    started = sidecar(*routes, app=app.address)
    for sent in ("/caf%C3%A9", "/caf%c3%a9/x", "/caf%C3%A9/a%20b"):
        assert started.get(sent).status == 200
    assert [request.target for request in app.requests] == ["/caf%C3%A9", "/caf%C3%A9/x", "/caf%C3%A9/a%20b"]
    assert started.get("/cafe").status == started.get("/caf%C3%A8").status == 204


def test_a_route_with_a_blank_takes_what_clients_send(sidecar: StartSidecar, serve: StartServer) -> None:
    policies = {"authorization": {"deny": [{"paths": ["/my files/secret"]}]}}
    started = sidecar(
        route("files", matches=[{"path": {"prefix": "/my%20files"}}], policies=policies), app=serve().address
    )
    assert started.get("/my%20files/a").status == 200
    assert started.get("/my%20files/secret").status == 403
    assert started.get("/my%20files/%73ecret").status == 403


@pytest.mark.parametrize(
    "host",
    ["admin.example", "ADMIN.example", "admin.example.", "admin.example:80", "admin.example:", "admin.example.:8"],
)
def test_no_spelling_of_a_host_dodges_a_rule(host: str, sidecar: StartSidecar, serve: StartServer) -> None:
    rules = [{"to": [{"operation": {"hosts": ["admin.example", "*.admin.example:443"]}}]}]
    started = sidecar(istio("AuthorizationPolicy", action="DENY", rules=rules), app=serve().address)
    assert started.get("/", host).status == 403
    assert started.get("/", "a.admin.example.:443").status == 403
    assert started.get("/", "a.admin.example:80").status == 200
    assert started.get("/", "other.example").status == 200


def test_an_empty_allow_list_denies_everybody(sidecar: StartSidecar, serve: StartServer, ca: Authority) -> None:
    started = start(sidecar, serve, ca, {"allow": []})
    assert status(started, ca, WEB) == 403


def test_a_rule_in_the_shadow_denies_nothing_and_tells(
    sidecar: StartSidecar, serve: StartServer, ca: Authority
) -> None:
    policy = {
        "allow": [{"identities": ["*"]}],
        "deny": [{"name": "stricter", "identities": [BATCH], "mode": "SHADOW"}],
    }
    started = start(sidecar, serve, ca, policy)
    assert status(started, ca, BATCH) == 200
    assert status(started, ca, WEB) == 200
    assert started.metrics()("l7proxy_shadow_denied_total", l7proxy_route="orders", rule="stricter") == 1
    assert started.metrics()("l7proxy_denied_total", l7proxy_route="orders") == 0
    line = next(line for line in started.process.stderr.splitlines() if "shadow denial" in line)
    assert BATCH in line
    assert f"{started.config}:{_line_of(started, 'stricter')}" in line


def test_an_allow_list_in_the_shadow_lets_everybody_in_and_tells(
    sidecar: StartSidecar, serve: StartServer, ca: Authority
) -> None:
    started = start(sidecar, serve, ca, {"mode": "SHADOW", "allow": [{"identities": [WEB]}]})
    assert status(started, ca, BATCH) == 200
    assert status(started, ca, WEB) == 200
    assert started.metrics()("l7proxy_shadow_denied_total", rule="no allow rule") == 1


def test_addresses_are_the_client_s_when_a_trusted_proxy_says_so(
    sidecar: StartSidecar, serve: StartServer, ca: Authority
) -> None:
    policy = {"allow": [{"sourceIPs": ["192.0.2.0/24"]}]}
    trusting = start(sidecar, serve, ca, policy, trustedProxies=["127.0.0.1/32"])
    assert status(trusting, ca, None, x_forwarded_for="192.0.2.7") == 200
    assert status(trusting, ca, None, x_forwarded_for="192.0.2.7, 198.51.100.1") == 403
    alone = start(sidecar, serve, ca, policy)
    assert status(alone, ca, None, x_forwarded_for="192.0.2.7") == 403


def test_addresses_can_be_refused_before_they_speak(sidecar: StartSidecar, serve: StartServer) -> None:
    started = sidecar(app=serve().address, inbound={"denyIPs": ["127.0.0.0/8"]})
    with Client(started.inbound) as client:
        assert client.closed()
    assert started.metrics()("l7proxy_connections_refused_total", listener="inbound") >= 1
    other = sidecar(app=serve().address, inbound={"allowIPs": ["127.0.0.1/32"], "denyIPs": ["10.0.0.0/8"]})
    assert other.get().status == 200


def test_a_thousand_rules_of_twenty_identities_decide_by_the_right_one() -> None:
    chance = random.Random(7)
    everybody = [f"spiffe://demo/ns/n{number % 40}/sa/s{number}" for number in range(3000)]
    rules = tuple(
        Rule(f"r{n}", (((Clause("identity", tuple(chance.sample(everybody, 20))), Clause("path", (f"/{n}/*",))),),))
        for n in range(1000)
    )
    authorizer = Authorizer(RuleSet(allow=rules, allows=True))
    for number in (0, 1, 500, 999):
        rule = rules[number]
        known = set(rule.groups[0][0][0].values)
        for identity in chance.sample(everybody, 200) + sorted(known):
            path = b"/%d/x" % number
            asked = Request(b"GET", b"http", b"x", path, b"", path, [], b"", peer=Peer(identity=identity))
            found = authorizer.decide(asked)
            assert (found.outcome, found.rule) == (("ALLOW", rule) if identity in known else ("DENY", None))


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/v1/{*}/x", "/v1/a/x", True),
        ("/v1/{*}/x", "/v1/a/b/x", False),
        ("/v1/{*}/x", "/v1//x", False),
        ("/v1/{**}", "/v1/a/b", True),
        ("/v1/{**}/x", "/v1/a/b/x", True),
        ("/v1/{*}.json", "/v1/a.json", True),
        ("/v1/{*}", "/v2/a", False),
    ],
)
def test_path_templates_match_whole_segments(pattern: str, path: str, matches: bool) -> None:
    assert template(pattern)(path.encode()) == matches


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ({"allow": [{"identities": ["a*b"]}]}, "allow[0].identities[0]"),
        ({"deny": [{"sourceIPs": ["10.0.0.0/33"]}]}, "deny[0].sourceIPs[0]"),
        ({"allow": [{"identity": ["a"]}]}, "unknown key; did you mean 'identities'?"),
        ({"allow": [{"mode": "OFF"}]}, "allow[0].mode"),
        ({"deny": [{"paths": ["/a//b"]}]}, "'/a//b': no request has such a path: it is normalised first"),
        ({"deny": [{"paths": ["/a/../b/*"]}]}, "'/a/../b/*': no request has such a path"),
        ({"deny": [{"paths": ["admin/*"]}]}, "'admin/*': no request has such a path"),
        ({"deny": [{"paths": ["/a%zz"]}]}, "'/a%zz': no request has such a path"),
        ({"deny": [{"paths": ["/a?b=c"]}]}, "'/a?b=c': a path has no query"),
        ({"deny": [{"identities": ["spiffe://Demo/web"]}]}, "'Demo' is not a trust domain"),
        ({"deny": [{"identities": ["demo/ns/shop/sa/web"]}]}, "is not a host name, nor a SPIFFE ID like spiffe://"),
        ({"allow": [{"identities": []}]}, "allow[0].identities: is empty"),
        ({"allow": [{"headers": {"x-tenant": []}}]}, "allow[0].headers.x-tenant: is empty"),
        ({"deny": [{"headers": {"Upgrade": ["websocket"]}}]}, "'upgrade': no rule sees this field"),
    ],
)
def test_a_mistake_in_a_rule_is_named_with_its_line(policy: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    documents = [
        {"apiVersion": "l7proxy.io/v1", "kind": "Sidecar", "metadata": {"name": "a"},
         "spec": {"inbound": {"app": "http://127.0.0.1:1"}}},
        route("orders", policies={"authorization": policy}),
    ]  # fmt: skip
    config.write_text(yaml.safe_dump_all(documents))
    command = [sys.executable, "-m", "l7proxy", "check", str(config)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ran.returncode == 1
    assert sentence in ran.stderr
    assert ran.stderr.startswith(f"{config}:")


def _line_of(started: Sidecar, text: str) -> int:
    """Returns the line where the rule that holds `text` begins."""
    lines = started.config.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if text in line)
    while not lines[at].lstrip().startswith("- "):
        at -= 1
    return at + 1
