"""AuthorizationPolicy against a literal reading of its reference and of what istiod makes of it for Envoy.

https://istio.io/latest/docs/reference/config/security/authorization-policy/ and .../conditions/; the oracle below is
istiod's `ListAuthorizationPolicies`, `authzmodel.New`, `ReplaceTrustDomainAliases` and the matchers that it generates.
"""

import re
from ipaddress import ip_address, ip_network
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l7proxy.config import istio
from l7proxy.config.load import load
from l7proxy.core.errors import ConfigError
from l7proxy.core.message import Request
from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.filters.authorizer import Authorizer, RuleSet
from l7proxy.identity.peer import peer_named
from tests.cli.test_check import l7proxy
from tests.conftest import StartServer, StartSidecar
from tests.identity.pki import ORDERS, Authority, ask, context

Document = dict[str, Any]
ROOT, OURS, PORT, TRUST_DOMAIN = "istio-system", "shop", 8080, "demo"
LABELS = {"app": "orders", "version": "v1"}
SLOW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def policy(spec: Document, namespace: str | None = OURS, name: str = "p", **metadata: Any) -> Document:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, **({} if namespace is None else {"namespace": namespace}), **metadata},
        "spec": spec,
    }


def written(folder: Path, documents: list[Document]) -> Path:
    sidecar = {
        "apiVersion": "l7proxy.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": "orders"},
        "spec": {
            "service": {"name": "orders", "namespace": OURS, "labels": LABELS},
            "inbound": {"app": f"http://127.0.0.1:{PORT}"},
        },
    }
    file = folder / "a.yaml"
    file.write_text(yaml.safe_dump_all([sidecar, *documents], sort_keys=False))
    return file


def rules_of(folder: Path, *documents: Document) -> RuleSet | None:
    return istio.rules(load([str(written(folder, list(documents)))]))


def allowed(folder: Path, documents: list[Document], requests: list[Request]) -> list[bool]:
    rules = rules_of(folder, *documents)
    if rules is None:
        return [True] * len(requests)
    authorizer = Authorizer(rules, PORT, lambda: TRUST_DOMAIN)
    return [authorizer.decide(request).outcome == "ALLOW" for request in requests]


# The oracle


def text(pattern: str, value: str) -> bool:
    """`StringMatcher`."""
    if pattern == "*":
        return value != ""
    if pattern.startswith("*"):
        return value.endswith(pattern[1:])
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return value == pattern


def principal(pattern: str, request: Request) -> bool:
    """`srcPrincipalGenerator` of what `ReplaceTrustDomainAliases` leaves; the mesh has no aliases."""
    parts = pattern.split("/")
    if len(parts) == 5 and parts[0] == "cluster.local":
        pattern = "/".join([TRUST_DOMAIN, *parts[1:]])
    uri = request.peer.uri
    if pattern == "*":
        return uri != ""
    if pattern.startswith("*"):
        return re.fullmatch("spiffe://.*" + re.escape(pattern[1:]), uri) is not None
    return text(f"spiffe://{pattern}", uri)


def namespace(pattern: str, request: Request) -> bool:
    """`srcNamespaceGenerator`."""
    return re.fullmatch(".*/ns/{}/.*".format(pattern.replace("*", ".*")), request.peer.uri) is not None


def trust_domain(pattern: str, request: Request) -> bool:
    return bool(request.peer.uri) and text(pattern, request.peer.uri.split("/")[2])


def service_account(pattern: str, request: Request) -> bool:
    """`serviceAccountRegex`."""
    of, slash, account = pattern.partition("/")
    if not slash:
        of, account = OURS, pattern
    wanted = f"spiffe://.+/ns/{of}/(.+/|)sa/{account}(/.+)?"
    return re.fullmatch(wanted, request.peer.uri) is not None


def path(pattern: str, request: Request) -> bool:
    """`pathGenerator`; the templates are Envoy's uri_template."""
    value = request.path.decode()
    if "{*}" not in pattern and "{**}" not in pattern:
        return text(pattern, value)
    segment = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]"
    holes = {"{*}": f"{segment}+", "{**}": f"(?:{segment}|/)*"}
    parts = re.split(r"(\{\*\*?\})", pattern)
    return re.fullmatch("".join(holes.get(part) or re.escape(part) for part in parts), value) is not None


def header(pattern: str, request: Request) -> bool:
    """Envoy's HeaderMatcher: values of one name are joined by commas, and `*` is a header that is there."""
    values = [value.decode() for name, value in request.headers if name == b"x-role"]
    return bool(values) and (pattern == "*" or text(pattern, ",".join(values)))


def block(address: str, pattern: str) -> bool:
    return ip_address(address) in ip_network(pattern, strict=False)


MATCHERS: dict[str, Any] = {
    "principals": principal,
    "namespaces": namespace,
    "serviceAccounts": service_account,
    "trustDomains": trust_domain,
    "ipBlocks": lambda pattern, request: block(request.source, pattern),
    "remoteIpBlocks": lambda pattern, request: block(request.forwarded or request.source, pattern),
    "hosts": lambda pattern, request: text(pattern.lower(), request.authority.decode().lower()),
    "ports": lambda pattern, request: int(pattern) == (request.destination[1] if request.destination else PORT),
    "methods": lambda pattern, request: text(pattern, request.method.decode()),
    "paths": path,
    "request.headers[X-Role]": header,
}
MATCHERS |= {
    "source.ip": MATCHERS["ipBlocks"],
    "remote.ip": MATCHERS["remoteIpBlocks"],
    "source.namespace": MATCHERS["namespaces"],
    "source.principal": MATCHERS["principals"],
    "source.serviceAccount": MATCHERS["serviceAccounts"],
    "source.trustDomain": MATCHERS["trustDomains"],
    "destination.port": MATCHERS["ports"],
}


def holds(block_: Document, request: Request) -> bool:
    """All lists of a source or an operation hold: one entry of each, none of those that are negated."""
    for key, patterns in block_.items():
        negated = key.startswith("not")
        name = key[3].lower() + key[4:] if negated else key
        if any(MATCHERS[name](pattern, request) for pattern in patterns) == negated:
            return False
    return True


def condition_holds(condition: Document, request: Request) -> bool:
    matches = MATCHERS[condition["key"]]
    wanted, unwanted = condition.get("values", ()), condition.get("notValues", ())
    return (not wanted or any(matches(pattern, request) for pattern in wanted)) and not any(
        matches(pattern, request) for pattern in unwanted
    )


def rule_matches(rule: Document, request: Request) -> bool:
    sources, operations = rule.get("from"), rule.get("to")
    return (
        (sources is None or any(holds(one["source"], request) for one in sources))
        and (operations is None or any(holds(one["operation"], request) for one in operations))
        and all(condition_holds(one, request) for one in rule.get("when", ()))
    )


def attached(document: Document) -> bool:
    """`ListAuthorizationPolicies` and `ShouldAttachPolicy` for a sidecar."""
    spec = document["spec"]
    labels = (spec.get("selector") or {}).get("matchLabels") or {}
    return (
        document["metadata"].get("namespace", OURS) in (OURS, ROOT)
        and not spec.get("targetRefs")
        and not spec.get("targetRef")
        and labels.items() <= LABELS.items()
    )


def istio_allows(documents: list[Document], request: Request) -> bool:
    live = [
        document["spec"]
        for document in documents
        if attached(document) and document["metadata"].get("annotations", {}).get("istio.io/dry-run") != "true"
    ]

    def any_matches(action: str) -> bool:
        return any(
            rule_matches(rule, request)
            for spec in live
            if spec.get("action", "ALLOW") == action
            for rule in spec.get("rules", ())
        )

    if any_matches("DENY"):
        return False
    return all(spec.get("action", "ALLOW") != "ALLOW" for spec in live) or any_matches("ALLOW")


# What is drawn

SOURCES: dict[str, tuple[str, ...]] = {
    "principals": (
        "*", "demo/ns/shop/sa/web", "cluster.local/ns/shop/sa/web", "cluster.local/ns/shop/sa/*", "*/sa/web", "demo/*",
        "cluster.local/*", "*mo/ns/night/sa/batch", "partner/ns/shop/sa/web",
    ),
    "namespaces": ("*", "shop", "night", "sh*", "*op", "*t", "sh.p"),
    "serviceAccounts": ("web", "shop/web", "night/batch", "night/web", "shop/w.b"),
    "trustDomains": ("*", "demo", "partner", "de*", "*ner", "cluster.local"),
    "ipBlocks": ("10.0.0.1", "10.0.0.0/8", "10.0.0.7/30", "192.0.2.0/24", "::1", "fd00::/8"),
    "remoteIpBlocks": ("10.0.0.1", "10.0.0.0/8", "192.0.2.0/24", "fd00::/8"),
}  # fmt: skip
OPERATIONS: dict[str, tuple[str, ...]] = {
    "hosts": ("*", "a.example", "A.Example", "*.example", "a.*", "a.example:*", "a.example:8080", "*:443"),
    "ports": ("8080", "08080", "443", "1"),
    "methods": ("*", "GET", "get", "P*", "*T"),
    "paths": ("*", "/a", "/a*", "/a/*", "*.json", "/a/{*}", "/{*}/b", "/a/{**}", "/{**}/c", "/{*}/b/{**}"),
}
CONDITIONS: dict[str, tuple[str, ...]] = {
    "request.headers[X-Role]": ("*", "admin", "ad*", "*user", "admin,user"),
    "source.ip": SOURCES["ipBlocks"],
    "remote.ip": SOURCES["remoteIpBlocks"],
    "source.namespace": SOURCES["namespaces"],
    "source.principal": SOURCES["principals"],
    "source.serviceAccount": SOURCES["serviceAccounts"],
    "source.trustDomain": SOURCES["trustDomains"],
    "destination.port": OPERATIONS["ports"],
}
PEERS = [
    ANONYMOUS,
    *(peer_named(f"spiffe://{name}") for name in (
        "demo/ns/shop/sa/web", "demo/ns/shop/sa/webhook", "demo/ns/night/sa/batch", "partner/ns/shop/sa/web",
        "demo/region/x/ns/shop/sa/web", "demo/ns/shop/sa/web/pod/b", "demo/ns/shop/pod/b/sa/web",
        "demo/ns/night/ns/shop/sa/batch", "demo/ns/shop/sa/batch/sa/web", "demo/ns/shop", "demo/sa/web",
        "ns/shop/sa/web",
    )),
]  # fmt: skip
ADDRESSES = ("10.0.0.1", "10.0.0.5", "192.0.2.7", "::1", "fd00::7")
NAMES = ("a.example", "A.EXAMPLE", "b.example", "a.other")
AUTHORITIES = (*NAMES, "a.example:8080", "a.example:443", "b.example:8080")
PATHS = ("/", "/a", "/a/", "/a/b", "/a/b/c", "/b", "/b/c", "/a.json", "/x/b/y/z")


def patterns(options: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(options), min_size=1, max_size=3, unique=True)


def blocks(fields: dict[str, tuple[str, ...]], most: int = 2) -> st.SearchStrategy[Document]:
    """A source or an operation with some of these fields, as they are or negated."""

    def one(names: list[str]) -> st.SearchStrategy[Document]:
        if "serviceAccounts" in names:
            names = [name for name in names if name not in ("principals", "namespaces")]
        lists = [
            st.tuples(st.sampled_from((name, "not" + name[0].upper() + name[1:])), patterns(fields[name]))
            for name in names
        ]
        return st.tuples(*lists).map(dict)

    return st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=most, unique=True).flatmap(one)


def conditions(fields: dict[str, tuple[str, ...]]) -> st.SearchStrategy[Document]:
    return st.sampled_from(sorted(fields)).flatmap(
        lambda key: st.one_of(
            st.fixed_dictionaries({"key": st.just(key), "values": patterns(fields[key])}),
            st.fixed_dictionaries({"key": st.just(key), "notValues": patterns(fields[key])}),
            st.fixed_dictionaries(
                {"key": st.just(key), "values": patterns(fields[key]), "notValues": patterns(fields[key])}
            ),
        )
    )


rules = st.fixed_dictionaries(
    {},
    optional={
        "from": st.lists(blocks(SOURCES).map(lambda source: {"source": source}), min_size=1, max_size=2),
        "to": st.lists(blocks(OPERATIONS).map(lambda operation: {"operation": operation}), min_size=1, max_size=2),
        "when": st.lists(conditions(CONDITIONS), min_size=1, max_size=2),
    },
)
actions = st.sampled_from(["ALLOW", "DENY"])


@st.composite
def requests(draw: st.DrawFn, authorities: tuple[str, ...] = NAMES) -> Request:
    headers = draw(st.lists(st.sampled_from([b"admin", b"user", b"guest", b""]), max_size=2))
    target = draw(st.sampled_from(PATHS)).encode()
    request = Request(
        draw(st.sampled_from([b"GET", b"POST", b"PUT"])), b"http", draw(st.sampled_from(authorities)).encode(), target,
        b"", target, [(b"x-role", value) for value in headers], b"", peer=draw(st.sampled_from(PEERS)),
    )  # fmt: skip
    request.source = draw(st.sampled_from(ADDRESSES))
    request.forwarded = draw(st.sampled_from(("", *ADDRESSES)))
    request.destination = draw(st.none() | st.just(("10.0.0.9", 443)))
    return request


some_requests = st.lists(requests(), min_size=1, max_size=5)


@pytest.mark.parametrize("field", SOURCES)
@given(data=st.data())
@SLOW
def test_a_source_matches_as_in_istio(field: str, tmp_path: Path, data: st.DataObject) -> None:
    sources = data.draw(st.lists(blocks({field: SOURCES[field]}), min_size=1, max_size=2))
    spec = {"action": data.draw(actions), "rules": [{"from": [{"source": source} for source in sources]}]}
    asked = data.draw(some_requests)
    assert allowed(tmp_path, [policy(spec)], asked) == [istio_allows([policy(spec)], request) for request in asked]


@pytest.mark.parametrize("field", OPERATIONS)
@given(data=st.data())
@SLOW
def test_an_operation_matches_as_in_istio(field: str, tmp_path: Path, data: st.DataObject) -> None:
    operations = data.draw(st.lists(blocks({field: OPERATIONS[field]}), min_size=1, max_size=2))
    spec = {"action": data.draw(actions), "rules": [{"to": [{"operation": one} for one in operations]}]}
    asked = data.draw(some_requests)
    assert allowed(tmp_path, [policy(spec)], asked) == [istio_allows([policy(spec)], request) for request in asked]


@pytest.mark.parametrize("key", CONDITIONS)
@given(data=st.data())
@SLOW
def test_a_condition_holds_as_in_istio(key: str, tmp_path: Path, data: st.DataObject) -> None:
    when = data.draw(st.lists(conditions({key: CONDITIONS[key]}), min_size=1, max_size=2))
    spec = {"action": data.draw(actions), "rules": [{"when": when}]}
    asked = data.draw(some_requests)
    assert allowed(tmp_path, [policy(spec)], asked) == [istio_allows([policy(spec)], request) for request in asked]


@given(
    action=actions,
    found=st.lists(blocks({"hosts": OPERATIONS["hosts"]}), min_size=1, max_size=2),
    request=requests(AUTHORITIES),
)
@SLOW
def test_a_port_in_the_host_lets_nobody_in_whom_istio_keeps_out(
    action: str, found: list[Document], request: Request, tmp_path: Path
) -> None:
    documents = [policy({"action": action, "rules": [{"to": [{"operation": one} for one in found]}]})]
    assert allowed(tmp_path, documents, [request]) == [False] or istio_allows(documents, request)


@st.composite
def scoped(draw: st.DrawFn) -> list[Document]:
    found = []
    for number in range(draw(st.integers(1, 4))):
        spec: Document = {"action": draw(st.sampled_from(["ALLOW", "DENY", "AUDIT"]))}
        if spec["action"] == "ALLOW" and draw(st.booleans()):
            del spec["action"]
        if (some := draw(st.none() | st.lists(rules, max_size=2))) is not None:
            spec["rules"] = some
        if draw(st.integers(0, 5)) == 0:
            spec |= draw(st.sampled_from([
                {"targetRefs": [{"kind": "Service", "name": "orders"}]},
                {"targetRef": {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}},
            ]))  # fmt: skip
        elif draw(st.booleans()):
            spec["selector"] = draw(st.sampled_from(
                [{}, {"matchLabels": {}}, {"matchLabels": {"app": "orders"}}, {"matchLabels": LABELS},
                 {"matchLabels": {"app": "web"}}, {"matchLabels": {"app": "orders", "tier": "x"}}]
            ))  # fmt: skip
        annotations = {"istio.io/dry-run": draw(st.sampled_from(["true", "false"]))} if draw(st.booleans()) else {}
        namespace = draw(st.sampled_from([OURS, OURS, ROOT, None, "other"]))
        found.append(policy(spec, namespace, f"p{number}", **({"annotations": annotations} if annotations else {})))
    return found


@given(found=scoped(), asked=some_requests)
@settings(SLOW, max_examples=100)
def test_policies_apply_and_add_up_as_in_istio(found: list[Document], asked: list[Request], tmp_path: Path) -> None:
    assert allowed(tmp_path, found, asked) == [istio_allows(found, request) for request in asked]


DENY_ALL: Document = {"action": "DENY", "rules": [{}]}
NOT_OURS = {"selector": {"matchLabels": {"app": "web"}}}


@pytest.mark.parametrize(
    "document",
    [
        policy({"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]} | NOT_OURS),
        policy({"action": "CUSTOM", "provider": {"name": "opa"}, "rules": [{}]}, "other"),
        policy({"rules": [{"from": [{"source": {"requestPrincipals": ["*"]}}]}]} | NOT_OURS),
        policy({"rules": [{"when": [{"key": "connection.sni", "values": ["a"]}]}]}, "other"),
        policy(DENY_ALL | {"targetRefs": [{"kind": "Service", "name": "orders"}]}),
    ],
)
def test_what_is_for_others_is_neither_enforced_nor_refused(document: Document, tmp_path: Path) -> None:
    assert rules_of(tmp_path, document) is None


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (DENY_ALL | {"selector": {}, "targetRefs": [{"kind": "Gateway", "name": "g"}]}, "only one of selector and"),
        (DENY_ALL | {"selector": {"matchLabels": LABELS}, "targetRef": {"name": "g"}}, "only one of selector and"),
        (DENY_ALL | {"selector": {"matchLabels": {"app": "or*"}}}, "a selector takes whole labels"),
        (DENY_ALL | {"provider": {"name": "opa"}}, "spec.provider: stands beside action CUSTOM alone, not beside DENY"),
        (DENY_ALL | {"action": "Deny"}, "spec.action: must be one of"),
        ({"rules": [{"from": [{"source": {"serviceAccounts": ["a/b/c"]}}]}]}, "'a/b/c' is not a service account"),
        ({"rules": [{"from": [{"source": {"notServiceAccounts": ["/web"]}}]}]}, "'/web' is not a service account"),
        ({"rules": [{"when": [{"key": "source.serviceAccount", "values": ["shop/"]}]}]}, "is not a service account"),
        ({"rules": [{"from": [{"source": {"namespaces": ["sh("]}}]}]}, "'sh(' makes no regular expression, as which"),
        ({"rules": [{"from": [{"source": {"serviceAccounts": ["a/web["]}}]}]}, "'a/web[' makes no regular expression"),
        ({"rules": [{"to": [{"operation": {"paths": ["/a{*}"]}}]}]}, "braces stand for a template"),
        ({"rules": [{"to": [{"operation": {"paths": ["/{**}/a/{*}"]}}]}]}, "no template comes after {**}"),
        ({"rules": [{"to": [{"operation": {"notPaths": ["/{**}/{**}"]}}]}]}, "no template comes after {**}"),
        ({"rules": [{"from": [{"source": {"principals": [""]}}]}]}, "a.yaml:"),
        ({"rules": [{"when": [{"key": "request.experimental.inline.headers[a]", "values": ["b"]}]}]}, "no such key"),
        ({"rules": [{"when": [{"key": "destination.ip", "values": ["10.0.0.1"]}]}]}, "destination.ip"),
    ],
)
@pytest.mark.parametrize("namespace", [OURS, ROOT])
def test_what_istio_or_we_cannot_enforce_is_refused_by_name(
    namespace: str, spec: Document, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml:\d+: ") as raised:
        rules_of(tmp_path, policy(spec, namespace))
    assert sentence in str(raised.value)


def test_check_warns_of_a_deny_policy_without_rules(tmp_path: Path) -> None:
    file = written(tmp_path, [policy({"action": "DENY"})])
    line = next(n for n, text_ in enumerate(file.read_text().splitlines(), 1) if text_ == "  action: DENY") - 1
    told = f"{file}:{line}: a DENY policy without rules denies nothing, as in Istio; `rules: [{{}}]` denies everything"
    assert l7proxy("check", str(file))[::2] == (0, f"{told} (warning)\n")


def test_a_peer_with_a_dns_name_alone_gets_by_no_rule_on_any_principal(tmp_path: Path) -> None:
    request = Request(b"GET", b"http", b"a", b"/", b"", b"/", [], b"", peer=Peer(identity="web.shop"))
    for key, action in product(("principals", "notPrincipals"), ("ALLOW", "DENY")):
        spec = {"action": action, "rules": [{"from": [{"source": {key: ["*"]}}]}]}
        assert allowed(tmp_path, [policy(spec)], [request]) == [False]


def test_cluster_local_is_the_trust_domain_of_our_certificate(
    sidecar: StartSidecar, serve: StartServer, tmp_path: Path
) -> None:
    ca = Authority(tmp_path)
    pair = ca.issue("orders", ORDERS)
    web, batch, partner = (
        context(ca, ca.issue(name.replace("/", "."), f"spiffe://{name}"))
        for name in ("demo/ns/shop/sa/web", "demo/ns/shop/sa/batch", "partner/ns/shop/sa/web")
    )
    denied = {"action": "DENY", "rules": [{"from": [{"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}]}]}
    tls = {"cert": str(pair.cert), "key": str(pair.key), "ca": str(ca.file), "trustDomains": ["partner"]}
    started = sidecar(policy(denied), app=serve().address, inbound={"tls": tls}, service={"namespace": OURS})
    assert ask(started.inbound, web).status == 403
    assert ask(started.inbound, batch).status == 200
    assert ask(started.inbound, partner).status == 200
    for name, allowed_ in (("demo/ns/shop/sa/web", "false"), ("partner/ns/shop/sa/web", "true")):
        question = ("GET", "/", "--identity", f"spiffe://{name}", "--json")
        told = l7proxy("explain", "-c", str(started.config), *question)[1]
        assert f'"allowed": {allowed_}' in told


@pytest.mark.parametrize("key", ["namespaces", "serviceAccounts"])
@pytest.mark.parametrize(("action", "of_shop", "of_others"), [("DENY", 403, 200), ("ALLOW", 200, 403)])
def test_a_caller_is_of_a_namespace_wherever_its_id_says_so(
    action: str, of_shop: int, of_others: int, key: str, sidecar: StartSidecar, serve: StartServer, tmp_path: Path
) -> None:
    ca = Authority(tmp_path)
    pair = ca.issue("orders", ORDERS)
    values = {"namespaces": "shop", "serviceAccounts": "shop/web"}
    spec = {"action": action, "rules": [{"from": [{"source": {key: [values[key]]}}]}]}
    tls = {"cert": str(pair.cert), "key": str(pair.key), "ca": str(ca.file)}
    started = sidecar(policy(spec), app=serve().address, inbound={"tls": tls}, service={"namespace": OURS})

    def status(name: str) -> int:
        return ask(started.inbound, context(ca, ca.issue(name.replace("/", "."), f"spiffe://demo/{name}"))).status

    for name in ("ns/shop/sa/web", "region/x/ns/shop/sa/web", "ns/shop/sa/web/pod/b"):
        assert status(name) == of_shop
    assert status("region/shop/ns/night/sa/web") == of_others


def test_a_header_that_is_there_and_empty_is_present(sidecar: StartSidecar, serve: StartServer) -> None:
    spec = {"action": "DENY", "rules": [{"when": [{"key": "request.headers[X-Debug]", "values": ["*"]}]}]}
    started = sidecar(policy(spec), app=serve().address, service={"namespace": OURS})
    assert started.get("/", x_debug="").status == 403
    assert started.get("/", x_debug="1").status == 403
    assert started.get("/").status == 200


def test_fields_of_one_name_are_joined_by_commas_as_envoy_joins_them(tmp_path: Path) -> None:
    spec = {"action": "DENY", "rules": [{"when": [{"key": "request.headers[X-Role]", "values": ["admin,user"]}]}]}
    fields = [(b"x-role", b"admin"), (b"x-role", b"user")]
    asked = [Request(b"GET", b"http", b"a", b"/", b"", b"/", headers, b"") for headers in (fields, fields[:1])]
    assert allowed(tmp_path, [policy(spec)], asked) == [False, True]


def test_an_allowed_host_is_allowed_on_the_ports_that_are_written(sidecar: StartSidecar, serve: StartServer) -> None:
    spec = {"rules": [{"to": [{"operation": {"hosts": ["orders.example", "api.example:*"]}}]}]}
    started = sidecar(policy(spec), app=serve().address, service={"namespace": OURS})
    asked = ("orders.example", "ORDERS.example", "orders.example:8080", "api.example:8080", "api.example")
    assert [started.get("/", host).status for host in asked] == [200, 200, 403, 200, 403]
