"""Small OTLP collectors, over HTTP and over gRPC, that decode the official protobufs."""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.net import wait_for


class Taken:
    """What a collector was sent; `spans` are those that it took, `resources` the attributes of their resources.

    `refuse(True)` makes it say that it cannot take anything now, `refuse(False)` that it never will; `accept` ends
    both. `rejected` is how many spans of each batch it claims to leave out. While `hang` is clear it does not answer.
    """

    url: str

    def __init__(self) -> None:
        self.posts = 0
        self.headers: list[dict[str, str]] = []
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.rejected = 0
        self.hang = threading.Event()
        self.hang.set()
        self.retryable: bool | None = None

    def refuse(self, retryable: bool) -> None:
        self.retryable = retryable

    def accept(self) -> None:
        self.retryable = None

    def wait(self, count: int, timeout: float = 30.0) -> list[Span]:
        """Returns the spans once there are `count`."""
        wait_for(lambda: len(self.spans) >= count, timeout, lambda: f"{len(self.spans)} spans, not {count}")
        return self.spans

    def close(self) -> None:
        raise NotImplementedError

    def arrive(self, headers: Mapping[str, str]) -> None:
        """A request is here."""
        self.posts += 1
        self.headers.append({name.lower(): value for name, value in headers.items()})
        self.hang.wait(30)

    def take(self, request: ExportTraceServiceRequest) -> ExportTraceServiceResponse:
        """Keeps what is in a request and returns the answer."""
        for resource_spans in request.resource_spans:
            self.resources.append({pair.key: value(pair.value) for pair in resource_spans.resource.attributes})
            for scope_spans in resource_spans.scope_spans:
                self.spans.extend(scope_spans.spans)
        answer = ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = self.rejected
        return answer


class Collector(Taken):
    """Speaks OTLP/HTTP on a free port of loopback."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: list[str] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.paths.append(self.path)
                collector.arrive(dict(self.headers.items()))
                status, answer = 200, b""
                if collector.retryable is None:
                    answer = collector.take(ExportTraceServiceRequest.FromString(body)).SerializeToString()
                else:
                    status = 503 if collector.retryable else 400
                self.send_response(status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class GrpcCollector(Taken):
    """Speaks OTLP/gRPC on a free port of loopback, over TLS where `credentials` say how."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        super().__init__()
        collector = self

        class Servicer(TraceServiceServicer):
            def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
                collector.arrive({pair.key: pair.value for pair in context.invocation_metadata()})
                if collector.retryable is not None:
                    status = grpc.StatusCode.UNAVAILABLE if collector.retryable else grpc.StatusCode.INVALID_ARGUMENT
                    context.abort(status, "no")
                return collector.take(request)

        self._server = grpc.server(ThreadPoolExecutor(4))
        add_TraceServiceServicer_to_server(Servicer(), self._server)
        if credentials is None:
            self.url = f"grpc://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        else:
            self.url = f"grpcs://localhost:{self._server.add_secure_port('127.0.0.1:0', credentials)}"
        self._server.start()

    def close(self) -> None:
        self.hang.set()
        self._server.stop(None).wait()


def value(any_value: AnyValue) -> Any:
    """Returns what an attribute holds."""
    return getattr(any_value, str(any_value.WhichOneof("value")))


def attributes(span: Span) -> dict[str, Any]:
    """Returns the attributes of a span."""
    return {pair.key: value(pair.value) for pair in span.attributes}
