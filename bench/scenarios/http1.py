"""HTTP/1.1 keep-alive: as much as the proxies carry, and fixed rates below that."""

from bench.compare import Comparison, Entry
from bench.contenders import BARE, ENVOY, FULL, HAPROXY, L7PROXY, NAIVE, NGINX, Proxy
from bench.load import Load, h2load_rate, wrk
from bench.model import Goal

CONNECTIONS = 32
FEATURES_ON = tuple(Entry(contender, FULL) for contender in (L7PROXY, ENVOY, NGINX, HAPROXY))
NAIVE_BARE = Entry(NAIVE, BARE, "naive (bare)")


def small(proxy: Proxy, seconds: int) -> Load:
    """Asks for 1 KB over 32 connections."""
    return wrk(proxy.url("/1k"), CONNECTIONS, seconds)


def large(proxy: Proxy, seconds: int) -> Load:
    """Asks for 100 KB over 32 connections."""
    return wrk(proxy.url("/100k"), CONNECTIONS, seconds)


def slowly(proxy: Proxy, seconds: int) -> Load:
    """Asks for 1 KB 1,000 times a second."""
    return h2load_rate(proxy.url("/1k"), 1000, seconds)


def briskly(proxy: Proxy, seconds: int) -> Load:
    """Asks for 1 KB 5,000 times a second."""
    return h2load_rate(proxy.url("/1k"), 5000, seconds)


SCENARIOS = (
    Comparison(
        name="h1-1k",
        title="HTTP/1.1, 32 connections, 1 KB, features on",
        entries=(*FEATURES_ON, NAIVE_BARE),
        drive=small,
        goals=(
            Goal("l7proxy", "envoy", "rate", 1.2),
            Goal("l7proxy", "envoy", "per_core", 1.2),
            Goal("l7proxy", "envoy", "p99", 1.0, at_least=False),
            Goal("l7proxy", "envoy", "rss", 1.0, at_least=False),
        ),
    ),
    Comparison(
        name="h1-1k-bare",
        title="HTTP/1.1, 32 connections, 1 KB, bare",
        entries=(*(Entry(contender, BARE) for contender in (L7PROXY, ENVOY, NGINX, HAPROXY)), NAIVE_BARE),
        drive=small,
    ),
    Comparison(
        name="h1-100k",
        title="HTTP/1.1, 32 connections, 100 KB, features on",
        entries=(*FEATURES_ON, NAIVE_BARE),
        drive=large,
    ),
    Comparison(
        name="rate-1000",
        title="HTTP/1.1, 1,000 requests/s, 1 KB, features on",
        entries=FEATURES_ON,
        drive=slowly,
    ),
    Comparison(
        name="rate-5000",
        title="HTTP/1.1, 5,000 requests/s, 1 KB, features on",
        entries=FEATURES_ON,
        drive=briskly,
    ),
)
