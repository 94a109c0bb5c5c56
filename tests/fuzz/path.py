"""Mutated paths for `l7proxy.wire.path.normalise`.

What must hold for any path: it is refused with Malformed, or its normal form is its own normal form, holds no dot
segment, no empty segment and no escape that could be spelt plainly, and every reader decodes it to one same text.
"""

import random
import re
import time
from urllib.parse import unquote_to_bytes

from l7proxy.wire.framing import Malformed
from l7proxy.wire.path import normalise

PIECES = (
    *(
        b"/",
        b"/",
        b"/",
        b"a",
        b"b",
        b".",
        b"..",
        b"admin",
        b"A",
        b"~",
        b"-",
        b"_",
        b";",
        b";x=1",
        b":",
        b"@",
        b"*",
        b"#",
    ),
    *(
        b"%2e",
        b"%2E",
        b"%2f",
        b"%2F",
        b"%5c",
        b"%5C",
        b"\\",
        b"%00",
        b"\0",
        b"%",
        b"%4",
        b"%zz",
        b"%41",
        b"%61",
        b"%25",
    ),
    *(
        b"%252e",
        b"%c3%a9",
        b"%C3%A9",
        b"%c0%ae",
        b"%e0%80%af",
        b"%ff",
        b"\xc3\xa9",
        b"%7E",
        b"%7f",
        b"%20",
        b" ",
        b"\t",
    ),
)


def check(path: bytes) -> None:
    """Raises AssertionError when a promise is broken for this path."""
    try:
        normal = normalise(path)
    except Malformed:
        return
    assert normalise(normal) == normal, f"the normal form {normal!r} has another normal form"
    assert normal.startswith(b"/"), normal
    assert not re.search(rb"/(?:\.{1,2})?(?=/)|/\.{1,2}$", normal), f"{normal!r} holds a dot segment or an empty one"
    assert re.fullmatch(rb"(?:[!-$&-~]|%[0-9A-F]{2})*", normal), f"{normal!r} holds a byte that no path may hold"
    for escape in re.findall(rb"%..", normal):
        byte = unquote_to_bytes(escape)
        assert not re.fullmatch(rb"[A-Za-z0-9\-._~\0]", byte), f"{normal!r} escapes {byte!r}"
    unquote_to_bytes(normal).decode()


def run(seconds: float, seed: int) -> int:
    """Tries random paths for `seconds`; returns how many."""
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        tried += 1
        path = b"/" + b"".join(rng.choices(PIECES, k=rng.randint(0, 9)))
        try:
            check(path)
        except Exception as error:
            raise AssertionError(f"{error}\npath: {path!r}") from error
    return tried
