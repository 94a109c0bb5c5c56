"""HTTP/2 (RFC 9113) as a sans-IO session for either side: bytes in, events out, frames to send collected for one write.

Faults of a stream end that stream (RST_STREAM), faults of the connection end the connection (GOAWAY), and both are
counted with a reason.
"""

from collections.abc import Callable
from typing import TypeVar

from l7proxy.core.headers import Headers
from l7proxy.wire import h2_frames as wire
from l7proxy.wire.h2_control import Control, Fault, check_dependency
from l7proxy.wire.h2_events import (
    RECEIVING,
    SENDING,
    Data,
    Ended,
    Event,
    H2Stream,
    Oversized,
    Refused,
    RequestHead,
    Reset,
    ResponseHead,
    Trailers,
)
from l7proxy.wire.h2_fields import Malformed, RequestFields, ResponseFields, request_of, response_of, trailers_of
from l7proxy.wire.h2_frames import DEFAULT_WINDOW, END_HEADERS, END_STREAM, HEADER, PADDED, WORD, Error
from l7proxy.wire.h2_hpack import Decoder, Field, HpackBomb, HpackError
from l7proxy.wire.h2_limits import H2Limits

_KNOWN_BLOCKS = 64
_KNOWN_BLOCK_SIZE = 512
_FRAMES = 256
"""Frames that are read in one turn of the event loop: tiny ones cost as much as big ones."""
_HEAD = 8
"""Frames that a head counts for: a request is begun for it."""
_SMALL = 1024
"""Bytes of a DATA frame below which it is joined with the one before it."""

T = TypeVar("T")


class Session(Control):
    """One end of a connection.

    `receive` returns the events that bytes make, in order. What the session wants to say itself (acknowledgements,
    window updates, resets) collects with everything else that goes out, so look for output after each call.
    """

    def __init__(self, client: bool, limits: H2Limits) -> None:
        super().__init__(client, limits)
        self.ended = False
        self.over_budget = False
        """Whether `receive` stopped before the last whole frame: call it again, without bytes, in another turn."""
        self.partial_since: float | None = None
        """When the peer began a frame or header section that is not complete yet."""
        self._tail = b""
        self._greeted = client
        self._decoder = Decoder()
        # A header section that waits for its CONTINUATION frames: stream, flags, the parts so far.
        self._block: tuple[int, int, list[bytes]] | None = None
        self._block_size = 0
        # What blocks that left the decoder's table alone were read as, while that table stays the same.
        self._known: dict[tuple[bytes, bool], RequestFields | ResponseFields | Headers] = {}
        self._known_at = 0

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Takes bytes from the peer; `now` is in monotonic seconds, and may be coarse."""
        if self.ended:
            self.over_budget = False
            return []
        self._now = now
        if self._tail:
            data = self._tail + data
        try:
            at = 0
            if not self._greeted:
                if not data.startswith(wire.PREFACE):
                    if not wire.PREFACE.startswith(data):
                        raise Fault(Error.PROTOCOL_ERROR, "preface")
                    self._keep(data, 0)
                    return []
                self._greeted = True
                at = len(wire.PREFACE)
            self._keep(data, self._read_frames(data, at))
            if self._unblocked:
                self._unblocked = False
                if self.waiting:
                    self._events += self.pump()
        except Fault as fault:
            self._end(fault)
        events, self._events = self._events, []
        return events

    @property
    def held(self) -> int:
        """Bytes that wait here: for the peer's windows, or for the rest of a frame or header section."""
        return self.pending + len(self._tail) + self._block_size

    def open(self, fields: Headers, end: bool, bodiless: bool = False) -> H2Stream:
        """Begins a request of ours; `bodiless` says that its response has no body whatever it claims (HEAD)."""
        self._latest_id += 2
        stream = self._make_stream(self._latest_id, RECEIVING | SENDING)
        stream.bodiless = bodiless
        self.send_head(stream, fields, end)
        return stream

    @property
    def openable(self) -> int:
        """How many more streams may be opened now; none before the peer has said how many there may be."""
        if self.ended or not self.configured or self._latest_id > wire.MAX_STREAM_ID - 2:
            return 0
        return self.peer_streams - len(self.streams)

    # Frames.

    def _keep(self, data: bytes, at: int) -> None:
        """Keeps what is not a whole frame yet."""
        tail = self._tail = data[at:]
        if not tail and self._block is None:
            self.partial_since = None
        elif self.partial_since is None or (at and self._block is None):
            self.partial_since = self._now

    def _read_frames(self, data: bytes, at: int) -> int:
        end = len(data)
        limit = self.limits.frame
        handlers = _HANDLERS
        budget = _FRAMES
        self.over_budget = False
        while end - at >= 9:
            word, flags, stream_id = HEADER.unpack_from(data, at)
            size = word >> 8
            if size > limit:
                raise Fault(Error.FRAME_SIZE_ERROR, "frame_too_large")
            stop = at + 9 + size
            if stop > end:
                break
            if budget <= 0:
                self.over_budget = True
                break
            kind = word & 0xFF
            budget -= _HEAD if kind == wire.HEADERS else 1
            if not self.configured and (kind != wire.SETTINGS or flags & wire.ACK):
                raise Fault(Error.PROTOCOL_ERROR, "settings_missing")
            if self._block is not None and kind != wire.CONTINUATION:
                raise Fault(Error.PROTOCOL_ERROR, "continuation_missing")
            handler = handlers.get(kind)
            if handler is not None:
                handler(self, stream_id & 0x7FFFFFFF, flags, data[at + 9 : stop])
            else:
                self._spend("stray_frame_flood", self.limits.stray_frames)
            at = stop
        return at

    def _on_data(self, stream_id: int, flags: int, payload: bytes) -> None:
        size = len(payload)
        self._recv_window -= size
        if self._recv_window < 0:
            raise Fault(Error.FLOW_CONTROL_ERROR, "connection_window")
        self._credit += size
        stream = self.streams.get(stream_id)
        if stream is None or not stream.state & RECEIVING:
            self._open_window()
            if stream is not None:
                self._fail(stream, Error.STREAM_CLOSED, "data_after_end")
            else:
                self._on_stray(stream_id, wire.DATA)
            return None
        data = _without_padding(payload) if flags & PADDED else payload
        length = len(data)
        stream.recv_window -= size
        if stream.recv_window < 0:
            return self._fail(stream, Error.FLOW_CONTROL_ERROR, "stream_window")
        ended = flags & END_STREAM != 0
        if length:
            self.work += 1
        elif not ended:
            self._spend("empty_data_flood", self.limits.empty_data)
        if stream.expected >= 0:
            stream.expected -= length
            if stream.expected < 0 or (ended and stream.expected):
                return self._fail(stream, Error.PROTOCOL_ERROR, "content_length")
        if self.client and not stream.answered:
            return self._fail(stream, Error.PROTOCOL_ERROR, "data_before_head")
        self.unread += size
        stream.unread += size
        if ended:
            self._received(stream)
        if size != length:
            self.consumed(stream, size - length)
        if self._credit >= self._half_window:
            self._open_window()
        events = self._events
        if length < _SMALL and events:
            last = events[-1]
            if type(last) is Data and last.stream is stream and len(last.data) < 8 * _SMALL:
                last.data += data
                last.ended = ended
                return None
        events.append(Data(stream, data, ended))
        return None

    def _on_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not stream_id:
            raise Fault(Error.PROTOCOL_ERROR, "stream_zero")
        if flags & PADDED:
            payload = _without_padding(payload)
        if flags & wire.WITH_PRIORITY:
            # RFC 9113 5.3: priorities are deprecated; their fields are skipped.
            if len(payload) < 5:
                raise Fault(Error.FRAME_SIZE_ERROR, "headers_size")
            check_dependency(stream_id, payload)
            payload = payload[5:]
        if flags & END_HEADERS:
            self._on_block(stream_id, flags, payload)
        else:
            self._block = (stream_id, flags, [payload])
            self._block_size = len(payload)

    def _on_continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        block = self._block
        if block is None or block[0] != stream_id:
            raise Fault(Error.PROTOCOL_ERROR, "continuation_unexpected")
        parts = block[2]
        if len(parts) > self.limits.continuations:
            raise Fault(Error.ENHANCE_YOUR_CALM, "continuation_flood")
        parts.append(payload)
        self._block_size += len(payload)
        if flags & END_HEADERS:
            self._block = None
            self._block_size = 0
            self._on_block(stream_id, block[1], b"".join(parts))

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        """A complete header section: a head, or trailers."""
        ended = flags & END_STREAM != 0
        stream = self.streams.get(stream_id)
        try:
            if stream is not None:
                if not stream.state & RECEIVING:
                    self._decode(block)
                    self._fail(stream, Error.STREAM_CLOSED, "headers_after_end")
                elif stream.answered:
                    self._on_trailers(stream, ended, block)
                else:
                    self._on_response(stream, ended, block)
            elif self.client or not stream_id & 1 or stream_id <= self._latest_id:
                self._decode(block)
                self._on_stray(stream_id, wire.HEADERS)
            else:
                self._on_request(stream_id, ended, block)
        except Malformed as error:
            if stream is not None:
                self._fail(stream, Error.PROTOCOL_ERROR, error.reason)
            else:
                self._refuse(stream_id, Error.PROTOCOL_ERROR, error.reason)

    def _on_request(self, stream_id: int, ended: bool, block: bytes) -> None:
        self._latest_id = stream_id
        if self.refusing or len(self.streams) >= self.limits.streams:
            self._decode(block)
            reason = "draining" if self.refusing else "too_many_streams"
            return self._refuse(stream_id, Error.REFUSED_STREAM, reason)
        self.last_id = stream_id
        head = self._interpret(block, False, self._read_request)
        length = 0
        if head is not None:
            length = head.length
            head.size = len(block)
            if length > 0 and (ended or head.method == b"CONNECT"):
                raise Malformed("content_length")
        self.work += 1
        stream = self._make_stream(stream_id, SENDING if ended else RECEIVING | SENDING)
        stream.answered = True
        if head is None:
            self._events += (Refused("headers_too_large"), Oversized(stream, ended))
            return None
        stream.expected = length
        self._events.append(RequestHead(stream, head, ended))
        return None

    def _on_response(self, stream: H2Stream, ended: bool, block: bytes) -> None:
        head = self._interpret(block, False, self._read_response)
        if head is None:
            return self._fail(stream, Error.PROTOCOL_ERROR, "headers_too_large")
        if head.status < 200:
            if ended:
                raise Malformed("status")
            self._spend("stray_frame_flood", self.limits.stray_frames)
        else:
            stream.answered = True
            if stream.bodiless or head.status in (204, 304):
                stream.expected = 0
            else:
                stream.expected = head.length
                if ended and head.length > 0:
                    raise Malformed("content_length")
            if ended:
                self._received(stream)
            self.work += 1
        self._events.append(ResponseHead(stream, head, ended))
        return None

    def _on_trailers(self, stream: H2Stream, ended: bool, block: bytes) -> None:
        trailers = self._interpret(block, True, self._read_trailers)
        if not ended:
            raise Malformed("trailers_without_end")
        if trailers is None:
            return self._fail(stream, Error.PROTOCOL_ERROR, "headers_too_large")
        if stream.expected > 0:
            raise Malformed("content_length")
        self.work += 1
        self._received(stream)
        self._events.append(Trailers(stream, trailers))
        return None

    def _on_rst_stream(self, stream_id: int, flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Fault(Error.FRAME_SIZE_ERROR, "rst_stream_size")
        stream = self.streams.get(stream_id)
        if stream is None:
            return self._on_stray(stream_id, wire.RST_STREAM)
        sending = stream.state & SENDING
        self._forget(stream)
        self._events.append(Reset(stream, WORD.unpack(payload)[0]))
        if not sending:
            # The answer is complete: this only spares us the rest of the request.
            self.finished += 1
        elif not self.client:
            self._spend("rapid_reset", self.limits.resets, self.finished)
        return None

    # Header sections.

    def _decode(self, block: bytes) -> tuple[list[Field], int]:
        try:
            return self._decoder.decode(block, self.limits.head)
        except HpackBomb:
            raise Fault(Error.ENHANCE_YOUR_CALM, "header_bomb") from None
        except HpackError:
            raise Fault(Error.COMPRESSION_ERROR, "hpack") from None

    def _interpret(self, block: bytes, trailers: bool, read: Callable[[list[Field]], T]) -> T | None:
        """Returns what `read` makes of a header section, or None for one that is over the limits.

        Equal blocks are equal messages as long as the table stays the same, so the work is done once for those.
        """
        decoder = self._decoder
        known = self._known
        before = decoder.inserted
        if before != self._known_at:
            known.clear()
            self._known_at = before
        key = (block, trailers)
        if key in known:
            return known[key]  # type: ignore[return-value]
        fields, size = self._decode(block)
        limits = self.limits
        if size > limits.head or (
            len(fields) > limits.headers and sum(name[:1] != b":" for name, _ in fields) > limits.headers
        ):
            return None
        if size > limits.header:
            for name, value in fields:
                if len(name) + len(value) > limits.header:
                    return None
        message = read(fields)
        if decoder.inserted == before and len(block) <= _KNOWN_BLOCK_SIZE:
            if len(known) >= _KNOWN_BLOCKS:
                known.clear()
            known[key] = message  # type: ignore[assignment]
        return message

    def _read_request(self, fields: list[Field]) -> RequestFields:
        return request_of(fields, self.limits.extended_connect)

    def _read_response(self, fields: list[Field]) -> ResponseFields:
        return response_of(fields)

    def _read_trailers(self, fields: list[Field]) -> Headers:
        return trailers_of(fields, not self.client)

    # Streams and the connection.

    def _make_stream(self, stream_id: int, state: int) -> H2Stream:
        window = self.limits.stream_window
        stream = H2Stream(stream_id, state, self.peer_window, window)
        if not self._acknowledged and window < DEFAULT_WINDOW:
            # The peer may not know our settings yet.
            stream.recv_window = DEFAULT_WINDOW
        self.streams[stream_id] = stream
        return stream

    def _received(self, stream: H2Stream) -> None:
        """The peer's direction has ended."""
        stream.state &= ~RECEIVING
        if not stream.state:
            self.finished += 1
            del self.streams[stream.id]

    def _end(self, fault: Fault) -> None:
        self.ended = True
        self.send_goaway(True, fault.code, fault.reason.encode())
        self._events += (Refused(fault.reason), Ended(fault.code, fault.reason))


_HANDLERS: dict[int, Callable[[Session, int, int, bytes], None]] = {
    wire.DATA: Session._on_data,
    wire.HEADERS: Session._on_headers,
    wire.PRIORITY: Session._on_priority,
    wire.RST_STREAM: Session._on_rst_stream,
    wire.SETTINGS: Session._on_settings,
    wire.PUSH_PROMISE: Session._on_push_promise,
    wire.PING: Session._on_ping,
    wire.GOAWAY: Session._on_goaway,
    wire.WINDOW_UPDATE: Session._on_window_update,
    wire.CONTINUATION: Session._on_continuation,
}


def _without_padding(payload: bytes) -> bytes:
    if not payload:
        raise Fault(Error.FRAME_SIZE_ERROR, "padding")
    padding = payload[0]
    if padding >= len(payload):
        raise Fault(Error.PROTOCOL_ERROR, "padding")
    return payload[1 : len(payload) - padding]
