"""The decision behind every authorization policy: rules compiled to bit masks, at a cost that hardly grows with them.

A rule is compiled to rows, one for each way in which it can match; a row is a conjunction of clauses. For each
attribute of a request one look-up gives the mask of the rows that its value satisfies; the rows that remain when all
masks are joined are those that match. The order is Istio's: DENY, then, if there is any ALLOW policy, ALLOW or denial.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain, product
from typing import Any, Literal

from msgspec import Struct

from l7proxy.core.address import address_of, network_of
from l7proxy.core.headers import joined, spellings
from l7proxy.core.message import Request
from l7proxy.core.patterns import Patterns, whole
from l7proxy.wire.authority import host_of, port_of
from l7proxy.wire.fields import DROPPED
from l7proxy.wire.framing import Malformed
from l7proxy.wire.path import normalise, reading, spelled

Attribute = Literal[
    "identity", "principal", "meshPrincipal", "principalRegex", "namespace", "trustDomain", "peerIP", "clientIP",
    "anyIP", "method", "path", "host", "authority", "port", "header", "headerField",
]  # fmt: skip
Outcome = Literal["ALLOW", "DENY"]

_ADDRESSES = ("peerIP", "clientIP", "anyIP")
# Fields that are of the connection, or say what is asked for elsewhere: requests are compared without them.
_UNSEEN = frozenset(name.decode() for name in DROPPED - {b"te"})
_MOST_VALUES = 4096
_LONGEST_VALUE = 256
"""Values whose mask is remembered for each attribute, and their length: clients choose some of them."""


class Clause(Struct, frozen=True):
    """A condition on one attribute: its value matches one of `values`, or none of them if `negated`.

    A value is compared whole; `*` at its end or start stands for any text there, `*` alone for any text but none.
    Paths are compared as applications read them (`wire.path.reading`), hosts as the router does. Addresses are blocks.
    `key` is the name of a header.

    Four attributes are what Envoy compares for Istio: `authority` is host and port as they were sent, without regard
    to case; `headerField` all values of a header joined by commas, where `*` is any that is there, even empty; of a
    `meshPrincipal` the trust domain `cluster.local` is ours too; and the values of a `principalRegex` are regular
    expressions that match the caller's whole SPIFFE ID.
    """

    attribute: Attribute
    values: tuple[str, ...]
    negated: bool = False
    key: str = ""


class Rule(Struct, frozen=True):
    """Matches when in each of `groups` all clauses of one alternative hold; a rule without groups matches everything.

    `where` is the file and line of its YAML; a rule in the shadow never enters the verdict.
    """

    name: str
    groups: tuple[tuple[tuple[Clause, ...], ...], ...] = ()
    shadow: bool = False
    where: str = ""


class RuleSet(Struct, frozen=True):
    """Rules that are decided together. An ALLOW policy without rules denies all: `allows` and `shadow_allows` say
    whether there is an enforced ALLOW policy, and whether there is any."""

    deny: tuple[Rule, ...] = ()
    allow: tuple[Rule, ...] = ()
    audit: tuple[Rule, ...] = ()
    allows: bool = False
    shadow_allows: bool = False
    where: str = ""

    @property
    def headers(self) -> tuple[str, ...]:
        """The header fields that a rule depends on, lower case."""
        rules = (*self.deny, *self.allow, *self.audit)
        clauses = chain.from_iterable(chain.from_iterable(group) for rule in rules for group in rule.groups)
        return tuple(dict.fromkeys(clause.key.lower() for clause in clauses if clause.attribute in _FIELDS))

    @property
    def by_path(self) -> str:
        """Where the first rule that depends on the path stands, "" if none does."""
        for rule in (*self.deny, *self.allow):
            if any(clause.attribute == "path" for group in rule.groups for clauses in group for clause in clauses):
                return rule.where
        return ""


class Verdict(Struct, frozen=True):
    """What is decided and by which rule; None when no ALLOW rule matched, or none was needed.

    `shadow` is the verdict if the rules in the shadow counted too.
    """

    outcome: Outcome
    rule: Rule | None
    shadow: Outcome
    shadow_rule: Rule | None


class Authorizer:
    """Decides requests by one RuleSet.

    `port` is the application's, for requests whose destination is not known; `trust_domain` returns that of our own
    certificate, "" while there is none.
    """

    def __init__(self, rules: RuleSet, port: int = 0, trust_domain: Callable[[], str] = str) -> None:
        self.rules = rules
        self.made_of = rules, port, trust_domain
        self._deny = Table(rules.deny, port, trust_domain)
        self._allow = Table(rules.allow, port, trust_domain)
        self._audit = Table(rules.audit, port, trust_domain)
        self._in_shadow = any(rule.shadow for rule in (*rules.deny, *rules.allow)) or (
            rules.shadow_allows and not rules.allows
        )
        self._eventful = self._in_shadow or bool(rules.audit)
        self._denies, self._allowing = bool(rules.deny), rules.allows

    def allows(self, request: Request) -> bool:
        """Tells whether a request is allowed with nothing to say of it: what is not needs `decide`."""
        if self._eventful or (self._denies and self._deny.match(request)):
            return False
        return not self._allowing or self._allow.match(request) != 0

    def decide(self, request: Request) -> Verdict:
        """Returns the verdict on a request."""
        rules = self.rules
        denied = self._deny.match(request)
        outcome, rule = self._verdict(denied, request, False, rules.allows)
        if not self._in_shadow:
            return Verdict(outcome, rule, outcome, rule)
        return Verdict(outcome, rule, *self._verdict(denied, request, True, rules.shadow_allows))

    def audited(self, request: Request) -> list[Rule]:
        """Returns the AUDIT rules that match."""
        return self._audit.rules_in(self._audit.match(request))

    def _verdict(self, denied: int, request: Request, shadow: bool, allows: bool) -> tuple[Outcome, Rule | None]:
        if denied:
            rule = self._deny.first(denied, shadow)
            if rule is not None:
                return "DENY", rule
        if not allows:
            return "ALLOW", None
        rule = self._allow.first(self._allow.match(request), shadow)
        return ("DENY" if rule is None else "ALLOW"), rule


class Table:
    """Rules as rows of clauses; `match` returns the mask of the rows that a request satisfies."""

    def __init__(self, rules: Sequence[Rule], port: int = 0, trust_domain: Callable[[], str] = str) -> None:
        rows: list[tuple[Rule, tuple[Clause, ...]]] = []
        for rule in rules:
            rows += [(rule, tuple(chain.from_iterable(choice))) for choice in product(*rule.groups)]
        self._owners = [rule for rule, _ in rows]
        self._all = (1 << len(rows)) - 1
        self._live = sum(1 << index for index, rule in enumerate(self._owners) if not rule.shadow)
        self._columns = [
            (_reader(attribute, key, port, trust_domain), column.mask)
            for (attribute, key, _), column in _columns(rows).items()
        ]

    def match(self, request: Request) -> int:
        """Returns the rows that match; the rows of earlier rules are the lower bits."""
        mask = self._all
        for read, masks in self._columns:
            if not mask:
                break
            mask &= masks(read(request))
        return mask

    def first(self, mask: int, shadow: bool) -> Rule | None:
        """Returns the first rule of a mask, those in the shadow only if `shadow`."""
        if not shadow:
            mask &= self._live
        return self._owners[(mask & -mask).bit_length() - 1] if mask else None

    def rules_in(self, mask: int) -> list[Rule]:
        """Returns every rule of a mask, once."""
        return list(dict.fromkeys(rule for index, rule in enumerate(self._owners) if mask >> index & 1))


class _Column:
    """All clauses on one attribute, at most one a row: the mask of rows that accept a value."""

    def __init__(self, attribute: Attribute, rows: int) -> None:
        self._attribute = attribute
        self._free = (1 << rows) - 1
        self._negated = 0
        self._patterns: dict[str, int] = {}
        self._known: dict[Any, int] = {}
        self._find: Callable[[Any], int] | None = None

    def add(self, row: int, clause: Clause) -> None:
        """Adds the clause of a row."""
        bit = 1 << row
        self._free &= ~bit
        if clause.negated:
            self._negated |= bit
        for value in clause.values:
            self._patterns[value] = self._patterns.get(value, 0) | bit

    def mask(self, value: Any) -> int:
        """Returns the rows that a value of the attribute satisfies."""
        mask = self._known.get(value)
        if mask is None:
            if self._find is None:
                self._find = _finder(self._attribute, self._patterns)
            found = self._find(value)
            mask = self._free | (found & ~self._negated) | (self._negated & ~found)
            if value is None or len(value) <= _LONGEST_VALUE:
                if len(self._known) >= _MOST_VALUES:
                    self._known.clear()
                self._known[value] = mask
        return mask


def _columns(rows: list[tuple[Rule, tuple[Clause, ...]]]) -> dict[tuple[Attribute, str, int], _Column]:
    """Returns the columns by (attribute, key, number): a row's second clause on one attribute is in a second column."""
    columns: dict[tuple[Attribute, str, int], _Column] = {}
    for row, (_, clauses) in enumerate(rows):
        seen: dict[tuple[Attribute, str], int] = {}
        for clause in clauses:
            place = clause.attribute, clause.key
            number = seen[place] = seen.get(place, -1) + 1
            key = (*place, number)
            if key not in columns:
                columns[key] = _Column(clause.attribute, len(rows))
            columns[key].add(row, clause)
    return columns


def _reader(attribute: Attribute, key: str, port: int, trust_domain: Callable[[], str]) -> Callable[[Request], Any]:
    """Returns the function that takes an attribute from a request: text as bytes, identities and addresses as str."""
    if attribute == "headerField":
        spelled = spellings(key.lower().encode())

        def values(request: Request) -> bytes | None:
            found = [value for name, value in request.headers if name in spelled]
            return b",".join(found) if found else None

        return values
    if attribute == "meshPrincipal":
        return lambda request: (
            request.peer.uri[9:],
            request.peer.trust_domain != "" and request.peer.trust_domain == trust_domain(),
        )
    if attribute == "header":
        names = spellings(key.lower().encode())
        return lambda request: joined(request.headers, *names) or b""
    if attribute == "anyIP":
        return lambda request: (request.source, request.forwarded)
    if attribute == "port":
        return lambda request: str(request.destination[1] if request.destination else port)
    return _READERS[attribute]


_READERS: dict[str, Callable[[Request], Any]] = {
    "identity": lambda request: request.peer.identity,
    "principal": lambda request: request.peer.uri[9:],
    "principalRegex": lambda request: request.peer.uri,
    "namespace": lambda request: request.peer.namespace,
    "trustDomain": lambda request: request.peer.trust_domain,
    "peerIP": lambda request: request.source,
    "clientIP": lambda request: request.forwarded or request.source,
    "method": lambda request: request.method,
    "path": lambda request: request.path,
    "host": lambda request: request.authority.lower(),
    "authority": lambda request: request.authority.lower(),
}
_FIELDS = ("header", "headerField")
_TEXT = ("method", "path", "host", "authority", "header", "headerField")
_TEMPLATE = re.compile(r"\{\*\*?\}")


def _finder(attribute: Attribute, patterns: dict[str, int]) -> Callable[[Any], int]:
    """Returns a function from a value to the rows with a pattern that matches it."""
    if attribute in _ADDRESSES:
        return _address_finder(patterns)
    if attribute == "host":
        return _host_finder(patterns)
    if attribute == "headerField":
        return _field_finder(patterns)
    if attribute == "meshPrincipal":
        return _principal_finder(patterns)
    if attribute == "principalRegex":
        return _expression_finder(patterns)
    return _text_finder(attribute, patterns)


def _text_finder(attribute: Attribute, patterns: dict[str, int]) -> Callable[[Any], int]:
    encode: Callable[[str], Any] = _read if attribute == "path" else str.encode if attribute in _TEXT else str
    present = patterns.get("*", 0)
    exact: dict[Any, int] = {}
    prefixes: dict[Any, int] = {}
    suffixes: dict[Any, int] = {}
    templates: list[tuple[Callable[[bytes], bool], int]] = []
    for pattern, rows in patterns.items():
        if pattern == "*":
            continue
        if attribute == "path" and is_template(pattern):
            templates.append((template(pattern), rows))
            continue
        if pattern.endswith("*"):
            table, value = prefixes, encode(pattern[:-1])
        elif pattern.startswith("*"):
            table, value = suffixes, encode(pattern[1:])
        else:
            table, value = exact, encode(pattern)
        # Two patterns may be two spellings of one text.
        table[value] = table.get(value, 0) | rows
    heads, tails = sorted({len(text) for text in prefixes}), sorted({len(text) for text in suffixes})

    def find(value: Any) -> int:
        if attribute == "path":
            value = reading(value)
        rows = exact.get(value, 0)
        if value:
            rows |= present
        size = len(value)
        for length in heads:
            if length > size:
                break
            rows |= prefixes.get(value[:length], 0)
        for length in tails:
            if length > size:
                break
            rows |= suffixes.get(value[size - length :], 0)
        for matches, more in templates:
            if matches(value):
                rows |= more
        return rows

    return find


def _host_finder(patterns: dict[str, int]) -> Callable[[Any], int]:
    """Hosts are compared as the router does; a pattern without a port matches every port."""
    with_port: dict[str, int] = {}
    bare: dict[str, int] = {}
    for pattern, rows in patterns.items():
        host, port = host_of(pattern.encode()).decode(), port_of(pattern.encode()).decode()
        table, text = (with_port, f"{host}:{port}") if port else (bare, host)
        table[text] = table.get(text, 0) | rows
    whole_authority, host_alone = _text_finder("host", with_port), _text_finder("host", bare)

    def find(authority: bytes) -> int:
        host, port = host_of(authority), port_of(authority)
        return host_alone(host) | (whole_authority(b"%b:%b" % (host, port)) if port else 0)

    return find


def _field_finder(patterns: dict[str, int]) -> Callable[[Any], int]:
    text, present = _text_finder("headerField", patterns), patterns.get("*", 0)
    return lambda value: 0 if value is None else text(value) | present


def _principal_finder(patterns: dict[str, int]) -> Callable[[Any], int]:
    """Principals of our own trust domain are compared by what follows it, too."""
    ours = {pattern.partition("/")[2]: rows for pattern, rows in patterns.items() if is_of_mesh(pattern)}
    whole_principal, of_mesh = _text_finder("principal", patterns), _text_finder("principal", ours)

    def find(value: tuple[str, bool]) -> int:
        principal, is_ours = value
        return whole_principal(principal) | (of_mesh(principal.partition("/")[2]) if is_ours else 0)

    return find


def _expression_finder(patterns: dict[str, int]) -> Callable[[Any], int]:
    expressions, rows = Patterns(), list(patterns.values())
    for pattern in patterns:
        expressions.add(pattern)
    expressions.seal()

    def find(value: str) -> int:
        found = 0
        for index in expressions.match(value.encode()):
            found |= rows[index]
        return found

    return find


def _address_finder(patterns: dict[str, int]) -> Callable[[Any], int]:
    networks = [(network_of(pattern), rows) for pattern, rows in patterns.items()]

    def find(value: str | tuple[str, str]) -> int:
        found = 0
        for text in (value,) if isinstance(value, str) else value:
            try:
                address = address_of(text)
            except ValueError:
                continue
            for block, rows in networks:
                if address in block:
                    found |= rows
        return found

    return find


def _read(text: str) -> bytes:
    return reading(spelled(text))


def template(pattern: str) -> Callable[[bytes], bool]:
    """Returns the matcher of a path with `{*}` (one segment) and `{**}` (any number of them)."""
    return whole(template_expression(pattern))


def is_template(pattern: str) -> bool:
    """Tells whether a pattern of paths holds `{*}` or `{**}`."""
    return _TEMPLATE.search(pattern) is not None


def template_expression(pattern: str) -> str:
    """Returns the regular expression of a path with `{*}` and `{**}`."""
    parts = [_literal(_read(part)) for part in _TEMPLATE.split(pattern)]
    holes = ["[^/]+" if hole == "{*}" else ".*" for hole in _TEMPLATE.findall(pattern)]
    return "".join(part + hole for part, hole in zip(parts, [*holes, ""], strict=True))


def _literal(data: bytes) -> str:
    """Returns the regular expression of exactly these bytes."""
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 0x80 else f"\\x{byte:02x}" for byte in data)


def is_of_mesh(principal: str) -> bool:
    """Tells whether `cluster.local` in a principal stands for the trust domain of the mesh, as Istio has it."""
    return principal.startswith("cluster.local/") and principal.count("/") == 4


def check_header(name: str) -> None:
    """Raises ValueError for a field (lower case) that no rule sees: a rule that denies must not fail silently."""
    if name in _UNSEEN or name.startswith(":"):
        raise ValueError(f"{name!r}: no rule sees this field; hosts, methods and paths have keys of their own")


def check_path(pattern: str) -> None:
    """Raises ValueError for a pattern that no normalised path can match: a rule that denies must not fail silently."""
    sample = _TEMPLATE.sub("x", pattern)
    if sample.startswith("*"):
        sample = f"/x{sample[1:]}"
    elif sample.endswith("*"):
        sample = f"{sample[:-1]}x"
    try:
        path = spelled(sample)
        key = normalise(path)
    except Malformed as error:
        raise ValueError(f"{pattern!r}: no request has such a path ({error.reason})") from None
    if b"?" in path:
        raise ValueError(f"{pattern!r}: a path has no query")
    if key != path:
        raise ValueError(f"{pattern!r}: no request has such a path: it is normalised first")
