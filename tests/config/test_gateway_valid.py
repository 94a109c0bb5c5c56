"""What the Gateway API refuses is refused here, by line and key and whichever parents a document has; the rest is read.

The oracles are the validations of its custom resource definitions, word by word. The documents of its own project
stand in the folder that `L7PROXY_PEERS` names.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l7proxy.config.load import load
from l7proxy.config.model import Model
from l7proxy.core.errors import ConfigError
from tests.config.test_gateway import NOTHING, SIDECAR, document, parent, to
from tests.config.test_gateway_reference import deciding
from tests.support.sidecar import Document, upstream

PEERS = Path(os.environ.get("L7PROXY_PEERS", Path(__file__).parents[2] / "../shared/peers")) / "gateway-api"
THERE = pytest.mark.skipif(not PEERS.is_dir(), reason="L7PROXY_PEERS names no folder with gateway-api")
QUIET = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
EDGE = [{"name": "edge"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("valid")


def read(folder: Path, *documents: Document, sidecar: str = SIDECAR, upstreams: Sequence[str] = ("payments",)) -> Model:
    others = [upstream(name, ("10.0.0.1", 80)) for name in upstreams]
    texts = [yaml.safe_dump(each, sort_keys=False) for each in (*documents, *others)]
    (folder / "a.yaml").write_text("---\n".join([sidecar, *texts]))
    return load([str(folder / "a.yaml")])


def accepted(folder: Path, one: Document) -> bool:
    try:
        read(folder, one)
    except ConfigError as error:
        assert all(problem.line > SIDECAR.count("\n") and ": " in problem.message for problem in error.problems)
        return False
    return True


# Validation


@QUIET
@given(
    st.text(st.sampled_from("/.a%2fF#é[ ~"), max_size=6).map("/".__add__) | st.sampled_from(["", "a", "/a/%2e/b"]),
    st.sampled_from(["Exact", "PathPrefix"]),
)
def test_paths_are_those_of_the_reference(folder: Path, value: str, kind: str) -> None:
    valid = (
        value.startswith("/")
        and not any(part in value for part in ("//", "/./", "/../", "%2f", "%2F", "#"))
        and not value.endswith(("/..", "/."))
        and re.fullmatch(r"(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|[%][0-9a-fA-F]{2})+", value) is not None
    )
    rule = {"matches": [{"path": {"type": kind, "value": value}}], **to()}
    assert accepted(folder, document(rule, parents=EDGE)) == valid


REFS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["edge", "orders"])},
        optional={
            "namespace": st.sampled_from(["web"]),
            "sectionName": st.sampled_from(["a", "b"]),
            "port": st.sampled_from([80, 81]),
        },
    ),
    max_size=3,
)


@QUIET
@given(REFS)
def test_parents_are_distinct(folder: Path, refs: list[dict[str, Any]]) -> None:
    def one(p1: dict[str, Any], p2: dict[str, Any]) -> bool:
        return p1["name"] == p2["name"] and p1.get("namespace") == p2.get("namespace")

    def sections(p1: dict[str, Any], p2: dict[str, Any]) -> bool:
        return all((key in p1) == (key in p2) for key in ("sectionName", "port"))

    def equal(p1: dict[str, Any], p2: dict[str, Any]) -> bool:
        return one(p1, p2) and all(p1.get(key) == p2.get(key) for key in ("sectionName", "port"))

    valid = all(sections(p1, p2) for p1 in refs for p2 in refs if one(p1, p2)) and all(
        sum(equal(p1, p2) for p2 in refs) == 1 for p1 in refs
    )
    assert accepted(folder, document(to(), parents=refs)) == valid


KEYS = {
    "RequestHeaderModifier": {"requestHeaderModifier": {"set": [{"name": "a", "value": "1"}]}},
    "ResponseHeaderModifier": {"responseHeaderModifier": {}},
    "RequestRedirect": {"requestRedirect": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}},
    "URLRewrite": {"urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/"}}},
    "CORS": {"cors": {}},
    "RequestMirror": {"requestMirror": {}},
    "ExtensionRef": {"extensionRef": {}},
}
TYPES = st.sampled_from(list(KEYS))
FILTERS = st.lists(st.tuples(TYPES, st.sampled_from([None, None, None, *KEYS]), st.booleans()), max_size=3)
PATHS = st.lists(st.sampled_from(["Exact", "PathPrefix"]), min_size=1, max_size=2)


@QUIET
@given(FILTERS, PATHS, st.booleans())
def test_filters_are_those_of_the_reference(
    folder: Path, drawn: list[tuple[str, str | None, bool]], paths: list[str], sent: bool
) -> None:
    filters = [
        {"type": kind, **(KEYS[kind] if own or other is None else {}), **(KEYS[other] if other else {})}
        for kind, other, own in drawn
    ]
    types = [entry["type"] for entry in filters]
    keys = {kind: next(iter(block)) for kind, block in KEYS.items()}
    valid = all((key in entry) == (entry["type"] == kind) for entry in filters for kind, key in keys.items())
    once = ("RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite", "CORS")
    valid &= all(types.count(kind) <= 1 for kind in once)
    valid &= not ("RequestRedirect" in types and "URLRewrite" in types)
    valid &= not (sent and "RequestRedirect" in types)
    valid &= "RequestRedirect" not in types or paths == ["PathPrefix"]
    rule = {"matches": [{"path": {"type": kind, "value": "/a"}} for kind in paths], "filters": filters}
    assert accepted(folder, document({**rule, **(to() if sent else {})}, parents=EDGE)) == valid


SPANS = st.sampled_from(["0s", "1ms", "999ms", "1s", "1h1m", "61m", "3660s"])


@QUIET
@given(SPANS, SPANS)
def test_an_attempt_is_no_longer_than_the_request(folder: Path, request: str, attempt: str) -> None:
    """Zero is no bound: a request without one may have attempts of any length."""
    seconds = {"0s": 0.0, "1ms": 0.001, "999ms": 0.999, "1s": 1.0, "1h1m": 3660.0, "61m": 3660.0, "3660s": 3660.0}
    valid = not (seconds[request] != 0 and seconds[attempt] > seconds[request])
    rule = {"timeouts": {"request": request, "backendRequest": attempt}, **to()}
    assert accepted(folder, document(rule, parents=EDGE)) == valid


NAMES = st.lists(st.sampled_from(["a", "A", "b", "a b", ":b"]), max_size=3)


@QUIET
@given(NAMES, NAMES, NAMES)
def test_one_name_has_one_edit(folder: Path, sets: list[str], adds: list[str], gone: list[str]) -> None:
    """Lists are maps by name as it is spelled; one name, however it is spelled, has one action."""
    lower = [{name.lower() for name in names} for names in (sets, adds, gone)]
    valid = all(len(set(names)) == len(names) for names in (sets, adds)) and len(lower[2]) == len(gone)
    valid &= not (lower[0] & lower[1] or lower[0] & lower[2] or lower[1] & lower[2])
    valid &= all(re.fullmatch("[A-Za-z]+", name) for name in (*sets, *adds, *gone))
    edit = {
        "set": [{"name": name, "value": "1"} for name in sets],
        "add": [{"name": name, "value": "1"} for name in adds],
        "remove": gone,
    }
    rule = {"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": edit}], **to()}
    assert accepted(folder, document(rule, parents=EDGE)) == valid


@QUIET
@given(NAMES, st.sampled_from(["headers", "queryParams"]))
def test_a_name_is_matched_once_in_one_spelling(folder: Path, names: list[str], key: str) -> None:
    valid = len(set(names)) == len(names) and all(re.fullmatch("[A-Za-z]+", name) for name in names)
    rule = {"matches": [{key: [{"name": name, "value": "1"} for name in names]}], **to()}
    assert accepted(folder, document(rule, parents=EDGE)) == valid


AUTH = {"backendRef": {"name": "auth", "port": 80}}


@pytest.mark.parametrize("parents", [EDGE, [parent()]])
@pytest.mark.parametrize(
    ("rules", "kind", "message"),
    [
        ([{"backendRefs": [{"name": "a"}]}], "HTTPRoute", "backendRefs[0]: a Service is called at a port: key 'port'"),
        ([{"backendRefs": [{"name": "a"}]}], "GRPCRoute", "backendRefs[0]: a Service is called at a port: key 'port'"),
        (
            [{"name": "a", **to()}, {"name": "a", **to()}],
            "HTTPRoute",
            "rules[1].name: rules[0] has the name 'a' already",
        ),
        (
            [to(filters=[{"type": "URLRewrite"}])],
            "HTTPRoute",
            "backendRefs[0].filters[0]: URLRewrite has the one key of its name",
        ),
        (
            [{"filters": [{"type": "ExternalAuth", "externalAuth": {**AUTH, "protocol": "HTTP"}}], **to()}],
            "HTTPRoute",
            "filters[0].externalAuth: protocol HTTP has the key 'http' beside it",
        ),
        (
            [
                {
                    "filters": [
                        {
                            "type": "ExternalAuth",
                            "externalAuth": {"backendRef": {"name": "a"}, "protocol": "GRPC", "grpc": {}},
                        }
                    ],
                    **to(),
                }
            ],
            "HTTPRoute",
            "filters[0].externalAuth.backendRef: a Service is called at a port",
        ),
        ([{"matches": [{"method": {}}], **to()}], "GRPCRoute", "names neither a service nor a method"),
        (
            [{"matches": [{"method": {"service": "a/b"}}], **to()}],
            "GRPCRoute",
            "service: 'a/b' is not the name of a gRPC",
        ),
        ([{"matches": [{"headers": [{"name": "a", "value": ""}]}], **to()}], "HTTPRoute", "headers[0].value: is empty"),
    ],
)
def test_what_is_invalid_is_refused_whichever_parents_it_has(
    folder: Path, parents: list[dict[str, Any]], rules: list[dict[str, Any]], kind: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(folder, document(*rules, kind=kind, parents=parents))


def test_a_time_of_creation_that_is_none_is_refused(folder: Path) -> None:
    one = document(to())
    one["metadata"]["creationTimestamp"] = "yesterday"
    with pytest.raises(
        ConfigError, match=r"metadata\.creationTimestamp: 'yesterday' is not a time like 2024-05-01T12:00:00Z"
    ):
        read(folder, one)
    one["metadata"]["creationTimestamp"] = None
    assert read(folder, one).routes


# The documents of the project itself


def documents(place: str, ours: bool) -> list[Any]:
    """Returns the documents of some files: those of the kinds that we read, or the others."""
    return [
        pytest.param(one, id=f"{path.relative_to(PEERS)}[{number}]")
        for path in sorted(PEERS.glob(place))
        for number, one in enumerate(yaml.safe_load_all(path.read_text()))
        if one is not None and (one["kind"] in ("HTTPRoute", "GRPCRoute")) is ours
    ]


@THERE
@pytest.mark.parametrize("one", documents("invalid/**/*.yaml", True))
def test_the_examples_of_invalid_documents_are_refused_with_a_line_and_a_key(folder: Path, one: Document) -> None:
    with pytest.raises(ConfigError) as caught:
        read(folder, one)
    for problem in caught.value.problems:
        assert problem.file.endswith("a.yaml")
        assert problem.line > SIDECAR.count("\n") + 1
        assert re.match(r"spec\.(rules|hostnames)\[\d\]\S*: ", problem.message)


@THERE
@pytest.mark.parametrize("one", documents("conformance/*.yaml", True))
def test_a_valid_document_for_gateways_is_none_of_ours_and_says_so(folder: Path, one: Document) -> None:
    model = read(folder, one)
    assert model.routes == ()
    (warning,) = model.warnings
    assert warning.message.startswith(NOTHING)


@THERE
@pytest.mark.parametrize("one", documents("conformance/**/*.yaml", False))
def test_a_document_of_another_kind_is_refused_by_its_kind(folder: Path, one: Document) -> None:
    with pytest.raises(ConfigError, match=rf"kind: unknown kind '{one['kind']}'"):
        read(folder, one)


MESH = SIDECAR.replace("orders", "echo").replace("namespace: shop", "namespace: gateway-conformance-mesh")
ECHO = ("echo-v1", "echo-v2", "echo-v3")


@THERE
@pytest.mark.parametrize("one", documents("conformance/mesh/*.yaml", True))
def test_a_document_for_a_mesh_is_read_for_every_port_and_refused_for_one(folder: Path, one: Document) -> None:
    (ref,) = one["spec"]["parentRefs"]
    if "port" in ref:
        with pytest.raises(ConfigError, match=r"spec.parentRefs\[0\].port: a route holds for every port"):
            read(folder, one, sidecar=MESH, upstreams=ECHO)
    everywhere = {**one, "spec": {**one["spec"], "parentRefs": [{**ref, "port": None}]}}
    del everywhere["spec"]["parentRefs"][0]["port"]
    found = read(folder, everywhere, sidecar=MESH, upstreams=ECHO)
    side = "inbound" if ref["name"] == "echo" else "outbound"
    assert [route.spec.direction for route in found.routes] == [side] * len(one["spec"]["rules"])
    assert found.warnings == ()


@THERE
def test_requests_of_the_mesh_conformance_suite_go_where_it_expects_them(folder: Path) -> None:
    (one,) = yaml.safe_load_all((PEERS / "conformance/mesh/httproute-matching.yaml").read_text())
    del one["spec"]["parentRefs"][0]["port"]
    found = read(folder, one, sidecar=MESH, upstreams=ECHO)
    expected = {
        ("/", ""): 0,
        ("/example", ""): 0,
        ("/", "one"): 0,
        ("/v2", ""): 1,
        ("/v2/example", ""): 1,
        ("/", "two"): 1,
        ("/v2/", ""): 1,
        ("/v2example", ""): 0,
        ("/foo/v2/example", ""): 0,
    }
    requests = [{"path": path, "headers": [("version", version)] if version else []} for path, version in expected]
    name = "gateway-conformance-mesh/mesh-matching[{}]".format
    assert deciding(found, requests) == [name(rule) for rule in expected.values()]
