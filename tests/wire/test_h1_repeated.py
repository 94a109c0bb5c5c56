"""A head means the same whatever came before it on the connection, its own lines included."""

from hypothesis import given
from hypothesis import strategies as st

from l7proxy.wire.framing import Limits, Malformed
from l7proxy.wire.h1 import END, RequestHead, RequestReader

LINES = [
    *("GET /a HTTP/1.1", "GET /b?c HTTP/1.1", "CONNECT /a HTTP/1.1", "CONNECT a:1 HTTP/1.1", "GET http://a/ HTTP/1.1"),
    *("GET /a HTTP/1.0", "OPTIONS * HTTP/1.1", f"GET /{'x' * 100} HTTP/1.1"),
]
BLOCKS = [
    ["Host: a"],
    ["Host: a", "X: 1", "X: 2", "TE: trailers"],
    ["Host: a", "Content-Length: 0"],
    ["Host: a", "Connection: close"],
    ["Host: a", "Connection: upgrade, x", "Upgrade: websocket", "X: 1"],
    ["Host: b"],
    ["X: 1"],
]
LIMITS = Limits(target=90, head=160)


def read(reader: RequestReader) -> RequestHead | str | None:
    try:
        head = reader.head()
        if head is not None and head.size:
            assert reader.body() is END
        return head
    except Malformed as error:
        return error.reason


@given(st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from(BLOCKS)), max_size=8))
def test_what_came_before_changes_nothing(requests: list[tuple[str, list[str]]]) -> None:
    reader = RequestReader(LIMITS)
    for line, fields in requests:
        raw = "\r\n".join([line, *fields, "", ""]).encode()
        alone = RequestReader(LIMITS)
        alone.feed(raw)
        reader.feed(raw)
        expected, head = read(alone), read(reader)
        assert head == expected
        if not isinstance(head, RequestHead):
            break
        # The list is the receiver's to change.
        head.headers.append((b"changed", b"1"))
        assert not reader.buffered
