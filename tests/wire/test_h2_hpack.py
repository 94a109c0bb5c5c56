"""HPACK, held against the `hpack` package and the examples and limits of RFC 7541."""

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from l7proxy.wire.h2_hpack import Decoder, Encoder, HpackBomb, HpackError, NeverIndexed
from l7proxy.wire.h2_huffman import HuffmanError, decode

LIMIT = 1 << 20

names = st.one_of(
    st.sampled_from([b":path", b":authority", b"accept", b"cookie", b"authorization", b"x-a", b"x-b", b"date"]),
    st.binary(min_size=1, max_size=40),
)
values = st.one_of(st.sampled_from([b"", b"GET", b"/", b"200"]), st.binary(max_size=200))
heads = st.lists(st.lists(st.tuples(names, values), max_size=12), max_size=12)


def reference(data: bytes) -> bytes:
    return HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(data)


@given(st.binary(max_size=300))
def test_huffman_strings_decode_to_what_was_encoded(data: bytes) -> None:
    assert decode(reference(data)) == data


@given(st.binary(max_size=30))
def test_huffman_accepts_exactly_what_the_reference_accepts(data: bytes) -> None:
    decoder = hpack.Decoder()
    try:
        expected = decoder.decode(b"\x00\x01a" + bytes([0x80 | len(data)]) + data, raw=True)[0][1]
    except hpack.HPACKError:
        with pytest.raises(HuffmanError):
            decode(data)
    else:
        # The reference lets padding of eight ones and more pass; RFC 7541 5.2 does not.
        try:
            assert decode(data) == expected
        except HuffmanError:
            assert data.endswith(b"\xff")


@given(heads, st.booleans())
def test_blocks_of_the_reference_decode_to_its_fields(blocks: list[list[tuple[bytes, bytes]]], huffman: bool) -> None:
    encoder = hpack.Encoder()
    decoder = Decoder()
    for fields in blocks:
        decoded, size = decoder.decode(encoder.encode(fields, huffman=huffman), LIMIT)
        assert decoded == fields
        assert size == sum(32 + len(name) + len(value) for name, value in fields)


@given(heads, st.lists(st.sampled_from([None, 0, 31, 100, 300, 4096, 65536]), max_size=12))
def test_blocks_of_ours_decode_at_the_reference(
    blocks: list[list[tuple[bytes, bytes]]], sizes: list[int | None]
) -> None:
    encoder = Encoder()
    theirs = hpack.Decoder()
    ours = Decoder()
    for index, fields in enumerate(blocks):
        granted = sizes[index] if index < len(sizes) else None
        if granted is not None:
            encoder.resize(granted)
            theirs.max_allowed_table_size = max(granted, 4096)
        block = encoder.encode(fields)
        assert theirs.decode(block, raw=True) == fields
        assert ours.decode(block, LIMIT)[0] == fields


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_junk_is_refused_or_read_as_the_reference_reads_it(blocks: list[bytes]) -> None:
    ours, theirs = Decoder(), hpack.Decoder()
    for block in blocks:
        try:
            decoded = ours.decode(block, LIMIT)[0]
        except HpackError:
            return
        # What the reference refuses and we read: an update to a size that the RFC allows but its caller did not.
        assert decoded == theirs.decode(block, raw=True)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\x80", id="index zero"),
        pytest.param(b"\xbe", id="index of an empty dynamic table"),
        pytest.param(b"\xff\xff\xff\xff\xff\x0f", id="endless integer"),
        pytest.param(b"\xff", id="truncated integer"),
        pytest.param(b"\x40", id="truncated literal"),
        pytest.param(b"\x00\x05ab", id="string past the end"),
        pytest.param(b"\x00\x01a\x81\x00", id="bad padding"),
        pytest.param(b"\x00\x01a\x84\xff\xff\xff\xff", id="end of string within a string"),
        pytest.param(b"\x3f\xe2\x1f", id="table larger than granted"),
        pytest.param(b"\x82\x20", id="table size update after a field"),
    ],
)
def test_a_broken_block_is_refused(block: bytes) -> None:
    with pytest.raises(HpackError):
        Decoder().decode(block, LIMIT)


def test_a_list_over_the_limit_is_counted_in_full_and_stored_up_to_it() -> None:
    decoder = Decoder()
    decoder.decode(b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000, LIMIT)
    fields, size = decoder.decode(b"\xbe" * 50, 61_440)
    assert size == 50 * (32 + 1 + 4000)
    assert len(fields) == 61_440 // 4033
    # The table stayed in step.
    assert decoder.decode(b"\xbe", LIMIT)[0][0][0] == b"a"


def test_a_bomb_ends_the_decoding_at_four_times_the_limit() -> None:
    decoder = Decoder()
    decoder.decode(b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000, LIMIT)
    with pytest.raises(HpackBomb):
        decoder.decode(b"\xbe" * 16_000, 61_440)
    with pytest.raises(HpackBomb):
        Decoder().decode(b"\x00\x01a\x01b" * 10_000, 61_440)


def test_never_indexed_fields_stay_so_through_both_halves() -> None:
    decoder, encoder = Decoder(), Encoder()
    fields, _ = decoder.decode(b"\x10\x03key\x06secret", LIMIT)
    assert fields == [(b"key", b"secret")]
    assert type(fields[0][1]) is NeverIndexed
    assert encoder.encode(fields) == encoder.encode(fields) == b"\x10\x03key\x06secret"


def test_credentials_never_enter_a_table() -> None:
    encoder = Encoder()
    fields = [(b"authorization", b"Bearer abc")]
    assert encoder.encode(fields) == encoder.encode(fields) == b"\x1f\x08\x0aBearer abc"


def test_a_field_sent_twice_is_one_byte_the_second_time() -> None:
    encoder = Encoder()
    assert len(encoder.encode([(b"x-service", b"orders")])) > 10
    assert encoder.encode([(b"x-service", b"orders")]) == b"\xbe"
