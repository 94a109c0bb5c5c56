"""The application of `tests.support.apps`, with trailers and events beside it."""

import asyncio
from typing import Any

from tests.support.apps import app as plain


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers `/events` one event at a time, as it is asked for more; everything else as the plain application does."""
    if scope["type"] == "http" and scope["path"] == "/events":
        await _events(receive, send)
    elif scope["type"] == "http" and scope["path"] == "/ping-pong":
        await _ping_pong(receive, send)
    else:
        await plain(scope, receive, send)


async def _events(receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(5):
        await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
        await asyncio.sleep(0.3)
    await send({"type": "http.response.body", "body": b""})


async def _ping_pong(receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message.get("body", b"").upper(), "more_body": more})
