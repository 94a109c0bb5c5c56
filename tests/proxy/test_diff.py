"""What a comparison reports is what `explain` says of the same request on either side, no more and no less."""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l7proxy.config.load import load
from l7proxy.config.model import Model
from l7proxy.core.slices import finish
from l7proxy.proxy.classes import requests
from l7proxy.proxy.decision import Question
from l7proxy.proxy.diff import Change, Comparison
from l7proxy.proxy.explain import explaining
from l7proxy.proxy.explanation import Explanation
from l7proxy.proxy.verify import Coverage
from tests.config.test_load import document
from tests.proxy.test_explain_agrees import CONFIG, ISTIO, PARTS, QUESTIONS

REPLACED = [
    ("namespaces: [guest]", "namespaces: [shop]"),
    ("methods: [GET, PUT]", "methods: [POST]"),
    ('["spiffe://demo/ns/shop/*"]', '["spiffe://demo/ns/ops/*"]'),
    ("mode: SHADOW", "mode: ENFORCE"),
    ("{exact: /b}", "{prefix: /b}"),
    ("/(a|b)+", "/(a|c)+"),
    ("path: /r", "path: /s"),
    ("status: 404", "status: 410"),
    ('body: "no"', 'body: "never"'),
    ("host: b.svc", "host: c.svc"),
    ("10.0.1.1:80", "10.0.1.2:80"),
    ("protocol: http2", "connectTimeout: 1s"),
    ("weight: 3", "weight: 1"),
    ("upstream: one,", "upstream: two,"),
    ("request: 1s", "request: 2s"),
    ("1000000", "2000000"),
    ("remove: [x]", "remove: [y]"),
    ("trustedProxies: [10.9.0.0/16]", "denyIPs: [10.9.0.0/16]"),
    ("{allow: []}", "{}"),
]
SIDES = st.tuples(
    st.sets(st.sampled_from(sorted(PARTS["Route"])), max_size=3),
    st.lists(st.sampled_from(REPLACED), max_size=3),
    st.booleans(),
)


def model(folder: Path, gone: Sequence[str], replaced: Sequence[tuple[str, str]], istio: bool) -> Model:
    text = CONFIG + "".join(
        document(kind, name, spec) for kind, specs in PARTS.items() for name, spec in specs.items() if name not in gone
    )
    for before, now in replaced:
        text = text.replace(before, now)
    (folder / "a.yaml").write_text(text + (ISTIO if istio else ""))
    return load([str(folder / "a.yaml")])


def asked(
    old: Model, new: Model, questions: Sequence[Question]
) -> list[tuple[Explanation, Explanation, Change | None]]:
    """What either side explains of each question, and what a comparison of its own says."""

    async def ask() -> list[tuple[Explanation, Explanation, Change | None]]:
        sides = [finish(explaining(side)) for side in (old, new)]
        found = []
        for question in questions:
            comparison = Comparison(*sides)
            await comparison.ask(question)
            before, now = [await side.ask(question) for side in sides]
            found.append((before, now, next(iter(comparison.changes), None)))
        return found

    return asyncio.run(ask())


def visible(told: Explanation) -> list[Any]:
    """What a caller, an upstream or an operator can see of a decision, wherever it is written."""
    answer, towards = told.answer, told.upstream
    return [
        told.allowed,
        told.route.name if told.route is not None else None,
        (answer.by, answer.status, answer.code) if answer is not None else None,
        (towards.name, towards.split, towards.authority, towards.target) if towards is not None else None,
        [(end.address) for end in towards.endpoints] if towards is not None else None,
        (towards.protocol, [h for h in towards.headers if h[0] != "x-request-id"]) if towards is not None else None,
        told.timeouts if told.allowed else None,
        told.retries if told.allowed else None,
        (answer.body, [h for h in answer.headers if h[0] == "location"])
        if answer is not None and not answer.code
        else None,
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(SIDES, SIDES, st.lists(QUESTIONS, min_size=30, max_size=30))
def test_a_change_that_explain_sees_is_reported(
    tmp_path_factory: pytest.TempPathFactory, first: Any, second: Any, questions: list[Question]
) -> None:
    old, new = (model(tmp_path_factory.mktemp("side"), *side) for side in (first, second))
    for before, now, change in asked(old, new, questions):
        if before.allowed != now.allowed:
            assert change is not None
            assert change.kind == ("denial" if before.allowed else "grant")
        elif visible(before) != visible(now):
            assert change is not None
            assert change.kind not in ("denial", "grant")
        elif not before.allowed:
            assert change is None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(SIDES, st.lists(QUESTIONS, min_size=30, max_size=30))
def test_a_configuration_changes_nothing_beside_itself(
    tmp_path_factory: pytest.TempPathFactory, side: Any, questions: list[Question]
) -> None:
    old, new = (model(tmp_path_factory.mktemp("side"), *side) for _ in range(2))
    assert [change for *_, change in asked(old, new, questions)] == [None] * len(questions)


def kinds(old: Model, new: Model, questions: Iterable[Question]) -> set[str]:
    """The kinds of change that a comparison finds with these questions."""

    async def ask() -> set[str]:
        comparison = Comparison(*(finish(explaining(side)) for side in (old, new)))
        for question in questions:
            await comparison.ask(question)
        return {change.kind for change in comparison.changes}

    return asyncio.run(ask())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(SIDES, SIDES, st.lists(QUESTIONS, min_size=60, max_size=60))
def test_a_verdict_that_changes_for_any_request_changes_for_a_generated_one(
    tmp_path_factory: pytest.TempPathFactory, first: Any, second: Any, questions: list[Question]
) -> None:
    old, new = (model(tmp_path_factory.mktemp("side"), *side) for side in (first, second))
    verdicts = kinds(old, new, questions) & {"denial", "grant"}
    if verdicts:
        assert verdicts <= kinds(old, new, (*requests((old, new)), *requests((old, new), False)))


def test_generated_requests_meet_every_route_and_rule(tmp_path: Path) -> None:
    async def touched(side: Model, other: Model) -> list[str]:
        coverage, explainer = Coverage(side), finish(explaining(side))
        for question in (*requests((side, other)), *requests((side, other), False)):
            coverage.touch(await explainer.ask(question))
        return [part.name for part in coverage.untouched]

    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    old, new = model(tmp_path / "old", (), (), True), model(tmp_path / "new", ("guarded",), REPLACED[2:], False)
    # A rule in the shadow decides nothing.
    assert asyncio.run(touched(old, new)) == ["deny[2]"]
    assert asyncio.run(touched(new, old)) == []
