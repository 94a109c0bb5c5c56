"""From a request's host, path, method, headers and query to the one rule that it matches.

The precedence is that of `config/precedence.py`. Everything that can be is looked up in dictionaries (hosts, paths, the
literal start of a regular expression, exact values of headers), so that ten thousand routes cost a request what ten do.
"""

from bisect import insort
from collections.abc import Iterable
from typing import Generic, TypeVar

from msgspec import Struct

from l7proxy.config.model import CallMatch, Match
from l7proxy.config.precedence import Rank, exact_key, prefix_key, rank, suffixes
from l7proxy.core.headers import Headers, spellings
from l7proxy.core.patterns import Patterns, literal_prefix
from l7proxy.core.slices import Steps, drained
from l7proxy.proxy.conditions import Condition, Fields, conditions, fields, parameters
from l7proxy.wire.authority import host_of

Target = TypeVar("Target")
Trace = list[tuple[object | None, str]]
"""Why each better candidate lost: (its target, the reason); None as target for what concerns the host."""

_MEMO = 1024
_LONGEST_HOST = 255
_INDEXED = 16


class Rule(Struct, Generic[Target], frozen=True):
    """One match of one route, and what `Router.match` returns for it."""

    hosts: tuple[str, ...]
    match: Match
    target: Target


class _Entry(Struct, Generic[Target], frozen=True):
    """A rule in its place: entries sort by `order`."""

    order: tuple[Rank, int]
    conditions: tuple[Condition, ...]
    target: Target
    regex: str | None


class _Choice(Generic[Target]):
    """The rules of one path in order of precedence.

    `always` is the target of a first rule without conditions. Of many rules, `index` finds those that ask for an exact
    value of a field by that value; `rest` are the places of the others.
    """

    __slots__ = ("entries", "always", "headers", "query", "index", "rest")

    def __init__(self) -> None:
        self.entries: list[_Entry[Target]] = []
        self.always: Target | None = None
        self.headers: dict[bytes, tuple[bytes, ...]] = {}
        self.query: frozenset[bytes] = frozenset()
        self.index: dict[tuple[str, bytes], dict[bytes, list[int]]] | None = None
        self.rest: list[int] = []

    def add(self, match: Match, number: int, target: Target) -> _Entry[Target]:
        entry = _Entry((rank(match), number), conditions(match), target, match.path.regex)
        insort(self.entries, entry, key=lambda entry: entry.order)
        for name in map(str.encode, match.headers):
            for spelling in spellings(name):
                self.headers[spelling] = tuple(dict.fromkeys((*self.headers.get(spelling, ()), name)))
        if match.query:
            self.query |= {name.encode() for name in match.query}
        return entry

    def seal(self) -> Steps[None]:
        if not self.entries[0].conditions:
            self.always = self.entries[0].target
        if len(self.entries) > _INDEXED:
            self.index = {}
            for place, entry in enumerate(self.entries):
                exact = next((condition.exact for condition in entry.conditions if condition.exact), None)
                if exact is None:
                    self.rest.append(place)
                else:
                    kind, name, value = exact
                    self.index.setdefault((kind, name), {}).setdefault(value, []).append(place)
                yield

    def pick(self, method: bytes, headers: Headers, query: bytes, trace: Trace | None) -> Target | None:
        """Returns the target of the first rule whose conditions all hold."""
        found = fields(headers, self.headers) if self.headers else {}
        given = parameters(query, self.query) if self.query else {}
        entries = self.entries
        if self.index is not None and trace is None:
            places = self.rest.copy()
            for (kind, name), values in self.index.items():
                value = (found if kind == "header" else given).get(name)
                if value is not None:
                    places += values.get(value, ())
            places.sort()
            entries = [entries[place] for place in places]
        return _first(entries, method, found, given, trace)


class _Regexes(Generic[Target]):
    """The regular expressions of one host, by the whole segments of their literal start."""

    __slots__ = ("all", "buckets", "longest")

    def __init__(self) -> None:
        self.all: _Choice[Target] = _Choice()
        self.buckets: dict[bytes, tuple[list[_Entry[Target]], Patterns]] = {}
        self.longest = 0

    def add(self, match: Match, number: int, target: Target) -> None:
        entry = self.all.add(match, number, target)
        key = literal_prefix(match.path.regex or "").encode().rpartition(b"/")[0]
        self.longest = max(self.longest, len(key))
        entries, patterns = self.buckets.setdefault(key, ([], Patterns()))
        patterns.add(match.path.regex or "")
        entries.append(entry)

    def seal(self) -> Steps[None]:
        for _, patterns in self.buckets.values():
            patterns.seal()
            yield

    def pick(self, path: bytes, method: bytes, headers: Headers, query: bytes, trace: Trace | None) -> Target | None:
        hits: list[_Entry[Target]] = []
        for key in _cuts(path, self.longest):
            bucket = self.buckets.get(key)
            if bucket is not None:
                hits += [bucket[0][hit] for hit in bucket[1].match(path)]
        if not hits:
            return None
        hits.sort(key=lambda entry: entry.order)
        found = fields(headers, self.all.headers) if self.all.headers else {}
        given = parameters(query, self.all.query) if self.all.query else {}
        return _first(hits, method, found, given, trace)


class _Host(Generic[Target]):
    """The rules of one host pattern; `longest` is the length of its longest prefix, `root` has those of `/`."""

    __slots__ = ("name", "exact", "prefixes", "longest", "calls", "root", "regexes")

    def __init__(self, name: str) -> None:
        self.name = name
        self.exact: dict[bytes, _Choice[Target]] = {}
        self.prefixes: dict[bytes, _Choice[Target]] = {}
        self.longest = 0
        self.calls: _Regexes[Target] | None = None
        self.root: _Choice[Target] | None = None
        self.regexes: _Regexes[Target] | None = None

    def add(self, match: Match, number: int, target: Target) -> None:
        path = match.path
        if path.exact is not None:
            self.exact.setdefault(exact_key(path.exact), _Choice()).add(match, number, target)
        elif path.prefix is not None and (key := prefix_key(path.prefix)):
            self.longest = max(self.longest, len(key))
            self.prefixes.setdefault(key, _Choice()).add(match, number, target)
        elif path.prefix is not None:
            self.root = self.root or _Choice()
            self.root.add(match, number, target)
        elif isinstance(path, CallMatch):
            self.calls = self.calls or _Regexes()
            self.calls.add(match, number, target)
        else:
            self.regexes = self.regexes or _Regexes()
            self.regexes.add(match, number, target)

    def seal(self) -> Steps[None]:
        for choices in (self.exact, self.prefixes):
            for choice in choices.values():
                yield from choice.seal()
                yield
        for part in (self.calls, self.root, self.regexes):
            if part is not None:
                yield from part.seal()


class Router(Generic[Target]):
    """Built by `build`; it never changes afterwards."""

    __slots__ = ("_hosts", "_suffixes", "_any", "_memo")

    def __init__(self) -> None:
        self._hosts: dict[bytes, _Host[Target]] = {}
        self._suffixes: dict[bytes, _Host[Target]] = {}
        self._any: _Host[Target] | None = None
        self._memo: dict[bytes, _Host[Target]] = {}

    @classmethod
    def build(cls, rules: Iterable[Rule[Target]]) -> Steps["Router[Target]"]:
        """Builds a router in steps of well under a millisecond; of equal rules the first decides."""
        router = cls()
        for number, rule in enumerate(rules):
            for name in rule.hosts:
                router._host(name).add(rule.match, number, rule.target)
                yield
        for host in (*router._hosts.values(), *router._suffixes.values()):
            yield from host.seal()
        if router._any is not None:
            yield from router._any.seal()
        return router

    def match(
        self, host: bytes, path: bytes, method: bytes, headers: Headers, query: bytes, trace: Trace | None = None
    ) -> Target | None:
        """Returns the target of the rule that a request matches, or None.

        `host` is the authority as the client sent it, `path` the normalised path, `query` what follows the `?`.
        """
        rules = self._memo.get(host)
        if rules is None:
            rules = self._resolve(host)
            if rules is None:
                if trace is not None:
                    trace.append((None, "no route names this host"))
                return None
        if trace is not None:
            trace.append((None, f"the host matches {rules.name!r}"))
        choice = rules.exact.get(path)
        if choice is not None:
            found = choice.always
            if found is None:
                found = choice.pick(method, headers, query, trace)
            if found is not None:
                return found
        prefixes = rules.prefixes
        if prefixes:
            # Written out instead of asking `_cuts`: this is what nearly every request passes through.
            longest = rules.longest
            end = len(path) if len(path) <= longest else path.rfind(b"/", 0, longest + 1)
            while end > 0:
                choice = prefixes.get(path[:end])
                if choice is not None:
                    found = choice.always
                    if found is None:
                        found = choice.pick(method, headers, query, trace)
                    if found is not None:
                        return found
                end = path.rfind(b"/", 0, end)
        if rules.calls is not None:
            found = rules.calls.pick(path, method, headers, query, trace)
            if found is not None:
                return found
        choice = rules.root
        if choice is not None:
            found = choice.always
            if found is None:
                found = choice.pick(method, headers, query, trace)
            if found is not None:
                return found
        if rules.regexes is not None:
            return rules.regexes.pick(path, method, headers, query, trace)
        return None

    def knows(self, host: bytes) -> bool:
        """Tells whether any rule names this host, `*` included."""
        return host in self._memo or self._resolve(host) is not None

    def dismantle(self) -> Steps[None]:
        """Takes apart in steps a router that no request will ask again."""
        self._memo.clear()
        for table in (self._hosts, self._suffixes, {b"*": self._any} if self._any is not None else {}):
            while table:
                _, host = table.popitem()
                yield from drained(host.exact)
                yield from drained(host.prefixes)
                for regexes in (host.calls, host.regexes):
                    if regexes is not None:
                        yield from drained(regexes.buckets)
                yield

    def _host(self, name: str) -> _Host[Target]:
        if name == "*":
            self._any = self._any or _Host(name)
            return self._any
        if name.startswith("*."):
            return self._suffixes.setdefault(name[2:].encode(), _Host(name))
        return self._hosts.setdefault(name.encode(), _Host(name))

    def _resolve(self, authority: bytes) -> _Host[Target] | None:
        host = host_of(authority)
        rules = self._hosts.get(host)
        if rules is None:
            rules = next((found for key in suffixes(host) if (found := self._suffixes.get(key))), self._any)
        if rules is not None and len(authority) <= _LONGEST_HOST:
            # Clients choose these keys: forgetting all of them now and then is what bounds the memory.
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            self._memo[authority] = rules
        return rules


def _cuts(path: bytes, longest: int) -> Iterable[bytes]:
    """Returns the path's prefixes of whole segments that are no longer than `longest`, and b"" at the end."""
    end = len(path) if len(path) <= longest else path.rfind(b"/", 0, longest + 1)
    while end > 0:
        yield path[:end]
        end = path.rfind(b"/", 0, end)
    yield b""


def _first(
    entries: Iterable[_Entry[Target]], method: bytes, headers: Fields, query: Fields, trace: Trace | None
) -> Target | None:
    for entry in entries:
        for condition in entry.conditions:
            if not condition.holds(method, headers, query):
                if trace is not None:
                    trace.append((entry.target, f"{condition.text} does not hold"))
                break
        else:
            return entry.target
    return None
