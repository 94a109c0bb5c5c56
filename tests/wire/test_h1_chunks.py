"""Chunked bodies: the same bytes in whatever sizes and pieces they come, a bounded number of chunks in one call."""

from hypothesis import given
from hypothesis import strategies as st

from l7proxy.wire.framing import Limits
from l7proxy.wire.h1 import END, RequestReader

HEAD = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"

chunks = st.lists(st.one_of(st.binary(min_size=1, max_size=18), st.binary(min_size=1, max_size=300)), max_size=60)


def encoded(parts: list[bytes], upper: bool, extension: bytes = b"") -> bytes:
    sizes = (b"%X" if upper else b"%x") + extension
    return b"".join(sizes % len(part) + b"\r\n" + part + b"\r\n" for part in parts) + b"0\r\n\r\n"


def reader() -> RequestReader:
    made = RequestReader(Limits())
    made.feed(HEAD)
    assert made.head() is not None
    return made


@given(chunks, st.booleans(), st.sampled_from([b"", b";a=b"]), st.integers(1, 400))
def test_a_body_is_the_same_in_whatever_pieces_it_comes(
    parts: list[bytes], upper: bool, extension: bytes, step: int
) -> None:
    made = reader()
    raw = encoded(parts, upper, extension)
    body, ended = b"", False
    for at in range(0, len(raw), step):
        assert not ended
        made.feed(raw[at : at + step])
        while not ended and (event := made.body()) is not None:
            if event is END:
                ended = True
            else:
                body += event
    assert ended
    assert body == b"".join(parts)
    assert made.buffered == 0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(700, 1500))
def test_one_call_takes_a_bounded_number_of_chunks_and_says_that_there_are_more(sizes: list[int], count: int) -> None:
    made = reader()
    parts = [b"x" * sizes[number % len(sizes)] for number in range(count)]
    made.feed(encoded(parts, False))
    body, calls = b"", 0
    while (event := made.body()) is not END:
        assert isinstance(event, bytes)
        body += event
        calls += 1
        # A run of the tiniest chunks goes over the budget by no more than itself.
        assert calls >= len(parts) / (512 + 171) or made.over_budget
    assert not made.over_budget
    assert body == b"".join(parts)
