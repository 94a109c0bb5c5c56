"""Texts of the configuration that hold values of environment variables: used as they are, shown as they are written."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")

_LEAST = 4
"""Characters that a value has which is concealed within a longer text: less is no secret, and stands everywhere."""


class Expanded(str):
    """A text that holds values of environment variables; `written` is how it stands in the file, `Bearer ${TOKEN}`.

    It is equal to, and formatted as, the text that it stands for. What quotes it for a reader, `repr` first of all,
    shows how it is written: a secret that comes from the environment shows by its name.
    """

    written: str

    def __new__(cls, text: str, written: str) -> "Expanded":
        self = super().__new__(cls, text)
        self.written = written
        return self

    def __repr__(self) -> str:
        return repr(self.written)

    def __reduce__(self) -> tuple[Any, ...]:
        return Expanded, (str(self), self.written)


def shown(text: str) -> str:
    """Returns a text as readers may see it."""
    return text.written if isinstance(text, Expanded) else text


def encoded(value: object) -> str:
    """Returns what msgspec cannot encode as the text that readers may see; an `enc_hook`."""
    return value.written if isinstance(value, Expanded) else str(value)


def expanded_in(value: object) -> Iterator[Expanded]:
    """Yields every Expanded within a block of the configuration."""
    if isinstance(value, Expanded):
        yield value
    elif isinstance(value, Struct):
        for name in value.__struct_fields__:
            yield from expanded_in(getattr(value, name))
    elif isinstance(value, dict):
        yield from expanded_in((*value.keys(), *value.values()))
    elif isinstance(value, tuple | list | set | frozenset):
        for item in value:
            yield from expanded_in(item)


def concealed(text: str, secrets: Iterable[Expanded]) -> str:
    """Returns the same text, which shows each of `secrets` within it as that is written."""
    if isinstance(text, Expanded):
        return text
    masked = text
    # The longest first: one may hold another.
    for secret in sorted(secrets, key=len, reverse=True):
        if secret == masked or len(secret) >= _LEAST:
            masked = masked.replace(str(secret), secret.written)
    return text if masked == text else Expanded(text, masked)


def published(told: T, secrets: Iterable[Expanded] = ()) -> T:
    """Returns plain data as readers may see it, with `secrets` concealed in every text."""
    known = tuple(secrets)

    def publish(value: Any) -> Any:
        if isinstance(value, str):
            return shown(concealed(value, known))
        if isinstance(value, dict):
            return {key: publish(inner) for key, inner in value.items()}
        return [publish(item) for item in value] if isinstance(value, list | tuple) else value

    return msgspec.convert(publish(msgspec.to_builtins(told, enc_hook=encoded)), type(told))
