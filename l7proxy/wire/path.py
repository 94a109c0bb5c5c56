"""One value for one resource: the request path in the only spelling that is matched, authorised and forwarded."""

import re
from urllib.parse import quote

from l7proxy.wire.framing import Malformed

_PLAIN = re.compile(rb"(?:/[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9_.~!$&'()*+,=:@-]*+)*+/?")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")
_ALLOWED = re.compile(rb"[!-~]*")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
AMBIGUITIES = ";|%25|%0|%1|%7F"
"""What makes a normalised path `ambiguous`, as a regular expression."""
_AMBIGUOUS = re.compile(AMBIGUITIES.encode())
_RAW = re.compile(r"[^!-~]")
_READ = re.compile(rb"%(?!2F|5C|25)([0-9A-F]{2})")
_OPTIONAL = re.compile(rb"%(?!2[035F]|3F|5C|7F)([2-7][0-9A-F])")


def normalise(path: bytes) -> bytes:
    """Returns `path` (without its query) normalised as RFC 3986 6.2.2 says, with duplicate slashes merged.

    Dot segments are removed, escapes of unreserved characters decoded, other escapes upper-cased. `%2F` and `%5C` stay
    as they are: see `has_slashes`. Raises Malformed for a backslash, raw controls and non-ASCII, NUL in any form,
    escapes that are none and escapes that are not UTF-8.
    """
    if _PLAIN.fullmatch(path):
        return path or b"/"
    if path == b"*":
        return path
    if not path.startswith(b"/"):
        raise Malformed("path")
    if b"\\" in path or not _ALLOWED.fullmatch(path):
        raise Malformed("path_character")
    if b"#" in path:
        raise Malformed("path_fragment")
    if b"%" in path:
        path = _decode(path)
    out: list[bytes] = []
    segments = path.split(b"/")
    for segment in segments:
        if segment == b"..":
            if out:
                out.pop()
        elif segment not in (b"", b"."):
            out.append(segment)
    if not out:
        return b"/"
    # A path that named a folder still does: "/a/", "/a/." and "/a/b/.." end in a slash.
    tail = b"/" if segments[-1] in (b"", b".", b"..") else b""
    return b"/" + b"/".join(out) + tail


def has_slashes(path: bytes) -> bool:
    """Tells whether a normalised path holds `%2F` or `%5C`, which applications may read as slashes."""
    return b"%2F" in path or b"%5C" in path


def ambiguous(path: bytes) -> bool:
    """Tells whether applications disagree on what a normalised path names, slashes aside.

    They do on `;` parameters, double escapes and escaped controls: `$` in the patterns of many frameworks matches
    before a last `%0A`, too.
    """
    return _AMBIGUOUS.search(path) is not None


def reading(path: bytes) -> bytes:
    """Returns what applications read in a normalised path: `%3A` and `:` are one to them, though not to RFC 3986.

    `%2F`, `%5C` and `%25` stay as they are: those are not one to all.
    """
    return _READ.sub(lambda match: bytes((int(match[1], 16),)), path) if b"%" in path else path


def canonical(path: bytes) -> bytes:
    """Returns the same spelling for all normalised paths with one `reading`: an escape stays where it must be one."""
    return _OPTIONAL.sub(lambda match: bytes((int(match[1], 16),)), path) if b"%" in path else path


def spelled(text: str) -> bytes:
    """Returns a path as a configuration writes it, with its escapes, blanks and letters as requests must have them.

    Raises Malformed for escapes that are none.
    """
    path = _RAW.sub(lambda found: quote(found[0]), text).encode()
    return _decode(path) if b"%" in path else path


def unescape_slashes(path: bytes) -> bytes:
    """Returns the path with `%2F` and `%5C` read as slashes, normalised again."""
    return normalise(path.replace(b"%2F", b"/").replace(b"%5C", b"/"))


def _decode(path: bytes) -> bytes:
    high = bytearray()

    def escape(match: re.Match[bytes]) -> bytes:
        if match[1] is None:
            raise Malformed("path_escape")
        value = int(match[1], 16)
        if value == 0:
            raise Malformed("path_nul")
        if value in _UNRESERVED:
            return bytes((value,))
        high.append(value)
        return match[0].upper()

    decoded = _ESCAPE.sub(escape, path)
    if any(byte >= 0x80 for byte in high):
        # Overlong and broken UTF-8 is how filters are fooled: two readers decode it differently.
        raw = re.sub(rb"%([0-9A-F]{2})", lambda match: bytes((int(match[1], 16),)), decoded)
        try:
            raw.decode()
        except UnicodeDecodeError:
            raise Malformed("path_utf8") from None
    return decoded
