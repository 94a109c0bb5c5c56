"""How an OTLP collector is spoken to, over HTTP or gRPC; either one blocks, in the thread that exports."""

import http.client
import os
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.util.re import parse_env_headers

from l7proxy.core.extras import need

RETRYABLE = frozenset((429, 502, 503, 504))
"""https://opentelemetry.io/docs/specs/otlp/#retryable-response-codes"""

RETRYABLE_CALLS = frozenset(
    ("CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)
"""https://opentelemetry.io/docs/specs/otlp/#failures; what is exhausted is tried again as HTTP's 429 is."""

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Reply(NamedTuple):
    """What became of a batch: why it was not taken and whether to try again, or how many of its spans were refused."""

    problem: str = ""
    retry: bool = False
    rejected: int = 0


class Collector(Protocol):
    """One connection to a collector, opened when it is needed."""

    url: str

    def post(self, body: bytes, timeout: float) -> Reply:
        """Sends one ExportTraceServiceRequest."""

    def close(self) -> None: ...


def collector(endpoint: str) -> Collector:
    """Returns the collector at `http://host:4318` or, for gRPC, `grpc://host:4317`; with an `s` either is over TLS.

    `OTEL_EXPORTER_OTLP_HEADERS` adds headers to each request, such as credentials; `OTEL_EXPORTER_OTLP_CERTIFICATE`
    names a file of the authorities to trust in place of the system's. Raises MissingExtra.
    """
    return OverGrpc(endpoint) if endpoint.startswith("grpc") else OverHttp(endpoint)


class OverHttp:
    """OTLP/HTTP with protobuf."""

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        path = url.path.rstrip("/")
        # The OTLP specification: the signal's path is added to a base address.
        self._path = path if path.endswith("/v1/traces") else path + "/v1/traces"
        self._host, self._port = url.hostname or "", url.port
        self._tls = ssl.create_default_context(cafile=_authorities()) if url.scheme == "https" else None
        self._headers = {"content-type": "application/x-protobuf", **_headers()}
        self._connection: http.client.HTTPConnection | None = None
        self.url = f"{url.scheme}://{url.netloc}{self._path}"

    def post(self, body: bytes, timeout: float) -> Reply:
        fresh = self._connection is None
        try:
            connection = self._connect(timeout)
            connection.request("POST", self._path, body, self._headers)
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not fresh and isinstance(error, ConnectionError | http.client.RemoteDisconnected):
                # The collector closed a connection that had been idle.
                return self.post(body, timeout)
            return Reply(f"{type(error).__name__}: {error}", True)
        if answer.status // 100 != 2:
            return Reply(f"status {answer.status}", answer.status in RETRYABLE)
        try:
            return _taken(ExportTraceServiceResponse.FromString(said))
        except DecodeError:
            # Some answer with JSON or a word; the status is what counts.
            return Reply()

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


class OverGrpc:
    """OTLP/gRPC, for which grpcio must be installed."""

    def __init__(self, endpoint: str) -> None:
        self._grpc = need("grpc", "grpc")
        url = urlsplit(endpoint)
        target = url.netloc if url.port else f"{url.netloc}:4317"
        options = (
            # What the environment says of proxies is for the application's requests.
            ("grpc.enable_http_proxy", 0),
            # Not two minutes: as soon as the collector is back, spans are wanted.
            ("grpc.max_reconnect_backoff_ms", 5000),
        )
        if url.scheme == "grpcs":
            self._channel = self._grpc.secure_channel(target, self._credentials(), options)
        else:
            self._channel = self._grpc.insecure_channel(target, options)
        self._export = self._channel.unary_unary(EXPORT, None, ExportTraceServiceResponse.FromString)
        self._metadata = tuple(_headers().items())
        self.url = endpoint

    def post(self, body: bytes, timeout: float) -> Reply:
        try:
            return _taken(self._export(body, timeout, self._metadata))
        except self._grpc.RpcError as error:
            status = error.code().name
            return Reply(f"{status}: {error.details()}", status in RETRYABLE_CALLS)

    def close(self) -> None:
        self._channel.close()

    def _credentials(self) -> Any:
        authorities = _authorities() or ssl.get_default_verify_paths().cafile
        if authorities is None:
            return self._grpc.ssl_channel_credentials()
        with open(authorities, "rb") as file:
            return self._grpc.ssl_channel_credentials(file.read())


def _taken(answer: ExportTraceServiceResponse) -> Reply:
    # A partial success is not to be sent again.
    return Reply(rejected=answer.partial_success.rejected_spans)


def _headers() -> Mapping[str, str]:
    return parse_env_headers(os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", ""), liberal=True)


def _authorities() -> str | None:
    return os.environ.get("OTEL_EXPORTER_OTLP_CERTIFICATE")
