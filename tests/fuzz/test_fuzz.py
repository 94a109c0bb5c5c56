"""The fuzz targets, briefly: `make fuzz` is the long run."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.fuzz import h1, h2, path


@given(st.integers())
@settings(max_examples=1500, deadline=None)
def test_mutated_requests_read_the_same_however_they_are_cut(seed: int) -> None:
    rng = random.Random(seed)
    data = h1.mutate(rng, h1.REQUESTS)
    h1.check_requests(data, h1.cut(rng, data))


@given(st.integers(), st.sampled_from([b"GET", b"HEAD", b"POST"]))
@settings(max_examples=500, deadline=None)
def test_mutated_responses_read_the_same_however_they_are_cut(seed: int, method: bytes) -> None:
    rng = random.Random(seed)
    data = h1.mutate(rng, h1.RESPONSES)
    h1.check_responses(data, h1.cut(rng, data), method)


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
@example(b"\r\n\r")
@example(b"GET / HTTP/1.0\r\n\r\n\r\n")
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    h1.check_requests(data, [data[at : at + 1] for at in range(len(data))])


@given(st.integers(), st.booleans())
@settings(max_examples=1000, deadline=None)
def test_mutated_connections_of_http_2_read_the_same_however_they_are_cut(seed: int, client: bool) -> None:
    rng = random.Random(seed)
    data = h2.mutate(rng, client)
    h2.check(data, h2.cut(rng, data), client)


@given(st.binary(max_size=100))
@settings(max_examples=1000, deadline=None)
def test_any_header_block_reads_as_hpack_reads_it_or_is_refused(data: bytes) -> None:
    h2.check_block(data)


@given(st.lists(st.sampled_from(path.PIECES), max_size=10))
@settings(max_examples=2000, deadline=None)
def test_a_normal_path_has_one_spelling(pieces: list[bytes]) -> None:
    path.check(b"/" + b"".join(pieces))


@pytest.mark.parametrize("size", [200, 2000])
def test_a_head_that_comes_in_single_bytes_is_looked_at_once(size: int) -> None:
    """Each byte costs a bounded number of steps: the reader's own count of bytes looked at stays linear."""
    from l7proxy.wire import framing
    from l7proxy.wire import h1 as codec

    looked = 0

    def count(head: bytes) -> str | None:
        nonlocal looked
        looked += len(head)
        return framing.fault_in(head)

    head = b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * size
    reader = codec.RequestReader(framing.Limits())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "fault_in", count)
        for at in range(len(head)):
            reader.feed(head[at : at + 1])
            assert reader.head() is None
    assert looked < 4 * len(head)
