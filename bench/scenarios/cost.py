"""What the features of l7proxy cost a request, each against the same sidecar without it."""

from bench.compare import Comparison, Entry
from bench.contenders import BARE, FULL, L7PROXY, Setup
from bench.model import Finding, Row
from bench.scenarios.http1 import small
from bench.stats import median


def dearer(rows: dict[str, Row], label: str, than: str) -> float:
    """Returns the median over the rounds of the difference in CPU microseconds a request."""
    pairs = zip(rows[label].samples, rows[than].samples, strict=True)
    return median([1e6 / one.per_core - 1e6 / other.per_core for one, other in pairs])


def _costs(rows: dict[str, Row]) -> list[Finding]:
    chain, telemetry = dearer(rows, "chain", "none"), dearer(rows, "telemetry", "none")
    everything = dearer(rows, "everything", "none")
    return [
        Finding("authorization + rate limit + headers + timeout", chain, "us CPU a request", "<= 15", chain <= 15),
        Finding("metrics + 1 % traces + JSON log", telemetry, "us CPU a request", "<= 8", telemetry <= 8),
        Finding("everything", everything, "us CPU a request"),
    ]


SCENARIOS = (
    Comparison(
        name="cost",
        title="l7proxy: what chain and telemetry cost a request (HTTP/1.1, 32 connections, 1 KB)",
        entries=(
            Entry(L7PROXY, BARE, "none"),
            Entry(L7PROXY, Setup(chain=True, telemetry=False), "chain"),
            Entry(L7PROXY, Setup(chain=False, telemetry=True), "telemetry"),
            Entry(L7PROXY, FULL, "everything"),
        ),
        drive=small,
        derive=_costs,
        reference="none",
    ),
)
