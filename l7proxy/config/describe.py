"""What the types of the configuration tell about themselves, for the JSON Schema and the reference."""

import inspect as python
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from l7proxy.core.expanded import concealed, expanded_in
from l7proxy.core.fields import FORMATS, Format


class Shape(NamedTuple):
    """One type without its annotations, and what they said: the format of a text, and which registry a map is of."""

    info: Any
    description: str
    format: Format | None
    policies: bool


class Key(NamedTuple):
    """One key of a block. `default` is as YAML would write it; None where there is none worth writing."""

    name: str
    required: bool
    default: Any
    shape: Shape


def shape(info: inspect.Type) -> Shape:
    """Takes the annotations off a type; None in a union is left out: a key that may be absent is written so."""
    extra: dict[str, Any] = {}
    description = ""
    while True:
        if isinstance(info, inspect.Metadata):
            extra = {**(info.extra or {}), **extra}
            description = description or (info.extra_json_schema or {}).get("description", "")
            info = info.type
        elif isinstance(info, inspect.UnionType) and info.includes_none and len(info.types) == 2:
            info = next(member for member in info.types if not isinstance(member, inspect.NoneType))
        else:
            break
    name = extra.get("format")
    return Shape(info, description, FORMATS[name] if name else None, extra.get("map") == "policies")


def keys(cls: type) -> Iterator[Key]:
    """Yields the keys of a block in the order of its fields."""
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        inner = shape(field.type)
        yield Key(field.encode_name, field.required, _default(field, inner), inner)


def text(cls: type) -> str:
    """Returns what the docstring of a block says."""
    return python.cleandoc(cls.__doc__ or "")


def said(block: msgspec.Struct, path: str = "") -> dict[str, str]:
    """Returns each value of a block by its path (`perTry`, `request.set.x-tenant`), as YAML writes it.

    What has no value is left out, and so are files: in another checkout they stand in another folder.
    """
    found: dict[str, str] = {}
    for key, name in zip(keys(type(block)), block.__struct_fields__, strict=True):
        value = getattr(block, name)
        if isinstance(value, msgspec.Struct):
            found.update(said(value, f"{path}{key.name}."))
        elif isinstance(value, dict):
            found.update((f"{path}{key.name}.{entry}", _written(inner, None)) for entry, inner in value.items())
        elif value is not None and value != () and (key.shape.format is None or key.shape.format.name != "file"):
            found[path + key.name] = _written(value, key.shape.format)
    return found


def _written(value: Any, format: Format | None) -> str:
    if isinstance(value, str):
        return value
    if format is not None:
        return format.show(value)
    secrets = tuple(expanded_in(value))
    if isinstance(value, tuple):
        value = [_plain(item) for item in value]
    return concealed(json.dumps(value, default=_plain), secrets)


def _default(field: inspect.Field, inner: Shape) -> Any:
    value = field.default
    if value is msgspec.NODEFAULT or value is None or value in ((), ""):
        return None
    if isinstance(value, msgspec.Struct):
        return None
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return inner.format.show(value) if inner.format is not None else value


def _plain(value: Any) -> Any:
    if not isinstance(value, msgspec.Struct):
        return value
    written = {}
    for key, name in zip((key.name for key in keys(type(value))), value.__struct_fields__, strict=True):
        inner = getattr(value, name)
        if inner is not None and inner != () and inner != {}:
            written[key] = _plain(inner)
    return written
