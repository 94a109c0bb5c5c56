"""Timeouts, retries and rate limits as clients, upstreams and Prometheus see them."""

import threading
import time
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.support.message import Closed
from tests.support.server import OK, Connection, Script
from tests.support.sidecar import Sidecar, route, upstream

GET = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
BUSY = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy"


def after(seconds: float, answer: bytes = OK) -> Script:
    def script(connection: Connection) -> None:
        while connection.read():
            time.sleep(seconds)
            connection.send(answer)

    return script


def policy(name: str, **settings: Any) -> Any:
    return route("all", policies={name: settings})


# timeout


def test_a_late_answer_is_504(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(after(5))
    proxy = sidecar(policy("timeout", request="100ms"), app=app.address)
    started = time.monotonic()
    answer = proxy.get()
    assert (answer.status, answer["x-l7proxy-error"]) == (504, "upstream_timeout")
    assert "http_response_timeout" in answer["proxy-status"]
    assert time.monotonic() - started < 4
    (line,) = proxy.log_lines()
    assert (line["code"], line["flags"], line["status"]) == ("upstream_timeout", "UT", 504)


def test_the_clock_of_the_request_timeout_starts_when_the_request_has_ended(
    sidecar: StartSidecar, serve: StartServer
) -> None:
    proxy = sidecar(policy("timeout", request="300ms"), app=serve().address)
    with proxy.client() as client:
        client.send(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 8\r\n\r\n")
        client.send_slowly(b"12345678", 0.08)
        assert client.read().status == 200


def test_a_body_may_take_longer_than_the_request_timeout(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n")
        connection.send_slowly(b"12345678", 0.05)

    proxy = sidecar(policy("timeout", request="150ms"), app=serve(script).address)
    assert proxy.get().body == b"12345678"


def test_a_body_that_stands_still_is_cut(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello")
        connection.wait_for_close()

    app = serve(script)
    proxy = sidecar(policy("timeout", idle="200ms"), app=app.address)
    with proxy.client() as client:
        client.send(GET)
        with pytest.raises(Closed):
            client.read()
    assert app.connections[0].ended.wait(5)


def test_a_body_that_trickles_is_not_cut(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n")
        connection.send_slowly(b"1234567890", 0.1)

    proxy = sidecar(policy("timeout", idle="400ms"), app=serve(script).address)
    assert proxy.get().body == b"1234567890"


def test_a_try_that_is_late_is_tried_elsewhere(sidecar: StartSidecar, serve: StartServer) -> None:
    slow, fast = serve(after(5)), serve()
    policies = {"timeout": {"perTry": "100ms"}, "retry": {"on": ["timeout"], "attempts": 3}}
    proxy = sidecar(upstream("pool", slow.address, fast.address), route("all", upstream="pool", policies=policies))
    with proxy.client() as client:
        assert [client.request(GET).status for _ in range(6)] == [200] * 6


# retry


def failing(count: int, answer: bytes = BUSY) -> Script:
    """Fails the first `count` requests, over all connections."""
    lock, left = threading.Lock(), count

    def script(connection: Connection) -> None:
        nonlocal left
        while connection.read():
            with lock:
                left, fail = left - 1, left > 0
            connection.send(answer if fail else OK)

    return script


def retrying(sidecar: StartSidecar, *apps: Any, **settings: Any) -> Sidecar:
    settings = {"attempts": 2, **settings}
    ends = [app.address for app in apps]
    return sidecar(upstream("pool", *ends), route("all", upstream="pool", policies={"retry": settings}))


@pytest.mark.parametrize("on", [["503"], ["5xx"]])
def test_a_status_is_retried(on: list[str], sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(failing(2))
    proxy = retrying(sidecar, app, on=on)
    assert proxy.get().status == 200
    assert len(app.requests) == 3
    assert proxy.metrics()("l7proxy_retries_total", l7proxy_route="all") == 2
    (line,) = proxy.log_lines()
    assert line["attempts"] == 3


def test_attempts_end(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(failing(10))
    answer = retrying(sidecar, app, on=["503"]).get()
    assert (answer.status, answer.body) == (503, b"busy"), "the last answer is passed on as it is"
    assert len(app.requests) == 3


def test_the_log_tells_the_times_of_the_last_attempt_alone(sidecar: StartSidecar, serve: StartServer) -> None:
    def busy_then_silent(connection: Connection) -> None:
        connection.read()
        if len(connection.server.requests) == 1:
            connection.send(BUSY)
        connection.wait_for_close()

    app = serve(busy_then_silent)
    policies = {"retry": {"attempts": 1, "on": ["503"]}, "timeout": {"perTry": "300ms"}}
    proxy = sidecar(upstream("pool", app.address), route("all", upstream="pool", policies=policies))
    assert proxy.get().status == 504
    (line,) = proxy.log_lines()
    assert (line["attempts"], line["code"], line["first_byte_ms"]) == (2, "upstream_timeout", None)
    assert 0 <= line["connect_ms"] < line["duration_ms"]


def test_what_is_not_listed_is_not_retried(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(failing(10))
    assert retrying(sidecar, app, on=["502", "reset"]).get().status == 503
    assert len(app.requests) == 1


def test_another_endpoint_is_tried_first(sidecar: StartSidecar, serve: StartServer) -> None:
    bad, good = serve(failing(100)), serve()
    proxy = retrying(sidecar, bad, good, on=["503"], attempts=1)
    with proxy.client() as client:
        assert [client.request(GET).status for _ in range(10)] == [200] * 10


def test_a_reset_is_retried(sidecar: StartSidecar, serve: StartServer) -> None:
    def reset_twice(connection: Connection) -> None:
        connection.read()
        if connection.number < 2:
            connection.reset()
        else:
            connection.send(OK)

    app = serve(reset_twice)
    assert retrying(sidecar, app, on=["reset"]).get().status == 200
    assert len(app.requests) == 3


@pytest.mark.parametrize("on", ["reset", "503"])
def test_a_payment_is_not_made_twice(on: str, sidecar: StartSidecar, serve: StartServer) -> None:
    def fail(connection: Connection) -> None:
        connection.read()
        if on == "503":
            connection.send(BUSY)

    app = serve(fail)
    proxy = retrying(sidecar, app, on=[on])
    with proxy.client() as client:
        answer = client.request(b"POST /pay HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\n10")
    assert answer.status in (502, 503)
    assert len(app.requests) == 1


@pytest.mark.parametrize(
    ("line", "settings"), [(b"Idempotency-Key: 1\r\n", {}), (b"", {"methods": ["POST"]})], ids=["key", "listed"]
)
def test_a_post_is_repeated_with_leave_and_with_its_body(
    line: bytes, settings: dict[str, Any], sidecar: StartSidecar, serve: StartServer
) -> None:
    app = serve(failing(1))
    proxy = retrying(sidecar, app, on=["503"], **settings)
    with proxy.client() as client:
        client.send(b"POST / HTTP/1.1\r\nhost: test\r\n" + line + b"transfer-encoding: chunked\r\n\r\n")
        client.send(b"3\r\nabc\r\n")
        time.sleep(0.05)
        client.send(b"3\r\ndef\r\n0\r\n\r\n")
        assert client.read().status == 200
    assert [request.body for request in app.requests] == [b"abcdef", b"abcdef"]


def test_a_body_that_came_in_pieces_goes_out_whole_each_time(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(failing(3))
    proxy = retrying(sidecar, app, on=["503"], attempts=3)
    with proxy.client() as client:
        client.send(b"PUT / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        time.sleep(0.05)
        client.send(b"3\r\ndef\r\n0\r\nx-sum: 6\r\n\r\n")
        assert client.read().status == 200
    assert [(request.body, request.trailers) for request in app.requests] == [(b"abcdef", [(b"x-sum", b"6")])] * 4
    assert proxy.log_lines()[0]["bytes_in"] == 6


def test_a_large_body_is_not_kept_for_a_retry(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(failing(1))
    proxy = retrying(sidecar, app, on=["503"])
    with proxy.client() as client:
        client.send(b"PUT / HTTP/1.1\r\nhost: test\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000)
        assert client.read().status == 503
    assert len(app.requests) == 1


def test_a_connect_failure_is_retried_for_every_method(sidecar: StartSidecar, serve: StartServer) -> None:
    gone, there = serve(), serve()
    gone.close()
    proxy = retrying(sidecar, gone, there, on=["connect-failure"])
    with proxy.client() as client:
        for _ in range(10):
            assert client.request(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 1\r\n\r\nx").status == 200
    assert len(there.requests) == 10


def test_retries_stay_within_their_budget(sidecar: StartSidecar, serve: StartServer) -> None:
    """A fifth of the requests of ten seconds, or ten a second."""
    app = serve(failing(10_000))
    proxy = retrying(sidecar, app, on=["503"], attempts=5, base="0ms", max="0ms")
    with proxy.client() as client:
        for _ in range(100):
            assert client.request(GET).status == 503
    retries = proxy.metrics()("l7proxy_retries_total")
    assert 100 <= retries <= 125
    assert proxy.metrics()("l7proxy_retry_budget_exhausted_total") > 0
    assert len(app.requests) == 100 + retries


def test_a_failing_endpoint_is_ejected(sidecar: StartSidecar, serve: StartServer) -> None:
    bad, *good = serve(after(0, BUSY)), serve(), serve()
    ends = (bad.address, *(app.address for app in good))
    proxy = sidecar(upstream("pool", *ends, balance="roundRobin"), route("all", upstream="pool"))
    with proxy.client() as client:
        statuses = [client.request(GET).status for _ in range(200)]
    assert statuses.count(503) == len(bad.requests) == 5
    assert statuses[-100:] == [200] * 100


def test_the_only_endpoint_is_never_ejected(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(failing(20))
    proxy = sidecar(upstream("pool", app.address), route("all", upstream="pool"))
    with proxy.client() as client:
        statuses = [client.request(GET).status for _ in range(25)]
    assert statuses == [503] * 20 + [200] * 5


# rateLimit


def test_what_exceeds_the_limit_is_429(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(policy("rateLimit", requests=5, per="1h"), app=app.address)
    with proxy.client() as client:
        answers = [client.request(GET) for _ in range(8)]
    assert [answer.status for answer in answers] == [200] * 5 + [429] * 3
    assert [answer["ratelimit-remaining"] for answer in answers[:5]] == ["4", "3", "2", "1", "0"]
    assert len(app.requests) == 5
    refused = answers[-1]
    assert refused["x-l7proxy-error"] == "rate_limited"
    assert refused["ratelimit-limit"] == "5"
    assert 1 <= int(refused["retry-after"]) <= 720
    assert "http_request_denied" in refused["proxy-status"]
    assert proxy.metrics()("l7proxy_rate_limited_total", l7proxy_route="all") == 3


def test_tokens_come_back(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(policy("rateLimit", requests=10, per="1s", burst=1), app=serve().address)
    with proxy.client() as client:
        assert client.request(GET).status == 200
        assert client.request(GET).status == 429
        time.sleep(0.25)
        assert client.request(GET).status == 200


def test_each_header_value_has_its_own_bucket(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(policy("rateLimit", requests=1, per="1h", by="header:X-Tenant"), app=serve().address)
    with proxy.client() as client:
        assert [client.get("/", x_tenant=tenant).status for tenant in ("a", "b", "a", "b", "c")] == [
            200,
            200,
            429,
            429,
            200,
        ]


def test_the_source_address_that_is_believed_counts(sidecar: StartSidecar, serve: StartServer) -> None:
    limited = policy("rateLimit", requests=1, per="1h", by="sourceIP")
    proxy = sidecar(limited, app=serve().address, inbound={"trustedProxies": ["127.0.0.1"]})
    with proxy.client() as client:
        assert client.get("/", x_forwarded_for="1.1.1.1").status == 200
        assert client.get("/", x_forwarded_for="2.2.2.2").status == 200
        assert client.get("/", x_forwarded_for="1.1.1.1").status == 429


def test_a_forged_source_address_does_not_dodge_the_limit(sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(policy("rateLimit", requests=1, per="1h", by="sourceIP"), app=serve().address)
    with proxy.client() as client:
        assert client.get("/", x_forwarded_for="1.1.1.1").status == 200
        assert client.get("/", x_forwarded_for="2.2.2.2").status == 429


def test_a_reload_resets_no_limit(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    proxy = sidecar(policy("rateLimit", requests=3, per="1h"), app=app.address)
    with proxy.client() as client:
        assert [client.request(GET).status for _ in range(2)] == [200, 200]
        proxy.reconfigure(policy("rateLimit", requests=3, per="1h"), route("other", hosts=["other"]))
        assert [client.request(GET).status for _ in range(2)] == [200, 429]


def test_circuit_breaker_refuses_at_once(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve(after(1))
    breakers = {"requests": 2, "connections": 2, "pending": 0}
    proxy = sidecar(upstream("pool", app.address, breakers=breakers), route("all", upstream="pool"))
    with proxy.client() as first, proxy.client() as second, proxy.client() as third:
        first.send(GET)
        second.send(GET)
        app.wait_for_requests(2)
        answer = third.request(GET)
        assert (answer.status, answer["x-l7proxy-error"]) == (503, "overflow")
        assert "connection_limit_reached" in answer["proxy-status"]
        assert (first.read().status, second.read().status) == (200, 200)
