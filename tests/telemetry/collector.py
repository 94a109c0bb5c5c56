"""A small OTLP/HTTP collector that decodes the official protobufs."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.net import wait_for


class Collector:
    """Listens on a free port of loopback; `status` is what it answers, `delay` how long it thinks about it.

    `spans` are those that it took, `resources` the attributes of the resources that they came with.
    """

    def __init__(self) -> None:
        self.status = 200
        self.posts = 0
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.hang = threading.Event()
        self.hang.set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.posts += 1
                collector.paths.append(self.path)
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                collector.hang.wait(30)
                if collector.status == 200:
                    collector._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def wait(self, count: int, timeout: float = 10.0) -> list[Span]:
        """Returns the spans once there are `count`."""
        wait_for(lambda: len(self.spans) >= count, timeout, lambda: f"{len(self.spans)} spans, not {count}")
        return self.spans

    def close(self) -> None:
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for resource_spans in request.resource_spans:
            self.resources.append({pair.key: value(pair.value) for pair in resource_spans.resource.attributes})
            for scope_spans in resource_spans.scope_spans:
                self.spans.extend(scope_spans.spans)


def value(any_value: AnyValue) -> Any:
    """Returns what an attribute holds."""
    return getattr(any_value, str(any_value.WhichOneof("value")))


def attributes(span: Span) -> dict[str, Any]:
    """Returns the attributes of a span."""
    return {pair.key: value(pair.value) for pair in span.attributes}
