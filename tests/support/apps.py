"""An ASGI application for uvicorn, the ordinary Python service that the sidecar stands beside."""

import asyncio
import json
from typing import Any


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers by path (`_KINDS`: `/bytes/N`, `/slow/MS`, `/status/N`...); any other path gets what came, as JSON."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await _websocket(receive, send)
    else:
        _, kind, *rest = scope["path"].split("/")
        await _KINDS.get(kind, _echo)(scope, receive, send, int(rest[0]) if rest and rest[0].isdigit() else 0)


async def _count(scope: Any, receive: Any, send: Any, size: int) -> None:
    total, more = 0, True
    while more:
        message = await receive()
        total += len(message.get("body", b""))
        more = message.get("more_body", False)
    await _answer(send, str(total).encode())


async def _slow(scope: Any, receive: Any, send: Any, size: int) -> None:
    await asyncio.sleep(size / 1000)
    await _answer(send, b"slow")


async def _stream(scope: Any, receive: Any, send: Any, size: int) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(size):
        await send({"type": "http.response.body", "body": f"{number}\n".encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _status(scope: Any, receive: Any, send: Any, size: int) -> None:
    await _answer(send, b"" if size in (204, 304) else b"x", size)


async def _echo(scope: Any, receive: Any, send: Any, size: int) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    said = {
        "method": scope["method"],
        "target": scope["raw_path"].decode() + (f"?{query.decode()}" if (query := scope["query_string"]) else ""),
        "headers": [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]],
        "body": body.decode("latin-1"),
    }
    await _answer(send, json.dumps(said).encode(), kind="application/json")


async def _answer(send: Any, body: bytes, status: int = 200, kind: str = "text/plain") -> None:
    headers = [(b"content-type", kind.encode())]
    if status not in (204, 304):
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _bytes(scope: Any, receive: Any, send: Any, size: int) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(size).encode())]})
    block = bytes(range(256)) * 256
    while size > 0:
        piece = block[:size]
        size -= len(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _lifespan(receive: Any, send: Any) -> None:
    kind = ""
    while kind != "lifespan.shutdown":
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})


async def _websocket(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})


_KINDS = {"bytes": _bytes, "count": _count, "slow": _slow, "status": _status, "stream": _stream}
