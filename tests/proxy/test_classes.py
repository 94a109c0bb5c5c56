"""Whatever can become of a request becomes of one of those that stand for all."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l7proxy.config.model import Model
from l7proxy.core.languages import Undecided
from l7proxy.core.slices import finish
from l7proxy.filters.authorizer import Clause
from l7proxy.proxy.classes import requests
from l7proxy.proxy.decision import Question
from l7proxy.proxy.explain import explaining
from l7proxy.proxy.explanation import Explanation
from tests.config.test_load import SIDECAR, loaded, route
from tests.proxy.test_explain_agrees import ISTIO, QUESTIONS, model

Outcome = tuple[object, ...]


def outcome(told: Explanation) -> Outcome:
    return (
        told.route.name if told.route else None,
        told.allowed,
        told.refused,
        told.answer.code if told.answer else None,
        told.upstream.name if told.upstream else None,
        tuple((verdict.policy, verdict.rule) for verdict in told.policies if verdict.outcome == "denied"),
    )


def outcomes(configuration: Model, questions: list[Question]) -> list[Outcome]:
    async def ask() -> list[Outcome]:
        explainer = finish(explaining(configuration))
        return [outcome(await explainer.ask(question)) for question in questions]

    return asyncio.run(ask())


class Known:
    """A model, what becomes of the requests that stand for all of its own, and how many there are."""

    def __init__(self, configuration: Model) -> None:
        self.model = configuration
        self.outcomes = {}
        self.count = 0
        for inbound in (True, False):
            questions = list(requests([configuration], inbound))
            self.outcomes[inbound] = set(outcomes(configuration, questions))
            self.count += len(questions)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> list[Known]:
    return [Known(model(tmp_path_factory.mktemp("classes"), *more)) for more in ((), (ISTIO,))]


@settings(max_examples=30, deadline=None)
@given(st.lists(QUESTIONS, min_size=20, max_size=50), st.integers(0, 1))
def test_what_becomes_of_any_request_becomes_of_a_representative(
    known: list[Known], questions: list[Question], which: int
) -> None:
    of = known[which]
    for question, found in zip(questions, outcomes(of.model, questions), strict=True):
        # What no proxy takes is no class of its own.
        assert found[3] == "bad_request" or found in of.outcomes[question.inbound], question


def test_calls_that_a_pattern_takes_from_every_call_are_told_apart(tmp_path: Path) -> None:
    calls = """---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: calls}
spec:
  parentRefs: [{group: "", kind: Service, name: unknown}]
  rules:
    - backendRefs: [{name: unknown, port: 80}]
    - matches: [{method: {method: Get}}]
      backendRefs: [{name: unknown, port: 80}]
"""
    configuration = loaded(tmp_path, SIDECAR, calls)
    names = {found[0] for found in outcomes(configuration, list(requests([configuration])))}
    assert names == {"calls[0]", "calls[1]", None}


def test_there_are_not_more_than_it_takes(known: list[Known]) -> None:
    assert known[0].count < 5000


def test_several_models_are_told_apart_at_once(tmp_path: Path) -> None:
    before = loaded(tmp_path, SIDECAR, route("a", "{matches: [{path: {prefix: /a}}]}"))
    after = loaded(tmp_path, SIDECAR, route("a", "{matches: [{path: {prefix: /a/b}, methods: [PUT]}]}"))
    differ = [
        question
        for question in requests([before, after])
        if outcomes(before, [question]) != outcomes(after, [question])
    ]
    asked = {(question.method, question.url) for question in differ}
    assert ("GET", "http://localhost/a") in asked
    assert ("GET", "http://localhost/a/b") in asked
    assert ("PUT", "http://localhost/a/b") not in asked


def test_requests_outside_of_what_is_asked_for_are_left_out(tmp_path: Path) -> None:
    configuration = loaded(tmp_path, SIDECAR, route("a", "{hosts: [a.svc, b.svc]}"))
    within = [Clause("host", ("a.svc",)), Clause("path", ("/x/*",)), Clause("method", ("PUT",))]
    found = list(requests([configuration], within=within))
    assert {(question.method, question.url.rpartition("/")[0]) for question in found} == {("PUT", "http://a.svc/x")}


def test_more_requests_than_are_allowed_are_not_decided(tmp_path: Path) -> None:
    configuration = loaded(tmp_path, SIDECAR, *(route(f"r{n}", f"{{hosts: [r{n}.svc]}}") for n in range(5)))
    with pytest.raises(Undecided, match="more than 10 classes"):
        list(requests([configuration], limit=10))


def test_the_server_as_a_whole_is_asked_for_too(tmp_path: Path) -> None:
    """A rule for `/*` does not hold for `OPTIONS *`."""
    configuration = loaded(tmp_path, SIDECAR, route("a", '{policies: {authorization: {deny: [{paths: ["/*"]}]}}}'))
    questions = list(requests([configuration]))
    allowed = [
        question for question, found in zip(questions, outcomes(configuration, questions), strict=True) if found[1]
    ]
    assert [(question.method, question.url) for question in allowed] == [("OPTIONS", "*")]


def test_a_route_beyond_ascii_is_asked_for_as_clients_ask(tmp_path: Path) -> None:
    policy = "policies: {authorization: {allow: [{methods: [GET]}]}}"
    configuration = loaded(tmp_path, SIDECAR, route("a", f"{{matches: [{{path: {{prefix: /café}}}}], {policy}}}"))
    questions = list(requests([configuration]))
    allowed = {
        (question.method, question.url)
        for question, found in zip(questions, outcomes(configuration, questions), strict=True)
        if found[1]
    }
    assert ("GET", "http://localhost/caf%C3%A9") in allowed
    assert {method for method, _ in allowed} == {"GET"}


@pytest.mark.parametrize("trust", ["trustedProxies: [10.0.0.0/8]", "trustedHops: 2"])
def test_the_address_that_trusted_proxies_forward_is_told_apart(tmp_path: Path, trust: str) -> None:
    configuration = loaded(
        tmp_path,
        SIDECAR.replace("inbound: {", f"inbound: {{{trust}, "),
        route("a", "{policies: {authorization: {allow: [{sourceIPs: [192.0.2.0/24]}]}}}"),
    )
    questions = list(requests([configuration]))
    allowed = [
        question for question, found in zip(questions, outcomes(configuration, questions), strict=True) if found[1]
    ]
    assert any(not question.source.startswith("192.0.2.") for question in allowed)


ISTIO_RULES = (
    "to: [{operation: {hosts: [a.svc, 'b.svc:*', '*.svc:80', '*80', 'c.*', '[::1]:80']}}]",
    "to: [{operation: {notHosts: [a.svc, 'B.svc:8*']}}]",
    "when: [{key: 'request.headers[x]', values: ['*']}, {key: 'request.headers[y]', notValues: ['1', 'b*']}]",
    "from: [{source: {principals: [cluster.local/ns/shop/sa/web, 'cluster.local/ns/night/sa/*', partner/*]}}]",
    "from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/web]}}]",
    "from: [{source: {notPrincipals: ['*']}}]",
    "from: [{source: {trustDomains: [demo, cluster.local]}}]",
    "from: [{source: {namespaces: [shop], notNamespaces: [night, 'd*']}}]",
    "from: [{source: {serviceAccounts: [shop/web, night/batch]}}]",
)
ISTIO_QUESTIONS = st.builds(
    Question,
    st.just("GET"),
    st.builds(
        "http://{}{}/".format,
        st.sampled_from(["a.svc", "b.svc", "x.svc", "c.org", "d.80", "[::1]"]),
        st.sampled_from(["", ":80", ":8080", ":443"]),
    ),
    st.sampled_from([
        "", "spiffe://demo/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/web", "spiffe://partner/ns/shop/sa/web",
        "spiffe://demo/ns/night/sa/batch", "spiffe://other/ns/shop/sa/web", "shop.svc",
        "spiffe://demo/x/ns/shop/sa/web/pod/b", "spiffe://demo/ns/night/ns/shop/sa/batch", "spiffe://demo/ns/shop",
    ]),
    st.lists(st.sampled_from([("x", ""), ("x", "1"), ("y", "1"), ("y", "bc"), ("y", "")]), max_size=2).map(tuple),
)  # fmt: skip


@pytest.mark.parametrize("rule", ISTIO_RULES)
@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(questions=st.lists(ISTIO_QUESTIONS, min_size=20, max_size=40))
def test_what_becomes_of_a_request_by_istio_s_rules_becomes_of_a_representative(
    action: str, rule: str, questions: list[Question], tmp_path: Path
) -> None:
    policy = (
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\n"
        f"spec: {{action: {action}, rules: [{{{rule}}}]}}\n"
    )
    tls = "inbound: {tls: {dev: demo, mode: PERMISSIVE}, "
    configuration = loaded(tmp_path, SIDECAR.replace("inbound: {", tls), policy)
    stand_for_all = set(outcomes(configuration, list(requests([configuration]))))
    assert set(outcomes(configuration, questions)) <= stand_for_all
    assert {found[1] for found in stand_for_all} == {True, False}
