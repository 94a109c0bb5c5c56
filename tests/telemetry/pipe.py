"""From a tracer to a collector, within this process."""

from typing import Any

from l7proxy.core.message import Request
from l7proxy.core.stats import Counter, Stats
from l7proxy.telemetry.export import Exporter
from l7proxy.telemetry.hindsight import Hindsight
from l7proxy.telemetry.spans import Spans
from l7proxy.telemetry.tracing import Tracer
from tests.telemetry.requests import finished

TARGET = {"service.name": "orders", "service.version": "v1", "l7proxy.mesh": "demo"}


class Pipe:
    """A tracer that samples everything, or with `errors` what fails alone, and what it counted and said."""

    def __init__(self, url: str, b3: bool = False, errors: bool = False) -> None:
        self.stats = Stats()
        self.said: list[tuple[str, str]] = []
        self.exporter = Exporter(self.stats, url, lambda level, event, **_: self.said.append((level, event)), 0.01)
        self.spans = Spans(TARGET, self.exporter)
        hindsight = Hindsight(self.spans, b3) if errors else None
        self.tracer = Tracer(self.spans, 0.0 if errors else 1.0, b3, hindsight)

    def begin(self, identity: str = "", **fields: Any) -> Request:
        request = finished(identity, **fields)
        self.tracer.begin(request)
        return request

    def dropped(self, reason: str) -> float:
        return self._value("l7proxy_spans_dropped_total", ("reason", reason))

    def exported(self) -> float:
        return self._value("l7proxy_spans_exported_total")

    def _value(self, name: str, *labels: tuple[str, str]) -> float:
        counter = self.stats.families[name].children[labels]
        assert isinstance(counter, Counter)
        return counter.value
