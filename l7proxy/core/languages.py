"""Regular languages over bytes: what patterns match, as automata that can be laid one over the other.

An expression is read as `core.patterns` has RE2 read it: over bytes, `.` being any of them, against the whole text.
`automaton` turns it into positions (Glushkov's construction, which needs no empty moves): a word is in the language
when its bytes lead from `first` through `follow` to one of `last`.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct


class Undecided(ValueError):
    """What no enumeration of classes can decide; the message says why."""


class Bytes(Struct, frozen=True):
    """One byte of a set, given as the bits of `mask`."""

    mask: int


class Seq(Struct, frozen=True):
    """One part after the other; without parts the empty word."""

    parts: "tuple[Node, ...]" = ()


class Either(Struct, frozen=True):
    """A word of one of the parts; without parts no word at all."""

    parts: "tuple[Node, ...]" = ()


class Star(Struct, frozen=True):
    """Any number of words of the part."""

    part: "Node"


Node = Bytes | Seq | Either | Star

ALL = Bytes((1 << 256) - 1)
ANYTHING = Star(ALL)
_MOST_COPIES = 1000
"""How often an expression may be repeated by number, as in RE2."""


class Automaton(Struct, frozen=True):
    """Positions of a language: the bytes that lead to each, and which may come after which."""

    masks: tuple[int, ...]
    first: frozenset[int]
    follow: tuple[frozenset[int], ...]
    last: frozenset[int]
    empty: bool


def one_of(data: Iterable[int]) -> Bytes:
    """Returns any one of these bytes."""
    mask = 0
    for byte in data:
        mask |= 1 << byte
    return Bytes(mask)


def literal(data: bytes) -> Node:
    """Returns exactly these bytes."""
    return Seq(tuple(Bytes(1 << byte) for byte in data))


def either(nodes: Sequence[Node]) -> Node:
    """Returns a word of any of the nodes; what all begin and end with is written once, for fewer positions to track."""
    if len(nodes) == 1:
        return nodes[0]
    rests = [node.parts if isinstance(node, Seq) else (node,) for node in nodes]
    shortest = min(map(len, rests))
    same = [len(set(column)) == 1 for column in zip(*rests, strict=False)]
    head = (*same, False).index(False)
    same = [len(set(column)) == 1 for column in zip(*map(reversed, rests), strict=False)]
    tail = min((*same, False).index(False), shortest - head)
    middle = Either(tuple(Seq(rest[head : len(rest) - tail]) for rest in rests))
    first = rests[0]
    return Seq((*first[:head], middle, *first[len(first) - tail :]))


def only_word(node: Node) -> bytes | None:
    """Returns the word of what `literal` makes; None for other languages."""
    parts = node.parts if isinstance(node, Seq) else ()
    if not parts or not all(isinstance(part, Bytes) and part.mask.bit_count() == 1 for part in parts):
        return None
    return bytes(part.mask.bit_length() - 1 for part in parts if isinstance(part, Bytes))


def wildcard(pattern: str, data: bytes, gap: Node = ALL) -> Node:
    """Returns the language of a text with `*` at its start or end, `*` alone being any text but none.

    `data` is the text without the `*`, `gap` one byte of what a `*` stands for.
    """
    if pattern == "*":
        return Seq((gap, Star(gap)))
    if pattern.endswith("*"):
        return Seq((literal(data), Star(gap)))
    if pattern.startswith("*"):
        return Seq((Star(gap), literal(data)))
    return literal(data)


def automaton(node: Node) -> Automaton:
    """Returns the positions of a language."""
    masks: list[int] = []
    follow: list[set[int]] = []

    def lay(node: Node) -> tuple[frozenset[int], frozenset[int], bool]:
        """Returns (first positions, last positions, whether the empty word is one)."""
        if isinstance(node, Bytes):
            masks.append(node.mask)
            follow.append(set())
            here = frozenset((len(masks) - 1,))
            return here, here, False
        if isinstance(node, Star):
            first, last, _ = lay(node.part)
            join(last, first)
            return first, last, True
        if isinstance(node, Either):
            laid = [lay(part) for part in node.parts]
            firsts = frozenset[int]().union(*(first for first, _, _ in laid))
            return firsts, frozenset[int]().union(*(last for _, last, _ in laid)), any(empty for *_, empty in laid)
        first, last, empty = frozenset[int](), frozenset[int](), True
        for part in node.parts:
            starts, ends, may_be_empty = lay(part)
            join(last, starts)
            first = first | starts if empty else first
            last = last | ends if may_be_empty else ends
            empty = empty and may_be_empty
        return first, last, empty

    def join(before: frozenset[int], after: frozenset[int]) -> None:
        for position in before:
            follow[position] |= after

    first, last, empty = lay(node)
    return Automaton(tuple(masks), first, tuple(frozenset(after) for after in follow), last, empty)


def expression(pattern: str) -> Node:
    """Returns the language of an expression that RE2 accepts; raises Undecided for what is not translated."""
    reader = _Reader(pattern.encode(), pattern)
    node = reader.alternatives(True)
    if reader.at < len(reader.text):
        raise Undecided(f"the regular expression {pattern!r} has a ')' too many")
    return node


_DIGITS = one_of(b"0123456789").mask
_WORD = one_of(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_").mask
_LETTERS = _WORD & ~_DIGITS & ~(1 << 0x5F)
_SPACE = one_of(b"\t\n\f\r ").mask
_SETS = {0x64: _DIGITS, 0x77: _WORD, 0x73: _SPACE}
_CONTROLS = {0x61: 7, 0x66: 12, 0x74: 9, 0x6E: 10, 0x72: 13, 0x76: 11}
_NAMED = {
    b"alnum": _LETTERS | _DIGITS,
    b"alpha": _LETTERS,
    b"ascii": (1 << 128) - 1,
    b"blank": one_of(b"\t ").mask,
    b"digit": _DIGITS,
    b"lower": one_of(range(0x61, 0x7B)).mask,
    b"space": _SPACE | 1 << 11,
    b"upper": one_of(range(0x41, 0x5B)).mask,
    b"word": _WORD,
    b"xdigit": one_of(b"0123456789abcdefABCDEF").mask,
}


class _Reader:
    """Reads RE2's syntax byte by byte, so that a letter beyond ASCII is the bytes of its UTF-8, as it is to RE2."""

    def __init__(self, text: bytes, pattern: str) -> None:
        self.text = text
        self.pattern = pattern
        self.at = 0
        self.folds = False

    def alternatives(self, outermost: bool) -> Node:
        """Reads up to the end of the text or of the group."""
        folds = self.folds
        parts = [self._sequence(outermost)]
        while self._takes(b"|"):
            parts.append(self._sequence(outermost))
        self.folds = folds
        return either(parts)

    def _sequence(self, outermost: bool) -> Node:
        # The whole text is matched anyway: at its ends an anchor says nothing.
        while outermost and (self._takes(b"^") or self._takes(rb"\A")):
            pass
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at : self.at + 1] not in (b"|", b")"):
            if outermost and self.text[self.at :].partition(b"|")[0] in (b"$", rb"\z"):
                self.at += 1 if self.text[self.at] == 0x24 else 2
                break
            part = self._atom()
            if part is not None:
                parts.append(self._repeated(part))
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def _atom(self) -> Node | None:
        byte = self._next()
        if byte == 0x28:
            return self._group()
        if byte == 0x5B:
            return self._class()
        if byte == 0x2E:
            return ALL
        if byte == 0x5C:
            return Bytes(self._folded(self._escape()))
        if byte in b"^$*+?":
            raise self._undecided(chr(byte))
        return Bytes(self._folded(1 << byte))

    def _group(self) -> Node | None:
        if self._takes(b"?") and not self._takes(b":"):
            if self._takes(b"P<") or self._takes(b"<"):
                self.at = self.text.index(b">", self.at) + 1
            else:
                return self._flags()
        node = self.alternatives(False)
        self._next()
        return node

    def _flags(self) -> Node | None:
        """Reads `(?i)` and `(?i:...)`; `s` is what we have anyway."""
        before = self.folds
        while (byte := self._next()) not in b":)":
            if byte not in b"is":
                raise self._undecided(f"the flag {chr(byte)}")
            self.folds |= byte == 0x69
        if byte == 0x29:
            return None
        node = self.alternatives(False)
        self._next()
        self.folds = before
        return node

    def _class(self) -> Node:
        negated = self._takes(b"^")
        mask = 0
        started = self.at
        while self.at == started or self.text[self.at : self.at + 1] != b"]":
            if self._takes(b"[:"):
                end = self.text.index(b":]", self.at)
                name, self.at = self.text[self.at : end], end + 2
                found = _NAMED.get(name.removeprefix(b"^"))
                if found is None:
                    raise self._undecided(f"[:{name.decode(errors='replace')}:]")
                mask |= ~found & ALL.mask if name.startswith(b"^") else found
                continue
            low = self._member()
            if low.bit_count() == 1 and self.text[self.at : self.at + 1] == b"-" and self.text[self.at + 1] != 0x5D:
                self.at += 1
                high = self._member()
                mask |= (high << 1) - low
            else:
                mask |= low
        self.at += 1
        mask = self._folded(mask)
        return Bytes(~mask & ALL.mask if negated else mask)

    def _member(self) -> int:
        byte = self._next()
        return self._escape() if byte == 0x5C else 1 << byte

    def _escape(self) -> int:
        byte = self._next()
        if byte | 0x20 in _SETS:
            mask = _SETS[byte | 0x20]
            return mask if byte & 0x20 else ~mask & ALL.mask
        if byte in _CONTROLS:
            return 1 << _CONTROLS[byte]
        if byte == 0x78:
            if self._takes(b"{"):
                end = self.text.index(b"}", self.at)
                digits, self.at = self.text[self.at : end], end + 1
            else:
                digits, self.at = self.text[self.at : self.at + 2], self.at + 2
            if int(digits, 16) > 0xFF:
                raise self._undecided(f"\\x{{{digits.decode()}}}")
            return 1 << int(digits, 16)
        if chr(byte).isalnum():
            raise self._undecided(f"\\{chr(byte)}")
        return 1 << byte

    def _repeated(self, node: Node) -> Node:
        while self.at < len(self.text):
            byte = self.text[self.at]
            least, most = 0, -1
            if byte == 0x2A:
                self.at += 1
            elif byte == 0x2B:
                self.at, least = self.at + 1, 1
            elif byte == 0x3F:
                self.at, most = self.at + 1, 1
            elif byte == 0x7B and (bounds := self._bounds()) is not None:
                least, most = bounds
            else:
                return node
            # Whether as much or as little as possible is taken first makes no difference to the whole.
            self._takes(b"?")
            rest: Node = Star(node) if most < 0 else Seq()
            for _ in range(most - least):
                rest = Either((Seq(), Seq((node, rest))))
            node = Seq((*(node for _ in range(least)), rest))
        return node

    def _bounds(self) -> tuple[int, int] | None:
        """Reads `{2}`, `{2,}` or `{2,5}`; a brace that begins none of these is a letter like others."""
        end = self.text.find(b"}", self.at)
        least, comma, most = self.text[self.at + 1 : end].partition(b",")
        if end < 0 or not least.isdigit() or not (most.isdigit() or not most):
            return None
        self.at = end + 1
        bounds = int(least), int(most) if most else -1 if comma else int(least)
        if max(bounds) > _MOST_COPIES:
            raise self._undecided(f"{{{max(bounds)}}}")
        return bounds

    def _folded(self, mask: int) -> int:
        if not self.folds:
            return mask
        if mask >> 128 and mask >> 128 != (1 << 128) - 1:
            raise self._undecided("(?i) with letters beyond ASCII")
        upper, lower = mask & _NAMED[b"upper"], mask & _NAMED[b"lower"]
        return mask | upper << 32 | lower >> 32

    def _next(self) -> int:
        self.at += 1
        return self.text[self.at - 1]

    def _takes(self, data: bytes) -> bool:
        if self.text.startswith(data, self.at):
            self.at += len(data)
            return True
        return False

    def _undecided(self, what: str) -> Undecided:
        return Undecided(f"the regular expression {self.pattern!r} cannot be enumerated: {what}")
