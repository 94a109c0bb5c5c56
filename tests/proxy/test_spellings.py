"""One spelling of each field that is named: what a rule reads is what an application that merges spellings reads."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l7proxy.core.headers import Headers, joined, merged, spellings
from l7proxy.core.languages import Undecided
from l7proxy.core.message import Request
from l7proxy.core.slices import finish
from l7proxy.core.stream import Stream
from l7proxy.proxy.classes import requests
from l7proxy.proxy.decision import Question
from l7proxy.proxy.explain import explaining
from l7proxy.proxy.explanation import Explanation
from l7proxy.proxy.spellings import Spellings
from tests.config.test_load import SIDECAR, loaded, route

NAMES = st.sampled_from(["x-user", "x_user", "x-a-b", "x_a-b", "x-a_b", "x_a_b", "plain"])
FIELDS = st.lists(st.tuples(NAMES.map(str.encode), st.sampled_from([b"1", b"2"])), max_size=6)


def request(headers: Headers, body: Stream | bytes = b"") -> Request:
    return Request(b"GET", b"http", b"a", b"/", b"", b"/", list(headers), body)


@given(st.sets(NAMES, min_size=1), FIELDS)
def test_a_rule_reads_what_an_application_that_merges_reads(named: set[str], headers: Headers) -> None:
    asked = request(headers)
    Spellings(named).apply(asked)
    keys = {merged(name.encode()) for name in named}
    for name in named:
        read = joined(asked.headers, *spellings(name.encode()))
        application = [value for key, value in asked.headers if merged(key) == merged(name.encode())]
        assert read == (b", ".join(application) if application else None)
    assert all(len({name for name, _ in asked.headers if merged(name) == key}) <= 1 for key in keys)
    others = [pair for pair in headers if merged(pair[0]) not in keys]
    assert [pair for pair in asked.headers if merged(pair[0]) not in keys] == others


@given(st.sets(NAMES, min_size=1), FIELDS, st.booleans())
def test_no_trailer_is_a_field_that_is_named(named: set[str], trailers: Headers, early: bool) -> None:
    body = Stream()
    if early:
        body.end(trailers)
    Spellings(named).apply(request([], body))
    if not early:
        body.end(trailers)
    keys = {merged(name.encode()) for name in named}
    assert body.trailers == [pair for pair in trailers if merged(pair[0]) not in keys]


GUARDED = """{policies: {
  authorization: {allow: [{headers: {x-user: [alice]}}]}, headers: {request: {set: {x_env: "1"}}}}}"""


def test_explain_tells_what_is_sent_of_all_spellings(tmp_path: Path) -> None:
    configuration = loaded(tmp_path, SIDECAR, route("r", GUARDED))
    questions = [
        Question("GET", "/", headers=(("X-User", "alice"), ("X_User", "evil"), ("X-Env", "2"), ("x_other", "3"))),
        Question("GET", "/", headers=(("x_user", "alice"),)),
    ]

    async def ask() -> list[Explanation]:
        explainer = finish(explaining(configuration))
        return [await explainer.ask(question) for question in questions]

    passed, refused = asyncio.run(ask())
    assert passed.upstream is not None
    sent = {pair for pair in passed.upstream.headers if not pair[0].startswith(("x-forwarded-", "x-request-id"))}
    assert sent == {("x-user", "alice"), ("x_env", "1"), ("x_other", "3")}
    assert not refused.allowed


def test_two_spellings_of_a_field_are_not_enumerated(tmp_path: Path) -> None:
    configuration = loaded(tmp_path, SIDECAR, route("r", GUARDED), route("s", "{matches: [{headers: {x-env: a}}]}"))
    with pytest.raises(Undecided, match="'x-env' and 'x_env' are spellings of one header field"):
        list(requests([configuration]))
