"""The compiled authorizer against a slow literal reading of Istio's rules: the same verdict on every request."""

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.core.headers import joined
from l7proxy.core.message import Request
from l7proxy.core.peer import Peer
from l7proxy.filters.authorizer import Attribute, Authorizer, Clause, Rule, RuleSet

PORT = 8080


def attribute(request: Request, clause: Clause) -> list[str]:
    """Returns the values of an attribute: one, but for the two addresses of `anyIP`."""
    peer = request.peer
    client = request.forwarded or request.source
    header = joined(request.headers, clause.key.encode()) or b""
    found: dict[str, list[str]] = {
        "identity": [peer.identity],
        "principal": [peer.uri.removeprefix("spiffe://")],
        "namespace": [peer.namespace],
        "principalRegex": [peer.uri],
        "trustDomain": [peer.trust_domain],
        "peerIP": [request.source],
        "clientIP": [client],
        "anyIP": [request.source, request.forwarded],
        "method": [request.method.decode()],
        "path": [request.path.decode()],
        "host": [request.authority.decode()],
        "port": [str(request.destination[1] if request.destination else PORT)],
        "header": [header.decode()],
    }
    return found[clause.attribute]


def matches_text(pattern: str, value: str) -> bool:
    """Exact, prefix, suffix or presence, as the AuthorizationPolicy reference describes them."""
    if pattern == "*":
        return value != ""
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    if pattern.startswith("*"):
        return value.endswith(pattern[1:])
    return value == pattern


def matches_host(pattern: str, authority: str) -> bool:
    pattern, authority = pattern.lower(), authority.lower()
    host, colon, port = authority.rpartition(":")
    bare = host if colon and port.isdigit() else authority
    return matches_text(pattern, authority if ":" in pattern else bare)


def matches_value(clause: Clause, pattern: str, value: str) -> bool:
    if clause.attribute in ("peerIP", "clientIP", "anyIP"):
        return value != "" and ip_address(value) in ip_network(pattern)
    if clause.attribute == "host":
        return matches_host(pattern, value)
    if clause.attribute == "principalRegex":
        return re.fullmatch(pattern, value) is not None
    return matches_text(pattern, value)


def clause_holds(clause: Clause, request: Request) -> bool:
    values = attribute(request, clause)
    found = any(matches_value(clause, pattern, value) for pattern in clause.values for value in values)
    return found != clause.negated


def rule_matches(rule: Rule, request: Request) -> bool:
    return all(
        any(all(clause_holds(clause, request) for clause in alternative) for alternative in group)
        for group in rule.groups
    )


def verdict(rules: RuleSet, request: Request, shadow: bool) -> tuple[str, Rule | None]:
    """1. a DENY rule matches: deny. 2. no ALLOW policy: allow. 3. an ALLOW rule matches: allow. 4. deny."""

    def first(candidates: Iterable[Rule]) -> Rule | None:
        return next((rule for rule in candidates if (shadow or not rule.shadow) and rule_matches(rule, request)), None)

    denying = first(rules.deny)
    if denying is not None:
        return "DENY", denying
    if not (rules.shadow_allows if shadow else rules.allows):
        return "ALLOW", None
    allowing = first(rules.allow)
    return ("DENY" if allowing is None else "ALLOW"), allowing


WORDS = ("a", "ab", "b", "ba", "")
PATTERNS = ("*", "a", "ab", "b", "a*", "*b", "ab*", "*a", "ba")
TEXTS: tuple[Attribute, ...] = (
    "identity",
    "principal",
    "namespace",
    "trustDomain",
    "method",
    "header",
)
EXPRESSIONS = ("spiffe://a", ".*b", "spiffe://(a|ba).*", ".+", ".*")
PATHS = ("/", "/a", "/a/b", "/a/b/c", "/b", "/a.json")
PATH_PATTERNS = ("*", "/a", "/a*", "/a/*", "*.json", "/b", "*/b")
HOSTS = ("a.example", "A.example:8080", "b.example", "[::1]:80", "")
HOST_PATTERNS = ("a.example", "*.example", "a.*", "A.example:8080", "*:8080", "*")
ADDRESSES = ("10.0.0.1", "10.1.0.1", "192.0.2.7", "::1", "fd00::7")
BLOCKS = ("10.0.0.0/8", "10.0.0.1/32", "192.0.2.0/24", "::/0", "fd00::/8", "0.0.0.0/0")


def values(options: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(options), min_size=1, max_size=3, unique=True).map(tuple)


clauses = st.one_of(
    st.builds(Clause, st.sampled_from(TEXTS), values(PATTERNS), st.booleans(), st.sampled_from(["x", "y"])),
    st.builds(Clause, st.just("principalRegex"), values(EXPRESSIONS), st.booleans()),
    st.builds(Clause, st.just("path"), values(PATH_PATTERNS), st.booleans()),
    st.builds(Clause, st.just("host"), values(HOST_PATTERNS), st.booleans()),
    st.builds(Clause, st.sampled_from(["peerIP", "clientIP", "anyIP"]), values(BLOCKS), st.booleans()),
    st.builds(Clause, st.just("port"), values(("80", "8080", "443")), st.booleans()),
)
groups = st.lists(st.lists(clauses, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple)
rules_of = st.lists(
    st.builds(Rule, st.text("rst", min_size=1, max_size=3), st.lists(groups, max_size=3).map(tuple), st.booleans()),
    max_size=5,
).map(tuple)
rule_sets = st.builds(RuleSet, rules_of, rules_of, rules_of, st.booleans(), st.booleans())
words = st.sampled_from(WORDS)
peers = st.builds(
    Peer,
    identity=words,
    trust_domain=words,
    namespace=words,
    uri=words.map(lambda word: f"spiffe://{word}" if word else ""),
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    headers = draw(st.lists(st.tuples(st.sampled_from([b"x", b"y", b"z"]), words.map(str.encode)), max_size=3))
    request = Request(
        draw(words).encode(), b"http", draw(st.sampled_from(HOSTS)).encode(), draw(st.sampled_from(PATHS)).encode(),
        b"", b"", headers, b"", peer=draw(peers),
    )  # fmt: skip
    request.source = draw(st.sampled_from(ADDRESSES))
    request.forwarded = draw(st.sampled_from(("", *ADDRESSES)))
    request.destination = draw(st.none() | st.just(("10.0.0.9", 443)))
    return request


@settings(max_examples=400, deadline=None)
@given(rule_sets, st.lists(requests(), min_size=1, max_size=5))
def test_the_compiled_rules_say_what_the_written_ones_say(rules: RuleSet, asked: list[Request]) -> None:
    authorizer = Authorizer(rules, PORT)
    for request in asked:
        found = authorizer.decide(request)
        assert (found.outcome, found.rule) == verdict(rules, request, False)
        assert not authorizer.allows(request) or found.outcome == found.shadow == "ALLOW"
        if any(rule.shadow for rule in (*rules.deny, *rules.allow)) or (rules.shadow_allows and not rules.allows):
            assert (found.shadow, found.shadow_rule) == verdict(rules, request, True)
        assert set(authorizer.audited(request)) == {rule for rule in rules.audit if rule_matches(rule, request)}
