"""The OpenAPI document of the admin API, held to what a running sidecar answers."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.conftest import StartSidecar
from tests.identity.pki import ORDERS, Authority
from tests.support.net import wait_for
from tests.support.sidecar import Sidecar, route, upstream
from tests.test_admin import Answer, ask

ENDINGS = ("/drain", "/quit")
"""What is asked last of all."""


BOUNDS = {"/tap": {"seconds": "0.05"}}
"""What ends an answer that would go on."""


class Operation(NamedTuple):
    path: str
    method: str
    says: dict[str, Any]


class Document:
    """The document as its readers use it; what it does not mention is not allowed."""

    def __init__(self, proxy: Sidecar) -> None:
        self.text = ask(proxy.admin, "/openapi.json").json
        self.strict = _strict(self.text)
        self.operations = [
            Operation(path, method.upper(), says)
            for path, methods in self.strict["paths"].items()
            for method, says in methods.items()
        ]

    def problems(self, operation: Operation, answer: Answer) -> list[str]:
        """Returns what in an answer is not as the document says."""
        said = operation.says["responses"].get(str(answer.status))
        if said is None:
            return [f"status {answer.status}"]
        content = said["content"].get(answer.headers["content-type"])
        content = content or said["content"].get(answer.headers["content-type"].partition(";")[0])
        if content is None:
            return [f"content-type {answer.headers['content-type']}"]
        if "json" not in answer.headers["content-type"]:
            return [] if content["schema"] == {"type": "string"} else ["a schema for text"]
        schema = {**content["schema"], "components": self.strict["components"]}
        lines = answer.body.splitlines() if "ndjson" in answer.headers["content-type"] else [answer.body]
        validator = Draft202012Validator(schema)
        return [error.message for line in lines for error in validator.iter_errors(json.loads(line))]


def _strict(value: Any) -> Any:
    if isinstance(value, list):
        return [_strict(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _strict(item) for key, item in value.items()}
    if isinstance(found.get("properties"), dict):
        found["additionalProperties"] = False
    return found


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def proxy(request: pytest.FixtureRequest, shared_sidecar: StartSidecar, tmp_path_factory: Any) -> Sidecar:
    """A sidecar that has something to tell of everything."""
    folder = tmp_path_factory.mktemp("pki")
    authority = Authority(folder)
    pair = authority.issue("orders", ORDERS)
    proxy = shared_sidecar(
        route("orders", hosts=["orders.example.com"], upstream="payments", policies={"timeout": {"request": "2s"}}),
        upstream("payments", ("127.0.0.1", 1)),
        inbound={
            "tls": {"mode": "PERMISSIVE", "cert": str(pair.cert), "key": str(pair.key), "ca": str(authority.file)}
        },
        workers=request.param,
    )
    wait_for(lambda: ask(proxy.admin, "/ready").status == 200, 30)
    assert proxy.get("/v1", host="orders.example.com").status == 503
    return proxy


@pytest.fixture(scope="module")
def document(proxy: Sidecar) -> Document:
    return Document(proxy)


def test_it_is_an_openapi_document(document: Document) -> None:
    assert document.text["openapi"].startswith("3.1")
    assert [str(error) for error in OpenAPIV31SpecValidator(document.text).iter_errors()] == []


def test_it_tells_of_every_path(proxy: Sidecar, document: Document) -> None:
    index = ask(proxy.admin, "/").json
    assert {path: sorted(method.upper() for method in says) for path, says in document.text["paths"].items()} == index


def test_everything_is_described(document: Document) -> None:
    for operation in document.operations:
        assert operation.says["summary"].endswith("."), operation
        for parameter in operation.says["parameters"]:
            assert parameter["description"].endswith("."), (operation.path, parameter)


def queries(operation: Operation) -> Iterator[str]:
    """The query with what is required, and one more with each of the other examples and choices."""
    required = dict(BOUNDS.get(operation.path, {}))
    parameters = [parameter for parameter in operation.says["parameters"] if parameter["name"] not in required]
    for parameter in parameters:
        if parameter["required"]:
            required[parameter["name"]] = _examples(parameter["schema"])[0]
    yield urlencode(required)
    for parameter in parameters:
        for value in _examples(parameter["schema"]):
            yield urlencode({**required, parameter["name"]: value}, doseq=True)


def _examples(schema: dict[str, Any]) -> list[Any]:
    return [*schema.get("examples", ()), *schema.get("enum", ()), *([schema["default"]] if "default" in schema else ())]


def test_every_answer_is_as_it_says(proxy: Sidecar, document: Document) -> None:
    for operation in document.operations:
        if operation.path in ENDINGS:
            continue
        for query in queries(operation):
            url = f"{operation.path}?{query}"
            answer = ask(proxy.admin, url, operation.method)
            assert (answer.status, document.problems(operation, answer)) == (200, []), url
            if operation.method == "GET":
                head = ask(proxy.admin, url, "HEAD")
                assert (head.status, head.body) == (200, b""), url
                assert head.headers["content-type"] == answer.headers["content-type"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_query_gets_what_it_does_not_say(proxy: Sidecar, document: Document, data: st.DataObject) -> None:
    operation = data.draw(
        st.sampled_from([operation for operation in document.operations if operation.path not in ENDINGS])
    )
    known = {parameter["name"]: _examples(parameter["schema"]) for parameter in operation.says["parameters"]}
    pairs = list(BOUNDS.get(operation.path, {}).items())
    known = {name: values for name, values in known.items() if name not in dict(pairs)}
    for name in data.draw(st.lists(st.sampled_from([*known, "other"]), max_size=4)):
        values = st.text(max_size=20) | st.sampled_from(["/", "-1", "1e999", *map(str, known.get(name, ()))])
        pairs.append((name, data.draw(values)))
    answer = ask(proxy.admin, f"{operation.path}?{urlencode(pairs)}", operation.method)
    assert document.problems(operation, answer) == [], pairs
    if known and "other" in dict(pairs):
        assert answer.status == 400


def test_no_other_method_is_served(proxy: Sidecar, document: Document) -> None:
    for path, says in document.text["paths"].items():
        allowed = {method.upper() for method in says}
        allowed |= {"HEAD"} if "GET" in allowed else set()
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"):
            if method not in allowed:
                answer = ask(proxy.admin, path, method)
                assert (answer.status, set(answer.headers["allow"].split(", "))) == (405, allowed), (method, path)


def test_what_a_browser_could_be_made_to_send_is_refused_as_it_says(proxy: Sidecar, document: Document) -> None:
    for operation in document.operations:
        elsewhere = ask(proxy.admin, operation.path, operation.method, host="evil.example")
        assert (elsewhere.status, document.problems(operation, elsewhere)) == (421, [])
        if operation.method == "POST":
            page = ask(proxy.admin, operation.path, operation.method, origin="http://evil.example")
            assert (page.status, document.problems(operation, page)) == (403, [])


def test_a_drain_and_what_it_changes_are_as_it_says(proxy: Sidecar, document: Document) -> None:
    operations = {operation.path: operation for operation in document.operations}
    for path, method, status in (
        ("/drain", "POST", 200),
        ("/ready", "GET", 503),
        ("/live", "GET", 200),
        ("/quit", "POST", 200),
    ):
        answer = ask(proxy.admin, path, method)
        assert (answer.status, document.problems(operations[path], answer)) == (status, [])
