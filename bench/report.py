"""What a run leaves behind in `bench/results/`: a table of ratios as Markdown, everything as JSON, a chart as SVG."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.model import Finding, Result, Row, ratio
from bench.svg import COLOURS, chart

RESULTS = Path(__file__).parent / "results"


def write(name: str, facts: Mapping[str, str], results: Sequence[Result], folder: Path = RESULTS) -> Path:
    """Writes NAME.md, NAME.json and NAME.svg and returns the path of the first."""
    folder.mkdir(exist_ok=True)
    groups = [group for result in results if (group := _bars(result))]
    if groups:
        title = "Requests per core against the reference (1.0x), features on unless said otherwise"
        (folder / f"{name}.svg").write_text(chart(title, groups))
    page = folder / f"{name}.md"
    page.write_text(markdown(name, facts, results, bool(groups)))
    everything = {"facts": dict(facts), "results": [result.json() for result in results]}
    (folder / f"{name}.json").write_text(json.dumps(everything, indent=1) + "\n")
    return page


def markdown(name: str, facts: Mapping[str, str], results: Sequence[Result], picture: bool) -> str:
    """Returns the page."""
    lines = ["# Benchmark", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    if picture:
        lines += ["", f"![requests per core, by scenario]({name}.svg)"]
    found = [(result, finding) for result in results for finding in result.findings]
    if found:
        lines += ["", "## Findings", "", "| scenario | what | figure | goal | |", "|---|---|---|---|---|"]
        lines += [_finding(result, finding) for result, finding in found]
    for result in results:
        lines += ["", *section(result)]
    return "\n".join(lines) + "\n"


def section(result: Result) -> list[str]:
    """Returns the lines of one scenario: its table, its notes, what was proved."""
    lines = [f"## {result.name}: {result.title}", ""]
    for label, error in result.errors.items():
        lines += [f"**{label} failed, so it has no figures:**", "", "```", error, "```", ""]
    if result.rows:
        lines += [
            f"| contender | {result.unit}/s | ratio | per core | ratio | CPU s / 1,000 | busy "
            "| p50 ms | p99 ms | RSS MiB |",
            f"|---|{'---:|' * 9}",
        ]
        reference = result.by_label().get(result.reference)
        lines += [_row(row, reference) for row in result.rows]
    lines += [f"- {plain(finding)}" for finding in result.findings if not result.rows]
    lines += [f"\n{note}" for note in result.notes]
    proved = [f"- {row.label}: {'; '.join(row.proofs)}." for row in result.rows if row.proofs]
    if proved:
        lines += ["", "Proved in this run:", "", *proved]
    return lines


def _row(row: Row, reference: Row | None) -> str:
    def times(measure: str) -> str:
        value = ratio(row, reference, measure) if reference else None  # type: ignore[arg-type]
        return "" if value is None else f"{value:.2f}x"

    def milliseconds(value: float | None) -> str:
        return "" if value is None else f"{value * 1000:.2f}"

    cells = [
        row.label,
        f"{row.value('rate') or 0:,.0f}",
        times("rate"),
        f"{row.value('per_core') or 0:,.0f}",
        times("per_core"),
        f"{row.cpu_per_thousand():.4f}",
        f"{row.busy():.0%}",
        milliseconds(row.value("p50")),
        milliseconds(row.value("p99")),
        f"{row.rss / 2**20:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def _finding(result: Result, finding: Finding) -> str:
    verdict = {None: "", True: "met", False: "**missed**"}[finding.met]
    return f"| {result.name} | {finding.text} | {finding.value:,.2f} {finding.unit} | {finding.goal} | {verdict} |"


def plain(finding: Finding) -> str:
    """Returns a finding as one line of text."""
    goal = f" (goal {finding.goal}: {'met' if finding.met else 'missed'})" if finding.goal else ""
    return f"{finding.text}: {finding.value:,.2f} {finding.unit}{goal}"


def _bars(result: Result) -> tuple[str, list[tuple[str, float]]] | None:
    reference = result.by_label().get(result.reference)
    if reference is None or len({*result.by_label()} & COLOURS.keys()) < 2:
        return None
    values = [(row.label, ratio(row, reference, "per_core") or 0.0) for row in result.rows]
    return result.title, values
