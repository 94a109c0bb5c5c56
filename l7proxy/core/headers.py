"""Header fields as a list of (lower-case name, value) byte pairs: order and duplicates are kept, nothing is decoded."""

from collections.abc import Iterable

Headers = list[tuple[bytes, bytes]]

_VOUCHED = (b"x-forwarded-", b"x-l7proxy-", b"x-envoy-", b"x-request-id")


def merged(name: bytes) -> bytes:
    """Returns the one name of all spellings that applications which merge `-` and `_` (CGI, WSGI, PHP) take for one."""
    return name.replace(b"_", b"-")


def spellings(name: bytes) -> tuple[bytes, ...]:
    """Returns the names under which a field that a configuration calls `name` may stand in a request: one or two.

    Other spellings are gone when policies see it: see `proxy.spellings`.
    """
    return tuple(dict.fromkeys((name, merged(name))))


def vouches(name: bytes) -> bool:
    """Tells whether a field, in any spelling, says who a client is or what a proxy found: only a proxy may."""
    return name[:1] == b"x" and merged(name).startswith(_VOUCHED)


def find(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """Returns the first value of `name` (lower case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def find_all(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Returns every value of `name` (lower case) in order."""
    return [value for key, value in headers if key == name]


def joined(headers: Iterable[tuple[bytes, bytes]], *names: bytes) -> bytes | None:
    """Returns all values of `names` as one list value (RFC 9110 5.3), or None if there is none."""
    values = [value for key, value in headers if key in names]
    return b", ".join(values) if values else None


def without(headers: Iterable[tuple[bytes, bytes]], *names: bytes) -> Headers:
    """Returns the headers less every field called one of `names` (lower case)."""
    return [pair for pair in headers if pair[0] not in names]


def tokens(value: bytes) -> list[bytes]:
    """Splits a comma-separated list into lower-case tokens, leaving out empty ones (RFC 9110 5.6.1)."""
    return [token for part in value.split(b",") if (token := part.strip(b" \t").lower())]
