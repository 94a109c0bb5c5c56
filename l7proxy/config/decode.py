"""From a tree of nodes to a value of a msgspec type, with every mistake collected on the way.

Each type is read once, through `msgspec.inspect`, and becomes a function `(node, path, notes) -> value`. A mistake is
noted with its line and yields `INVALID`; the rest of the document is still read. The type decides what a scalar means:
`8080` is a text for a field of type str and a number for one of type int, `no` is never a boolean.
"""

import sys
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from msgspec import inspect

from l7proxy.config.scalars import (
    INVALID,
    Decode,
    Notes,
    boolean,
    expected,
    listed,
    literal,
    number,
    plain,
    suggest,
    text,
)
from l7proxy.config.yaml import Mapping, Node, Scalar, Sequence
from l7proxy.core.expanded import concealed, expanded_in, shown
from l7proxy.core.handler import Filter
from l7proxy.filters import registry


def decode(node: Node, kind: Any, path: str, notes: Notes) -> Any:
    """Returns the value of type `kind` that the node stands for, or INVALID with the reasons in `notes`."""
    return decoder(kind)(node, path, notes)


@cache
def decoder(kind: Any) -> Decode:
    """Returns the function that decodes nodes into values of the type `kind`."""
    return _decoder(inspect.type_info(kind), {})


def _decoder(info: inspect.Type, done: dict[type, Decode]) -> Decode:
    extra: dict[str, Any] = {}
    while isinstance(info, inspect.Metadata):
        extra = {**(info.extra or {}), **extra}
        info = info.type
    if extra.get("map") == "policies":
        return _policies
    match info:
        case inspect.StructType():
            return _struct(info, done)
        case inspect.StrType():
            return text(info, extra.get("format"), extra.get("words", ()), extra.get("meant", ""))
        case inspect.BoolType():
            return boolean
        case inspect.IntType() | inspect.FloatType():
            return number(info, extra.get("format"))
        case inspect.LiteralType():
            return literal(info.values)
        case inspect.VarTupleType() | inspect.ListType() | inspect.SetType() | inspect.FrozenSetType():
            return _sequence(info, done)
        case inspect.DictType():
            return _mapping(info, done)
        case inspect.UnionType():
            return _union(info, done)
        case inspect.AnyType():
            return lambda node, path, notes: plain(node)
    raise TypeError(f"configuration cannot hold a {info}")


def _struct(info: inspect.StructType, done: dict[type, Decode]) -> Decode:
    cls = info.cls
    if cls in done:
        # A struct that holds itself: the function is known once it is called.
        return lambda node, path, notes: done[cls](node, path, notes)
    done[cls] = lambda node, path, notes: read(node, path, notes)
    fields = {field.encode_name: (field.name, _decoder(field.type, done)) for field in info.fields}
    required = [field.encode_name for field in info.fields if field.required]
    one: tuple[tuple[str, ...], ...] = getattr(cls, "exactly_one", ())
    most: tuple[tuple[str, ...], ...] = getattr(cls, "at_most_one", ())
    strict = info.forbid_unknown_fields

    def read(node: Node, path: str, notes: Notes) -> Any:
        if not isinstance(node, Mapping):
            return notes.wrong(path, node.line, expected("a mapping", node))
        values: dict[str, Any] = {}
        valid = True
        for key, child in node.items.items():
            where = sys.intern(f"{path}.{key}" if path else key)
            field = fields.get(key)
            if field is None:
                if strict:
                    valid = False
                    absent = fields.keys() - node.items.keys()
                    notes.wrong(where, child.line, "unknown key" + (suggest(key, absent) or suggest(key, fields)))
                continue
            notes.lines[where] = child.line
            if isinstance(child, Scalar) and child.null:
                if strict:
                    valid = False
                    notes.wrong(where, child.line, "nothing stands here: give it a value, {} for a block of defaults")
                continue
            name, decode = field
            value = decode(child, where, notes)
            if value is INVALID:
                valid = False
            else:
                values[name] = value
        given = node.items.keys()
        for key in required:
            if key not in given:
                valid = False
                notes.wrong(path, node.line, f"key {key!r} is missing")
        for names in (*one, *most):
            found = [name for name in names if name in given]
            if len(found) > 1:
                valid = False
                notes.wrong(path, node.line, f"only one of {listed(found)} can stand here")
            elif not found and names in one:
                valid = False
                notes.wrong(path, node.line, f"one of {listed(names)} is needed")
        if not valid:
            return INVALID
        try:
            return cls(**values)
        except ValueError as error:
            return notes.wrong(path, node.line, shown(concealed(str(error), expanded_in(values))))

    done[cls] = read
    return read


def _policies(node: Node, path: str, notes: Notes) -> Any:
    """Decodes a mapping of policies by name into a tuple of filters in policy order."""
    if not isinstance(node, Mapping):
        return notes.wrong(path, node.line, expected("a mapping", node))
    found: list[tuple[float, Filter]] = []
    valid = True
    for name, child in node.items.items():
        where = sys.intern(f"{path}.{name}")
        notes.lines[where] = child.line
        known = registry.find(name)
        if known is None:
            valid = False
            notes.wrong(where, child.line, "unknown policy" + suggest(name, (kind.name for kind in registry.every())))
            continue
        place, kind = known
        value = decode(child, kind, where, notes)
        if value is INVALID:
            valid = False
        else:
            found.append((place, value))
    found.sort(key=lambda pair: pair[0])
    return tuple(policy for _, policy in found) if valid else INVALID


def _sequence(info: Any, done: dict[type, Decode]) -> Decode:
    item = _decoder(info.item_type, done)
    build: Callable[[Iterable[Any]], Any] = {
        inspect.VarTupleType: tuple,
        inspect.ListType: list,
        inspect.SetType: set,
        inspect.FrozenSetType: frozenset,
    }[type(info)]
    least, most = info.min_length or 0, info.max_length

    def read(node: Node, path: str, notes: Notes) -> Any:
        if not isinstance(node, Sequence):
            return notes.wrong(path, node.line, expected("a list", node))
        if len(node.items) < least:
            return notes.wrong(path, node.line, "is empty" if least == 1 else f"needs at least {least} items")
        if most is not None and len(node.items) > most:
            return notes.wrong(path, node.line, f"has more than {most} items")
        values: list[Any] = []
        valid = True
        for place, child in enumerate(node.items):
            where = sys.intern(f"{path}[{place}]")
            notes.lines[where] = child.line
            value = item(child, where, notes)
            valid = valid and value is not INVALID
            values.append(value)
        return build(values) if valid else INVALID

    return read


def _mapping(info: inspect.DictType, done: dict[type, Decode]) -> Decode:
    read_key = _decoder(info.key_type, done)
    read_value = _decoder(info.value_type, done)
    least = info.min_length or 0

    def read(node: Node, path: str, notes: Notes) -> Any:
        if not isinstance(node, Mapping):
            return notes.wrong(path, node.line, expected("a mapping", node))
        if len(node.items) < least:
            return notes.wrong(path, node.line, "is empty")
        values: dict[Any, Any] = {}
        valid = True
        for key, child in node.items.items():
            where = sys.intern(f"{path}.{key}")
            notes.lines[where] = child.line
            name = read_key(Scalar(key, True, child.line), where, notes)
            value = read_value(child, where, notes)
            if name in values:
                value = notes.wrong(where, child.line, f"is the same key as another: {name!r}")
            if name is INVALID or value is INVALID:
                valid = False
            else:
                values[name] = value
        return values if valid else INVALID

    return read


def _union(info: inspect.UnionType, done: dict[type, Decode]) -> Decode:
    """Decides by the node's kind: at most one struct or mapping, one list, and any number of scalars tried in order."""
    scalars: list[Decode] = []
    by_kind: dict[type, Decode] = {}
    for member in info.types:
        bare: Any = member
        while isinstance(bare, inspect.Metadata):
            bare = bare.type
        if isinstance(bare, inspect.NoneType):
            continue
        decode = _decoder(member, done)
        if isinstance(bare, inspect.StructType | inspect.DictType):
            kind: type = Mapping
        elif isinstance(bare, inspect.CollectionType):
            kind = Sequence
        else:
            scalars.append(decode)
            continue
        if kind in by_kind:
            raise TypeError(f"configuration cannot tell the members of {info} apart")
        by_kind[kind] = decode
    if len(scalars) == 1 and not by_kind:
        return scalars[0]
    if not scalars and len(by_kind) == 1:
        return next(iter(by_kind.values()))

    def read(node: Node, path: str, notes: Notes) -> Any:
        if not isinstance(node, Scalar) or not scalars:
            decode = by_kind.get(type(node))
            if decode is not None:
                return decode(node, path, notes)
            what = " or ".join(
                words
                for kind, words in ((Scalar, "a text"), (Mapping, "a mapping"), (Sequence, "a list"))
                if kind in by_kind or (kind is Scalar and scalars)
            )
            return notes.wrong(path, node.line, expected(what, node))
        before = len(notes.problems)
        for decode in scalars:
            value = decode(node, path, notes)
            if value is not INVALID:
                del notes.problems[before:]
                return value
        # One of them would have been enough: what each asks for is told as one mistake.
        told = [problem.message.removeprefix(f"{path}: ") for problem in notes.problems[before:]]
        del notes.problems[before:]
        return notes.wrong(path, node.line, ", or ".join(told))

    return read
