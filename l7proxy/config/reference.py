"""The reference of the configuration as Markdown, derived from the types."""

import json
from typing import Any

from msgspec import inspect

from l7proxy.config.describe import Key, Shape, keys, shape, text
from l7proxy.config.kinds import KINDS, imported
from l7proxy.filters.registry import FILTERS

_HEAD = """\
# Configuration reference

<!-- Generated from the types by `l7proxy schema --format markdown > docs/configuration.md`. Do not edit. -->

A configuration is one or more YAML files, or folders of them (`*.yaml`, `*.yml`, `*.json`; folders within a folder and
hidden files are not read), each with one or more documents. Every document names its `apiVersion`, its `kind` and its
`metadata.name`; what it says stands under `spec`. There is exactly one `Sidecar`.

- Unknown keys, duplicate keys, tags and tabs are errors; `l7proxy check` tells every mistake with its file and line.
- What a value means is decided by its key: where a text is asked for, `8080`, `no` and `1.10` are those texts; numbers,
  and `true` and `false`, are written without quotes. A key with nothing after it is an error; `{}` is a block of
  defaults.
- `${NAME}` in a value stands for an environment variable, and it is an error when that is not set; `${NAME:-text}` is
  the text when it is unset or empty, and `$${` stands for `${`. Within `[]` and `{}` YAML wants it in quotes:
  `{listen: "${POD_IP}:15006"}`.
- Anchors and aliases can be used within a document; merge keys (`<<`) cannot.
- Limits: 16 MiB a file, 32 levels of nesting, 200,000 values in a document.

An editor completes and checks as you type with the JSON Schema that `l7proxy schema > l7proxy.schema.json` writes: name
it in the first line of a file, `# yaml-language-server: $schema=./l7proxy.schema.json`.

| text | examples |
|---|---|
"""

_TEXTS = {
    "duration": "`250ms`, `2s`, `1m30s`, `1h`",
    "size": "`512B`, `64KiB`, `1MiB`, `2GiB`",
    "listen": "`127.0.0.1:15000`, `[::]:15006`, `unix:/run/l7proxy.sock`; port 0 picks a free one",
    "hostport": "`10.0.0.5:9090`, `[fd00::5]:9090`, `payments.shop.svc:9090`",
    "url": "`http://127.0.0.1:8080`",
    "host": "`orders.example.com`, `*.orders.svc` (any depth), `*`",
    "regex": "RE2 syntax, matched against the whole value; `/v[0-9]+/orders`",
    "file": "`certs/tls.crt`; a relative path starts at the folder of the document",
    "cidr": "`10.0.0.0/8`, `192.0.2.7`, `fd00::/8`",
}


def reference() -> str:
    """Returns the whole page."""
    parts = [_HEAD + "".join(f"| {name} | {examples} |\n" for name, examples in _TEXTS.items())]
    blocks: dict[type, str] = {}
    parts += [_section(kind.name, imported(kind.spec), blocks, 2) for kind in KINDS.values() if not kind.foreign]
    parts.append("\n## Policies\n\nUnder `policies` of a Route, in the order in which requests meet them.\n")
    parts += [_section(policy.name, policy, blocks, 3) for policy in FILTERS]
    return "".join(parts)


def _section(title: str, cls: type, blocks: dict[type, str], level: int) -> str:
    """Returns the section of a block, followed by those of blocks within that have not been written yet."""
    blocks[cls] = title
    rows = list(keys(cls))
    inner: list[tuple[str, type]] = []
    for key in rows:
        for block in _blocks(key.shape):
            if block not in blocks:
                blocks[block] = f"{title}.{key.name}"
                inner.append((f"{title}.{key.name}", block))
    lines = [f"\n{'#' * level} {title}\n\n{text(cls)}\n"]
    lines += [f"\nExactly one of {_ticked(names)}.\n" for names in getattr(cls, "exactly_one", ())]
    lines += [f"\nAt most one of {_ticked(names)}.\n" for names in getattr(cls, "at_most_one", ())]
    if rows:
        lines.append("\n| key | value | default | |\n|---|---|---|---|\n")
    for key in rows:
        value = _words(key.shape, blocks).replace("|", "\\|")
        lines.append(
            f"| `{key.name}` | {value} | {_default(key)} | {key.shape.description.replace('|', chr(92) + '|')} |\n"
        )
    return "".join(lines) + "".join(_section(name, block, blocks, 3 if level == 2 else 4) for name, block in inner)


def _blocks(inner: Shape) -> list[type]:
    info = inner.info
    if inner.policies:
        return []
    match info:
        case inspect.StructType():
            return [info.cls]
        case inspect.DictType():
            return _blocks(shape(info.value_type))
        case inspect.CollectionType():
            return _blocks(shape(info.item_type))
        case inspect.UnionType():
            return [block for member in info.types for block in _blocks(shape(member))]
    return []


def _words(inner: Shape, blocks: dict[type, str]) -> str:
    """Returns what a value is, in a few words."""
    info = inner.info
    if inner.policies:
        return "[policies](#policies)"
    if inner.format is not None:
        return inner.format.name if inner.format.name in _TEXTS else f"text, like `{inner.format.example}`"
    match info:
        case inspect.StructType():
            title = blocks.get(info.cls, info.cls.__name__)
            return f"[{title}](#{title.lower().replace('.', '')})"
        case inspect.LiteralType():
            return " or ".join(f"`{value}`" for value in info.values)
        case inspect.BoolType():
            return "`true` or `false`"
        case inspect.IntType() | inspect.FloatType():
            return ("whole number" if isinstance(info, inspect.IntType) else "number") + _range(info)
        case inspect.DictType():
            return f"map to {_words(shape(info.value_type), blocks)}"
        case inspect.CollectionType():
            return f"list of {_words(shape(info.item_type), blocks)}"
        case inspect.UnionType():
            return " or ".join(_words(shape(member), blocks) for member in info.types)
    return "text"


def _range(info: Any) -> str:
    if info.ge is not None and info.le is not None:
        return f", {info.ge:g} to {info.le:g}"
    if info.ge is not None:
        return f", at least {info.ge:g}"
    return f", more than {info.gt:g}" if info.gt is not None else ""


def _default(key: Key) -> str:
    if key.required:
        return "required"
    if key.default is None:
        return ""
    return f"`{key.default if isinstance(key.default, str) else json.dumps(key.default)}`"


def _ticked(names: tuple[str, ...]) -> str:
    *rest, last = [f"`{name}`" for name in names]
    return f"{', '.join(rest)} and {last}"
