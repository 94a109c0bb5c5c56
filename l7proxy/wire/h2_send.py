"""The sending half of an HTTP/2 session: frames collected for one write, under the peer's windows."""

from typing import cast

from l7proxy.core.headers import Headers
from l7proxy.wire.h2_events import SENDING, H2Stream, Writable
from l7proxy.wire.h2_frames import (
    CONTINUATION,
    DATA,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADERS,
    MAX_STREAM_ID,
    PING,
    Error,
    frame,
    goaway,
    rst_stream,
)
from l7proxy.wire.h2_hpack import Encoder

ROUND = 256 * 1024
"""Bytes that one `pump` moves, give or take a frame, so that a big body leaves room for its siblings."""
_RESETS_REMEMBERED = 1000


class Sender:
    """Everything that goes out.

    Frames collect until `take`. Body bytes that the peer's windows do not admit yet stay with their stream; a Writable
    event says when they have left, and nothing more should be sent on the stream before it.
    """

    def __init__(self) -> None:
        self.streams: dict[int, H2Stream] = {}
        self.work = 0
        """HEADERS and DATA frames that moved a message on, in either direction."""
        self.finished = 0
        """Streams that ended well."""
        self.waiting: dict[int, H2Stream] = {}
        self.pending = 0
        """Body bytes that the peer's windows do not admit yet, over all streams."""
        self.paused = False
        """Set while the transport takes no more: body bytes then wait although the windows would admit them."""
        self.more = False
        """Set when `pump` should be called again after the next write."""
        self.window = DEFAULT_WINDOW
        self.peer_window = DEFAULT_WINDOW
        self.peer_frame = DEFAULT_FRAME
        self.encoder = Encoder()
        self.last_id = 0
        """The latest stream of the peer that was taken on."""
        self._out: list[bytes] = []
        self._reset_ids: dict[int, None] = {}

    @property
    def has_output(self) -> bool:
        return bool(self._out)

    def take(self) -> bytes:
        """Returns all frames that have collected."""
        out = self._out
        data = b"".join(out) if len(out) != 1 else out[0]
        out.clear()
        return data

    def send_head(self, stream: H2Stream, fields: Headers, end: bool = False) -> None:
        """Sends a header section, pseudo-header fields first; nothing goes out on a stream that has ended."""
        if not stream.state & SENDING:
            return
        self._headers(stream.id, fields, end)
        if end:
            self._sent(stream)

    def send_data(self, stream: H2Stream, data: bytes, end: bool = False) -> bool:
        """Sends body bytes; False if some of them have to wait."""
        if not stream.state & SENDING:
            return True
        size = len(data)
        if (
            size <= stream.send_window
            and size <= self.window
            and size <= self.peer_frame
            and not self.paused
            and stream.id not in self.waiting
        ):
            if size or end:
                stream.send_window -= size
                self.window -= size
                self.work += 1
                self._out.append(HEADER.pack(size << 8, END_STREAM if end else 0, stream.id))
                if size:
                    self._out.append(data)
                if end:
                    self._sent(stream)
            return True
        alone = not self.waiting
        self.pending += size
        stream.pending = bytes(stream.pending) + data if stream.pending else data
        stream.pending_end = end
        self.waiting[stream.id] = stream
        if alone:
            return bool(self.pump())
        # Others wait, for windows of their own perhaps: the next pump gives everybody a turn.
        self.more = True
        return False

    def send_trailers(self, stream: H2Stream, fields: Headers) -> None:
        """Ends the body with a trailer section, which waits behind pending bytes."""
        if not fields:
            self.send_data(stream, b"", end=True)
        elif stream.id in self.waiting:
            stream.pending_end = fields
        else:
            self.send_head(stream, fields, end=True)

    def send_reset(self, stream: H2Stream, code: int) -> None:
        """Ends a stream at once."""
        if stream.state:
            self._out.append(rst_stream(stream.id, code))
            self._remember_reset(stream.id)
            if not stream.state & SENDING:
                self.finished += 1
            self._forget(stream)

    def send_ping(self, payload: bytes) -> None:
        """Asks for a sign of life; `payload` is eight bytes."""
        self._out.append(frame(PING, 0, 0, payload))

    def send_goaway(self, final: bool, code: int = Error.NO_ERROR, debug: bytes = b"") -> None:
        """Tells the peer to open no more streams; before the final one those on their way are still taken on."""
        self._out.append(goaway(self.last_id if final else MAX_STREAM_ID, code, debug))

    def pump(self) -> list[Writable]:
        """Sends what waits and may go now, in turns of one frame a stream; returns the streams that are done.

        Stops after a round's worth and leaves `more` set if windows would admit more.
        """
        done: list[Writable] = []
        waiting = self.waiting
        left = ROUND
        moved = True
        while moved and left > 0 and not self.paused:
            moved = False
            for stream in list(waiting.values()):
                size = min(len(stream.pending), stream.send_window, self.window, self.peer_frame)
                if size > 0 or not stream.pending:
                    moved = True
                    left -= size
                    if self._send_pending(stream, size):
                        del waiting[stream.id]
                        done.append(Writable(stream))
                    if left <= 0:
                        break
        self.more = moved and bool(waiting)
        return done

    def _send_pending(self, stream: H2Stream, size: int) -> bool:
        """Sends the next frame of a stream; True if it was the last that waited."""
        pending = stream.pending
        last = size == len(pending)
        follows = stream.pending_end
        ends = last and follows is True
        self.pending -= size
        if size or ends:
            stream.send_window -= size
            self.window -= size
            self.work += 1
            self._out.append(HEADER.pack(size << 8 | DATA, END_STREAM if ends else 0, stream.id))
        if not last:
            view = pending if type(pending) is memoryview else memoryview(pending)
            self._out.append(bytes(view[:size]))
            rest = view[size:]
            # A rest keeps the whole in memory: it is copied each time that half of it has left.
            kept = len(cast(bytes, view.obj))
            stream.pending = rest if 2 * len(rest) > kept else memoryview(bytes(rest))
            return False
        if size:
            self._out.append(bytes(pending))
        stream.pending = b""
        if ends:
            self._sent(stream)
        elif type(follows) is list:
            self._headers(stream.id, follows, True)
            self._sent(stream)
        return True

    def _headers(self, stream_id: int, fields: Headers, end: bool) -> None:
        block = self.encoder.encode(fields)
        size = len(block)
        self.work += 1
        flags = END_STREAM | END_HEADERS if end else END_HEADERS
        if size <= self.peer_frame:
            self._out.append(HEADER.pack(size << 8 | HEADERS, flags, stream_id))
            self._out.append(block)
            return
        kind, flags = HEADERS, flags & ~END_HEADERS
        for at in range(0, size, self.peer_frame):
            if at + self.peer_frame >= size:
                flags |= END_HEADERS
            self._out.append(frame(kind, flags, stream_id, block[at : at + self.peer_frame]))
            kind, flags = CONTINUATION, 0

    def _sent(self, stream: H2Stream) -> None:
        """Our direction has ended."""
        stream.state &= ~SENDING
        if not stream.state:
            self.finished += 1
            del self.streams[stream.id]

    def _forget(self, stream: H2Stream) -> None:
        """Both directions have ended before their time."""
        stream.state = 0
        self.pending -= len(stream.pending)
        stream.pending = b""
        self.waiting.pop(stream.id, None)
        self.streams.pop(stream.id, None)

    def _remember_reset(self, stream_id: int) -> None:
        """Frames that were on their way when we reset the stream are no fault of the peer's."""
        ids = self._reset_ids
        ids[stream_id] = None
        if len(ids) > _RESETS_REMEMBERED:
            del ids[next(iter(ids))]
