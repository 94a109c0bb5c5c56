"""`l7proxy diff`: what changes between two configurations, as decisions on requests of logs or on generated ones."""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Literal

import msgspec
from msgspec import structs

from l7proxy.cli import flags
from l7proxy.cli.asking import printable
from l7proxy.cli.explain import command, line
from l7proxy.config.load import load
from l7proxy.config.model import Model
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.expanded import published
from l7proxy.core.languages import Undecided
from l7proxy.core.slices import finish
from l7proxy.filters.authorizer import Clause
from l7proxy.proxy.classes import requests
from l7proxy.proxy.decision import Question
from l7proxy.proxy.diff import KINDS, MOST, Comparison, Difference, Full, Kind
from l7proxy.proxy.explain import explaining
from l7proxy.proxy.explanation import Part
from l7proxy.proxy.why import deviation, question
from l7proxy.telemetry.access import read

TITLES: dict[Kind, str] = {
    "denial": "allowed -> denied",
    "grant": "denied -> allowed",
    "route": "another route",
    "upstream": "another upstream",
    "answer": "another answer",
    "policy": "other values of policies",
}

NoteKind = Literal["foreign", "unasked", "otherwise", "leftOut", "cut"]

_NOTES: dict[NoteKind, str] = {
    "foreign": "{0.count:,} of the lines are none of the JSON access log, the first is {0.first}",
    "unasked": "{0.count:,} of the lines say too little to be asked about, the first is {0.first}",
    "otherwise": "{0.count:,} of the requests went otherwise than OLD decides, the first is {0.first}: "
    "header fields or parameters, which no log keeps, made the difference, or another configuration",
    "leftOut": f"{{0.count:,}} of the lines were left out, the first is {{0.first}}: "
    f"no more than {MOST:,} different requests are asked",
    "cut": "not every request that the matchers tell apart was generated: {0.first}",
}

LONGEST_LINE = 1 << 20
"""Bytes of a line of a log; a longer one is none of ours."""

_KNOWN = Clause("identity", ("*",))
"""Holds for a caller with a certificate."""

SHOWN = 10
"""Changes of one kind that are told to a reader."""

WIDEST = 100
"""Characters of one value that are told to a reader."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("old", metavar="OLD", help="a configuration: a YAML file or a folder")
    parser.add_argument("new", metavar="NEW", help="the one that is to follow it")
    flags.configure(parser)
    parser.add_argument(
        "--replay",
        metavar="LOG",
        action="append",
        default=[],
        help="a JSON access log whose requests are asked of both; repeatable, - is standard input",
    )
    parser.add_argument(
        "--generate",
        action="store_true",
        help="ask a request for each way in which the matchers of both can match, as is done without --replay",
    )
    parser.add_argument("--allow-denials", action="store_true", help="exit with 0 though requests are denied now")
    parser.add_argument("--allow-grants", action="store_true", help="exit with 0 though requests are allowed now")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints what changes; returns 1 when requests that were allowed are denied, or the other way round."""
    if args.replay.count("-") > 1:
        print("l7proxy diff: standard input can be read once", file=sys.stderr)
        return 2
    try:
        old, new = _models(args)
        report = published(asyncio.run(_report(args, old, new)), (*old.expanded, *new.expanded))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"l7proxy diff: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print("\n".join(map(printable, render(report))))
    if _unread(report):
        return 1
    permitted = {"denial": args.allow_denials, "grant": args.allow_grants}
    return 1 if any(not permitted.get(change.kind, True) for change in report.changes) else 0


class Note(Part, frozen=True):
    """Lines of logs, or requests, that need a word: what they are, how many, and where the first one stands."""

    kind: NoteKind
    count: int
    first: str


class Told(Part, frozen=True):
    """A change, and the commands that explain its example by either configuration."""

    kind: Kind
    requests: int
    seen: int
    example: Question
    differences: tuple[Difference, ...]
    explain_old: str
    explain_new: str


class Report(Part, frozen=True):
    """What changes between the configurations with the versions `old` and `new`, over so many different requests.

    `seen` is how often those of logs were, `generated` how many others were made.
    """

    old: str
    new: str
    requests: int
    seen: int
    generated: int
    notes: tuple[Note, ...]
    changes: tuple[Told, ...]


async def _report(args: argparse.Namespace, old: Model, new: Model) -> Report:
    comparison = Comparison(finish(explaining(old)), finish(explaining(new)))
    asking = _Requests(comparison)
    for path in args.replay:
        await asking.replay(path)
    if args.generate or not args.replay:
        await asking.generate((old, new))
    changes = (
        Told(
            change.kind,
            change.requests,
            change.seen,
            change.example,
            change.differences,
            command(args, [args.old], change.example),
            command(args, [args.new], change.example),
        )
        for change in comparison.changes
    )
    asked, notes = comparison.requests, asking.notes
    return Report(old.version, new.version, asked, asking.seen, asking.generated, notes, tuple(changes))


def _models(args: argparse.Namespace) -> list[Model]:
    """Returns both models; raises ConfigError with the mistakes of both."""
    models: list[Model] = []
    problems: list[Problem] = []
    for path in (args.old, args.new):
        try:
            models.append(load([path], flags.overrides(args), elsewhere=True))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return models


class _Requests:
    """Asks the requests of logs and generated ones, and counts those of which there is something to say."""

    def __init__(self, comparison: Comparison) -> None:
        self.seen = self.generated = 0
        self._comparison = comparison
        self._notes: dict[NoteKind, Note] = {}

    @property
    def notes(self) -> tuple[Note, ...]:
        return tuple(self._notes.values())

    async def replay(self, path: str) -> None:
        """Asks what stands in one log; raises OSError when it cannot be read."""
        for number, text in enumerate(_lines(path), 1):
            if text.strip() and (kind := await self._ask(text)) is not None:
                self._note(kind, f"{path}:{number}")

    async def generate(self, models: Sequence[Model]) -> None:
        """Asks a request for each way in which the matchers of the models can match, as far as there is room."""
        before = self._comparison.requests
        inbounds = [model.sidecar.spec.inbound for model in models]
        # A handshake that fails without a certificate tells callers apart where no rule does.
        beside = [_KNOWN] if any(inbound is not None and inbound.tls is not None for inbound in inbounds) else []
        for inbound in (True, False):
            try:
                for asked in requests(models, inbound, (), beside, MOST - self._comparison.requests):
                    await self._comparison.ask(asked)
            except Undecided as error:
                self._note("cut", f"{'inbound' if inbound else 'outbound'}, {error}")
        self.generated = self._comparison.requests - before

    def _note(self, kind: NoteKind, first: str) -> None:
        note = self._notes.get(kind, Note(kind, 0, first))
        self._notes[kind] = structs.replace(note, count=note.count + 1)

    async def _ask(self, text: bytes) -> NoteKind | None:
        """Asks one line, and returns what is to be said of it."""
        try:
            record = read(text)
        except ValueError:
            return "foreign"
        self.seen += 1
        asked = question(record)
        if asked is None:
            return "unasked"
        try:
            told = await self._comparison.ask(asked, seen=1)
        except Full:
            return "leftOut"
        except ValueError:
            return "unasked"
        return "otherwise" if told is not None and deviation(record, told) else None


def _lines(path: str) -> Iterator[bytes]:
    """Yields the lines of a file, of long ones the beginning."""
    with nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as source:
        while text := source.readline(LONGEST_LINE):
            yield text
            while not text.endswith(b"\n") and (text := source.readline(LONGEST_LINE)):
                pass


def render(report: Report) -> list[str]:
    """Returns the lines that tell a reader what changes."""
    lines = []
    for kind, title in TITLES.items():
        changes = [change for change in report.changes if change.kind == kind]
        if changes:
            lines.append(f"{title}: {_met(changes)}")
            for change in changes[:SHOWN]:
                lines += [f"  {text}" for text in _told(change)] + [""]
            if more := changes[SHOWN:]:
                lines += [f"  and {_counted(len(more), 'other')} like these, {_met(more)}: --json tells each", ""]
    lines += [line("note", _NOTES[note.kind].format(note)) for note in report.notes]
    return [*lines, _summary(report)]


def _told(change: Told) -> list[str]:
    asked = change.example
    like = f", and {change.requests - 1} like it" if change.requests > 1 else ""
    direction = "inbound" if asked.inbound else "outbound"
    lines = [line("request", f"{asked.method} {asked.url} ({direction}){like}")]
    lines.append(line("from", f"{asked.identity or 'a caller without a certificate'} at {asked.source}"))
    lines += [line("header", f"{name}: {value}") for name, value in asked.headers]
    for difference in change.differences:
        about = "" if difference.what == "decision" else f"{difference.what} "
        lines.append(line("old", f"{about}{_cut(difference.old)}{_at(difference.old_where)}"))
        lines.append(line("new", f"{about}{_cut(difference.new)}{_at(difference.new_where)}"))
    return [*lines, line("ask", change.explain_new)]


def _at(where: str) -> str:
    return f", {where}" if where else ""


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else f"{text[:WIDEST]}..."


def _unread(report: Report) -> bool:
    return not report.seen and any(note.kind == "foreign" for note in report.notes)


def _summary(report: Report) -> str:
    counts = {kind: sum(change.requests for change in report.changes if change.kind == kind) for kind in KINDS}
    logged = f"{_counted(report.requests - report.generated, 'request')} in {_counted(report.seen, 'line')} of logs"
    parts = [logged] if report.seen else []
    if report.generated or not parts:
        parts.append(_counted(report.generated, "generated request"))
    asked = " and ".join(parts)
    if not report.changes:
        verdict = "no line of the logs can be read" if _unread(report) else "ok"
        return f"{verdict}: nothing changes for {asked}"
    return (
        f"{sum(counts.values()):,} of {asked} change: {counts['denial']:,} denied now, {counts['grant']:,} allowed now"
    )


def _met(changes: list[Told]) -> str:
    seen = sum(change.seen for change in changes)
    requests = _counted(sum(change.requests for change in changes), "request")
    return f"{requests}, {_counted(seen, 'line')} of logs" if seen else requests


def _counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
