from l7proxy.config.model import Match, PathMatch, TextMatch
from l7proxy.core.slices import finish
from l7proxy.proxy.router import Router, Rule, Trace


def router(*rules: tuple[tuple[str, ...] | str, Match]) -> Router[str]:
    """Builds a router whose targets are the numbers of the rules, as text."""
    return finish(
        Router.build(
            Rule((hosts,) if isinstance(hosts, str) else hosts, match, str(number))
            for number, (hosts, match) in enumerate(rules)
        )
    )


def exact(path: str, **more) -> Match:
    return Match(path=PathMatch(exact=path), **more)


def prefix(path: str, **more) -> Match:
    return Match(path=PathMatch(prefix=path), **more)


def regex(path: str, **more) -> Match:
    return Match(path=PathMatch(regex=path), **more)


def ask(router, host="a.example.com", path="/", method="GET", headers=(), query="", trace=None):
    pairs = [(name.encode(), value.encode()) for name, value in headers]
    return router.match(host.encode(), path.encode(), method.encode(), pairs, query.encode(), trace)


def test_an_exact_host_comes_before_a_suffix_and_a_suffix_before_any():
    rules = router(("*", Match()), ("*.example.com", Match()), ("*.a.example.com", Match()), ("a.example.com", Match()))
    assert ask(rules, "a.example.com") == "3"
    assert ask(rules, "b.example.com") == "1"
    assert ask(rules, "x.y.example.com") == "1"
    assert ask(rules, "x.a.example.com") == "2"
    assert ask(rules, "example.com") == "0"
    assert ask(rules, "other.org") == "0"


def test_a_suffix_needs_a_label_of_its_own_before_it():
    assert ask(router(("*.example.com", Match())), "example.com") is None
    assert ask(router(("*.example.com", Match())), "badexample.com") is None


def test_hosts_compare_without_port_case_and_trailing_dot():
    rules = router(("a.example.com", Match()), ("::1", Match()))
    for host in ("A.Example.COM", "a.example.com:8443", "a.example.com.", "A.example.com.:80"):
        assert ask(rules, host) == "0", host
    for host in ("[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]:1"):
        assert ask(rules, host) == "1", host


def test_a_more_specific_host_without_a_fitting_path_does_not_fall_through():
    rules = router(("*", Match()), ("a.example.com", exact("/only")))
    assert ask(rules, "a.example.com", "/other") is None


def test_many_strange_hosts_change_no_answer():
    rules = router(("*.example.com", Match()), ("a.org", Match()))
    for number in range(5000):
        assert ask(rules, f"h{number}.example.com") == "0"
        assert ask(rules, f"h{number}.example.org") is None
    assert ask(rules, "a.org") == "1"


def test_exact_paths_come_before_prefixes_and_prefixes_before_regexes():
    rules = router(("*", regex("/v1/.*")), ("*", prefix("/v1")), ("*", exact("/v1/a")), ("*", prefix("/v1/a")))
    assert ask(rules, path="/v1/a") == "2"
    assert ask(rules, path="/v1/a/b") == "3"
    assert ask(rules, path="/v1/b") == "1"
    assert ask(rules, path="/v2/b") is None


def test_a_prefix_matches_whole_segments():
    rules = router(("*", prefix("/v1")), ("*", prefix("/v2/")))
    assert ask(rules, path="/v1") == "0"
    assert ask(rules, path="/v1/") == "0"
    assert ask(rules, path="/v10") is None
    assert ask(rules, path="/v2") == "1"
    assert ask(rules, path="/v2/x") == "1"


def test_an_exact_path_says_whether_it_ends_in_a_slash():
    assert ask(router(("*", exact("/v1/"))), path="/v1") is None


def test_a_path_in_the_configuration_is_normalised_like_a_request():
    rules = router(("*", exact("/caf\u00e9/%7ea")), ("*", prefix("/%61%2fb")))
    assert ask(rules, path="/caf%C3%A9/~a") == "0"
    assert ask(rules, path="/a%2Fb/c") == "1"


def test_a_regex_matches_the_whole_path():
    rules = router(("*", regex("/v[0-9]+/users")))
    assert ask(rules, path="/v12/users") == "0"
    assert ask(rules, path="/v12/users/7") is None
    assert ask(rules, path="/x/v12/users") is None


def test_the_first_of_many_matching_regexes_is_the_one_that_stands_first():
    rules = router(*(("*", regex(f"/{'[a-z]' * (number % 3 + 1)}/{number}?.*")) for number in range(300)))
    assert ask(rules, path="/a/") == "0"
    assert ask(rules, path="/ab/") == "1"
    assert ask(rules, path="/abc/299") == "2"


def test_regexes_with_a_literal_start_keep_file_order_with_those_without():
    rules = router(("*", regex("/v1/a/.*")), ("*", regex("/.*")), ("*", regex("/v1/.*")), ("*", regex("/v1/b/?c*")))
    assert ask(rules, path="/v1/a/x") == "0"
    assert ask(rules, path="/v1/x") == "1"
    rules = router(("*", regex("/v1/b/?c*")), ("*", regex("/.*")))
    assert ask(rules, path="/v1/b") == "0"
    assert ask(rules, path="/v1/bcc") == "0"


def test_a_match_that_fails_its_conditions_gives_way_to_the_next_best_path():
    rules = router(("*", exact("/a", methods=("POST",))), ("*", prefix("/a", methods=("PUT",))), ("*", prefix("/")))
    assert ask(rules, path="/a", method="POST") == "0"
    assert ask(rules, path="/a", method="PUT") == "1"
    assert ask(rules, path="/a", method="GET") == "2"


def test_methods_then_headers_then_query_then_file_order_decide_between_equal_paths():
    rules = router(
        ("*", prefix("/")),
        ("*", prefix("/")),
        ("*", prefix("/", query={"a": "1"})),
        ("*", prefix("/", headers={"x": "1"})),
        ("*", prefix("/", headers={"x": "1", "y": "1"})),
        ("*", prefix("/", methods=("GET",))),
    )
    everything = {"headers": [("x", "1"), ("y", "1")], "query": "a=1"}
    assert ask(rules, **everything) == "5"
    assert ask(rules, method="POST", **everything) == "4"
    assert ask(rules, method="POST", headers=[("x", "1")], query="a=1") == "3"
    assert ask(rules, method="POST", query="b=2&a=1") == "2"
    assert ask(rules, method="POST") == "0"


def test_conditions_on_header_values():
    for wanted, yes, no in (
        ("blue", "blue", "blue2"),
        (TextMatch(prefix="bl"), "blue", "able"),
        (TextMatch(suffix="ue"), "blue", "uel"),
        (TextMatch(regex="b.*e"), "blue", "bluet"),
        (TextMatch(present=True), "", None),
        (TextMatch(present=False), None, ""),
    ):
        rules = router(("*", prefix("/", headers={"x-color": wanted})))
        as_pairs = {value: [] if value is None else [("x-color", value)] for value in (yes, no)}
        assert ask(rules, headers=as_pairs[yes]) == "0", wanted
        assert ask(rules, headers=as_pairs[no]) is None, wanted


def test_a_header_that_came_twice_is_a_list():
    rules = router(("*", prefix("/", headers={"x": "a, b"})))
    assert ask(rules, headers=[("x", "a"), ("x", "b")]) == "0"
    assert ask(rules, headers=[("x", "a")]) is None


def test_query_parameters_are_decoded_and_the_first_of_two_counts():
    rules = router(("*", prefix("/", query={"na me": "1 2"})))
    assert ask(rules, query="na+me=1%202") == "0"
    assert ask(rules, query="na%20me=1+2&na+me=3") == "0"
    assert ask(rules, query="na+me=3&na+me=1+2") is None


def test_a_thousand_rules_that_differ_by_one_header_are_told_apart():
    rules = router(
        *(("*", prefix("/", headers={"x-tenant": f"t{number}"})) for number in range(1000)),
        ("*", prefix("/", headers={"x-tenant": TextMatch(prefix="t")})),
        ("*", prefix("/")),
    )
    assert ask(rules, headers=[("x-tenant", "t0")]) == "0"
    assert ask(rules, headers=[("x-tenant", "t999")]) == "999"
    assert ask(rules, headers=[("x-tenant", "t1000")]) == "1000"
    assert ask(rules) == "1001"


def test_a_trace_tells_why_better_candidates_lost():
    rules = router(
        ("*.example.com", exact("/a", methods=("POST",))),
        ("*.example.com", exact("/a", headers={"x": "1"})),
        ("*.example.com", prefix("/")),
    )
    trace: Trace = []
    assert ask(rules, path="/a", trace=trace) == "2"
    assert trace == [
        (None, "the host matches '*.example.com'"),
        ("0", "method POST does not hold"),
        ("1", "header x = '1' does not hold"),
    ]


def test_a_trace_tells_that_no_route_names_the_host():
    trace: Trace = []
    assert ask(router(("a.org", Match())), "b.org", trace=trace) is None
    assert trace == [(None, "no route names this host")]


def test_a_router_that_is_taken_apart_knows_nothing_any_more():
    rules = router(("a.org", prefix("/")), ("*.org", exact("/x")), ("*.org", regex("/y.*")))
    finish(rules.dismantle())
    assert ask(rules, "a.org") is None
    assert ask(rules, "b.org", "/x") is None
