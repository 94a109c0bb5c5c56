"""`/tap`: requests as they end, one JSON object a line, for as long as somebody reads and at most for a while."""

import time
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol

import msgspec
from msgspec import Struct
from starlette.responses import Response

from l7proxy.admin.declare import Receive, Scope, Send
from l7proxy.proxy.tap import Batch, Tapped, Wanted

NDJSON = "application/x-ndjson"

ALIVE = 10.0
"""Seconds without a request after which a line says that the tap still looks."""

MOST = 8
"""Taps at a time."""


Event = Literal["begin", "waiting", "dropped", "end"]


class Note(Struct):
    """A line about the tap itself: how many requests have ended since it began, were told of, and were left out."""

    event: Event
    seen: int = 0
    told: int = 0
    dropped: int = 0
    why: str = ""


CONTENT = {NDJSON: (Tapped, Note)}


class Source(Protocol):
    """Where the lines of one tap come from."""

    async def take(self, seconds: float) -> Batch:
        """Returns what there is to tell, once there is something or after some seconds."""

    def close(self) -> None:
        """Looks no longer."""


class Tapping(Response):
    """The answer: notes and requests. It counts as one of `open` while it goes on."""

    media_type = NDJSON

    def __init__(self, begin: Callable[[], Awaitable[Source]], wanted: Wanted, open: set["Tapping"]) -> None:
        super().__init__()
        # As long as it goes on.
        del self.headers["content-length"]
        self._begin = begin
        self._wanted = wanted
        self._open = open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._open.add(self)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                source = await self._begin()
                try:
                    await self._tell(source, send)
                finally:
                    source.close()
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._open.discard(self)

    async def _tell(self, source: Source, send: Send) -> None:
        wanted, note = self._wanted, Note("begin")

        async def write(lines: list[bytes], event: Event | None = None) -> None:
            if event is not None:
                note.event = event
                lines = [*lines, msgspec.json.encode(note) + b"\n"]
            await send({"type": "http.response.body", "body": b"".join(lines), "more_body": True})

        last = time.monotonic()
        until = last + wanted.seconds
        await write([], "begin")
        while not note.why:
            batch = await source.take(max(0.0, min(until, last + ALIVE) - time.monotonic()))
            now = time.monotonic()
            lines = batch.lines[: wanted.limit - note.told] if wanted.limit else batch.lines
            note.seen += batch.seen
            note.told += len(lines)
            note.dropped += batch.dropped
            if 0 < wanted.limit <= note.told:
                note.why = "limit"
            elif now >= until:
                note.why = "time"
            event: Event | None = "end" if note.why else "dropped" if batch.dropped else None
            if event is None and now >= last + ALIVE and not lines:
                event = "waiting"
            if event is not None or lines:
                last = now
                await write(lines, event)
