"""The access log: one line for each request, encoded in batches beside the requests' own path."""

import asyncio
import time
from functools import lru_cache
from typing import Any, Literal

import msgspec

from l7proxy.core.expanded import encoded
from l7proxy.core.message import Request
from l7proxy.core.stats import Stats
from l7proxy.telemetry.lines import LineWriter

BATCH = 64
"""Records encoded in one go: about 0.15 ms, so that the requests that wait for it do not notice."""

PERIOD = 0.1
"""Seconds after which a record is at the writer, at the latest."""

MAX_CHUNK = 256 * 1024
"""Encoded bytes that are handed over before the period is over."""

_MILLISECONDS = [f".{number:03d}Z" for number in range(1000)]

Mark = Literal["request", "tunnel_open", "tunnel_end"]


class Record(msgspec.Struct, gc=False):
    """One line of the JSON format; times are milliseconds, and null where a request did not come that far.

    `queue_ms` runs from the request's arrival to the start of its last attempt, `connect_ms` is what that attempt
    waited for a connection, `first_byte_ms` runs from arrival to the response head. `detail` says what the client is
    not told, such as the rule that denied the request and where it stands.
    """

    time: str
    event: Mark
    direction: str
    method: str
    scheme: str
    authority: str
    path: str
    protocol: str
    route: str
    status: int
    grpc_status: int | None
    flags: str
    code: str
    detail: str
    bytes_in: int
    bytes_out: int
    duration_ms: float
    queue_ms: float | None
    connect_ms: float | None
    first_byte_ms: float | None
    upstream: str
    endpoint: str
    attempts: int
    peer: str
    source: str
    request_id: str
    trace_id: str
    config_version: str


Entry = tuple[Any, ...]
"""What `take_down` returns: the arguments of `record`, which is what it costs least to keep of a request."""


def take_down(request: Request, status: int, seconds: float, version: str, event: Mark = "request") -> Entry:
    """Returns what is to be known of a request that ended just now, after `seconds`, under a configuration `version`.

    Nothing in it leads back to the request, its bodies or its route.
    """
    route = request.route
    return (
        request.request_id,
        request.trace_id,
        time.time(),
        event,
        request.inbound,
        request.method,
        request.scheme,
        request.authority,
        request.path,
        request.version,
        "" if route is None else route.name,
        status,
        request.grpc_status,
        request.flags,
        request.code,
        request.detail,
        request.bytes_in,
        request.bytes_out,
        seconds,
        request.t_start,
        request.t_sent,
        request.t_connected,
        request.t_head,
        request.upstream,
        request.endpoint,
        request.attempt,
        request.peer.identity,
        request.source,
        version,
        request.forwarded,
        request.tried,
    )


def record(
    request_id: bytes,
    trace_id: bytes,
    epoch: float,
    event: Mark,
    inbound: bool,
    method: bytes,
    scheme: bytes,
    authority: bytes,
    path: bytes,
    protocol: str,
    route: str,
    status: int,
    grpc_status: int,
    flags: str,
    code: str,
    detail: str,
    bytes_in: int,
    bytes_out: int,
    seconds: float,
    start: float,
    sent: float,
    connected: float,
    head: float,
    upstream: str,
    endpoint: str,
    attempts: int,
    peer: str,
    source: str,
    version: str,
    *_: Any,
) -> Record:
    """Returns the line of what was taken down."""
    second = int(epoch)
    return Record(
        _date(second) + _MILLISECONDS[int((epoch - second) * 1000)],
        event,
        "inbound" if inbound else "outbound",
        method.decode("latin-1"),
        scheme.decode("latin-1"),
        authority.decode("utf-8", "replace"),
        path.decode("utf-8", "replace"),
        protocol,
        route,
        status,
        None if grpc_status < 0 else grpc_status,
        flags,
        code,
        detail,
        bytes_in,
        bytes_out,
        milliseconds(seconds),
        milliseconds(sent - start) if sent else None,
        milliseconds(connected - sent) if connected else None,
        milliseconds(head - start) if head else None,
        upstream,
        endpoint,
        attempts,
        peer,
        source,
        request_id.decode("latin-1"),
        trace_id.decode("latin-1"),
        version,
    )


def read(line: bytes) -> Record:
    """Returns what a line of the JSON format says; raises ValueError for anything else."""
    try:
        return msgspec.json.decode(line, type=Record)
    except msgspec.MsgspecError as error:
        raise ValueError(f"this is no line of the JSON access log: {error}") from None


@lru_cache(4)
def _date(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def milliseconds(seconds: float) -> float:
    """Returns milliseconds, to the microsecond."""
    return int(seconds * 1e6 + 0.5) / 1e3


class AccessLog:
    """Writes a line for each request to `path`, as JSON or as text.

    Raises OSError when the path cannot be opened.
    """

    def __init__(self, stats: Stats, path: str, format: Literal["json", "text"] = "json") -> None:
        name, help = "l7proxy_access_log_dropped_total", "Access log lines that could not be written"
        dropped = stats.counter(name, help, reason="queue_full")
        self._writer = LineWriter(path, dropped, stats.counter(name, help, reason="write_failed"))
        self._encode = msgspec.json.Encoder(enc_hook=encoded).encode_lines if format == "json" else _text_lines
        self._pending: list[Entry] = []
        self._chunks: list[bytes] = []
        self._lines = 0
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        self.closed = False

    def write(self, entry: Entry) -> None:
        """Writes what was taken down of a request; see `take_down`."""
        pending = self._pending
        pending.append(entry)
        if len(pending) == BATCH:
            asyncio.get_running_loop().call_soon(self._step)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PERIOD, self._tick)

    def reopen(self) -> None:
        """Opens the path anew, after what was logged so far: the old file was moved away."""
        self.flush()
        self._writer.reopen()

    def flush(self) -> None:
        """Hands everything to the writer."""
        while self._pending:
            self._batch()
        self._hand_over()

    def close(self, timeout: float = 0.0) -> bool:
        """Flushes and ends the writer; says whether everything was written within `timeout` seconds.

        Requests that end later are still logged.
        """
        self.closed = True
        self.flush()
        return self._writer.close(timeout)

    def _tick(self) -> None:
        self._timer = None
        self._due = True
        self._step()

    def _step(self) -> None:
        """Encodes one batch and comes back for the next, so that other work goes on between them."""
        pending = self._pending
        if pending:
            self._batch()
        if len(pending) >= BATCH or (self._due and pending):
            asyncio.get_running_loop().call_soon(self._step)
        elif self._due or self._size > MAX_CHUNK:
            self._due = False
            self._hand_over()

    def _batch(self) -> None:
        records = [record(*entry) for entry in self._pending[:BATCH]]
        del self._pending[:BATCH]
        data = self._encode(records)
        self._chunks.append(data)
        self._lines += len(records)
        self._size += len(data)

    def _hand_over(self) -> None:
        if self._lines:
            self._writer.write(b"".join(self._chunks), self._lines)
            self._chunks.clear()
            self._lines = self._size = 0


_quote = msgspec.json.Encoder(enc_hook=encoded).encode


def _text_lines(records: list[Record]) -> bytes:
    """Encodes the text format; what a client chose is quoted, so that it cannot forge a line."""
    return b"".join(map(_text_line, records))


def _text_line(record: Record) -> bytes:
    version = f"HTTP/{record.protocol}"
    request = _quote(f"{record.method} {record.path} {version}").decode()
    target = f"{record.upstream or '-'} {record.endpoint or '-'}"
    parts = (
        f"[{record.time}] {record.event} {record.direction} {request} {record.status} {record.flags or '-'}"
        f" {record.code or '-'} {record.bytes_in} {record.bytes_out} {record.duration_ms} {target}"
        f" {_quote(record.authority).decode()} {record.route or '-'} {record.peer or '-'} {record.source or '-'}"
        f" {_quote(record.request_id).decode()} {record.trace_id or '-'}\n"
    )
    return parts.encode()
