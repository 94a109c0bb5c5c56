"""The numbers of RFC 9113: frame types, flags, settings and error codes, and the frames without state."""

from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA = 0
HEADERS = 1
PRIORITY = 2
RST_STREAM = 3
SETTINGS = 4
PUSH_PROMISE = 5
PING = 6
GOAWAY = 7
WINDOW_UPDATE = 8
CONTINUATION = 9

END_STREAM = 0x1
ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE = 1
ENABLE_PUSH = 2
MAX_CONCURRENT_STREAMS = 3
INITIAL_WINDOW_SIZE = 4
MAX_FRAME_SIZE = 5
MAX_HEADER_LIST_SIZE = 6
ENABLE_CONNECT_PROTOCOL = 8

DEFAULT_WINDOW = 65_535
DEFAULT_FRAME = 16_384
MAX_WINDOW = (1 << 31) - 1
MAX_STREAM_ID = (1 << 31) - 1

# Length and type share the first four bytes.
HEADER = Struct(">IBI")
SETTING = Struct(">HI")
WORD = Struct(">I")
TWO_WORDS = Struct(">II")


class Error(IntEnum):
    """RFC 9113 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Returns one frame."""
    return HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    """Returns a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(key, value) for key, value in values.items()))


def window_update(stream_id: int, increment: int) -> bytes:
    """Returns a WINDOW_UPDATE frame."""
    return HEADER.pack(4 << 8 | WINDOW_UPDATE, 0, stream_id) + WORD.pack(increment)


def rst_stream(stream_id: int, code: int) -> bytes:
    """Returns a RST_STREAM frame."""
    return HEADER.pack(4 << 8 | RST_STREAM, 0, stream_id) + WORD.pack(code)


def goaway(last_id: int, code: int, debug: bytes = b"") -> bytes:
    """Returns a GOAWAY frame."""
    return frame(GOAWAY, 0, 0, TWO_WORDS.pack(last_id, code) + debug)
