"""Where requests go: hosts, paths, conditions, and what a route does with them."""

import json
from collections import Counter
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.message import Message
from tests.support.net import Address
from tests.support.server import Connection
from tests.support.sidecar import Document, Sidecar, route, upstream


def named(name: str, **spec: Any) -> Document:
    """A route that answers with its own name."""
    return route(name, directResponse={"status": 200, "body": name}, **spec)


def path(**match: str) -> dict[str, Any]:
    return {"path": match}


@pytest.fixture(scope="module")
def routed(shared_sidecar: StartSidecar) -> Sidecar:
    return shared_sidecar(
        named("prefix-v1", matches=[path(prefix="/v1")]),
        named("prefix-v1-orders", matches=[path(prefix="/v1/orders")]),
        named("exact", matches=[path(exact="/v1/orders/new")]),
        named("regex", matches=[path(regex="/v1/o.*|/r/[0-9]+")]),
        named("get", matches=[{**path(prefix="/m"), "methods": ["GET"]}]),
        named("any-method", matches=[path(prefix="/m")]),
        named("one-header", matches=[{**path(prefix="/h"), "headers": {"x-a": "1"}}]),
        named("two-headers", matches=[{**path(prefix="/h"), "headers": {"X-A": "1", "x-b": {"prefix": "b"}}}]),
        named("no-header", matches=[path(prefix="/h")]),
        named("query", matches=[{**path(prefix="/q"), "query": {"a": "1"}}]),
        named("query-present", matches=[{**path(prefix="/q"), "query": {"b": {"present": True}}}]),
        named("first", matches=[{**path(prefix="/same"), "query": {"a": "1"}}]),
        named("second", matches=[{**path(prefix="/same"), "query": {"b": "1"}}]),
        named("several", matches=[path(exact="/s1"), path(exact="/s2")]),
        named("orders", hosts=["orders.example"], matches=[path(prefix="/only")]),
        named("wide", hosts=["*.example"]),
    )


@pytest.mark.parametrize(
    ("target", "headers", "name"),
    [
        ("/v1", {}, "prefix-v1"),
        ("/v1/", {}, "prefix-v1"),
        ("/v1/x", {}, "prefix-v1"),
        ("/v1/orders", {}, "prefix-v1-orders"),
        ("/v1/orders/7?x=y", {}, "prefix-v1-orders"),
        ("/v1/orders/new", {}, "exact"),
        ("/v1/orders/new?x", {}, "exact"),
        ("/v1/orders/new/", {}, "prefix-v1-orders"),
        ("/v1/other", {}, "prefix-v1"),
        ("/r/12", {}, "regex"),
        ("/m/x", {}, "get"),
        ("/h", {}, "no-header"),
        ("/h", {"x_a": "1"}, "one-header"),
        ("/h", {"x_a": "2"}, "no-header"),
        ("/h", {"x_a": "1", "x_b": "bc"}, "two-headers"),
        ("/q?a=1", {}, "query"),
        ("/q?c=2&a=1", {}, "query"),
        ("/q?b", {}, "query-present"),
        ("/q?b=anything", {}, "query-present"),
        ("/same?b=1&a=1", {}, "first"),
        ("/same?b=1", {}, "second"),
        ("/s2", {}, "several"),
    ],
)
def test_the_most_specific_route_wins(target: str, headers: dict[str, str], name: str, routed: Sidecar) -> None:
    assert routed.get(target, **headers).body.decode() == name


def test_a_method_decides(routed: Sidecar) -> None:
    with routed.client() as client:
        assert client.request(b"POST /m HTTP/1.1\r\nhost: test\r\n\r\n").body == b"any-method"


@pytest.mark.parametrize("target", ["/v10", "/v1x/orders", "/r/x", "/r/1/2", "/q?a=2", "/s3", "/"])
def test_what_no_route_matches_is_404(target: str, routed: Sidecar) -> None:
    answer = routed.get(target)
    assert (answer.status, answer["x-l7proxy-error"]) == (404, "no_route")


def test_a_host_does_not_fall_through_to_a_wider_one(routed: Sidecar) -> None:
    assert routed.get("/only", "orders.example").body == b"orders"
    assert routed.get("/x", "other.example").body == b"wide"
    assert routed.get("/x", "orders.example").status == 404


def test_a_split_follows_its_weights(sidecar: StartSidecar, serve: StartServer) -> None:
    a, b, never = serve(), serve(), serve()
    weights = [{"upstream": "a", "weight": 80}, {"upstream": "b", "weight": 20}, {"upstream": "never", "weight": 0}]
    proxy = sidecar(
        *(upstream(name, server.address) for name, server in (("a", a), ("b", b), ("never", never))),
        route("split", split=weights),
    )
    with proxy.client() as client:
        for _ in range(500):
            assert client.get().status == 200
    # Five standard deviations of a binomial: one run in a million fails by chance.
    assert abs(len(b.requests) - 100) < 45
    assert len(a.requests) + len(b.requests) == 500
    assert not never.requests


def _location(redirect: dict[str, Any], target: str, sidecar: StartSidecar, **more: Any) -> Message:
    answer = sidecar(route("away", redirect=redirect, **more)).get(target, "shop.example:8080")
    assert answer.body == b""
    return answer


def test_a_redirect_keeps_what_it_does_not_name(sidecar: StartSidecar) -> None:
    answer = _location({"scheme": "https", "status": 308}, "/a/b?c=d", sidecar)
    assert (answer.status, answer["location"]) == (308, "https://shop.example/a/b?c=d")


def test_a_redirect_to_a_host_and_a_path(sidecar: StartSidecar) -> None:
    answer = _location({"host": "new.example", "path": "/moved"}, "/a?c=d", sidecar)
    assert answer.status == 302
    assert answer["location"].startswith("http://new.example")
    assert "/moved" in answer["location"]


@pytest.mark.parametrize(
    ("prefix", "matched", "target", "path"),
    [
        ("/new", "/old", "/old/a?c=d", "/new/a?c=d"),
        ("/new/", "/old/", "/old", "/new"),
        ("/", "/old", "/old", "/"),
        ("/new", "/caf%c3%a9", "/caf%C3%A9/a", "/new/a"),
    ],
)
def test_a_redirect_replaces_the_prefix_that_matched(
    prefix: str, matched: str, target: str, path: str, sidecar: StartSidecar
) -> None:
    answer = _location({"prefix": prefix}, target, sidecar, matches=[{"path": {"prefix": matched}}])
    assert (answer.status, answer["location"]) == (302, f"http://shop.example:8080{path}")


def test_a_direct_response_has_its_status_headers_and_body(sidecar: StartSidecar) -> None:
    direct = {"status": 418, "headers": {"X-Tea": "pot"}, "body": "short and stout"}
    answer = sidecar(route("tea", directResponse=direct)).get()
    assert (answer.status, answer["x-tea"], answer.body) == (418, "pot", b"short and stout")
    assert "x-l7proxy-error" not in answer


@pytest.mark.parametrize(
    ("rewrite", "target", "expected"),
    [
        ({"prefix": "/new"}, "/old/a?b=c", "/new/a?b=c"),
        ({"prefix": "/new"}, "/old", "/new"),
        ({"prefix": "/new"}, "/old?x", "/new?x"),
        ({"prefix": "/"}, "/old/a", "/a"),
        ({"prefix": "/"}, "/old", "/"),
        ({"path": "/fixed"}, "/old/a?b=c", "/fixed?b=c"),
        ({"prefix": "/x/y/"}, "/old/a", "/x/y/a"),
    ],
)
def test_a_rewrite_changes_the_path_that_the_app_gets(
    rewrite: dict[str, str], target: str, expected: str, sidecar: StartSidecar, serve: StartServer
) -> None:
    app = serve()
    proxy = sidecar(route("old", matches=[path(prefix="/old")], rewrite=rewrite), app=app.address)
    assert proxy.get(target).status == 200
    assert app.requests[0].target == expected


def test_a_rewrite_replaces_a_prefix_that_is_spelled_in_another_way(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(route("old", matches=[path(prefix="/café")], rewrite={"prefix": "/new"}), app=app.address)
    assert proxy.get("/caf%c3%a9/a").status == 200
    assert app.requests[0].target == "/new/a"


def test_a_rewrite_changes_the_host(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(route("all", rewrite={"host": "inner.example"}), app=app.address)
    assert proxy.get(host="outer.example").status == 200
    assert app.requests[0].all("host") == ["inner.example"]


def test_headers_are_set_added_and_removed(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\nServer: old\r\nX-Keep: 1\r\nX-More: a\r\ncontent-length: 0\r\n\r\n")

    app = serve(script)
    edits = {
        "request": {"set": {"X-Set": "new"}, "add": {"x-add": "two"}, "remove": ["x-gone"]},
        "response": {"set": {"server": "hidden"}, "add": {"X-More": "b"}, "remove": ["x-keep"]},
    }
    proxy = sidecar(route("all", policies={"headers": edits}), app=app.address)
    answer = proxy.get("/", x_set="old", x_add="one", x_gone="1")
    (request,) = app.requests
    assert request.all("x-set") == ["new"]
    assert request.all("x-add") == ["one", "two"]
    assert "x-gone" not in request
    assert (answer["server"], answer.all("x-more")) == ("hidden", ["a", "b"])
    assert "x-keep" not in answer


def test_forwarding_headers_tell_the_truth(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    forged = {
        "x_forwarded_for": "6.6.6.6",
        "x_forwarded_client_cert": "By=me",
        "x_l7proxy_error": "x",
        "x_envoy_a": "1",
    }
    assert sidecar(app=app.address).get("/", "shop.example", **forged, forwarded="for=6.6.6.6").status == 200
    (request,) = app.requests
    assert request.all("x-forwarded-for") == ["127.0.0.1"]
    assert request["x-forwarded-proto"] == "http"
    assert request["x-forwarded-host"] == "shop.example"
    assert not {"x-forwarded-client-cert", "x-l7proxy-error", "x-envoy-a"} & {
        name.decode() for name, _ in request.headers
    }


@pytest.mark.parametrize("trusted", [False, True])
def test_no_other_spelling_passes_for_what_only_a_proxy_says(
    trusted: bool, sidecar: StartSidecar, serve: StartServer
) -> None:
    app = serve()
    proxy = sidecar(app=app.address, inbound={"trustedProxies": ["127.0.0.1"]} if trusted else {})
    forged = ("X_Forwarded_For", "X-Forwarded_Client-Cert", "x_l7proxy_peer", "X_Envoy_Peer", "X_Request_Id")
    with proxy.client() as client:
        fields = "".join(f"{name}: evil\r\n" for name in forged)
        assert client.request(f"GET / HTTP/1.1\r\nhost: a\r\n{fields}x_mine: 1\r\n\r\n".encode()).status == 200
    (request,) = app.requests
    assert b"evil" not in request.head
    assert request["x_mine"] == "1"


def test_a_trusted_proxy_is_believed(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(app=app.address, inbound={"trustedProxies": ["127.0.0.0/8"]})
    assert proxy.get("/", x_forwarded_for="6.6.6.6", x_forwarded_proto="https").status == 200
    assert app.requests[0]["x-forwarded-for"] == "6.6.6.6, 127.0.0.1"
    assert app.requests[0]["x-forwarded-proto"] == "https"


# Outbound.


def ask_out(proxy: Sidecar, data: bytes) -> Message:
    from tests.support.client import Client

    with Client(proxy.outbound) as client:
        return client.request(data)


@pytest.fixture
def outward(sidecar: StartSidecar, serve: StartServer) -> tuple[Sidecar, Any]:
    app = serve()
    return sidecar(
        upstream("payments", app.address),
        route("payments", direction="outbound", hosts=["payments.shop", "*.pay"], upstream="payments"),
        outbound={"policy": "REGISTRY_ONLY"},
    ), app


@pytest.mark.parametrize(
    "data",
    [
        b"GET /a/../b%2e?c HTTP/1.1\r\nhost: payments.shop\r\n\r\n",
        b"GET http://payments.shop/a/../b%2e?c HTTP/1.1\r\nhost: payments.shop\r\n\r\n",
        b"GET /a/../b%2e?c HTTP/1.1\r\nhost: x.pay:8080\r\n\r\n",
    ],
)
def test_outbound_requests_go_by_host_with_their_target_untouched(data: bytes, outward: tuple[Sidecar, Any]) -> None:
    proxy, app = outward
    assert ask_out(proxy, data).status == 200
    assert app.requests[0].target == "/a/../b%2e?c"
    assert app.requests[0]["host"] in ("payments.shop", "x.pay:8080")
    assert "x-forwarded-for" not in app.requests[0]


def test_a_host_that_is_not_in_the_registry_is_blocked(outward: tuple[Sidecar, Any]) -> None:
    proxy, _ = outward
    answer = ask_out(proxy, b"GET / HTTP/1.1\r\nhost: evil.example\r\n\r\n")
    assert (answer.status, answer["x-l7proxy-error"]) == (502, "egress_blocked")


def test_allow_any_calls_the_host_itself(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(outbound={"policy": "ALLOW_ANY"})
    host = f"127.0.0.1:{uvicorn_app[1]}"
    answer = ask_out(proxy, f"GET /echo HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
    assert answer.status == 200
    assert ["host", host] in json.loads(answer.body)["headers"]


def test_inbound_and_outbound_routes_do_not_mix(outward: tuple[Sidecar, Any]) -> None:
    proxy, _ = outward
    assert Counter([proxy.get("/", "payments.shop").status]) == {404: 1}
