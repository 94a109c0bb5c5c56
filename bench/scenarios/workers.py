"""What a second worker adds."""

from bench.compare import Comparison, Entry
from bench.contenders import L7PROXY, Setup
from bench.model import Finding, Row, ratio
from bench.scenarios.http1 import small

ONE, TWO = "1 worker", "2 workers"


def _scaling(rows: dict[str, Row]) -> list[Finding]:
    found = ratio(rows[TWO], rows[ONE], "per_core")
    assert found is not None
    return [Finding("two workers on two cores of their own / one on one", 2 * found, "x", ">= 1.8x", 2 * found >= 1.8)]


SCENARIOS = (
    Comparison(
        name="workers",
        title="l7proxy: two workers against one (HTTP/1.1, 32 connections, 1 KB, features on)",
        entries=(Entry(L7PROXY, Setup(), ONE), Entry(L7PROXY, Setup(workers=2), TWO)),
        drive=small,
        derive=_scaling,
        reference=ONE,
        notes=(
            "On two cores, generator and backend take from the workers what they need, so the requests a second cannot "
            "double. What shows is the CPU that a request costs, the parent's work included: where it is no more than "
            "with one worker, two cores carry twice as much.",
        ),
    ),
)
