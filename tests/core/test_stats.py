"""The registry of metrics: one object for each name and labels, and names that every format can tell apart."""

import pytest

from l7proxy.core.stats import Stats


def test_the_same_name_and_labels_are_the_same_metric() -> None:
    stats = Stats()
    stats.counter("a_total", "A", x="1", y="2").value += 1
    assert stats.counter("a_total", "A", y="2", x="1").value == 1
    assert stats.counter("a_total", "A", x="2", y="2").value == 0


def test_a_gauge_is_read_by_whoever_bound_it_last() -> None:
    stats = Stats()
    gauge = stats.gauge("g", "G", lambda: 1.0)
    stats.gauge("g", "G", lambda: 2.0)
    stats.gauge("g", "G")
    assert gauge.value == 2.0


def test_a_histogram_counts_below_each_bound() -> None:
    histogram = Stats().histogram("h_seconds", "H")
    for value in (0.0005, 0.0006, 10, 11):
        histogram.observe(value)
    assert (histogram.buckets[0], histogram.buckets[1], histogram.buckets[-2], histogram.buckets[-1]) == (1, 1, 1, 1)
    assert (histogram.count, histogram.sum) == (4, pytest.approx(21.0011))


def test_a_forgotten_series_begins_anew() -> None:
    stats = Stats()
    stats.counter("a_total", "A", x="1").value = 5
    stats.forget("a_total", x="1")
    stats.forget("a_total", x="2")
    stats.forget("b_total")
    assert stats.counter("a_total", "A", x="1").value == 0


def test_names_that_one_format_cannot_tell_apart_are_refused() -> None:
    stats = Stats()
    stats.counter("a_total", "A")
    stats.gauge("b", "B")
    with pytest.raises(ValueError, match="a_total is a counter, not a gauge"):
        stats.gauge("a_total", "A")
    with pytest.raises(ValueError, match="a would be one with a_total"):
        stats.gauge("a", "A")
    with pytest.raises(ValueError, match="b_total would be one with b"):
        stats.counter("b_total", "B")
    with pytest.raises(ValueError, match="does not end in _total"):
        stats.counter("c", "C")
