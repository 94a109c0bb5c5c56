"""Metrics as Prometheus and OpenMetrics text, in small pieces: a scrape is not to be felt by the requests beside it.

The text is, byte for byte, what `opentelemetry-exporter-prometheus` makes of the same metrics (see `telemetry.otel`);
that takes several times as long and cannot stop half-way.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping

from l7proxy.core.stats import LATENCY_BUCKETS, Family, Histogram, Labels, Stats

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

PIECE = 4
"""Series in one piece: about 0.1 ms with compression. With 16, scrapes made the p99 of 1,000 requests/s 1.5 times."""


def wants_openmetrics(accept: str) -> bool:
    """Says whether an Accept header prefers OpenMetrics to the plain text format."""
    quality = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for choice in accept.split(","):
        kind, *parameters = (part.strip() for part in choice.lower().split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        if kind in quality:
            quality[kind] = max(quality[kind], weight)
    openmetrics = quality["application/openmetrics-text"]
    return openmetrics > 0 and openmetrics >= quality["text/plain"]


def render(stats: Stats, target: Mapping[str, str], openmetrics: bool = False) -> Iterator[str]:
    """Yields the text of every series; `target` becomes `target_info`. The caller may let others run between pieces."""
    for refresh in stats.refresh:
        refresh()
    name = "target" if openmetrics else "target_info"
    kind = "info" if openmetrics else "gauge"
    labels = _labels(tuple(sorted((sanitize(key), value) for key, value in target.items())))
    yield f"# HELP {name} Target metadata\n# TYPE {name} {kind}\ntarget_info{{{labels}}} 1.0\n"
    for family in stats:
        children = list(family.children.items())
        if not children:
            continue
        lines = [_head(family, openmetrics)]
        for index, (key, metric) in enumerate(children, 1):
            if isinstance(metric, Histogram):
                _histogram(lines, family.name, key, metric, openmetrics)
            elif key:
                lines.append(f"{family.name}{{{_labels(key)}}} {number(metric.value)}\n")
            else:
                lines.append(f"{family.name} {number(metric.value)}\n")
            if index % PIECE == 0:
                yield "".join(lines)
                lines = []
        yield "".join(lines)
    if openmetrics:
        yield "# EOF\n"


def sanitize(name: str) -> str:
    """Returns an OTel attribute name as a Prometheus label."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def number(value: float) -> str:
    """Writes a number as Go does, for which Prometheus' own client libraries decided."""
    text = repr(float(value))
    if text == "inf" or text == "-inf" or text == "nan":
        return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}[text]
    dot = text.find(".")
    if value > 0 and dot > 6:
        mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
        return f"{mantissa}e+{dot - 1:02d}"
    return text


def _head(family: Family, openmetrics: bool) -> str:
    name = family.name
    if openmetrics and family.kind == "counter":
        name = name.removesuffix("_total")
    help = family.help.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        help = help.replace('"', r"\"")
    unit = f"# UNIT {name} seconds\n" if openmetrics and family.unit == "s" else ""
    return f"# HELP {name} {help}\n# TYPE {name} {family.kind}\n{unit}"


def _labels(labels: Labels) -> str:
    return ",".join([f'{name}="{_escape(value)}"' for name, value in labels])


def _escape(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return value


_BOUNDS = [*map(str, LATENCY_BUCKETS), "+Inf"]


def _histogram(lines: list[str], name: str, key: Labels, metric: Histogram, openmetrics: bool) -> None:
    # Labels are written in the order of their names, and so is `le` among them.
    before = _labels(tuple(pair for pair in key if pair[0] < "le"))
    after = _labels(tuple(pair for pair in key if pair[0] > "le"))
    start = f'{name}_bucket{{{before}{"," if before else ""}le="'
    end = f'"{"," if after else ""}{after}}} '
    total = 0
    exemplar, marked = metric.exemplar if openmetrics else None, -1
    if exemplar is not None:
        marked = bisect_left(LATENCY_BUCKETS, exemplar[0])
    for index, count in enumerate(metric.buckets):
        total += count
        value = f"{total}.0" if total < 1_000_000 else number(total)
        if index == marked and exemplar is not None:
            seconds, trace_id, span_id, epoch = exemplar
            ids = f'span_id="{span_id}",trace_id="{trace_id}"'
            lines.append(f"{start}{_BOUNDS[index]}{end}{value} # {{{ids}}} {number(seconds)} {epoch}\n")
        else:
            lines.append(f"{start}{_BOUNDS[index]}{end}{value}\n")
    labels = f"{{{_labels(key)}}}" if key else ""
    lines.append(f"{name}_count{labels} {number(total)}\n{name}_sum{labels} {number(metric.sum)}\n")
