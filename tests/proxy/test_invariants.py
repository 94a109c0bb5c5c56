"""An invariant that is proved is broken by no request, and a request that is said to break one does."""

import asyncio
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l7proxy.config.cases import InvariantSpec
from l7proxy.config.decode import decode
from l7proxy.config.model import Model
from l7proxy.config.scalars import Notes
from l7proxy.config.yaml import Chunk, parse
from l7proxy.core.errors import ConfigError, ProxyError
from l7proxy.core.handler import Build, Filter, Handler
from l7proxy.core.headers import find
from l7proxy.core.message import Request, Response
from l7proxy.core.slices import finish
from l7proxy.filters import registry
from l7proxy.proxy.decision import Question
from l7proxy.proxy.explain import explaining
from l7proxy.proxy.explanation import Explanation
from l7proxy.proxy.invariants import Proof, prove
from tests.config.test_load import SIDECAR, loaded, route, upstream

ONLY_SHOP = "{allow: [{namespaces: [shop]}]}"
UNLESS = "{namespaces: [shop]}"
DENIED = "{authorization: {allow: []}}"
SHOP = "spiffe://demo/ns/shop/sa/web"
NAMES = st.sampled_from(["shop", "ops"])
PATHS = st.sampled_from(["/", "/a", "/a/b", "/admin", "/admin/x", "/admin/x.json", "/ab"])
METHODS = st.sampled_from(["GET", "PUT"])


def mapping(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of these keys, but for few of them."""
    return st.fixed_dictionaries({}, optional=values).filter(lambda found: len(found) < 4)


def some(values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(values, min_size=1, max_size=2, unique=True)


RULES = mapping(
    identities=some(NAMES.map("spiffe://demo/ns/{}/*".format) | st.just(SHOP)),
    namespaces=some(NAMES),
    sourceIPs=some(st.sampled_from(["10.0.0.0/8", "10.1.0.0/16"])),
    methods=some(METHODS),
    paths=some(st.sampled_from(["/admin/*", "/a*", "*.json", "/a/b"])),
    headers=st.fixed_dictionaries({"x": some(st.sampled_from(["1", "1*", "*2"]))}),
)
MATCHES = st.fixed_dictionaries(
    {"path": st.one_of(PATHS.map(lambda path: {"prefix": path}), PATHS.map(lambda path: {"exact": path}))},
    optional={"methods": some(METHODS), "headers": st.just({"x": {"prefix": "1"}}), "query": st.just({"q": "1"})},
)
ROUTES = st.fixed_dictionaries(
    {
        "hosts": some(st.sampled_from(["a.svc", "*.svc", "*"])),
        "matches": st.lists(MATCHES, min_size=1, max_size=2),
        "upstream": st.sampled_from(["app", "one"]),
    },
    optional={
        "policies": st.fixed_dictionaries(
            {
                "authorization": st.fixed_dictionaries(
                    {}, optional={"allow": st.lists(RULES, max_size=2), "deny": st.lists(RULES, max_size=2)}
                )
            }
        )
    },
)
REQUESTS = mapping(
    hosts=some(st.sampled_from(["a.svc", "*.svc", "b.org"])),
    **{
        key: RULES.map(lambda found, key=key: found.get(key, [])).filter(bool)
        for key in ("identities", "paths", "methods")
    },
)
CLAIMS = st.tuples(
    REQUESTS,
    st.lists(REQUESTS.filter(bool), max_size=2),
    mapping(to=st.sampled_from(["app", "one"])),
).map(lambda parts: {**parts[0], **({"unless": parts[1]} if parts[1] else {}), **parts[2]})
QUESTIONS = st.builds(
    Question,
    method=METHODS | st.just("OPTIONS"),
    url=st.builds(
        "http://{}{}{}".format,
        st.sampled_from(["a.svc", "B.svc:80", "b.org"]),
        PATHS | st.sampled_from(["/./admin//x", "/%61", "/a;b", "/a%2Fb"]),
        st.sampled_from(["", "?q=1", "?q=2"]),
    ),
    identity=st.sampled_from(["", SHOP, "spiffe://demo/ns/ops/sa/web", "spiffe://demo/x"]),
    headers=st.lists(st.tuples(st.just("x"), st.sampled_from(["1", "12", "2"])), max_size=1).map(tuple),
    source=st.sampled_from(["127.0.0.1", "10.0.0.1", "10.1.0.1"]),
)


def invariant(text: str) -> InvariantSpec:
    notes = Notes("t.yaml", "", 0)
    found = decode(finish(parse(Chunk(text.encode(), 0), "t.yaml")), InvariantSpec, "", notes)
    assert not notes.problems
    return found


def proof_of(configuration: Model, spec: InvariantSpec, *questions: Question) -> tuple[Proof, list[Explanation]]:
    async def run() -> tuple[Proof, list[Explanation]]:
        explainer = finish(explaining(configuration))
        return await prove(explainer, spec), [await explainer.ask(question) for question in questions]

    return asyncio.run(run())


def breaks(spec: InvariantSpec, question: Question, told: Explanation) -> bool:
    """Whether a request breaks an invariant, read literally and slowly."""
    claim = spec.claim
    if not speaks(claim, question, told) or any(speaks(one, question, told) for one in claim.exceptions):
        return False
    passes = told.allowed and (claim.to is None or (told.upstream is not None and told.upstream.name == claim.to))
    if spec.never is not None:
        return passes
    return not passes and not (told.answer is not None and told.answer.code == "bad_request")


def speaks(one: Any, question: Question, told: Explanation) -> bool:
    host = told.authority.lower().partition(":")[0]
    return (
        any(host == name or (name[:1] == "*" and host.endswith(name[1:])) for name in one.hosts or ("*",))
        and any(fits(pattern, question.identity) for pattern in one.identities or (question.identity,))
        and any(fits(pattern, told.path) for pattern in one.paths or (told.path,))
        and question.method in (one.methods or (question.method,))
    )


def fits(pattern: str, text: str) -> bool:
    if pattern.endswith("*"):
        return text.startswith(pattern[:-1])
    return text.endswith(pattern[1:]) if pattern.startswith("*") else text == pattern


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    routes=st.lists(ROUTES, min_size=1, max_size=3),
    claim=CLAIMS,
    kind=st.sampled_from(["never", "always"]),
    questions=st.lists(QUESTIONS, min_size=20, max_size=20),
)
def test_no_request_breaks_what_is_proved(
    tmp_path_factory: pytest.TempPathFactory, routes: list[Any], claim: Any, kind: str, questions: list[Question]
) -> None:
    documents = [route(f"r{number}", json.dumps(spec)) for number, spec in enumerate(routes)]
    try:
        configuration = loaded(tmp_path_factory.getbasetemp(), SIDECAR, upstream("one"), *documents)
    except ConfigError:
        # One of the routes is never reached.
        return
    spec = invariant(json.dumps({"name": "it", kind: claim}))
    proof, told = proof_of(configuration, spec, *questions)
    if proof.example is None:
        assert not proof.why
        assert [one for one, what in zip(questions, told, strict=True) if breaks(spec, one, what)] == []
    else:
        question, claimed = proof.example
        _, (again,) = proof_of(configuration, spec, question)
        assert breaks(spec, question, again)
        assert (again.allowed, again.route, again.path) == (claimed.allowed, claimed.route, claimed.path)


def test_an_invariant_that_holds_is_proved(tmp_path: Path) -> None:
    configuration = loaded(
        tmp_path,
        SIDECAR,
        route("admin", f"{{matches: [{{path: {{prefix: /admin}}}}], policies: {{authorization: {ONLY_SHOP}}}}}"),
        route("rest", "{}"),
    )
    proof, _ = proof_of(configuration, invariant(f'{{name: it, never: {{paths: ["/admin/*"], unless: {UNLESS}}}}}'))
    assert (proof.why, proof.example) == ("", None)
    assert proof.asked > 2


@pytest.mark.parametrize(
    ("hole", "example"),
    [
        ("hosts: [a.svc]", "http://a.svc/admin/"),
        ("matches: [{path: {prefix: /admin}, methods: [PATCH]}]", "http://localhost/admin/"),
        ('matches: [{path: {regex: "/.*[.]js"}}]', "http://localhost/admin/.js"),
        ('matches: [{path: {exact: /admin/x}, headers: {x-debug: {prefix: "1"}}}]', "http://localhost/admin/x"),
        ('matches: [{path: {exact: /admin/x}, query: {q: "1 "}}]', "http://localhost/admin/x?q=1%20"),
    ],
)
def test_the_hole_is_found_wherever_it_is(tmp_path: Path, hole: str, example: str) -> None:
    configuration = loaded(
        tmp_path,
        SIDECAR,
        route("hole", f"{{{hole}}}"),
        route("admin", f"{{matches: [{{path: {{regex: '/admin.*'}}}}], policies: {{authorization: {ONLY_SHOP}}}}}"),
    )
    proof, _ = proof_of(configuration, invariant(f'{{name: it, never: {{paths: ["/admin/*"], unless: {UNLESS}}}}}'))
    assert proof.why == "this request is allowed"
    assert proof.example is not None
    question, told = proof.example
    assert question.url == example
    assert told.route is not None
    assert told.route.name == "hole"


def test_what_always_holds_is_not_held_against_requests_that_are_no_good(tmp_path: Path) -> None:
    configuration = loaded(
        tmp_path,
        SIDECAR,
        route("open", "{matches: [{path: {prefix: /health}}]}"),
        route("rest", f"{{policies: {DENIED}}}"),
    )
    assert proof_of(configuration, invariant('{name: it, always: {paths: ["/health/*"]}}'))[0].why == ""
    proof, _ = proof_of(configuration, invariant('{name: it, always: {paths: ["/health*"]}}'))
    assert proof.why == "this request is not allowed"
    assert proof.example is not None
    assert proof.example[0].url.startswith("http://localhost/health")


def test_where_a_request_goes_can_be_what_is_claimed(tmp_path: Path) -> None:
    configuration = loaded(
        tmp_path,
        SIDECAR,
        upstream("ledger"),
        upstream("web"),
        route("r", "{matches: [{path: {prefix: /pay}}], split: [{upstream: web}, {upstream: ledger}]}"),
        route("out", "{direction: outbound, hosts: [ledger.svc], upstream: ledger}"),
    )
    assert why(configuration, "never: {to: ledger}") == "this request goes to ledger"
    assert why(configuration, 'never: {to: ledger, unless: [{paths: ["/pay"]}, {paths: ["/pay/*"]}]}') == ""
    assert why(configuration, "always: {to: ledger, direction: outbound, hosts: [ledger.svc]}") == ""
    assert why(configuration, "always: {to: ledger, direction: outbound}") == "this request does not go to ledger"
    assert why(configuration, "never: {to: legder}") == "there is no upstream legder"


def why(configuration: Model, claim: str) -> str:
    return proof_of(configuration, invariant(f"{{name: it, {claim}}}"))[0].why


def test_who_may_not_connect_is_not_allowed(tmp_path: Path) -> None:
    configuration = loaded(tmp_path, SIDECAR.replace("inbound: {", "inbound: {allowIPs: [10.0.0.0/8], "))
    assert why(configuration, "never: {unless: {sourceIPs: [10.0.0.0/8]}}") == ""
    assert why(configuration, "never: {unless: {sourceIPs: [10.1.0.0/16]}}") == "this request is allowed"


@pytest.mark.parametrize(
    ("slashes", "passes"), [("REJECT", []), ("KEEP", ["/x%2F"]), ("UNESCAPE", [])], ids=["REJECT", "KEEP", "UNESCAPE"]
)
def test_paths_that_are_refused_where_rules_look_at_them_are_known(
    slashes: str, passes: list[str], tmp_path: Path
) -> None:
    sidecar = SIDECAR.replace("inbound: {", f"inbound: {{encodedSlashes: {slashes}, ")
    configuration = loaded(tmp_path, sidecar, route("r", '{policies: {authorization: {deny: [{paths: ["/admin"]}]}}}'))
    for path in ("/admin%0A", "/x%7F", "/x%1f*", "/x%252F", "/x%2F"):
        expected = "this request is allowed" if path in passes else ""
        assert why(configuration, f'never: {{paths: ["{path}"]}}') == expected, path


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            r"{matches: [{path: {regex: '/a\b.*'}}]}",
            r"undecided: the regular expression '/a\\b.*' cannot be enumerated",
        ),
        ("{matches: [{headers: {x-request-id: a}}]}", "undecided: a condition depends on the header x-request-id"),
    ],
)
def test_what_cannot_be_decided_does_not_hold(tmp_path: Path, spec: str, reason: str) -> None:
    configuration = loaded(tmp_path, SIDECAR, route("r", spec))
    assert why(configuration, "never: {to: app}").startswith(reason)


def test_a_policy_of_another_package_decides_by_what_it_alone_knows(tmp_path: Path, monkeypatch: Any) -> None:
    class Picky(Filter, frozen=True):
        """Refuses one header."""

        name: ClassVar[str] = "picky"

        def wrap(self, inner: Handler, build: Build) -> Handler:
            async def handle(request: Request) -> Response:
                if find(request.headers, b"x-ok") is None:
                    raise ProxyError("denied")
                return await inner(request)

            return handle

    monkeypatch.setattr(registry, "others", lambda: {"picky": Picky})
    configuration = loaded(tmp_path, SIDECAR, route("r", "{policies: {picky: {}}}"))
    assert why(configuration, "never: {}") == "undecided: what the policy picky decides may depend on anything"
    configuration = loaded(
        tmp_path, SIDECAR, route("r", "{policies: {picky: {}, authorization: {deny: [{identities: ['*']}]}}}")
    )
    assert why(configuration, 'never: {identities: ["*"]}') == ""
