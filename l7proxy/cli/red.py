"""Rate, errors and duration of each route and upstream between two readings of the metrics."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct

Stats = Mapping[str, Any]
"""What `/stats` answers: each an `admin.answers.Metric`."""
Labels = Mapping[str, str]

SERVER = "http_server_request_duration_seconds"
CLIENT = "http_client_request_duration_seconds"
NAMES = (SERVER, CLIENT, "l7proxy_upstream_", "l7proxy_requests", "l7proxy_workers", "process_")
"""What the names of the metrics begin with that are read here."""

# What spends a service's error budget, as in the dashboards.
_GRPC_FAILED = frozenset(("UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"))


class Red(Struct):
    """What became of the requests of one route or upstream.

    `refused` is a status 4xx, `failed` what the service or its proxy failed; `ever` counts since the start. `buckets`
    leave tunnels out: those last as long as their two ends like.
    """

    name: str
    direction: str = ""
    ever: int = 0
    count: int = 0
    refused: int = 0
    failed: int = 0
    active: int = 0
    connections: int = 0
    buckets: list[int] = []

    def quantile(self, share: float, bounds: list[float]) -> float | None:
        """Returns the seconds that a share of the requests stayed within, as Prometheus estimates them.

        None where there was no request; infinity beyond the greatest bound.
        """
        left = share * sum(self.buckets)
        if not left:
            return None
        below = 0.0
        for count, bound in zip(self.buckets, bounds, strict=False):
            if count >= left:
                return below + (bound - below) * left / count
            left -= count
            below = bound
        return float("inf")


class Reading:
    """The metrics, and the requests under way by route (`admin.answers.Active`), at one moment in seconds."""

    def __init__(self, when: float, stats: Stats, active: Iterable[Mapping[str, Any]]) -> None:
        self.when = when
        self._stats = stats
        self._active = {(item["direction"], item["route"]): int(item["active"]) for item in active}
        self._seen = {
            name: {tuple(sorted(series["labels"].items())): series for series in self._series(name)}
            for name in (SERVER, CLIENT)
        }

    @property
    def bounds(self) -> list[float]:
        """The upper bounds of the buckets."""
        return list(self._stats.get(SERVER, {}).get("bounds", ()))

    def value(self, name: str) -> float:
        """Returns the sum over the series of a counter or gauge."""
        return float(sum(series["value"] for series in self._series(name)))

    def routes(self, before: "Reading") -> list[Red]:
        """Returns the routes that ever took a request, the busiest first."""

        def failed(labels: Labels) -> bool:
            grpc = labels["rpc_response_status_code"]
            return labels["http_response_status_code"].startswith("5") or grpc in _GRPC_FAILED

        found = self._tally(
            SERVER, before, lambda labels: (labels["l7proxy_direction"], labels["l7proxy_route"]), failed
        )
        for key, active in self._active.items():
            found.setdefault(key, Red(key[1], key[0])).active = active
        return _busiest(found.values())

    def upstreams(self, before: "Reading") -> list[Red]:
        """Returns the upstreams that were ever asked, the busiest first."""

        def failed(labels: Labels) -> bool:
            return bool(labels["error_type"]) and not labels["http_response_status_code"].startswith("4")

        found = self._tally(CLIENT, before, lambda labels: ("", labels["l7proxy_upstream"]), failed)
        for name, kind in (("active", "requests"), ("connections", "connections")):
            for series in self._series(f"l7proxy_upstream_{kind}"):
                red = found.get(("", series["labels"]["l7proxy_upstream"]))
                if red is not None:
                    setattr(red, name, int(series["value"]))
        return _busiest(found.values())

    def _series(self, name: str) -> list[Any]:
        series: list[Any] = self._stats.get(name, {}).get("series", [])
        return series

    def _tally(
        self,
        name: str,
        before: "Reading",
        of: Callable[[Labels], tuple[str, str]],
        failed: Callable[[Labels], bool],
    ) -> dict[tuple[str, str], Red]:
        found: dict[tuple[str, str], Red] = {}
        for labels, ever, buckets in self._grown(name, before):
            key = of(labels)
            red = found.get(key)
            if red is None:
                red = found[key] = Red(key[1], key[0])
            count, status = sum(buckets), labels["http_response_status_code"]
            red.ever += ever
            red.count += count
            if failed(labels):
                red.failed += count
            elif status.startswith("4"):
                red.refused += count
            if status != "101" and labels["http_request_method"] != "CONNECT":
                red.buckets = [
                    one + other for one, other in zip(red.buckets or [0] * len(buckets), buckets, strict=True)
                ]
        return found

    def _grown(self, name: str, before: "Reading") -> Iterator[tuple[Labels, int, list[int]]]:
        """Yields the labels of each series, its observations since the start, and those since `before` by bucket."""
        for key, series in self._seen[name].items():
            buckets, known = series["buckets"], before._seen[name].get(key)
            # The counters of a process that began anew are lower than they were.
            if known is not None and known["count"] <= series["count"]:
                buckets = [now - then for now, then in zip(buckets, known["buckets"], strict=True)]
            yield series["labels"], series["count"], buckets


def _busiest(found: Iterable[Red]) -> list[Red]:
    shown = [red for red in found if red.ever or red.active]
    return sorted(shown, key=lambda red: (-red.count, red.direction, red.name))
