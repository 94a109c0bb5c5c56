"""A gRPC service without generated code, and channels to call it: messages are plain bytes."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc

from tests.support.net import Address, free_address

LARGE = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class GrpcServer:
    """Serves `/test.Echo/*` on an event loop of its own thread; `seen` keeps what the service noticed."""

    def __init__(self, *options: tuple[str, Any]) -> None:
        self.address: Address = free_address()
        self.seen: list[tuple[str, Any]] = []
        self.cancelled = threading.Event()
        self._options = (*LARGE, ("grpc.so_reuseport", 0), *options)
        self._loop = asyncio.new_event_loop()
        self._server: Any = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.run(self._start())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def close(self) -> None:
        """Stops the server."""
        self.run(self._server.stop(None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _start(self) -> None:
        self._server = grpc.aio.server(options=self._options)
        self._server.add_generic_rpc_handlers((_Handler(self),))
        self._server.add_insecure_port(f"{self.address[0]}:{self.address[1]}")
        await self._server.start()

    # The service.

    async def unary(self, message: bytes, context: Any) -> bytes:
        self.seen.append(("metadata", dict(context.invocation_metadata())))
        remaining = context.time_remaining()
        self.seen.append(("remaining", remaining))
        if message == b"fail":
            context.set_trailing_metadata((("x-why", "because"), ("why-bin", b"\x00\xff")))
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now: 100% ün")
        if message == b"hang":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        await context.send_initial_metadata((("x-first", "1"), ("first-bin", b"\xfe\x00")))
        context.set_trailing_metadata((("x-last", "2"), ("last-bin", b"\x01\xff")))
        return message

    async def numbers(self, message: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(int(message)):
            yield b"%d" % number

    async def total(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        size = 0
        async for message in messages:
            size += len(message)
        return b"%d" % size

    async def echo(self, messages: AsyncIterator[bytes], context: Any) -> None:
        try:
            while (message := await context.read()) is not grpc.aio.EOF:
                await context.write(message)
        finally:
            # grpcio shows a cancellation as an end or as CancelledError, as it happens.
            self.cancelled.set()

    async def stop_early(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")
        return b""


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, server: GrpcServer) -> None:
        self._methods = {
            "/test.Echo/Unary": grpc.unary_unary_rpc_method_handler(server.unary),
            "/test.Echo/Numbers": grpc.unary_stream_rpc_method_handler(server.numbers),
            "/test.Echo/Total": grpc.stream_unary_rpc_method_handler(server.total),
            "/test.Echo/Echo": grpc.stream_stream_rpc_method_handler(server.echo),
            "/test.Echo/StopEarly": grpc.stream_unary_rpc_method_handler(server.stop_early),
        }

    def service(self, details: Any) -> Any:
        return self._methods.get(details.method)


class Calls:
    """The service's methods on one channel; use within `async with`."""

    def __init__(self, address: Address, *options: tuple[str, Any]) -> None:
        # Channels to one address would otherwise share a connection, and its fate, across tests.
        isolated = ("grpc.use_local_subchannel_pool", 1)
        self.channel = grpc.aio.insecure_channel(f"{address[0]}:{address[1]}", options=(*LARGE, isolated, *options))
        self.unary = self.channel.unary_unary("/test.Echo/Unary")
        self.numbers = self.channel.unary_stream("/test.Echo/Numbers")
        self.total = self.channel.stream_unary("/test.Echo/Total")
        self.echo = self.channel.stream_stream("/test.Echo/Echo")
        self.stop_early = self.channel.stream_unary("/test.Echo/StopEarly")
        self.missing = self.channel.unary_unary("/test.Nothing/Here")

    async def __aenter__(self) -> "Calls":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.channel.close()


def run(test: Callable[[Calls], Coroutine[Any, Any, None]], address: Address, *options: tuple[str, Any]) -> None:
    """Runs a test against the service at `address`, within a minute."""

    async def main() -> None:
        async with asyncio.timeout(60), Calls(address, *options) as calls:
            await test(calls)

    asyncio.run(main())
