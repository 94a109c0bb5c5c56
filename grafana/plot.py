"""Panels as SVG: curves, heatmaps and single numbers, with colours for light and dark pages."""

import math
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from bench.svg import element, number, text
from grafana.live import Answered, Series, Span

LIGHT = ("#2563eb", "#d97706", "#7c3aed", "#0d9488", "#db2777", "#65a30d")
DARK = ("#60a5fa", "#fbbf24", "#a78bfa", "#2dd4bf", "#f472b6", "#a3e635")
SHADES = 7
"""How many strengths of colour a heatmap has."""

_LIGHT = {
    "page": "#f3f4f6",
    "card": "#ffffff",
    "edge": "#e2e5e9",
    "ink": "#1f2937",
    "dim": "#6b7280",
    "grid": "#eceef1",
}
_DARK = {"page": "#0d1117", "card": "#161b22", "edge": "#2a3038", "ink": "#e6edf3", "dim": "#8b949e", "grid": "#242a32"}
_MEANING = {"good": ("#15803d", "#4ade80"), "bad": ("#dc2626", "#f87171")}
_LETTER = 5.6
"""About the width of a letter of a legend."""


class Box(NamedTuple):
    """A rectangle of the picture, in pixels."""

    x: float
    y: float
    width: float
    height: float


def style() -> str:
    """Returns the colours: one class for each, which elements use as `currentColor`."""

    def rules(names: dict[str, str], series: Sequence[str], which: int) -> str:
        colours = {**names, **{f"c{at}": colour for at, colour in enumerate(series)}}
        colours |= {name: pair[which] for name, pair in _MEANING.items()}
        return "".join(f".{name}{{color:{colour}}}" for name, colour in colours.items())

    shapes = "text,.fill{fill:currentColor}.line{stroke:currentColor;fill:none}"
    kinds = ".curve{stroke-width:1.5}.mark{stroke-dasharray:2 3}"
    dark = f"@media(prefers-color-scheme:dark){{{rules(_DARK, DARK, 1)}}}"
    return element("style", shapes + kinds + rules(_LIGHT, LIGHT, 0) + dark)


def panel(answered: Answered, where: str, box: Box, span: Span, marks: Sequence[float]) -> str:
    """Returns a panel as one group, with `where` beside its title and a line through its curves at each of `marks`."""
    draw = {"stat": _stat, "heatmap": _heat, "timeseries": _curves}[answered.kind]
    card = element("rect", class_="card fill", x=box.x, y=box.y, width=box.width, height=box.height, rx=4)
    edge = element("rect", class_="edge line", x=box.x, y=box.y, width=box.width, height=box.height, rx=4)
    title = text(box.x + 12, box.y + 20, answered.title, class_="ink", font_weight="bold")
    source = text(box.x + box.width - 12, box.y + 20, where, class_="dim", font_size=10, text_anchor="end")
    return element(
        "g", "\n".join(["", card, edge, title, source, *draw(answered, box, span, marks), ""]), class_="panel"
    )


def ticks(top: float, about: int = 4) -> list[float]:
    """Returns round values from 0 up to the first that is not below `top`, `about` steps apart."""
    if top <= 0:
        return [0.0, 1.0]
    exact = top / about
    power = 10.0 ** math.floor(math.log10(exact))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= exact * 0.999)
    return [step * at for at in range(math.ceil(top / step * 0.999) + 1)]


def written(value: float, unit: str) -> str:
    """Returns a value with its unit, one of those that the dashboards use, to three digits."""
    if unit == "percentunit":
        return f"{_digits(value * 100)} %"
    if unit == "s":
        factor, name = (1, "s") if value >= 1 else (1e3, "ms") if value >= 1e-3 or not value else (1e6, "µs")
        return f"{_digits(value * factor)} {name}"
    return _digits(value) + {"reqps": " req/s", "ops": "/s"}.get(unit, "")


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _stat(answered: Answered, box: Box, span: Span, marks: Sequence[float]) -> list[str]:
    """The last value, over a small curve of all."""
    [series] = answered.series
    last = series.points[-1][1]
    colour = "bad" if answered.bad is not None and last >= answered.bad else "good"
    top = max(value for _, value in series.points) or 1.0
    area = Box(box.x + 1, box.y + box.height * 0.62, box.width - 2, box.height * 0.38 - 1)
    x, y = _scales(area, span, top)
    return [
        *_area(series, x, y, span, colour, 0.15),
        text(box.x + 12, box.y + 50, written(last, answered.unit), class_=colour, font_size=24, font_weight="bold"),
    ]


def _curves(answered: Answered, box: Box, span: Span, marks: Sequence[float]) -> list[str]:
    shown = _ordered(answered.series)
    colours = [_colour(series.name, at) for at, series in enumerate(shown)]
    legend, height = _legend([series.name for series in shown], colours, box)
    area = _area_of(box, height)
    steps = ticks(max(value for series in shown for _, value in series.points))
    x, y = _scales(area, span, steps[-1])
    parts = _axes(area, span, [(y(value), written(value, answered.unit)) for value in steps])
    parts += [
        element("path", d=f"M{number(x(mark))} {number(area.y)}v{number(area.height)}", class_="mark line dim")
        for mark in marks
    ]
    for series, colour in zip(shown, colours, strict=True):
        parts += _area(series, x, y, span, colour, 0.08)
        runs = " ".join(_path(run, x, y) for run in _runs(series, span))
        parts.append(element("path", d=runs, class_=f"{colour} line curve", stroke_linejoin="round"))
    return [*parts, *legend]


def _ordered(every: Sequence[Series]) -> list[Series]:
    """Returns the highest curve first, without those that are 0 all the time where others are not."""
    shown = [series for series in every if any(value for _, value in series.points)] or every
    return sorted(shown, key=lambda series: sum(value for _, value in series.points), reverse=True)


def _heat(answered: Answered, box: Box, span: Span, marks: Sequence[float]) -> list[str]:
    """Requests per second by duration: a row for each bucket, from the first to the last that any request fell into."""
    cumulative = sorted(answered.series, key=lambda series: float(series.name))
    counts = [dict(series.points) for series in cumulative]
    times = sorted({time for count in counts for time in count})
    rows = [
        [max(count.get(time, 0.0) - below.get(time, 0.0), 0.0) for time in times]
        for below, count in pairwise([{}, *counts])
    ]
    used = [at for at, row in enumerate(rows) if max(row) > 0]
    first, last = used[0], used[-1]
    area = _area_of(box, 16)
    height = area.height / (last - first + 1)
    bounds = [float(cumulative[at].name) if at >= 0 else 0.0 for at in range(first - 1, last + 1)]
    labels = [(area.y + area.height - at * height, _bound(bound)) for at, bound in enumerate(bounds)]
    parts = _axes(area, span, labels)
    x, _ = _scales(area, span, 1.0)
    most = max(max(row) for row in rows)
    shades: dict[int, list[str]] = {}
    for at, row in enumerate(rows[first : last + 1], 1):
        top = number(area.y + area.height - at * height + 0.5)
        # The root shows the rare slow requests beside the many.
        shaded = [math.ceil(math.sqrt(value / most) * SHADES) for value in row]
        for shade, run in groupby(zip(times, shaded, strict=True), key=lambda cell: cell[1]):
            within = [time for time, _ in run]
            left = max(x(within[0] - span.step / 2), area.x)
            right = min(x(within[-1] + span.step / 2), area.x + area.width)
            cell = f"M{number(left)} {top}H{number(right)}v{number(height - 1)}H{number(left)}z"
            shades.setdefault(shade, []).append(cell)
    shades.pop(0, None)
    for shade, cells in sorted(shades.items()):
        parts.append(element("path", d="".join(cells), class_="c0 fill", opacity=_strength(shade)))
    return [*parts, *_scale(f"to {written(most, 'reqps')}", box)]


def _scale(most: str, box: Box) -> list[str]:
    """What the strengths of colour mean."""
    y = box.y + box.height - 10
    x = box.x + 12
    steps = [
        element("rect", class_="c0 fill", x=x + 68 + 14 * shade, y=y - 8, width=14, height=9, opacity=_strength(shade))
        for shade in range(1, SHADES + 1)
    ]
    words = [(x, "above 0 req/s"), (x + 68 + 14 * (SHADES + 1) + 6, most)]
    return [*steps, *(text(at, y, word, class_="dim", font_size=10) for at, word in words)]


def _strength(shade: int) -> str:
    return f"{shade / SHADES:.2f}"


def _bound(bound: float) -> str:
    return "slower" if math.isinf(bound) else written(bound, "s")


def _area_of(box: Box, legend: float) -> Box:
    """Returns where a panel draws: within the title, the axes and a legend of that height."""
    left, top, bottom = 58, 36, 24
    return Box(box.x + left, box.y + top, box.width - left - 18, box.height - top - bottom - legend)


def _scales(area: Box, span: Span, top: float) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Returns where a time and a value lie in `area`."""
    wide, high = area.width / (span.end - span.begin), area.height / top
    return lambda time: area.x + (time - span.begin) * wide, lambda value: area.y + area.height - value * high


def _axes(area: Box, span: Span, labels: Sequence[tuple[float, str]]) -> list[str]:
    """Returns lines at `labels`, (y, words), and times since the beginning."""
    parts: list[str] = []
    for y, words in labels:
        parts.append(element("line", class_="grid line", x1=area.x, x2=area.x + area.width, y1=y, y2=y))
        parts.append(text(area.x - 6, y + 3.5, words, class_="dim", font_size=10, text_anchor="end"))
    x, _ = _scales(area, span, 1.0)
    whole = span.end - span.begin
    fitting = area.width / 42
    step = next((step for step in (1, 2, 5, 10, 20, 30, 60, 120) if whole / step <= fitting), 300)
    for seconds in range(0, int(whole) + 1, step):
        words = f"{seconds // 60}:{seconds % 60:02}"
        y = area.y + area.height + 14
        parts.append(text(x(span.begin + seconds), y, words, class_="dim", font_size=10, text_anchor="middle"))
    return parts


def _legend(names: Sequence[str], colours: Sequence[str], box: Box) -> tuple[list[str], float]:
    """Returns the legend at the bottom of `box`, in as many lines as it needs, and its height."""
    places: list[tuple[float, int]] = []
    x, line, room = 0.0, 0, box.width - 24
    for name in names:
        width = 16 + len(name) * _LETTER + 12
        if x and x + width > room + 12:
            x, line = 0.0, line + 1
        places.append((x, line))
        x += width
    height = 16.0 * (line + 1)
    top = box.y + box.height - height + 4
    parts: list[str] = []
    for name, colour, (left, at) in zip(names, colours, places, strict=True):
        y = top + 16 * at
        parts.append(element("rect", class_=f"{colour} fill", x=box.x + 12 + left, y=y - 4, width=10, height=3, rx=1))
        parts.append(text(box.x + 26 + left, y, name, class_="dim", font_size=10))
    return parts, height


def _colour(name: str, at: int) -> str:
    """Returns the class of a curve: success is green and failure red, where it is a status."""
    status = name[0] if len(name) == 3 and name.isdecimal() else ""
    return {"2": "good", "5": "bad"}.get(status, f"c{at % len(LIGHT)}")


def _area(
    series: Series, x: Callable[[float], float], y: Callable[[float], float], span: Span, colour: str, opacity: float
) -> list[str]:
    """Returns what lies beneath a curve."""
    shapes = [
        f"{_path(run, x, y)}V{number(y(0))}H{number(x(run[0][0]))}z" for run in _runs(series, span) if len(run) > 1
    ]
    return [element("path", d=" ".join(shapes), class_=f"{colour} fill", opacity=f"{opacity:g}")] if shapes else []


def _path(run: Sequence[tuple[float, float]], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return "M" + "L".join(f"{number(x(time))} {number(y(value))}" for time, value in run)


def _runs(series: Series, span: Span) -> list[list[tuple[float, float]]]:
    """Returns the parts of a curve without a gap."""
    times = [time for time, _ in series.points]
    cuts = [at for at in range(1, len(times)) if times[at] - times[at - 1] > span.step * 1.5]
    return [series.points[begin:end] for begin, end in pairwise([0, *cuts, len(times)])]
