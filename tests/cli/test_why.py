"""`l7proxy why` as operators run it, against real sidecars and against their logs of another day."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_check import l7proxy
from tests.conftest import StartServer, StartSidecar
from tests.support.net import wait_for
from tests.support.server import answering
from tests.support.sidecar import Sidecar, route, upstream

CLOSED = {"authorization": {"deny": [{"name": "no-secrets", "paths": ["/v1/secret"]}]}, "timeout": {"request": "5s"}}
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


def why(proxy: Sidecar, *arguments: str) -> list[str]:
    """The lines of the answer."""
    status, out, err = l7proxy("why", "--admin", f"127.0.0.1:{proxy.admin[1]}", *arguments, folder=proxy.folder)
    assert (status, err) == (0, "")
    return out.splitlines()


def refused(folder: Path, *arguments: str) -> str:
    status, out, err = l7proxy("why", *arguments, folder=folder)
    assert (status, out) == (1, "")
    return err.strip()


def steady(lines: list[str]) -> list[str]:
    """The lines with what is another each time made the same."""
    text = "\n".join(lines)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    text = re.sub(r"\b[0-9a-f]{32}\b", "ID", text)
    text = re.sub(r"configuration [0-9a-f]{12}", "configuration VERSION", text)
    return re.sub(r"\b[\d.]+ ms", "0 ms", text).splitlines()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_denial_is_told_from_the_request_to_its_rule(sidecar: StartSidecar, serve: StartServer, workers: int) -> None:
    proxy = sidecar(route("read", policies=CLOSED), app=serve().address, workers=workers)
    answer = proxy.get("/v1/secret")
    lines = why(proxy, answer["x-request-id"])
    rule = next(line for line in lines if line.startswith("policy    authorization"))
    where = rule.rpartition(", ")[2]
    assert where.startswith(f"{proxy.config}:")
    assert steady(lines) == [
        "request   GET http://test/v1/secret (inbound, HTTP/1.1)",
        "from      a caller without a certificate at 127.0.0.1",
        "ended     TIME, request id ID, configuration VERSION",
        f"answer    403 denied (UAEX): rule no-secrets at {where}",
        "took      0 ms, 0 bytes in, 45 out",
        "host      the host matches '*'",
        f"route     read (/), {lines[6].rpartition(', ')[2]}",
        f"policy    authorization  denied: no-secrets, {where}",
        f"policy    timeout        not reached, {lines[8].rpartition(', ')[2]}",
    ]
    [told] = map(json.loads, why(proxy, "--json", answer["x-request-id"]))
    assert (told["request"]["code"], told["explanation"]["allowed"]) == ("denied", False)
    [listed] = why(proxy)
    assert re.fullmatch(r"\S+Z  403 denied +GET test/v1/secret  127.0.0.1  [0-9a-f]{32}", listed)


def test_a_retried_request_is_told_attempt_by_attempt(sidecar: StartSidecar, serve: StartServer) -> None:
    busy, fine = serve(answering(BUSY)), serve()
    proxy = sidecar(
        upstream("pool", busy.address, fine.address, balance="roundRobin"),
        route("retried", upstream="pool", policies={"retry": {"attempts": 1, "on": ["503"]}}),
    )

    def retried() -> str | None:
        # Among all lines: the log may be some requests behind, and an endpoint that failed often is not tried again.
        assert proxy.get().status == 200
        return next((line["request_id"] for line in proxy.log_lines() if line["attempts"] == 2), None)

    lines = why(proxy, wait_for(retried, 10, "no retry"))
    first, second = (line for line in lines if line.startswith("attempt"))
    assert first.startswith(f"attempt 1 pool at 127.0.0.1:{busy.port}: 503 after ")
    assert first.endswith("tried again for 503")
    assert second.startswith(f"attempt 2 pool at 127.0.0.1:{fine.port}: 200 after ")


def test_a_log_line_is_explained_by_the_version_that_it_names(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(route("old", policies=CLOSED), app=serve().address)
    proxy.get("/v1/secret")
    proxy.reconfigure(route("new"))
    line = proxy.log_lines()[0]
    lines = why(proxy, "--log", json.dumps(line))
    assert lines[0] == "request   GET http://test/v1/secret (inbound, HTTP/1.1)"
    assert any(text.startswith("route     old (/), ") for text in lines)
    assert not any(text.startswith("note") for text in lines)
    lines = why(proxy, "--log", json.dumps({**line, "config_version": "0123456789ab"}))
    assert lines[-1] == "note      configuration 0123456789ab is no longer kept: only what was taken down is told"


def test_a_log_line_cannot_command_a_terminal(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address)
    lines = why(proxy, "--log", json.dumps({**LINE, "path": "/\x1b[2J", "config_version": "0123456789ab"}))
    assert lines[0] == "request   GET https://orders.svc/\\x1b[2J (inbound, HTTP/1.1)"


def test_lines_of_another_day_are_explained_by_another_commit(tmp_path: Path) -> None:
    def write(name: str, rules: str) -> str:
        (tmp_path / name).write_text(
            "apiVersion: l7proxy.io/v1\nkind: Sidecar\nmetadata: {name: a}\n"
            "spec: {inbound: {app: 'http://127.0.0.1:1', tls: {mode: STRICT, cert: no.crt, key: no.key, ca: no.ca}}}\n"
            "---\napiVersion: l7proxy.io/v1\nkind: Route\nmetadata: {name: read}\n"
            f"spec: {{policies: {{authorization: {rules}}}}}\n"
        )
        status, out, _ = l7proxy("explain", "-c", name, "GET", "/", "--json", folder=tmp_path)
        assert status == 0
        return json.loads(out)["version"]

    old = write("old.yaml", "{allow: [{name: shop, namespaces: [shop]}]}")
    write("new.yaml", "{allow: [{name: shop, namespaces: [shop, ops]}]}")
    line = {
        **LINE,
        "peer": "spiffe://demo/ns/ops/sa/nightly",
        "detail": "no allow rule matches, at old.yaml:9",
        "config_version": old,
    }
    lines = f"{json.dumps(line)}\n\n{json.dumps({**line, 'peer': 'spiffe://demo/ns/shop/sa/web'})}\n"
    command = [sys.executable, "-m", "l7proxy", "why", "--log", "-", "--against"]
    runs = {
        name: subprocess.run([*command, name], cwd=tmp_path, input=lines, capture_output=True, text=True, timeout=30)
        for name in ("old.yaml", "new.yaml")
    }
    assert [(done.returncode, done.stderr) for done in runs.values()] == [(0, "")] * 2
    first, second = runs["old.yaml"].stdout.split("\n\n")
    assert "policy    authorization  denied: no allow rule, old.yaml:9" in first.splitlines()
    assert "note" not in first
    assert "as far as it is known it would be allowed" in second
    assert f"served by {old}" in runs["new.yaml"].stdout
    assert "policy    authorization  allowed: shop, new.yaml:9" in runs["new.yaml"].stdout


LINE = {
    "time": "2026-11-24T02:00:01.123Z",
    "event": "request",
    "direction": "inbound",
    "method": "GET",
    "scheme": "https",
    "authority": "orders.svc",
    "path": "/v1/orders",
    "protocol": "1.1",
    "route": "read",
    "status": 403,
    "grpc_status": None,
    "flags": "UAEX",
    "code": "denied",
    "bytes_in": 0,
    "bytes_out": 45,
    "duration_ms": 0.3,
    "queue_ms": None,
    "connect_ms": None,
    "first_byte_ms": None,
    "upstream": "",
    "endpoint": "",
    "attempts": 0,
    "source": "10.0.0.7",
    "request_id": "1",
    "trace_id": "2",
    "detail": "",
    "peer": "",
}


def test_what_cannot_be_told_is_one_clear_line(sidecar: StartSidecar, serve: StartServer, tmp_path: Path) -> None:
    proxy = sidecar(app=serve().address)
    at = f"127.0.0.1:{proxy.admin[1]}"
    assert refused(tmp_path, "nobody", "--admin", at) == (
        f"l7proxy why: the sidecar at {at} remembers no request nobody"
    )
    for line in ("[2026-11-24] GET /", '{"time": "now"}', ""):
        assert refused(tmp_path, "--log", line, "--admin", at).startswith(
            "l7proxy why: this is no line of the JSON access log: "
        )
    assert "nothing answers" in refused(tmp_path, "x", "--admin", "127.0.0.1:1")
    assert refused(tmp_path, "--log", json.dumps({**LINE, "config_version": ""}), "--against", "no.yaml") == (
        "no.yaml: cannot be read: No such file or directory"
    )


@pytest.mark.parametrize("arguments", [("x", "--log", "y"), ("--against", "a.yaml"), ("x", "--against", "a.yaml")])
def test_arguments_that_do_not_go_together_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert l7proxy("why", *arguments, folder=tmp_path)[0] == 2
