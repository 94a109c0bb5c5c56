"""The classes into which languages divide all words: one word for each way of being in some and not in others.

All automata run side by side as one (the subset construction). Every set of positions that can be reached is visited,
shorter words first, so that no class is left out and each is represented by a short word.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

from msgspec import Struct

from l7proxy.core.languages import Node, Undecided, automaton

Key = TypeVar("Key", bound=Hashable)

MOST = 20_000
"""Sets of positions to visit; more are not worth the wait."""

Symbol = tuple[bytes, bytes]
"""What a step adds to a word: the bytes as they are written, and as they are read."""

_NICE = b"abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-._~/"
BYTES: tuple[Symbol, ...] = tuple(
    (bytes((byte,)), bytes((byte,))) for byte in (*_NICE, *(byte for byte in range(256) if byte not in _NICE))
)
"""Every byte, read as it is written; those that are nice to look at come first."""


class Language(Struct, frozen=True):
    """A language of words as they are written, or with `read` of words as they are read."""

    node: Node
    read: bool = False


class Class(Struct, Generic[Key], frozen=True):
    """All words that are in the languages `of` and in no other; `word` is one of them as it is written."""

    word: bytes
    of: frozenset[Key]


def partition(
    languages: Mapping[Key, Language], within: Iterable[Language], symbols: Sequence[Symbol] = BYTES
) -> list[Class[Key]]:
    """Returns the classes of the words that are in all languages of `within`; raises Undecided when they are too many.

    Words are made of `symbols`, of which the earlier are preferred.
    """
    keys = list(languages)
    bounds = list(within)
    runs = _Runs([*bounds, *languages.values()])
    alphabet = _alphabet(runs.masks, symbols)
    found: dict[frozenset[Key], bytes] = {}
    start = frozenset(_STARTS)
    seen = {start}
    layer = [(start, b"")]
    while layer:
        following = []
        for state, word in layer:
            accepting = runs.accepting(state)
            if all(place in accepting for place in range(len(bounds))):
                of = frozenset(keys[place - len(bounds)] for place in accepting if place >= len(bounds))
                found.setdefault(of, word)
            step = runs.stepper(state)
            for symbol in alphabet:
                reached = step(symbol)
                if reached in seen or not runs.alive(reached, len(bounds)):
                    continue
                if len(seen) == MOST:
                    raise Undecided(f"the patterns overlap in more than {MOST} ways")
                seen.add(reached)
                following.append((reached, word + symbol[0]))
        layer = following
    return [Class(word, of) for of, word in found.items()]


_STARTS = (-1, -2)
"""Where the automata of words as they are written and as they are read begin."""


class _Runs:
    """Several automata as one, their positions numbered through; a state is a set of positions."""

    def __init__(self, languages: Sequence[Language]) -> None:
        self.masks: list[int] = []
        self._follow: dict[int, frozenset[int]] = {start: frozenset() for start in _STARTS}
        self._owner: list[int] = []
        self._last: set[int] = set()
        self._empty: set[int] = set()
        self._read: set[int] = {_STARTS[1]}
        for place, language in enumerate(languages):
            built, first = automaton(language.node), len(self.masks)
            self.masks += built.masks
            self._owner += [place] * len(built.masks)
            start = _STARTS[language.read]
            self._follow[start] |= {first + position for position in built.first}
            for position, after in enumerate(built.follow, first):
                self._follow[position] = frozenset(first + follower for follower in after)
            self._last |= {first + position for position in built.last}
            if language.read:
                self._read |= set(range(first, len(self.masks)))
            if built.empty:
                self._empty.add(place)

    def accepting(self, state: frozenset[int]) -> set[int]:
        """Returns which automata accept the words that lead to a state."""
        if -1 in state:
            return self._empty
        return {self._owner[position] for position in state & self._last}

    def alive(self, state: frozenset[int], count: int) -> bool:
        """Tells whether each of the first `count` automata may still accept."""
        owners = {self._owner[position] for position in state}
        return all(place in owners for place in range(count))

    def stepper(self, state: frozenset[int]) -> Callable[[Symbol], frozenset[int]]:
        """Returns the function from a symbol to the state that it leads to."""
        after = self._after(state)
        written, read = self._after(state - self._read), self._after(state & self._read)

        def step(symbol: Symbol) -> frozenset[int]:
            if symbol[0] == symbol[1] and len(symbol[0]) == 1:
                return self._by(after, symbol[0][0])
            return self._through(written, symbol[0]) | self._through(read, symbol[1])

        return step

    def _through(self, after: set[int], data: bytes) -> frozenset[int]:
        state = self._by(after, data[0])
        for byte in data[1:]:
            state = self._by(self._after(state), byte)
        return state

    def _after(self, state: Iterable[int]) -> set[int]:
        return set[int]().union(*(self._follow[position] for position in state))

    def _by(self, positions: Iterable[int], byte: int) -> frozenset[int]:
        masks = self.masks
        return frozenset(position for position in positions if masks[position] >> byte & 1)


def _alphabet(masks: Iterable[int], symbols: Sequence[Symbol]) -> list[Symbol]:
    """Returns the first of all symbols that no automaton tells apart."""
    parts = [(1 << 256) - 1]
    for mask in set(masks):
        parts = [part for whole in parts for part in (whole & mask, whole & ~mask) if part]
    number = {byte: index for index, part in enumerate(parts) for byte in range(256) if part >> byte & 1}
    chosen: dict[tuple[tuple[int, ...], tuple[int, ...]], Symbol] = {}
    for symbol in symbols:
        written, read = symbol
        chosen.setdefault((tuple(number[byte] for byte in written), tuple(number[byte] for byte in read)), symbol)
    return list(chosen.values())
