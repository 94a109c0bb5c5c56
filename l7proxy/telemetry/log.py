"""What the proxy says of itself: one JSON object a line on stderr, never waiting for who reads it."""

import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from l7proxy.core.expanded import encoded
from l7proxy.core.stats import Stats
from l7proxy.telemetry.lines import LineWriter

Level = Literal["debug", "info", "warning", "error"]
LEVELS: dict[str, int] = {"debug": 0, "info": 1, "warning": 2, "error": 3}

BURST = 100
"""Lines of one event in one second; the rest is counted and told with the next line of it."""


class Log:
    """Writes events of at least the level `level`: `log("warning", "configuration rejected", file=..., line=3)`.

    Events of one name beyond `BURST` a second are left out, so that a flood of bad handshakes is not a flood of lines;
    the next line that is written says how many in `suppressed`.
    """

    def __init__(
        self,
        stats: Stats,
        path: str = "/dev/stderr",
        level: Level = "info",
        clock: Callable[[], float] = time.time,
    ) -> None:
        name, help = "l7proxy_log_dropped_total", "Lines of the proxy's own log that could not be written"
        dropped = stats.counter(name, help, reason="queue_full")
        self._writer = LineWriter(path, dropped, stats.counter(name, help, reason="write_failed"))
        self._encode = msgspec.json.Encoder(enc_hook=encoded).encode
        self._clock = clock
        self._rates: dict[str, list[int]] = {}
        self.level = level

    @property
    def level(self) -> Level:
        return self._level

    @level.setter
    def level(self, level: Level) -> None:
        """Raises KeyError for a level that there is not."""
        self._least = LEVELS[level]
        self._level = level

    def __call__(self, level: Level, event: str, **fields: Any) -> None:
        if LEVELS[level] < self._least:
            return
        now = self._clock()
        rate = self._rates.get(event)
        if rate is None:
            # Event names are constants of the code: this grows no further.
            rate = self._rates[event] = [0, 0, 0]
        if rate[0] != int(now):
            rate[0], rate[1] = int(now), 0
        rate[1] += 1
        if rate[1] > BURST:
            rate[2] += 1
            return
        if rate[2]:
            fields["suppressed"], rate[2] = rate[2], 0
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        line = {"time": f"{seconds}.{int(now % 1 * 1000):03d}Z", "level": level, "event": event, **fields}
        self._writer.write(self._encode(line) + b"\n", 1)

    def debug(self, event: str, **fields: Any) -> None:
        self("debug", event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        self("info", event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        self("warning", event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        self("error", event, **fields)

    def close(self, timeout: float = 1.0) -> None:
        """Waits at most `timeout` seconds until everything is written."""
        self._writer.close(timeout)
