"""The Gateway API's routes as they are: what they become, what is refused and where, and what a real sidecar does."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.config.load import load
from l7proxy.config.model import (
    Backend,
    CallMatch,
    Match,
    Model,
    PathMatch,
    Redirect,
    Resource,
    Rewrite,
    Route,
    TextMatch,
)
from l7proxy.core.errors import ConfigError
from l7proxy.core.fields import duration
from l7proxy.filters.headers import Edit, Headers
from l7proxy.filters.timeout import Timeout
from tests.conftest import StartServer, StartSidecar
from tests.support.client import Client
from tests.support.server import Connection
from tests.support.sidecar import Document, upstream

SIDECAR = """\
apiVersion: l7proxy.io/v1
kind: Sidecar
metadata: {name: orders}
spec:
  service: {name: orders, namespace: shop}
  inbound: {app: "http://127.0.0.1:8080"}
  outbound: {}
"""
GRPC = TextMatch(regex="application/grpc([+;].*)?")


def parent(name: str = "orders", **more: Any) -> dict[str, Any]:
    return {"group": "", "kind": "Service", "name": name, **more}


def document(
    *rules: dict[str, Any],
    parents: list[dict[str, Any]] | None = None,
    name: str = "r",
    namespace: str = "",
    kind: str = "HTTPRoute",
    version: str = "v1",
    **spec: Any,
) -> Document:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    spec = {"parentRefs": [parent()] if parents is None else parents, "rules": list(rules), **spec}
    return {"apiVersion": f"gateway.networking.k8s.io/{version}", "kind": kind, "metadata": metadata, "spec": spec}


def to(name: str = "orders", **more: Any) -> dict[str, Any]:
    return {"backendRefs": [{"name": name, "port": 80, **more}]}


def loaded(folder: Path, *documents: Document, upstreams: tuple[str, ...] = ("payments",)) -> Model:
    texts = [text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False) for text in documents]
    places = [yaml.safe_dump(upstream(name, ("10.0.0.1", 80))) for name in upstreams]
    (folder / "a.yaml").write_text("---\n".join([SIDECAR, *texts, *places]))
    return load([str(folder / "a.yaml")])


def routes(folder: Path, *documents: Document, **more: Any) -> tuple[Resource[Route], ...]:
    return loaded(folder, *documents, **more).routes


def only(folder: Path, rule: dict[str, Any], **more: Any) -> Route:
    (found,) = routes(folder, document(rule, **more))
    return found.spec


def mistakes(folder: Path, *documents: Document) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, *documents)
    return str(caught.value).replace(f"{folder}/", "")


def warnings(folder: Path, *documents: Document, **more: Any) -> str:
    return "\n".join(map(str, loaded(folder, *documents, **more).warnings)).replace(f"{folder}/", "")


AS_IT_IS = """\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  creationTimestamp: "2025-01-01T00:00:00Z"
  generation: 1
  name: orders
  namespace: shop
  uid: 4ed1c2a0
spec:
  parentRefs:
  - group: ""
    kind: Service
    name: orders
  rules:
  - backendRefs:
    - group: ""
      kind: Service
      name: orders
      port: 8080
      weight: 1
    matches:
    - path:
        type: PathPrefix
        value: /
status:
  parents: []
"""


def test_a_document_loads_as_a_cluster_has_it(tmp_path: Path) -> None:
    (found,) = routes(tmp_path, AS_IT_IS)
    assert found.spec == Route(upstream="app")
    assert found.name == "shop/orders[0]"
    # The Sidecar and a separator are eight lines.
    assert (found.line, found.where("spec.direction")[1]) == (8 + 15, 8 + 11)


def test_the_older_version_loads_too(tmp_path: Path) -> None:
    assert only(tmp_path, to(), version="v1beta1") == Route(upstream="app")


# Whom a route is for


def test_a_route_of_our_own_service_is_inbound_and_one_of_another_outbound(tmp_path: Path) -> None:
    inbound, outbound = routes(tmp_path, document(to("payments"), parents=[parent(), parent("payments")]))
    assert (inbound.name, outbound.name) == ("r[0]", "r[0]")
    assert (inbound.spec.direction, inbound.spec.hosts) == ("inbound", ("*",))
    assert outbound.spec.direction == "outbound"
    assert outbound.spec.hosts == (
        "payments",
        "payments.shop",
        "payments.shop.svc",
        "payments.shop.svc.cluster.local",
    )


def test_a_service_of_another_namespace_has_its_longer_names_alone(tmp_path: Path) -> None:
    bank = [parent("payments", namespace="bank")]
    (found,) = routes(
        tmp_path, document(to("payments", namespace="bank"), parents=bank), upstreams=("payments", "payments.bank")
    )
    assert found.spec.hosts == ("payments.bank", "payments.bank.svc", "payments.bank.svc.cluster.local")
    assert found.spec.upstream == "payments.bank"


def test_a_service_of_our_name_in_another_namespace_is_another(tmp_path: Path) -> None:
    (found,) = routes(tmp_path, document(to(), namespace="bank", parents=[parent()]), upstreams=("orders.bank",))
    assert (found.spec.direction, found.spec.upstream) == ("outbound", "orders.bank")


NOTHING = "spec.parentRefs: none of these is a Service that this sidecar serves or calls"


@pytest.mark.parametrize(
    ("namespace", "parents"),
    [
        ("", [{"name": "edge"}]),
        ("", [{"name": "edge", "port": 80, "kind": "Gateway"}]),
        ("web", [parent("orders", namespace="shop", port=80)]),
        ("", []),
    ],
)
def test_what_is_not_for_us_does_nothing_and_says_so(
    tmp_path: Path, namespace: str, parents: list[dict[str, Any]]
) -> None:
    cors = {"filters": [{"type": "CORS", "cors": {"allowOrigins": ["*"]}}], **to("elsewhere")}
    model = loaded(tmp_path, document(cors, namespace=namespace, parents=parents, hostnames=["a.org"]))
    assert model.routes == ()
    (warning,) = model.warnings
    assert warning.message.startswith(NOTHING)
    assert warning.line == 8 + 6 + bool(namespace)


def test_a_document_for_a_gateway_and_for_us_is_one_for_us(tmp_path: Path) -> None:
    both = document(to(), parents=[{"name": "edge"}, parent()], hostnames=["a.org"])
    model = loaded(tmp_path, both)
    assert ([found.spec.hosts for found in model.routes], model.warnings) == ([("*",)], ())


def test_host_names_are_not_for_services(tmp_path: Path) -> None:
    told = warnings(tmp_path, document(to(), hostnames=["a.org"]))
    assert "spec.hostnames: hostnames are for Gateways" in told


def test_routes_of_callers_hold_in_place_of_those_of_the_service(tmp_path: Path) -> None:
    bank = [parent("payments", namespace="bank")]
    theirs = document(to("payments"), namespace="bank", parents=bank, name="theirs")
    ours = document(to("payments"), namespace="shop", parents=bank, name="ours")
    model = loaded(tmp_path, theirs, ours, upstreams=("payments", "payments.bank"))
    assert [(found.name, found.spec.upstream) for found in model.routes] == [("shop/ours[0]", "payments")]
    (warning,) = model.warnings
    assert "spec.parentRefs[0]: does nothing here" in warning.message
    assert "a.yaml:25 holds for callers in shop" in warning.message


def test_a_listener_that_is_not_there_is_missed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        SIDECAR.replace("  outbound: {}\n", "")
        + f"---\n{yaml.safe_dump(document(to('payments'), parents=[parent('payments')]))}"
        + f"---\n{yaml.safe_dump(upstream('payments', ('10.0.0.1', 80)))}"
    )
    (warning,) = load([str(tmp_path / "a.yaml")]).warnings
    assert "no outbound listener" in warning.message


# What a rule becomes


def test_matches_are_those_of_routes(tmp_path: Path) -> None:
    matches = [
        {"path": {"type": "Exact", "value": "/a"}, "method": "GET"},
        {"path": {"value": "/b"}, "headers": [{"name": "X-A", "value": "1"}]},
        {
            "path": {"type": "RegularExpression", "value": "/c/[0-9]+"},
            "headers": [{"name": "x-b", "type": "RegularExpression", "value": "b.*"}],
            "queryParams": [
                {"name": "Q", "value": "1"},
                {"name": "q", "type": "RegularExpression", "value": "[a-z]"},
            ],
        },
    ]
    assert only(tmp_path, {"matches": matches, **to()}).matches == (
        Match(PathMatch(exact="/a"), ("GET",)),
        Match(PathMatch(prefix="/b"), (), {"x-a": "1"}),
        Match(
            PathMatch(regex="/c/[0-9]+"), (), {"x-b": TextMatch(regex="b.*")}, {"Q": "1", "q": TextMatch(regex="[a-z]")}
        ),
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ({"service": "bank.Ledger", "method": "List"}, PathMatch(exact="/bank.Ledger/List")),
        ({"service": "bank.Ledger"}, PathMatch(prefix="/bank.Ledger")),
        ({"method": "List"}, CallMatch(regex="/[^/]+/List", method=4)),
        (
            {"type": "RegularExpression", "service": "bank[.].*", "method": "Get|List"},
            CallMatch(regex="/(bank[.].*)/(Get|List)", service=9, method=8),
        ),
        ({"type": "RegularExpression", "method": "Get.*"}, CallMatch(regex="/([^/]+)/(Get.*)", method=5)),
        (None, PathMatch(prefix="/")),
    ],
)
def test_grpc_methods_are_paths(tmp_path: Path, method: dict[str, str] | None, path: PathMatch) -> None:
    match = {"method": method} if method else {"headers": [{"name": "x-a", "value": "1"}]}
    found = only(tmp_path, {"matches": [match], **to()}, kind="GRPCRoute")
    headers = {"content-type": GRPC} | ({} if method else {"x-a": "1"})
    assert found == Route(matches=(Match(path, ("POST",), headers),), upstream="app")


def test_a_grpc_rule_without_matches_takes_every_call(tmp_path: Path) -> None:
    found = only(tmp_path, to(), kind="GRPCRoute")
    assert found.matches == (Match(methods=("POST",), headers={"content-type": GRPC}),)


def redirect(**spec: Any) -> dict[str, Any]:
    return {"filters": [{"type": "RequestRedirect", "requestRedirect": spec}]}


def rewrite(**spec: Any) -> dict[str, Any]:
    return {"filters": [{"type": "URLRewrite", "urlRewrite": spec}], **to()}


FULL = {"type": "ReplaceFullPath", "replaceFullPath": "/new"}
PREFIX = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (redirect(scheme="https"), Redirect(scheme="https", port=443)),
        (redirect(scheme="https", port=8443, statusCode=301), Redirect(301, "https", port=8443)),
        (redirect(hostname="a.org", path=FULL), Redirect(host="a.org", path="/new")),
        (redirect(path=PREFIX), Redirect(prefix="/new")),
        (rewrite(hostname="a.org", path=FULL), Rewrite(path="/new", host="a.org")),
        (rewrite(path=PREFIX), Rewrite(prefix="/new")),
        (rewrite(path={**PREFIX, "replacePrefixMatch": ""}), Rewrite(prefix="/")),
    ],
)
def test_redirects_and_rewrites_are_those_of_routes(
    tmp_path: Path, rule: dict[str, Any], expected: Redirect | Rewrite
) -> None:
    found = only(tmp_path, rule)
    assert (found.redirect or found.rewrite) == expected


def test_header_modifiers_and_timeouts_are_policies(tmp_path: Path) -> None:
    edit = {"set": [{"name": "X-A", "value": "1"}], "add": [{"name": "x-b", "value": "2"}], "remove": ["x-c"]}
    filters = [
        {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["server"]}},
        {"type": "RequestHeaderModifier", "requestHeaderModifier": edit},
    ]
    timeouts = {"request": "1h30m", "backendRequest": "500ms"}
    found = only(tmp_path, {"filters": filters, "timeouts": timeouts, **to()})
    assert found.policies == (
        Headers(Edit({"x-a": "1"}, {"x-b": "2"}, ("x-c",)), Edit(remove=("server",))),
        Timeout(5400.0, 0.5),
    )


def test_a_timeout_of_zero_is_none(tmp_path: Path) -> None:
    assert only(tmp_path, {"timeouts": {"request": "0s"}, **to()}).policies == ()
    (found,) = only(tmp_path, {"timeouts": {"request": "0s", "backendRequest": "1s"}, **to()}).policies
    assert found == Timeout(None, 1.0)


def test_several_backends_are_a_split(tmp_path: Path) -> None:
    refs = [*to(weight=9)["backendRefs"], *to("payments")["backendRefs"], *to("payments", weight=0)["backendRefs"]]
    found = only(tmp_path, {"backendRefs": refs})
    assert found.split == (Backend("app", 9), Backend("payments", 1), Backend("payments", 0))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 99999), st.sampled_from(["h", "m", "s", "ms"])), min_size=1, max_size=4))
def test_every_duration_of_the_gateway_api_is_one_of_ours(parts: list[tuple[int, str]]) -> None:
    factors = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    assert duration("".join(f"{count}{unit}" for count, unit in parts)) == pytest.approx(
        sum(count * factors[unit] for count, unit in parts)
    )


# What is refused

MATCH = {"matches": [{"path": {"value": "/a"}}]}
MODIFIER = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["a"]}}


def matching(**match: Any) -> dict[str, Any]:
    return {"matches": [match], **to()}


@pytest.mark.parametrize(
    ("rule", "line", "message"),
    [
        (matching(path={"value": "a"}), "value: a", "spec.rules[0].matches[0].path.value: 'a' is not a path"),
        (matching(path={"value": "/a/../b"}), "value: /a/../b", "value: '/a/../b': a path cannot contain '/../'"),
        (matching(path={"value": "/a/%2e%2e/b"}), "- path:", "matches[0].path: no request has such a path"),
        (matching(path={"type": "RegularExpression", "value": "("}), "value: (", "is not a regular expression"),
        (matching(path={"type": "Prefix", "value": "/"}), "type: Prefix", "must be one of Exact, PathPrefix, Regular"),
        (matching(headers=[{"name": "a b", "value": "1"}]), "- name: a b", "'a b' is not a token"),
        (
            matching(headers=[{"name": "Host", "value": "a"}]),
            "- name: Host",
            "headers[0].name: 'host': no rule sees this",
        ),
        (matching(headers=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]), "- name: A", "on 'A' already"),
        (
            matching(queryParams=[{"name": "a", "value": "1", "type": "Prefix"}]),
            "type: Prefix",
            "one of Exact, Regular",
        ),
        (matching(queryParams=[{"name": "a", "value": "1"}] * 2), "name: a", "on 'a' already"),
        (matching(method="get"), "- method: get", "matches[0].method: must be one of CONNECT, DELETE, GET"),
        (matching(method="CONNECT"), "- method: CONNECT", "CONNECT opens a tunnel"),
        (matching(path={"valu": "/"}), "valu: /", "unknown key; did you mean 'value'?"),
        (
            {"filters": [{"type": "RequestMirror", "requestMirror": {}}], **to()},
            "- type: RequestMirror",
            "'RequestMirror' is not supp",
        ),
        (
            {"filters": [{"type": "ExtensionRef", "extensionRef": {}}], **to()},
            "- type: ExtensionRef",
            "'ExtensionRef' is not supp",
        ),
        (
            {"filters": [{"type": "CORS", "cors": {}}], **to()},
            "- type: CORS",
            "filters[0].type: 'CORS' is not supported",
        ),
        (
            {"filters": [{"type": "URLRewrite"}], **to()},
            "- type: URLRewrite",
            "URLRewrite has the one key of its name beside type",
        ),
        (
            {"filters": [{**MODIFIER, "cors": {}}], **to()},
            "- type: RequestHeaderModifier",
            "has the one key of its name beside type",
        ),
        (
            {"filters": [MODIFIER, {**MODIFIER, "requestHeaderModifier": {}}], **to()},
            "- type: RequestHeaderModifier",
            "filters[1]: there is a RequestHeaderModifier already",
        ),
        (
            rewrite(path={**FULL, **PREFIX}),
            "- type: URLRewrite",
            "ReplacePrefixMatch has the one key of its name beside type",
        ),
        (
            {**rewrite(path=PREFIX), **matching(path={"type": "Exact", "value": "/a"})},
            "- type: URLRewrite",
            "takes exactly one mat",
        ),
        (
            {**rewrite(path=PREFIX), "matches": [{}, {}]},
            "- type: URLRewrite",
            "takes exactly one match, of type PathPrefix",
        ),
        ({**redirect(), **to()}, "backendRefs:", "backendRefs: a redirect leaves nothing to send there"),
        (
            {"filters": [*redirect()["filters"], *rewrite()["filters"]]},
            "- type: URLRewrite",
            "filters[1]: a redirect leaves nothing to rewrite",
        ),
        (
            {"filters": [{**MODIFIER, "requestHeaderModifier": {"remove": ["a", "A"]}}], **to()},
            "- A",
            "filters[0].requestHeaderModifier.remove[1]: there is more than one edit of 'a'",
        ),
        (
            {"filters": [{**MODIFIER, "requestHeaderModifier": {"remove": ["Host"]}}], **to()},
            "- type: RequestHeaderModifier",
            "filters[0]: 'host' cannot be edited",
        ),
        ({"filters": [MODIFIER]}, "- filters:", "spec.rules[0]: there is no backendRef: every request would be"),
        (to(weight=0), "- backendRefs:", "backendRefs: all weights are 0: every request would be answered 500"),
        (to("paymnts"), "- name: paymnts", "backendRefs[0]: unknown upstream 'paymnts'; did you mean 'payments'?"),
        (to("payments", namespace="bank"), "- name: payments", "unknown upstream 'payments.bank'"),
        (to("app"), "- name: app", "the Upstream 'app' is the local application, not a Service of this name"),
        (
            to(kind="ServiceImport", group="multicluster.x-k8s.io"),
            "- name: orders",
            "only a Service can be sent requests",
        ),
        (to(filters=[MODIFIER]), "filters:", "backendRefs[0].filters: filters of one backend are not supported"),
        (
            {"backendRefs": [{"name": "payments", "port": 80}, {"name": "payments", "port": 81}]},
            "port: 81",
            "backendRefs[1].port: this Service is called at port 80 elsewhere",
        ),
        (
            {"timeouts": {"request": "1.5s"}, **to()},
            "request: 1.5s",
            "'1.5s' is not a duration like 500ms, 10s or 1h30m",
        ),
        (
            {"timeouts": {"request": "1s", "backendRequest": "2s"}, **to()},
            "backendRequest: 2s",
            "backendRequest: an attempt cannot take longer than the whole request",
        ),
        ({"retry": {"attempts": 2}, **to()}, "- retry:", "spec.rules[0].retry: is not supported"),
        ({"sessionPersistence": {}, **to()}, "- sessionPersistence: {}", "sessionPersistence: is not supported"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_line(
    tmp_path: Path, rule: dict[str, Any], line: str, message: str
) -> None:
    told = mistakes(tmp_path, document(rule))
    assert "\n" not in told
    assert message in told
    file, number = told.split(":")[:2]
    assert (file, (tmp_path / "a.yaml").read_text().splitlines()[int(number) - 1].strip()) == ("a.yaml", line)


@pytest.mark.parametrize(
    ("match", "message"),
    [
        ({"method": {"service": "a/b"}}, "matches[0].method.service: 'a/b' is not the name of a gRPC service"),
        ({"method": {"service": "a", "method": "b.c"}}, "method.method: 'b.c' is not the name of a gRPC method"),
        ({"method": {}}, "matches[0].method: names neither a service nor a method"),
        ({"method": {"type": "RegularExpression", "service": "a)|(b"}}, "is not a regular expression"),
        ({"headers": [{"name": "Content-Type", "value": "a"}]}, "content-type is matched already"),
        ({"path": {"value": "/"}}, "spec.rules[0].matches[0].path: unknown key"),
    ],
)
def test_what_is_no_grpc_method_is_refused(tmp_path: Path, match: dict[str, Any], message: str) -> None:
    assert message in mistakes(tmp_path, document({"matches": [match], **to()}, kind="GRPCRoute"))


def test_a_grpc_route_has_no_redirects(tmp_path: Path) -> None:
    assert "'RequestRedirect' is not supported" in mistakes(tmp_path, document(redirect(), kind="GRPCRoute"))


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ([parent(port=80)], "spec.parentRefs[0].port: a route holds for every port of a Service here"),
        ([parent(sectionName="http")], "spec.parentRefs[0].sectionName: a route holds for every port"),
        (
            [{"kind": "Service", "name": "orders"}],
            'spec.parentRefs[0]: a Service is of the core group: write group: ""',
        ),
        ([{**parent(), "nane": "x"}], "spec.parentRefs[0].nane: unknown key"),
    ],
)
def test_parents_that_cannot_be_had_are_refused(tmp_path: Path, parents: list[dict[str, Any]], message: str) -> None:
    told = mistakes(tmp_path, document(to(), parents=parents))
    # The last key of the parent is the one to blame, or it is the first line that is.
    assert told.startswith(f"a.yaml:{15 if 'core group' in told else 14 + len(parents[0])}: {message}")


def test_a_document_without_rules_is_a_mistake(tmp_path: Path) -> None:
    assert "a.yaml:18: spec.rules: is empty" in mistakes(tmp_path, document())
    assert "a.yaml:13: spec: there is no rule" in mistakes(tmp_path, document(kind="GRPCRoute"))


def test_a_service_has_routes_of_one_kind(tmp_path: Path) -> None:
    told = mistakes(tmp_path, document(to(), name="a"), document(to(), name="b", kind="GRPCRoute"))
    assert "spec.parentRefs[0]: a Service has routes of one kind, and orders has the GRPCRoute in a.yaml:" in told


def test_names_are_those_of_routes_and_not_given_twice(tmp_path: Path) -> None:
    told = mistakes(tmp_path, document(to()), document(to(), kind="GRPCRoute", parents=[parent("payments")]))
    assert "metadata.name: HTTPRoute 'r' is defined in a.yaml:9" in told
    first = document(to(), namespace="shop")
    assert len(routes(tmp_path, first, document({**MATCH, **to()}, namespace=""))) == 2


def test_a_rule_that_can_never_match_is_found(tmp_path: Path) -> None:
    told = mistakes(tmp_path, document({**MATCH, **to()}, {**MATCH, **to("payments")}))
    assert "route 'r[1]' can never match: route 'r[0]' (" in told


def test_of_equal_rules_of_two_documents_the_younger_is_a_warning(tmp_path: Path) -> None:
    """Both are valid, and the oldest by creation timestamp has precedence, wherever it stands."""
    young, old = document(to("payments"), name="a"), document(to(), name="b")
    young["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    old["metadata"]["creationTimestamp"] = "2025-12-31T23:59:59Z"
    model = loaded(tmp_path, young, old)
    assert [route.name for route in model.routes] == ["b[0]", "a[0]"]
    (warning,) = model.warnings
    assert warning.message.startswith("route 'a[0]' can never match: route 'b[0]' (")
    assert warning.line == 8 + 12


def test_a_route_comes_before_an_equal_rule_of_a_document_wherever_it_stands(tmp_path: Path) -> None:
    ours = yaml.safe_dump({"apiVersion": "l7proxy.io/v1", "kind": "Route", "metadata": {"name": "z"}, "spec": {}})
    assert "route 'r[0]' can never match: route 'z' (" in mistakes(tmp_path, document(to()), ours)


def test_the_same_service_in_two_spellings_is_one_parent(tmp_path: Path) -> None:
    twice = document(to("payments"), parents=[parent("payments"), parent("payments", namespace="shop")])
    assert len(routes(tmp_path, twice)) == 1


# What it does


def test_a_method_of_any_grpc_service_comes_before_every_call(sidecar: StartSidecar, serve: StartServer) -> None:
    rules = [to(), {"matches": [{"method": {"method": "Get"}}], **to("canary")}]
    started = sidecar(
        document(*rules, kind="GRPCRoute"),
        upstream("canary", serve(tell("canary")).address),
        app=serve(tell("app")).address,
        service={"name": "orders", "namespace": "shop"},
    )
    with started.client() as client:
        for path, place in (("/shop.Orders/Get", "canary"), ("/shop.Orders/List", "app")):
            head = (
                f"POST {path} HTTP/1.1\r\nhost: orders\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n"
            )
            answer = client.request(head.encode())
            assert json.loads(answer.body)[0] == place


def tell(who: str) -> Any:
    def script(connection: Connection) -> None:
        while True:
            request = connection.read()
            body = json.dumps([who, request.target, request.get("x-from"), request.get("host")]).encode()
            connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    return script


def test_a_sidecar_does_what_the_documents_say(sidecar: StartSidecar, serve: StartServer) -> None:
    def slow(connection: Connection) -> None:
        connection.read()
        connection.wait_for_close()

    app, canary, payments = serve(tell("app")), serve(tell("canary")), serve(tell("payments"))
    inbound = document(
        {"matches": [{"headers": [{"name": "x-canary", "value": "always"}]}], **to("canary")},
        {"matches": [{"path": {"value": "/old"}}], **redirect(path=PREFIX, statusCode=308)},
        {"matches": [{"path": {"value": "/slow"}}], "timeouts": {"request": "100ms"}, **to("slow")},
        {"backendRefs": [{"name": "orders", "port": 80, "weight": 1}, {"name": "canary", "port": 80, "weight": 1}]},
        namespace="shop",
        name="in",
    )
    edit = {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-from", "value": "orders"}]}}
    call = rewrite(path=PREFIX, hostname="pay.internal")
    outbound = document(
        {**call, "matches": [{"path": {"value": "/v1"}}], "filters": [*call["filters"], edit], **to("payments")},
        parents=[parent("payments")],
        name="out",
    )
    places = {"canary": canary, "payments": payments, "slow": serve(slow)}
    started = sidecar(
        inbound,
        outbound,
        *(upstream(name, server.address) for name, server in places.items()),
        app=app.address,
        service={"name": "orders", "namespace": "shop"},
    )
    series = started.metrics()
    for name, direction in (("shop/in[0]", "inbound"), ("shop/in[3]", "inbound"), ("out[0]", "outbound")):
        labels = {"l7proxy_route": name, "l7proxy_direction": direction}
        assert series("http_server_request_duration_seconds_count", **labels) == 0
    with started.client() as client:
        assert json.loads(client.get("/any", x_canary="always").body)[0] == "canary"
        moved = client.get("/old/a?b=c", "orders:8080")
        assert (moved.status, moved["location"]) == (308, "http://orders:8080/new/a?b=c")
        parts = Counter(json.loads(client.get("/any").body)[0] for _ in range(60))
        assert parts.keys() == {"app", "canary"}
        began = time.monotonic()
        late = client.get("/slow")
        assert (late.status, late["x-l7proxy-error"]) == (504, "upstream_timeout")
        assert time.monotonic() - began < 5
    with Client(started.outbound) as client:
        answer = client.get("/v1/charges?x=1", "payments.shop.svc.cluster.local:80")
        assert json.loads(answer.body) == ["payments", "/new/charges?x=1", "orders", "pay.internal"]
        assert client.get("/v2", "payments").status == 404
        assert client.get("/", "other")["x-l7proxy-error"] == "egress_blocked"
    series = started.metrics()
    assert series("http_server_request_duration_seconds_count", l7proxy_route="shop/in[3]") == 60
    assert series("http_server_request_duration_seconds_count", l7proxy_route="out[0]") == 1
    assert {line["route"] for line in started.log_lines(65)} >= {"shop/in[0]", "shop/in[1]", "out[0]"}


def test_an_unchanged_document_makes_equal_routes(tmp_path: Path) -> None:
    """So that the Compiler takes them from the last configuration."""
    first = routes(tmp_path, document(to(), {**MATCH, **to("payments")}))
    assert first == routes(tmp_path, document(to(), {**MATCH, **to("payments")}))
    assert first != routes(tmp_path, document(to("payments"), {**MATCH, **to("payments")}))
