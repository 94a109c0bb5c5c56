"""What the languages of a configuration's patterns say of a value is what the live path says of it."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.config.model import Match, PathMatch, TextMatch
from l7proxy.core.languages import Undecided
from l7proxy.core.message import Request
from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.core.slices import finish
from l7proxy.filters.authorizer import Clause, Rule, Table, check_path
from l7proxy.identity.peer import peer_named
from l7proxy.proxy.matchers import (
    ADDRESS,
    AMBIGUOUS,
    AMBIGUOUS_KEPT,
    CANONICAL,
    HOST,
    IDENTITY,
    METHOD,
    PATH,
    Dimension,
    Matcher,
    members,
    of_clause,
    of_conditions,
    of_path,
)
from l7proxy.proxy.router import Router
from l7proxy.proxy.router import Rule as Routing
from l7proxy.wire.framing import Malformed
from l7proxy.wire.path import ambiguous, canonical, has_slashes, normalise

Live = Callable[[bytes | None], bool]
TEXTS = st.text("ab/.é:", min_size=1, max_size=4)


def starred(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(texts, texts.map("{}*".format), texts.map("*{}".format), st.just("*"))


def request(path: bytes = b"/", host: bytes = b"a", method: bytes = b"GET", peer: Peer = ANONYMOUS) -> Request:
    asked = Request(method, b"http", host, path, b"", path, [], b"", "1.1", peer)
    asked.path = path
    return asked


def holds(clause: Clause, asked: Request) -> bool:
    return Table((Rule("it", (((clause,),),)),)).match(asked) != 0


def routes(match: Match, path: bytes = b"/", host: bytes = b"a", hosts: tuple[str, ...] = ("*",)) -> bool:
    router = finish(Router.build([Routing(hosts, match, "it")]))
    return router.match(host, path, b"GET", [], b"") is not None


def agree(dimension: Dimension, live: dict[Matcher, Live], values: list[bytes | None]) -> None:
    """Every member matches as it says, and every value matches as some member does."""
    found = members(dimension, live)
    vectors = set()
    for member in found:
        assert member.of == {matcher for matcher, matches in live.items() if matches(member.value)}, member.value
        vectors.add(member.of)
    for value in values:
        assert frozenset(matcher for matcher, matches in live.items() if matches(value)) in vectors, value


SEGMENTS = st.sampled_from(["a", "b", "é", "a:", ".a", "a%3A", "a b", "a%2Fb", "%25", "a;b", "1", "...", "a%0A", "%7F"])
PATHS = st.lists(SEGMENTS, max_size=3).map(lambda parts: "/" + "/".join(parts))
ROUTED = st.one_of(
    PATHS.map(lambda path: PathMatch(exact=path)),
    PATHS.map(lambda path: PathMatch(prefix=path)),
    st.sampled_from(["/.*", "/(a|b)/.*", "/[a-z]+", "/a/?", "/a%.*", "/a(%20|!)b", r"/v\d/[^/]+"]).map(
        lambda text: PathMatch(regex=text)
    ),
)


def usable(pattern: str) -> bool:
    try:
        check_path(pattern)
    except ValueError:
        return False
    return True


RULED = (starred(PATHS) | st.sampled_from(["/a/{*}", "/{**}/b", "*.json", "*:", "*29"])).filter(usable)
RAW = st.one_of(
    PATHS,
    st.lists(st.sampled_from(["/", "a", "%2F", "%C3%A9", "%28", "%20", "%0A", "%1f", "%7f", ":", "9", "."])).map(
        "".join
    ),
).map(lambda text: ("/" + text).encode())


def normal(raw: bytes) -> bytes | None:
    try:
        return normalise(raw)
    except Malformed:
        return None


@settings(max_examples=30, deadline=None)
@given(st.lists(ROUTED, max_size=4), st.lists(RULED, max_size=4), st.lists(RAW, max_size=20))
def test_paths(routed: list[PathMatch], ruled: list[str], raw: list[bytes]) -> None:
    live: dict[Matcher, Live] = {
        AMBIGUOUS: lambda path: ambiguous(path or b"") or has_slashes(path or b""),
        AMBIGUOUS_KEPT: lambda path: ambiguous(path or b""),
    }
    for path in routed:
        match = Match(path=path)
        live[of_path(match)] = lambda path, match=match: routes(match, path or b"")
        live[of_path(match, CANONICAL)] = lambda path, match=match: routes(match, canonical(path or b""))
    for pattern in ruled:
        clause = Clause("path", (pattern,))
        live.update({one: lambda path, clause=clause: holds(clause, request(path or b"")) for one in of_clause(clause)})
    paths = [path for one in raw if (path := normal(one)) is not None]
    agree(PATH, live, [*paths, b"*"])
    for member in members(PATH, live):
        assert member.value is not None
        assert normalise(member.value) == member.value


HOSTS = st.sampled_from(["a.svc", "b.a.svc", "svc", "x.org", "fd00::1"])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["a.svc", "*.svc", "*.a.svc", "fd00::1", "x.org"]), max_size=4),
    st.lists(starred(st.text("asvc.", min_size=1, max_size=4)), max_size=4),
    st.lists(HOSTS | st.text("asvc.", min_size=1, max_size=7).map(lambda text: text.strip(".") or "a"), max_size=20),
)
def test_hosts(routed: list[str], ruled: list[str], hosts: list[str]) -> None:
    live: dict[Matcher, Live] = {}
    for name in routed:
        live[Matcher(HOST, "host", name)] = lambda host, name=name: routes(
            Match(), host=authority(host or b""), hosts=(name,)
        )
    for pattern in ruled:
        clause = Clause("host", (pattern,))
        try:
            matchers = list(of_clause(clause))
        except Undecided:
            continue
        live.update(
            {
                one: lambda host, clause=clause: holds(clause, request(host=authority(host or b"")))
                for one in matchers
                if one.dimension == HOST
            }
        )
    agree(HOST, live, [host.encode() for host in hosts])


def authority(host: bytes) -> bytes:
    return b"[%b]" % host if b":" in host else host


IDS = st.one_of(
    st.builds(
        "spiffe://{}/ns/{}/sa/{}".format,
        st.sampled_from(["demo", "d.emo"]),
        st.sampled_from(["shop", "sh", "a-shop"]),
        st.sampled_from(["web", "we", "my-web"]),
    ),
    st.sampled_from(
        [
            "spiffe://demo/x",
            "spiffe://demo/ns/shop/sa/web/more",
            "spiffe://demo/ns/sh/ns/shop/sa/web",
            "shop.svc",
            "Shop.svc",
            "a",
        ]
    ),
)
NAMES = starred(st.sampled_from(["shop", "sh", "web", "demo", "hop", "mo"]))
SOURCES = st.one_of(
    st.builds(Clause, st.just("identity"), st.tuples(starred(IDS) | st.sampled_from(["spiffe://demo/*", "*/web"]))),
    st.builds(Clause, st.just("principal"), st.tuples(starred(IDS.map(lambda text: text.removeprefix("spiffe://"))))),
    st.builds(Clause, st.just("namespace"), st.tuples(NAMES)),
    st.builds(Clause, st.just("trustDomain"), st.tuples(NAMES)),
    st.builds(
        Clause,
        st.just("principalRegex"),
        st.lists(
            st.sampled_from(
                [
                    ".*/ns/shop/.*",
                    ".*/ns/sh.*/.*",
                    ".*/ns/.*/.*",
                    "spiffe://.+/ns/shop/(.+/|)sa/web(/.+)?",
                    ".*/ns/a|b/.*",
                ]
            ),
            min_size=1,
            max_size=3,
        ).map(tuple),
    ),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(SOURCES, max_size=5), st.lists(IDS | st.just(""), max_size=20))
def test_identities(clauses: list[Clause], identities: list[str]) -> None:
    def named(value: bytes | None) -> Peer:
        return peer_named(value.decode()) if value else ANONYMOUS

    live = {
        one: lambda value, clause=clause: holds(clause, request(peer=named(value)))
        for clause in clauses
        for one in of_clause(clause)
    }
    agree(IDENTITY, live, [identity.encode() or None for identity in identities])


@settings(max_examples=100, deadline=None)
@given(st.lists(starred(st.text("GETP*", min_size=1, max_size=4)), max_size=4), st.lists(st.text("GETPx", min_size=1)))
def test_methods(patterns: list[str], methods: list[str]) -> None:
    live = {
        one: lambda method, clause=clause: holds(clause, request(method=method or b""))
        for clause in (Clause("method", (pattern,)) for pattern in patterns)
        for one in of_clause(clause)
    }
    agree(METHOD, live, [method.encode() for method in methods])


BLOCKS = st.sampled_from(
    ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "255.255.255.255/32", "fd00::/8", "::/0", "::ffff:0:0/96"]
)
ADDRESSES = st.ip_addresses().map(str) | st.sampled_from(["10.1.2.3", "10.1.9.9", "10.2.0.1", "::ffff:10.1.2.3"])


@settings(max_examples=100, deadline=None)
@given(st.lists(BLOCKS, max_size=5), st.lists(ADDRESSES, max_size=20))
def test_addresses(blocks: list[str], addresses: list[str]) -> None:
    def of(value: bytes | None, clause: Clause) -> bool:
        asked = request()
        asked.source = (value or b"").decode()
        return holds(clause, asked)

    live = {
        one: lambda value, clause=clause: of(value, clause)
        for clause in (Clause("peerIP", (block,)) for block in blocks)
        for one in of_clause(clause)
    }
    agree(ADDRESS, live, [address.encode() for address in addresses])


VALUES = st.text("ab, é", min_size=1, max_size=4).map(str.strip).filter(bool)
FIELDS = st.one_of(
    VALUES,
    VALUES.map(lambda text: TextMatch(prefix=text)),
    VALUES.map(lambda text: TextMatch(suffix=text)),
    st.sampled_from(["a.*", "(ab)+", ".*, b", "a?"]).map(lambda text: TextMatch(regex=text)),
    st.booleans().map(lambda there: TextMatch(present=there)),
)


@pytest.mark.parametrize("kind", ["header", "query"])
@settings(max_examples=100, deadline=None)
@given(
    wanted=st.lists(FIELDS, max_size=4),
    ruled=st.lists(starred(VALUES.filter(lambda text: "*" not in text)), max_size=3),
    lists=st.lists(st.lists(VALUES | st.just(""), max_size=3), max_size=20),
)
def test_fields(kind: str, wanted: list[str | TextMatch], ruled: list[str], lists: list[list[str]]) -> None:
    live: dict[Matcher, Live] = {}

    def asked(value: bytes | None, match: Match) -> bool:
        router = finish(Router.build([Routing(("*",), match, "it")]))
        headers = [(b"x", value)] if value is not None and kind == "header" else []
        query = b"x=" + b"".join(b"%%%02X" % byte for byte in value) if value is not None and kind == "query" else b""
        return router.match(b"a", b"/", b"GET", headers, query) is not None

    for condition in wanted:
        match = Match(headers={"x": condition}) if kind == "header" else Match(query={"x": condition})
        (one,) = of_conditions(match)
        if one.kind != "present":
            live[one] = lambda value, match=match: asked(value, match)
    if kind == "header":
        for pattern in ruled:
            clause = Clause("header", (pattern,), key="x")
            live.update({one: lambda value, clause=clause: _field(value, clause) for one in of_clause(clause)})
    values = [", ".join(parts).encode() if parts else None for parts in lists]
    agree((kind, "x"), live, values)


def _field(value: bytes | None, clause: Clause) -> bool:
    asked = request()
    asked.headers = [(b"x", value)] if value is not None else []
    return holds(clause, asked)


@pytest.mark.parametrize("name", ["x-forwarded-for", "X_Request_Id", "connection", "traceparent", "forwarded"])
def test_a_header_that_the_proxy_writes_is_not_decided(name: str) -> None:
    with pytest.raises(Undecided, match="which the proxy itself writes"):
        list(of_clause(Clause("header", ("a",), key=name)))


def test_ports_that_were_dialled_and_hosts_that_are_missing_are_not_decided() -> None:
    with pytest.raises(Undecided, match="the port that the caller dialled"):
        list(of_clause(Clause("port", ("80",))))
    for clause in (Clause("host", ("*",)), Clause("authority", ("*",))):
        with pytest.raises(Undecided, match="names a host at all"):
            list(of_clause(clause))


@pytest.mark.parametrize(
    ("clause", "why"),
    [
        (Clause("authority", ("[::*",)), "the beginning or the end of an IPv6 address"),
        (Clause("headerField", ("a,*",), key="x"), "how several fields x are joined"),
        (Clause("meshPrincipal", ("cluster.local/ns/a/sa/b",)), "our own trust domain"),
    ],
)
def test_what_no_request_alone_can_show_is_not_decided(clause: Clause, why: str) -> None:
    with pytest.raises(Undecided, match=why):
        list(of_clause(clause))


def test_a_clause_on_many_namespaces_is_decided() -> None:
    clause = Clause("principalRegex", tuple(f".*/ns/team{number}/.*" for number in range(300)))
    assert len(members(IDENTITY, of_clause(clause))) == 3


def test_bytes_that_no_question_can_hold_are_not_decided() -> None:
    (one,) = of_conditions(Match(headers={"x": TextMatch(regex=r"[\x80-\xff]")}))
    with pytest.raises(Undecided, match="not UTF-8"):
        members(("header", "x"), [one])
