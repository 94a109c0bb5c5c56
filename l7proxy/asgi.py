"""The proxy as a plain ASGI application, for any server: `l7proxy.asgi:create_app(config)`.

Our own server hands exchanges to the proxy as they are (`docs/decisions.md`); here they are made from ASGI scopes. What
other servers cannot do (upgrades, the address dialled before a redirection) is left out.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from ssl import PEM_cert_to_DER_cert
from typing import Any
from urllib.parse import quote

from l7proxy.config.load import load
from l7proxy.config.model import Model
from l7proxy.core.address import end_of
from l7proxy.core.buffers import BufferAccount, BufferPool
from l7proxy.core.exchange import Exchange
from l7proxy.core.headers import Headers, find, find_all, tokens
from l7proxy.core.message import Body
from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.core.stats import Stats
from l7proxy.core.stream import Stream
from l7proxy.identity.peer import peer_of
from l7proxy.identity.refusal import Refused
from l7proxy.proxy.app import make_app
from l7proxy.proxy.control import Control
from l7proxy.telemetry.facade import Telemetry
from l7proxy.telemetry.log import Log
from l7proxy.wire.fields import DROPPED
from l7proxy.wire.framing import without_named

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Serve = Callable[[Exchange], Awaitable[None]]


def create_app(config: Model | str | Sequence[str], direction: str = "inbound") -> App:
    """Returns the application for a model, or for the YAML files and folders at `config`.

    `direction` is `inbound` or `outbound`. The configuration is compiled at lifespan startup, or with the first request
    where the server has no lifespan. Raises ConfigError.
    """
    model = config if isinstance(config, Model) else load([config] if isinstance(config, str) else config)
    inner: Serve | None = None
    control: Control | None = None

    def start() -> Serve:
        nonlocal inner, control
        stats = Stats()
        control = Control(Telemetry(stats, Log(stats)), model)
        inner = make_app(control.live, direction == "inbound")
        return inner

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            start()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            if control is not None:
                control.close()
                control.telemetry.close()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "http":
            await foreign(inner or start(), scope, receive, send)
        elif scope["type"] == "websocket":
            # These servers end the WebSocket themselves; the proxy passes its bytes on, which only our own server can.
            await receive()
            await send({"type": "websocket.close", "code": 1013})
        else:
            raise NotImplementedError(scope["type"])

    return app


def _peer(tls: Mapping[str, Any] | None) -> Peer:
    """Returns who showed the certificate that the server has verified; nobody for one that names no workload."""
    chain = (tls or {}).get("client_cert_chain")
    if not chain:
        return ANONYMOUS
    try:
        return peer_of(PEM_cert_to_DER_cert(next(iter(chain))))
    except (ValueError, Refused):
        return ANONYMOUS


class ForeignExchange:
    """What can be known of a request under a server that is not ours; see `core.exchange.Exchange`."""

    upgrade: bytes | None = None
    write_now = None
    destination: tuple[str, int] | None = None
    serves: Callable[[bytes], bool] | None = None

    def __init__(self, scope: Scope, body: Body, send: Send, account: BufferAccount) -> None:
        fields: Headers = list(scope["headers"])
        named = {token for value in find_all(fields, b"connection") for token in tokens(value)}
        self.method = scope["method"].encode("ascii")
        self.scheme = scope["scheme"].encode("ascii")
        self.authority = find(fields, b"host") or b""
        self.path: bytes = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
        self.query: bytes = scope["query_string"]
        self.version: str = scope["http_version"]
        own = [(name, value) for name, value in fields if name not in DROPPED]
        self.headers = without_named(own, named)
        self.body = body
        self.account = account
        self.extensions: dict[str, Any] = scope.get("extensions") or {}
        self.peer = _peer(self.extensions.get("tls"))
        self.client: tuple[str, int] | None = end_of(scope.get("client"))
        self.server: tuple[str, int] | None = end_of(scope.get("server"))
        self._trailers = False
        self._send = send

    async def respond(self, status: int, headers: Headers, body: bytes, trailers: Headers | None = None) -> None:
        await self.start(status, headers, body, bool(trailers))
        await self.end(trailers)

    async def start(self, status: int, headers: Headers, data: bytes, trailers: bool = False) -> None:
        self._trailers = trailers and "http.response.trailers" in self.extensions
        await self._send(
            {"type": "http.response.start", "status": status, "headers": headers, "trailers": self._trailers}
        )
        await self.write(data)

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, trailers: Headers | None = None) -> None:
        await self._send({"type": "http.response.body", "body": b""})
        if self._trailers:
            await self._send({"type": "http.response.trailers", "headers": trailers or []})


async def foreign(serve: Serve, scope: Scope, receive: Receive, send: Send) -> None:
    """Serves a scope of another server: reads the body beside it, and ends with the client."""
    none = scope["http_version"] in ("1.0", "1.1") and not any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )
    account = BufferAccount(BufferPool())
    stream = Stream(account=account)
    main = asyncio.current_task()
    gone = False

    async def listen() -> None:
        nonlocal gone
        room = asyncio.Event()
        stream.on_consumed(lambda size: room.set())
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                stream.fail(ConnectionResetError("the client went away"))
                gone = True
                if main is not None:
                    main.cancel()
                return
            stream.feed(message.get("body", b""))
            if not message.get("more_body", False):
                stream.end()
            while stream.above_high_water:
                room.clear()
                await room.wait()

    listener = asyncio.get_running_loop().create_task(listen())
    try:
        await serve(ForeignExchange(scope, b"" if none else stream, send, account))
    except asyncio.CancelledError:
        if not gone:
            raise
    finally:
        listener.cancel()
