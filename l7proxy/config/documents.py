"""From the text of one document to a Resource, or to every mistake in it."""

from collections.abc import Mapping as Environment
from typing import Any, NamedTuple

from msgspec import structs

from l7proxy.config.decode import decode
from l7proxy.config.kinds import KINDS, Kind, imported
from l7proxy.config.model import ForeignMetadata, Metadata, Resource
from l7proxy.config.scalars import INVALID, Notes, Reference, expected, suggest
from l7proxy.config.yaml import Chunk, Mapping, Node, Scalar, parse
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.expanded import Expanded, shown
from l7proxy.core.slices import Steps

_KEYS = ("apiVersion", "kind", "metadata", "spec")


class Document(NamedTuple):
    """One document that was read, and what it refers to; `first` is the line of its first key within its own text.

    `expanded` are its texts that hold values of the environment.
    """

    resource: Resource[Any]
    references: tuple[Reference, ...]
    first: int
    expanded: tuple[Expanded, ...] = ()

    def at(self, offset: int) -> "Document":
        """Returns the same document after another number of lines."""
        if self.resource.line == offset + self.first:
            return self
        return self._replace(resource=structs.replace(self.resource, line=offset + self.first))

    def without_files(self) -> "Document":
        """Returns the same document without its references to files."""
        return self._replace(references=tuple(other for other in self.references if other.kind != "file"))


class Broken(NamedTuple):
    """A document with mistakes, as far as it tells what it was to be: others may refer to it all the same."""

    kind: str = ""
    name: str = ""


def read(
    chunk: Chunk, file: str, folder: str, environment: Environment[str, str], problems: list[Problem]
) -> Steps[Document | Broken | None]:
    """Reads one document in small steps; None when it is empty. Adds every mistake to `problems`."""
    try:
        root = yield from parse(chunk, file, environment)
    except ConfigError as error:
        problems += error.problems
        return Broken()
    if root is None:
        return None
    notes = Notes(file, folder, chunk.offset)
    resource = _resource(root, notes)
    yield
    if notes.problems:
        problems += notes.problems
        return Broken(_word(root, "kind"), _word(root, "metadata", "name"))
    return Document(resource, tuple(notes.references), root.line, tuple(notes.expanded))


def _word(node: Node | None, *keys: str) -> str:
    """Returns the text at a path of keys, or nothing."""
    for key in keys:
        node = node.items.get(key) if isinstance(node, Mapping) else None
    return node.value if isinstance(node, Scalar) else ""


def _resource(root: Node, notes: Notes) -> Any:
    if not isinstance(root, Mapping):
        what = "a mapping with apiVersion, kind, metadata and spec"
        return notes.wrong("", root.line, f"a document {expected(what, root)}")
    kind = _kind(root, notes)
    if kind is None:
        return INVALID
    keys = (*_KEYS, "status") if kind.foreign else _KEYS
    for key, node in root.items.items():
        notes.lines[key] = node.line
        if key not in keys:
            notes.wrong(key, node.line, "unknown key" + suggest(key, keys))
    metadata: Any = INVALID
    if "metadata" in root.items:
        metadata = decode(root.items["metadata"], ForeignMetadata if kind.foreign else Metadata, "metadata", notes)
    else:
        notes.wrong("", root.line, "key 'metadata' is missing")
    spec = decode(root.items.get("spec", Mapping({}, root.line)), imported(kind.spec), "spec", notes)
    if notes.problems:
        return INVALID
    first = root.line
    return Resource(
        kind.name,
        str(metadata.name),
        spec,
        str(metadata.namespace),
        metadata.labels,
        metadata.annotations,
        notes.file,
        notes.offset + first,
        {path: line - first for path, line in notes.lines.items()},
        metadata.creation_timestamp if kind.foreign else "",
    )


def _kind(root: Mapping, notes: Notes) -> Kind | None:
    """Returns the kind of the document; without it nothing else in it can be understood."""
    found: dict[str, str] = {}
    for key in ("apiVersion", "kind"):
        node = root.items.get(key)
        if node is None:
            notes.wrong("", root.line, f"key {key!r} is missing")
        elif not isinstance(node, Scalar) or node.null:
            notes.wrong(key, node.line, expected("a text", node))
        else:
            found[key] = node.value
    if "kind" not in found:
        return None
    kind = KINDS.get(found["kind"])
    if kind is None:
        notes.wrong(
            "kind", root.items["kind"].line, f"unknown kind {found['kind']!r}" + suggest(shown(found["kind"]), KINDS)
        )
        return None
    version = found.get("apiVersion", kind.versions[0])
    if version not in kind.versions:
        message = f"must be {' or '.join(kind.versions)} for kind {kind.name}, not {version!r}"
        notes.wrong("apiVersion", root.items["apiVersion"].line, message)
    return kind
