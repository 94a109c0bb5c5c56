"""The classes into which languages divide all words: one word for each way of being in some and not in others.

All automata run side by side as one (the subset construction). Every set of positions that can be reached is visited,
shorter words first, so that no class is left out and each is represented by a short word.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from msgspec import Struct

from l7proxy.core.languages import Node, Undecided, automaton, only_word

Key = TypeVar("Key", bound=Hashable)

MOST = 20_000
"""Sets of positions to visit; more are not worth the wait."""

Symbol = tuple[bytes, ...]
"""What a step adds to a word: bytes as they are written, and as they are on each further track where those differ."""

_NICE = b"abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-._~/"
BYTES: tuple[Symbol, ...] = tuple(
    (bytes((byte,)),) for byte in (*_NICE, *(byte for byte in range(256) if byte not in _NICE))
)
"""Every byte, the same on all tracks; those that are nice to look at come first."""


class Language(Struct, frozen=True):
    """A language of words as they are written (track 0), or of what they are on another track."""

    node: Node
    track: int = 0


class Class(Struct, Generic[Key], frozen=True):
    """All words that are in the languages `of` and in no other; `word` is one of them as it is written."""

    word: bytes
    of: frozenset[Key]


def partition(
    languages: Mapping[Key, Language],
    within: Iterable[Language],
    symbols: Sequence[Symbol] = BYTES,
    prefer: Iterable[bytes] = (),
) -> list[Class[Key]]:
    """Returns the classes of the words that are in all languages of `within`; raises Undecided when they are too many.

    Words are made of `symbols`, of which the earlier are preferred. A class that holds a word of `prefer`, all of whose
    bytes are symbols, is represented by it.
    """
    bounds = list(within)
    named = _named(languages, symbols)
    # A language of one word makes one class, its word, and needs no automaton beside the others, unless that word would
    # stand for a class of theirs: thousands of exact names are told apart so.
    laid = {key: language for key, language in languages.items() if key not in named}
    while True:
        found = _classes(laid, bounds, symbols, prefer)
        words = {one.word for one in found}
        taken = {key: languages[key] for key, word in named.items() if word in words and key not in laid}
        if not taken:
            break
        laid |= taken
    apart: dict[bytes, list[Key]] = {}
    for key, word in named.items():
        if key not in laid:
            apart.setdefault(word, []).append(key)
    runs, keys = _Runs([*bounds, *laid.values()], len(bounds)), list(laid)
    for word, own in apart.items():
        places = runs.accepting(runs.through(word))
        if places is not None:
            found.append(Class(word, frozenset((*own, *(keys[place - len(bounds)] for place in places)))))
    return found


def _named(languages: Mapping[Key, Language], symbols: Sequence[Symbol]) -> dict[Key, bytes]:
    """Returns the word of each language that has one only, of symbols that are bytes and alike on all tracks."""
    plain = {symbol[0] for symbol in symbols if len(symbol) == len(symbol[0]) == 1}
    for symbol in symbols:
        if not len(symbol) == len(symbol[0]) == 1:
            plain.difference_update(bytes((byte,)) for byte in symbol[0])
    found = {}
    for key, language in languages.items():
        word = None if language.track else only_word(language.node)
        if word is not None and all(bytes((byte,)) in plain for byte in word):
            found[key] = word
    return found


def _classes(
    languages: Mapping[Key, Language], bounds: list[Language], symbols: Sequence[Symbol], prefer: Iterable[bytes]
) -> list[Class[Key]]:
    """See `partition`; runs all languages side by side."""
    keys = list(languages)
    runs = _Runs([*bounds, *languages.values()], len(bounds))
    alphabet = runs.alphabet(symbols)
    found: dict[frozenset[Key], bytes] = {}

    def visit(state: int, word: bytes) -> None:
        places = runs.accepting(state)
        if places is not None:
            found.setdefault(frozenset(keys[place - len(bounds)] for place in places), word)

    for word in prefer:
        visit(runs.through(word), word)
    seen = {runs.start}
    layer = [(runs.start, b"")]
    while layer:
        following = []
        for state, word in layer:
            visit(state, word)
            for symbol in alphabet:
                reached = runs.step(state, symbol)
                if reached in seen or not runs.alive(reached):
                    continue
                if len(seen) == MOST:
                    raise Undecided(f"the patterns overlap in more than {MOST} ways")
                seen.add(reached)
                following.append((reached, word + symbol[0]))
        layer = following
    return [Class(word, of) for of, word in found.items()]


class _Runs:
    """Several automata as one, of which the first are bounds.

    Positions are numbered through; a state is the set of those where a word may have come to, as bits. The last
    bits are where the automata of each track begin.
    """

    def __init__(self, languages: Sequence[Language], bounds: int) -> None:
        built = [automaton(language.node) for language in languages]
        count = sum(len(one.masks) for one in built)
        tracks = 1 + max((language.track for language in languages), default=0)
        self._tracks = [1 << count + track for track in range(tracks)]
        self.start = sum(self._tracks)
        self._bounds = bounds
        self._follow: list[int] = [0] * (count + tracks)
        self._of = [0] * len(languages)
        self._owner: list[int] = []
        self._last = 0
        self._empty = [place for place, one in enumerate(built) if one.empty]
        masks: list[int] = []
        for place, (language, one) in enumerate(zip(languages, built, strict=True)):
            first = len(masks)
            masks += one.masks
            self._owner += [place] * len(one.masks)
            self._of[place] = (1 << len(masks)) - (1 << first)
            self._follow[count + language.track] |= _bits(one.first) << first
            for position, after in enumerate(one.follow, first):
                self._follow[position] = _bits(after) << first
            self._last |= _bits(one.last) << first
            self._tracks[language.track] |= self._of[place]
        self._part = _parts(masks)
        self._by = {
            part: _bits(position for position, mask in enumerate(masks) if mask >> byte & 1)
            for byte, part in reversed(self._part.items())
        }
        self._known: dict[int, int] = {}

    def alphabet(self, symbols: Iterable[Symbol]) -> list[Symbol]:
        """Returns the first of all symbols that no automaton tells apart."""
        chosen: dict[tuple[tuple[int, ...], ...], Symbol] = {}
        for symbol in symbols:
            chosen.setdefault(tuple(tuple(map(self._part.__getitem__, data)) for data in symbol), symbol)
        return list(chosen.values())

    def accepting(self, state: int) -> list[int] | None:
        """Returns which automata beyond the bounds accept the words that lead to a state, None if not all bounds do."""
        places = self._empty if state == self.start else {self._owner[place] for place in _places(state & self._last)}
        if sum(place < self._bounds for place in places) < self._bounds:
            return None
        return [place for place in places if place >= self._bounds]

    def alive(self, state: int) -> bool:
        """Tells whether all bounds may still accept."""
        return all(state & of for of in self._of[: self._bounds])

    def step(self, state: int, symbol: Symbol) -> int:
        """Returns the state that a symbol leads to."""
        if len(symbol) == 1:
            return self._through(state, symbol[0])
        reached = 0
        for track, data in zip(self._tracks, symbol, strict=False):
            reached |= self._through(state & track, data)
        return reached

    def through(self, word: bytes) -> int:
        """Returns the state that a word leads to, whose bytes are the same on all tracks."""
        return self._through(self.start, word)

    def _through(self, state: int, data: bytes) -> int:
        for byte in data:
            after = self._known.get(state)
            if after is None:
                after = 0
                for place in _places(state):
                    after |= self._follow[place]
                self._known[state] = after
            state = after & self._by[self._part[byte]]
        return state


def _bits(places: Iterable[int]) -> int:
    bits = 0
    for place in places:
        bits |= 1 << place
    return bits


def _places(bits: int) -> Iterator[int]:
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def _parts(masks: Iterable[int]) -> dict[int, int]:
    """Returns a number for each byte, the same for those that all masks hold or none does."""
    parts = [(1 << 256) - 1]
    for mask in set(masks):
        parts = [part for whole in parts for part in (whole & mask, whole & ~mask) if part]
    return {byte: number for number, part in enumerate(parts) for byte in _places(part)}
