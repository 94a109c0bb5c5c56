"""Values of environment variables show by their names wherever operators look, and by their content nowhere."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.net import wait_for
from tests.support.sidecar import Document, Sidecar, route, upstream

SECRET = "s3cr3t-of-the-environment"
ENVIRONMENT = {"TOKEN": SECRET, "KEY": f"{SECRET}-key"}
POLICIES = {"headers": {"request": {"set": {"authorization": "Bearer ${TOKEN}"}}}}
KEYED = [{"path": {"prefix": "/keyed"}, "headers": {"x-key": "${KEY}"}}]
DENIED = {"authorization": {"allow": [{"headers": {"x-pass": ["${TOKEN}", "a", "${TOKEN:-b}*"]}}]}}
DOCUMENTS: tuple[Document, ...] = (
    route("keyed", matches=KEYED, policies=POLICIES),
    route("moved", matches=[{"path": {"exact": "/moved"}}], redirect={"host": "${TOKEN}.example"}),
    route(
        "fixed",
        matches=[{"path": {"exact": "/fixed"}}],
        directResponse={"status": 200, "body": "the token is ${TOKEN}", "headers": {"x-token": "${TOKEN}"}},
    ),
    route("denied", matches=[{"path": {"prefix": "/denied"}}], policies=DENIED),
    route("rest", policies=POLICIES),
)


def admin(proxy: Sidecar, path: str) -> str:
    with urlopen(f"http://{proxy.admin[0]}:{proxy.admin[1]}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def l7proxy(*args: str, cwd: Path, env: dict[str, str] = ENVIRONMENT) -> str:
    """Returns all that a verb prints."""
    command = [sys.executable, "-m", "l7proxy", *args]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **ENVIRONMENT}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_the_admin_api_shows_names(workers: int, sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(*DOCUMENTS, app=app.address, env=ENVIRONMENT, workers=workers)
    assert proxy.get("/").status == 200
    assert app.requests[-1]["authorization"] == f"Bearer {SECRET}"
    assert proxy.get("/keyed", x_key=f"{SECRET}-key").status == 200
    assert proxy.get("/fixed").body.decode() == f"the token is {SECRET}"
    questions = [f"/explain?url={path}" for path in ("/", "/keyed", "/moved", "/fixed", "/denied")]
    answers = {path: admin(proxy, path) for path in ("/config", "/routes", "/clusters", "/failures", *questions)}
    for path, text in answers.items():
        assert SECRET not in text, path
    assert "Bearer ${TOKEN}" in answers["/config"]
    assert "${KEY}" in answers["/routes"]
    assert ["authorization", "Bearer ${TOKEN}"] in json.loads(answers["/explain?url=/"])["upstream"]["headers"]
    assert "header x-key = '${KEY}' does not hold" in answers["/explain?url=/keyed"]
    assert "${TOKEN}.example" in answers["/explain?url=/moved"]
    assert json.loads(answers["/explain?url=/fixed"])["answer"]["body"] == "the token is ${TOKEN}"


def test_a_rejected_configuration_is_told_with_names(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(route("rest", policies=POLICIES), app=serve().address, env=ENVIRONMENT)
    broken = route("broken", policies={"timeout": {"request": "${TOKEN}"}})
    proxy.configure(broken)
    wait_for(lambda: "configuration rejected" in proxy.process.stderr, 10, lambda: proxy.process.stderr)
    assert SECRET not in proxy.process.stderr
    assert "'${TOKEN}'" in proxy.process.stderr


WRONG: list[dict[str, Any]] = [
    {"policies": {"timeout": {"request": "${TOKEN}"}}},
    {"policies": {"rateLimit": {"requests": "${TOKEN}"}}},
    {"policies": {"rateLimit": {"requests": 1, "by": "${TOKEN}"}}},
    {"policies": {"retry": {"on": ["${TOKEN}"]}}},
    {"policies": {"authorization": {"allow": [{"identities": ["spiffe://${TOKEN}"]}]}}},
    {"policies": {"authorization": {"allow": [{"paths": ["/a//${TOKEN}"]}]}}},
    {"policies": {"authorization": {"allow": [{"sourceIPs": ["${TOKEN}"]}]}}},
    {"policies": {"authorization": {"mode": "${TOKEN}"}}},
    {"policies": {"headers": {"request": {"set": {"x": " ${TOKEN}\n"}}}}},
    {"policies": "${TOKEN}"},
    {"matches": [{"path": {"regex": "/(${TOKEN}"}}]},
    {"matches": [{"path": {"exact": "${TOKEN}"}}]},
    {"matches": [{"path": {"exact": "/${TOKEN}?"}}]},
    {"matches": [{"headers": {"x": {"regex": "[${TOKEN}"}}}]},
    {"hosts": ["*${TOKEN}"]},
    {"hosts": ["${TOKEN}/"]},
    {"upstream": "${TOKEN}", "redirect": {"host": "a b ${TOKEN}"}},
    {"direction": "${TOKEN}"},
    {"rewrite": {"prefix": "${TOKEN}"}},
]


@pytest.mark.parametrize("spec", WRONG, ids=str)
def test_a_mistake_is_told_with_names(spec: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    sidecar = {
        "apiVersion": "l7proxy.io/v1", "kind": "Sidecar", "metadata": {"name": "a"},
        "spec": {"inbound": {"app": "http://127.0.0.1:1"}},
    }  # fmt: skip
    document = {"apiVersion": "l7proxy.io/v1", "kind": "Route", "metadata": {"name": "r"}, "spec": spec}
    path.write_text(f"{json.dumps(sidecar)}\n---\n{json.dumps(document)}\n")
    told = l7proxy("check", str(path), cwd=tmp_path)
    assert "a.yaml:3: " in told
    assert SECRET not in told
    assert "${TOKEN}" in told


NUMBERS = ("status", "bytes_in", "bytes_out", "duration_ms", "queue_ms", "connect_ms", "first_byte_ms", "attempts")
TEXTS = ("flags", "code", "detail", "upstream", "endpoint", "peer", "request_id", "trace_id", "config_version")
LINE: dict[str, Any] = {
    **dict.fromkeys(NUMBERS, 200),
    **dict.fromkeys(TEXTS, ""),
    "time": "2026-11-24T02:00:01.123Z",
    "event": "request",
    "direction": "inbound",
    "method": "GET",
    "scheme": "http",
    "protocol": "1.1",
    "grpc_status": None,
    "source": "127.0.0.1",
}


def write(path: Path, *documents: Document) -> str:
    path.write_text("---\n".join(json.dumps(document) + "\n" for document in documents))
    return str(path)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_verbs_print_shows_names(options: Sequence[str], tmp_path: Path) -> None:
    spec = {"inbound": {"app": "http://127.0.0.1:1"}, "outbound": {}}
    own = {"apiVersion": "l7proxy.io/v1", "kind": "Sidecar", "metadata": {"name": "a"}, "spec": spec}
    app = upstream("app", ("127.0.0.1", 1))
    old = write(tmp_path / "old.yaml", own, app, *DOCUMENTS)
    other = {"headers": {"request": {"set": {"authorization": "Basic ${KEY}"}}, "response": {"set": {"x": "${KEY}"}}}}
    new = write(tmp_path / "new.yaml", own, app, *DOCUMENTS[:-1], route("rest", policies=other))
    for target in ("/", "/keyed", "/moved", "/fixed", "/denied"):
        told = l7proxy("explain", "-c", old, *options, "GET", target, cwd=tmp_path)
        assert SECRET not in told
        assert ("${" in told) is (target != "/denied")
    line = json.dumps({**LINE, "authority": "a", "path": "/", "route": "rest"})
    told = l7proxy("why", "--log", line, "--against", old, *options, cwd=tmp_path)
    assert SECRET not in told
    assert "Bearer ${TOKEN}" in told
    told = l7proxy("diff", *options, old, new, cwd=tmp_path)
    assert SECRET not in told
    assert "Bearer ${TOKEN}" in told
    assert "Basic ${KEY}" in told


def test_a_failing_policy_test_shows_names(tmp_path: Path) -> None:
    spec = {"inbound": {"app": "http://127.0.0.1:1"}}
    own = {"apiVersion": "l7proxy.io/v1", "kind": "Sidecar", "metadata": {"name": "a"}, "spec": spec}
    config = write(tmp_path / "config.yaml", own, *DOCUMENTS)
    cases = [
        {"request": {"url": "/"}, "expect": {"sent": {"headers": {"authorization": "Bearer ${TOKEN}"}}}},
        {"request": {"url": "/fixed"}, "expect": {"headers": {"x-token": "other"}}},
        {"request": {"url": "/denied"}, "expect": {"allowed": True}},
    ]
    invariants = [{"name": "never keyed", "never": {"paths": ["/keyed"]}}]
    (tmp_path / "cases.yaml").write_text(json.dumps({"cases": cases, "invariants": invariants}))
    told = l7proxy("test", "-c", config, str(tmp_path / "cases.yaml"), cwd=tmp_path)
    assert SECRET not in told
    assert "it is '${TOKEN}'" in told
    assert told.count("FAILED") == 3
