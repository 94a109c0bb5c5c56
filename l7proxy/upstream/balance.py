"""Which endpoint gets a request: among those that may be used, by load or in turn."""

import math
from collections.abc import Callable, Sequence
from random import Random

from l7proxy.upstream.endpoint import Endpoint

DECAY = 10.0
"""Seconds in which an old latency loses most of its weight (Linkerd's peak EWMA)."""

Pick = Callable[[Sequence[Endpoint]], Endpoint]


def observe(endpoint: Endpoint, seconds: float, failed: bool, now: float) -> None:
    """Takes one latency into the endpoint's moving average: peaks count at once, better times slowly."""
    if failed:
        # A fast failure must not look like a fast endpoint.
        seconds = max(seconds, 1.0)
    before = endpoint.latency
    if seconds >= before:
        endpoint.latency = seconds
    else:
        weight = math.exp((endpoint.stamp - now) / DECAY)
        endpoint.latency = before * weight + seconds * (1.0 - weight)
    endpoint.stamp = now


def peak_ewma(random: Random) -> Pick:
    """Of two random endpoints, the one whose latency times its requests under way is less."""
    choice = random.random

    def pick(endpoints: Sequence[Endpoint]) -> Endpoint:
        one, other = _two(endpoints, choice)
        cost = one.latency * (one.active + 1)
        return one if cost <= other.latency * (other.active + 1) else other

    return pick


def least_request(random: Random) -> Pick:
    """Of two random endpoints, the one with fewer requests under way."""
    choice = random.random

    def pick(endpoints: Sequence[Endpoint]) -> Endpoint:
        one, other = _two(endpoints, choice)
        return one if one.active <= other.active else other

    return pick


def round_robin(random: Random) -> Pick:
    """Each in turn, from a random start so that many proxies do not march in step."""
    at = random.randrange(1 << 16)

    def pick(endpoints: Sequence[Endpoint]) -> Endpoint:
        nonlocal at
        at += 1
        return endpoints[at % len(endpoints)]

    return pick


def _two(endpoints: Sequence[Endpoint], choice: Callable[[], float]) -> tuple[Endpoint, Endpoint]:
    count = len(endpoints)
    first = int(choice() * count)
    second = int(choice() * (count - 1))
    return endpoints[first], endpoints[second + 1 if second >= first else second]


PICKS: dict[str, Callable[[Random], Pick]] = {
    "peakEwma": peak_ewma,
    "leastRequest": least_request,
    "roundRobin": round_robin,
}
