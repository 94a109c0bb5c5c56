"""Finished spans on their way to an OTLP/HTTP collector: a bounded queue, and a thread that sends."""

import http.client
import os
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.util.re import parse_env_headers

from l7proxy.core.stats import Stats

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

RETRYABLE = frozenset((429, 502, 503, 504))
"""https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes"""


class Exporter(SpanProcessor):
    """Sends spans to the collector at `endpoint` (`http://host:4318`), in batches.

    What the collector does not take is dropped and counted in `l7proxy_spans_dropped_total`; nothing waits for it.
    `OTEL_EXPORTER_OTLP_HEADERS` adds headers to each request, such as credentials.
    """

    def __init__(self, stats: Stats, endpoint: str, log: Callable[..., None], period: float = PERIOD) -> None:
        name, help = "l7proxy_spans_dropped_total", "Spans that the collector did not get"
        self._refused = stats.counter(name, help, reason="queue_full")
        self._failed = stats.counter(name, help, reason="export_failed")
        self._exported = stats.counter("l7proxy_spans_exported_total", "Spans that the collector took")
        self._log = log
        self._period = period
        self._collector = Collector(endpoint)
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
        problem = self._collector.post(b"".join(parts), self._patience())
        for pause in RETRIES:
            if problem is None or not problem.retry or self._closing.wait(pause):
                break
            problem = self._collector.post(b"".join(parts), self._patience())
        if problem is None:
            self._exported.value += count
        else:
            self._failed.value += count
        if self._well != (problem is None):
            self._well = problem is None
            if problem is None:
                self._log("info", "the trace collector takes spans again", collector=self._collector.url)
            else:
                self._log("warning", "spans are dropped", collector=self._collector.url, error=problem.text)

    def _patience(self) -> float:
        return max(0.1, min(TIMEOUT, self._deadline - time.monotonic()))


class Problem:
    """Why a batch was not taken, and whether it is worth another try."""

    def __init__(self, text: str, retry: bool) -> None:
        self.text = text
        self.retry = retry


class Collector:
    """One connection to a collector, opened when it is needed."""

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        path = url.path.rstrip("/")
        # The OTLP specification: the signal's path is added to a base address.
        self._path = path if path.endswith("/v1/traces") else path + "/v1/traces"
        self._host, self._port = url.hostname or "", url.port
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._headers = {
            "content-type": "application/x-protobuf",
            **parse_env_headers(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""), liberal=True),
        }
        self._connection: http.client.HTTPConnection | None = None
        self.url = f"{url.scheme}://{url.netloc}{self._path}"

    def post(self, body: bytes, timeout: float) -> Problem | None:
        """Sends one export request and returns None when the collector took it."""
        fresh = self._connection is None
        try:
            connection = self._connect(timeout)
            connection.request("POST", self._path, body, self._headers)
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not fresh and isinstance(error, ConnectionError | http.client.RemoteDisconnected):
                # The collector closed a connection that had been idle.
                return self.post(body, timeout)
            return Problem(f"{type(error).__name__}: {error}", True)
        if answer.status // 100 == 2:
            return None
        return Problem(f"status {answer.status}", answer.status in RETRYABLE)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        connection = self._connection
        if connection is None:
            if self._tls is None:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
            else:
                connection = http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=self._tls)
            self._connection = connection
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        return connection
