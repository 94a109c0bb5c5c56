"""The JSON Schema (draft 7, which every editor reads) of one document of the configuration, derived from the types."""

from typing import Any

from msgspec import inspect

from l7proxy.config.describe import Shape, keys, shape, text
from l7proxy.config.kinds import KINDS, imported
from l7proxy.config.model import ForeignMetadata, Metadata
from l7proxy.filters import registry

Schema = dict[str, Any]

_VARIABLE = r"\$\{[A-Za-z_]"
"""A value from the environment passes for any other."""


def schema() -> Schema:
    """Returns the schema; policies of other packages that are installed are part of it."""
    writer = _Writer()
    kinds = []
    for kind in KINDS.values():
        properties = {
            "apiVersion": {"enum": list(kind.versions)},
            "kind": {"const": kind.name},
            "metadata": writer.block(ForeignMetadata if kind.foreign else Metadata),
            "spec": writer.block(imported(kind.spec)),
        }
        if kind.foreign:
            properties["status"] = {}
        kinds.append(
            {
                "if": {"properties": {"kind": {"const": kind.name}}},
                "then": {"properties": properties, "additionalProperties": False},
            }
        )
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "l7proxy",
        "description": "One document of the configuration of l7proxy.",
        "type": "object",
        "required": ["apiVersion", "kind", "metadata"],
        "properties": {"kind": {"enum": list(KINDS)}},
        "allOf": kinds,
        "definitions": writer.definitions,
    }


class _Writer:
    """Collects a definition for each block that is met."""

    def __init__(self) -> None:
        self.definitions: Schema = {}
        self._names: dict[type, str] = {}

    def block(self, cls: type) -> Schema:
        """Returns a reference to the definition of a block."""
        name = self._names.get(cls)
        if name is None:
            name = cls.__name__ if cls.__name__ not in self.definitions else f"{cls.__module__}.{cls.__name__}"
            self._names[cls] = name
            self.definitions[name] = {}
            self.definitions[name] = self._definition(cls)
        return {"$ref": f"#/definitions/{name}"}

    def _definition(self, cls: type) -> Schema:
        properties: Schema = {}
        for key in keys(cls):
            written = self._value(key.shape)
            if key.shape.description or key.default is not None:
                # Draft 7 ignores what stands beside a $ref.
                written = {"allOf": [written]} if "$ref" in written else written
            if key.shape.description:
                written["description"] = key.shape.description
            if key.default is not None:
                written["default"] = key.default
            properties[key.name] = written
        found: Schema = {"type": "object", "description": text(cls), "properties": properties}
        required = [key.name for key in keys(cls) if key.required]
        if required:
            found["required"] = required
        if cls.__struct_config__.forbid_unknown_fields:  # type: ignore[attr-defined]
            found["additionalProperties"] = False
        rules: list[Schema] = [
            {"oneOf": [{"required": [name]} for name in names]} for names in getattr(cls, "exactly_one", ())
        ]
        rules += [
            {"not": {"required": [one, other]}}
            for names in getattr(cls, "at_most_one", ())
            for place, one in enumerate(names)
            for other in names[place + 1 :]
        ]
        if rules:
            found["allOf"] = rules
        return found

    def _value(self, inner: Shape) -> Schema:
        info = inner.info
        if inner.policies:
            return {
                "type": "object",
                "properties": {kind.name: self.block(kind) for kind in registry.every()},
                "additionalProperties": False,
            }
        if inner.format is not None:
            found: Schema = {"type": "string", "examples": [inner.format.example]}
            if inner.format.pattern:
                found["pattern"] = f"{inner.format.pattern}|{_VARIABLE}"
            return found
        match info:
            case inspect.StructType():
                return self.block(info.cls)
            case inspect.StrType():
                return _limited(
                    {"type": "string"}, minLength=info.min_length, maxLength=info.max_length, pattern=info.pattern
                )
            case inspect.BoolType():
                return {"type": ["boolean", "string"], "pattern": _VARIABLE}
            case inspect.IntType() | inspect.FloatType():
                kind = "integer" if isinstance(info, inspect.IntType) else "number"
                return _limited(
                    {"type": [kind, "string"], "pattern": _VARIABLE},
                    minimum=info.ge,
                    exclusiveMinimum=info.gt,
                    maximum=info.le,
                    exclusiveMaximum=info.lt,
                )
            case inspect.LiteralType():
                return {"anyOf": [{"enum": list(info.values)}, {"type": "string", "pattern": _VARIABLE}]}
            case inspect.DictType():
                found = {"type": "object", "additionalProperties": self._value(shape(info.value_type))}
                if info.min_length:
                    found["minProperties"] = info.min_length
                return found
            case inspect.CollectionType():
                return _limited(
                    {"type": "array", "items": self._value(shape(info.item_type))},
                    minItems=info.min_length,
                    maxItems=info.max_length,
                )
            case inspect.UnionType():
                members = [member for member in info.types if not isinstance(member, inspect.NoneType)]
                return {"anyOf": [self._value(shape(member)) for member in members]}
        return {}


def _limited(found: Schema, **limits: Any) -> Schema:
    found.update({name: limit for name, limit in limits.items() if limit})
    if limits.get("pattern"):
        found["pattern"] = f"{limits['pattern']}|{_VARIABLE}"
    return found
