"""Finished spans on their way to an OTLP collector: a bounded queue, and a thread that sends."""

import threading
import time
from collections import deque
from collections.abc import Callable

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from l7proxy.core.stats import Stats
from l7proxy.telemetry.collector import collector

QUEUE = 2048
"""Spans that wait for the collector; further ones are dropped, and counted."""

BATCH = 512
PERIOD = 1.0
"""Seconds until a span that waits is sent, while there are fewer than `BATCH`."""

SLICE = 8
"""Spans encoded in one go. The encoder holds the interpreter for about 0.3 ms then, which the event loop waits for."""

TIMEOUT = 10.0
RETRIES = (1.0, 2.0, 4.0)
"""Seconds before a batch is sent again, after which it is given up."""


class Exporter(SpanProcessor):
    """Sends spans to the collector at `endpoint` in batches.

    What the collector does not take is dropped and counted in `l7proxy_spans_dropped_total`; nothing waits for it.
    """

    def __init__(self, stats: Stats, endpoint: str, log: Callable[..., None], period: float = PERIOD) -> None:
        name, help = "l7proxy_spans_dropped_total", "Spans that the collector did not get"
        self._refused = stats.counter(name, help, reason="queue_full")
        self._limited = stats.counter(name, help, reason="error_limit")
        self._failed = stats.counter(name, help, reason="export_failed")
        self._rejected = stats.counter(name, help, reason="rejected")
        self._exported = stats.counter("l7proxy_spans_exported_total", "Spans that the collector took")
        self._log = log
        self._period = period
        self._collector = collector(endpoint)
        self._queue: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._well = True
        self._ended = False
        # A daemon: a collector that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        queue = self._queue
        if len(queue) >= QUEUE or self._ended:
            self._refused.value += 1
            return
        queue.append(span)
        if len(queue) == BATCH:
            self._wake.set()

    def refuse(self, count: int) -> None:
        """Counts spans that are not made, because there would be too many."""
        self._limited.value += count

    def close(self, timeout: float = 0.0) -> bool:
        """Sends what waits, for at most `timeout` seconds; says whether that was enough."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._wake.set()
        if timeout > 0:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._ended:
            self._wake.wait(self._period)
            self._wake.clear()
            # First the mark, then the last look: what comes after it is counted as dropped.
            self._ended = self._closing.is_set()
            while self._queue:
                self._send_batch()
        self._collector.close()

    def _send_batch(self) -> None:
        parts = []
        count = 0
        while count < BATCH and self._queue:
            spans = [self._queue.popleft() for _ in range(min(SLICE, len(self._queue)))]
            count += len(spans)
            # Requests that follow each other on the wire are one request: every part is a repeated field.
            parts.append(encode_spans(spans).SerializeToString())
            time.sleep(0.001)
        body = b"".join(parts)
        reply = self._collector.post(body, self._patience())
        for pause in RETRIES:
            if not reply.retry or self._closing.wait(pause):
                break
            reply = self._collector.post(body, self._patience())
        well = not reply.problem
        if well:
            self._exported.value += count - reply.rejected
            self._rejected.value += reply.rejected
        else:
            self._failed.value += count
        if self._well != well:
            self._well = well
            if well:
                self._log("info", "the trace collector takes spans again", collector=self._collector.url)
            else:
                self._log("warning", "spans are dropped", collector=self._collector.url, error=reply.problem)

    def _patience(self) -> float:
        return max(0.1, min(TIMEOUT, self._deadline - time.monotonic()))
