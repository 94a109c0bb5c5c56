"""The picture of the dashboards: from a run of the demo, and what is drawn of which numbers."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench.svg import document
from grafana.live import Answered, Series, Span, filled
from grafana.picture import PICTURE, ROWS
from grafana.plot import Box, panel, ticks, written

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
TITLES = [title for _, row in ROWS for _, title, _ in row]
SPAN = Span(100, 160, 10)


class Picture:
    """What an SVG file shows: `words` of each panel by its title, `shapes` its paths."""

    def __init__(self, text: str) -> None:
        self.root = ElementTree.fromstring(text)
        groups = [group for group in self.root.iter(f"{SVG}g") if group.get("class") == "panel"]
        listed = [([word.text or "" for word in group.iter(f"{SVG}text")], group) for group in groups]
        self.titles = [words[0] for words, _ in listed]
        self.words = {words[0]: words for words, _ in listed}
        self.shapes = {words[0]: [path.get("d") or "" for path in group.iter(f"{SVG}path")] for words, group in listed}


def drawn(kind: str, *series: Series, unit: str = "reqps", bad: float | None = None) -> Picture:
    shown = panel(Answered("It", kind, unit, list(series), bad), "here", Box(0, 0, 300, 200), SPAN, [])
    return Picture(document(300, 200, [shown]))


@pytest.mark.needs("prometheus")
def test_a_run_of_the_demo_fills_every_panel(tmp_path: Path) -> None:
    file = tmp_path / "pictures" / "service.svg"
    command = [sys.executable, "-m", "grafana.picture", "--seconds", "12", "--to", str(file)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    made = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert made.returncode == 0, made.stderr
    picture = Picture(file.read_text())
    assert picture.titles == TITLES
    assert all(picture.shapes.values())
    assert {"orders-read", "orders-admin"} <= {*picture.words["Requests by route"]}
    assert {"200", "403", "429", "503"} <= {*picture.words["Status"]}
    callers = {f"spiffe://demo/ns/demo/sa/{name}" for name in ("web", "visitor")}
    assert callers <= {*picture.words["Requests by caller"]}
    assert {f"{caller} at orders" for caller in callers} <= {*picture.words["Denied by caller"]}
    assert "retries" in picture.words["Retries and rate limits"]
    assert "orders no_certificate" in picture.words["Failed handshakes"]
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_without_prometheus_it_says_what_the_demo_says(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grafana.picture", "--to", str(tmp_path / "it.svg")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "PATH": str(tmp_path)}
    made = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 1
    assert "demo prometheus: not installed" in made.stderr
    assert not list(tmp_path.iterdir())


def test_the_committed_picture_shows_these_panels_and_is_small() -> None:
    text = PICTURE.read_text()
    assert Picture(text).titles == TITLES
    assert len(text) < 150_000


def test_curves_that_stay_at_zero_are_left_out_where_others_do_not() -> None:
    flat, rising = Series("flat", [(100, 0), (110, 0)]), Series("rising", [(100, 0), (110, 3)])
    assert {"rising"} == {"flat", "rising"} & {*drawn("timeseries", flat, rising).words["It"]}
    assert "flat" in drawn("timeseries", flat).words["It"]


def test_nothing_but_zeros_is_nothing_to_show() -> None:
    def shows(*values: float) -> bool:
        return Answered("It", "timeseries", "reqps", [Series("a", list(enumerate(values)))], None).shows()

    assert shows(0, 1)
    assert not shows(0, 0)
    assert not shows()


def test_a_gap_breaks_the_curve() -> None:
    def pieces(*times: float) -> int:
        return drawn("timeseries", Series("a", [(time, 1) for time in times])).shapes["It"][-1].count("M")

    assert pieces(100, 110, 120, 130) == 1
    assert pieces(100, 110, 140, 150) == 2


def test_a_heatmap_has_the_rows_that_requests_fell_into() -> None:
    counts = {"0.001": 0, "0.0025": 4, "0.005": 4, "0.01": 5, "+Inf": 5}
    picture = drawn("heatmap", *(Series(le, [(110, value), (120, value)]) for le, value in counts.items()))
    assert [word for word in picture.words["It"] if word.endswith("ms")] == ["1 ms", "2.5 ms", "5 ms", "10 ms"]
    assert sum(shape.count("M") for shape in picture.shapes["It"]) == 2


@pytest.mark.parametrize(("bad", "colour"), [(None, "good"), (0.5, "bad"), (0.8, "good")])
def test_a_number_is_the_last_one_and_red_where_it_is_bad(bad: float | None, colour: str) -> None:
    picture = drawn("stat", Series("", [(100, 0.9), (110, 0.6)]), unit="percentunit", bad=bad)
    [shown] = [word for word in picture.root.iter(f"{SVG}text") if word.text == "60 %"]
    assert shown.get("class") == colour


def test_axes_have_round_steps_and_end_above_what_they_show() -> None:
    assert ticks(70) == [0, 20, 40, 60, 80]
    assert ticks(0.03) == pytest.approx([0, 0.01, 0.02, 0.03])
    assert ticks(0) == [0, 1]
    for top in (1e-4, 0.9, 1, 7, 33, 1234):
        assert top <= ticks(top)[-1] * 1.001
        assert 2 <= len(ticks(top)) <= 6


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.0421, "percentunit", "4.21 %"),
        (0.00047, "s", "470 µs"),
        (0.025, "s", "25 ms"),
        (2.5, "s", "2.5 s"),
        (56.26, "reqps", "56.3 req/s"),
        (1200, "reqps", "1200 req/s"),
        (3, "short", "3"),
    ],
)
def test_values_have_their_units(value: float, unit: str, words: str) -> None:
    assert written(value, unit) == words


def test_a_query_without_a_variable_is_refused() -> None:
    assert filled('rate(a{b=~"$b"}[$__rate_interval]) "$1"', "5m", b=".*") == 'rate(a{b=~".*"}[5m]) "$1"'
    with pytest.raises(ValueError, match=re.escape("$c has no value")):
        filled('a{b="$c"}', "5m")
