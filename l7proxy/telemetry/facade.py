"""All telemetry of one process: made once, and asked by each configuration for what it needs."""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from l7proxy.core.handler import Keep
from l7proxy.core.stats import Stats
from l7proxy.telemetry.access import AccessLog
from l7proxy.telemetry.log import Log
from l7proxy.telemetry.lost import LostContext
from l7proxy.telemetry.metrics import Metrics
from l7proxy.telemetry.process import LoopLag, observe_process
from l7proxy.telemetry.tracing import Tracer

if TYPE_CHECKING:
    from l7proxy.telemetry.spans import Spans

SWEEP = 60.0
"""Seconds between two looks for idle series."""

SWEPT_AT_ONCE = 50
"""Routes looked at in one go: about 0.1 ms."""


POD = {
    "POD_NAME": "k8s.pod.name",
    "POD_NAMESPACE": "k8s.namespace.name",
    "POD_UID": "k8s.pod.uid",
    "POD_IP": "k8s.pod.ip",
    "NODE_NAME": "k8s.node.name",
}
"""Resource attributes by the environment variables that a pod's manifest fills from the downward API."""


class Service(Protocol):
    """Who the application is."""

    @property
    def name(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def mesh(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


def resource(service: Service) -> dict[str, str]:
    """Returns the resource attributes of metrics and spans.

    The version is by default the label `version`. `POD` names what Kubernetes tells of the pod by its downward API, and
    `OTEL_RESOURCE_ATTRIBUTES` (`a=b,c=d`) adds to all of them or replaces them.
    """
    attributes = {
        "service.name": service.name,
        "service.namespace": service.namespace,
        "service.version": service.version or service.labels.get("version", ""),
        "service.instance.id": socket.gethostname(),
        "l7proxy.mesh": service.mesh,
        **{name: os.environ.get(variable, "") for variable, name in POD.items()},
    }
    for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        name, _, value = pair.partition("=")
        attributes[name.strip()] = value.strip()
    return {name: value for name, value in attributes.items() if name and value}


class Telemetry:
    """The metrics of the process, and where its spans and access logs go.

    `target` are the resource attributes of the live configuration, `serving` tells how many requests the application
    has at hand. What `tracer` and `access_log` return is kept over swaps while the settings stay as they are; each has
    a `close` for when no configuration asks for it any more.
    """

    def __init__(self, stats: Stats, log: Log) -> None:
        self.stats = stats
        self.log = log
        self.metrics = Metrics(stats)
        self.target: dict[str, str] = {}
        self.serving: Callable[[], int] = int
        self._logs: list[AccessLog] = []
        self._spans: list[Spans] = []
        self._lag: LoopLag | None = None
        self._sweep: asyncio.TimerHandle | None = None
        observe_process(stats)

    def tracer(
        self,
        keep: Keep,
        target: Mapping[str, str],
        otlp: str | None = None,
        sampling: float = 0.0,
        b3: bool = False,
        errors: bool = False,
    ) -> Tracer:
        """Returns what begins each request's trace. Without `otlp` no span is ever made, and no SDK imported.

        Raises MissingExtra where the collector speaks gRPC and grpcio is not installed.
        """
        if otlp is None:
            return Tracer(b3=b3)

        def make() -> "Spans":
            # The SDK takes 8 MB and 0.1 s, which nobody pays who has no collector.
            from l7proxy.telemetry.export import Exporter
            from l7proxy.telemetry.spans import Spans

            spans = Spans(target, Exporter(self.stats, otlp, self.log))
            self._spans = [other for other in self._spans if not other.closed] + [spans]
            return spans

        spans = keep.get(("spans", otlp, tuple(target.items())), make)

        def begin() -> Tracer:
            from l7proxy.telemetry.hindsight import Hindsight

            lost = LostContext(self.stats, self.log, lambda: self.serving())
            return Tracer(spans, sampling, b3, Hindsight(spans, b3) if errors else None, lost)

        # The same one as long as its settings are: routes with a probability of their own are compiled with it.
        return keep.get(("tracer", spans, sampling, b3, errors), begin)

    def access_log(self, keep: Keep, path: str, format: Literal["json", "text"] = "json") -> AccessLog:
        """Returns the access log at `path`; raises OSError when it cannot be opened."""

        def make() -> AccessLog:
            log = AccessLog(self.stats, path, format)
            self._logs = [other for other in self._logs if not other.closed] + [log]
            return log

        return keep.get(("access log", path, format), make)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begins to watch the event loop and to forget series that traffic made and left alone."""
        self._lag = LoopLag(self.stats, loop)
        self._sweep = loop.call_later(SWEEP, self._begin_sweep, loop)

    def reopen(self) -> None:
        """Opens the access logs anew: their files were moved away (SIGUSR1)."""
        for log in self._logs:
            log.reopen()

    def close(self, timeout: float = 2.0) -> None:
        """Sends and writes what waits, which may block for `timeout` seconds in all."""
        if self._lag is not None:
            self._lag.close()
        if self._sweep is not None:
            self._sweep.cancel()
        deadline = time.monotonic() + timeout
        parts: list[AccessLog | Spans] = [*self._logs, *self._spans]
        for part in parts:
            part.close()
        for part in parts:
            part.close(max(0.0, deadline - time.monotonic()))
        self.log.close(max(0.1, deadline - time.monotonic()))

    def _begin_sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._continue_sweep(loop, self.metrics.expire(time.monotonic()))

    def _continue_sweep(self, loop: asyncio.AbstractEventLoop, steps: Iterator[None]) -> None:
        for _ in range(SWEPT_AT_ONCE):
            if next(steps, self) is self:
                self._sweep = loop.call_later(SWEEP, self._begin_sweep, loop)
                return
        loop.call_soon(self._continue_sweep, loop, steps)
