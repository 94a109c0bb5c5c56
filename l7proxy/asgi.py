"""The proxy as a plain ASGI application, for any server: `l7proxy.asgi:create_app(config)`.

Our own server passes an `Exchange` with each request. Under others this module makes one from the scope: what those
cannot do (upgrades, the address dialled before a redirection, a peer without the ASGI `tls` extension) is left out.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ssl import PEM_cert_to_DER_cert
from typing import Any

from l7proxy.config.load import load
from l7proxy.config.model import Model
from l7proxy.core.headers import HOP_BY_HOP, Headers, find, find_all
from l7proxy.core.message import Body
from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.core.stats import Stats
from l7proxy.core.stream import HIGH_WATER, Stream
from l7proxy.identity.peer import peer_of
from l7proxy.identity.refusal import Refused
from l7proxy.proxy.app import Receive, Scope, Send, make_app
from l7proxy.proxy.control import Control
from l7proxy.telemetry.facade import Telemetry
from l7proxy.telemetry.log import Log

App = Callable[[Scope, Receive, Send], Awaitable[None]]


def create_app(config: Model | str | Sequence[str], direction: str = "inbound") -> App:
    """Returns the application for a model, or for the YAML files and folders at `config`.

    `direction` is `inbound` or `outbound`. The configuration is compiled at lifespan startup, or with the first request
    where the server has no lifespan. Raises ConfigError.
    """
    model = config if isinstance(config, Model) else load([config] if isinstance(config, str) else config)
    inner: App | None = None
    control: Control | None = None

    def start() -> App:
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

    def __init__(self, scope: Scope, body: Body) -> None:
        self.authority = find(scope["headers"], b"host") or b""
        named = {token.strip().lower() for value in find_all(scope["headers"], b"connection")
                 for token in value.split(b",")}  # fmt: skip
        self.headers: Headers = [
            (name, value)
            for name, value in scope["headers"]
            if name != b"host" and name not in HOP_BY_HOP and name not in named
        ]
        self.body = body
        self.peer = _peer((scope.get("extensions") or {}).get("tls"))
        self.upgrade: bytes | None = None
        self.destination: tuple[str, int] | None = None
        self.serves: Callable[[bytes], bool] | None = None


async def foreign(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Runs the application on a scope of another server: reads the body beside it, and ends it with the client."""
    headers = scope["headers"]
    none = scope["http_version"] in ("1.0", "1.1") and not any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers
    )
    stream = Stream()
    exchange = ForeignExchange(scope, b"" if none else stream)
    extensions: dict[str, Any] = {**(scope.get("extensions") or {}), "l7proxy": exchange}
    scope = {**scope, "extensions": extensions, "raw_path": scope.get("raw_path") or scope["path"].encode()}
    trailers_too = "http.response.trailers" in extensions
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
            while stream.size > HIGH_WATER:
                room.clear()
                await room.wait()

    async def reply(message: Any) -> None:
        if message["type"] == "http.response.trailers" and not trailers_too:
            return
        if message["type"] == "http.response.start" and not trailers_too:
            message = {**message, "trailers": False}
        await send(message)

    listener = asyncio.get_running_loop().create_task(listen())
    try:
        await app(scope, receive, reply)
    except asyncio.CancelledError:
        if not gone:
            raise
    finally:
        listener.cancel()
