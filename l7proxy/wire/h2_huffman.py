"""The Huffman code of HPACK (RFC 7541 5.2 and Appendix B), decoded one byte at a time by a table of states.

The code is canonical: the symbols of each length, in order, are all that has to be written down.
"""

# The symbols by the length of their code; EOS (30 bits, all ones) comes after the last.
_SYMBOLS: tuple[tuple[int, bytes], ...] = (
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b'!"()?'),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\x00$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
    (19, b"\\\xc3\xd0"),
    (20, b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2"),
    (21, b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6"),
    (22, b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9"),
    (
        23,
        b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e"
        b"\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5\xe7\xef",
    ),
    (24, b"\x09\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed"),
    (25, b"\xc7\xcf\xea\xeb"),
    (26, b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff"),
    (27, b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe"),
    (
        28,
        b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19"
        b"\x1a\x1b\x1c\x1d\x1e\x1f\x7f\xdc\xf9",
    ),
    (30, b"\x0a\x0d\x16"),
)
# Short strings that were decoded lately: nginx, for one, sends the same ones with each answer.
_known: dict[bytes, bytes] = {}
_KNOWN = 1024
_KNOWN_SIZE = 64
_EOS = 256
_DEAD = -1

_Row = list[tuple[int, bytes]]


class HuffmanError(ValueError):
    """A string that is not Huffman-coded as RFC 7541 5.2 demands."""


def _plant() -> tuple[list[list[int]], frozenset[int]]:
    """Returns the code tree and its states in which a string may end.

    A node is [child for 0, child for 1]: the number of a node, or ~symbol for a leaf. The padding is a prefix of EOS
    shorter than a byte, so a string may end at the root and at the end of one to seven ones.
    """
    nodes = [[0, 0]]
    code = length = 0
    for bits, symbols in (*_SYMBOLS, (30, (_EOS,))):
        for symbol in symbols:
            code <<= bits - length
            length = bits
            node = 0
            for shift in range(bits - 1, 0, -1):
                bit = code >> shift & 1
                if not nodes[node][bit]:
                    nodes[node][bit] = len(nodes)
                    nodes.append([0, 0])
                node = nodes[node][bit]
            nodes[node][code & 1] = ~symbol
            code += 1
    ends = [0]
    for _ in range(7):
        ends.append(nodes[ends[-1]][1])
    return nodes, frozenset(ends)


_NODES, _ENDS = _plant()
# One row of 256 (next state, symbols) for each state, made when a string first needs it: all 256 rows take 0.1 s.
_ROWS: list[_Row | None] = [None] * len(_NODES)


def _row(state: int) -> _Row:
    row: _Row = []
    for byte in range(256):
        node = state
        symbols = bytearray()
        for shift in range(7, -1, -1):
            node = _NODES[node][byte >> shift & 1]
            if node < 0:
                if node == ~_EOS:
                    node = _DEAD
                    break
                symbols.append(~node)
                node = 0
        row.append((node, bytes(symbols)))
    _ROWS[state] = row
    return row


def decode(data: bytes) -> bytes:
    """Decodes one string. Raises HuffmanError for EOS within it and for padding that is too long or not all ones."""
    known = _known.get(data)
    if known is not None:
        return known
    state = 0
    out: list[bytes] = []
    for byte in data:
        state, symbols = (_ROWS[state] or _row(state))[byte]
        if state < 0:
            raise HuffmanError("end-of-string symbol")
        out.append(symbols)
    if state not in _ENDS:
        raise HuffmanError("padding")
    text = b"".join(out)
    if len(data) <= _KNOWN_SIZE:
        if len(_known) >= _KNOWN:
            _known.clear()
        _known[data] = text
    return text
