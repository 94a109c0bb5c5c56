"""What `explain` says of a request is what the live configuration does with it."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from l7proxy.config.load import load
from l7proxy.config.model import Model
from l7proxy.core.headers import Headers
from l7proxy.core.message import Request
from l7proxy.core.slices import finish
from l7proxy.core.stats import Stats
from l7proxy.proxy.app import make_app
from l7proxy.proxy.control import Control
from l7proxy.proxy.decision import Asked, Question
from l7proxy.proxy.explain import explaining
from l7proxy.proxy.explanation import Explanation
from l7proxy.telemetry.facade import Telemetry
from l7proxy.telemetry.log import Log
from l7proxy.telemetry.tracing import Tracer

CONFIG = """
apiVersion: l7proxy.io/v1
kind: Sidecar
metadata: {name: orders}
spec:
  service: {name: orders, namespace: shop, labels: {app: orders}}
  inbound: {app: "http://127.0.0.1:8080", trustedProxies: [10.9.0.0/16]}
  outbound: {}
"""
PARTS = {
    "Upstream": {
        "one": "{endpoints: [10.0.0.1:80, 10.0.0.2:80]}",
        "two": "{endpoints: [10.0.1.1:80], protocol: http2}",
    },
    "Route": {
        "exact": "{hosts: [a.svc], matches: [{path: {exact: /v1/a}, methods: [GET]}], redirect: {host: b.svc}}",
        "guarded": """{hosts: [a.svc, "*.b.svc"], matches: [{path: {prefix: /v1}, headers: {x: {prefix: "1"}}}],
          policies: {authorization: {
            deny: [{namespaces: [guest]}, {paths: ["*/admin"], methods: [POST]}, {headers: {y: ["2*"]}, mode: SHADOW}],
            allow: [{identities: ["spiffe://demo/ns/shop/*"]}, {sourceIPs: [10.0.0.0/8], methods: [GET, PUT]}]}}}""",
        "regex": '{hosts: ["*"], matches: [{path: {regex: "/(a|b)+"}, query: {q: "1"}}], rewrite: {path: /r}}',
        "split": "{hosts: [a.svc], split: [{upstream: one, weight: 3}, {upstream: two}, {upstream: app, weight: 0}]}",
        "limited": """{hosts: ["*"], matches: [{path: {prefix: /v1}}], upstream: one,
          policies: {rateLimit: {requests: 1000000, by: identity}, timeout: {request: 1s}, retry: {on: ["503"]}}}""",
        "closed": '{hosts: ["*.b.svc"], matches: [{path: {prefix: /}}], policies: {authorization: {allow: []}}}',
        "fixed": '{matches: [{path: {exact: /b}}], directResponse: {status: 404, body: "no"}}',
        "out": "{direction: outbound, hosts: [a.svc], upstream: two, policies: {headers: {request: {remove: [x]}}}}",
    },
}
ISTIO = """---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: none-of-these, namespace: shop}
spec:
  action: DENY
  rules:
    - to: [{operation: {methods: [PUT], notPaths: ["/v1*"]}}]
    - from: [{source: {namespaces: [lost]}}]
"""
GATEWAY = """---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: ours, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: orders}, {group: "", kind: Service, name: c, namespace: org}]
  rules:
    - matches: [{path: {value: /ab}, headers: [{name: x, value: "1"}]}, {method: PUT}]
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: y, value: "3"}], remove: [x]}}]
      backendRefs: [{name: orders, port: 80, weight: 0}, {name: one, port: 80}]
    - matches: [{queryParams: [{name: q, value: "[12]", type: RegularExpression}]}]
      filters:
        - type: RequestRedirect
          requestRedirect: {scheme: https, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}
    - matches: [{path: {value: /v1}, headers: [{name: y, value: "2"}]}]
      filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
      timeouts: {request: 1s, backendRequest: 500ms}
      backendRefs: [{name: two, port: 80}]
---
apiVersion: l7proxy.io/v1
kind: Upstream
metadata: {name: orders}
spec: {endpoints: [10.0.2.1:80]}
"""
NAMES = st.sampled_from(["guest", "shop", "lost", "ops"])
QUESTIONS = st.builds(
    Question,
    method=st.sampled_from(["GET", "GET", "GET", "POST", "PUT", "PUT", "CONNECT"]),
    url=st.builds(
        "http://{}{}{}".format,
        st.sampled_from(["a.svc", "A.svc:80", "x.b.svc", "b.svc", "c.org"]),
        st.sampled_from(
            [
                "/",
                "/v1",
                "/v1/a",
                "/v1/./a",
                "/v1/x/admin",
                "/v1/%61dmin/",
                "/v10",
                "/ab",
                "/b",
                "/a%2Fb",
                "/%00",
                "/a;b",
            ]
        ),
        st.sampled_from(["", "?q=1", "?q=2", "?q=%31"]),
    ),
    identity=st.sampled_from([""]) | NAMES.map("spiffe://demo/ns/{}/sa/web".format),
    headers=st.lists(
        st.tuples(st.sampled_from(["x", "y", "x-forwarded-for"]), st.sampled_from(["1", "12", "2", "10.1.1.1"])),
        max_size=3,
    ).map(tuple),
    source=st.sampled_from(["10.0.0.9", "192.0.2.1", "10.9.0.1", "fd00::1"]),
    inbound=st.sampled_from([True, True, True, False]),
)


class Ledger(Tracer):
    """Keeps the request that it is asked to begin."""

    request: Request | None = None

    def begin(self, request: Request) -> None:
        self.request = request
        super().begin(request)


def model(folder: Path, *more: str) -> Model:
    documents = [
        f"---\napiVersion: l7proxy.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        for kind, specs in PARTS.items()
        for name, spec in specs.items()
    ]
    (folder / "a.yaml").write_text(CONFIG + "".join(documents) + "".join(more))
    return load([str(folder / "a.yaml")])


def answering(control: Control) -> None:
    """Has every endpoint answer 200, without a connection."""
    for cluster in control.snapshot.clusters.values():
        for endpoint in cluster.endpoints:
            endpoint.transport = httpx.MockTransport(lambda request: httpx.Response(200))


async def compare(configuration: Model, questions: list[Question]) -> None:
    stats = Stats()
    telemetry = Telemetry(stats, Log(stats, "/dev/null"))
    control = Control(telemetry, configuration)
    explainer = finish(explaining(configuration))
    answering(control)
    ledger = Ledger()
    control.live.snapshot = structs.replace(control.snapshot, tracer=ledger)
    try:
        for question in questions:
            exchange = Asked(question)
            await make_app(control.live, question.inbound)(exchange)
            assert ledger.request is not None
            agrees(await explainer.ask(question), exchange, ledger.request)
    finally:
        control.close()
        telemetry.close()


def agrees(told: Explanation, live: Asked, request: Request) -> None:
    assert (told.route.name if told.route else None) == (request.route.name if request.route else None)
    assert told.answer is not None
    assert (told.answer.status, told.answer.code) == (live.status, request.code)
    assert told.allowed == (not request.code)
    if request.code:
        assert told.answer.detail == request.detail or not request.detail
    if not request.upstream:
        assert told.upstream is None
        assert lasting(told.answer.headers) == lasting(texts(live.answer))
        return
    assert told.upstream is not None
    if told.upstream.split:
        assert request.upstream in told.upstream.split
    else:
        assert request.upstream == told.upstream.name
        assert request.endpoint in [endpoint.address for endpoint in told.upstream.endpoints]
    assert told.upstream.target == request.target.decode()
    assert told.upstream.authority == request.authority.decode()
    assert lasting(told.upstream.headers) == lasting(texts(request.headers))


def texts(headers: Headers) -> Iterable[tuple[str, str]]:
    return ((name.decode(), value.decode()) for name, value in headers)


def lasting(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """All but what is another one for each request, and the process's own mark, which no policy sees."""
    return [pair for pair in headers if pair[0] not in ("x-request-id", "cdn-loop")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    return [model(tmp_path_factory.mktemp("agree"), *more) for more in ((), (ISTIO,), (GATEWAY,))]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(QUESTIONS, min_size=100, max_size=100), st.integers(0, 2))
def test_explain_agrees_with_the_live_configuration(models: list[Model], questions: list[Question], which: int) -> None:
    """Route, verdict, upstream and what it is sent, for 10,000 requests."""
    asyncio.run(compare(models[which], questions))


def test_explaining_leaves_the_live_limits_alone(tmp_path: Path) -> None:
    configuration = model(
        tmp_path,
        "---\napiVersion: l7proxy.io/v1\nkind: Route\nmetadata: {name: rare}\n"
        "spec: {hosts: [rare.svc], policies: {rateLimit: {requests: 1, per: 1h}}}\n",
    )
    question = Question("GET", "http://rare.svc/")

    async def ask_often() -> list[bool]:
        explainer = finish(explaining(configuration))
        return [(await explainer.ask(question)).allowed for _ in range(5)]

    assert asyncio.run(ask_often()) == [True] * 5
    asyncio.run(compare(configuration, [question]))
