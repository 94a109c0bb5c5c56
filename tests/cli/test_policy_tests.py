"""`l7proxy test` as its users and their CI run it."""

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
        ("cases: [\n", "tests.yaml:1: not valid YAML"),
    ],
)
def test_a_mistake_in_a_test_file_has_its_line(tmp_path, tests, mistake):
    status, out, err = check(tmp_path, tests)
    assert (status, out) == (1, "")
    assert mistake in err


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
