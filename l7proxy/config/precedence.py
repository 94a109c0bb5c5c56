"""Which route comes first: the Gateway API's order, in one place for the router and the check of shadowed routes.

The host decides first: exact, then the longest `*.suffix`, then `*`; a request never falls through to a wider host.
Then the path: exact, then the longest prefix of whole segments, then patterns of gRPC calls, then the prefix `/`, then
regex. Among equals a match with methods comes first, then the one with more headers, then with more query parameters;
then the Route that stands first in the files, and of Gateway API documents the oldest.
"""

from l7proxy.config.model import CallMatch, Match, PathMatch
from l7proxy.wire.framing import Malformed
from l7proxy.wire.path import normalise, spelled

Rank = tuple[int, int, int, int, int]


def place(path: PathMatch) -> tuple[int, int]:
    """Returns what orders two paths that a request matches; the lesser comes first."""
    if path.exact is not None:
        return 0, 0
    if path.prefix is not None:
        length = len(prefix_key(path.prefix))
        return (1, -length) if length else (3, 0)
    return (2, 0) if isinstance(path, CallMatch) else (4, 0)


def rank(match: Match) -> Rank:
    """Returns what orders two matches whose paths have the same place; the lesser comes first.

    GRPCRoute: the most characters in the service, then in the method, then the most headers.
    """
    named = (match.path.service, match.path.method) if isinstance(match.path, CallMatch) else (0, 0)
    return -named[0], -named[1], 0 if match.methods else 1, -len(match.headers), -len(match.query)


def exact_key(path: str) -> bytes:
    """Returns the normalised path that an exact match compares; raises ValueError for what no request can ask for."""
    try:
        return normalise(spelled(path))
    except Malformed as error:
        raise ValueError(str(error)) from None


def prefix_key(path: str) -> bytes:
    """Returns the normalised prefix without its last slash; b"" is the prefix of every path."""
    return exact_key(path).rstrip(b"/")


def within(path: bytes, prefix: bytes) -> bool:
    """Tells whether the prefix (as `prefix_key` gives it) matches the path by whole segments."""
    return path.startswith(prefix) and (len(path) == len(prefix) or path[len(prefix)] == 0x2F or not prefix)


def suffixes(host: bytes) -> list[bytes]:
    """Returns the wildcard suffixes that cover a host, longest first: `a.b.c` -> `b.c`, `c`."""
    labels = host.split(b".")
    return [b".".join(labels[at:]) for at in range(1, len(labels))]
