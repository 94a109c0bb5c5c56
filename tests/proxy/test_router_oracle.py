"""The router against a slow and literal reading of the Gateway API's order of precedence."""

import re
from urllib.parse import parse_qsl

from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.config.model import CallMatch, Match, PathMatch, TextMatch
from tests.proxy.test_router import ask, router

SEGMENTS = st.sampled_from(["a", "b", "aa", "v1"])
PATHS = st.lists(SEGMENTS, max_size=3).map(lambda parts: "/" + "/".join(parts))
REGEXES = st.sampled_from(
    ["/.*", "/a/.*", "/a?/b", "/(a|b)/v1", "/v1", "/v1/?", "/[a-z]+", "/a/a{1,2}", "/a|/b", ".*v1", "/aa?.*", r"/a\/b+"]
)
HOSTS = st.sampled_from(["*", "*.svc", "*.a.svc", "a.svc", "b.a.svc", "a.org"])
VALUES = st.sampled_from(["1", "2", "12"])
TESTS = VALUES | st.one_of(
    st.builds(TextMatch, prefix=VALUES),
    st.builds(TextMatch, suffix=VALUES),
    st.builds(TextMatch, present=st.booleans()),
    st.builds(TextMatch, regex=st.sampled_from(["[0-9]", "1.*"])),
)
NAMES = st.sampled_from(["x", "y"])
MATCHES = st.builds(
    Match,
    path=st.one_of(
        st.builds(PathMatch, exact=PATHS),
        st.builds(PathMatch, prefix=PATHS),
        st.builds(PathMatch, regex=REGEXES),
        st.builds(CallMatch, regex=REGEXES, service=st.integers(0, 2), method=st.integers(0, 2)),
    ),
    methods=st.sampled_from([(), (), ("GET",), ("GET", "POST")]),
    headers=st.dictionaries(NAMES, TESTS, max_size=2),
    query=st.dictionaries(NAMES, TESTS, max_size=2),
)
RULES = st.lists(st.tuples(st.lists(HOSTS, min_size=1, max_size=2, unique=True).map(tuple), MATCHES), max_size=40)
REQUESTS = st.fixed_dictionaries(
    {
        "host": st.sampled_from(["a.svc", "b.a.svc", "c.a.svc", "x.svc", "svc", "a.org", "A.ORG:80", "c.d.svc."]),
        "path": st.tuples(PATHS, st.sampled_from(["", "/"])).map(lambda pair: pair[0] + pair[1] * (pair[0] != "/")),
        "method": st.sampled_from(["GET", "POST", "PUT"]),
        "headers": st.lists(st.tuples(NAMES, VALUES), max_size=2, unique_by=lambda pair: pair[0]),
        "query": st.lists(st.tuples(NAMES, VALUES), max_size=3).map(
            lambda pairs: "&".join(f"{name}={value}" for name, value in pairs)
        ),
    }
)


def value_holds(wanted: str | TextMatch, value: str | None) -> bool:
    if isinstance(wanted, str):
        return value == wanted
    if wanted.present is not None:
        return (value is not None) == wanted.present
    if value is None:
        return False
    if wanted.prefix is not None:
        return value.startswith(wanted.prefix)
    if wanted.suffix is not None:
        return value.endswith(wanted.suffix)
    return re.fullmatch(wanted.regex or "", value) is not None


def host_rank(pattern: str, host: str) -> tuple[int, int] | None:
    if pattern == host:
        return (0, 0)
    if pattern.startswith("*.") and host.endswith(pattern[1:]) and host != pattern[1:]:
        return (1, -len(pattern))
    return (2, 0) if pattern == "*" else None


def path_rank(wanted: PathMatch, path: str) -> tuple[int, ...] | None:
    """The catch-all comes after every other prefix and after gRPC calls, regular expressions come last."""
    if wanted.exact is not None:
        return (0, 0) if path == wanted.exact else None
    if wanted.prefix is not None:
        segments = [part for part in wanted.prefix.split("/") if part]
        if path.split("/")[1 : 1 + len(segments)] == segments:
            return (1, -len(wanted.prefix)) if segments else (3, 0)
        return None
    if re.fullmatch(wanted.regex or "", path) is None:
        return None
    return (2, -wanted.service, -wanted.method) if isinstance(wanted, CallMatch) else (4, 0)


def oracle(rules, host: str, path: str, method: str, headers, query: str) -> str | None:
    host = host.lower().split(":")[0].removesuffix(".")
    hosts = [rank for patterns, _ in rules for pattern in patterns if (rank := host_rank(pattern, host))]
    if not hosts:
        return None
    best_host = min(hosts)
    fields = dict(headers)
    parameters = dict(reversed(parse_qsl(query)))
    candidates = []
    for number, (patterns, match) in enumerate(rules):
        if best_host not in [host_rank(pattern, host) for pattern in patterns]:
            continue
        where = path_rank(match.path, path)
        if (
            where is not None
            and (not match.methods or method in match.methods)
            and all(value_holds(wanted, fields.get(name)) for name, wanted in match.headers.items())
            and all(value_holds(wanted, parameters.get(name)) for name, wanted in match.query.items())
        ):
            candidates.append((where, not match.methods, -len(match.headers), -len(match.query), number))
    return str(min(candidates)[-1]) if candidates else None


@settings(max_examples=600, deadline=None)
@given(RULES, st.lists(REQUESTS, min_size=1, max_size=8))
def test_the_router_picks_what_the_rules_of_precedence_say(rules, requests):
    built = router(*rules)
    for request in requests:
        expected = oracle(rules, **request)
        assert ask(built, **request) == expected, request
        assert ask(built, **request, trace=[]) == expected, request
