"""Every policy, outermost first: the order in which requests meet them."""

from functools import cache
from importlib.metadata import entry_points

from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.handler import Filter
from l7proxy.filters.authorization import Authorization
from l7proxy.filters.grpc_web import GrpcWeb
from l7proxy.filters.headers import Headers
from l7proxy.filters.rate_limit import RateLimit
from l7proxy.filters.retry import Retry
from l7proxy.filters.timeout import Timeout

FILTERS: tuple[type[Filter], ...] = (
    Authorization,
    RateLimit,
    GrpcWeb,
    Headers,
    Timeout,
    Retry,
)
"""Those that come with the proxy."""

GROUP = "l7proxy.filters"
"""The entry point group of policies in other packages; they stand before `timeout`, in the order of their names."""

_OWN = {kind.name: (place, kind) for place, kind in enumerate(FILTERS)}
_BEFORE_TIMEOUT = FILTERS.index(Timeout) - 0.5


def find(name: str) -> tuple[float, type[Filter]] | None:
    """Returns (place in the order, type) of a policy, or None.

    Other packages are only looked at for a name that is not our own: to look costs more than to start.
    """
    own = _OWN.get(name)
    if own is not None:
        return own
    kind = others().get(name)
    return None if kind is None else (_BEFORE_TIMEOUT, kind)


def every() -> list[type[Filter]]:
    """Returns all policies in order."""
    place = FILTERS.index(Timeout)
    return [*FILTERS[:place], *others().values(), *FILTERS[place:]]


@cache
def others() -> dict[str, type[Filter]]:
    """Returns the policies of other packages by name; raises ConfigError for one that cannot be used."""
    found: dict[str, type[Filter]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            kind = point.load()
        except Exception as error:
            raise ConfigError([Problem(f"entry point {point.value}", 0, f"cannot be loaded: {error}")]) from error
        if not (isinstance(kind, type) and issubclass(kind, Filter)):
            raise ConfigError([Problem(f"entry point {point.value}", 0, "is not a Filter")])
        if kind.name in _OWN or kind.name in found:
            raise ConfigError([Problem(f"entry point {point.value}", 0, f"there is another policy {kind.name!r}")])
        found[kind.name] = kind
    return found
