"""Metrics on their way out, in small pieces between which requests are served."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from l7proxy.admin.answers import Metric
from l7proxy.admin.declare import JSON
from l7proxy.core.stats import LATENCY_BUCKETS, Family, Histogram, Stats
from l7proxy.telemetry.prometheus import OPENMETRICS, TEXT, render, wants_openmetrics

CHUNK = 64 * 1024
"""Bytes that leave in one write."""

CONTENT = {TEXT: str, OPENMETRICS: str}
JSON_CONTENT = {JSON: dict[str, Metric]}
"""The formats of metrics, as endpoints declare them."""

_PIECE = 20
"""Series of JSON in one piece: about 0.1 ms."""


def exposition(stats: Stats, target: Mapping[str, str], request: Request) -> Response:
    """Returns the metrics in the text format that the request prefers."""
    openmetrics = wants_openmetrics(request.headers.get("accept", ""))
    pieces = _spread(piece.encode() for piece in render(stats, target, openmetrics))
    headers = {"content-type": OPENMETRICS if openmetrics else TEXT, "vary": "accept, accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        pieces = _gzip(pieces)
    return StreamingResponse(_chunks(pieces), headers=headers)


async def reference(stats: Stats, target: Mapping[str, str], request: Request) -> Response:
    """Returns the same by the OTel SDK's own exporter, to compare: it takes fifteen times as long, in a thread."""

    def text(openmetrics: bool) -> bytes:
        from l7proxy.telemetry.otel import Exposition

        return Exposition(stats, target).render(openmetrics)

    openmetrics = wants_openmetrics(request.headers.get("accept", ""))
    body = await asyncio.to_thread(text, openmetrics)
    return Response(body, headers={"content-type": OPENMETRICS if openmetrics else TEXT, "vary": "accept"})


def as_object(stats: Stats, prefixes: tuple[str, ...]) -> Response:
    """Returns the metrics whose names begin with one of `prefixes` as JSON, one line a series."""
    return StreamingResponse(_chunks(_spread(_lines(stats, prefixes))), media_type=JSON)


def _lines(stats: Stats, prefixes: tuple[str, ...]) -> Iterator[bytes]:
    for refresh in stats.refresh:
        refresh()
    encode = msgspec.json.Encoder(enc_hook=str).encode
    start = b"{\n"
    for family in stats:
        if not family.name.startswith(prefixes):
            continue
        head: dict[str, object] = {"kind": family.kind, "help": family.help}
        if family.kind == "histogram":
            head["bounds"] = LATENCY_BUCKETS
        yield start + b'%b: {%b, "series": [' % (encode(family.name), encode(head)[1:-1])
        yield from _series(family)
        yield b"]}"
        start = b",\n"
    yield b"\n}\n" if start != b"{\n" else b"{}\n"


def _series(family: Family) -> Iterator[bytes]:
    piece: list[bytes] = []
    for index, (labels, metric) in enumerate(list(family.children.items())):
        if isinstance(metric, Histogram):
            values: dict[str, object] = {"count": metric.count, "sum": metric.sum, "buckets": metric.buckets}
        else:
            values = {"value": metric.value}
        piece.append(
            (b",\n  " if index else b"\n  ") + msgspec.json.encode({"labels": dict(labels), **values}, enc_hook=str)
        )
        if len(piece) == _PIECE:
            yield b"".join(piece)
            piece.clear()
    yield b"".join(piece)


async def _spread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        # Requests that came in meanwhile go first.
        await asyncio.sleep(0)


async def _gzip(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    # The fastest level already makes a fiftieth of such text.
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    async for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


async def _chunks(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    chunk = bytearray()
    async for piece in pieces:
        chunk += piece
        if len(chunk) >= CHUNK:
            yield bytes(chunk)
            chunk.clear()
    yield bytes(chunk)
