"""Istio's documents as they are: loaded, mapped, enforced on a real sidecar, and refused where they cannot be."""

import itertools
import ssl
from pathlib import Path
from typing import Any

import pytest
import yaml

from l7proxy.config import istio
from l7proxy.config.load import load
from l7proxy.core.errors import ConfigError
from tests.conftest import StartServer, StartSidecar
from tests.identity.pki import ORDERS, WEB, Authority, ask, context
from tests.support.client import Client
from tests.support.sidecar import route, upstream

NUMBERS = itertools.count()
AS_IT_IS = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
spec:
  mtls:
    mode: STRICT
  portLevelMtls:
    - port: 8080
      mode: STRICT
"""


def sidecar_text(port: int = 8080, mode: str | None = "STRICT", folder: str = "/certs") -> str:
    tls = f"tls: {{mode: {mode}, cert: {folder}/a.crt, key: {folder}/a.key, ca: {folder}/ca.crt}}" if mode else ""
    return (
        "apiVersion: l7proxy.io/v1\nkind: Sidecar\nmetadata: {name: orders}\nspec:\n"
        "  service: {name: orders, namespace: shop, labels: {app: orders}}\n"
        f"  inbound:\n    app: http://127.0.0.1:{port}\n    {tls}\n"
    )


def mode_of(tmp_path: Path, *documents: str, port: int = 8080, mode: str | None = "PERMISSIVE") -> str:
    for name in ("a.crt", "a.key", "ca.crt"):
        (tmp_path / name).touch()
    file = tmp_path / "a.yaml"
    file.write_text("---\n".join([sidecar_text(port, mode, str(tmp_path)), *documents]))
    tls = load([str(file)]).sidecar.spec.inbound
    assert tls is not None
    return "NONE" if tls.tls is None else tls.tls.mode


def authentication(mode: str, namespace: str = "", labels: dict[str, str] | None = None, **ports: Any) -> str:
    spec: dict[str, Any] = {"mtls": {"mode": mode}, **ports}
    if labels:
        spec["selector"] = {"matchLabels": labels}
    metadata = {"name": f"x{next(NUMBERS)}", **({"namespace": namespace} if namespace else {})}
    document = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": metadata, "spec": spec}
    return yaml.safe_dump(document)


def test_the_document_loads_exactly_as_it_is(tmp_path: Path) -> None:
    assert mode_of(tmp_path, AS_IT_IS, mode="PERMISSIVE") == "STRICT"


MESH, NAMESPACE = authentication("STRICT", "istio-system"), authentication("PERMISSIVE", "shop")
OURS = {"app": "orders"}
WORKLOAD = authentication("DISABLE", "shop", OURS)


@pytest.mark.parametrize(
    ("documents", "port", "mode"),
    [
        ([], 8080, "PERMISSIVE"),
        ([MESH], 8080, "STRICT"),
        ([MESH, NAMESPACE], 8080, "PERMISSIVE"),
        ([MESH, NAMESPACE, WORKLOAD], 8080, "DISABLE"),
        ([authentication("STRICT", "shop", OURS, portLevelMtls={"8080": {"mode": "DISABLE"}})], 8080, "DISABLE"),
        ([authentication("STRICT", "shop", OURS, portLevelMtls={"8080": {"mode": "DISABLE"}})], 9090, "STRICT"),
        ([authentication("STRICT", "shop", portLevelMtls={"8080": {"mode": "DISABLE"}})], 8080, "STRICT"),
        ([authentication("UNSET", "shop", OURS, portLevelMtls=[{"port": 8080, "mode": "STRICT"}]), NAMESPACE], 8080,
         "STRICT"),
        ([authentication("UNSET", "shop"), MESH], 8080, "STRICT"),
        ([authentication("UNSET", "shop", OURS), NAMESPACE], 8080, "PERMISSIVE"),
        ([authentication("STRICT", "other")], 8080, "PERMISSIVE"),
        ([authentication("STRICT", "shop", {"app": "web"})], 8080, "PERMISSIVE"),
        ([authentication("STRICT", "shop", OURS, portLevelMtls={"8080": {"mode": "UNSET"}})], 8080, "STRICT"),
        (
            [
                authentication("UNSET", "istio-system", portLevelMtls=[{"port": 8080, "mode": "DISABLE"}]),
                authentication("UNSET", "shop", OURS, portLevelMtls={"8080": {"mode": "STRICT"}}),
                authentication("UNSET", "shop", portLevelMtls=[{"port": 8080, "mode": "PERMISSIVE"}]),
            ],
            8080,
            "STRICT",
        ),
    ],
)  # fmt: skip
def test_the_most_specific_mode_wins(documents: list[str], port: int, mode: str, tmp_path: Path) -> None:
    assert mode_of(tmp_path, *documents, port=port) == mode
    assert mode_of(tmp_path, *reversed(documents), port=port) == mode


def test_the_port_is_that_of_whatever_stands_for_the_application(tmp_path: Path) -> None:
    stands_for = yaml.safe_dump(upstream("app", ("127.0.0.1", 9090)))
    levels = authentication("PERMISSIVE", "shop", OURS, portLevelMtls={"9090": {"mode": "STRICT"}})
    assert mode_of(tmp_path, stands_for, levels, port=8080) == "STRICT"
    assert mode_of(tmp_path, levels, port=8080) == "PERMISSIVE"


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        ({"http": {"mode": "STRICT"}}, "spec.portLevelMtls.http: 'http' is not a port"),
        ({"65536": {"mode": "STRICT"}}, "spec.portLevelMtls.65536: '65536' is not a port"),
        (
            [{"port": 8080, "mode": "STRICT"}, {"port": 8080, "mode": "DISABLE"}],
            "spec.portLevelMtls[1]: port 8080 is there already",
        ),
    ],
)
def test_ports_that_cannot_be_meant_are_refused(levels: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        mode_of(tmp_path, authentication("STRICT", portLevelMtls=levels))
    assert [problem.message for problem in raised.value.problems] == [sentence]


def test_strict_without_a_certificate_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(sidecar_text(mode=None) + "---\n" + AS_IT_IS)
    with pytest.raises(ConfigError) as raised:
        load([str(file)])
    (problem,) = raised.value.problems
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if text == "  mtls:")
    assert (problem.file, problem.line) == (str(file), line)
    assert "needs a certificate" in problem.message


def policy(name: str = "p", action: str | None = "ALLOW", rules: Any = None, **more: Any) -> dict[str, Any]:
    spec: dict[str, Any] = {key: more.pop(key) for key in ("selector", "targetRefs") if key in more}
    if action:
        spec["action"] = action
    if rules is not None:
        spec["rules"] = rules
    metadata = {"name": name, "namespace": "shop", **more}
    return {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec}


def problem_of(tmp_path: Path, document: dict[str, Any]) -> str:
    file = tmp_path / "a.yaml"
    file.write_text(sidecar_text(mode=None) + "---\n" + yaml.safe_dump(document, sort_keys=False))
    with pytest.raises(ConfigError) as raised:
        load([str(file)])
    (problem,) = raised.value.problems
    assert problem.line > 8
    return problem.message


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (policy(action="CUSTOM", rules=[{}]), "action CUSTOM asks an external authorizer, which is not supported"),
        (policy(rules=[{"from": [{"source": {"requestPrincipals": ["*"]}}]}]), "JWT authentication is not supported"),
        (policy(rules=[{"when": [{"key": "request.auth.claims[a]", "values": ["b"]}]}]), "JWT authentication"),
        (policy(rules=[{"when": [{"key": "request.color", "values": ["b"]}]}]), "there is no such key"),
        (policy(rules=[{"when": [{"key": "source.ip"}]}]), "needs values or notValues"),
        (policy(rules=[{"from": [{"source": {}}]}]), "an empty source is refused by Istio"),
        (policy(rules=[{"to": [{"operation": {"methods": []}}]}]), "an empty operation is refused by Istio"),
        (policy(rules=[{"from": []}]), "spec.rules[0].from: is empty"),
        (policy(rules=[{"to": []}]), "spec.rules[0].to: is empty"),
        (policy(rules=[{"from": [{"source": {"principals": ["spiffe://demo/web"]}}]}]), "without spiffe://"),
        (policy(rules=[{"to": [{"operation": {"paths": ["/a/{id}"]}}]}]), "braces stand for a template"),
        (policy(rules=[{"when": [{"key": "request.headers[:path]", "values": ["/a"]}]}]), "no rule sees this field"),
        (policy(rules=[{"when": [{"key": "request.headers[Host]", "values": ["a"]}]}]), "no rule sees this field"),
        (policy(annotations={"istio.io/dry-run": "yes"}), "istio.io/dry-run is neither true nor false"),
        (policy(rules=[{"from": [{"source": {"ipBlocks": ["10.0.0.0/40"]}}]}]), "not an address or a block"),
        (policy(rules=[{"to": [{"operation": {"paths": ["/a*b"]}}]}]), "at the start or at the end"),
        (policy(rules=[{"to": [{"operation": {"paths": ["/{*}/b*"]}}]}]), "cannot stand together"),
        (policy(rules=[{"to": [{"operation": {"paths": ["/a//b"]}}]}]), "no request has such a path"),
        (policy(rules=[{"to": [{"operation": {"ports": ["http"]}}]}]), "is not a port"),
    ],
)
def test_what_cannot_be_enforced_is_refused(document: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    assert sentence in problem_of(tmp_path, document)


def rules_of(tmp_path: Path, *documents: dict[str, Any]) -> Any:
    file = tmp_path / "a.yaml"
    file.write_text("---\n".join([sidecar_text(mode=None), *(yaml.safe_dump(document) for document in documents)]))
    return istio.rules(load([str(file)]))


def test_policies_for_others_say_nothing(tmp_path: Path) -> None:
    assert rules_of(tmp_path, policy(selector={"matchLabels": {"app": "web"}})) is None
    assert rules_of(tmp_path, policy(namespace="other")) is None
    assert rules_of(tmp_path, policy(targetRefs=[{"kind": "Gateway", "name": "g"}])) is None


def test_an_allow_policy_without_rules_denies_all(tmp_path: Path) -> None:
    found = rules_of(tmp_path, policy(action=None))
    assert found.allows
    assert found.allow == ()
    assert not rules_of(tmp_path, policy(action="DENY")).allows


@pytest.mark.parametrize("word", ["true", "True", "1"])
def test_a_dry_run_is_a_rule_in_the_shadow(word: str, tmp_path: Path) -> None:
    found = rules_of(tmp_path, policy(rules=[{}], annotations={"istio.io/dry-run": word}))
    assert not found.allows
    assert found.shadow_allows
    assert found.allow[0].shadow
    assert not rules_of(tmp_path, policy(rules=[{}], annotations={"istio.io/dry-run": "False"})).allow[0].shadow


def test_a_service_account_without_a_namespace_is_of_the_policy_s(tmp_path: Path) -> None:
    found = rules_of(tmp_path, policy(rules=[{"from": [{"source": {"serviceAccounts": ["web", "day/batch"]}}]}]))
    wanted = (r"spiffe://.+/ns/shop/(.+/|)sa/web(/.+)?", r"spiffe://.+/ns/day/(.+/|)sa/batch(/.+)?")
    assert found.allow[0].groups[0][0][0].values == wanted


@pytest.mark.parametrize("key", ["serviceAccounts", "notServiceAccounts"])
@pytest.mark.parametrize("name", ["*web", "day/*", "*"])
def test_a_service_account_has_no_wildcard_as_in_istio(key: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml:\d+: .*a service account is named without \*"):
        rules_of(tmp_path, policy(rules=[{"from": [{"source": {key: [name]}}]}]))


@pytest.mark.parametrize("accounts", ["serviceAccounts", "notServiceAccounts"])
@pytest.mark.parametrize("other", ["principals", "notPrincipals", "namespaces", "notNamespaces"])
def test_service_accounts_stand_beside_no_other_name_of_the_caller(accounts: str, other: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml:\d+: .*serviceAccounts cannot stand beside principals"):
        rules_of(tmp_path, policy(rules=[{"from": [{"source": {accounts: ["web"], other: ["a"]}}]}]))


def test_istio_documents_are_enforced(sidecar: StartSidecar, serve: StartServer, tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    pair = ca.issue("orders", ORDERS)
    app = serve()
    documents = [
        AS_IT_IS.replace("8080", str(app.address[1])),
        policy("readers", rules=[
            {"from": [{"source": {"principals": ["demo/ns/shop/sa/*"]}}], "to": [{"operation": {"methods": ["GET"]}}]},
        ]),
        policy("no-admin", "DENY", [{"to": [{"operation": {"paths": ["/admin*"], "hosts": ["orders"]}}]}]),
        policy("watch", "AUDIT", [{"to": [{"operation": {"paths": ["/watched"]}}]}]),
    ]  # fmt: skip
    tls = {"mode": "PERMISSIVE", "cert": str(pair.cert), "key": str(pair.key), "ca": str(ca.file)}
    service = {"namespace": "shop", "labels": {"app": "orders"}}
    started = sidecar(*documents, app=app.address, inbound={"tls": tls}, service=service)
    made = context(ca, ca.issue("web", WEB))
    # The mode is the document's, not the Sidecar's PERMISSIVE.
    with Client(started.inbound) as client:
        assert client.get().status == 400
    with pytest.raises((ssl.SSLError, OSError)):
        ask(started.inbound, context(ca))
    assert ask(started.inbound, made).status == 200
    assert ask(started.inbound, made, "/watched").status == 200
    assert ask(started.inbound, made, "/admin/x").status == 403
    assert ask(started.inbound, made, "/admin/x", host="other").status == 200
    stranger = context(ca, ca.issue("other", "spiffe://demo/ns/night/sa/web"))
    assert ask(started.inbound, stranger).status == 403
    samples = started.metrics()
    assert samples("l7proxy_denied_total", rule="shop/no-admin[0]") == 1
    assert samples("l7proxy_denied_total", rule="no allow rule") == 1
    assert samples("l7proxy_audited_total", rule="shop/watch[0]") == 1


def test_a_route_s_own_rules_and_the_documents_must_both_allow(
    sidecar: StartSidecar, serve: StartServer, tmp_path: Path
) -> None:
    documents = [
        policy("get", rules=[{"to": [{"operation": {"methods": ["GET"]}}]}]),
        route("open", policies={"authorization": {"allow": [{"paths": ["/open"]}]}}),
    ]
    started = sidecar(*documents, app=serve().address, service={"namespace": "shop"})
    assert started.get("/open").status == 200
    assert started.get("/closed").status == 403
    with started.client() as client:
        assert client.request(b"DELETE /open HTTP/1.1\r\nhost: a\r\n\r\n").status == 403
