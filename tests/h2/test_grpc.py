"""A real gRPC client and a real gRPC server with the sidecar between them: nobody can tell."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from tests.conftest import StartSidecar
from tests.h2.grpc_service import Calls, GrpcServer, run
from tests.h2.raw import RawServer
from tests.support.net import free_address, wait_for
from tests.support.server import Connection, Server
from tests.support.sidecar import Document, Sidecar, route, upstream
from tests.wire.h2_peer import END_HEADERS, HEADERS, block, data, frame, headers, rst_stream

Code = grpc.StatusCode


@pytest.fixture(scope="module")
def service() -> Iterator[GrpcServer]:
    server = GrpcServer()
    yield server
    server.close()


def to_echo(name: str, policies: dict[str, Any]) -> Document:
    return route(name, hosts=[f"{name}.test"], upstream="echo", policies=policies)


@pytest.fixture(scope="module")
def proxy(shared_sidecar: StartSidecar, service: GrpcServer) -> Sidecar:
    return shared_sidecar(
        upstream("echo", service.address, protocol="http2", breakers={"requests": 10_000}),
        route(
            "denied", hosts=["denied.test"], upstream="echo", policies={"authorization": {"deny": [{"paths": ["*"]}]}}
        ),
        route(
            "limited", hosts=["limited.test"], upstream="echo", policies={"rateLimit": {"requests": 1, "per": "60s"}}
        ),
        route("slow", hosts=["slow.test"], upstream="echo", policies={"timeout": {"request": "200ms"}}),
        route("echo", matches=[{"path": {"prefix": "/test.Echo"}}], upstream="echo"),
        app=free_address(),
    )


@pytest.fixture(params=["through the sidecar", "directly"])
def address(request: pytest.FixtureRequest, proxy: Sidecar, service: GrpcServer) -> Any:
    """The same assertions hold with the sidecar and without it."""
    return proxy.inbound if request.param == "through the sidecar" else service.address


def test_unary_calls_carry_messages_and_metadata_both_ways(address: Any, service: GrpcServer) -> None:
    async def test(calls: Calls) -> None:
        service.seen.clear()
        call = calls.unary(b"hello", metadata=(("x-key", "value"), ("key-bin", b"\x00\x01\xfe\xff")))
        assert await call == b"hello"
        first = dict(await call.initial_metadata())
        assert (first["x-first"], first["first-bin"]) == ("1", b"\xfe\x00")
        last = dict(await call.trailing_metadata())
        assert (last["x-last"], last["last-bin"]) == ("2", b"\x01\xff")
        assert await call.code() == Code.OK
        (seen,) = [value for key, value in service.seen if key == "metadata"]
        assert (seen["x-key"], seen["key-bin"]) == ("value", b"\x00\x01\xfe\xff")

    run(test, address)


def test_an_error_carries_its_status_message_and_trailers(address: Any) -> None:
    async def test(calls: Calls) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await calls.unary(b"fail")
        assert error.value.code() == Code.FAILED_PRECONDITION
        assert error.value.details() == "not now: 100% ün"
        trailers = dict(error.value.trailing_metadata())
        assert (trailers["x-why"], trailers["why-bin"]) == ("because", b"\x00\xff")

    run(test, address)


def test_a_trailers_only_answer_is_one(address: Any) -> None:
    async def test(calls: Calls) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await calls.channel.unary_unary("/test.Echo/Missing")(b"")
        assert error.value.code() == Code.UNIMPLEMENTED

    run(test, address)


def test_streams_of_either_side_pass(address: Any) -> None:
    async def test(calls: Calls) -> None:
        assert [message async for message in calls.numbers(b"200")] == [b"%d" % number for number in range(200)]

        async def many() -> AsyncIterator[bytes]:
            for _ in range(50):
                yield b"x" * 50_000

        assert await calls.total(many()) == b"2500000"

    run(test, address)


def test_ping_pong_where_each_answer_comes_before_the_next_question(address: Any) -> None:
    async def test(calls: Calls) -> None:
        call = calls.echo()
        for number in range(100):
            await call.write(b"%d" % number)
            assert await call.read() == b"%d" % number
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF
        assert await call.code() == Code.OK

    run(test, address)


def test_messages_of_eight_mebibytes_and_of_nothing_pass(address: Any) -> None:
    async def test(calls: Calls) -> None:
        big = bytes(range(256)) * (8 << 12)
        assert await calls.unary(big) == big
        assert await calls.unary(b"") == b""

    run(test, address)


def test_an_early_end_stops_the_client(address: Any) -> None:
    async def test(calls: Calls) -> None:
        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 1000
                # grpcio takes an end that finds a message half sent for an error of its own.
                await asyncio.sleep(0.1)

        with pytest.raises(grpc.aio.AioRpcError) as error:
            await calls.stop_early(endless())
        assert (error.value.code(), error.value.details()) == (Code.RESOURCE_EXHAUSTED, "enough")

    run(test, address)


def test_a_deadline_reaches_the_service_and_holds(address: Any, service: GrpcServer) -> None:
    async def test(calls: Calls) -> None:
        service.seen.clear()
        await calls.unary(b"x", timeout=20)
        ((_, remaining),) = [pair for pair in service.seen if pair[0] == "remaining"]
        assert 15 < remaining <= 20.1
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await calls.unary(b"hang", timeout=0.3)
        assert error.value.code() == Code.DEADLINE_EXCEEDED

    run(test, address)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_cancellation_reaches_the_service(streaming: bool, address: Any, service: GrpcServer) -> None:
    async def test(calls: Calls) -> None:
        service.cancelled.clear()
        call: Any
        if streaming:
            call = calls.echo()
            await call.write(b"1")
            assert await call.read() == b"1"
        else:
            call = calls.unary(b"hang")
            await asyncio.sleep(0.2)
        call.cancel()
        assert await asyncio.to_thread(service.cancelled.wait, 5)

    run(test, address)


def test_thousands_of_calls_at_once_on_one_connection(proxy: Sidecar) -> None:
    async def test(calls: Calls) -> None:
        answers = await asyncio.gather(*(calls.unary(b"%d" % number) for number in range(3000)))
        assert answers == [b"%d" % number for number in range(3000)]

    before = proxy.metrics()("l7proxy_downstream_accepted_total", listener="inbound")
    run(test, proxy.inbound)
    assert proxy.metrics()("l7proxy_downstream_accepted_total", listener="inbound") == before + 1


def test_a_thousand_open_streams_talk_in_turn(proxy: Sidecar) -> None:
    async def test(calls: Calls) -> None:
        streams = [calls.echo() for _ in range(900)]
        for stream in streams:
            await stream.write(b"a")
        for stream in reversed(streams):
            assert await stream.read() == b"a"
            await stream.done_writing()
        for stream in streams:
            assert await stream.code() == Code.OK

    run(test, proxy.inbound)


def authority(name: str) -> tuple[str, str]:
    return ("grpc.default_authority", name)


@pytest.mark.parametrize(
    ("host", "code"),
    [("denied.test", Code.PERMISSION_DENIED), ("slow.test", Code.DEADLINE_EXCEEDED)],
)
def test_what_the_proxy_answers_is_a_grpc_status(host: str, code: Code, proxy: Sidecar) -> None:
    async def test(calls: Calls) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await calls.unary(b"hang")
        assert error.value.code() == code
        assert "x-l7proxy-error" in dict(error.value.initial_metadata()) | dict(error.value.trailing_metadata())

    run(test, proxy.inbound, authority(host))


def test_a_rate_limit_is_resource_exhausted_and_an_unknown_route_unimplemented(proxy: Sidecar) -> None:
    async def test(calls: Calls) -> None:
        await calls.unary(b"x")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await calls.unary(b"x")
        assert error.value.code() == Code.RESOURCE_EXHAUSTED

    run(test, proxy.inbound, authority("limited.test"))

    async def unknown(calls: Calls) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await calls.missing(b"x")
        assert error.value.code() == Code.UNIMPLEMENTED

    run(unknown, proxy.inbound)


def test_an_upstream_that_is_away_is_unavailable(sidecar: StartSidecar) -> None:
    proxy = sidecar(upstream("away", free_address(), protocol="http2"), route("away", upstream="away"))

    async def test(calls: Calls) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await calls.unary(b"x")
        assert error.value.code() == Code.UNAVAILABLE

    run(test, proxy.inbound)


@pytest.mark.parametrize(
    ("reset", "code"),
    [(8, Code.CANCELLED), (11, Code.RESOURCE_EXHAUSTED), (12, Code.PERMISSION_DENIED), (2, Code.INTERNAL)],
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_reset_stream_is_the_status_that_it_stands_for(
    reset: int, code: Code, begun: bool, sidecar: StartSidecar, serve: Any
) -> None:
    def script(connection: Connection) -> None:
        server = RawServer(connection)
        stream = server.request()
        if begun:
            server.send(headers(stream, [(b":status", b"200"), (b"content-type", b"application/grpc")], end=False))
            server.send(data(stream, b"\0\0\0\0\1x"))
        server.send(rst_stream(stream, reset))
        server.rest()

    proxy = sidecar(upstream("u", serve(script).address, protocol="http2"), route("u", upstream="u"))

    async def test(calls: Calls) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await calls.unary(b"x")
        assert error.value.code() == code

    run(test, proxy.inbound)


def test_statuses_show_in_metrics_and_log(sidecar: StartSidecar, service: GrpcServer) -> None:
    proxy = sidecar(upstream("echo", service.address, protocol="http2"), route("echo", upstream="echo"))

    async def test(calls: Calls) -> None:
        await calls.unary(b"x")
        with pytest.raises(grpc.aio.AioRpcError):
            await calls.unary(b"fail")
        call = calls.unary(b"hang")
        await asyncio.sleep(0.2)
        call.cancel()

    run(test, proxy.inbound)
    lines = proxy.log_lines(3)
    assert sorted(line["grpc_status"] for line in lines) == [0, 1, 9]
    assert {line["status"] for line in lines[:2]} == {200}
    samples = proxy.metrics()
    for status in ("OK", "FAILED_PRECONDITION", "CANCELLED"):
        wait_for(lambda status=status: _count(proxy, status) == 1, 5, f"{status} was not counted: {samples.text}")


def _count(proxy: Sidecar, status: str) -> float:
    return proxy.metrics()("http_server_request_duration_seconds_count", rpc_response_status_code=status)


def test_the_remaining_time_is_forwarded_and_te_goes_along(sidecar: StartSidecar) -> None:
    seen: list[dict[str, str]] = []

    def script(connection: Connection) -> None:
        server = RawServer(connection)
        stream = server.request()
        seen.extend(server.reader.heads[stream])
        trailers = [(b"grpc-status", b"0")]
        server.send(headers(stream, [(b":status", b"200"), (b"content-type", b"application/grpc")], end=False))
        server.send(data(stream, b"\0\0\0\0\0") + frame(HEADERS, END_HEADERS | 1, stream, block(trailers)))
        server.rest()

    with Server(script) as app:
        proxy = sidecar(upstream("u", app.address, protocol="http2"), route("u", upstream="u"))

        async def test(calls: Calls) -> None:
            assert await calls.unary(b"x", timeout=10) == b""

        run(test, proxy.inbound)
    (head,) = seen
    assert head["te"] == "trailers"
    assert head["content-type"] == "application/grpc"
    assert 8_000_000 < int(head["grpc-timeout"].removesuffix("u")) <= 10_000_000
