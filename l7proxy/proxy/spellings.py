"""One spelling of each request field that a configuration looks at: applications that merge `-` and `_` see no other.

To CGI, WSGI and PHP `X_User` is another `X-User`. Where a rule, a match, a limit or an edit names a field, the other
spellings of it are removed before anything is decided, as the proxy does with the fields that it sets itself.
"""

from collections.abc import Iterable, Iterator

from l7proxy.config.model import Route
from l7proxy.core.headers import Headers, merged
from l7proxy.core.message import Request

_KNOWN = 4096
_LONGEST = 64
"""Names that are known to pass, and their length: clients choose some of them."""


class Spellings:
    """Removes other spellings of `names` (lower case) from requests, and every spelling of them from trailers.

    A field keeps the spelling in which it is named; one that is named in several keeps that with hyphens.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._kept: dict[bytes, bytes] = {}
        for name in {name.encode() for name in names}:
            key = merged(name)
            self._kept[key] = key if key in self._kept else name
        self._known: set[bytes] = set()

    def apply(self, request: Request) -> None:
        """Leaves the request one spelling of each field, now and once its trailers come."""
        headers = request.headers
        known = self._known
        for name, _ in headers:
            if name not in known and not self._passes(name):
                headers[:] = [pair for pair in headers if self._passes(pair[0])]
                break
        body = request.body
        if not isinstance(body, bytes):
            body.restrict(self._trailing)

    def _passes(self, name: bytes) -> bool:
        if self._kept.get(merged(name), name) != name:
            return False
        if len(name) <= _LONGEST:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known.add(name)
        return True

    def _trailing(self, trailers: Headers) -> Headers:
        return [pair for pair in trailers if merged(pair[0]) not in self._kept]


def named_by(route: Route) -> Iterator[str]:
    """Yields the request fields that the matches and policies of a route name."""
    for match in route.matches:
        yield from match.headers
    for policy in route.policies:
        yield from policy.request_fields
