"""Fields that an operator names hold for every spelling that applications merge, as the proxy's own fields do."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient
from tests.support.client import Client
from tests.support.sidecar import Document, Sidecar, istio, route, upstream
from tests.support.wsgi import WsgiServer
from tests.wire.h2_peer import GET, POST, data, headers

ALLOW = {"authorization": {"allow": [{"headers": {"x-user": ["alice"]}}]}}
DENY = {"authorization": {"deny": [{"headers": {"x-user": ["evil"]}}]}}


@pytest.fixture
def wsgi() -> Iterator[WsgiServer]:
    with WsgiServer() as server:
        yield server


def ask(proxy: Sidecar, *fields: str, http2: bool = False) -> int:
    """Sends a GET with these fields, as they are written, and returns the status."""
    pairs = [tuple(field.encode().split(b": ", 1)) for field in fields]
    if http2:
        with RawClient(proxy.inbound) as raw:
            lower = [(name.lower(), value) for name, value in pairs]
            return int(raw.answer(raw.request([*GET, *lower]))[":status"])
    with proxy.client() as client:
        lines = b"".join(b"%b: %b\r\n" % (name, value) for name, value in pairs)
        return client.request(b"GET / HTTP/1.1\r\nhost: a.test\r\n" + lines + b"\r\n").status


@pytest.mark.parametrize("named", ["X-Tenant", "x_tenant"])
@pytest.mark.parametrize(("edit", "variable"), [("remove", None), ("set", "blue")])
def test_an_edit_holds_for_every_spelling(
    edit: str, variable: str | None, named: str, sidecar: StartSidecar, wsgi: WsgiServer
) -> None:
    what: Any = [named] if edit == "remove" else {named: "blue"}
    proxy = sidecar(route("r", policies={"headers": {"request": {edit: what}}}), app=wsgi.address)
    for sent in ("X-Tenant", "X_Tenant", "x_tenant", "X_TENANT", "x-tenant"):
        for http2 in (False, True):
            assert ask(proxy, f"{sent}: evil", "x_other: 1", http2=http2) == 200
            assert wsgi.environs[-1].get("HTTP_X_TENANT") == variable, sent
            assert wsgi.environs[-1]["HTTP_X_OTHER"] == "1"


@pytest.mark.parametrize(
    "document",
    [
        route("r", policies=ALLOW),
        istio("AuthorizationPolicy", rules=[{"when": [{"key": "request.headers[x-user]", "values": ["alice"]}]}]),
        istio("AuthorizationPolicy", rules=[{"when": [{"key": "request.headers[X-User]", "values": ["alice"]}]}]),
    ],
    ids=["route", "istio", "istio-case"],
)
def test_the_application_reads_the_value_that_was_allowed(
    document: Document, sidecar: StartSidecar, wsgi: WsgiServer
) -> None:
    proxy = sidecar(document, app=wsgi.address)
    for other, http2 in itertools.product(("X_User", "x_user"), (False, True)):
        for fields in (["x-user: alice", f"{other}: evil"], [f"{other}: evil", "x-user: alice"]):
            assert ask(proxy, *fields, http2=http2) == 200
            assert wsgi.environs[-1]["HTTP_X_USER"] == "alice"
        assert ask(proxy, f"{other}: alice", http2=http2) == 403


@pytest.mark.parametrize("named", ["x-user", "x_user"])
def test_no_spelling_brings_a_denied_value_to_the_application(
    named: str, sidecar: StartSidecar, wsgi: WsgiServer
) -> None:
    policies = {"authorization": {"deny": [{"headers": {named: ["evil"]}}]}}
    proxy = sidecar(route("r", policies=policies), app=wsgi.address)
    for first, second in itertools.product(["X-User: fine", "X_User: fine", "x: y"], ["X-User: evil", "X_User: evil"]):
        if first[:6] != second[:6]:
            ask(proxy, first, second)
    assert "evil" not in [environ.get("HTTP_X_USER") for environ in wsgi.environs]
    assert wsgi.environs


def test_two_spellings_in_a_configuration_are_one_field(sidecar: StartSidecar, wsgi: WsgiServer) -> None:
    proxy = sidecar(
        route(
            "r",
            policies={"authorization": {"deny": [{"headers": {"x_user": ["evil"]}}]}},
            matches=[{"headers": {"x-user": {"present": True}}}],
        ),
        route("rest", directResponse={"status": 404}),
        app=wsgi.address,
    )
    assert ask(proxy, "x-user: evil") == 403
    assert ask(proxy, "x-user: fine", "x_user: evil") == 200
    assert wsgi.environs[-1]["HTTP_X_USER"] == "fine"
    assert ask(proxy, "x_user: evil") == 404


def test_a_route_is_not_chosen_past_its_match(sidecar: StartSidecar, wsgi: WsgiServer) -> None:
    """Who asks for the guarded route in another spelling does not get its variable on the open one."""
    proxy = sidecar(
        route("admin", matches=[{"headers": {"x-admin": "1"}}], policies={"authorization": {"allow": []}}),
        route("open"),
        app=wsgi.address,
    )
    assert ask(proxy, "x-admin: 1") == 403
    assert ask(proxy, "X_Admin: 1") == 200
    assert "HTTP_X_ADMIN" not in wsgi.environs[-1]


def test_a_limit_counts_the_value_that_the_application_reads(sidecar: StartSidecar, wsgi: WsgiServer) -> None:
    limit = {"requests": 1, "per": "1h", "by": "header:X-Key"}
    proxy = sidecar(route("r", policies={"rateLimit": limit}), app=wsgi.address)
    assert ask(proxy, "x-key: a", "x_key: b") == 200
    assert wsgi.environs[-1]["HTTP_X_KEY"] == "a"
    assert ask(proxy, "x-key: a", "x_key: c") == 429


def test_a_field_keeps_the_spelling_in_which_it_is_named(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    policies = {"authorization": {"allow": [{"headers": {"x_user": ["alice"]}}]}}
    proxy = sidecar(route("r", policies=policies), app=app.address)
    assert ask(proxy, "X_User: alice") == 200
    assert app.requests[-1].all("x_user") == ["alice"]
    assert ask(proxy, "X-User: alice") == 403


def test_fields_that_nothing_names_keep_every_spelling(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(route("r", policies=DENY), app=app.address)
    assert ask(proxy, "x_tenant: a", "x-tenant: b") == 200
    assert (app.requests[-1].all("x_tenant"), app.requests[-1].all("x-tenant")) == (["a"], ["b"])


@pytest.mark.parametrize(
    "policies",
    [ALLOW, {"headers": {"request": {"remove": ["x-user"]}}}, {"rateLimit": {"requests": 9, "by": "header:x-user"}}],
)
def test_no_trailer_brings_a_field_that_is_looked_at(
    policies: Mapping[str, Any], sidecar: StartSidecar, serve: StartServer
) -> None:
    app = serve()
    proxy = sidecar(route("r", policies=policies), app=app.address)
    for http2 in (False, True):
        _send_trailers(proxy, http2)
    assert [request.trailers for request in app.requests] == [[(b"x-fine", b"1")]] * 2


def _send_trailers(proxy: Sidecar, http2: bool) -> None:
    trailers = [(b"x-user", b"evil"), (b"x_user", b"evil"), (b"x-fine", b"1")]
    if http2:
        with RawClient(proxy.inbound) as raw:
            stream = raw.request([*POST, (b"x-user", b"alice")], end=False)
            raw.send(data(stream, b"x") + headers(stream, trailers))
            assert raw.answer(stream)[":status"] == "200"
        return
    with proxy.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nhost: test\r\nx-user: alice\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
        )
        client.send(b"".join(b"%b: %b\r\n" % pair for pair in trailers) + b"\r\n")
        assert client.read().status == 200


def test_requests_of_the_application_are_held_to_it_too(sidecar: StartSidecar, serve: StartServer) -> None:
    other = serve()
    edits = {"headers": {"request": {"remove": ["x-internal"]}}}
    proxy = sidecar(
        upstream("u", other.address),
        route("r", direction="outbound", upstream="u", policies=edits),
    )
    with Client(proxy.outbound) as client:
        answer = client.request(b"GET / HTTP/1.1\r\nhost: u\r\nX_Internal: 1\r\nx_other: 1\r\n\r\n")
    assert answer.status == 200
    assert [name for name, _ in other.requests[-1].headers if name.startswith(b"x_")] == [b"x_other"]
