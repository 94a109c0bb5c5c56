"""What both ends of an HTTP/2 connection settle apart from messages: windows, settings, signs of life, budgets.

Every frame that costs us more than the peer has a budget; a peer that exceeds one is told to calm down.
"""

from l7proxy.wire import h2_frames as wire
from l7proxy.wire.h2_events import RECEIVING, Configured, Event, GoingAway, H2Stream, Ponged, Refused, Reset
from l7proxy.wire.h2_frames import DEFAULT_WINDOW, MAX_WINDOW, WORD, Error
from l7proxy.wire.h2_limits import Allowance, Budget, H2Limits
from l7proxy.wire.h2_send import Sender


class Fault(Exception):
    """The connection ends; `reason` is the label of the counter."""

    def __init__(self, code: Error, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Control(Sender):
    """The connection, and what is owed on it."""

    def __init__(self, client: bool, limits: H2Limits) -> None:
        super().__init__()
        self.client = client
        self.limits = limits
        self.peer_streams = 100
        """Streams that the peer lets us open; until it says so, the least that RFC 9113 6.5.2 recommends."""
        self.peer_extended_connect = False
        self.unread = 0
        """Body bytes that were received and that nobody has read yet."""
        self.refusing = False
        """Set after the final GOAWAY: new streams are reset, and may be tried elsewhere."""
        self.configured = False
        """Set once the peer's settings have come."""
        self._acknowledged = False
        self._events: list[Event] = []
        self._now = 0.0
        # The latest stream that was opened, by the client always: ids below it are past, those above it idle.
        self._latest_id = -1
        self._credit = 0
        self._half_window = max(limits.connection_window, DEFAULT_WINDOW) // 2
        self._recv_window = 2 * self._half_window
        self._unblocked = False
        self._budgets: dict[str, Budget] = {}
        self._greet()

    def consumed(self, stream: H2Stream, size: int) -> None:
        """Somebody read `size` body bytes of a stream, so the peer may send as many more.

        The window of a stream doubles each time its reader has kept up with it, up to a limit.
        """
        if size > stream.unread:
            # What was released is not owed any more.
            size = stream.unread
        self.unread -= size
        stream.unread -= size
        if stream.state & RECEIVING:
            stream.consumed += size
            if stream.consumed * 2 >= stream.window:
                increment = stream.consumed
                stream.consumed = 0
                if not stream.unread and stream.window < self.limits.stream_window_max:
                    growth = min(stream.window, self.limits.stream_window_max - stream.window)
                    stream.window += growth
                    increment += growth
                stream.recv_window += increment
                self._out.append(wire.window_update(stream.id, increment))
        if self._credit >= self._half_window:
            self._open_window()

    def release(self, stream: H2Stream) -> None:
        """Nobody will read what is left of a stream's body."""
        self.unread -= stream.unread
        stream.unread = 0
        if self._credit >= self._half_window:
            self._open_window()

    # Frames.

    def _on_window_update(self, stream_id: int, flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Fault(Error.FRAME_SIZE_ERROR, "window_update_size")
        self._spend("window_update_flood", self.limits.window_updates)
        increment = WORD.unpack(payload)[0] & MAX_WINDOW
        self._unblocked = True
        if not stream_id:
            self.window += increment
            if not increment:
                raise Fault(Error.PROTOCOL_ERROR, "window_update_zero")
            if self.window > MAX_WINDOW:
                raise Fault(Error.FLOW_CONTROL_ERROR, "window_overflow")
            return None
        stream = self.streams.get(stream_id)
        if stream is None:
            return self._on_stray(stream_id, wire.WINDOW_UPDATE)
        stream.send_window += increment
        if not increment:
            self._fail(stream, Error.PROTOCOL_ERROR, "window_update_zero")
        elif stream.send_window > MAX_WINDOW:
            self._fail(stream, Error.FLOW_CONTROL_ERROR, "window_overflow")
        return None

    def _on_settings(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id:
            raise Fault(Error.PROTOCOL_ERROR, "stream_not_zero")
        if flags & wire.ACK:
            if payload:
                raise Fault(Error.FRAME_SIZE_ERROR, "settings_size")
            if self._acknowledged:
                # We ask once: whatever comes after the first one acknowledges nothing.
                self._spend("stray_frame_flood", self.limits.stray_frames)
            self._acknowledged = True
            return
        if len(payload) % 6:
            raise Fault(Error.FRAME_SIZE_ERROR, "settings_size")
        self._spend("settings_flood", self.limits.settings)
        self.configured = True
        # RFC 9113 6.5.3: each value is taken in order; those that cost something are applied once, at the end.
        values = dict(wire.SETTING.iter_unpack(payload))
        for key, value in wire.SETTING.iter_unpack(payload):
            self._check_setting(key, value)
            if key == wire.HEADER_TABLE_SIZE:
                # RFC 7541 4.2: the smallest size on the way counts, too.
                self.encoder.resize(value)
        if wire.INITIAL_WINDOW_SIZE in values:
            self._shift_windows(values[wire.INITIAL_WINDOW_SIZE])
        self.peer_frame = values.get(wire.MAX_FRAME_SIZE, self.peer_frame)
        self.peer_streams = values.get(wire.MAX_CONCURRENT_STREAMS, self.peer_streams)
        if wire.ENABLE_CONNECT_PROTOCOL in values:
            self.peer_extended_connect = values[wire.ENABLE_CONNECT_PROTOCOL] == 1
        self._out.append(wire.frame(wire.SETTINGS, wire.ACK, 0, b""))
        self._events.append(Configured())

    def _check_setting(self, key: int, value: int) -> None:
        if key == wire.ENABLE_PUSH:
            # RFC 9113 6.5.2: a server may not even say that it would take pushes.
            if value > (0 if self.client else 1):
                raise Fault(Error.PROTOCOL_ERROR, "settings_value")
        elif key == wire.INITIAL_WINDOW_SIZE:
            if value > MAX_WINDOW:
                raise Fault(Error.FLOW_CONTROL_ERROR, "settings_value")
        elif key == wire.MAX_FRAME_SIZE:
            if not 1 << 14 <= value < 1 << 24:
                raise Fault(Error.PROTOCOL_ERROR, "settings_value")
        elif key == wire.ENABLE_CONNECT_PROTOCOL and value > 1:
            raise Fault(Error.PROTOCOL_ERROR, "settings_value")

    def _shift_windows(self, initial: int) -> None:
        """RFC 9113 6.9.2: a new initial window moves the windows of all open streams, below zero if need be."""
        change = initial - self.peer_window
        self.peer_window = initial
        self._unblocked = True
        for stream in self.streams.values():
            stream.send_window += change
            if stream.send_window > MAX_WINDOW:
                raise Fault(Error.FLOW_CONTROL_ERROR, "window_overflow")

    def _on_ping(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id:
            raise Fault(Error.PROTOCOL_ERROR, "stream_not_zero")
        if len(payload) != 8:
            raise Fault(Error.FRAME_SIZE_ERROR, "ping_size")
        if flags & wire.ACK:
            self._spend("stray_frame_flood", self.limits.stray_frames)
            self._events.append(Ponged(payload))
            return
        self._spend("ping_flood", self.limits.pings)
        self._out.append(wire.frame(wire.PING, wire.ACK, 0, payload))

    def _on_goaway(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id:
            raise Fault(Error.PROTOCOL_ERROR, "stream_not_zero")
        if len(payload) < 8:
            raise Fault(Error.FRAME_SIZE_ERROR, "goaway_size")
        last_id, code = wire.TWO_WORDS.unpack_from(payload)
        # RFC 9113 6.8: the first bit is reserved, and ignored.
        last_id &= wire.MAX_STREAM_ID
        unseen = [stream for stream in self.streams.values() if stream.id > last_id] if self.client else []
        for stream in unseen:
            self._forget(stream)
        self._spend("stray_frame_flood", self.limits.stray_frames)
        self._events.append(GoingAway(code, unseen, payload[8:]))

    def _on_priority(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not stream_id:
            raise Fault(Error.PROTOCOL_ERROR, "stream_zero")
        if len(payload) != 5:
            raise Fault(Error.FRAME_SIZE_ERROR, "priority_size")
        check_dependency(stream_id, payload)
        self._spend("priority_flood", self.limits.priorities)

    def _on_push_promise(self, stream_id: int, flags: int, payload: bytes) -> None:
        raise Fault(Error.PROTOCOL_ERROR, "push_promise")

    # Inside.

    def _greet(self) -> None:
        limits = self.limits
        values = {wire.INITIAL_WINDOW_SIZE: limits.stream_window, wire.MAX_HEADER_LIST_SIZE: limits.head}
        if limits.frame != wire.DEFAULT_FRAME:
            values[wire.MAX_FRAME_SIZE] = limits.frame
        if self.client:
            values[wire.ENABLE_PUSH] = 0
        else:
            values[wire.MAX_CONCURRENT_STREAMS] = limits.streams
            values[wire.ENABLE_CONNECT_PROTOCOL] = int(limits.extended_connect)
        greeting = wire.settings(values)
        if self._recv_window > DEFAULT_WINDOW:
            greeting += wire.window_update(0, self._recv_window - DEFAULT_WINDOW)
        self._out.append(wire.PREFACE + greeting if self.client else greeting)

    def _fail(self, stream: H2Stream, code: Error, reason: str) -> None:
        """Resets an open stream for what the peer did."""
        self._forget(stream)
        self._refuse(stream.id, code, reason)
        self._events.append(Reset(stream, code, reason))

    def _refuse(self, stream_id: int, code: Error, reason: str) -> None:
        """Resets a stream that never was; resets that the peer makes us send count like its own (CVE-2025-8671)."""
        self._out.append(wire.rst_stream(stream_id, code))
        self._remember_reset(stream_id)
        self._events.append(Refused(reason))
        if not self.client:
            self._spend("rapid_reset", self.limits.resets, self.finished)

    def _on_stray(self, stream_id: int, kind: int) -> None:
        """A frame for a stream that is not open: never opened, ended, or reset while the frame was on its way."""
        if not stream_id & 1 or stream_id > self._latest_id:
            raise Fault(Error.PROTOCOL_ERROR, "idle_stream")
        self._spend("stray_frame_flood", self.limits.stray_frames)
        if kind in (wire.DATA, wire.HEADERS) and stream_id not in self._reset_ids:
            # RFC 9113 5.1: after the end of a stream there is nothing to wait for.
            raise Fault(Error.STREAM_CLOSED, "stream_closed")

    def _forget(self, stream: H2Stream) -> None:
        super()._forget(stream)
        self.release(stream)

    def _open_window(self) -> None:
        """Gives the connection's window back as bytes arrive, so that no stream starves another, within a bound."""
        if self._credit >= self._half_window and self.unread < self.limits.buffered:
            self._recv_window += self._credit
            self._out.append(wire.window_update(0, self._credit))
            self._credit = 0

    def _spend(self, reason: str, allowance: Allowance, work: int = -1) -> None:
        budget = self._budgets.get(reason)
        if budget is None:
            budget = self._budgets[reason] = Budget(allowance)
        if not budget.spend(self._now, self.work if work < 0 else work):
            raise Fault(Error.ENHANCE_YOUR_CALM, reason)


def check_dependency(stream_id: int, priority: bytes) -> None:
    """Refuses a stream that depends on itself: all that is left of priorities, which RFC 9113 5.3.2 deprecates.

    RFC 7540 5.3.1 makes it an error of the stream, but there need not be a stream that could be reset.
    """
    if WORD.unpack_from(priority)[0] & wire.MAX_STREAM_ID == stream_id:
        raise Fault(Error.PROTOCOL_ERROR, "self_dependency")
