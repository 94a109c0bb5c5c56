"""Requests that ask for their own decision: a header that is signed with a key that the sidecar knows.

`x-l7proxy-debug: EXPIRY-SIGNATURE`: seconds since the epoch, and the HMAC-SHA256 of the request's method, authority and
target and of that time. Who has read one can ask again for the same request until it expires, and for nothing else.
"""

import hmac
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from l7proxy.core.headers import find, find_all, without
from l7proxy.core.message import Request
from l7proxy.core.stats import Stats

HEADER = b"x-l7proxy-debug"

LONGEST = 3600
"""Seconds from now beyond which no expiry is believed."""

KEY_BYTES = 32
"""A key must be at least as long."""

_LOOK = 1.0
"""Seconds between two looks at the file of the key, while headers come."""

_FORM = re.compile(rb"([0-9]{1,11})-([0-9a-f]{64})").fullmatch


def read_key(path: str) -> bytes:
    """Returns the key in a file, less blanks at its ends; raises OSError, or ValueError for one that is too short."""
    key = Path(path).read_bytes().strip()
    if len(key) < KEY_BYTES:
        raise ValueError(f"a key has at least {KEY_BYTES} bytes, like the output of: openssl rand -hex 32")
    return key


def sign(key: bytes, method: bytes, authority: bytes, path: bytes, query: bytes, expiry: int) -> bytes:
    """Returns the value of the header that lets one request ask until `expiry`, in seconds since the epoch."""
    host = authority.lower()
    for port in (b":80", b":443"):
        # Clients leave the default port out, and which one that is depends on where TLS ends.
        host = host.removesuffix(port)
    target = b"%b?%b" % (path, query) if query else path
    # None of these can hold a line feed.
    signed = b"\n".join((HEADER, method, host, target, b"%d" % expiry))
    return b"%d-%b" % (expiry, hmac.digest(key, signed, "sha256").hex().encode())


class Debugging:
    """Tells which requests may know their decision. Raises OSError or ValueError for a key that cannot be used.

    A file that changes is read again; one that can no longer be used leaves the key as it was.
    """

    def __init__(self, path: str, stats: Stats, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._key = read_key(path)
        self._state = _state(path)
        self._looked = clock()
        self._outcomes = {
            outcome: stats.counter(
                "l7proxy_debug_requests_total", "Requests with a debug header, by what came of it", outcome=outcome
            )
            for outcome in ("accepted", "expired", "refused")
        }

    def asks(self, request: Request) -> bool:
        """Takes the header off a request that has just come; says whether it was signed for it and still holds."""
        if find(request.headers, HEADER) is None:
            return False
        given = find_all(request.headers, HEADER)
        request.headers[:] = without(request.headers, HEADER)
        outcome = self._judge(given, request)
        self._outcomes[outcome].value += 1
        return outcome == "accepted"

    def _judge(self, given: list[bytes], request: Request) -> str:
        match = _FORM(given[0]) if len(given) == 1 else None
        if match is None:
            return "refused"
        now = self._clock()
        self._look(now)
        expiry = int(match[1])
        expected = sign(self._key, request.method, request.authority, request.target, request.query, expiry)
        if not hmac.compare_digest(expected, given[0]) or expiry > now + LONGEST:
            return "refused"
        return "accepted" if now <= expiry else "expired"

    def _look(self, now: float) -> None:
        if 0 <= now - self._looked < _LOOK:
            return
        self._looked = now
        state = _state(self._path)
        if state != self._state:
            try:
                self._key = read_key(self._path)
            except (OSError, ValueError):
                return
            self._state = state


def _state(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size
