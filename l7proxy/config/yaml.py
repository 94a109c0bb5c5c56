"""YAML as a tree of nodes that know their line, read strictly from the parser's events.

PyYAML's own loaders let the last of two equal keys win, turn `no` into False and `010` into 8, and follow aliases and
nesting without end. Here a scalar stays the text that it is: the type that it is decoded into decides what it means.
Tags, duplicate keys, control characters, and documents beyond the bounds below are errors. `${NAME}` in a value stands
for an environment variable, `${NAME:-text}` for the text where it is unset or empty, `$${` for `${` itself.
"""

import os
import re
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Environment
from typing import Any, NamedTuple, NoReturn, Union

from msgspec import Struct

from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.expanded import Expanded
from l7proxy.core.slices import Steps

MAX_BYTES = 16 << 20
MAX_DEPTH = 32
MAX_NODES = 200_000
"""Nodes of one document, each alias counted as all that it stands for."""
_STEP = 200
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}|\$\{")
VARIABLE_NAMES = re.compile(rb"\$\{([A-Za-z_][A-Za-z0-9_]*)")
"""Finds the names of all variables in a text, and perhaps more."""
_DOCUMENT = re.compile(rb"\n---(?=[ \t\r\n])")
_UNQUOTED = re.compile(r"[\[{,:]\s*\$\{")
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))


class Scalar(Struct, gc=False):
    """A text. `plain` tells that it stood without quotes, or that it came from the environment.

    A value that holds some of the environment is Expanded, which readers are shown as it is written.
    """

    value: str
    plain: bool
    line: int

    @property
    def null(self) -> bool:
        return self.plain and self.value in _NULLS


class Sequence(Struct):
    """A list."""

    items: list["Node"]
    line: int


class Mapping(Struct):
    """A mapping; the line of each value is that of its key."""

    items: dict[str, "Node"]
    line: int


Node = Union[Scalar, Sequence, Mapping]


class Chunk(NamedTuple):
    """The text of one document and the lines that stand before it."""

    data: bytes
    offset: int


def chunks(parts: Iterable[bytes], file: str) -> Iterator[Chunk | None]:
    """Splits the text that comes in parts into documents; None says that a part held the end of none.

    A line that starts with `---` ends a document wherever it stands (YAML 1.2 9.1.2), even within quotes, so that the
    parser is not needed to find it. Raises ConfigError for what is not text.
    """
    text = bytearray()
    offset = looked = 0
    for part in parts:
        text += part if offset or text else part.removeprefix(b"\xef\xbb\xbf")
        while found := _DOCUMENT.search(text, looked):
            chunk = _chunk(bytes(text[: found.start() + 1]), file, offset)
            yield chunk
            del text[: len(chunk.data)]
            offset += chunk.data.count(b"\n")
            looked = 0
        # The end of this part may be the start of a marker.
        looked = max(len(text) - 4, 0)
        yield None
    # A marker that ends the file starts one more document, an empty one: nothing is lost without it.
    rest = bytes(text)
    if rest:
        yield _chunk(rest[:-3] if rest.endswith(b"\n---") else rest, file, offset)


def _chunk(text: bytes, file: str, offset: int) -> Chunk:
    _check_text(text, file, offset)
    return Chunk(text, offset)


def _check_text(text: bytes, file: str, offset: int) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(file, offset + line, "this is not text in UTF-8")]) from None
    control = _CONTROL.search(text)
    if control:
        line = text.count(b"\n", 0, control.start()) + 1
        raise ConfigError(
            [Problem(file, offset + line, f"control character {control[0][0]:#04x}: is this a binary file?")]
        )


def parse(chunk: Chunk, file: str, environment: Environment[str, str] = os.environ) -> Steps[Node | None]:
    """Reads one document in small steps; None when there is nothing but comments. Lines count from its own first.

    Raises ConfigError with all duplicate keys and unset variables, or with the first mistake that ends the reading.
    """
    import yaml

    builder = _Builder(chunk, file, environment)
    takers = {
        yaml.ScalarEvent: builder.scalar,
        yaml.MappingStartEvent: builder.start,
        yaml.SequenceStartEvent: builder.start,
        yaml.MappingEndEvent: builder.end,
        yaml.SequenceEndEvent: builder.end,
        yaml.AliasEvent: builder.alias,
        yaml.DocumentStartEvent: builder.document,
    }
    try:
        for count, event in enumerate(_events(chunk.data)):
            take = takers.get(event.__class__)
            if take is not None:
                take(event)
            if count % _STEP == _STEP - 1:
                yield
    except yaml.YAMLError as mistake:
        builder.fail(*_explain(mistake, chunk.data))
    except _Stop:
        pass
    if builder.problems:
        raise ConfigError(builder.problems)
    root = builder.root
    return None if isinstance(root, Scalar) and root.null else root


class _Stop(Exception):
    """Reading on makes no sense; the problem has been noted."""


class _Frame(Struct):
    """A container that is still open, and the key whose value comes next. `size` and `height` count aliases in full."""

    node: Any
    items: Any
    mapping: bool
    anchor: str | None
    key: str | None = None
    key_line: int = 0
    size: int = 1
    height: int = 1


class _Builder:
    """Puts nodes together from events: one method for each kind of event."""

    def __init__(self, chunk: Chunk, file: str, environment: Environment[str, str]) -> None:
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._file = file
        self._offset = chunk.offset
        self._environment = environment
        self._top: _Frame | None = None
        self._below: list[_Frame | None] = []
        self._anchors: dict[str, tuple[Node, int, int]] = {}
        self._documents = 0

    def fail(self, line: int, message: str) -> None:
        self.problems.append(Problem(self._file, self._offset + line, message))

    def scalar(self, event: Any) -> None:
        line = event.start_mark.line + 1
        value: str = event.value
        plain = not event.style
        top = self._top
        if event.tag is not None:
            self._stop(line, f"tag {event.tag!r}: tags cannot be used here")
        if top is not None and top.mapping and top.key is None:
            if plain and value in _NULLS:
                self._stop(line, "a key is missing before the colon")
            if plain and value == "<<":
                self._stop(line, "merge keys (<<) cannot be used here")
            if value in top.items:
                self.fail(line, f"duplicate key {value!r}")
            top.key, top.key_line = value, line
            return
        if "${" in value:
            value, plain = self._substitute(value, line), True
        self._put(Scalar(value, plain, line), event.anchor)

    def start(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if event.tag is not None:
            self._stop(line, f"tag {event.tag!r}: tags cannot be used here")
        if len(self._below) >= MAX_DEPTH:
            self._stop(line, f"nested deeper than {MAX_DEPTH}")
        self._need_no_key(line)
        mapping = event.__class__.__name__ == "MappingStartEvent"
        node: Any = Mapping({}, line) if mapping else Sequence([], line)
        self._below.append(self._top)
        self._top = _Frame(node, node.items, mapping, event.anchor)

    def end(self, _: Any) -> None:
        done, top = self._top, self._below.pop()
        assert done is not None
        self._top = top
        self._grow(done.node.line, done.size, done.height)
        self._put(done.node, done.anchor, done.size, done.height)

    def alias(self, event: Any) -> None:
        line = event.start_mark.line + 1
        self._need_no_key(line)
        known = self._anchors.get(event.anchor)
        if known is None:
            self._stop(line, f"alias *{event.anchor} stands for nothing that is complete before it in this document")
        node, size, height = known
        if isinstance(node, Scalar):
            node = Scalar(node.value, node.plain, line)
        else:
            node = Mapping(node.items, line) if isinstance(node, Mapping) else Sequence(node.items, line)
        self._grow(line, size, height)
        self._put(node, None)

    def document(self, event: Any) -> None:
        self._documents += 1
        if self._documents > 1:
            self._stop(event.start_mark.line + 1, "another document starts here without a line `---`")

    def _stop(self, line: int, message: str) -> NoReturn:
        self.fail(line, message)
        raise _Stop

    def _need_no_key(self, line: int) -> None:
        if self._top is not None and self._top.mapping and self._top.key is None:
            self._stop(line, "a key must be a text")

    def _grow(self, line: int, size: int, height: int) -> None:
        """Counts what a container or an alias adds to the container that it stands in."""
        top = self._top
        if size + (top.size if top is not None else 0) > MAX_NODES:
            self._stop(line, f"more than {MAX_NODES} values in one document, aliases counted in full")
        if len(self._below) + height > MAX_DEPTH:
            self._stop(line, f"nested deeper than {MAX_DEPTH}")
        if top is not None:
            top.size += size
            top.height = max(top.height, height + 1)

    def _put(self, node: Node, anchor: str | None, size: int = 1, height: int = 0) -> None:
        """Puts a finished node where it belongs."""
        if anchor is not None:
            self._anchors[anchor] = (node, size, height)
        top = self._top
        if top is None:
            self.root = node
        elif top.mapping:
            node.line = top.key_line
            top.items.setdefault(top.key, node)
            top.key = None
        else:
            top.items.append(node)
        if top is not None and height == 0:
            top.size += 1

    def _substitute(self, value: str, line: int) -> str:
        expands = False

        def replace(found: re.Match[str]) -> str:
            if found[0] == "$${":
                return "${"
            name, default = found[1], found[2]
            if name is None:
                rest = value[found.start() : found.start() + 40]
                self.fail(line, f"{rest!r}: a variable is ${{NAME}} or ${{NAME:-text}}, and $${{ stands for ${{ itself")
                return ""
            nonlocal expands
            expands = True
            text = self._environment.get(name)
            if default is not None:
                return text or default
            if text is None:
                self.fail(line, f"environment variable {name} is not set")
                return ""
            return text

        text = _VARIABLE.sub(replace, value)
        return Expanded(text, value) if expands else text


def _events(data: bytes) -> Iterator[Any]:
    """Returns PyYAML's events, by libyaml where it is built in."""
    try:
        from yaml.cyaml import CParser as Parser  # type: ignore[attr-defined]
    except ImportError:
        from yaml import SafeLoader as Parser  # type: ignore[assignment]
    return iter(Parser(data).get_event, None)


def _explain(error: Any, data: bytes) -> tuple[int, str]:
    """Returns the line and the message of a syntax error."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return 1, f"not valid YAML: {error}".replace("\n", " ")
    lines = data.decode().split("\n")
    line = min(mark.line + 1, len(lines) - (not lines[-1]))
    if lines[line - 1][: mark.column + 1].endswith("\t"):
        return line, "a tab cannot indent in YAML: use blanks"
    if error.problem == "exceeded maximum nesting depth":
        # The scanner runs ahead of the events, and newer releases of it have a bound of their own, above ours.
        return line, f"nested deeper than {MAX_DEPTH}"
    context = f" ({error.context})" if getattr(error, "context", None) else ""
    if "flow" in context and _UNQUOTED.search(lines[line - 1]):
        return line, "not valid YAML: within [] and {} a ${NAME} needs quotes"
    return line, f"not valid YAML: {error.problem}{context}"
