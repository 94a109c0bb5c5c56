"""Proofs that what a contender is configured for really happens; each returns a sentence, or raises BenchError."""

import json
import time
from pathlib import Path

from bench.contenders import Proxy
from bench.load import h2load_count
from bench.process import BenchError

EXACT = 1000


class Proofs:
    """The proofs of one proxy: `before` the load, `after` it, with what was counted in between."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.done: list[str] = []
        self._lines = 0
        self.retry_for = 10.0
        """Seconds that lines and traces may take to arrive."""

    def before(self) -> None:
        """Proves each feature that the setup asks for and the contender has."""
        proxy = self.proxy
        if proxy.setup.tls:
            self._tls()
        if proxy.setup.chain and proxy.contender.has:
            self._chain()
        if proxy.setup.telemetry and "log" in proxy.contender.has:
            self._telemetry()

    def after(self, requests: int, unfinished: int) -> None:
        """Proves that the load was logged line by line, and traced at 1 %."""
        proxy = self.proxy
        if not proxy.setup.telemetry or "log" not in proxy.contender.has:
            return
        lines = self._wait_for_lines(requests) - self._lines
        if not requests <= lines <= requests + unfinished:
            raise BenchError(f"{proxy.label}: {requests} requests were answered, {lines} log lines written")
        self._say(f"{lines} log lines for {requests} answers, at most {unfinished} cut off at the end of a round")
        if "traces" in proxy.contender.has and requests >= 5000:
            self._traces(requests)

    def _say(self, proof: str) -> None:
        self.done.append(proof)

    def _expect(self, what: str, seen: object, wanted: object) -> None:
        if seen != wanted:
            raise BenchError(f"{self.proxy.label}: {what}: {seen!r} instead of {wanted!r}\n{self.proxy.process.tail()}")

    def _tls(self) -> None:
        proxy = self.proxy
        anonymous = proxy.ask("/1k", identity=None)
        if anonymous.status not in (0, 400):
            raise BenchError(f"{proxy.label}: answers {anonymous.status} without a client certificate")
        self._say("a client without a certificate is refused")
        if proxy.setup.chain and "authorization" in proxy.contender.has:
            self._expect("a verified stranger", proxy.ask("/1k", identity="stranger").status, 403)
            self._say("a verified identity that is not on the list gets 403")

    def _chain(self) -> None:
        proxy = self.proxy
        if "authorization" in proxy.contender.has:
            self._expect("the denied path", proxy.ask("/denied").status, 403)
            self._say("a denied path gets 403")
        else:
            self._say("WITHOUT authorization, which it does not have yet")
        seen = proxy.ask("/seen")
        self._expect("the request header at the backend", seen.body, b"added")
        self._expect("the response header", seen.headers.get("x-bench-response"), "added")
        self._say("headers are added to request and response")
        statuses = [proxy.ask("/limited").status for _ in range(8)]
        self._expect("the low rate limit", (statuses[0], statuses[-1]), (200, 429))
        self._say("a low rate limit answers 429")
        began = time.monotonic()
        self._expect("the 200 ms timeout", proxy.ask("/slow").status, 504)
        if time.monotonic() - began > 1:
            raise BenchError(f"{proxy.label}: the 200 ms timeout took {time.monotonic() - began:.1f} s")
        self._say("a timeout of 200 ms answers 504")

    def _telemetry(self) -> None:
        proxy = self.proxy
        lines, counted = self._settled_lines(), proxy.counted()
        if proxy.setup.tls:
            for _ in range(5):
                self._expect("a logged request", proxy.ask("/1k").status, 200)
            sent = 5
        else:
            sent = h2load_count(proxy.url("/1k"), 4, EXACT, () if proxy.setup.http2 else ("--h1",)).requests
        self._lines = self._wait_for_lines(sent, lines)
        self._expect(f"log lines for {sent} requests", self._lines - lines, sent)
        line = json.loads(_last_line(proxy.log))
        self._expect("the status in the log", int(line["status"]), 200)
        self._say(f"{sent} requests write exactly {sent} JSON log lines")
        grown = proxy.counted() - counted
        if not sent <= grown <= sent + 2:  # nginx counts the two readings too
            raise BenchError(f"{proxy.label}: its metrics count {grown} requests for {sent}")
        self._say(f"its own metrics count {sent} requests")

    def _traces(self, requests: int) -> None:
        end = time.monotonic() + self.retry_for
        traces = 0
        while time.monotonic() < end:
            traces = self.proxy.lab.sink.traces()[self.proxy.service]
            if requests * 0.007 <= traces:
                break
            time.sleep(0.5)
        if not requests * 0.005 <= traces <= requests * 0.02:
            raise BenchError(f"{self.proxy.label}: {traces} traces arrived for {requests} requests at 1 %")
        self._say(f"{traces} traces arrived at the collector ({traces / requests:.2%})")

    def _settled_lines(self) -> int:
        """Returns the number of log lines once it has stopped growing."""
        lines = -1
        while (now := count_lines(self.proxy.log)) != lines:
            lines = now
            time.sleep(1.3)  # longer than the longest flush interval of all contenders
        return lines

    def _wait_for_lines(self, sent: int, before: int | None = None) -> int:
        """Waits until `sent` lines more are there, then until no more come."""
        start = self._lines if before is None else before
        end = time.monotonic() + self.retry_for
        while count_lines(self.proxy.log) < start + sent and time.monotonic() < end:
            time.sleep(0.1)
        return self._settled_lines()


def count_lines(path: Path) -> int:
    """Returns how many JSON objects, one a line, the file holds."""
    if not path.exists():
        return 0
    with path.open("rb") as log:
        return sum(block.count(b"}\n") for block in iter(lambda: log.read(1 << 20), b""))


def _last_line(path: Path) -> bytes:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 65536))
        return [line for line in log.read().splitlines() if line.startswith(b"{")][-1]
