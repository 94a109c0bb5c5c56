"""Scalars: what a text of the configuration means to the type of its field, and how a mistake is told."""

import difflib
import operator
import re
from collections.abc import Callable, Iterable
from os.path import join, normpath
from typing import Any, NamedTuple

from msgspec import inspect

from l7proxy.config.yaml import Mapping, Node, Scalar, Sequence
from l7proxy.core.errors import Problem
from l7proxy.core.expanded import Expanded, shown
from l7proxy.core.fields import FORMATS, Format

INVALID: Any = object()
"""What stands for a value that could not be read."""


_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][-+]?[0-9]{1,3})?")


class Reference(NamedTuple):
    """A name or a file that the value at `path` refers to; `kind` is the format of the field."""

    kind: str
    value: str
    path: str


class Notes:
    """What is found while one document is decoded: mistakes, the line of each value, what it refers to, and texts that
    hold values of the environment.

    Lines count from the document's first, which is line `offset + 1` of the file.
    """

    def __init__(self, file: str, folder: str, offset: int = 0) -> None:
        self.file = file
        self.folder = folder
        self.offset = offset
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}
        self.references: list[Reference] = []
        self.expanded: list[Expanded] = []

    def wrong(self, path: str, line: int, message: str) -> Any:
        """Notes a mistake and returns INVALID."""
        text = f"{path}: {message}" if path else message
        self.problems.append(Problem(self.file, self.offset + line, text))
        return INVALID


Decode = Callable[[Node, str, Notes], Any]


def suggest(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` where one of the known words is near, else nothing."""
    known = list(known)
    near = difflib.get_close_matches(word, known, 1)
    if not near:
        near = [other for other in known if other.lower().replace("_", "") == word.lower().replace("_", "")]
    return f"; did you mean {near[0]!r}?" if near else ""


def plain(node: Node) -> Any:
    """Returns what the node says without a type to tell: scalars are read as YAML 1.2's core schema reads them."""
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.items.items()}
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    text = node.value
    if not node.plain:
        return text
    if node.null:
        return None
    if text in ("true", "false"):
        return text == "true"
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


def text(info: inspect.StrType, name: str | None, words: Iterable[str] = (), meant: str = "") -> Decode:
    """Reads a text; `words` or `meant` are what may stand there, in words where a pattern says too little."""
    row = FORMATS[name] if name else None
    least, most = info.min_length or 0, info.max_length
    pattern = re.compile(info.pattern) if info.pattern else None

    def read(node: Node, path: str, notes: Notes) -> Any:
        if not isinstance(node, Scalar) or node.null:
            return notes.wrong(path, node.line, expected("a text", node))
        value: Any = node.value
        if row is not None:
            try:
                value = row.parse(value)
            except ValueError as error:
                return notes.wrong(path, node.line, _mistake(error, row, node))
            if row.name == "file":
                value = normpath(join(notes.folder, value))
            # A name shows where its document does.
            if isinstance(node.value, Expanded):
                value = str(value) if row.name == "upstream" else Expanded(value, node.value.written)
            if row.refers:
                notes.references.append(Reference(row.name, value, path))
        if isinstance(value, Expanded):
            notes.expanded.append(value)
        if len(value) < least:
            return notes.wrong(path, node.line, "is empty" if least == 1 else f"is shorter than {least}")
        if most is not None and len(value) > most:
            return notes.wrong(path, node.line, f"is longer than {most}")
        if pattern is not None and words and not pattern.search(value):
            return notes.wrong(
                path, node.line, f"must be one of {', '.join(words)}, not {value!r}" + suggest(shown(value), words)
            )
        if pattern is not None and not pattern.search(value):
            return notes.wrong(path, node.line, f"{value!r} is not {meant or f'of the form {pattern.pattern}'}")
        return value

    return read


def boolean(node: Node, path: str, notes: Notes) -> Any:
    if isinstance(node, Scalar) and node.plain and node.value in ("true", "false"):
        return node.value == "true"
    return notes.wrong(path, node.line, expected("true or false", node))


def number(info: inspect.IntType | inspect.FloatType, name: str | None) -> Decode:
    whole = isinstance(info, inspect.IntType)
    form = _INT if whole else _FLOAT
    what = "a whole number" if whole else "a number"
    row = FORMATS[name] if name else None
    bounds: list[tuple[Callable[[Any, Any], bool], Any, str]] = [
        (broken, limit, f"must be {words} {limit if row is None else row.show(limit)}")
        for limit, words, broken in (
            (info.ge, "at least", operator.lt),
            (info.gt, "more than", operator.le),
            (info.le, "at most", operator.gt),
            (info.lt, "less than", operator.ge),
        )
        if limit is not None
    ]

    def read(node: Node, path: str, notes: Notes) -> Any:
        if not isinstance(node, Scalar) or node.null:
            return notes.wrong(path, node.line, expected(what, node))
        value: Any
        if row is not None:
            try:
                value = row.parse(node.value)
            except ValueError as error:
                return notes.wrong(path, node.line, _mistake(error, row, node))
        elif not node.plain or not form.fullmatch(node.value):
            return notes.wrong(path, node.line, expected(what, node))
        else:
            value = int(node.value) if whole else float(node.value)
        for broken, limit, message in bounds:
            if broken(value, limit):
                return notes.wrong(path, node.line, f"{shown(node.value)} {message}")
        return value

    return read


def literal(values: Iterable[Any]) -> Decode:
    known = {str(value): value for value in values}

    def read(node: Node, path: str, notes: Notes) -> Any:
        if isinstance(node, Scalar) and node.value in known:
            return known[node.value]
        near = suggest(shown(node.value), known) if isinstance(node, Scalar) else ""
        return notes.wrong(path, node.line, expected(f"one of {', '.join(known)}", node) + near)

    return read


def expected(what: str, node: Node) -> str:
    if isinstance(node, Mapping):
        found = "a mapping"
    elif isinstance(node, Sequence):
        found = "a list"
    elif node.null:
        found = "nothing"
    else:
        value = shown(node.value)
        value = value if len(value) <= 60 else value[:57] + "..."
        found = repr(value) if node.plain else f"the text {value!r}"
        if not node.plain and _FLOAT.fullmatch(node.value) and "number" in what:
            found += " in quotes"
    return f"must be {what}, not {found}"


def _mistake(error: ValueError, row: Format, node: Scalar) -> str:
    """Returns what is wrong with a text; of one that holds values of the environment no part of them."""
    if isinstance(node.value, Expanded):
        return f"{node.value!r} does not stand for what is needed here, like {row.example}"
    return str(error)


def listed(names: Iterable[str]) -> str:
    *rest, last = [repr(name) for name in names]
    return f"{', '.join(rest)} and {last}" if rest else last
