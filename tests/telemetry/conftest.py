"""Collectors that end with their test."""

from collections.abc import Iterator

import pytest

from tests.telemetry.collector import Collector, GrpcCollector, Taken


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector over HTTP."""
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(params=[Collector, GrpcCollector], ids=["http", "grpc"])
def either(request: pytest.FixtureRequest) -> Iterator[Taken]:
    """A collector over HTTP, and one over gRPC."""
    collector: Taken = request.param()
    yield collector
    collector.close()
