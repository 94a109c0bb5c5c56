"""The core is a plain ASGI application: one suite under our own runtime, stock Hypercorn and uvicorn."""

import json

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.message import Closed
from tests.support.net import Address, free_address
from tests.support.server import OK, Connection
from tests.support.sidecar import Sidecar, route

POST = b"POST / HTTP/1.1\r\nhost: test\r\n"


@pytest.fixture(params=["l7proxy", "hypercorn", "uvicorn"])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxy(server: str, sidecar: StartSidecar, uvicorn_app: Address) -> Sidecar:
    return sidecar(app=uvicorn_app, server=server)


def test_a_request_and_its_answer_pass(proxy: Sidecar) -> None:
    with proxy.client() as client:
        for _ in range(3):
            data = b"PUT /a%20b?c=d HTTP/1.1\r\nhost: test\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: 2\r\n\r\nhi"
            said = json.loads(client.request(data).body)
            assert (said["method"], said["target"], said["body"]) == ("PUT", "/a%20b?c=d", "hi")
            assert [value for name, value in said["headers"] if name == "x-a"] == ["1", "2"]
            assert ["host", "test"] in said["headers"]
            assert ["x-forwarded-for", "127.0.0.1"] in said["headers"]


def test_bodies_stream_both_ways(proxy: Sidecar) -> None:
    with proxy.client(timeout=30) as client:
        client.send(b"POST /count HTTP/1.1\r\nhost: test\r\ncontent-length: 10000000\r\n\r\n")
        client.send(b"x" * 10_000_000)
        assert client.read().body == b"10000000"
        assert len(client.get("/bytes/10000000").body) == 10_000_000
        assert client.get("/stream/100").body.endswith(b"98\n99\n")


def test_a_chunked_body_passes(proxy: Sidecar) -> None:
    with proxy.client() as client:
        client.send(b"POST /count HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n")
        client.send(b"5\r\nhello\r\n")
        client.send(b"3\r\nabc\r\n0\r\n\r\n")
        assert client.read().body == b"8"


@pytest.mark.parametrize("status", [200, 204, 304, 404, 500])
def test_statuses_pass(status: int, proxy: Sidecar) -> None:
    assert proxy.get(f"/status/{status}").status == status


def test_head_passes(proxy: Sidecar) -> None:
    with proxy.client() as client:
        answer = client.request(b"HEAD /bytes/5 HTTP/1.1\r\nhost: test\r\n\r\n")
        assert (answer.status, answer["content-length"]) == (200, "5")
        assert client.get("/bytes/1").body == b"\0"


def test_expect_100_continue(proxy: Sidecar) -> None:
    with proxy.client() as client:
        client.send(b"POST /count HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        assert client.read(interim=True).status == 100
        client.send(b"hello")
        assert client.read(interim=True).body == b"5"


def test_paths_are_normalised_and_routed(server: str, sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    guarded = route("guarded", matches=[{"path": {"prefix": "/admin"}}], directResponse={"status": 403})
    proxy = sidecar(guarded, route("open"), app=app.address, server=server)
    with proxy.client() as client:
        for target in ("/admin", "//admin/x", "/x/../admin", "/%61dmin"):
            assert client.get(target).status == 403, target
        assert client.get("/a//b/../%63?x=%61").status == 200
    assert [request.target for request in app.requests] == ["/a/c?x=%61"]


def test_our_own_answers(server: str, sidecar: StartSidecar) -> None:
    proxy = sidecar(route("only", hosts=["only"]), app=free_address(), server=server)
    missing, refused = proxy.get(), proxy.get(host="only")
    assert (missing.status, missing["x-l7proxy-error"]) == (404, "no_route")
    assert (refused.status, refused["x-l7proxy-error"]) == (503, "upstream_connect")
    assert json.loads(refused.body)["error"] == "upstream_connect"
    assert refused["proxy-status"] == "sidecar; error=connection_refused"


def test_policies_hold(server: str, sidecar: StartSidecar, serve: StartServer) -> None:
    def busy_once(connection: Connection) -> None:
        while connection.read():
            first = len(app.requests) == 1
            connection.send(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n" if first else OK)

    app = serve(busy_once)
    policies = {
        "rateLimit": {"requests": 2, "per": "1h"},
        "retry": {"on": ["503"], "attempts": 1},
        "timeout": {"request": "2s"},
        "headers": {"response": {"set": {"x-set": "1"}}},
    }
    proxy = sidecar(route("all", policies=policies), app=app.address, server=server)
    answers = [proxy.get() for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert answers[0]["x-set"] == "1"
    assert len(app.requests) == 3


def test_a_late_answer_is_504(server: str, sidecar: StartSidecar, uvicorn_app: Address) -> None:
    late = route("late", policies={"timeout": {"request": "100ms"}})
    proxy = sidecar(late, app=uvicorn_app, server=server)
    assert proxy.get("/slow/3000")["x-l7proxy-error"] == "upstream_timeout"
    assert proxy.get("/slow/1").status == 200


def test_a_body_that_breaks_off_never_ends_cleanly(server: str, sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello")

    proxy = sidecar(app=serve(script).address, server=server)
    proxy.quiet = server == "l7proxy"
    with proxy.client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        with pytest.raises(Closed):
            client.read()


def test_a_client_that_leaves_ends_the_upstream_request(server: str, sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.wait_for_close()

    app = serve(script)
    proxy = sidecar(app=app.address, server=server)
    with proxy.client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        app.wait_for_requests(1)
    assert app.connections[0].ended.wait(5)


def test_a_slow_reader_stops_a_fast_app(server: str, sidecar: StartSidecar, serve: StartServer) -> None:
    sent = 0

    def fast(connection: Connection) -> None:
        nonlocal sent
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n")
        connection.sock.settimeout(1)
        while sent < 1 << 30:
            connection.send(b"x" * 1048576)
            sent += 1048576

    app = serve(fast)
    proxy = sidecar(app=app.address, server=server)
    with proxy.client(receive_buffer=65536) as client:
        client.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        client.reader.head()
        assert app.connections[0].ended.wait(20)
    assert sent < 64 << 20


def test_connection_cannot_strip_what_the_app_relies_on(server: str, sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(app=app.address, server=server)
    with proxy.client() as client:
        client.send(
            b"POST / HTTP/1.1\r\nhost: test\r\nconnection: authorization, content-type, x-hop\r\ncontent-type: a/b\r\n"
            b"authorization: me\r\nx-hop: 1\r\ncontent-length: 2\r\n\r\nok"
        )
        assert client.read().status == 200
    (request,) = app.requests
    assert (request["authorization"], request["content-type"], request.body) == ("me", "a/b", b"ok")
    assert "x-hop" not in request


def test_a_smuggler_gets_nothing(server: str, sidecar: StartSidecar, serve: StartServer) -> None:
    """Other servers parse for themselves; what they let pass is still one request for the app."""
    app = serve()
    proxy = sidecar(app=app.address, server=server)
    hidden = b"GET /hidden HTTP/1.1\r\nhost: test\r\n\r\n"
    with proxy.client() as client:
        client.send(b"GET / HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%b" % (len(hidden), hidden))
        assert client.read().status == 200
    assert [(request.target, request.body) for request in app.requests] == [("/", hidden)]
