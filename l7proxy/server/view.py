"""What the admin API is told of this process; see `admin.app.AdminView`."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from l7proxy.admin import answers
from l7proxy.config.model import Resource
from l7proxy.core.slices import between
from l7proxy.core.stats import Stats
from l7proxy.identity.material import Material
from l7proxy.identity.report import ShownIdentity, certificates
from l7proxy.proxy.app import route_of
from l7proxy.proxy.control import Control
from l7proxy.proxy.decision import Question
from l7proxy.proxy.explain import Explainer, explaining
from l7proxy.proxy.explanation import Explanation
from l7proxy.proxy.snapshot import Snapshot
from l7proxy.server.drain import Drain
from l7proxy.server.listeners import Listeners
from l7proxy.telemetry.log import Level

_CONNECTIONS = 50
"""Connections that are looked at in one go."""


class View:
    """The live state, as plain data."""

    quit: Callable[[], None]
    """Ends the process; given by whoever hears its signals too."""

    def __init__(self, control: Control, listeners: Listeners, drain: Drain) -> None:
        self._control = control
        self._listeners = listeners
        self._drain = drain
        self._explainer: tuple[Snapshot, Explainer] | None = None

    @property
    def level(self) -> Level:
        return self._control.telemetry.log.level

    def set_level(self, level: Level) -> None:
        self._control.telemetry.log.level = level

    async def collect(self) -> Stats:
        return self._control.telemetry.stats

    @property
    def target(self) -> Mapping[str, str]:
        return self._control.telemetry.target

    def not_ready(self) -> str:
        if self._drain.began:
            return "draining"
        waiting = [identity.name for identity in self._control.identities() if identity.material == Material()]
        return f"waiting for certificates: {', '.join(waiting)}" if waiting else ""

    def not_live(self) -> str:
        return ""

    def config(self) -> answers.Config:
        model = self._control.snapshot.model
        documents: list[Resource[Any]] = [model.sidecar, *model.upstreams.values(), *model.routes]
        documents += [document for kind in model.others.values() for document in kind]
        return {
            "version": self._control.snapshot.version,
            "documents": [
                {
                    "kind": document.kind,
                    "name": document.name,
                    "file": document.file,
                    "line": document.line,
                    "spec": msgspec.to_builtins(document.spec, enc_hook=str),
                }
                for document in documents
            ],
        }

    def routes(self) -> list[answers.Route]:
        return [
            {
                "name": document.name,
                "direction": document.spec.direction,
                "hosts": document.spec.hosts,
                "matches": msgspec.to_builtins(document.spec.matches),
                "upstream": document.spec.upstream,
                "policies": [policy.name for policy in document.spec.policies],
                "file": document.file,
                "line": document.line,
            }
            for document in self._control.snapshot.model.routes
        ]

    def clusters(self) -> list[answers.Cluster]:
        now = time.monotonic()
        return [
            {
                "name": name,
                "requests": cluster.load.requests,
                "pending": cluster.load.pending,
                "connections": cluster.load.connections,
                "endpoints": [
                    {
                        "address": endpoint.address,
                        "active": endpoint.active,
                        "latency_ms": round(endpoint.latency * 1000, 3),
                        "ejected_for_s": max(0.0, round(endpoint.ejected_until - now, 1)),
                    }
                    for endpoint in cluster.endpoints
                ],
            }
            for name, cluster in self._control.snapshot.clusters.items()
        ]

    async def requests(self) -> list[answers.Active]:
        found: list[answers.Active] = []
        for listener in self._listeners.traffic:
            inbound = listener.name == "inbound"
            side = self._control.snapshot.inbound if inbound else self._control.snapshot.outbound
            counts: Counter[str] = Counter()
            for number, connection in enumerate(list(listener.connections)):
                counts.update(route_of(side, exchange) for exchange in connection.exchanges)
                if number % _CONNECTIONS == 0:
                    await asyncio.sleep(0)
            direction: Literal["inbound", "outbound"] = "inbound" if inbound else "outbound"
            found += [{"direction": direction, "route": name, "active": count} for name, count in counts.items()]
        return found

    def certs(self) -> list[ShownIdentity]:
        return certificates(self._control.identities())

    async def explain(self, question: Question) -> Explanation:
        # Compiled at the first question to a configuration, between requests, and kept while it is live.
        snapshot = self._control.snapshot
        known = self._explainer
        if known is None or known[0] is not snapshot:
            if known is not None:
                self._explainer = None
                await between(known[1].dismantle())
            known = self._explainer = snapshot, await between(explaining(snapshot.model, snapshot.clusters))
        return await known[1].ask(question)

    def drain(self) -> None:
        self._drain.begin()
