"""The requests that finished last: kept in memory for who asks why, whether or not anything else was told of them."""

from collections import deque
from collections.abc import Iterable
from itertools import chain

from l7proxy.core.message import Request
from l7proxy.telemetry.access import Entry

RECENT = 1024
"""Requests that went well."""

FAILED = 128
"""Requests of each kind of failure, so that no flood of one kind pushes out the others."""

LONGEST = 1024
"""Bytes of a path, an authority or a detail; beyond them it is cut."""

CUT = "..."
"""What ends a text that was cut."""


class History:
    """What `access.take_down` took of the requests that finished last, failures apart and so for longer.

    What failed is of one of some thirty kinds (a code of the proxy, a flag, 4xx, 5xx, a gRPC status that is none of
    success). A request leaves about 1 KiB, and 6 where all that a client chooses is as long as can be.
    """

    def __init__(self) -> None:
        self._recent: deque[Entry] = deque(maxlen=RECENT)
        self._failed: dict[str, deque[Entry]] = {}

    def add(self, request: Request, status: int, entry: Entry) -> None:
        """Keeps what was taken down of a request that ended with a status."""
        if len(request.path) > LONGEST or len(request.authority) > LONGEST or len(request.detail) > LONGEST:
            entry = tuple(map(_cut, entry))
        if status < 400 and not request.flags and request.grpc_status <= 0:
            self._recent.append(entry)
            return
        kind = request.code or request.flags or ("grpc" if status < 400 else f"{status // 100}xx")
        ring = self._failed.get(kind)
        if ring is None:
            ring = self._failed[kind] = deque(maxlen=FAILED)
        ring.append(entry)

    def find(self, name: bytes) -> list[Entry]:
        """Returns the requests with a request id or trace id, in the order in which they ended."""
        return _by_time(entry for entry in chain(self._recent, *self._failed.values()) if name in entry[:2])

    def failures(self, count: int) -> list[Entry]:
        """Returns the last requests that failed, the last one first."""
        return _by_time(chain(*self._failed.values()))[: -count - 1 : -1]


def _by_time(entries: Iterable[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry[2])


def _cut(value: object) -> object:
    if isinstance(value, bytes) and len(value) > LONGEST:
        return value[:LONGEST] + CUT.encode()
    if isinstance(value, str) and len(value) > LONGEST:
        return value[:LONGEST] + CUT
    return value
