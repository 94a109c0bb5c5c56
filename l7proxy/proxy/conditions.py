"""What a match asks of a request beyond its host and path, compiled into functions, each with the words for it."""

from collections.abc import Callable
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from l7proxy.config.model import Match, TextMatch
from l7proxy.core.headers import Headers
from l7proxy.core.patterns import whole

Fields = dict[bytes, bytes]


class Condition(Struct, frozen=True):
    """One condition. `exact` is (the kind of field, its name, its value) where only equality decides."""

    holds: Callable[[bytes, Fields, Fields], bool]
    text: str
    exact: tuple[str, bytes, bytes] | None = None


def conditions(match: Match) -> tuple[Condition, ...]:
    """Returns the conditions on method, headers and query parameters."""
    found: list[Condition] = []
    if match.methods:
        methods = frozenset(method.encode() for method in match.methods)
        found.append(Condition(lambda method, _, __: method in methods, f"method {' or '.join(match.methods)}"))
    for name, wanted in match.headers.items():
        found.append(_header(name.encode(), wanted))
    for name, wanted in match.query.items():
        found.append(_parameter(name.encode(), wanted))
    return tuple(found)


def fields(headers: Headers, names: dict[bytes, tuple[bytes, ...]]) -> Fields:
    """Returns the named header fields; one that came several times is a list (RFC 9110 5.3).

    `names` are the spellings in which they may come, each with the names by which conditions ask for it.
    """
    found: Fields = {}
    for spelling, value in headers:
        for name in names.get(spelling, ()):
            found[name] = found[name] + b", " + value if name in found else value
    return found


def parameters(query: bytes, names: frozenset[bytes]) -> Fields:
    """Returns the named query parameters, decoded; of one that came several times the first counts."""
    found: Fields = {}
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        name = _unquote(name)
        if name in names and name not in found:
            found[name] = _unquote(value)
    return found


def _unquote(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" ")) if b"%" in text or b"+" in text else text


def _header(name: bytes, wanted: str | TextMatch) -> Condition:
    test, text, exact = _test(wanted)
    return Condition(
        lambda _, headers, __: test(headers.get(name)),
        f"header {name.decode()} {text}",
        None if exact is None else ("header", name, exact),
    )


def _parameter(name: bytes, wanted: str | TextMatch) -> Condition:
    test, text, exact = _test(wanted)
    return Condition(
        lambda _, __, query: test(query.get(name)),
        f"query parameter {name.decode()} {text}",
        None if exact is None else ("query", name, exact),
    )


def _test(wanted: str | TextMatch) -> tuple[Callable[[bytes | None], bool], str, bytes | None]:
    """Returns the test of a value (None where there is none), the words for it, and the one value that passes it."""
    if isinstance(wanted, str):
        wanted = TextMatch(exact=wanted)
    if wanted.exact is not None:
        exact = wanted.exact.encode()
        return (lambda value: value == exact), f"= {wanted.exact!r}", exact
    if wanted.prefix is not None:
        prefix = wanted.prefix.encode()
        return (lambda value: value is not None and value.startswith(prefix)), f"starts with {wanted.prefix!r}", None
    if wanted.suffix is not None:
        suffix = wanted.suffix.encode()
        return (lambda value: value is not None and value.endswith(suffix)), f"ends with {wanted.suffix!r}", None
    if wanted.regex is not None:
        matches = whole(wanted.regex)
        return (lambda value: value is not None and matches(value)), f"matches {wanted.regex!r}", None
    present = wanted.present
    return (lambda value: (value is not None) is present), "is present" if present else "is absent", None
