"""Every policy that comes with the proxy, outermost first: the order in which requests meet them."""

from l7proxy.core.handler import Filter
from l7proxy.filters.headers import Headers
from l7proxy.filters.rate_limit import RateLimit
from l7proxy.filters.retry import Retry
from l7proxy.filters.timeout import Timeout

FILTERS: tuple[type[Filter], ...] = (
    RateLimit,
    Headers,
    Timeout,
    Retry,
)
