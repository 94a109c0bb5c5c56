from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.config import shadow
from l7proxy.config.model import Match, Resource, Route
from l7proxy.core.errors import Problem
from l7proxy.core.slices import finish
from l7proxy.filters.rate_limit import RateLimit
from l7proxy.filters.timeout import Timeout
from tests.config.test_load import SIDECAR, mistakes, route, warnings
from tests.proxy.test_router import ask, exact, prefix, regex, router
from tests.proxy.test_router_oracle import MATCHES, REQUESTS

GUARD = (RateLimit(requests=1),)


def resource(name: str, host: str | tuple[str, ...], *matches: Match, **more: Any) -> Resource[Route]:
    hosts = (host,) if isinstance(host, str) else host
    return Resource(
        "Route", name, Route(hosts=hosts, matches=matches or (Match(),), **more), file=f"{name}.yaml", line=1
    )


def check(*routes: Resource[Route]) -> tuple[list[str], list[str]]:
    """Returns the files of errors and of warnings."""
    problems: list[Problem] = []
    notes: list[Problem] = []
    finish(shadow.shadowed(routes, problems, notes))
    return [problem.file for problem in problems], [note.file for note in notes]


def unenforced(*routes: Resource[Route]) -> list[str]:
    notes: list[Problem] = []
    finish(shadow.unenforced(routes, notes))
    return [note.message for note in notes]


def test_a_route_that_can_never_match_is_an_error_that_names_the_other(tmp_path):
    first, second = route("a", "{matches: [{path: {prefix: /v1}}]}"), route("b", "{matches: [{path: {prefix: /v1/}}]}")
    assert mistakes(tmp_path, SIDECAR, first, second) == (
        "a.yaml:17: route 'b' can never match: route 'a' (a.yaml:9) comes first and takes its requests"
    )


def test_one_match_among_others_that_can_never_match_is_a_warning(tmp_path):
    first, second = route("a", "{hosts: [x]}"), route("b", "{hosts: [x, z], matches: [{}, {path: {exact: /e}}]}")
    assert warnings(tmp_path, SIDECAR, first, second) == (
        "a.yaml:17: matches[0] on host 'x' can never match: route 'a' (a.yaml:9) comes first and takes its requests"
    )


def test_what_differs_in_anything_is_not_shadowed():
    assert check(
        resource("a", "*"),
        resource("b", "a.org"),
        resource("c", "*", exact("/")),
        resource("d", "*", prefix("/", methods=("GET",))),
        resource("e", "*", prefix("/", headers={"x": "1"})),
        resource("f", "*", prefix("/", headers={"x": "2"})),
        resource("g", "*", prefix("/", query={"x": "2"})),
        resource("h", "*", direction="outbound"),
    ) == ([], [])


def test_methods_that_earlier_routes_share_between_them_are_shadowed():
    get, post = prefix("/", methods=("GET",)), prefix("/", methods=("POST",))
    both = prefix("/", methods=("GET", "POST"))
    assert check(resource("a", "*", get), resource("b", "*", post), resource("c", "*", both)) == (["c.yaml"], [])
    assert check(resource("a", "*", get), resource("b", "*", both)) == ([], [])


def test_a_regex_below_an_unconditional_prefix_is_shadowed():
    assert check(resource("a", "*", prefix("/v1")), resource("b", "*", regex("/v1/[0-9]+"))) == (["b.yaml"], [])
    assert check(resource("a", "*", regex("/[0-9]+")), resource("b", "*")) == (["a.yaml"], [])
    assert check(resource("a", "*", prefix("/v1")), resource("b", "*", regex("/v1[0-9]+"))) == ([], [])
    assert check(resource("a", "*", prefix("/v1", methods=("GET",))), resource("b", "*", regex("/v1/[0-9]+"))) == (
        [],
        [],
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(MATCHES, min_size=1, max_size=12), st.lists(REQUESTS, min_size=1, max_size=20))
def test_a_route_that_is_called_shadowed_never_gets_a_request(matches, requests):
    routes = [resource(f"{number}", "*", match) for number, match in enumerate(matches)]
    errors, _ = check(*routes)
    built = router(*(("*", match) for match in matches))
    for request in requests:
        assert f"{ask(built, **request)}.yaml" not in errors


def test_a_guard_on_a_wider_host_that_a_host_escapes_is_a_warning(tmp_path):
    wide = route("wide", "\n  hosts: ['*.shop.org']\n  policies: {rateLimit: {requests: 1}}")
    text = warnings(tmp_path, SIDECAR, wide, route("narrow", "{hosts: [a.shop.org]}"))
    assert text == (
        "a.yaml:19: policy 'rateLimit' of route 'wide' on host '*.shop.org' (a.yaml:14) does not hold for host "
        "'a.shop.org': its requests come to route 'narrow' alone"
    )


def test_only_what_guards_and_could_be_escaped_is_a_warning():
    wide = resource("w", "*", prefix("/admin"), policies=GUARD)
    assert len(unenforced(wide, resource("n", "a.org"))) == 1
    assert len(unenforced(wide, resource("n", "a.org", prefix("/admin/x")))) == 1
    assert len(unenforced(wide, resource("n", "*.org", regex("/a.*")))) == 1
    assert unenforced(wide, resource("n", "a.org", prefix("/other"))) == []
    assert unenforced(wide, resource("n", "a.org", exact("/administration"))) == []
    assert unenforced(wide, resource("n", "a.org", policies=GUARD)) == []
    assert unenforced(wide, resource("n", "*")) == []
    assert unenforced(wide, resource("n", "a.org", direction="outbound")) == []
    assert unenforced(resource("w", "*", policies=(Timeout(request=1.0),)), resource("n", "a.org")) == []
    assert unenforced(resource("w", "*.com", policies=GUARD), resource("n", "a.org")) == []


def test_many_warnings_are_cut_off_where_nobody_reads_them():
    wide = resource("w", "*", policies=GUARD)
    found = unenforced(wide, *(resource(f"n{number}", f"h{number}.org") for number in range(1000)))
    assert len(found) == 51
    assert found[-1] == "further routes that escape a policy are not listed"


def test_ten_thousand_routes_of_one_path_are_compared_in_time(tmp_path):
    routes = [resource(f"r{n}", "*", prefix("/", headers={"x": str(n)})) for n in range(10_000)]
    assert check(*routes, resource("last", "*", prefix("/", headers={"x": "77"}))) == (["last.yaml"], [])
