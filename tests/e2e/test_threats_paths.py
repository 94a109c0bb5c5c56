"""The threat table's paths and authorities: one spelling is routed, authorised and forwarded, whatever was sent."""

from collections.abc import Iterator

import pytest

from tests.conftest import StartSidecar
from tests.support.message import Message
from tests.support.server import Server
from tests.support.sidecar import Sidecar, route

GUARDED = {"status": 403, "body": "guarded"}
ROUTES = (
    route("guarded", matches=[{"path": {"prefix": "/admin"}}, {"path": {"exact": "/secret"}}], directResponse=GUARDED),
    route("open"),
)


@pytest.fixture(scope="module")
def app() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def proxy(shared_sidecar: StartSidecar, app: Server) -> Sidecar:
    return shared_sidecar(*ROUTES, app=app.address)


def ask(proxy: Sidecar, target: str, host: str = "test") -> Message:
    with proxy.client() as client:
        return client.get(target, host)


@pytest.mark.parametrize(
    ("sent", "forwarded"),
    [
        ("/", "/"),
        ("/a/../b", "/b"),
        ("/./a", "/a"),
        ("//a", "/a"),
        ("/a//b///c", "/a/b/c"),
        ("/a/%2e%2e/b", "/b"),
        ("/a/%2E%2e/b", "/b"),
        ("/a/.%2E/b", "/b"),
        ("/%2E/a", "/a"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/a/b/..", "/a/"),
        ("/../../etc/passwd", "/etc/passwd"),
        ("/..", "/"),
        ("/a/...", "/a/..."),
        ("/.a/..b", "/.a/..b"),
        ("/%61%41%7e%2d", "/aA~-"),
        ("/a%20b", "/a%20b"),
        ("/a%3fb", "/a%3Fb"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%5cb", "/a%5Cb"),
        ("/a%252e%252e/b", "/a%252e%252e/b"),
        ("/a;param/b", "/a;param/b"),
        ("/a/;/b", "/a/;/b"),
        ("/%c3%a9", "/%C3%A9"),
        ("/ADMIN", "/ADMIN"),
        ("/administrator", "/administrator"),
        ("/secret/", "/secret/"),
        ("/secret/x/..", "/secret/"),
        ("/a?x=../..//%2e%61", "/a?x=../..//%2e%61"),
        ("/a/../b?", "/b"),
        ("/a?x?y", "/a?x?y"),
        ("http://test/a/../b", "/b"),
        ("http://test", "/"),
        ("http://test?x=1", "/?x=1"),
    ],
)
def test_the_app_gets_the_normal_form(sent: str, forwarded: str, proxy: Sidecar, app: Server) -> None:
    before = len(app.requests)
    assert ask(proxy, sent).status == 200
    assert [request.target for request in app.requests[before:]] == [forwarded]


@pytest.mark.parametrize(
    "sent",
    [
        *("/admin", "/admin/", "/admin/x", "/admin?x", "//admin", "///admin//x", "/./admin", "/x/../admin", "/%61dmin"),
        *(
            "/%61%64%6D%69%6e",
            "/x/%2e%2e/admin",
            "/%2e/admin",
            "/x/.%2e/admin/y",
            "/../admin",
            "/admin/.",
            "/admin/x/..",
        ),
        *(
            "/x/y/../../admin",
            "/secret",
            "/x/../secret",
            "//secret",
            "/%73ecret",
            "/./secret",
            "/secret?",
        ),
    ],
)
def test_no_other_spelling_dodges_a_route(sent: str, proxy: Sidecar, app: Server) -> None:
    before = len(app.requests)
    answer = ask(proxy, sent)
    assert (answer.status, answer.body) == (403, b"guarded")
    assert len(app.requests) == before


@pytest.mark.parametrize(
    "sent",
    [
        *(
            "/%00",
            "/a%00b",
            "/%zz",
            "/%",
            "/%4",
            "/a%",
            "/%u0041",
            "/a\\b",
            "/\\admin",
            "/%c0%ae%c0%ae/admin",
            "/%c0%af",
        ),
        *("/%e0%80%af", "/%ff", "/%c3", "/%ed%a0%80", "/%f8%80%80%80%af", "/a#b", "/#", "/a?b#c", "/é", "/a\x7f"),
    ],
)
def test_what_has_no_single_meaning_gets_400(sent: str, proxy: Sidecar, app: Server) -> None:
    before, reasons = len(app.requests), proxy.metrics()("l7proxy_bad_requests_total")
    with proxy.client() as client:
        answer = client.get(sent)
        assert (answer.status, answer["x-l7proxy-error"]) == (400, "bad_request")
        assert client.closed()
    assert len(app.requests) == before
    assert proxy.metrics()("l7proxy_bad_requests_total") == reasons + 1


AMBIGUOUS = ["/admin%2fx", "/admin%2Fx", "/x%2f..%2fadmin", "/admin%5cx", "/x%5c..%5cadmin", "/%2fadmin"]


@pytest.mark.parametrize("sent", [*AMBIGUOUS, "/a%2fb"])
def test_encoded_slashes_can_be_refused(sent: str, sidecar: StartSidecar, app: Server) -> None:
    proxy = sidecar(*ROUTES, app=app.address, inbound={"encodedSlashes": "REJECT"})
    before = len(app.requests)
    assert ask(proxy, sent).status == 400
    assert len(app.requests) == before


@pytest.mark.parametrize("sent", AMBIGUOUS)
def test_encoded_slashes_can_be_read_as_slashes(sent: str, sidecar: StartSidecar, app: Server) -> None:
    proxy = sidecar(*ROUTES, app=app.address, inbound={"encodedSlashes": "UNESCAPE"})
    before = len(app.requests)
    assert ask(proxy, sent).status == 403
    assert ask(proxy, "/a%2fb%5Cc").status == 200
    assert [request.target for request in app.requests[before:]] == ["/a/b/c"]


def test_a_route_may_forward_the_original(sidecar: StartSidecar, app: Server) -> None:
    proxy = sidecar(*ROUTES[:1], route("raw", path={"forward": "original"}), app=app.address)
    before = len(app.requests)
    assert ask(proxy, "/a/%61//b?x=%61").status == 200
    assert ask(proxy, "/x/../admin").status == 403
    assert [request.target for request in app.requests[before:]] == ["/a/%61//b?x=%61"]


@pytest.fixture(scope="module")
def hosts(shared_sidecar: StartSidecar, app: Server) -> Sidecar:
    def named(name: str, *hosts: str) -> object:
        return route(name, hosts=hosts, directResponse={"status": 200, "body": name})

    return shared_sidecar(
        named("orders", "orders.example.com"),
        named("suffix", "*.example.com"),
        named("deep", "*.deep.example.com"),
        named("unicode", "xn--bcher-kva.example"),
        named("v6", "[::1]"),
        app=app.address,
    )


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("orders.example.com", "orders"),
        ("ORDERS.Example.COM", "orders"),
        ("orders.example.com:8080", "orders"),
        ("orders.example.com:", "orders"),
        ("orders.example.com.", "orders"),
        ("orders.example.com.:443", "orders"),
        ("other.example.com", "suffix"),
        ("a.b.example.com", "suffix"),
        ("a.deep.example.com", "deep"),
        ("deep.example.com", "suffix"),
        ("xn--bcher-kva.example", "unicode"),
        ("XN--BCHER-KVA.EXAMPLE", "unicode"),
        ("[::1]:80", "v6"),
        ("[::1]", "v6"),
    ],
)
def test_a_host_is_one_host_in_every_spelling(host: str, name: str, hosts: Sidecar) -> None:
    assert ask(hosts, "/", host).body.decode() == name
    assert ask(hosts, f"http://{host}/", host).body.decode() == name


@pytest.mark.parametrize("host", ["example.com", "xorders.example.org", "orders.example.com.evil", "1.2.3.4"])
def test_an_unknown_host_has_no_route(host: str, hosts: Sidecar) -> None:
    answer = ask(hosts, "/", host)
    assert (answer.status, answer["x-l7proxy-error"]) == (404, "no_route")


@pytest.mark.parametrize("host", ["bücher.example", "orders.example.com..", "a..b", "%61.example.com"])
def test_a_host_without_doubt_or_400(host: str, hosts: Sidecar) -> None:
    assert ask(hosts, "/", host).status in (400, 404)


def test_the_host_that_was_routed_is_the_one_that_is_forwarded(proxy: Sidecar, app: Server) -> None:
    with proxy.client() as client:
        assert client.request(b"GET http://Test.Example:80/ HTTP/1.1\r\nhost: test.example:80\r\n\r\n").status == 200
    assert app.requests[-1].all("host") == ["Test.Example:80"]
