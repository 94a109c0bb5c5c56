"""Classes of words: none is left out, and every word is in the class of its representative."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.core.languages import ANYTHING, Node, Undecided, expression, literal, one_of, wildcard
from l7proxy.core.partition import Language, partition
from l7proxy.core.patterns import whole

LETTERS = "ab/1"
ATOMS = st.sampled_from(["a", "b", "/", "1", ".", "[ab]", "[^a]", r"\d", r"\W", "[a-c1]", "é", r"\x61", "[[:alpha:]]"])
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("(?:{0[0]}|{0[1]})".format),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "{2}", "{1,3}", "{2,}"])).map("({0[0]}){0[1]}".format),
        inner.map("(?i:{})".format),
        inner.map("^{}$".format).filter(lambda text: text.count("^") == 1),
    ),
    max_leaves=6,
)
WORDS = st.binary(max_size=6) | st.text(LETTERS + "cAé", max_size=7).map(str.encode)
EVERY = [Language(ANYTHING)]


def translated(pattern: str) -> Node | None:
    try:
        return expression(pattern)
    except Undecided:
        return None


@settings(max_examples=200, deadline=None)
@given(st.lists(EXPRESSIONS, min_size=1, max_size=3, unique=True), st.lists(WORDS, max_size=20))
def test_a_word_has_the_matches_of_its_class_as_re2_tells_them(patterns: list[str], words: list[bytes]) -> None:
    nodes = {pattern: node for pattern in patterns if (node := translated(pattern)) is not None}
    try:
        classes = partition({pattern: Language(node) for pattern, node in nodes.items()}, EVERY)
    except Undecided:
        return
    matchers = {pattern: whole(pattern) for pattern in nodes}

    def matched(word: bytes) -> frozenset[str]:
        return frozenset(pattern for pattern, matches in matchers.items() if matches(word))

    for found in classes:
        assert matched(found.word) == found.of
    vectors = {found.of for found in classes}
    assert len(vectors) == len(classes)
    for word in words:
        assert matched(word) in vectors


@pytest.mark.parametrize(
    "pattern",
    [
        "/v[0-9]+/.*",
        "^/a$",
        r"\A/a\z",
        "^a|b$",
        "/(?P<x>a)",
        "(a{2}){2}",
        "x{,2}",
        r"\.\/",
        "(?s).",
        "(?i)a(?:b|C)",
        "[]a]",
        "[a-]",
    ],
)
def test_common_expressions_are_translated(pattern: str) -> None:
    language = Language(expression(pattern))
    for found in partition({"it": language}, EVERY):
        assert whole(pattern)(found.word) == ("it" in found.of)


@pytest.mark.parametrize("pattern", [r"\bx", r"(?m)^a", r"a$b", r"\pL", "(?U)a", r"\Qa\E", r"\C", "(?i)é"])
def test_what_is_not_translated_says_so(pattern: str) -> None:
    with pytest.raises(Undecided, match="cannot be enumerated"):
        expression(pattern)


PATTERNS = st.builds(
    lambda text, star: {"none": text, "end": text + "*", "start": "*" + text, "alone": "*"}[star],
    st.text(LETTERS, min_size=1, max_size=4),
    st.sampled_from(["none", "end", "start", "alone"]),
)


def holds(pattern: str, word: str) -> bool:
    if pattern == "*":
        return bool(word)
    if pattern.endswith("*"):
        return word.startswith(pattern[:-1])
    return word.endswith(pattern[1:]) if pattern.startswith("*") else word == pattern


@settings(max_examples=150, deadline=None)
@given(st.lists(PATTERNS, max_size=8, unique=True), st.lists(st.text(LETTERS + "x", max_size=8), max_size=20))
def test_every_word_is_in_a_class_of_wildcards(patterns: list[str], words: list[str]) -> None:
    languages = {pattern: Language(wildcard(pattern, pattern.strip("*").encode())) for pattern in patterns}
    vectors = {}
    for found in partition(languages, EVERY):
        vectors[found.of] = found.word
        assert found.of == {pattern for pattern in patterns if holds(pattern, found.word.decode("latin-1"))}
    for word in words:
        assert frozenset(pattern for pattern in patterns if holds(pattern, word)) in vectors


def test_words_stay_within_the_bounds_and_are_short() -> None:
    bound = Language(expression("[a-z]+"))
    classes = partition({"it": Language(wildcard("*xy", b"xy"))}, [bound])
    assert {(found.word, bool(found.of)) for found in classes} == {(b"a", False), (b"xy", True)}


def test_a_symbol_can_be_read_otherwise_than_it_is_written() -> None:
    symbols = [(b"a",), (b"%41", b"A")]
    classes = partition(
        {"written": Language(literal(b"%41")), "read": Language(literal(b"A"), track=1)},
        [Language(ANYTHING)],
        symbols,
    )
    assert {(found.word, found.of) for found in classes} == {
        (b"", frozenset()),
        (b"%41", frozenset({"written", "read"})),
    }


def test_too_many_classes_are_not_waited_for() -> None:
    languages = {place: Language(expression(f".*{chr(97 + place)}.{{12}}")) for place in range(4)}
    with pytest.raises(Undecided, match="overlap in more than"):
        partition(languages, [Language(ANYTHING)], [(bytes((byte,)),) for byte in b"abcd"])


def test_alternatives_between_the_same_beginning_and_end_are_not_remembered_apart() -> None:
    pattern = "|".join(f"(?:.*/ns/team{number}/.*)" for number in range(100))
    classes = partition({pattern: Language(expression(pattern))}, EVERY)
    assert {found.of for found in classes} == {frozenset(), frozenset({pattern})}


def test_one_of_is_any_of_its_bytes() -> None:
    classes = partition({"it": Language(one_of(b"xy"))}, [Language(expression("."))])
    assert {(found.word, bool(found.of)) for found in classes} == {(b"a", False), (b"x", True)}


def test_thousands_of_names_are_told_apart() -> None:
    names = [f"service-{number}.shop.example.com".encode() for number in range(5000)]
    languages = {name: Language(literal(name)) for name in names} | {b"*": Language(wildcard("*", b""))}
    found = {one.of: one.word for one in partition(languages, [])}
    assert len(found) == len(names) + 2
    assert all(found[frozenset((name, b"*"))] == name for name in names)
    assert found[frozenset((b"*",))] not in names
