"""ASGI applications on our own server: the admin API, metrics and probes."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, cast
from urllib.parse import unquote_to_bytes

from l7proxy.core.exchange import Exchange
from l7proxy.core.stream import Stream

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_ASGI = {"version": "3.0", "spec_version": "2.4"}


def hosted(app: App) -> Callable[[Exchange], Awaitable[None]]:
    """Returns what serves exchanges by an ASGI application (ASGI 3.0, HTTP)."""

    async def serve(exchange: Exchange) -> None:
        await app(_scope(exchange), _receiver(exchange), _sender(exchange))

    return serve


def _scope(exchange: Exchange) -> Scope:
    return {
        "type": "http",
        "asgi": _ASGI,
        "http_version": exchange.version,
        "method": exchange.method.decode("ascii"),
        "scheme": exchange.scheme.decode("ascii"),
        "path": unquote_to_bytes(exchange.path).decode("utf-8", "replace"),
        "raw_path": exchange.path,
        "query_string": exchange.query,
        "root_path": "",
        "headers": [(b"host", exchange.authority), *exchange.headers],
        "client": exchange.client,
        "server": exchange.server,
        "extensions": {**exchange.extensions, "http.response.trailers": {}},
    }


def _receiver(exchange: Exchange) -> Callable[[], Awaitable[Message]]:
    received = False

    async def receive() -> Message:
        nonlocal received
        if received:
            # The task is cancelled when the client goes away, so there is never a disconnect to tell of.
            await asyncio.Future[None]()
        body = exchange.body
        if type(body) is bytes:
            received = True
            return {"type": "http.request", "body": body, "more_body": False}
        stream = cast(Stream, body)
        data = await stream.read()
        received = stream.drained or not data
        return {"type": "http.request", "body": data, "more_body": not received}

    return receive


def _sender(exchange: Exchange) -> Callable[[Message], Awaitable[None]]:
    head: Message | None = None
    trailers = False

    async def send(message: Message) -> None:
        nonlocal head, trailers
        kind = message["type"]
        if kind == "http.response.start":
            # The head waits for the first body event, so that both leave in one write.
            head = message
            trailers = message.get("trailers", False)
        elif kind == "http.response.body":
            data, more = message.get("body", b""), message.get("more_body", False)
            if head is None:
                await exchange.write(data)
            elif more or trailers:
                await exchange.start(head["status"], list(head["headers"]), data, trailers)
            else:
                await exchange.respond(head["status"], list(head["headers"]), data)
                return
            head = None
            if not more and not trailers:
                await exchange.end()
        elif kind == "http.response.trailers":
            await exchange.end(list(message["headers"]))

    return send
