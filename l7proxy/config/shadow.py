"""Routes that can never match, and policies that a more specific host leaves unenforced.

Both follow from the order of precedence. Conditions are compared as they are written: two regular expressions that mean
the same are not found out, and nothing is reported that is not so.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from l7proxy.config.model import CallMatch, Match, Resource, Route
from l7proxy.config.precedence import exact_key, place, prefix_key, rank, suffixes, within
from l7proxy.core.errors import Problem
from l7proxy.core.patterns import literal_prefix
from l7proxy.core.slices import Steps, drained

_MAX_WARNINGS = 50
_COMPARISONS = 100_000

Routes = Iterable[Resource[Route]]


class _Rule(NamedTuple):
    """One match of one route, on one of its hosts."""

    resource: Resource[Route]
    number: int
    match: Match
    host: str

    @property
    def path(self) -> tuple[str, bytes]:
        path = self.match.path
        if path.exact is not None:
            return "exact", exact_key(path.exact)
        if path.prefix is not None:
            return "prefix", prefix_key(path.prefix)
        return "regex", (path.regex or "").encode()


_Guarded = dict[tuple[str, str], list[tuple[_Rule, set[str]]]]
"""The rules of each wide host that have policies which guard, and the names of these policies."""


def shadowed(routes: Routes, problems: list[Problem], warnings: list[Problem]) -> Steps[None]:
    """Finds matches that others take every request from: an error when nothing of a route is left, else a warning.

    Among matches of one path with the same headers and query the earlier has the methods that both name; and a prefix
    without conditions leaves nothing to regular expressions below it. Between documents of the Gateway API it is a
    warning: equal rules of two are valid there, and the older document has the requests.
    """
    claims: dict[Any, _Rule] = {}
    prefixes: dict[tuple[str, str, bytes], _Rule] = {}
    lost: dict[int, list[tuple[_Rule, _Rule]]] = {}
    regexes: list[_Rule] = []
    for rule in _rules(routes):
        match, side = rule.match, rule.resource.spec.direction
        kind, key = rule.path
        if kind == "regex":
            regexes.append(rule)
        elif kind == "prefix" and not (match.methods or match.headers or match.query):
            prefixes.setdefault((side, rule.host, key), rule)
        conditions: Any = None
        if match.headers or match.query:
            conditions = (frozenset(match.headers.items()), frozenset(match.query.items()))
        takers = [
            claims.setdefault((side, rule.host, place(match.path), rank(match)[:2], key, conditions, method), rule)
            for method in match.methods or ("",)
        ]
        if not any(taker.resource is rule.resource for taker in takers):
            lost.setdefault(id(rule.resource), []).append((rule, takers[0]))
        yield
    for rule in regexes:
        taker = _above(rule, prefixes)
        if taker is not None:
            lost.setdefault(id(rule.resource), []).append((rule, taker))
        yield
    yield from drained(claims)
    yield from drained(prefixes)
    for pairs in lost.values():
        resource = pairs[0][0].resource
        places = {(rule.number, rule.host) for rule, _ in pairs}
        complete = len(places) == len(resource.spec.matches) * len(set(resource.spec.hosts))
        for rule, taker in pairs[:1] if complete else pairs:
            other = f"route {taker.resource.name!r} ({taker.resource.file}:{taker.resource.line})"
            what = f"route {resource.name!r}" if complete else f"matches[{rule.number}] on host {rule.host!r}"
            line = resource.where(f"spec.matches[{rule.number}]")
            (problems if complete and not all(map(_between_documents, pairs)) else warnings).append(
                Problem(*line, f"{what} can never match: {other} comes first and takes its requests")
            )
        yield


def _between_documents(pair: tuple[_Rule, _Rule]) -> bool:
    """Tells whether equal matches are of two documents of the Gateway API."""
    rule, taker = pair
    origins = (rule.resource.origin, taker.resource.origin)
    return rule.path == taker.path and all(origins) and origins[0] != origins[1]


def unenforced(routes: Routes, warnings: list[Problem]) -> Steps[None]:
    """Warns where a more specific host takes requests that a wider host's route would hold to a policy that guards.

    There is no fall-through from host to host: a policy on `*` does not hold for a host that has routes of its own.
    """
    guarded: _Guarded = {}
    for rule in _rules(routes):
        guards = {policy.name for policy in rule.resource.spec.policies if policy.guards}
        if guards and rule.host.startswith("*"):
            guarded.setdefault((rule.resource.spec.direction, rule.host), []).append((rule, guards))
        yield
    if not guarded:
        return
    hosts: dict[tuple[str, str], list[_Rule]] = {}
    for rule in _rules(routes):
        hosts.setdefault((rule.resource.spec.direction, rule.host), []).append(rule)
        yield
    yield from _escapes(hosts, guarded, warnings)
    yield from drained(hosts)
    yield from drained(guarded)


def _escapes(hosts: dict[tuple[str, str], list[_Rule]], guarded: _Guarded, warnings: list[Problem]) -> Steps[None]:
    reported: set[tuple[int, int, str]] = set()
    left = _COMPARISONS
    for (side, host), inners in hosts.items():
        for outer, guards in [pair for pattern in _wider(host) for pair in guarded.get((side, pattern), ())]:
            for inner in inners:
                left -= 1
                if left % 64 == 0:
                    yield
                if left < 0 or len(reported) >= _MAX_WARNINGS:
                    file, line = outer.resource.where("spec.policies")
                    warnings.append(Problem(file, line, "further routes that escape a policy are not listed"))
                    return
                missing = guards - {policy.name for policy in inner.resource.spec.policies}
                if inner.resource is outer.resource or not missing or not _overlap(outer, inner):
                    continue
                for name in sorted(missing):
                    pair = (id(outer.resource), id(inner.resource), name)
                    if pair not in reported:
                        reported.add(pair)
                        warnings.append(_warning(outer, inner, name))
        yield


def _rules(routes: Routes) -> Iterator[_Rule]:
    for resource in routes:
        for number, match in enumerate(resource.spec.matches):
            for host in dict.fromkeys(resource.spec.hosts):
                yield _Rule(resource, number, match, host)


def _above(rule: _Rule, prefixes: dict[tuple[str, str, bytes], _Rule]) -> _Rule | None:
    """Returns the unconditional prefix that takes everything that a regular expression could match."""
    kind, pattern = rule.path
    if kind != "regex":
        return None
    side, key = rule.resource.spec.direction, literal_prefix(pattern.decode()).encode()
    while key := key.rpartition(b"/")[0]:
        taker = prefixes.get((side, rule.host, key))
        if taker is not None:
            return taker
    # Patterns of gRPC calls come before the prefix `/`.
    return None if isinstance(rule.match.path, CallMatch) else prefixes.get((side, rule.host, b""))


def _wider(host: str) -> list[str]:
    """Returns the host patterns that cover a host or a pattern, other than itself."""
    if host == "*":
        return []
    covering = ["*." + suffix.decode() for suffix in suffixes(host.removeprefix("*.").encode())]
    return [*covering, "*"]


def _overlap(outer: _Rule, inner: _Rule) -> bool:
    """Tells whether a path can match both; of regular expressions only the literal start is looked at."""
    spans = []
    for rule in (outer, inner):
        kind, key = rule.path
        spans.append((kind, literal_prefix(key.decode()).encode() if kind == "regex" else key))
    (kind, one), (other_kind, other) = spans
    if "regex" in (kind, other_kind):
        return one.startswith(other) or other.startswith(one)
    if kind == "exact":
        return one == other if other_kind == "exact" else within(one, other)
    return within(other, one) or (other_kind == "prefix" and within(one, other))


def _warning(outer: _Rule, inner: _Rule, policy: str) -> Problem:
    file, line = outer.resource.where(f"spec.policies.{policy}")
    return Problem(
        *inner.resource.where("spec.hosts"),
        f"policy {policy!r} of route {outer.resource.name!r} on host {outer.host!r} ({file}:{line}) does not hold for "
        f"host {inner.host!r}: its requests come to route {inner.resource.name!r} alone",
    )
