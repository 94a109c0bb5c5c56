"""`python -m bench soak`: half load for minutes, with reloads, disconnects and slow clients mixed in.

Memory and descriptors must end where they were after the first quarter, and every status must be an expected one.
"""

import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from bench.contenders import FULL
from bench.lab import SIZES, Lab
from bench.live import Live
from bench.load import h2load_rate, wrk
from bench.model import Finding, Result
from bench.process import BenchError
from bench.prove import Proofs
from bench.stats import median

GROWTH = 0.03
"""The part by which memory may differ between the second and the last quarter, beyond SLACK."""
SLACK = 2 * 2**20
CHUNK = 20
"""Seconds of steady load between two looks at its figures."""
STATUS = re.compile(rb'"status": ?"?(\d+)')


@dataclass(slots=True)
class Observed:
    """What the side loads did, and the samples: (seconds, RSS, descriptors)."""

    samples: list[tuple[float, int, int]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)


class Soak:
    """The side loads of one soak, each a thread that ends with it."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.port = live.proxy.port
        self.seen = Observed()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Soak":
        jobs = [self._sample, self._reload, self._abort, self._abort_upload] + [self._read_slowly] * 4
        self._threads = [threading.Thread(target=self._guard, args=(job,)) for job in [*jobs, self._write_slowly]]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _guard(self, job: Callable[[], None]) -> None:
        try:
            while not self._stop.is_set():
                job()
        except (BenchError, OSError) as error:
            self.seen.errors.append(f"{job.__name__}: {error}")

    def _sample(self) -> None:
        process = self.live.proxy.process
        self.seen.samples.append((time.monotonic(), process.rss(), process.descriptors()))
        self._stop.wait(1)

    def _reload(self) -> None:
        self.live.reload()
        self.seen.counts["reloads"] += 1
        self._stop.wait(5)

    def _abort(self) -> None:
        """Asks for 100 KB and resets the connection after the first bytes."""
        with self._connect() as connection:
            connection.sendall(b"GET /100k HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            connection.recv(1000)
            _reset(connection)
        self.seen.counts["downloads cut"] += 1
        self._stop.wait(0.02)

    def _abort_upload(self) -> None:
        """Announces a body, sends a part of it and goes away."""
        with self._connect() as connection:
            connection.sendall(
                b"POST /seen HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n" + b"x" * 5000
            )
            _reset(connection)
        self.seen.counts["uploads cut"] += 1
        self._stop.wait(0.05)

    def _read_slowly(self) -> None:
        """Reads 100 KB in small pieces with pauses, and counts them."""
        with self._connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"GET /100k HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            answer = b""
            while piece := connection.recv(4096):
                answer += piece
                time.sleep(0.02)
        if not answer.startswith(b"HTTP/1.1 200") or len(answer.partition(b"\r\n\r\n")[2]) != SIZES["100k"]:
            raise BenchError(f"a slow reader got {len(answer)} bytes: {answer[:60]!r}")
        self.seen.counts["slow readers served"] += 1

    def _write_slowly(self) -> None:
        """Sends a head byte by byte."""
        with self._connect() as connection:
            for byte in b"GET /1k HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n":
                connection.sendall(bytes((byte,)))
                time.sleep(0.01)
            if not connection.recv(100).startswith(b"HTTP/1.1 200"):
                raise BenchError("a slow head was not served")
        self.seen.counts["slow heads served"] += 1

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)


def _reset(connection: socket.socket) -> None:
    """Closes with RST instead of FIN."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def run(lab: Lab, minutes: float) -> Result:
    """Soaks l7proxy and judges what is left."""
    result = Result(
        "soak", f"l7proxy: {minutes:g} minutes at half load, reloads, disconnects and slow clients mixed in"
    )
    live = Live(lab, FULL)
    try:
        Proofs(live.proxy).before()
        best = wrk(live.proxy.url("/1k"), 32, 3)
        rate = int(best.requests / best.seconds / 2)
        before = _settled(live, 0)
        requests, slowest = 0, 0.0
        with Soak(live) as soak:
            end = time.monotonic() + minutes * 60
            while time.monotonic() < end and not soak.seen.errors:
                load = h2load_rate(live.proxy.url("/1k"), rate, min(CHUNK, max(1.0, end - time.monotonic())))
                requests += load.requests
                slowest = max(slowest, load.p99 or 0.0)
        after = _settled(live, before)
        if soak.seen.errors:
            raise BenchError("\n".join(soak.seen.errors))
        _judge(result, soak.seen, before, after)
        result.findings.append(Finding(f"requests answered 200 at {rate:,}/s", requests, "requests"))
        result.findings.append(Finding(f"worst p99 of {CHUNK} s", 1000 * slowest, "ms"))
        result.findings.append(_statuses(result, live))
        result.notes.append(", ".join(f"{count:,} {what}" for what, count in sorted(soak.seen.counts.items())) + ".")
    finally:
        live.proxy.process.stop()
    return result


def _settled(live: Live, wanted: int) -> int:
    """Returns the number of descriptors once it is at most `wanted`, or has had 10 seconds to become so."""
    end = time.monotonic() + (10 if wanted else 4)
    while (found := live.proxy.process.descriptors()) > wanted and time.monotonic() < end:
        time.sleep(0.2)
    return found


def _judge(result: Result, seen: Observed, before: int, after: int) -> None:
    quarter = max(1, len(seen.samples) // 4)
    early = median([rss for _, rss, _ in seen.samples[quarter : 2 * quarter]])
    late = median([rss for _, rss, _ in seen.samples[-quarter:]])
    bound = early * GROWTH + SLACK
    mib = 2**20
    text = f"memory, last quarter against the second ({late / mib:.1f} against {early / mib:.1f} MiB)"
    result.findings.append(
        Finding(text, (late - early) / mib, "MiB", f"<= {bound / mib:.1f} MiB", late - early <= bound)
    )
    tenth = max(1, len(seen.samples) // 10)
    parts = [median([rss for _, rss, _ in seen.samples[at : at + tenth]]) for at in range(0, len(seen.samples), tenth)]
    result.notes.append("Memory, tenth by tenth: " + ", ".join(f"{part / mib:.1f}" for part in parts) + " MiB.")
    most = max(count for _, _, count in seen.samples)
    text = f"descriptors left over ({before} before, {most} at most, {after} after)"
    result.findings.append(Finding(text, after - before, "descriptors", "<= 0", after <= before))


def _statuses(result: Result, live: Live) -> Finding:
    """Counts the statuses in the access log; the proofs cause 403, 429 and one 504, clients that leave 499 or 0."""
    counts: Counter[int] = Counter()
    with live.proxy.log.open("rb") as log:
        for line in log:
            if found := STATUS.search(line):
                counts[int(found[1])] += 1
    result.notes.append("Statuses in the access log: " + ", ".join(f"{k}: {v:,}" for k, v in sorted(counts.items())))
    expected = {0, 200, 403, 429, 499, 504}
    unexpected = sum(count for status, count in counts.items() if status not in expected) + max(0, counts[504] - 1)
    return Finding("answers with an unexpected status", unexpected, "answers", "0", unexpected == 0)
