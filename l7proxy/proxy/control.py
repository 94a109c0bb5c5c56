"""What is live: takes models, compiles them beside the traffic, and swaps or refuses each as a whole."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from hashlib import blake2b
from typing import Any

from l7proxy.config.model import Model, Resource, Sidecar
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.handler import Keep, Source
from l7proxy.core.message import Request
from l7proxy.core.slices import Steps, between, finish
from l7proxy.identity.contexts import Identity
from l7proxy.proxy.compile import Compiler
from l7proxy.proxy.snapshot import Live, Snapshot
from l7proxy.proxy.tap import Taps
from l7proxy.telemetry.facade import Telemetry, resource

KEPT = 8
"""Configurations before the live one that are kept for questions about requests that they served."""

KEPT_ROUTES = 20_000
"""Routes of all of these together, beyond which only the last one is kept."""

_REJECTED = ("l7proxy_config_rejected_total", "Configurations that were refused")


class NotKept(ValueError):
    """A configuration version that is neither live nor kept."""


class Control:
    """The live configuration of one process.

    `apply` makes a model live or raises ConfigError and changes nothing; `follow` does so for all that a source yields.
    """

    def __init__(self, telemetry: Telemetry, model: Model) -> None:
        """Compiles the first model at once; raises ConfigError."""
        self.telemetry = telemetry
        self.keep = Keep()
        self.models: dict[str, Model] = {}
        """The live configuration and those before it, by version, the live one last."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lock = asyncio.Lock()
        self._prepared: Snapshot | None = None
        self._compiler = Compiler(telemetry, self.keep, random.Random(), self.spawn)
        stats = telemetry.stats
        self._version = stats.gauge(
            "l7proxy_config_version", "A number that stands for the live configuration: the same for the same content"
        )
        self._since = stats.gauge("l7proxy_config_live_since_seconds", "When the live configuration went live")
        stats.counter(*_REJECTED)
        self._accepted = stats.counter("l7proxy_config_accepted_total", "Configurations that went live")
        snapshot = finish(self._compiler.steps(model))
        live = self.live = Live(snapshot, self._refused, self._failed)
        telemetry.serving = lambda: live.active - live.outbound
        self.taps = Taps(live, stats)
        finish(self._swap(snapshot))

    @property
    def snapshot(self) -> Snapshot:
        """The live configuration."""
        return self.live.snapshot

    async def apply(self, model: Model) -> None:
        """Makes `model` live, a slice of work at a time; raises ConfigError and changes nothing when it cannot be."""
        if model.version != self.snapshot.version:
            await self.prepare(model)
            await self.commit()

    async def prepare(self, model: Model) -> None:
        """Does all of `apply` that can fail; `commit` or `rollback` must follow."""
        await self._lock.acquire()
        try:
            self._prepared = await between(self._compiler.steps(model))
        except BaseException:
            self.rollback()
            raise

    async def commit(self) -> None:
        """Makes live what was prepared."""
        snapshot, self._prepared = self._prepared, None
        assert snapshot is not None
        try:
            before = self.snapshot
            await between(self._swap(snapshot))
            leftovers = _dismantle(before, self._forgotten())
            del before
            await between(leftovers)
        finally:
            self._lock.release()

    def rollback(self) -> None:
        """Gives up what was prepared."""
        self._prepared = None
        self._compiler.rollback()
        self._lock.release()

    async def follow(self, source: Source) -> None:
        """Applies what the source yields, and tells it and the log how that went."""
        await follow(source, self.apply, self.telemetry, self.snapshot.model.sidecar.spec)

    def identities(self) -> list[Identity]:
        """Returns every certificate that is in use."""
        return self._compiler.identities.live()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Runs work that outlives a request; `close` ends it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Ends what was spawned and lets go of every upstream."""
        for task in self._tasks:
            task.cancel()
        self._compiler.close()

    def model(self, version: str) -> Model:
        """Returns the configuration with a version; raises NotKept."""
        model = self.models.get(version)
        if model is None:
            raise NotKept(f"configuration {version} is no longer kept")
        return model

    def _forgotten(self) -> list[Model]:
        """Returns the oldest configurations that are too many, and keeps them no longer."""
        older = list(self.models)[:-1]
        gone = []
        while len(older) > KEPT or (
            len(older) > 1 and sum(len(self.models[version].routes) for version in older) > KEPT_ROUTES
        ):
            gone.append(self.models.pop(older.pop(0)))
        return gone

    def _swap(self, snapshot: Snapshot) -> Steps[None]:
        """Makes the snapshot live at once; the steps tell the metrics and let go of what only the last one used."""
        live, limits = self.live, snapshot.model.sidecar.spec.limits
        live.snapshot = snapshot
        live.max_active = limits.requests
        for buffers in (live.inbound_buffers, live.outbound_buffers):
            buffers.limit, buffers.share = limits.buffered, limits.buffered_per_connection
        rest = self._compiler.commit()
        self._version.value = int.from_bytes(blake2b(snapshot.version.encode(), digest_size=6).digest(), "big")
        self._since.value = time.time()
        self._accepted.value += 1
        model = snapshot.model
        self.models.pop(model.version, None)
        self.models[model.version] = model
        self.telemetry.target = resource(model.sidecar.spec.service)
        self.telemetry.log("info", "configuration live", version=snapshot.version, routes=len(model.routes))
        names = (route.name for route in model.routes)
        return _after(self.telemetry.metrics.settle(names, model.upstreams, time.monotonic()), rest)

    def _refused(self, reason: str) -> None:
        self.telemetry.stats.counter(
            "l7proxy_bad_requests_total", "Requests refused as malformed, by reason", listener="inbound", reason=reason
        ).value += 1

    def _failed(self, request: Request, error: Exception) -> None:
        route = request.route.name if request.route is not None else ""
        self.telemetry.log(
            "error", "policy failed", route=route, error=f"{type(error).__name__}: {error}", **request.names()
        )


async def follow(
    source: Source, apply: Callable[[Model], Awaitable[None]], telemetry: Telemetry, started: Sidecar
) -> None:
    """Applies what a source yields, and tells it, the metrics and the log how that went.

    `started` is what the process listens by.
    """
    rejected = telemetry.stats.counter(*_REJECTED)
    async for model in source.updates():
        version = ""
        try:
            if isinstance(model, ConfigError):
                raise model
            version = model.version
            warn(model.warnings, telemetry)
            await apply(model)
        except Exception as failure:
            # The live one goes on, and so does the wait for the next, whatever this one stumbles over.
            error = failure if isinstance(failure, ConfigError) else _stumbled(model, failure)
            rejected.value += 1
            for problem in error.problems:
                telemetry.log(
                    "error", "configuration rejected", file=problem.file, line=problem.line, message=str(problem)
                )
            source.reject(version, error)
        else:
            warn(_later(model.sidecar, started), telemetry)
            source.accept(version)


def warn(problems: Iterable[Problem], telemetry: Telemetry) -> None:
    """Logs what is no mistake, and may still not be what is meant."""
    for problem in problems:
        telemetry.log("warning", "configuration", message=str(problem))


def _later(sidecar: Resource[Sidecar], started: Sidecar) -> Iterator[Problem]:
    """Yields what the document says otherwise than the process began, and cannot change while it runs."""
    begun = _fixed(started)
    for path, value in _fixed(sidecar.spec).items():
        if value != begun[path]:
            has = begun[path] or "none"
            yield Problem(*sidecar.where(path), f"{path}: takes effect at the next start; this process has {has}")


def _fixed(spec: Sidecar) -> dict[str, object]:
    """Returns what is read at the start alone, by its path."""
    listeners = ("inbound", "outbound", "admin", "metrics", "health")
    found = {f"spec.{name}.listen": getattr(getattr(spec, name), "listen", None) for name in listeners}
    return {**found, "spec.workers": spec.workers}


def _stumbled(model: Model, failure: Exception) -> ConfigError:
    """Returns what is told of a mistake of ours, which no line of the configuration explains."""
    problem = Problem(model.sidecar.file, 0, f"internal error: {type(failure).__name__}: {failure}")
    return ConfigError([problem.concealing(model.expanded)])


def _after(first: Steps[None], second: Steps[None]) -> Steps[None]:
    yield from first
    yield from second


def _dismantle(before: Snapshot, forgotten: list[Model]) -> Steps[None]:
    """Lets go of a snapshot in steps; a request that began with it has its route already and needs no other."""
    yield from before.inbound.router.dismantle()
    yield from before.outbound.router.dismantle()
    routes = [route for model in forgotten for route in model.routes]
    forgotten.clear()
    del before
    while routes:
        routes.pop()
        yield
