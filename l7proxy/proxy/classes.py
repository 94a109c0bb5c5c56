"""Requests that stand for all: one for each way in which the patterns of a configuration can match a request.

Two requests that the same patterns match are routed and authorised alike, so that to ask one is to ask both. Only
patterns that matter are told apart: those of the routes that a host and a path can come to, and of their rules.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import chain, product
from math import prod
from urllib.parse import quote

from msgspec import structs

from l7proxy.config.model import Match, Model, Resource, Route
from l7proxy.config.precedence import place, rank, suffixes
from l7proxy.core.fields import network
from l7proxy.core.headers import merged
from l7proxy.core.languages import Undecided
from l7proxy.filters.authorization import Authorization
from l7proxy.filters.authorizer import Clause, RuleSet, is_of_mesh
from l7proxy.proxy.decision import Question
from l7proxy.proxy.identities import trust_domain_of
from l7proxy.proxy.matchers import (
    ADDRESS,
    AMBIGUOUS,
    AMBIGUOUS_KEPT,
    CANONICAL,
    CONNECT,
    HOST,
    IDENTITY,
    METHOD,
    OPTIONS,
    PATH,
    PORT,
    ROOT,
    Dimension,
    Matcher,
    Member,
    members,
    of_clause,
    of_conditions,
    of_path,
)
from l7proxy.proxy.spellings import named_by

LIMIT = 100_000
"""Requests that are enumerated; to ask one takes about 50 us."""

Matchers = frozenset[Matcher]

_CLIENT = ("client", "")
"""The address that trusted proxies forward, one more dimension where they are believed."""


def requests(
    models: Sequence[Model],
    inbound: bool = True,
    within: Sequence[Clause] = (),
    beside: Sequence[Clause] = (),
    limit: int = LIMIT,
) -> Iterator[Question]:
    """Yields a request of each class that the matchers of all models and of the clauses make together.

    `within` are clauses that all must hold: requests that miss one are left out where that is cheap to tell; those of
    `beside` are only told apart. Raises Undecided for patterns that no classes can be told of, and where there are more
    than `limit` classes.
    """
    return _Enumeration([_Side(model, inbound) for model in models], inbound, within, beside, limit).requests()


class _Entry:
    """One match of a route, and what is looked at once its host and path match."""

    def __init__(self, route: Resource[Route], match: Match, number: int) -> None:
        self._route = route
        self._match = match
        self.path, self.canonical = of_path(match), of_path(match, CANONICAL)
        self.order = place(match.path), rank(match), number
        self.final = not (match.methods or match.headers or match.query)

    @cached_property
    def paths(self) -> Matchers:
        """The patterns of paths that may matter."""
        rules = chain.from_iterable(of_clause(clause) for clause in self._clauses if clause.attribute == "path")
        return frozenset((self.path, self.canonical, *rules))

    @cached_property
    def matters(self) -> Matchers:
        """All patterns that its conditions and the rules of its route hold against a request."""
        return frozenset((*of_conditions(self._match), *chain.from_iterable(map(of_clause, self._clauses))))

    @cached_property
    def _clauses(self) -> list[Clause]:
        policies = [policy for policy in self._route.spec.policies if isinstance(policy, Authorization)]
        return [clause for policy in policies for clause in _clauses(policy.rules(lambda path: ("", 0)))]


class _Side:
    """One direction of one model."""

    def __init__(self, model: Model, inbound: bool) -> None:
        self.hosts: dict[str, list[_Entry]] = {}
        self.clauses: list[Clause] = []
        """Of the rules that hold for every route."""
        self.admission: list[Matcher] = []
        self.proxies: list[Matcher] = []
        self.hops = 0
        self.names: set[str] = set()
        """The request fields that matches and policies name."""
        self.slashes = True
        self.refused = AMBIGUOUS
        for number, route in enumerate(model.routes):
            if (route.spec.direction == "inbound") is inbound:
                self.names.update(named_by(route.spec))
                for match in route.spec.matches:
                    for host in dict.fromkeys(route.spec.hosts):
                        self.hosts.setdefault(host, []).append(_Entry(route, match, number))
        for entries in self.hosts.values():
            entries.sort(key=lambda entry: entry.order)
        spec = model.sidecar.spec.inbound
        if not inbound or spec is None:
            return
        self.slashes = spec.encoded_slashes != "UNESCAPE"
        self.refused = AMBIGUOUS_KEPT if spec.encoded_slashes == "KEEP" else AMBIGUOUS
        self.hops = spec.trusted_hops
        self.admission = [Matcher(ADDRESS, "block", block) for block in (*spec.allow_ips, *spec.deny_ips)]
        self.proxies = [_proxy(entry) for entry in spec.trusted_proxies]
        if "AuthorizationPolicy" in model.others:
            from l7proxy.config import istio

            rules = istio.rules(model)
            own = trust_domain_of(spec.tls)
            self.clauses = [_in_domain(clause, own) for clause in _clauses(rules)] if rules is not None else []
            self.names.update(rules.headers if rules is not None else ())

    def at(self, host: str) -> list[_Entry]:
        """Returns the matches of the most specific pattern that names a host, first of all the first to be tried."""
        wider = ("*." + suffix.decode() for suffix in suffixes(host.encode()))
        return next((self.hosts[name] for name in (host, *wider, "*") if name in self.hosts), [])

    def matters(self, entries: Iterable[_Entry], paths: Matchers) -> Matchers:
        """Returns the patterns that matter to requests whose path these patterns match."""
        found = set(chain.from_iterable(map(of_clause, self.clauses)))
        for canonical in (False, True):
            # A path whose spellings lead to different routes is refused: both routes count.
            for entry in entries:
                if (entry.canonical if canonical else entry.path) in paths:
                    found |= entry.matters
                    if entry.final:
                        break
        return frozenset(found)


class _Enumeration:
    def __init__(
        self, sides: Sequence[_Side], inbound: bool, within: Sequence[Clause], beside: Sequence[Clause], limit: int
    ) -> None:
        self._sides = sides
        self._inbound = inbound
        self._asked = frozenset(chain.from_iterable(map(of_clause, (*within, *beside))))
        asked = {name for kind, name in (matcher.dimension for matcher in self._asked) if kind == "header"}
        _check_spellings(asked.union(*(side.names for side in sides)))
        self._limit = limit
        self._left = limit
        self._believes = any(side.proxies or side.hops for side in sides)
        self._hops = max((side.hops for side in sides), default=0)
        self._slashes = any(side.slashes for side in sides)
        self._wanted: dict[Dimension, list[Matchers]] = {}
        for clause in within:
            wanted = frozenset(of_clause(clause))
            for dimension in {matcher.dimension for matcher in wanted}:
                self._wanted.setdefault(dimension, []).append(wanted)
        if self._believes:
            # Whose address counts then depends on more than the connection.
            self._wanted.pop(ADDRESS, None)
        self._members = cache(lambda dimension, matchers, slashes: members(dimension, matchers, slashes))

    def requests(self) -> Iterator[Question]:
        clauses = chain.from_iterable(side.clauses for side in self._sides)
        everywhere = self._asked | frozenset(chain.from_iterable(map(of_clause, clauses)))
        names = {name for side in self._sides for name in side.hosts if name != "*"}
        hosts = _of(HOST, everywhere) | {Matcher(HOST, "host", name) for name in names}
        for host in self._told(HOST, hosts):
            name = _text(host)
            sides = [(side, side.at(name)) for side in self._sides]
            paths = _of(PATH, everywhere) | {ROOT} | {side.refused for side in self._sides}
            paths = paths.union(*(entry.paths for _, entries in sides for entry in entries))
            for path in self._told(PATH, paths):
                matters = self._asked.union(*(side.matters(entries, path.of) for side, entries in sides))
                yield from self._batch(name, path, matters)

    def _batch(self, host: str, path: Member, matters: Matchers) -> Iterator[Question]:
        """Yields the requests of one host and path."""
        forwarded = _of(ADDRESS, matters) if self._believes else frozenset[Matcher]()
        matters |= {CONNECT} | ({OPTIONS} if path.value == b"*" else frozenset())
        matters |= {matcher for side in self._sides for matcher in side.admission}
        if forwarded:
            matters |= {matcher for side in self._sides for matcher in side.proxies}
        dimensions = sorted({matcher.dimension for matcher in matters} - {HOST, PATH})
        axes = [self._told(dimension, _of(dimension, matters)) for dimension in dimensions]
        if forwarded:
            dimensions.append(_CLIENT)
            axes.append([Member(None, frozenset()), *self._told(ADDRESS, forwarded)])
        place = dimensions.index(METHOD)
        axes[place] = [method for method in axes[place] if _goes_with(method, path)]
        self._left -= prod(map(len, axes))
        if self._left < 0:
            raise Undecided(f"there are more than {self._limit} classes of requests")
        for values in product(*axes):
            yield self._question(host, path, dict(zip(dimensions, values, strict=True)))

    def _told(self, dimension: Dimension, matchers: Matchers) -> list[Member]:
        """Returns the members of a dimension that are wanted."""
        wanted = self._wanted.get(dimension, ())
        found: list[Member] = self._members(dimension, matchers, self._slashes)
        return [member for member in found if all(one & member.of for one in wanted)]

    def _question(self, host: str, path: Member, values: dict[Dimension, Member]) -> Question:
        def text(dimension: Dimension, default: str) -> str:
            member = values.get(dimension)
            return default if member is None or member.value is None else _text(member)

        method, port = text(METHOD, "GET"), text(PORT, "")
        authority = f"[{host}]" if ":" in host else host
        authority = f"{authority}:{port}" if port else authority
        headers: list[tuple[str, str]] = []
        query = []
        for (kind, name), member in values.items():
            if kind == "query" and member.value is not None:
                query.append(f"{quote(name, safe='')}={quote(member.value, safe='')}")
            elif kind == "header" and member.value is not None:
                headers += _fields(name, _text(member))
        client = text(_CLIENT, "")
        if client:
            headers.append(("x-forwarded-for", ", ".join([client] * max(self._hops, 1))))
        if method == "CONNECT":
            url = authority if port else f"{authority}:443"
        elif path.value == b"*":
            url = "*"
            headers.append(("host", authority))
        else:
            url = f"http://{authority}{_text(path)}{'?' if query else ''}{'&'.join(query)}"
        return Question(method, url, text(IDENTITY, ""), tuple(headers), text(ADDRESS, "127.0.0.1"), self._inbound)


def _check_spellings(names: Iterable[str]) -> None:
    """Raises Undecided for a field that is named in two spellings, which the classes would take for two fields."""
    known: dict[bytes, str] = {}
    for name in sorted(names):
        other = known.setdefault(merged(name.encode()), name)
        if other != name:
            raise Undecided(f"{other!r} and {name!r} are spellings of one header field")


def _clauses(rules: RuleSet) -> Iterator[Clause]:
    """Yields what the rules that decide look at; those in the shadow never do."""
    for rule in (*rules.deny, *rules.allow):
        if not rule.shadow:
            for group in rule.groups:
                yield from chain.from_iterable(group)


def _in_domain(clause: Clause, own: str | None) -> Clause:
    """Returns the clause with our own trust domain written out, where it is known."""
    if clause.attribute != "meshPrincipal" or own is None:
        return clause
    ours = tuple(f"{own}/{value.partition('/')[2]}" for value in clause.values if own and is_of_mesh(value))
    return structs.replace(clause, attribute="principal", values=clause.values + ours)


def _proxy(entry: str) -> Matcher:
    try:
        return Matcher(ADDRESS, "block", network(entry))
    except ValueError:
        return Matcher(IDENTITY, "identity", entry)


def _of(dimension: Dimension, matchers: Matchers) -> Matchers:
    return frozenset(matcher for matcher in matchers if matcher.dimension == dimension)


def _text(member: Member) -> str:
    return (member.value or b"").decode()


def _goes_with(method: Member, path: Member) -> bool:
    """Tells whether a client can ask so: `*` is for OPTIONS alone, and a CONNECT has no path, which counts as `/`."""
    if path.value == b"*":
        return OPTIONS in method.of
    return CONNECT not in method.of or ROOT in path.of


def _fields(name: str, value: str) -> Iterator[tuple[str, str]]:
    """Yields the fields that are joined to a value: what ends in a comma and a blank ends in an empty field."""
    text = value
    while text.endswith(", "):
        text = text[:-2]
    yield name, text
    for _ in range((len(value) - len(text)) // 2):
        yield name, ""
