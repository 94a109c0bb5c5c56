"""Regular expressions in linear time: RE2 over bytes, every pattern matched against the whole text."""

import re
from collections.abc import Callable
from typing import Any

LARGEST = 10_000
"""The largest program, in RE2's instructions, that one expression may compile to."""
_SET_PATTERNS = 64
_SET_SIZE = 16_000
_MEMORY = 8 << 20
_LITERAL = re.compile(r"(?:[A-Za-z0-9_/~%@:&=,!-]|\\[^A-Za-z0-9])*")


def check(pattern: str) -> int:
    """Returns the size of the compiled pattern; raises ValueError with the reason why it cannot be used."""
    import re2

    try:
        size: int = re2.compile(pattern.encode(), _options()).programsize
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        raise ValueError(reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)) from None
    if size > LARGEST:
        raise ValueError(f"it compiles to {size} instructions, more than {LARGEST}")
    return size


def whole(pattern: str) -> Callable[[bytes], bool]:
    """Returns a function that tells whether the pattern matches the whole of a text."""
    patterns = Patterns()
    patterns.add(pattern)
    patterns.seal()
    return lambda text: bool(patterns.match(text))


def literal_prefix(pattern: str) -> str:
    """Returns a text that everything the pattern matches starts with; "" where none is certain."""
    found = _LITERAL.match(pattern)
    if found is None or "|" in pattern:
        return ""
    literal = found[0]
    if pattern[len(literal) : len(literal) + 1] in ("*", "?", "+", "{"):
        literal = literal[: -2 if literal[-2:-1] == "\\" else -1]
    return re.sub(r"\\(.)", r"\1", literal)


class Patterns:
    """Many patterns that are asked at once: up to 64 share one automaton.

    RE2 gives up on a set whose automaton cannot hold 20 states, and its patterns then match nothing: `_SET_SIZE` keeps
    far from there.
    """

    def __init__(self) -> None:
        self._sets: list[tuple[int, Callable[[bytes], list[int] | None]]] = []
        self._open: Any = None
        self._count = 0
        self._size = 0
        self._total = 0

    def add(self, pattern: str) -> int:
        """Adds a pattern and returns its index; raises ValueError if it cannot be used."""
        import re2

        size = check(pattern)
        if self._open is None or self._count == _SET_PATTERNS or self._size + size > _SET_SIZE:
            self.seal()
            self._open = re2.Set.FullMatchSet(_options())
            self._sets.append((self._total, self._open.Match))
        self._open.Add(pattern.encode())
        self._count += 1
        self._size += size
        self._total += 1
        return self._total - 1

    def seal(self) -> None:
        """Makes the patterns ready to be matched; it costs about a third of a millisecond."""
        if self._open is not None:
            self._open.Compile()
        self._open, self._count, self._size = None, 0, 0

    def match(self, text: bytes) -> list[int]:
        """Returns the indexes of the patterns that match, in order."""
        found: list[int] = []
        for first, match in self._sets:
            hits = match(text)
            if hits:
                found += [first + hit for hit in hits]
        found.sort()
        return found


def _options() -> Any:
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.dot_nl = True
    options.never_capture = True
    options.log_errors = False
    options.max_mem = _MEMORY
    return options
