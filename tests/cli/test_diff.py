"""`l7proxy diff` as whoever reviews a change of a configuration runs it."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from l7proxy.__main__ import main
from tests.cli.test_check import l7proxy
from tests.config.test_load import SIDECAR, route, upstream
from tests.conftest import StartServer, StartSidecar
from tests.support import sidecar as documents

ROOT = Path(__file__).parents[2]
GUARDED = "{allow: [{name: shop, namespaces: [shop]}, {name: ops, namespaces: [ops]}]}"
OLD = (
    SIDECAR
    + upstream("pay")
    + route("orders", f"{{matches: [{{path: {{prefix: /orders}}}}], policies: {{authorization: {GUARDED}}}}}")
    + route("read", "{matches: [{path: {prefix: /read}}], policies: {timeout: {request: 2s}}}")
    + route("old", "{matches: [{path: {exact: /old}}], redirect: {status: 301, path: /read}}")
    + route("pay", "{direction: outbound, hosts: [pay.svc], upstream: pay}")
)
SHOP, OPS = "spiffe://demo/ns/shop/sa/web", "spiffe://demo/ns/ops/sa/cron"


def line(path: str, peer: str = "", **more: Any) -> str:
    """A line of the access log of a request that was answered 200."""
    record = {
        "time": "2026-11-24T02:00:01.123Z",
        "event": "request",
        "direction": "inbound",
        "method": "GET",
        "scheme": "http",
        "authority": "orders.svc",
        "path": path,
        "protocol": "1.1",
        "route": path.split("/")[1],
        "status": 200,
        "grpc_status": None,
        "flags": "",
        "code": "",
        "detail": "",
        "bytes_in": 0,
        "bytes_out": 0,
        "duration_ms": 0.3,
        "queue_ms": None,
        "connect_ms": None,
        "first_byte_ms": None,
        "upstream": "app",
        "endpoint": "",
        "attempts": 1,
        "peer": peer,
        "source": "10.0.3.7",
        "request_id": "",
        "trace_id": "",
        "config_version": "0123456789ab",
    }
    return json.dumps({**record, **more})


def at(text: str, part: str) -> int:
    """The line of a configuration that holds a text."""
    return text[: text.index(part)].count("\n") + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "old.yaml").write_text(OLD)
    return tmp_path


def diff(folder: Path, new: str, *lines: str, options: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    """The exit status and the lines of the report, in which `old` became `new` and the log holds `lines`."""
    (folder / "new.yaml").write_text(new)
    (folder / "access.log").write_text("".join(f"{text}\n" for text in lines))
    status, out, err = l7proxy("diff", "old.yaml", "new.yaml", "--replay", "access.log", *options, folder=folder)
    assert err == ""
    return status, out.splitlines()


def changes(folder: Path, new: str, *lines: str) -> list[dict]:
    return json.loads("\n".join(diff(folder, new, *lines, options=("--json",))[1]))["changes"]


def test_a_stricter_rule_is_told_with_its_lines_on_both_sides_and_fails(folder):
    new = OLD.replace(", {name: ops, namespaces: [ops]}", "").replace(SIDECAR, f"# moved\n{SIDECAR}")
    log = [line("/orders/1", SHOP), line("/orders/1", OPS), line("/orders/2", OPS), line("/orders/1", OPS)]
    status, told = diff(folder, new, *log)
    ask = told.pop(5)
    assert (status, told) == (
        1,
        [
            "allowed -> denied: 2 requests, 3 lines of logs",
            "  request   GET http://orders.svc/orders/1 (inbound), and 1 like it",
            f"  from      {OPS} at 10.0.3.7",
            f"  old       authorization allowed: ops, old.yaml:{at(OLD, 'name: ops')}",
            f"  new       authorization denied: no allow rule, new.yaml:{at(new, 'allow:')}",
            "",
            "2 of 3 requests in 4 lines of logs change: 2 denied now, 0 allowed now",
        ],
    )
    words = shlex.split(ask)
    assert words[:3] == ["ask", "l7proxy", "explain"]
    assert "authorization  denied: no allow rule" in l7proxy(*words[2:], folder=folder)[1]
    assert diff(folder, new, *log, options=("--allow-grants",))[0] == 1
    assert diff(folder, new, *log, options=("--allow-denials",))[0] == 0


def test_a_laxer_rule_fails_too_unless_it_is_meant(folder):
    new = OLD.replace(f"authorization: {GUARDED}", "timeout: {request: 1s}")
    denied = line("/orders/1", status=403, code="denied")
    status, told = diff(folder, new, denied)
    assert (status, told[0]) == (1, "denied -> allowed: 1 request, 1 line of logs")
    assert told[3:5] == [
        f"  old       authorization denied: no allow rule, old.yaml:{at(OLD, 'allow:')}",
        f"  new       allowed, without authorization, new.yaml:{at(new, 'kind: Route') - 1}",
    ]
    assert diff(folder, new, denied, options=("--allow-denials",))[0] == 1
    assert diff(folder, new, denied, options=("--allow-grants",))[0] == 0


def test_a_request_that_no_route_takes_any_more_is_denied(folder):
    [change] = changes(folder, OLD.replace("prefix: /read", "prefix: /ready"), line("/read/1"))
    assert change["kind"] == "denial"
    assert [(one["what"], one["old"], one["new"]) for one in change["differences"]] == [
        ("decision", "allowed", "404 no_route"),
        ("route", "read", "none"),
    ]


def test_a_connection_that_is_refused_now_is_a_denial(folder):
    strict = "tls: {mode: STRICT, cert: no.crt, key: no.key, ca: no.ca}"
    new = OLD.replace("{app: http://127.0.0.1:8080}", f"{{app: 'http://127.0.0.1:8080', {strict}}}")
    [change] = changes(folder, new, line("/read/1"), line("/orders/1", SHOP))
    assert (change["kind"], change["example"]["url"]) == ("denial", "http://orders.svc/read/1")
    verdict = change["differences"][0]
    assert verdict["new"].startswith("refused: TLS mode STRICT")
    assert verdict["newWhere"] == f"new.yaml:{at(new, 'inbound:')}"


PAY = line("/", authority="pay.svc", direction="outbound", route="pay", upstream="pay")


@pytest.mark.parametrize(
    ("before", "now", "asked", "kind", "differences"),
    [
        ("name: read}", "name: get}", line("/read"), "route", [("route", "read", "get")]),
        ("[10.0.0.1:80]", "[10.0.0.2:80]", PAY, "upstream",
         [("upstream.endpoints", '["10.0.0.1:80"]', '["10.0.0.2:80"]')]),
        ("upstream: pay}", "split: [{upstream: pay, weight: 9}, {upstream: app}]}", PAY, "upstream",
         [("upstream", "pay", "pay 9, app 1")]),
        ("upstream: pay}", "upstream: pay, rewrite: {host: b.svc, path: /b}}", PAY, "upstream",
         [("sent host", "pay.svc", "b.svc"), ("sent path", "/", "/b")]),
        ("8080", "8081", line("/read"), "upstream",
         [("upstream.endpoints", '["http://127.0.0.1:8080"]', '["http://127.0.0.1:8081"]')]),
        ("status: 301", "status: 308", line("/old"), "answer", [("answer", "301", "308")]),
        ("path: /read}}", "path: /get}}", line("/old"), "answer",
         [("answer header location", "http://orders.svc/read", "http://orders.svc/get")]),
        ("[10.0.0.1:80]}", "[10.0.0.1:80], connectTimeout: 1s}", PAY, "policy",
         [("upstream.connectTimeout", "5s", "1s")]),
        ("{request: 2s}", "{request: 1m, idle: 1s}", line("/read"), "policy",
         [("timeout.request", "2s", "1m"), ("timeout.idle", "none", "1s")]),
        ("timeout: {request: 2s}", "timeout: {request: 2s}, retry: {attempts: 3}", line("/read"), "policy",
         [("retry.attempts", "2", "3")]),
        ("timeout: {request: 2s}", "timeout: {request: 2s}, rateLimit: {requests: 9, by: identity}", line("/read"),
         "policy", [("rateLimit.requests", "none", "9"), ("rateLimit.per", "none", "1s"),
                    ("rateLimit.by", "none", "identity")]),
        ("timeout: {request: 2s}", "timeout: {request: 2s}, headers: {response: {remove: [server]}}", line("/read"),
         "policy", [("headers.response.remove", "none", '["server"]')]),
        ("timeout: {request: 2s}", "timeout: {request: 2s}, grpcWeb: {}", line("/read"), "policy",
         [("grpcWeb", "none", "applies")]),
        ("timeout: {request: 2s}", "timeout: {request: 2s}, authorization: {mode: SHADOW, allow: []}", line("/read"),
         "policy", [("shadow of authorization", "none", "denied")]),
    ],
)  # fmt: skip
def test_what_else_changes_is_told_and_does_not_fail(folder, before, now, asked, kind, differences):
    assert before in OLD
    [change] = changes(folder, OLD.replace(before, now), asked)
    assert change["kind"] == kind
    assert [(one["what"], one["old"], one["new"]) for one in change["differences"]] == differences
    assert all(one["oldWhere"].startswith("old.yaml:") for one in change["differences"])
    assert diff(folder, OLD.replace(before, now), asked)[0] == 0


def test_a_change_points_at_the_line_of_the_key(folder):
    new = OLD.replace("{request: 2s}", "{\n  request: 3s}")
    [change] = changes(folder, new, line("/read"))
    [difference] = change["differences"]
    assert difference["newWhere"] == f"new.yaml:{at(new, 'request: 3s')}"


def test_what_changes_for_no_request_is_no_change(folder):
    """Rules in another order or under another name, documents in another file, a route that nobody asks for."""
    new = OLD.replace(GUARDED, "{allow: [{namespaces: [ops, shop]}]}") + route("more", "{hosts: [more.svc]}")
    status, told = diff(
        folder, new, line("/orders/1", SHOP), line("/read/1"), line("/none", route="", status=404, code="no_route")
    )
    assert (status, told) == (0, ["ok: nothing changes for 3 requests in 3 lines of logs"])


def test_lines_that_are_not_compared_are_counted(folder):
    malformed = line("/", route="", code="bad_request", status=400, attempts=0)
    log = [line("/read"), "GET / 200", "", f'{{"path": "{"a" * (1 << 20)}"}}', malformed, line("/read", source="?")]
    status, told = diff(folder, OLD, *log, line("/orders", "spiffe://demo/ns/shop/sa/web", code="denied", status=403))
    assert status == 0
    assert told[:2] == [
        "note      2 of the lines are none of the JSON access log, the first is access.log:2",
        "note      2 of the lines say too little to be asked about, the first is access.log:5",
    ]
    assert told[2].startswith(
        "note      1 of the requests went otherwise than OLD decides, the first is access.log:7: "
    )
    assert told[3] == "ok: nothing changes for 2 requests in 4 lines of logs"


def test_a_log_of_another_kind_is_no_proof(folder):
    status, told = diff(folder, OLD, "GET / 200")
    assert (status, told[1:]) == (1, ["no line of the logs can be read: nothing changes for 0 generated requests"])
    assert diff(folder, OLD, "GET / 200", options=("--generate",))[0] == 1
    assert diff(folder, OLD)[0] == 0


def test_requests_beyond_the_bound_are_counted_and_those_before_go_on(folder, monkeypatch, capsys):
    monkeypatch.setattr("l7proxy.proxy.diff.MOST", 2)
    monkeypatch.chdir(folder)
    Path("access.log").write_text("\n".join(map(line, ("/read/1", "/read/2", "/read/3", "/read/1", "/read/4"))))
    assert main(["diff", "old.yaml", "old.yaml", "--replay", "access.log"]) == 0
    note, last = capsys.readouterr().out.splitlines()
    assert note.startswith("note      2 of the lines were left out, the first is access.log:3: ")
    assert last == "ok: nothing changes for 2 requests in 5 lines of logs"


def test_a_log_cannot_command_a_terminal_nor_the_explain_verb(folder):
    new = OLD.replace("{request: 2s}", "{request: 1s}")
    _, told = diff(folder, new, line("/read/1", method="--sign", source="fe80::1%\x1b[2J"))
    assert told[1:3] == [
        "  request   --sign http://orders.svc/read/1 (inbound)",
        "  from      a caller without a certificate at fe80::1%\\x1b[2J",
    ]
    assert " -- --sign " in told[5]


def generated(folder: Path, old: str, new: str, *options: str) -> tuple[int, list[str]]:
    """The exit status and the report on requests that the command thinks of itself."""
    (folder / "old.yaml").write_text(old)
    (folder / "new.yaml").write_text(new)
    status, out, err = l7proxy("diff", "old.yaml", "new.yaml", *options, folder=folder)
    assert err == ""
    return status, out.splitlines()


def test_without_a_log_requests_are_thought_of(folder):
    new = OLD.replace("[ops]", "[dev]").replace("{request: 2s}", "{request: 3s}")
    status, told = generated(folder, OLD, new)
    assert status == 1
    assert [text for text in told if not text.startswith(("  ask", "  from"))] == [
        "allowed -> denied: 1 request",
        "  request   GET http://localhost/orders (inbound)",
        f"  old       authorization allowed: ops, old.yaml:{at(OLD, 'name: ops')}",
        f"  new       authorization denied: no allow rule, new.yaml:{at(new, 'allow:')}",
        "",
        "denied -> allowed: 1 request",
        "  request   GET http://localhost/orders (inbound)",
        f"  old       authorization denied: no allow rule, old.yaml:{at(OLD, 'allow:')}",
        f"  new       authorization allowed: ops, new.yaml:{at(new, 'name: ops')}",
        "",
        "other values of policies: 1 request",
        "  request   GET http://localhost/read (inbound)",
        f"  old       timeout.request 2s, old.yaml:{at(OLD, 'request: 2s')}",
        f"  new       timeout.request 3s, new.yaml:{at(new, 'request: 3s')}",
        "",
        told[-1],
    ]
    assert re.fullmatch(r"3 of \d+ generated requests change: 1 denied now, 1 allowed now", told[-1])
    [denied] = [text for text in told if text.startswith("  from      spiffe://") and "/ns/ops/" in text]
    assert denied.endswith(" at 127.0.0.1")


def test_generated_requests_stand_beside_those_of_a_log(folder):
    new = OLD.replace("[ops]", "[dev]")
    status, told = diff(folder, new, line("/read/1"))
    assert (status, told) == (0, ["ok: nothing changes for 1 request in 1 line of logs"])
    status, told = diff(folder, new, line("/read/1"), options=("--generate",))
    assert status == 1
    assert re.match(r"2 of 1 request in 1 line of logs and \d+ generated requests change: ", told[-1])


@pytest.mark.parametrize("mode", ["STRICT", "PERMISSIVE"])
def test_callers_whom_only_the_handshake_tells_apart_are_thought_of(folder, mode):
    tls = f"tls: {{mode: {mode}, cert: no.crt, key: no.key, ca: no.ca}}"
    old = SIDECAR.replace("{app: http://127.0.0.1:8080}", f"{{app: 'http://127.0.0.1:8080', {tls}}}")
    _, told = generated(folder, old, old + route("r", "{redirect: {path: /b}}"))
    assert told[0].startswith("another route: ")
    status, told = generated(folder, old, old.replace(mode, {"STRICT": "PERMISSIVE", "PERMISSIVE": "STRICT"}[mode]))
    assert (status, told[0].split(":")[0]) == (
        1,
        {"STRICT": "denied -> allowed", "PERMISSIVE": "allowed -> denied"}[mode],
    )
    assert told[2] == "  from      a caller without a certificate at 127.0.0.1"


def test_requests_that_are_too_many_to_think_of_are_no_secret(folder):
    headers = ", ".join(f"x-{n}: a" for n in range(20))
    old = OLD + route("many", f"{{hosts: [many.svc], matches: [{{headers: {{{headers}}}}}]}}")
    status, told = generated(folder, old, old)
    assert status == 0
    assert re.fullmatch(
        r"note +not every request that the matchers tell apart was generated: inbound, there are more than \d+ .*",
        told[0],
    )
    assert told[1].startswith("ok: nothing changes for ")


def test_many_changes_are_cut_and_counted(folder):
    def made(seconds: int) -> str:
        routes = (
            route(f"r{n}", f"{{matches: [{{path: {{exact: /r{n}}}}}], policies: {{timeout: {{request: {seconds}s}}}}}}")
            for n in range(15)
        )
        return SIDECAR + "".join(routes)

    (folder / "old.yaml").write_text(made(1))
    _, told = diff(folder, made(2), *(line(f"/r{n}") for n in range(15)))
    assert told[0] == "other values of policies: 15 requests, 15 lines of logs"
    assert sum(text.startswith("  request") for text in told) == 10
    assert "  and 5 others like these, 5 requests, 5 lines of logs: --json tells each" in told
    assert len(changes(folder, made(2), *(line(f"/r{n}") for n in range(15)))) == 15


def test_logs_come_from_standard_input_and_flags_hold_for_both(folder):
    (folder / "new.yaml").write_text(OLD.replace("{request: 2s}", "{request: 1s}"))
    command = [sys.executable, "-m", "l7proxy", "diff", "old.yaml", "new.yaml", "--replay", "-", "--app", "http://a:1"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        input=line("/read"),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "  old       timeout.request 2s" in done.stdout
    assert "--app http://a:1" in done.stdout


def test_mistakes_of_both_are_told_with_their_lines(folder):
    (folder / "old.yaml").write_text(OLD.replace("hosts:", "host:"))
    (folder / "new.yaml").write_text(OLD.replace("redirect:", "redirekt:"))
    (folder / "access.log").write_text(line("/read"))
    status, out, err = l7proxy("diff", "old.yaml", "new.yaml", "--replay", "access.log", folder=folder)
    assert (status, out) == (1, "")
    first, second = err.splitlines()
    assert first.startswith(f"old.yaml:{at(OLD, 'hosts:')}: ")
    assert second.startswith(f"new.yaml:{at(OLD, 'redirect:')}: ")


def test_wrong_usage_is_2_and_a_log_that_cannot_be_read_is_1(folder):
    assert l7proxy("diff", "old.yaml", folder=folder)[0] == 2
    assert l7proxy("diff", folder=folder)[0] == 2
    assert l7proxy("diff", "old.yaml", "old.yaml", "--replay", "-", "--replay", "-", folder=folder)[0] == 2
    for log in ("none.log", "."):
        status, out, err = l7proxy("diff", "old.yaml", "old.yaml", "--replay", log, folder=folder)
        assert (status, out) == (1, "")
        assert err.startswith(f"l7proxy diff: {log}: ")


def test_the_log_of_a_sidecar_is_asked_of_its_next_configuration(
    sidecar: StartSidecar, serve: StartServer, tmp_path: Path
) -> None:
    rules = {"authorization": {"deny": [{"name": "no-secrets", "paths": ["/v1/secret"]}]}}
    proxy = sidecar(documents.route("all", policies=rules), app=serve().address)
    for target in ("/v1/secret", "/v1/a?b=c", "/v1/a", "/v1/b"):
        proxy.get(target)
    proxy.log_lines()
    old = tmp_path / "old.yaml"
    old.write_text(proxy.config.read_text())
    new = tmp_path / "new.yaml"
    new.write_text(old.read_text().replace("/v1/secret", "/v1/a"))
    status, out, err = l7proxy("diff", str(old), str(new), "--replay", str(proxy.log), "--json")
    report = json.loads(out)
    assert (status, err, report["requests"], report["seen"], report["notes"]) == (1, "", 3, 4, [])
    assert [(change["kind"], change["example"]["url"], change["seen"]) for change in report["changes"]] == [
        ("denial", "http://test/v1/a", 2),
        ("grant", "http://test/v1/secret", 1),
    ]
