"""A real gRPC application, for the proof that calls pass: `python -m bench.parts.grpc_app PORT`."""

import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import grpc

METHOD = "/proof.Echo/Unary"
TRAILER = ("x-bench-trailer", "seen")


def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Returns the message as it came, or fails with NOT_FOUND when it is empty."""
    context.set_trailing_metadata((TRAILER,))
    if not request:
        context.abort(grpc.StatusCode.NOT_FOUND, "nothing to echo")
    return request


def serve(port: int) -> None:
    """Listens on the loopback interface until the process ends."""
    handlers: Iterable[grpc.GenericRpcHandler] = (
        grpc.method_handlers_generic_handler("proof.Echo", {"Unary": grpc.unary_unary_rpc_method_handler(echo)}),
    )
    server = grpc.server(ThreadPoolExecutor(2), handlers)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
