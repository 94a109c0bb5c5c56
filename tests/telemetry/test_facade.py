"""What a process tells of itself, and what it does about its telemetry while it runs."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from l7proxy.core.handler import Keep
from l7proxy.core.stats import Histogram, Stats
from l7proxy.telemetry import facade, metrics
from l7proxy.telemetry.facade import Telemetry, resource
from l7proxy.telemetry.log import Log
from l7proxy.telemetry.metrics import SERVER
from l7proxy.telemetry.process import open_descriptors
from tests.telemetry.requests import finished


class Service(NamedTuple):
    name: str = "orders"
    namespace: str = "shop"
    mesh: str = "demo"
    version: str = ""
    labels: dict[str, str] = {"version": "v1"}  # noqa: RUF012


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    stats = Stats()
    telemetry = Telemetry(stats, Log(stats, "/dev/null"))
    yield telemetry
    telemetry.close()


def value(stats: Stats, name: str) -> float:
    for refresh in stats.refresh:
        refresh()
    metric = stats.families[name].children[()]
    assert not isinstance(metric, Histogram)
    return metric.value


def test_the_resource_is_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = resource(Service())
    assert attributes.pop("service.instance.id")
    assert attributes == {
        "service.name": "orders",
        "service.namespace": "shop",
        "service.version": "v1",
        "l7proxy.mesh": "demo",
    }
    assert resource(Service(version="v2"))["service.version"] == "v2"
    assert "l7proxy.mesh" not in resource(Service(mesh=""))
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=orders-7d, service.instance.id=me,broken")
    attributes = resource(Service())
    assert (attributes["k8s.pod.name"], attributes["service.instance.id"]) == ("orders-7d", "me")
    assert "broken" not in attributes


def test_descriptors_are_those_of_the_process() -> None:
    """In a process of its own: a thread that waits in accept(), as other tests have them, holds a number already."""
    program = """if True:
        import os
        from l7proxy.core.stats import Stats
        from l7proxy.telemetry.process import observe_process
        from tests.telemetry.test_facade import value

        stats = Stats()
        observe_process(stats)
        for more in (0, 10):
            kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(more)]
            assert value(stats, "process_open_fds") == len(os.listdir("/proc/self/fd")) - 1, more
    """
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True, timeout=60)


def test_memory_and_cpu_are_those_of_the_process(telemetry: Telemetry) -> None:
    stats = telemetry.stats
    memory = value(stats, "process_resident_memory_bytes")
    block = b"x" * (64 << 20)
    assert value(stats, "process_resident_memory_bytes") - memory > 32 << 20
    del block
    cpu = value(stats, "process_cpu_seconds_total")
    while time.process_time() < cpu + 0.05:
        pass
    assert 0.05 <= value(stats, "process_cpu_seconds_total") - cpu < 5
    assert 0 <= time.time() - value(stats, "process_start_time_seconds") < 86400
    assert value(stats, "process_max_fds") >= open_descriptors()


def test_a_loop_that_is_blocked_shows_its_lag(telemetry: Telemetry) -> None:
    async def main() -> None:
        telemetry.start(asyncio.get_running_loop())
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_soon(time.sleep, 0.6)
        await asyncio.sleep(0.05)

    asyncio.run(main())
    lag = telemetry.stats.histogram("l7proxy_event_loop_lag_seconds", "")
    assert lag.count == 1
    assert 0.4 < lag.sum < 2


def test_idle_series_go_while_the_process_runs(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facade, "SWEEP", 0.01)
    monkeypatch.setattr(metrics, "IDLE", 0.05)
    keep = Keep()
    for number in range(120):
        route = telemetry.metrics.route(keep, f"route-{number}", True)
        route.finish(finished("someone"), 200, 0.1)
    children = telemetry.stats.families[SERVER].children
    assert len(children) == 240

    async def main() -> None:
        telemetry.start(asyncio.get_running_loop())
        for _ in range(200):
            await asyncio.sleep(0.01)
            if len(children) == 120:
                break

    asyncio.run(main())
    assert len(children) == 120
    assert {dict(labels)["l7proxy_peer"] for labels in children} == {""}
