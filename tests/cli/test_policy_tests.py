"""`l7proxy test` as its users and their CI run it."""

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.test_check import l7proxy
from tests.config.test_load import SIDECAR, route, upstream

ROOT = Path(__file__).parents[2]
CONFIG = (
    SIDECAR
    + upstream("a")
    + upstream("b")
    + route(
        "guarded",
        """{matches: [{path: {prefix: /v1}}], rewrite: {prefix: /v2}, policies: {
      headers: {request: {set: {x-by: sidecar}}, response: {set: {x-a: b}}},
      authorization: {
        deny: [{name: guests, namespaces: [guest]}],
        allow: [{namespaces: [shop]}]}}}""",
    )
    + route("shared", "{hosts: [shared.svc], split: [{upstream: a}, {upstream: b}]}")
    + route("old", "{matches: [{path: {exact: /old}}], redirect: {status: 301, path: /new}}")
)
GOOD = """
cases:
  - name: the shop
    request: {url: "/v1/a?b=c", identity: spiffe://demo/ns/shop/sa/web}
    expect:
      route: guarded
      allowed: true
      status: 200
      rule: allow[0]
      upstream: app
      headers: {x-a: b, x-none: {present: false}}
      sent: {host: localhost, path: "/v2/a?b=c", headers: {x-by: {prefix: side}}}
  - request: {url: /v1, identity: spiffe://demo/ns/guest/sa/web, sourceIP: 10.0.0.1}
    expect: {allowed: false, status: 403, code: denied, rule: guests}
  - request: {url: http://shared.svc/}
    expect: {route: shared, upstream: b}
  - request: {url: https://any.org/old}
    expect: {route: old, status: 301, headers: {location: https://any.org/new}}
  - request: {url: http://any.org/, direction: outbound}
    expect: {code: egress_blocked, status: 502}
"""


def check(folder: Path, tests: str, *arguments: str) -> tuple[int, str, str]:
    (folder / "conf").mkdir(exist_ok=True)
    (folder / "conf/a.yaml").write_text(CONFIG)
    (folder / "tests.yaml").write_text(tests)
    return l7proxy("test", "conf", "tests.yaml", *arguments, folder=folder)


def case(request: str, expect: str) -> str:
    return f"cases:\n  - request: {request}\n    expect: {expect}\n"


def claim(spec: str) -> str:
    return f"invariants:\n  - {{name: it, {spec[1:]}\n".replace(", }", "}")


def test_cases_that_hold_are_counted(tmp_path):
    status, out, err = check(tmp_path, GOOD)
    assert (status, err) == (0, "")
    assert out.startswith("ok: 5 cases in ")
    assert out.endswith(" ms, 5 of 5 routes and rules touched\n")


@pytest.mark.parametrize(
    ("expect", "why"),
    [
        ("{route: shared}", "route is guarded, not shared"),
        ("{allowed: true}", "allowed is false, not true"),
        ("{status: 200}", "status is 403, not 200"),
        ("{code: no_route}", "code is denied, not no_route"),
        ("{rule: 'allow[0]'}", "rule allow[0] does not decide, but guests"),
        ("{upstream: app}", "upstream is none, not app"),
        ("{headers: {x-a: b}}", "the answer's header x-a = 'b' does not hold: it is 'c'"),
        ("{headers: {x-z: b}}", "the answer's header x-z = 'b' does not hold: there is none"),
        ("{sent: {path: /}}", "nothing is sent to an upstream"),
    ],
)
def test_a_failure_says_what_differs_and_shows_the_decision(tmp_path, expect, why):
    request = "{url: /v1, identity: spiffe://demo/ns/guest/sa/web}"
    if "x-a: b" in expect:
        request, expect = "{url: /v1, identity: spiffe://demo/ns/shop/sa/web}", "{headers: {x-a: c}}"
        why = "the answer's header x-a = 'c' does not hold: it is 'b'"
    status, out, err = check(tmp_path, case(request, expect))
    assert (status, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == f"tests.yaml:2: FAILED GET {request[6:9]}"
    assert lines[1] == f"  {why}"
    assert "    route     guarded (/v1), conf/a.yaml:" in out
    assert "1 of 1 case failed in " in lines[-1]


def test_what_no_case_touches_is_listed(tmp_path):
    status, out, _ = check(tmp_path, case("{url: /old}", "{route: old}"))
    assert status == 0
    untouched = [line.partition(": ")[2] for line in out.splitlines()[:-1]]
    assert untouched == [
        "no case touches route guarded",
        "no case touches rule guests",
        "no case touches rule allow[0]",
        "no case touches route shared",
    ]
    number = CONFIG[: CONFIG.index("{name: guests")].count("\n") + 1
    assert f"conf/a.yaml:{number}: no case touches rule guests" in out


def test_junit_is_written_for_ci(tmp_path):
    assert check(tmp_path, GOOD + case("{url: /old}", "{route: shared}")[7:], "--junit", "out.xml")[0] == 1
    suite = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "6", "1")
    failed = [element for element in suite if element.find("failure") is not None]
    assert [(element.get("name"), element.get("file"), element.get("line")) for element in failed] == [
        ("GET /old", "tests.yaml", str(GOOD.count("\n") + 1))
    ]
    failure = failed[0].find("failure")
    assert failure is not None
    assert failure.get("message") == "route is old, not shared"
    assert "answer    301 by the route" in (failure.text or "")


@pytest.mark.parametrize(
    ("tests", "mistake"),
    [
        (case("{url: /}", "{rout: a}"), "tests.yaml:3: cases[0].expect.rout: unknown key; did you mean 'route'?"),
        (case("{}", "{route: a}"), "tests.yaml:2: cases[0].request: key 'url' is missing"),
        (case("{url: /}", "{}"), "tests.yaml:2: expect: nothing is expected here"),
        ("cases: []\n", "tests.yaml:1: cases: is empty"),
        ("# later\n", "tests.yaml:1: there is no test in this file"),
        ("{}\n", "tests.yaml:1: there are neither cases nor invariants"),
        (claim("{}"), "tests.yaml:2: invariants[0]: one of 'never' and 'always' is needed"),
        (
            claim("{never: {}, always: {}}"),
            "tests.yaml:2: invariants[0]: only one of 'never' and 'always' can stand here",
        ),
        (claim("{never: {paths: [admin]}}"), "invariants[0].never: 'admin': no request has such a path"),
        (claim("{never: {unless: {}}}"), "unless: names no condition, so that every request would be excepted"),
        (claim("{never: {path: /a}}"), "invariants[0].never.path: unknown key; did you mean 'paths'?"),
        ("cases: [\n", "tests.yaml:1: not valid YAML"),
    ],
)
def test_a_mistake_in_a_test_file_has_its_line(tmp_path, tests, mistake):
    status, out, err = check(tmp_path, tests)
    assert (status, out) == (1, "")
    assert mistake in err


NEVER = """
invariants:
  - name: nothing but the shop comes in
    never: {hosts: [any.org], paths: ["/v1/*"], unless: {namespaces: [shop]}}
  - name: everybody is sent on
    always: {paths: [/old]}
"""
HOLE = route("hole", "{matches: [{path: {prefix: /v1/open}, methods: [PUT]}]}")


def test_an_invariant_that_holds_is_proved(tmp_path):
    status, out, err = check(tmp_path, NEVER)
    assert (status, err) == (0, "")
    assert re.fullmatch(r"ok: 2 invariants \(\d+ requests\) in \d+ ms\n", out)
    status, out, _ = check(tmp_path, GOOD + "---" + NEVER)
    assert status == 0
    assert re.fullmatch(r"ok: 5 cases and 2 invariants \(\d+ requests\) in \d+ ms, 5 of 5 .* touched\n", out)


def test_an_invariant_that_fails_names_a_request_that_explain_replays(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/hole.yaml").write_text(HOLE)
    status, out, err = check(tmp_path, GOOD + "---" + NEVER, "--junit", "out.xml", "--service", "two words")
    assert (status, err) == (1, "")
    failure, _, summary = out.partition("\n\n")
    lines = failure.splitlines()
    place = (GOOD + "---" + NEVER).index("  - name: nothing but")
    assert lines[0] == f"tests.yaml:{(GOOD + NEVER)[:place].count(chr(10)) + 1}: FAILED nothing but the shop comes in"
    assert lines[1] == "  this request is allowed"
    assert lines[2].startswith("  l7proxy explain -c conf --service 'two words' PUT http://any.org/v1/open")
    assert re.search(r"\n0 of 5 cases and 1 of 2 invariants \(\d+ requests\) failed in .*\n", summary)
    monkeypatch.chdir(tmp_path)
    status, told, _ = l7proxy(*shlex.split(lines[2])[1:], folder=tmp_path)
    assert (status, told.splitlines()) == (0, [line[4:] for line in lines[3:]])
    suite = ElementTree.parse(tmp_path / "out.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("7", "1")
    element = suite.find(".//failure")
    assert element is not None
    assert element.text == failure


def test_what_cannot_be_proved_fails(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/more.yaml").write_text(route("odd", r"{matches: [{path: {regex: '/v2/\bx'}}]}"))
    status, out, _ = check(tmp_path, NEVER)
    assert status == 1
    assert "  undecided: the regular expression '/v2/\\\\bx' cannot be enumerated: \\b\n" in out


def test_a_request_that_no_client_can_send_fails_its_case(tmp_path):
    status, out, _ = check(tmp_path, case("{url: 'ftp://a/'}", "{allowed: false}"))
    assert status == 1
    assert "  request: 'ftp://a/' is not a URL like https://orders.example.com/v1, nor a path\n" in out


def test_wrong_usage_and_wrong_configuration(tmp_path):
    assert check(tmp_path, GOOD)[0] == 0
    assert l7proxy("test", "conf", folder=tmp_path)[0] == 2
    assert l7proxy("test", folder=tmp_path)[0] == 2
    assert l7proxy("test", "-c", "conf", "tests.yaml", folder=tmp_path)[0] == 0
    assert l7proxy("test", "conf", "nowhere.yaml", folder=tmp_path)[0] == 1
    (tmp_path / "conf/a.yaml").write_text(CONFIG.replace("301", "200"))
    status, out, err = l7proxy("test", "conf", "tests.yaml", folder=tmp_path)
    assert (status, out) == (1, "")
    assert "redirect.status" in err


def test_certificates_need_not_be_where_the_tests_run(tmp_path):
    tls = SIDECAR.replace("{app:", "{tls: {cert: /none/a, key: /none/b, ca: /none/c}, app:")
    (tmp_path / "a.yaml").write_text(tls + route("r", "{policies: {authorization: {allow: [{namespaces: [shop]}]}}}"))
    (tmp_path / "t.yaml").write_text(
        case("{url: /, identity: spiffe://demo/ns/shop/sa/a}", "{allowed: true}")
        + case("{url: /}", "{allowed: false}").partition("\n")[2]
    )
    assert l7proxy("test", "a.yaml", "t.yaml", folder=tmp_path)[0] == 0
    assert l7proxy("check", "a.yaml", folder=tmp_path)[0] == 1


@pytest.mark.parametrize("tests", sorted(ROOT.glob("policies/*/tests")), ids=lambda path: path.parent.name)
def test_the_examples_hold_and_touch_everything(tests):
    status, out, err = l7proxy("test", str(tests.parent), str(tests))
    assert (status, err) == (0, "")
    assert "no case touches" not in out
