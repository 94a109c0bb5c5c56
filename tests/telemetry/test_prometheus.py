"""The text of a scrape, held to the OTel exporter's, to Prometheus' own parsers and to promtool."""

import math
import subprocess
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from l7proxy.core.handler import Keep
from l7proxy.core.stats import Stats
from l7proxy.telemetry.metrics import SERVER, Metrics
from l7proxy.telemetry.otel import Exposition
from l7proxy.telemetry.process import observe_process
from l7proxy.telemetry.prometheus import number, render, wants_openmetrics
from tests.telemetry.requests import finished

TARGET = {"service.name": "orders", "service.version": '1"\\', "l7proxy.mesh": "demo"}


def text(stats: Stats, openmetrics: bool = False) -> str:
    return "".join(render(stats, TARGET, openmetrics))


def parsed(stats: Stats) -> list[Metric]:
    return list(text_string_to_metric_families(text(stats, openmetrics=True)))  # type: ignore[no-untyped-call]


def busy() -> Stats:
    """Returns metrics of every kind, with and without labels."""
    stats, keep = Stats(), Keep()
    metrics = Metrics(stats)
    for name in ("a", "b"):
        route = metrics.route(keep, name, True, [("/v1/orders", b"GET"), ("/x", b"PUT")])
        for index in range(30):
            route.finish(finished(f"peer-{index % 3}"), 200 + index, index / 7)
    metrics.upstream("app").observe(b"GET", 200, "", 1e-9)
    stats.counter("l7proxy_plain_total", "Has no labels").value = 12_345_678
    stats.gauge("l7proxy_level", 'A "quoted" \\ help\nin two lines', a="x").value = -1.5
    stats.histogram("l7proxy_lag_seconds", "Has no labels").observe(3)
    return stats


@pytest.mark.parametrize("openmetrics", [False, True])
def test_the_text_is_the_exporters(openmetrics: bool) -> None:
    stats = busy()
    assert text(stats, openmetrics) == Exposition(stats, TARGET).render(openmetrics).decode()


@given(
    st.lists(
        # The SDK itself leaves out what is not finite.
        st.tuples(st.text(), st.text(), st.floats(0, allow_infinity=False)),
        min_size=1,
        unique_by=lambda row: row[:2],
    )
)
@example([("\\", '"\n', 5e-324), ("", "é", 0.0), ("\\n", "\r", 1e21)])
def test_any_label_and_value_is_written_as_the_exporter_does(rows: list[tuple[str, str, float]]) -> None:
    stats = Stats()
    for one, two, value in rows:
        stats.counter("l7proxy_test_total", "Help", one=one, two=two).value = value
    for openmetrics in (False, True):
        assert text(stats, openmetrics) == Exposition(stats, TARGET).render(openmetrics).decode()


def test_the_exporter_sees_what_was_added_after_its_first_scrape() -> None:
    stats = Stats()
    stats.counter("l7proxy_one_total", "One").value = 1
    exposition = Exposition(stats, TARGET)
    exposition.render()
    stats.counter("l7proxy_two_total", "Two").value = 2
    assert text(stats) == exposition.render().decode()


def test_a_sampled_request_leaves_an_exemplar_in_its_bucket() -> None:
    class Span:
        recording = True
        trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

    stats = Stats()
    route = Metrics(stats).route(Keep(), "r", True)
    route.finish(finished("a", span=Span()), 200, 0.3)
    route.finish(finished("a"), 200, 0.8)
    exemplars: list[tuple[str, Any]] = [
        (sample.labels["le"], sample.exemplar)
        for family in parsed(stats)
        for sample in family.samples
        if sample.exemplar is not None
    ]
    [(bound, exemplar)] = exemplars
    assert bound == "0.5"
    assert exemplar.labels == {"trace_id": Span.trace_id, "span_id": Span.span_id}
    assert exemplar.value == 0.3
    assert "# {" not in text(stats)


def test_openmetrics_parses_to_the_same_numbers() -> None:
    families = {family.name: family for family in parsed(busy())}
    assert families["http_server_request_duration_seconds"].type == "histogram"
    assert families["http_server_request_duration_seconds"].unit == "seconds"
    assert families["l7proxy_plain"].samples[0].value == 12_345_678
    counts = [sample for sample in families[SERVER].samples if sample.name == f"{SERVER}_count"]
    assert sum(sample.value for sample in counts) == 60
    [target] = families["target"].samples
    assert target.labels == {"service_name": "orders", "service_version": '1"\\', "l7proxy_mesh": "demo"}


@pytest.mark.needs("promtool")
def test_promtool_finds_nothing_to_say() -> None:
    stats = busy()
    observe_process(stats)
    stats.families["l7proxy_level"].help = "Help"
    check = subprocess.run(["promtool", "check", "metrics"], input=text(stats), capture_output=True, text=True)
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_series_that_come_and_go_during_a_scrape_do_no_harm() -> None:
    stats = busy()
    pieces = render(stats, TARGET)
    next(pieces)
    for family in stats:
        for labels in list(family.children):
            stats.forget(family.name, **dict(labels))
    stats.counter("l7proxy_late_total", "Late").value = 1
    assert all(piece.endswith("\n") for piece in pieces)


def test_a_piece_is_never_long() -> None:
    stats = Stats()
    route = Metrics(stats).route(Keep(), "r", True)
    for index in range(100):
        route.finish(finished(f"peer-{index}"), 200, 0.1)
    assert max(piece.count("_count{") for piece in render(stats, TARGET)) == 4


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("application/openmetrics-text", True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", True),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.3", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x", False),
    ],
)
def test_openmetrics_is_written_where_it_is_preferred(accept: str, openmetrics: bool) -> None:
    assert wants_openmetrics(accept) is openmetrics


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0.0"),
        (1, "1.0"),
        (0.1, "0.1"),
        (999_999, "999999.0"),
        (1_000_000, "1e+06"),
        (1_234_567.5, "1.2345675e+06"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
        (-2e6, "-2000000.0"),
    ],
)
def test_numbers_are_written_as_go_does(value: float, written: str) -> None:
    assert number(value) == written
