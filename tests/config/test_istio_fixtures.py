"""The AuthorizationPolicies of istiod's own tests: our verdicts are those of the RBAC filters made of them.

The files are `pilot/pkg/security/authz/builder/testdata/http` of istio/istio, in the folder `istio-authz` of
`L7PROXY_PEERS`, by default `../shared/peers` beside this project.
"""

import os
import re
from ipaddress import ip_address, ip_network
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from l7proxy.core.message import Request
from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.filters.authorizer import Authorizer
from tests.config.test_authorization_policy import policy, rules_of

PEERS = Path(os.environ.get("L7PROXY_PEERS", Path(__file__).parents[3] / "shared" / "peers")) / "istio-authz"
# Those whose meshes have no trust domain aliases, which we have none of.
NAMES = (
    "allow-empty-rule", "allow-nil-rule", "audit-full-rule", "deny-and-allow", "deny-empty-rule", "dry-run-allow",
    "dry-run-allow-and-deny", "multiple-policies",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not PEERS.is_dir(), reason=f"there are no documents in {PEERS}")


def text(matcher: dict[str, Any], value: str) -> bool:
    kind, wanted = next((key, found) for key, found in matcher.items() if key != "ignoreCase")
    if kind == "safeRegex":
        return re.fullmatch(wanted["regex"], value) is not None
    if matcher.get("ignoreCase"):
        wanted, value = wanted.lower(), value.lower()
    return {"exact": value == wanted, "prefix": value.startswith(wanted), "suffix": value.endswith(wanted)}[kind]


def within(block: dict[str, Any], address: str) -> bool:
    return ip_address(address) in ip_network(f"{block['addressPrefix']}/{block['prefixLen']}")


def matches(rule: dict[str, Any], request: Request) -> bool:
    """What Envoy's RBAC filter says of a permission or a principal."""
    ((kind, value),) = rule.items()
    match kind:
        case "any":
            return bool(value)
        case "andRules" | "andIds":
            return all(matches(one, request) for one in value.get("rules", value.get("ids")))
        case "orRules" | "orIds":
            return any(matches(one, request) for one in value.get("rules", value.get("ids")))
        case "notRule" | "notId":
            return not matches(value, request)
        case "header":
            fields = {":method": request.method.decode(), ":authority": request.authority.decode()}
            fields |= {name.decode(): found.decode() for name, found in request.headers}
            found = fields.get(value["name"].lower())
            return found is not None and (value.get("presentMatch") or text(value["stringMatch"], found))
        case "urlPath":
            return text(value["path"], request.path.decode())
        case "destinationPort":
            return request.destination is not None and request.destination[1] == value
        case "authenticated":
            return bool(request.peer.uri) and text(value["principalName"], request.peer.uri)
        case "directRemoteIp":
            return within(value, request.source)
        case "remoteIp":
            return within(value, request.forwarded or request.source)
    raise AssertionError(f"no such rule: {kind}")


def filters(name: str) -> list[dict[str, Any]]:
    return [
        yaml.safe_load(file.read_text())["typedConfig"]
        for file in sorted(PEERS.iterdir())
        if re.fullmatch(rf"{re.escape(name)}-out\d?\.yaml", file.name)
    ]


def passes(rbac: dict[str, Any] | None, request: Request) -> bool:
    if rbac is None:
        return True
    found = any(
        any(matches(one, request) for one in one_policy["permissions"])
        and any(matches(one, request) for one in one_policy["principals"])
        for name, one_policy in rbac.get("policies", {}).items()
        if "httpbin-6" not in name
    )
    action = rbac.get("action", "ALLOW")
    return action == "LOG" or found == (action == "ALLOW")


def requests() -> list[Request]:
    asked = []
    for method, host, path, role, who, source, port in product(
        (b"GET", b"PUT"), (b"a.example", b"GOOGLE.com"), (b"/", b"/v1", b"/allow", b"/deny"), (None, b"abc1", b"abc3"),
        ("", "principals1", "td1/ns/namespaces1/sa/x", "td1/ns/foo/sa/bar"), ("1.2.3.4", "9.9.9.9"), (80, 81),
    ):  # fmt: skip
        parts = who.split("/")
        namespace, account = (parts[2], parts[4]) if len(parts) == 5 else ("", "")
        uri = f"spiffe://{who}"
        peer = Peer(uri, parts[0], namespace, account, uri) if who else ANONYMOUS
        headers = [(b"x-abc", role)] if role is not None else []
        request = Request(method, b"http", host, path, b"", path, headers, b"", peer=peer, source=source)
        request.destination = ("10.0.0.9", port)
        asked.append(request)
    return asked


@pytest.mark.parametrize("name", NAMES)
def test_verdicts_are_those_of_istiod_s_filters(name: str, tmp_path: Path) -> None:
    documents = [one for one in yaml.safe_load_all((PEERS / f"{name}-in.yaml").read_text()) if one]
    # Principals of JWTs are refused by name.
    documents = [one for one in documents if one["metadata"]["name"] != "httpbin-6"]
    moved = [policy(**_parts(one)) for one in documents]
    rules = rules_of(tmp_path, *moved)
    assert rules is not None
    authorizer = Authorizer(rules, 8080, lambda: "td1")
    made = filters(name)
    assert made
    for request in requests():
        verdict = authorizer.decide(request)
        assert (verdict.outcome == "ALLOW") == all(passes(one.get("rules"), request) for one in made)
        shadow = all(passes(one.get("shadowRules"), request) for one in made)
        assert (verdict.shadow == "ALLOW") == (shadow and verdict.outcome == "ALLOW")


def _parts(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the document's parts as one of our namespace and for our labels."""
    spec = {key: value for key, value in (document["spec"] or {}).items() if key != "selector"}
    metadata = {key: document["metadata"][key] for key in ("name", "annotations") if key in document["metadata"]}
    return {"spec": spec, **metadata}
