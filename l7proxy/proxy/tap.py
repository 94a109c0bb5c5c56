"""Requests as they end, told to operators who look on; while nobody does, a request pays for reading one attribute."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from l7proxy.core.expanded import encoded
from l7proxy.core.headers import Headers
from l7proxy.core.message import Request, Response
from l7proxy.core.stats import Stats
from l7proxy.proxy.snapshot import Live
from l7proxy.telemetry.access import Entry, Record, record

PENDING = 1024 * 1024
"""Bytes of lines that may wait for a reader; requests that end meanwhile are left out, and counted."""

GATHER = 0.05
"""Seconds that a line may wait for others, so that a busy sidecar does not write each by itself."""

HIDDEN = "[hidden]"
"""What is told in place of a value that may be a secret."""

HARMLESS = frozenset(
    b"accept accept-encoding accept-language accept-ranges age allow cache-control content-encoding content-language "
    b"content-length content-range content-type date etag expires grpc-accept-encoding grpc-encoding grpc-status "
    b"grpc-timeout if-match if-modified-since if-none-match if-unmodified-since last-modified proxy-status range "
    b"ratelimit-limit ratelimit-remaining ratelimit-reset retry-after server te traceparent transfer-encoding upgrade "
    b"user-agent vary via x-forwarded-for x-forwarded-host x-forwarded-proto x-l7proxy-error x-request-id".split()
)
"""Fields whose values are told to everybody: no application keeps a secret in them."""

Fields = list[tuple[str, str]]


class Wanted(Struct, frozen=True):
    """Which requests are told of, and how much of each: one of the values of every parameter that is given."""

    direction: Annotated[tuple[Literal["inbound", "outbound"], ...], Meta(description="Which listener took it.")] = ()
    route: Annotated[
        tuple[str, ...], Meta(description="The name of its Route, empty for none.", examples=[["orders-read"]])
    ] = ()
    method: Annotated[tuple[str, ...], Meta(description="Its method.", examples=[["POST", "PUT"]])] = ()
    path: Annotated[tuple[str, ...], Meta(description="What its path begins with.", examples=[["/v1/"]])] = ()
    status: Annotated[
        tuple[Annotated[str, Meta(pattern="^[1-5](xx|[0-9]{2})$")], ...],
        Meta(description="The status of its answer, or the class of it.", examples=[["404", "5xx"]]),
    ] = ()
    peer: Annotated[
        tuple[str, ...],
        Meta(description="The caller's identity, or what it begins with and `*`.", examples=[["spiffe://demo/ns/*"]]),
    ] = ()
    flag: Annotated[tuple[str, ...], Meta(description="Its response flag.", examples=[["UF", "UT"]])] = ()
    headers: Annotated[bool, Meta(description="Whether header fields are told of; most values are hidden.")] = False
    reveal: Annotated[
        tuple[str, ...], Meta(description="A field whose value is not hidden.", examples=[["x-tenant"]])
    ] = ()
    secrets: Annotated[bool, Meta(description="Whether no value is hidden, and the query is told.")] = False
    seconds: Annotated[float, Meta(gt=0, le=3600, description="When to end.")] = 600.0
    limit: Annotated[int, Meta(ge=0, description="After how many requests to end; 0 is any number.")] = 0


class Tapped(Record, omit_defaults=True):
    """One request, as in the access log. `query` and header fields are there as far as they were asked for.

    The fields of the request are those that went to the upstream, after the proxy's own edits.
    """

    query: str | None = None
    request_headers: Fields | None = None
    response_headers: Fields | None = None


class Batch(Struct):
    """What a tap has to tell: lines, and how many requests ended and were left out since the last batch."""

    lines: list[bytes] = []
    seen: int = 0
    dropped: int = 0

    def add(self, other: "Batch") -> None:
        """Puts another batch behind this one."""
        self.lines += other.lines
        self.seen += other.seen
        self.dropped += other.dropped


class Tap:
    """What one operator looks at; made by `Taps.open`, and closed with it."""

    def __init__(self, wanted: Wanted, close: Callable[["Tap"], None]) -> None:
        self._wants = matcher(wanted)
        self._fields = wanted.headers or wanted.secrets or bool(wanted.reveal)
        self._query = wanted.secrets
        self._shows = None if wanted.secrets else HARMLESS | {name.lower().encode() for name in wanted.reveal}
        self._encode = msgspec.json.Encoder(enc_hook=encoded).encode
        self._batch = Batch()
        self._size = 0
        self._some = asyncio.Event()
        self._close = close

    def offer(self, request: Request, response: Response | None, status: int, entry: Entry) -> bool:
        """Tells of a request that ended, if it is wanted; returns False where there was no room for it."""
        batch = self._batch
        batch.seen += 1
        if not self._wants(request, status):
            return True
        if self._size > PENDING:
            batch.dropped += 1
            return False
        line = self._encode(self._tapped(request, response, entry)) + b"\n"
        batch.lines.append(line)
        self._size += len(line)
        self._some.set()
        return True

    async def take(self, seconds: float) -> Batch:
        """Returns what there is to tell, once there is something or after some seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._some.wait()
                await asyncio.sleep(GATHER)
        batch, self._batch, self._size = self._batch, Batch(), 0
        self._some.clear()
        return batch

    def close(self) -> None:
        """Looks no longer."""
        self._close(self)

    def _tapped(self, request: Request, response: Response | None, entry: Entry) -> Record:
        line = record(*entry)
        if not self._fields:
            return line
        tapped = msgspec.convert(line, Tapped, from_attributes=True)
        if self._query:
            tapped.query = request.query.decode("latin-1")
        tapped.request_headers = self._told(request.headers)
        if response is not None:
            tapped.response_headers = self._told(response.headers)
        return tapped

    def _told(self, headers: Headers) -> Fields:
        shows = self._shows
        return [
            (name.decode("latin-1"), value.decode("latin-1") if shows is None or name in shows else HIDDEN)
            for name, value in headers
        ]


class Taps:
    """Everybody who looks at the requests of one process."""

    def __init__(self, live: Live, stats: Stats) -> None:
        self._live = live
        self._open: list[Tap] = []
        self._dropped = stats.counter("l7proxy_tap_dropped_total", "Requests that a tap left out for a slow reader")

    def open(self, wanted: Wanted) -> Tap:
        """Begins to look."""
        tap = Tap(wanted, self._end)
        self._open.append(tap)
        self._live.tap = self._offer
        return tap

    def _end(self, tap: Tap) -> None:
        if tap in self._open:
            self._open.remove(tap)
        if not self._open:
            self._live.tap = None

    def _offer(self, request: Request, response: Response | None, status: int, entry: Entry) -> None:
        for tap in self._open:
            if not tap.offer(request, response, status, entry):
                self._dropped.value += 1


def matcher(wanted: Wanted) -> Callable[[Request, int], bool]:
    """Returns what tells whether a request that ended with a status is wanted."""
    directions = [direction == "inbound" for direction in wanted.direction]
    methods = [method.upper().encode() for method in wanted.method]
    paths = tuple(path.encode() for path in wanted.path)
    statuses = {status for status in wanted.status if status.isdigit()}
    classes = {status[0] for status in wanted.status if not status.isdigit()}
    checks: list[Callable[[Request, int], bool]] = []
    if directions:
        checks.append(lambda request, _: request.inbound in directions)
    if wanted.route:
        checks.append(lambda request, _: (request.route.name if request.route is not None else "") in wanted.route)
    if methods:
        checks.append(lambda request, _: request.method in methods)
    if paths:
        checks.append(lambda request, _: request.path.startswith(paths))
    if wanted.status:
        checks.append(lambda _, status: str(status) in statuses or str(status)[:1] in classes)
    if wanted.peer:
        checks.append(lambda request, _: _any_like(request.peer.identity, wanted.peer))
    if wanted.flag:
        checks.append(lambda request, _: request.flags in wanted.flag)
    return lambda request, status: all(check(request, status) for check in checks)


def _any_like(identity: str, wanted: Sequence[str]) -> bool:
    return any(
        identity.startswith(pattern[:-1]) if pattern.endswith("*") else identity == pattern for pattern in wanted
    )
