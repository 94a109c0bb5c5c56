"""How finished spans come to a collector over HTTP and gRPC, and what happens when it is away, slow or unwilling."""

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from l7proxy.core.extras import MissingExtra
from l7proxy.core.handler import Keep
from l7proxy.core.stats import Stats
from l7proxy.telemetry import export
from l7proxy.telemetry.facade import Telemetry
from l7proxy.telemetry.log import Log
from tests.identity.pki import Authority
from tests.support.net import free_address, wait_for
from tests.telemetry.collector import Collector, GrpcCollector, Taken
from tests.telemetry.pipe import TARGET, Pipe
from tests.telemetry.requests import finished


@pytest.fixture
def pipe(either: Taken) -> Iterator[Pipe]:
    pipe = Pipe(either.url)
    yield pipe
    pipe.spans.close(5)


def test_every_span_arrives_once_in_batches(either: Taken, pipe: Pipe) -> None:
    requests = [pipe.begin(headers=[]) for _ in range(1500)]
    for request in requests:
        request.span.end(request, 200, None)
    spans = either.wait(1500)
    assert {span.trace_id.hex() for span in spans} == {request.span.trace_id for request in requests}
    assert len(spans) == 1500
    assert either.posts < 100
    wait_for(lambda: pipe.exported() == 1500, 20, lambda: f"{pipe.exported()} counted")


def test_spans_that_wait_are_sent_at_the_end(either: Taken) -> None:
    pipe = Pipe(either.url)
    pipe.exporter._period = 60
    request = pipe.begin(headers=[])
    request.span.end(request, 200, None)
    assert pipe.spans.close(5)
    assert len(either.spans) == 1


def end_many(pipe: Pipe, count: int) -> float:
    """Ends many sampled requests and returns the longest time that one took."""
    slowest = 0.0
    for _ in range(count):
        request = pipe.begin(headers=[])
        started = time.perf_counter()
        request.span.end(request, 200, None)
        slowest = max(slowest, time.perf_counter() - started)
    return slowest


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_without_a_collector_spans_are_counted_and_one_line_is_logged(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "RETRIES", (0.01, 0.01))
    host, port = free_address()
    pipe = Pipe(f"{scheme}://{host}:{port}")
    end_many(pipe, 600)
    wait_for(lambda: pipe.dropped("export_failed") == 600, 30, lambda: f"{pipe.dropped('export_failed')} counted")
    assert pipe.said == [("warning", "spans are dropped")]
    assert pipe.spans.close(5)


def test_a_collector_that_hangs_costs_a_bounded_number_of_spans_and_no_time(either: Taken) -> None:
    either.hang.clear()
    pipe = Pipe(either.url)
    total = export.QUEUE + export.BATCH + 500
    end_many(pipe, 1)
    wait_for(lambda: either.posts == 1, 20, lambda: "nothing was sent")
    slowest = end_many(pipe, total)
    assert slowest < 1
    assert pipe.dropped("queue_full") == total - export.QUEUE
    started = time.monotonic()
    assert not pipe.spans.close(0.2)
    assert time.monotonic() - started < 2
    either.hang.set()
    pipe.exporter.close(5)
    assert pipe.exported() == export.QUEUE + 1


def test_a_collector_that_comes_back_gets_what_waited(either: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "RETRIES", (0.2, 0.2, 0.2))
    either.refuse(retryable=True)
    pipe = Pipe(either.url)
    end_many(pipe, 10)
    wait_for(lambda: either.posts >= 1, 20, lambda: "nothing was sent")
    either.accept()
    assert len(either.wait(10)) == 10
    wait_for(lambda: pipe.exported() == 10, 20, lambda: f"{pipe.exported()} counted")
    assert pipe.dropped("export_failed") == 0
    assert pipe.spans.close(5)


def test_what_a_collector_refuses_is_not_sent_again(either: Taken, pipe: Pipe) -> None:
    either.refuse(retryable=False)
    end_many(pipe, 3)
    wait_for(lambda: pipe.dropped("export_failed") == 3, 20, lambda: f"{pipe.dropped('export_failed')} counted")
    assert either.posts == 1
    either.accept()
    end_many(pipe, 1)
    either.wait(1)
    wait_for(lambda: len(pipe.said) == 2, 5, lambda: str(pipe.said))
    assert pipe.said == [("warning", "spans are dropped"), ("info", "the trace collector takes spans again")]


def test_what_a_collector_takes_in_part_is_not_sent_again(either: Taken, pipe: Pipe) -> None:
    either.rejected = 2
    end_many(pipe, 10)
    wait_for(lambda: pipe.exported() == 8, 20, lambda: f"{pipe.exported()} counted")
    assert pipe.dropped("rejected") == 2
    assert len(either.wait(10)) == 10
    assert pipe.said == []


def test_a_connection_that_the_collector_closed_is_opened_anew() -> None:
    collector = Collector()
    pipe = Pipe(collector.url)
    end_many(pipe, 1)
    collector.wait(1)
    pipe.exporter._collector._connection.sock.shutdown(2)  # type: ignore[attr-defined]
    end_many(pipe, 1)
    assert len(collector.wait(2)) == 2
    assert pipe.dropped("export_failed") == 0
    pipe.spans.close(5)
    collector.close()


def test_headers_for_the_collector_come_from_the_environment(either: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc,x-tenant=demo")
    pipe = Pipe(either.url)
    end_many(pipe, 1)
    either.wait(1)
    assert either.headers[0]["authorization"] == "Bearer abc"
    assert either.headers[0]["x-tenant"] == "demo"
    pipe.spans.close(5)


@pytest.mark.parametrize("path", ["/prefix", "/prefix/", "/prefix/v1/traces"])
def test_the_signals_path_is_added_to_a_base_address(path: str) -> None:
    collector = Collector()
    pipe = Pipe(collector.url + path)
    end_many(pipe, 1)
    collector.wait(1)
    assert collector.paths == ["/prefix/v1/traces"]
    pipe.spans.close(5)
    collector.close()


def test_grpc_over_tls_trusts_the_authorities_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = Authority(tmp_path)
    pair = ca.issue("localhost", dns=["localhost"])
    collector = GrpcCollector(grpc.ssl_server_credentials([(pair.key.read_bytes(), pair.cert.read_bytes())]))
    monkeypatch.setattr(export, "RETRIES", ())
    stranger = Pipe(collector.url)
    end_many(stranger, 1)
    wait_for(lambda: stranger.dropped("export_failed") == 1, 30, lambda: "the span was not given up")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(ca.file))
    friend = Pipe(collector.url)
    end_many(friend, 1)
    assert len(collector.wait(1)) == 1
    for pipe in (stranger, friend):
        pipe.spans.close(5)
    collector.close()


def test_grpc_without_grpcio_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(MissingExtra, match=r"pip install 'l7proxy\[grpc\]'"):
        Pipe("grpc://127.0.0.1:4317")


def threads() -> int:
    return [thread.name for thread in threading.enumerate()].count("spans")


def test_one_exporter_serves_every_configuration_that_names_its_collector(either: Taken) -> None:
    stats, keep = Stats(), Keep()
    telemetry = Telemetry(stats, Log(stats, "/dev/null"))
    assert threads() == 0
    for sampling in (0.1, 0.5, 1.0):
        tracer = telemetry.tracer(keep, TARGET, either.url, sampling)
        assert not [dropped for dropped in keep.commit() if hasattr(dropped, "close")]
    assert threads() == 1
    request = finished(headers=[])
    tracer.begin(request)
    request.span.end(request, 200, None)
    telemetry.tracer(keep, TARGET)
    [dropped] = [dropped for dropped in keep.commit() if hasattr(dropped, "close")]
    dropped.close(5)
    assert len(either.spans) == 1
    assert threads() == 0
    telemetry.close()
