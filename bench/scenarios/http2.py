"""HTTP/2 from the client: to an HTTP/1.1 backend, and gRPC all the way."""

from collections.abc import Sequence

import grpc

from bench.compare import Comparison, Entry
from bench.contenders import ENVOY, HAPROXY, L7PROXY, NGINX, Proxy, Setup
from bench.load import Load, h2load
from bench.model import Goal
from bench.parts.grpc_app import METHOD, TRAILER
from bench.process import BenchError

H2C = Setup(http2=True)


def small(proxy: Proxy, seconds: int) -> Load:
    """Asks for 1 KB over 4 connections of 8 streams."""
    return h2load(proxy.url("/1k"), 4, seconds, streams=8)


def unary(proxy: Proxy, seconds: int) -> Load:
    """Calls a unary method over 4 connections of 8 streams."""
    body = str(proxy.lab.folder / "grpc-request")
    options = ["-d", body, "-H", "content-type: application/grpc", "-H", "te: trailers"]
    return h2load(proxy.url("/bench.Echo/Unary"), 4, seconds, streams=8, options=options)


def grpc_client_agrees(proxy: Proxy) -> Sequence[str]:
    """Proves with grpcio on both ends that messages, trailers and statuses pass."""
    with grpc.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:
        call = channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=bytes)
        answer, done = call.with_call(b"hello", timeout=5)
        if answer != b"hello" or TRAILER not in [tuple(pair) for pair in done.trailing_metadata()]:
            raise BenchError(f"{proxy.label}: a gRPC call came back as {answer!r} {done.trailing_metadata()}")
        try:
            call(b"", timeout=5)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise BenchError(f"{proxy.label}: a gRPC failure came back as {error}") from error
        else:
            raise BenchError(f"{proxy.label}: a gRPC failure was lost")
    return ["a grpcio client gets message, trailers and status of a grpcio server"]


SCENARIOS = (
    Comparison(
        name="h2c",
        title="HTTP/2 (h2c) to HTTP/1.1, 4 connections x 8 streams, 1 KB, features on",
        entries=tuple(Entry(contender, H2C) for contender in (L7PROXY, ENVOY, NGINX, HAPROXY)),
        drive=small,
        goals=(Goal("l7proxy", "envoy", "per_core", 0.6), Goal("l7proxy", "envoy", "rate", 0.6)),
    ),
    Comparison(
        name="grpc",
        title="gRPC unary, 4 connections x 8 streams, features on",
        entries=(Entry(L7PROXY, H2C), Entry(ENVOY, H2C)),
        drive=unary,
        goals=(
            Goal("l7proxy", "envoy", "per_core", 0.5),
            Goal("l7proxy", "envoy", "rate", 0.5),
            Goal("l7proxy", "envoy", "p99", 2.0, at_least=False),
        ),
        check=grpc_client_agrees,
        notes=("The load is answered by nginx with a fixed message and trailers: a grpcio server would be the limit.",),
        unit="calls",
    ),
)
