"""The schema as an editor uses it: with a validator that knows nothing of our code."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from l7proxy.config.reference import reference
from l7proxy.config.scalars import plain
from l7proxy.config.schema import schema
from l7proxy.config.yaml import chunks, parse
from l7proxy.core.slices import finish
from tests.config.test_load import SIDECAR, document, route, upstream

ROOT = Path(__file__).parents[2]
VALIDATOR = jsonschema.Draft7Validator(schema())


def problems(text: str) -> list[str]:
    """Reads the text as editors do, by YAML 1.2: in 1.1 the key `on` would be the boolean true."""
    found = [finish(parse(chunk, "f", {})) for chunk in chunks([text.encode()], "f") if chunk]
    documents = [plain(node) for node in found if node]
    assert documents
    return [error.message for found in documents for error in VALIDATOR.iter_errors(found)]


def test_the_schema_is_a_schema():
    jsonschema.Draft7Validator.check_schema(json.loads(json.dumps(schema())))


FULL = route(
    "r",
    """
  direction: inbound
  hosts: [a.org, "*.b.org", "*"]
  matches:
    - path: {prefix: /v1}
      methods: [GET]
      headers: {x-a: blue, x-b: {regex: "a.*"}, x-c: {present: false}}
      query: {q: "1"}
  split: [{upstream: a, weight: 90}, {upstream: b, weight: 10}]
  rewrite: {prefix: /v2, host: b}
  path: {forward: original}
  policies:
    rateLimit: {requests: 100, per: 1s, by: identity}
    timeout: {request: 2s, perTry: 250ms}
    retry: {attempts: 2, on: [connect-failure, "503"]}
    headers: {request: {set: {x-a: b}}}
""",
)


@pytest.mark.parametrize(
    "text",
    [
        SIDECAR,
        upstream("u"),
        upstream("u", "{dns: 'a.svc:80', protocol: http2, breakers: {requests: 5}, ejection: {time: 1m}}"),
        upstream("u", "{endpoints: [{address: 'a:1', weight: 5}]}"),
        FULL,
        route("r", "{redirect: {status: 301, host: a.org}}"),
        route("r", "{directResponse: {status: 200, headers: {a: b}, body: text}}"),
        SIDECAR.replace("outbound: {}", "outbound: {listen: '$${IP}:15001'}\n  workers: $${WORKERS}"),
        SIDECAR.replace("outbound: {}", "limits: {headerBlock: 64KiB}\n  timeouts: {header: 5s}"),
    ],
)
def test_what_the_proxy_takes_is_valid(text):
    assert problems(text) == []


@pytest.mark.parametrize(
    "text",
    [
        SIDECAR.replace("inbound", "inbond"),
        SIDECAR.replace("http:", "ftp:"),
        SIDECAR.replace("l7proxy.io/v1", "v1"),
        document("Rote", "r", "{}"),
        upstream("u", "{}"),
        upstream("u", "{endpoints: [], dns: 'a:1'}"),
        upstream("u", "{endpoints: ['10.0.0.1']}"),
        upstream("u", "{endpoints: [{weight: 1}]}"),
        upstream("u", "{dns: 'a:1', connectTimeout: 5}"),
        upstream("u", "{dns: 'a:1', breakers: {requests: 0}}"),
        route("r", "{upstream: a, split: [{upstream: b}]}"),
        route("r", "{matches: [{path: {prefix: /a, exact: /b}}]}"),
        route("r", "{matches: [{path: {}}]}"),
        route("r", "{matches: [{path: {prefix: a}}]}"),
        route("r", "{hosts: ['a.*']}"),
        route("r", "{direction: both}"),
        route("r", "{policies: {ratelimit: {}}}"),
        route("r", "{policies: {rateLimit: {}}}"),
        route("r", "{policies: {timeout: {request: soon}}}"),
        route("a b", "{}"),
        "apiVersion: l7proxy.io/v1\nkind: Route\n",
    ],
)
def test_what_the_proxy_refuses_is_not_valid(text):
    assert problems(text)


def leaves(found: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Returns every property of every definition."""
    result = []
    for name, definition in found["definitions"].items():
        result += [(f"{name}.{key}", value) for key, value in definition["properties"].items()]
    return result


def test_every_key_is_described():
    assert [path for path, value in leaves(schema()) if not value.get("description")] == []


def test_defaults_are_written_as_yaml_writes_them():
    keys = dict(leaves(schema()))
    assert keys["Timeouts.header"]["default"] == "10s"
    assert keys["Timeouts.streamIdle"]["default"] == "5m"
    assert keys["Limits.headerBlock"]["default"] == "60KiB"
    assert keys["Route.hosts"]["default"] == ["*"]
    assert keys["Route.matches"]["default"] == [{"path": {"prefix": "/"}}]
    assert "default" not in keys["Sidecar.inbound"]


def test_the_example_policies_are_valid():
    for file in sorted((ROOT / "policies").glob("*/*.yaml")):
        assert problems(file.read_text()) == [], file


def test_the_reference_is_current():
    assert (ROOT / "docs/configuration.md").read_text() == reference(), (
        "run: l7proxy schema --format markdown > docs/configuration.md"
    )


def test_every_link_of_the_reference_leads_to_a_heading():
    text = reference()
    headings = {
        line.lstrip("# ").lower().replace(".", "").replace(" ", "-") for line in text.splitlines() if line[:1] == "#"
    }
    targets = {part.split(")")[0] for part in text.split("](#")[1:]}
    assert targets - headings == set()
