"""Gateway API documents against a slow and literal reading of the reference: which rule decides, and for whom.

The oracles follow the words of apis/v1 (httproute_types.go, grpcroute_types.go, shared_types.go) and of GEP-1294
(xRoutes mesh binding). What is asked is a live configuration, which `explain` must agree with.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from l7proxy.config.load import load
from l7proxy.config.model import Model
from l7proxy.core.errors import ConfigError
from l7proxy.core.slices import finish
from l7proxy.core.stats import Stats
from l7proxy.proxy.app import make_app
from l7proxy.proxy.control import Control
from l7proxy.proxy.decision import Asked, Question
from l7proxy.proxy.explain import explaining
from l7proxy.telemetry.facade import Telemetry
from l7proxy.telemetry.log import Log
from tests.config.test_gateway import SIDECAR, document, parent, to
from tests.proxy.test_explain_agrees import Ledger, agrees, answering
from tests.support.sidecar import Document, upstream

Request = dict[str, Any]
QUIET = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


def model(folder: Path, *documents: Document) -> Model:
    # As text: a quoted name must not become an anchor and an alias of itself.
    texts = [yaml.safe_dump(each, sort_keys=False) for each in (*documents, upstream("payments", ("10.0.0.1", 80)))]
    (folder / "a.yaml").write_text("---\n".join([SIDECAR, *texts]))
    return load([str(folder / "a.yaml")])


def live(configuration: Model, requests: Sequence[Request]) -> list[Any]:
    """Returns what becomes of each request in a live configuration."""
    return asyncio.run(_live(configuration, requests))


async def _live(configuration: Model, requests: Sequence[Request]) -> list[Any]:
    stats = Stats()
    telemetry = Telemetry(stats, Log(stats, "/dev/null"))
    control = Control(telemetry, configuration)
    explainer = finish(explaining(configuration))
    answering(control)
    ledger = Ledger()
    control.live.snapshot = structs.replace(control.snapshot, tracer=ledger)
    found = []
    try:
        for request in requests:
            question = Question(
                request.get("method", "GET"),
                f"http://{request.get('host', 'orders')}{request['path']}",
                headers=tuple(request.get("headers", ())),
                inbound=request.get("inbound", True),
            )
            exchange = Asked(question)
            await make_app(control.live, question.inbound)(exchange)
            assert ledger.request is not None
            agrees(await explainer.ask(question), exchange, ledger.request)
            found.append(ledger.request)
    finally:
        control.close()
        telemetry.close()
    return found


def deciding(configuration: Model, requests: Sequence[Request]) -> list[str | None]:
    """Returns the name of the rule that decides each request."""
    return [found.route.name if found.route else None for found in live(configuration, requests)]


# Which rule decides


def created(one: Document) -> tuple[bool, str, str]:
    """The oldest Route based on creation timestamp, then the first in alphabetical order by `{namespace}/{name}`."""
    metadata = one["metadata"]
    stamp = metadata.get("creationTimestamp")
    return stamp is None, stamp or "", f"{metadata.get('namespace', 'shop')}/{metadata['name']}"


def named(one: Document, rule: int) -> str:
    metadata = one["metadata"]
    return (
        f"{metadata['namespace']}/{metadata['name']}[{rule}]"
        if "namespace" in metadata
        else f"{metadata['name']}[{rule}]"
    )


def considered(fields: Sequence[dict[str, str]], fold: Callable[[str], str]) -> list[dict[str, str]]:
    """Only the first entry with an equivalent name is considered for a match, subsequent entries are ignored."""
    seen: dict[str, dict[str, str]] = {}
    for field in fields:
        seen.setdefault(fold(field["name"]), field)
    return list(seen.values())


def same(field: dict[str, str], value: str | None) -> bool:
    if value is None:
        return False
    if field.get("type", "Exact") == "RegularExpression":
        return re.fullmatch(field["value"], value) is not None
    return value == field["value"]


def headers_match(fields: Sequence[dict[str, str]], request: Request) -> bool:
    """A header that is repeated in a request is a list (RFC 7230 3.2.2)."""
    return all(
        same(field, ", ".join(value for name, value in request["headers"] if name == field["name"].lower()) or None)
        for field in fields
    )


def elements(path: str) -> list[str]:
    return path.removesuffix("/").split("/")


def http_decides(documents: Sequence[Document], request: Request) -> str | None:
    path, _, query = request["path"].partition("?")
    found = []
    for one in documents:
        for number, rule in enumerate(one["spec"]["rules"]):
            for match in rule.get("matches") or [{}]:
                wanted = match.get("path", {})
                kind, value = wanted.get("type", "PathPrefix"), wanted.get("value", "/")
                headers = considered(match.get("headers", []), str.lower)
                parameters = considered(match.get("queryParams", []), str)
                given = dict(reversed(parse_qsl(query, keep_blank_values=True)))
                if (
                    (path == value if kind == "Exact" else elements(path)[: len(elements(value))] == elements(value))
                    and match.get("method", request["method"]) == request["method"]
                    and headers_match(headers, request)
                    and all(same(field, given.get(field["name"])) for field in parameters)
                ):
                    characters = len(value.removesuffix("/")) if kind == "PathPrefix" else 0
                    order = (kind != "Exact", -characters, "method" not in match, -len(headers), -len(parameters))
                    found.append((*order, *created(one), number, named(one, number)))
    return min(found)[-1] if found else None


def grpc_decides(documents: Sequence[Document], request: Request) -> str | None:
    if request["method"] != "POST" or dict(request["headers"])["content-type"] != "application/grpc":
        return None
    _, service, method = request["path"].split("/")
    found = []
    for one in documents:
        for number, rule in enumerate(one["spec"]["rules"]):
            for match in rule.get("matches") or [{}]:
                called = match.get("method", {})
                headers = considered(match.get("headers", []), str.lower)
                kind, names = called.get("type", "Exact"), (called.get("service", ""), called.get("method", ""))
                if headers_match(headers, request) and all(
                    same({"value": wanted, "type": kind}, name)
                    for wanted, name in zip(names, (service, method), strict=True)
                    if wanted
                ):
                    # RegularExpression is implementation-specific: here it comes after the exact name of a service.
                    exact = kind == "Exact" and bool(names[0])
                    order = (not exact, -len(names[0]), -len(names[1]), -len(headers))
                    found.append((*order, *created(one), number, named(one, number)))
    return min(found)[-1] if found else None


VALUES = st.sampled_from(["1", "2", "12"])


def fields(*names: str) -> st.SearchStrategy[list[dict[str, str]]]:
    exact = st.fixed_dictionaries({"name": st.sampled_from(names), "value": VALUES})
    pattern = st.fixed_dictionaries(
        {
            "name": st.sampled_from(names),
            "value": st.sampled_from(["[0-9]", "1.*", "2|12"]),
            "type": st.just("RegularExpression"),
        }
    )
    return st.lists(exact | pattern, max_size=3, unique_by=lambda field: field["name"])


PREFIXES = st.sampled_from(["/", "/a", "/a/", "/a/b", "/ab", "/a/b/cc"])
HTTP = st.fixed_dictionaries(
    {},
    optional={
        "path": st.fixed_dictionaries({"value": PREFIXES}, optional={"type": st.sampled_from(["Exact", "PathPrefix"])}),
        "method": st.sampled_from(["GET", "POST"]),
        "headers": fields("x-a", "X-A", "x-b"),
        "queryParams": fields("q", "Q"),
    },
)
CALLED = st.one_of(
    st.fixed_dictionaries(
        {"service": st.sampled_from(["shop.S", "shop.S2", "s"])},
        optional={"method": st.sampled_from(["Get", "GetAll"])},
    ),
    st.fixed_dictionaries({"method": st.sampled_from(["Get", "GetAll", "List"])}),
    st.fixed_dictionaries(
        {"type": st.just("RegularExpression"), "service": st.sampled_from(["s.*", "shop[.]S", "s|shop[.]S2"])},
        optional={"method": st.sampled_from(["G.*", "Get|List"])},
    ),
    st.fixed_dictionaries(
        {"type": st.just("RegularExpression"), "method": st.sampled_from(["G.*", "GetA?l*", "L[a-z]+"])}
    ),
)
GRPC = st.fixed_dictionaries({}, optional={"method": CALLED, "headers": fields("x-a", "X-A", "x-b")})


def meaning(match: dict[str, Any]) -> str:
    """Matches of one document that mean the same are a mistake of their own: the later can never match."""
    path = {"type": "PathPrefix", "value": "/", **match.get("path", {})}
    path["value"] = path["value"].rstrip("/") if path["type"] == "PathPrefix" else path["value"]
    conditions = [
        sorted(
            (name(field["name"]), field["value"], field.get("type", ""))
            for field in considered(match.get(key, []), name)
        )
        for key, name in (("headers", str.lower), ("queryParams", str))
    ]
    method = match.get("method", "")
    return repr((path, sorted(method.items()) if isinstance(method, dict) else method, conditions))


@st.composite
def routes(draw: Any, kind: str, matches: st.SearchStrategy[dict[str, Any]]) -> list[Document]:
    found = []
    for name in draw(st.lists(st.sampled_from(["a", "a-b", "a.b", "a1", "b"]), min_size=1, max_size=3, unique=True)):
        chosen = draw(st.lists(matches, min_size=1, max_size=5, unique_by=meaning))
        rules = []
        while chosen:
            count = draw(st.integers(1, len(chosen)))
            part, chosen = chosen[:count], chosen[count:]
            # No matches at all are a match of everything.
            everything = draw(st.sampled_from([{}, {"matches": []}])) if part == [{}] else {"matches": part}
            rules.append({**everything, **to()})
        one = document(*rules, name=name, kind=kind, namespace=draw(st.sampled_from(["", "shop"])))
        stamp = draw(st.sampled_from([None, "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"]))
        one["metadata"].update({"creationTimestamp": stamp} if stamp else {})
        found.append(one)
    return found


HEADERS = st.lists(st.tuples(st.sampled_from(["x-a", "x-b"]), VALUES), max_size=3)
REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "method": st.sampled_from(["GET", "POST", "PUT"]),
            "path": st.builds(
                "{}{}".format,
                st.sampled_from(["/", "/a", "/a/", "/a/b", "/ab", "/abc", "/a/b/cc", "/a/b/cc/d", "/A"]),
                st.sampled_from(["", "?q=1", "?q=2&q=1", "?Q=12", "?q=1&Q=2", "?q="]),
            ),
            "headers": HEADERS,
        }
    ),
    min_size=10,
    max_size=10,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "method": st.sampled_from(["POST", "POST", "POST", "GET"]),
            "path": st.builds(
                "/{}/{}".format,
                st.sampled_from(["shop.S", "shop.S2", "s", "other.X"]),
                st.sampled_from(["Get", "GetAll", "List"]),
            ),
            "headers": st.tuples(
                HEADERS, st.sampled_from(["application/grpc", "application/grpc", "application/json"])
            ).map(lambda pair: [*pair[0], ("content-type", pair[1])]),
        }
    ),
    min_size=10,
    max_size=10,
)


@QUIET
@given(routes("HTTPRoute", HTTP), REQUESTS)
def test_the_rule_of_all_httproutes_that_the_reference_names_decides(
    folder: Path, documents: list[Document], requests: list[Request]
) -> None:
    expected = [http_decides(documents, request) for request in requests]
    assert deciding(model(folder, *documents), requests) == expected


@QUIET
@given(
    st.permutations(["x-a", "X-A", "X-a"]),
    st.permutations(["1", "2", "12"]),
    st.sampled_from(["HTTPRoute", "GRPCRoute"]),
)
def test_of_equivalent_names_in_a_match_the_first_counts(
    folder: Path, names: list[str], values: list[str], kind: str
) -> None:
    conditions = [{"name": name, "value": value} for name, value in zip(names, values, strict=True)]
    one = document({"matches": [{"headers": conditions}], **to()}, kind=kind)
    requests = [
        {"method": "POST", "path": "/s/Get", "headers": [("content-type", "application/grpc"), ("x-a", value)]}
        for value in values
    ]
    assert deciding(model(folder, one), requests) == ["r[0]", None, None]


@QUIET
@given(routes("GRPCRoute", GRPC), CALLS)
def test_the_rule_of_all_grpcroutes_that_the_reference_names_decides(
    folder: Path, documents: list[Document], requests: list[Request]
) -> None:
    expected = [grpc_decides(documents, request) for request in requests]
    assert deciding(model(folder, *documents), requests) == expected


# For whom a route is

PARENTS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["orders", "payments"])},
        optional={
            "namespace": st.sampled_from(["shop", "bank"]),
            "kind": st.sampled_from(["Service", "Service", "Service", "Gateway"]),
            "group": st.sampled_from([""]),
        },
    ).filter(lambda ref: ref.get("kind") != "Service" or "group" in ref),
    min_size=1,
    max_size=3,
    unique_by=lambda ref: (ref["name"], ref.get("namespace"), ref.get("kind", "Gateway")),
)
BOUND = st.lists(
    st.tuples(st.sampled_from(["shop", "bank", "web"]), st.sampled_from(["2025", "2026"]), PARENTS),
    min_size=1,
    max_size=5,
).map(
    lambda drawn: [
        {
            **(one := document(to("payments", namespace="shop"), name=f"r{number}", namespace=namespace, parents=refs)),
            "metadata": {**one["metadata"], "creationTimestamp": f"{year}-01-01T00:00:00Z"},
        }
        for number, (namespace, year, refs) in enumerate(drawn)
    ]
)


def bound(one: Document, service: tuple[str, str]) -> bool:
    """A parent without a kind is a Gateway, one without a namespace is in that of the Route."""
    return any(
        ref.get("kind", "Gateway") == "Service"
        and ref.get("group", "gateway.networking.k8s.io") == ""
        and (ref.get("namespace", one["metadata"]["namespace"]), ref["name"]) == service
        for ref in one["spec"]["parentRefs"]
    )


def holds(documents: Sequence[Document], service: tuple[str, str], caller: str) -> str | None:
    """Requests from a namespace with consumer routes utilize these, those of others the producer's."""
    attached = [one for one in documents if bound(one, service)]
    consumers = [one for one in attached if one["metadata"]["namespace"] == caller != service[0]]
    producers = [one for one in attached if one["metadata"]["namespace"] == service[0]]
    return min((*created(one), named(one, 0)) for one in consumers or producers)[-1] if consumers or producers else None


@QUIET
@given(BOUND)
def test_routes_hold_for_those_whom_the_reference_names(folder: Path, documents: list[Document]) -> None:
    # A caller of another namespace than ours meets us as the Service: none of its own routes hold here.
    services = {
        ("shop", "payments"): ["payments", "payments.shop", "payments.shop.svc:80"],
        ("bank", "payments"): ["payments.bank", "payments.bank.svc.cluster.local"],
        ("bank", "orders"): ["orders.bank"],
    }
    requests = [{"path": "/", "host": "anything.org"}]
    expected = [holds(documents, ("shop", "orders"), "elsewhere")]
    for service, hosts in services.items():
        requests += [{"path": "/", "host": host, "inbound": False} for host in hosts]
        expected += [holds(documents, service, "shop")] * len(hosts)
    found = deciding(model(folder, *documents), requests)
    # Without any route for our Service its requests go to the application as they do without documents.
    assert [name or None for name in found] == expected


@pytest.mark.parametrize("name", ["payments.bank", "Payments", "payments.", "-"])
def test_a_name_that_is_no_service_s_is_not_taken_for_the_address_of_one(folder: Path, name: str) -> None:
    """A Service `payments.bank` of ours would have the address of the Service `payments` in `bank`."""
    for one in (document(to("payments"), parents=[parent(name)]), document(to(name))):
        with pytest.raises(ConfigError, match=rf"name: '{re.escape(name)}' is not the name of a Service"):
            model(folder, one)


@pytest.mark.parametrize("place", ["metadata", "parentRefs", "backendRefs"])
def test_a_namespace_is_one_label(folder: Path, place: str) -> None:
    one = {
        "metadata": document(to(), namespace="bank.svc"),
        "parentRefs": document(to("payments"), parents=[parent("payments", namespace="bank.svc")]),
        "backendRefs": document(to("payments", namespace="bank.svc")),
    }[place]
    with pytest.raises(ConfigError, match=rf"{place}.*namespace: 'bank.svc' is not the name of a namespace"):
        model(folder, one)


# What a rule does

EDITS = st.lists(
    st.tuples(st.sampled_from(["x-a", "X-A", "x-B", "x-b", "X-C"]), st.sampled_from(["1", "2"])),
    max_size=5,
    unique_by=lambda pair: pair[0],
)


@QUIET
@given(EDITS, st.sets(st.sampled_from(["x-a", "x-b", "x-c"])), st.booleans())
def test_of_equivalent_names_in_a_modifier_the_first_counts(
    folder: Path, edits: list[tuple[str, str]], adds: set[str], gone: bool
) -> None:
    """HTTPHeader: subsequent entries with an equivalent header name MUST be ignored. Set overwrites, add appends."""
    by_action: dict[str, Any] = {"set": [], "add": [], "remove": ["X-D"] if gone else []}
    expected = {"x-a": ["0"], "x-b": ["0"], "x-c": ["0"], "x-d": [] if gone else ["0"]}
    for name, value in edits:
        action = "add" if name.lower() in adds else "set"
        if name.lower() not in {field["name"].lower() for field in by_action[action]}:
            expected[name.lower()] = (["0"] if action == "add" else []) + [value]
        by_action[action].append({"name": name, "value": value})
    rule = {"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": by_action}], **to()}
    (found,) = live(model(folder, document(rule)), [{"path": "/", "headers": [(name, "0") for name in expected]}])
    sent = {name: [value.decode() for key, value in found.headers if key == name.encode()] for name in expected}
    assert sent == expected


@pytest.mark.parametrize(
    ("path", "prefix", "replacement", "modified"),
    [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
    ],
)
def test_a_prefix_is_replaced_as_the_reference_has_it(
    folder: Path, path: str, prefix: str, replacement: str, modified: str
) -> None:
    """The table of HTTPPathModifier.replacePrefixMatch."""
    moved = {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": replacement}}
    rule = {"matches": [{"path": {"value": prefix}}], "filters": [{"type": "URLRewrite", "urlRewrite": moved}], **to()}
    (found,) = live(model(folder, document(rule)), [{"path": path}])
    assert found.target == modified.encode()
