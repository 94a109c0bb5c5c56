"""What an HTTP/2 session tells the protocol that drives it."""

from typing import Any

from msgspec import Struct

from l7proxy.core.headers import Headers
from l7proxy.wire.h2_fields import RequestFields, ResponseFields

RECEIVING = 1
SENDING = 2


class H2Stream:
    """One stream of a session.

    `state` is the sum of RECEIVING and SENDING, for the directions that are open; 0 is closed. `owner` is for the
    protocol that drives the session. The rest is the session's own.
    """

    __slots__ = (
        "id",
        "state",
        "owner",
        "send_window",
        "recv_window",
        "window",
        "unread",
        "consumed",
        "expected",
        "bodiless",
        "answered",
        "pending",
        "pending_end",
    )

    def __init__(self, stream_id: int, state: int, send_window: int, window: int) -> None:
        self.id = stream_id
        self.state = state
        self.owner: Any = None
        self.send_window = send_window
        self.recv_window = window
        self.window = window
        self.unread = 0
        self.consumed = 0
        # Body bytes still to come by the content-length, or -1.
        self.expected = -1
        self.bodiless = False
        self.answered = False
        self.pending: bytes | memoryview = b""
        # What follows the pending bytes: nothing, the end, or trailers and the end.
        self.pending_end: bool | Headers = False


class RequestHead(Struct):
    """A request begins."""

    stream: H2Stream
    head: RequestFields
    ended: bool


class Oversized(Struct):
    """A request whose head is over the limits: it can be answered but not read."""

    stream: H2Stream
    ended: bool


class ResponseHead(Struct):
    """A response begins, or an interim one (status below 200) has come."""

    stream: H2Stream
    head: ResponseFields
    ended: bool


class Data(Struct):
    """Body bytes, and perhaps the end of the body. Call `consumed` once somebody has read them."""

    stream: H2Stream
    data: bytes
    ended: bool


class Trailers(Struct):
    """The end of a body that has trailers."""

    stream: H2Stream
    headers: Headers


class Reset(Struct):
    """A stream has ended before its time: by the peer, or by us for what the peer did (`reason`)."""

    stream: H2Stream
    code: int
    reason: str = ""


class Writable(Struct):
    """All that was pending on a stream has left."""

    stream: H2Stream


class Refused(Struct):
    """Something was refused; `reason` is the label of the counter."""

    reason: str


class Ponged(Struct):
    """The answer to a PING of ours."""

    payload: bytes


class Configured(Struct):
    """The peer's settings are known, or have changed."""


class GoingAway(Struct):
    """The peer takes no more streams. `unseen` are the streams of ours that it will never process."""

    code: int
    unseen: list[H2Stream]
    debug: bytes


class Ended(Struct):
    """The connection cannot go on: send what is left and close."""

    code: int
    reason: str


Event = (
    RequestHead
    | Oversized
    | ResponseHead
    | Data
    | Trailers
    | Reset
    | Writable
    | Refused
    | Ponged
    | Configured
    | GoingAway
    | Ended
)
