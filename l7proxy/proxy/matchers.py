"""Every pattern that a configuration holds against a request, as a language of the values that it matches.

A dimension is one property of requests: (`host`, ""), (`port`, ""), (`path`, ""), (`method`, ""), (`identity`, ""),
(`address`, ""), (`header`, NAME), (`query`, NAME). What matches is written down a second time here, as languages; that
both agree is what the tests of this module hold it to, and every class is asked of the live path besides.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from msgspec import Struct

from l7proxy.config.model import Match, TextMatch
from l7proxy.config.precedence import exact_key, prefix_key
from l7proxy.core.address import Address, Network, address_of, network_of
from l7proxy.core.headers import vouches
from l7proxy.core.languages import ANYTHING, Either, Node, Seq, Undecided, expression, literal, wildcard
from l7proxy.core.partition import BYTES, Language, Symbol, partition
from l7proxy.filters.authorizer import Clause, is_template, template_expression
from l7proxy.wire.authority import host_of, port_of
from l7proxy.wire.fields import DROPPED
from l7proxy.wire.path import AMBIGUITIES, ambiguous, canonical, reading, spelled

Dimension = tuple[str, str]
HOST, PORT, PATH, METHOD, IDENTITY, ADDRESS = (
    (name, "") for name in ("host", "port", "path", "method", "identity", "address")
)

SENT, CANONICAL, READ = range(3)
"""The spellings of a path that are compared: normalised, one of all that are alike, and as applications read it."""


class Matcher(Struct, frozen=True):
    """One pattern of one dimension.

    `kind` is how it is written: `exact`, `prefix`, `suffix`, `regex`, `present` and `host` as in a Route's match,
    `text` with a `*` at an end as in authorization, or the attribute of an identity.
    """

    dimension: Dimension
    kind: str
    text: str = ""
    spelling: int = SENT


class Member(Struct, frozen=True):
    """A value that stands for all that the same matchers match; None for requests that have none."""

    value: bytes | None
    of: frozenset[Matcher]


AMBIGUOUS = Matcher(PATH, "ambiguous", f"{AMBIGUITIES}|%2F|%5C")
AMBIGUOUS_KEPT = Matcher(PATH, "ambiguous", AMBIGUITIES)
"""Paths that the proxy refuses where rules depend on what an application reads in them, by default and with slashes
kept."""
ROOT = Matcher(PATH, "exact", "/")
CONNECT = Matcher(METHOD, "exact", "CONNECT")
OPTIONS = Matcher(METHOD, "exact", "OPTIONS")

_REWRITTEN = DROPPED | {b"forwarded", b"traceparent", b"tracestate", b"b3"}
_ATTRIBUTES: dict[str, Dimension] = {
    "method": METHOD,
    "path": PATH,
    "peerIP": ADDRESS,
    "clientIP": ADDRESS,
    "anyIP": ADDRESS,
    **dict.fromkeys(("identity", "principal", "namespace", "trustDomain"), IDENTITY),
}


def of_path(match: Match, spelling: int = SENT) -> Matcher:
    """Returns the matcher of a match's path, held against one of the spellings of a request's."""
    path = match.path
    kind = "exact" if path.exact is not None else "prefix" if path.prefix is not None else "regex"
    return Matcher(PATH, kind, path.exact or path.prefix or path.regex or "", spelling)


def of_conditions(match: Match) -> Iterable[Matcher]:
    """Yields the matchers of a match's methods, headers and query parameters; raises Undecided."""
    for method in match.methods:
        yield Matcher(METHOD, "exact", method)
    for name, wanted in match.headers.items():
        yield _field(_header(name), wanted)
    for name, wanted in match.query.items():
        yield _field(("query", name), wanted)


def of_clause(clause: Clause) -> Iterable[Matcher]:
    """Yields the matchers of a clause of an authorization rule; raises Undecided."""
    if clause.attribute == "principalRegex":
        # One for all values: an ID may match several expressions, and each set of them would be a class.
        yield Matcher(IDENTITY, "regex", "|".join(f"(?:{value})" for value in clause.values))
        return
    for value in clause.values:
        if clause.attribute == "host":
            yield from _hosts(value)
        elif clause.attribute == "authority":
            yield from _authorities(value)
        elif clause.attribute == "header":
            yield Matcher(_header(clause.key), "text", value)
        elif clause.attribute == "headerField":
            if "," in value:
                raise Undecided(f"a rule depends on how several fields {clause.key} are joined")
            yield Matcher(_header(clause.key), "present" if value == "*" else "text", value)
        elif clause.attribute == "meshPrincipal":
            raise Undecided("a rule depends on our own trust domain, which is not known before there is a certificate")
        elif clause.attribute == "port":
            raise Undecided("a rule depends on the port that the caller dialled, which is no part of a request")
        else:
            dimension = _ATTRIBUTES[clause.attribute]
            kind = "text" if dimension in (METHOD, PATH) else clause.attribute if dimension == IDENTITY else "block"
            yield Matcher(dimension, kind, value, READ if dimension == PATH else SENT)


def members(dimension: Dimension, matchers: Iterable[Matcher], slashes: bool = True) -> list[Member]:
    """Returns a value for each class of a dimension's values; raises Undecided when they cannot be told.

    `slashes` says whether a path may hold `%2F` and `%5C`.
    """
    name, found = dimension[0], list(matchers)
    if name == "address":
        return _addresses(found)
    universe = _OF_MATCHERS[name](found) if name in _OF_MATCHERS else _UNIVERSES[name]
    symbols = universe.symbols if slashes else [symbol for symbol in universe.symbols if symbol[0] not in _SLASHES]
    languages = {matcher: Language(_LANGUAGES[name](matcher), matcher.spelling) for matcher in found}
    classes = partition(languages, universe.bounds, symbols, universe.prefer)
    if name == "header" and any(matcher.kind == "regex" for matcher in found):
        # A question is text; what only bytes that are none can tell apart cannot be asked.
        every = partition(languages, universe.bounds[:1])
        if len(every) > len(classes):
            raise Undecided(f"values of {dimension[1]} that are not UTF-8 matter to a regular expression")
    absent = [Member(None, frozenset())] if name in ("header", "query", "identity") else []
    return absent + [Member(one.word, one.of) for one in classes]


def _field(dimension: Dimension, wanted: str | TextMatch) -> Matcher:
    if isinstance(wanted, str):
        return Matcher(dimension, "exact", wanted)
    for kind in ("exact", "prefix", "suffix", "regex"):
        text: str | None = getattr(wanted, kind)
        if text is not None:
            return Matcher(dimension, kind, text)
    return Matcher(dimension, "present")


def _header(name: str) -> Dimension:
    key = name.lower().encode()
    if vouches(key) or key in _REWRITTEN:
        raise Undecided(f"a condition depends on the header {name}, which the proxy itself writes")
    return "header", name.lower()


def _hosts(pattern: str) -> Iterable[Matcher]:
    """A pattern without a port matches every port; see `authorizer`."""
    host, port = host_of(pattern.encode()).decode(), port_of(pattern.encode()).decode()
    if host == "*" and not port:
        raise Undecided("a rule depends on whether a request names a host at all")
    if host != "*":
        yield Matcher(HOST, "text", host)
    if port:
        yield Matcher(PORT, "text", port)


def _authorities(pattern: str) -> Iterable[Matcher]:
    """A pattern holds for host and port together; see `authorizer`."""
    if pattern == "*":
        raise Undecided("a rule depends on whether a request names a host at all")
    if "[" in pattern and "*" in pattern:
        raise Undecided("a rule depends on the beginning or the end of an IPv6 address")
    body, before, after = _body(pattern), pattern.startswith("*"), pattern.endswith("*")
    host = host_of(body.encode()).decode()
    port = port_of(body.encode()).decode() if ":" in body else None
    if port is None:
        yield Matcher(HOST, "text", pattern if before or after else host)
        yield Matcher(PORT, "exact", "")
        if before and body.isdigit():
            # The end of a host, or of a port.
            yield Matcher(PORT, "text", pattern)
        return
    if host:
        yield Matcher(HOST, "text", f"*{host}" if before else host)
    yield Matcher(PORT, "text", f"{port}*" if after else port)


def _text(matcher: Matcher) -> Node:
    """Returns the language of a pattern whose values are compared byte by byte."""
    kind, data = matcher.kind, matcher.text.encode()
    if kind == "exact":
        return literal(data)
    if kind == "prefix":
        return Seq((literal(data), ANYTHING))
    if kind == "suffix":
        return Seq((ANYTHING, literal(data)))
    if kind == "regex":
        return expression(matcher.text)
    return ANYTHING if kind == "present" else wildcard(matcher.text, _body(matcher.text).encode())


def _path(matcher: Matcher) -> Node:
    kind, text = matcher.kind, matcher.text
    if kind == "exact":
        return literal(exact_key(text))
    if kind == "prefix":
        key = prefix_key(text)
        return Seq((literal(key), Either((Seq(), Seq((literal(b"/"), ANYTHING)))))) if key else ANYTHING
    if kind == "regex":
        return expression(text)
    if kind == "ambiguous":
        return expression(f".*({text}).*")
    if is_template(text):
        return expression(template_expression(text))
    return wildcard(text, reading(spelled(_body(text))))


def _host(matcher: Matcher) -> Node:
    if matcher.kind == "host" and not matcher.text.startswith("*"):
        return literal(matcher.text.encode())
    return wildcard(matcher.text, _body(matcher.text).encode())


_NO_SLASH = expression("[^/]")
_SPIFFE = literal(b"spiffe://")
_SEGMENT = expression("[^/]+")


def _identity(matcher: Matcher) -> Node:
    kind, text = matcher.kind, matcher.text
    if kind == "identity":
        return wildcard(text, _body(text).encode())
    if kind == "principal":
        return Seq((_SPIFFE, wildcard(text, _body(text).encode())))
    if kind == "regex":
        return expression(text)
    part = wildcard(text, _body(text).encode(), _NO_SLASH)
    if kind == "trustDomain":
        return Seq((_SPIFFE, part, literal(b"/"), ANYTHING))
    return Seq((_SPIFFE, _SEGMENT, literal(b"/ns/"), part, literal(b"/sa/"), _SEGMENT))


def _body(pattern: str) -> str:
    return pattern[:-1] if pattern.endswith("*") else pattern[1:] if pattern.startswith("*") else pattern


_LANGUAGES: dict[str, Callable[[Matcher], Node]] = {
    "host": _host,
    "port": _text,
    "path": _path,
    "method": _text,
    "identity": _identity,
    "header": _text,
    "query": _text,
}


class _Universe(NamedTuple):
    """The values that there are: in all of `bounds`, made of `symbols`; those of `prefer` are nice to read."""

    bounds: tuple[Language, ...]
    symbols: Sequence[Symbol] = BYTES
    prefer: tuple[bytes, ...] = ()


def _any_host(matchers: Iterable[Matcher]) -> _Universe:
    """Names, and the IPv6 addresses that are matched. Empty labels matter only where a pattern has some."""
    texts = [matcher.text for matcher in matchers]
    addresses = [literal(text.encode()) for text in texts if ":" in text]
    odd = any(".." in text or text.startswith(".") for text in texts)
    names = "[a-z0-9._~-]*[a-z0-9_~-]" if odd else r"[a-z0-9_~-]+(\.[a-z0-9_~-]+)*"
    return _Universe((Language(Either((expression(names), *addresses))),), prefer=(b"localhost",))


_SLASHES = (b"%2F", b"%5C")
_PLAIN = [symbol for symbol in BYTES if 0x20 < symbol[0][0] < 0x7F and symbol[0] not in (b"\\", b"#", b"?", b"%")]
_ESCAPED = [
    (escape := b"%%%02X" % byte, canonical(escape), reading(escape))
    for byte in (*range(0x20, 0x100), *range(1, 0x20))
    if not (chr(byte).isalnum() and byte < 0x80) and byte not in b"-._~"
]
"""Escapes that stay in a normalised path, in all their spellings."""
_UTF8 = expression(
    r"([\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
    r"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2})*"
)
_NORMAL = expression(r"\*|/|(/([^./][^/]*|\.[^./][^/]*|\.\.[^/]+))+/?")
_NAME = "[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
_ID = "([A-Za-z0-9_-]|[.][A-Za-z0-9_-]|[.][.][A-Za-z0-9._-])[A-Za-z0-9._-]*"
_UNIVERSES = {
    "port": _Universe((Language(expression("[0-9]{0,5}")),)),
    "method": _Universe(
        (Language(expression(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")),),
        prefer=(b"GET", b"POST", b"PUT", b"DELETE", b"PATCH"),
    ),
    "identity": _Universe(
        (Language(expression(rf"spiffe://[a-z0-9._-]+(/{_ID})+|{_NAME}([.]{_NAME})*")),),
        prefer=(b"spiffe://example.org/ns/default/sa/default",),
    ),
    # What several fields of one name are joined to may end in a comma and a blank, which one field alone cannot.
    "header": _Universe(
        (
            Language(expression(r"([^\x00-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?(, )*")),
            Language(_UTF8),
        )
    ),
    "query": _Universe((Language(ANYTHING),)),
}


def _paths(matchers: Iterable[Matcher]) -> _Universe:
    """Normalised paths. Escapes that plain texts do not name are all one to them, which spares most of the work."""
    every = _Universe((Language(_NORMAL), Language(_UTF8, READ)), (*_PLAIN, *_ESCAPED), (b"/",))
    named: set[int] = set()
    for matcher in matchers:
        if matcher.kind == "ambiguous":
            continue
        if matcher.kind == "regex" or is_template(matcher.text):
            return every
        named.update(reading(spelled(matcher.text)))
    if max(named, default=0) >= 0x80:
        return every
    others = [symbol for symbol in _ESCAPED if len(symbol[READ]) == 1 and symbol[READ][0] not in named]
    escaped = [symbol for symbol in _ESCAPED if symbol not in others]
    for refused in (False, True):
        escaped += [symbol for symbol in others if ambiguous(symbol[SENT]) is refused][:1]
    return _Universe((Language(_NORMAL),), (*_PLAIN, *escaped), (b"/",))


_OF_MATCHERS = {"host": _any_host, "path": _paths}
_USUAL = tuple(map(address_of, ("127.0.0.1", "192.0.2.1", "2001:db8::1", "0.0.0.0", "::")))


def _addresses(matchers: Iterable[Matcher]) -> list[Member]:
    """Returns an address for each set of blocks that holds any: where a block begins or has just ended."""
    blocks = {matcher: network_of(matcher.text) for matcher in matchers}
    found: dict[frozenset[Matcher], bytes] = {}
    for address in (*_USUAL, *chain.from_iterable(map(_edges, blocks.values()))):
        of = frozenset(matcher for matcher, block in blocks.items() if address in block)
        found.setdefault(of, str(address).encode())
    return [Member(address, of) for of, address in found.items()]


def _edges(block: Network) -> Iterable[Address]:
    for number in {min(1, block.num_addresses - 1), 0}:
        yield address_of(str(block[number]))
    if int(block[-1]) + 1 < 1 << block.max_prefixlen:
        yield address_of(str(block[-1] + 1))
