"""The naive stock stack: what one writes first, a Hypercorn app that forwards with httpx.AsyncClient."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

Message = dict[str, Any]
HOP_BY_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"te", b"trailer"}
client = httpx.AsyncClient(base_url=os.environ["BACKEND"], limits=httpx.Limits(max_connections=64), timeout=5)


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Forwards each request and streams the answer back."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    headers = [(name, value) for name, value in scope["headers"] if name not in HOP_BY_HOP]
    request = client.build_request(scope["method"], scope["path"], headers=headers, content=body)
    response = await client.send(request, stream=True)
    kept = [(name, value) for name, value in response.headers.raw if name.lower() not in HOP_BY_HOP]
    await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
    async for chunk in response.aiter_raw():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
