"""Which series one request moves: found by one look-up of a tuple, made on first use, bounded in number."""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial

from l7proxy.core.handler import Keep
from l7proxy.core.message import Request
from l7proxy.core.slices import Steps
from l7proxy.core.stats import LATENCY_BUCKETS, Counter, Histogram, Labels, Stats

SERVER = "http_server_request_duration_seconds"
SERVER_HELP = "Time from the arrival of a request's head to the last byte of its response"
CLIENT = "http_client_request_duration_seconds"
CLIENT_HELP = "Time from the start of one attempt at an upstream to the last byte of its response"

METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH"))
"""Methods that OTel's HTTP conventions name; every other one is `_OTHER`, because a client may invent any."""

IDLE = 600.0
"""Seconds after which a series that traffic made, and that moves no more, is forgotten."""

MAX_PEERS = 200

Key = tuple[bytes, int, str, bytes, str, str, str, str, int]
"""(method, status, version, scheme, peer, code, flags, pattern, gRPC status)"""


class Peers:
    """The callers that metrics keep apart: at most `limit` at a time, all others are `other`."""

    def __init__(self, limit: int = MAX_PEERS) -> None:
        self.limit = limit
        self._uses: dict[str, int] = {}

    def take(self, identity: str) -> str:
        """Returns the label for one more series of `identity`."""
        if not identity or identity == "other":
            return identity
        uses = self._uses.get(identity, 0)
        if not uses and len(self._uses) >= self.limit:
            return "other"
        self._uses[identity] = uses + 1
        return identity

    def give(self, label: str) -> None:
        """One series of `label` is gone; with its last one the place is free for another peer."""
        uses = self._uses.get(label, 0)
        if uses > 1:
            self._uses[label] = uses - 1
        else:
            self._uses.pop(label, None)


class Table:
    """The request histograms of one route name, whichever configurations it lives in."""

    __slots__ = ("_stats", "_peers", "_name", "_direction", "series")

    def __init__(self, stats: Stats, peers: Peers, name: str, inbound: bool) -> None:
        self._stats = stats
        self._peers = peers
        self._name = name
        self._direction = "inbound" if inbound else "outbound"
        self.series: dict[Key, Histogram] = {}

    def find(self, key: Key) -> Histogram:
        """Returns the series of a key whose parts a client may have chosen, with those parts bounded."""
        method, status, version, scheme, peer, code, flags, pattern, grpc = key
        if method not in METHODS:
            method = b"_OTHER"
        if scheme != b"http" and scheme != b"https":
            scheme = b"_OTHER"
        if not -1 <= grpc <= 16:
            grpc = 2  # gRPC: a status that nobody defined is UNKNOWN.
        bounded = (method, status, version, scheme, peer, code, flags, pattern, grpc)
        series = self.series.get(bounded)
        if series is not None:
            return series
        label = self._peers.take(peer)
        if label != peer:
            bounded = (method, status, version, scheme, label, code, flags, pattern, grpc)
            series = self.series.get(bounded)
            if series is not None:
                return series
        series = self.series[bounded] = self._stats.histogram_at(SERVER, SERVER_HELP, self._labels(bounded))
        series.used = time.monotonic()
        return series

    def expire(self, now: float) -> None:
        """Forgets the series that no configuration declares and no request moved for `IDLE` seconds."""
        for key, series in list(self.series.items()):
            count = series.count
            if count != series.seen:
                series.seen = count
                series.used = now
            elif now - series.used >= IDLE and not series.pins:
                del self.series[key]
                self._stats.forget(SERVER, **dict(self._labels(key)))
                self._peers.give(key[4])

    def _labels(self, key: Key) -> Labels:
        method, status, version, scheme, peer, code, flags, pattern, grpc = key
        return (
            _pair("error_type", code or (str(status) if status >= 500 else "")),
            _pair("http_request_method", method.decode()),
            _pair("http_response_status_code", str(status)),
            ("http_route", pattern),
            _pair("l7proxy_direction", self._direction),
            _pair("l7proxy_flags", flags),
            ("l7proxy_peer", peer) if peer else _NOBODY,
            ("l7proxy_route", self._name),
            _pair("network_protocol_version", version),
            _pair("rpc_response_status_code", GRPC[grpc] if grpc >= 0 else ""),
            _pair("url_scheme", scheme.decode()),
        )


_NOBODY = ("l7proxy_peer", "")


@lru_cache(1000)
def _pair(name: str, value: str) -> tuple[str, str]:
    """Returns one object for each label that many series have: with ten thousand routes that saves 6 MB."""
    return name, value


class RouteMetrics:
    """What one configured route counts; made by `Metrics.route`, closed when its configuration is retired."""

    __slots__ = ("_table", "_series", "_pinned")

    def __init__(self, table: Table, declared: Iterable[tuple[str, bytes]]) -> None:
        self._table = table
        self._series = table.series
        keys: list[Key] = [(method, 200, "1.1", b"http", "", "", "", pattern, -1) for pattern, method in declared]
        self._pinned = tuple(map(table.find, keys))
        for series in self._pinned:
            series.pins += 1

    def finish(self, request: Request, status: int, seconds: float) -> None:
        """Counts one finished request."""
        key = (
            request.method,
            status,
            request.version,
            request.scheme,
            request.peer.identity,
            request.code,
            request.flags,
            request.pattern,
            request.grpc_status,
        )
        series = self._series.get(key)
        if series is None:
            series = self._table.find(key)
        series.buckets[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        series.sum += seconds
        span = request.span
        if span is not None and span.recording:
            series.exemplar = (seconds, span.trace_id, span.span_id, time.time())

    def close(self) -> None:
        """The configuration is gone: what it declared expires as traffic's series do."""
        for series in self._pinned:
            series.pins -= 1
        self._pinned = ()


class Metrics:
    """Every route's and upstream's metrics of this process."""

    def __init__(self, stats: Stats, max_peers: int = MAX_PEERS) -> None:
        self.stats = stats
        self._peers = Peers(max_peers)
        self._tables: dict[tuple[str, bool], Table] = {}
        self._upstreams: dict[str, UpstreamMetrics] = {}
        self._live: dict[str, set[str]] = {}
        self._gone: dict[tuple[str, str], float] = {}

    def route(
        self,
        keep: Keep,
        name: str,
        inbound: bool,
        declared: Iterable[tuple[str, bytes]] = (("/", b"GET"),),
    ) -> RouteMetrics:
        """Returns the metrics of a route, the same over swaps that leave its arguments as they are.

        `declared` are the path patterns and methods of the route's matches: their 200 series exist at 0 from the start.
        The name "" stands for requests that no route matches.
        """
        declared = tuple(dict.fromkeys(declared))

        def make() -> RouteMetrics:
            table = self._tables.get((name, inbound))
            if table is None:
                table = self._tables[name, inbound] = Table(self.stats, self._peers, name, inbound)
            return RouteMetrics(table, declared)

        return keep.get(("route metrics", name, inbound, declared), make)

    def upstream(self, name: str) -> "UpstreamMetrics":
        """Returns the metrics of an Upstream by name."""
        metrics = self._upstreams.get(name)
        if metrics is None:
            metrics = self._upstreams[name] = UpstreamMetrics(self.stats, name)
        return metrics

    def settle(self, routes: Iterable[str], upstreams: Iterable[str], now: float) -> Steps[None]:
        """Tells which names the live configuration has; what others are labelled with goes after `IDLE` seconds."""
        for label, found in (("l7proxy_route", routes), ("l7proxy_upstream", upstreams)):
            names: set[str] = set()
            for number, name in enumerate(found):
                names.add(name)
                if number % 256 == 0:
                    yield
            for name in self._live.get(label, set()) - names:
                self._gone[label, name] = now
            for pair in [pair for pair in self._gone if pair[0] == label and pair[1] in names]:
                del self._gone[pair]
            self._live[label] = names

    def expire(self, now: float) -> Iterator[None]:
        """Forgets idle series, a route or family a step, so that the caller can spread the work; due once a minute."""
        for key, table in list(self._tables.items()):
            table.expire(now)
            if not table.series:
                del self._tables[key]
            yield
        gone = {name for name, since in self._gone.items() if now - since >= IDLE}
        for family in self.stats if gone else ():
            # Those of requests have just been looked at.
            if family.name != SERVER:
                for labels in list(family.children):
                    if not gone.isdisjoint(labels):
                        del family.children[labels]
            yield
        for label, name in gone:
            del self._gone[label, name]
            if label == "l7proxy_upstream":
                self._upstreams.pop(name, None)


class UpstreamMetrics:
    """What one upstream's attempts, bytes and connections count."""

    __slots__ = (
        "_stats",
        "_name",
        "_series",
        "sent",
        "received",
        "connections",
        "connects",
        "connect_failures",
        "surplus",
    )

    def __init__(self, stats: Stats, name: str) -> None:
        self._stats = stats
        self._name = name
        self._series: dict[tuple[bytes, int, str], Histogram] = {}
        counter = partial(stats.counter, l7proxy_upstream=name)
        self.sent: Counter = counter("l7proxy_upstream_sent_bytes_total", "Bytes written to the upstream")
        self.received: Counter = counter("l7proxy_upstream_received_bytes_total", "Bytes read from the upstream")
        self.connects: Counter = counter("l7proxy_upstream_connects_total", "Connections opened to the upstream")
        self.connect_failures: Counter = counter(
            "l7proxy_upstream_connect_failures_total", "Connections to the upstream that could not be opened"
        )
        self.surplus: Counter = counter(
            "l7proxy_upstream_surplus_total", "Connections given up because the upstream sent more than its answer"
        )
        self.connections = stats.gauge(
            "l7proxy_upstream_connections", "Open connections to the upstream", l7proxy_upstream=name
        )
        self._find((b"GET", 200, ""))

    def observe(self, method: bytes, status: int, code: str, seconds: float) -> None:
        """Counts one attempt: `status` is 0 when no response head came, and `code` then says why."""
        key = (method, status, code)
        series = self._series.get(key)
        if series is None:
            series = self._find(key)
        series.buckets[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        series.sum += seconds

    def _find(self, key: tuple[bytes, int, str]) -> Histogram:
        method, status, code = key
        if method not in METHODS:
            method = b"_OTHER"
        bounded = (method, status, code)
        series = self._series.get(bounded)
        if series is None:
            series = self._series[bounded] = self._stats.histogram(
                CLIENT,
                CLIENT_HELP,
                error_type=code or (str(status) if status >= 400 else ""),
                http_request_method=method.decode(),
                http_response_status_code=str(status) if status else "",
                l7proxy_upstream=self._name,
            )
        return series


GRPC = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""gRPC's status names by number."""
