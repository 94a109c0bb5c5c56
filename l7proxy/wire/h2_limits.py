"""What one HTTP/2 peer may ask of us: sizes, counts, and budgets for frames that cost us more than the peer."""

from msgspec import Struct


class Allowance(Struct, frozen=True):
    """How many frames of a kind a connection may send: `burst` at once, and more as time and work go on.

    Each second adds `per_second`, and each piece of honest work `per_work`: a stream that ended well where resets are
    counted, else a HEADERS or DATA frame in either direction that moved a message on.
    """

    burst: int
    per_second: float
    per_work: float = 0.0


class H2Limits(Struct, frozen=True):
    """Sizes in bytes, counts and allowances of one connection."""

    streams: int = 1000
    stream_window: int = 64 * 1024
    stream_window_max: int = 1024 * 1024
    connection_window: int = 1024 * 1024
    # Bytes received and not yet read by anyone, over all streams, above which the connection's window stays shut.
    buffered: int = 8 * 1024 * 1024
    frame: int = 16 * 1024
    head: int = 60 * 1024
    header: int = 16 * 1024
    headers: int = 100
    continuations: int = 16
    extended_connect: bool = True
    # As many resets as there may be streams: a client that gives up may cancel all of its calls at once.
    resets: Allowance = Allowance(1000, 30, 1)
    # gRPC peers send one PING for each round trip of data to measure the bandwidth-delay product.
    pings: Allowance = Allowance(200, 10, 1)
    settings: Allowance = Allowance(100, 1)
    priorities: Allowance = Allowance(1000, 10, 2)
    window_updates: Allowance = Allowance(2000, 100, 8)
    empty_data: Allowance = Allowance(100, 10, 0.1)
    # Frames of streams that have ended, frames of unknown types and acknowledgements.
    stray_frames: Allowance = Allowance(2000, 100, 1)


class Budget:
    """What is left of one allowance."""

    __slots__ = ("_allowance", "_left", "_at", "_work")

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._left: float = allowance.burst
        self._at = -1.0
        self._work = 0

    def spend(self, now: float, work: int) -> bool:
        """Takes one; False when none is left. `now` is in seconds, `work` the running count of honest work."""
        if self._at < 0:
            self._at = now
            self._work = work
        self._left -= 1
        if self._left >= 0:
            return True
        # The clock is read only when the burst is used up.
        allowance = self._allowance
        earned = (now - self._at) * allowance.per_second + (work - self._work) * allowance.per_work
        self._left = min(self._left + earned, allowance.burst)
        self._at = now
        self._work = work
        return self._left >= 0
