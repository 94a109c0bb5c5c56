import pickle
import string
from itertools import pairwise
from pathlib import Path

import pytest
import yaml as pyyaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l7proxy.config.yaml import MAX_DEPTH, MAX_NODES, Mapping, Node, Sequence, chunks, parse
from l7proxy.core.errors import ConfigError
from l7proxy.core.slices import finish


def read(text: str | bytes, **environment: str) -> list[Node | None]:
    data = text.encode() if isinstance(text, str) else text
    return [finish(parse(chunk, "f", environment)) for chunk in chunks([data], "f") if chunk]


def texts(node: Node | None):
    """Returns the node as plain lists, mappings and texts."""
    if isinstance(node, Mapping):
        return {key: texts(value) for key, value in node.items.items()}
    if isinstance(node, Sequence):
        return [texts(item) for item in node.items]
    return node.value if node is not None else None


def mistakes(text: str | bytes, **environment: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, **environment)
    return str(caught.value)


def test_scalars_stay_the_texts_that_they_are():
    [node] = read("a: no\nb: 010\nc: 12:30\nd: 1.10\ne: '8080'\nf: ~\n")
    assert texts(node) == {"a": "no", "b": "010", "c": "12:30", "d": "1.10", "e": "8080", "f": "~"}


def test_a_quoted_scalar_is_told_from_a_plain_one():
    [node] = read("plain: 5\nquoted: '5'\nblock: |\n  5\n")
    assert isinstance(node, Mapping)
    assert {key: value.plain for key, value in node.items.items()} == {"plain": True, "quoted": False, "block": False}


def test_every_value_knows_the_line_of_its_key():
    [node] = read("# one\na: 1\nb:\n  c:\n    - x\n    -\n      y\n")
    assert isinstance(node, Mapping)
    inner = node.items["b"].items["c"]
    assert [node.line, node.items["a"].line, node.items["b"].line, inner.line] == [2, 2, 3, 4]
    assert [item.line for item in inner.items] == [5, 7]


def test_documents_are_split_where_a_line_starts_with_three_dashes():
    data = b"a: 1\n---\nb: ---\nc: '--- '\n--- # two\nd: |\n  ---\n---"
    found = [chunk for chunk in chunks([data], "f") if chunk]
    assert [texts(finish(parse(chunk, "f"))) for chunk in found] == [
        {"a": "1"},
        {"b": "---", "c": "--- "},
        {"d": "---\n"},
    ]
    assert [chunk.offset for chunk in found] == [0, 1, 4]


@given(st.lists(st.integers(3, 40)))
def test_documents_are_the_same_however_the_file_comes_in(cuts):
    data = b"\xef\xbb\xbfa: 1\n---\nb: ---\n---x: '\n--- '\n--- # two\n\n---"
    places = [0, *sorted(cuts), len(data)]
    parts = [data[start:end] for start, end in pairwise(places) if start < end]
    whole = [chunk for chunk in chunks([data], "f") if chunk]
    assert len(whole) == 4
    assert [chunk for chunk in chunks(parts, "f") if chunk] == whole


def test_an_alias_stands_for_its_anchor_at_its_own_line():
    [node] = read("a: &x {k: v}\n\nb: *x\n")
    assert isinstance(node, Mapping)
    assert texts(node) == {"a": {"k": "v"}, "b": {"k": "v"}}
    assert (node.items["a"].line, node.items["b"].line) == (1, 3)


def test_a_value_of_the_environment_shows_as_it_is_written():
    [node] = read("a: Bearer ${TOKEN}\nb: '${TOKEN:-x}'\nc: $${TOKEN}\n", TOKEN="secret")
    found = texts(node)
    assert found == {"a": "Bearer secret", "b": "secret", "c": "${TOKEN}"}
    assert repr(found) == "{'a': 'Bearer ${TOKEN}', 'b': '${TOKEN:-x}', 'c': '${TOKEN}'}"
    assert repr(pickle.loads(pickle.dumps(found))) == repr(found)


def test_variables_come_from_the_environment():
    [node] = read("a: http://${HOST}:${PORT}/\nb: $${HOST}\nc: $HOST $${} $\n", HOST="h", PORT="80")
    assert texts(node) == {"a": "http://h:80/", "b": "${HOST}", "c": "$HOST ${} $"}


def test_a_variable_that_is_unset_or_empty_may_have_a_default():
    text = "a: '${PORT:-8080}'\nb: http://${HOST:-127.0.0.1:80}/\nc: x${SUFFIX:-}\n"
    [node] = read(text, HOST="h", PORT="")
    assert texts(node) == {"a": "8080", "b": "http://h/", "c": "x"}
    assert isinstance(node, Mapping) and node.items["a"].plain


def test_what_only_looks_like_a_variable_is_a_mistake():
    lines = mistakes("a: ${pod.name}\nb: '${}'\nc: x ${POD-NAME} y\nd: ${A:-{}}").splitlines()
    assert [line[: line.index(":", 2)] for line in lines] == ["f:1", "f:2", "f:3", "f:4"]
    assert lines[2] == ("f:3: '${POD-NAME} y': a variable is ${NAME} or ${NAME:-text}, and $${ stands for ${ itself")


def test_a_quoted_variable_can_be_a_number():
    [node] = read("a: '${PORT}'", PORT="80")
    assert isinstance(node, Mapping) and node.items["a"].plain


def test_what_a_variable_holds_is_never_read_as_yaml():
    [node] = read("a: ${X}", X="1}\nb: {c: d")
    assert texts(node) == {"a": "1}\nb: {c: d"}


def test_every_unset_variable_is_told():
    assert mistakes("a: ${ONE}\nb: ['${TWO}']") == (
        "f:1: environment variable ONE is not set\nf:2: environment variable TWO is not set"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "f:3: duplicate key 'a'"),
        ("a: {b: 1, b: 2}\nc: 1\nc: 2", "f:1: duplicate key 'b'\nf:3: duplicate key 'c'"),
        ("a: !!python/object:os.system x", "f:1: tag 'tag:yaml.org,2002:python/object:os.system'"),
        ("a: 1\nb: !x {c: d}", "f:2: tag '!x'"),
        ("a:\n\tb: 1", "f:2: a tab cannot indent in YAML"),
        ("{a: b}: c", "f:1: a key must be a text"),
        ("x: 1\n? [a]\n: c", "f:2: a key must be a text"),
        ("? *a\n: c", "f:1: a key must be a text"),
        ("a: 1\n~: c", "f:2: a key is missing before the colon"),
        ("a: *nobody", "f:1: alias *nobody stands for nothing that is complete before it in this document"),
        ("x: &x {a: 1}\ny:\n  <<: *x", "f:3: merge keys (<<) cannot be used here"),
        ("a: &x [*x]", "f:1: alias *x stands for nothing"),
        ("a: b: c", "f:1: not valid YAML: mapping values are not allowed"),
        ("a: 1\nb: {c: 1\n", "f:2: not valid YAML: did not find expected ',' or '}'"),
        ("a: 'x\n\n", "not valid YAML: found unexpected end of stream"),
        ("a: 1\nb: [${TWO}]", "f:2: not valid YAML: within [] and {} a ${NAME} needs quotes"),
        ("a: 1\n...\nb: 2", "f:3: not valid YAML: did not find expected <document start>"),
        ("a: 1\n---\nb: 1\nc", "f:4: not valid YAML"),
        (b"a: \xff", "f:1: this is not text in UTF-8"),
        (b"a: 1\n---\nb: \x00", "f:3: control character 0x00: is this a binary file?"),
        (b"\x89PNG\r\n", "f:1: this is not text in UTF-8"),
        ("[" * (MAX_DEPTH + 1), f"f:1: nested deeper than {MAX_DEPTH}"),
        ("\n".join(" " * n + "a:" for n in range(100)), f"f:33: nested deeper than {MAX_DEPTH}"),
        ("[" * 100_000, f"f:1: nested deeper than {MAX_DEPTH}"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(text, message):
    assert message in mistakes(text)


def test_an_alias_bomb_is_refused_before_anybody_walks_it():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert mistakes("\n".join(lines)) == f"f:6: more than {MAX_NODES} values in one document, aliases counted in full"


def test_aliases_cannot_be_stacked_beyond_the_depth():
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [[[*a{n - 1}]]]" for n in range(1, 15)]
    assert f"nested deeper than {MAX_DEPTH}" in mistakes("\n".join(lines))


def test_an_empty_file_has_no_documents():
    assert read("") == []
    assert read("# nothing\n\n") == [None]


PLAIN = st.text(string.ascii_letters + string.digits + " :-#'\"{}[],&*!|>%@`\n\té\u2028😀", max_size=12)
TREES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PLAIN, inner, max_size=4))


@settings(max_examples=300, deadline=None)
@given(TREES, st.booleans())
def test_what_another_program_wrote_is_read_back(tree, flow):
    text = pyyaml.safe_dump(tree, default_flow_style=flow, allow_unicode=True, width=40)
    [node] = read("---\n" + text)
    assert texts(node) == tree


@settings(max_examples=500, deadline=None)
@given(st.text("ab:-[]{},&*!|>'\"#%@ \n\t?~", max_size=60))
@example("? &a\n: *a")
@example("&a [*a, &b {c: *b}]")
def test_no_text_does_worse_than_be_refused(text):
    try:
        nodes = read(text)
    except ConfigError as error:
        assert all(problem.line >= 1 for problem in error.problems)
    else:
        for node in nodes:
            texts(node)


def test_the_pure_python_parser_reads_the_same(monkeypatch, tmp_path: Path):
    text = "a: {b: [1, 'x', no]}\nc: |\n  long\n  text\nd: &x 5\ne: *x\n"
    fast = read(text)
    import yaml.cyaml

    monkeypatch.delattr(yaml.cyaml, "CParser")
    assert read(text) == fast
    assert mistakes("a: b: c").startswith("f:1: not valid YAML")
