"""What the admin API is told of this process; see `admin.app.AdminView`."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec

from l7proxy.admin import answers
from l7proxy.admin.tapping import Source
from l7proxy.config.model import Resource
from l7proxy.core.expanded import encoded, shown
from l7proxy.core.slices import between
from l7proxy.core.stats import Stats
from l7proxy.identity.material import Material
from l7proxy.identity.report import ShownIdentity, certificates
from l7proxy.proxy.app import route_of
from l7proxy.proxy.control import Control
from l7proxy.proxy.decision import Question
from l7proxy.proxy.explain import Explainer, explaining
from l7proxy.proxy.explanation import Explanation
from l7proxy.proxy.tap import Wanted
from l7proxy.proxy.why import Why, remembered
from l7proxy.server.drain import Drain
from l7proxy.server.listeners import Listeners
from l7proxy.telemetry.access import Record, record
from l7proxy.telemetry.log import Level, Log

_CONNECTIONS = 50
"""Connections that are looked at in one go."""

ALIKE = 20
"""Requests of one id that are told of at once: a trace may have thousands."""

FAILURES = 100
"""Requests that failed, of those that are remembered, that are listed."""


class View:
    """The live state, as plain data."""

    quit: Callable[[], None]
    """Ends the process; given by whoever hears its signals too."""

    def __init__(self, control: Control, listeners: Listeners, drain: Drain) -> None:
        self._control = control
        self._listeners = listeners
        self._drain = drain
        self._explainers: dict[bool, tuple[Any, Explainer]] = {}
        self._asking = asyncio.Lock()

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
                    "spec": msgspec.to_builtins(document.spec, enc_hook=encoded),
                }
                for document in documents
            ],
        }

    def routes(self) -> list[answers.Route]:
        return [
            {
                "name": document.name,
                "direction": document.spec.direction,
                "hosts": tuple(map(shown, document.spec.hosts)),
                "matches": msgspec.to_builtins(document.spec.matches, enc_hook=encoded),
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

    async def explain(self, question: Question, version: str = "") -> Explanation:
        snapshot = self._control.snapshot
        live = version in ("", snapshot.version)
        model = snapshot.model if live else self._control.model(version)
        about = snapshot if live else model
        async with self._asking:
            # Compiled at the first question to a configuration, between requests: the live one, and one of the others.
            known = self._explainers.get(live)
            if known is None or known[0] is not about:
                if known is not None:
                    del self._explainers[live]
                    await between(known[1].dismantle())
                domain = snapshot.tls.identity.trust_domain if live and snapshot.tls is not None else None
                compiled = await between(explaining(model, snapshot.clusters if live else None, domain))
                known = self._explainers[live] = about, compiled
            return await known[1].ask(question)

    async def why(self, name: str) -> list[Why]:
        entries = self._control.live.history.find(name.encode())[-ALIKE:]
        return [await remembered(entry, self.explain) for entry in entries]

    def failures(self) -> list[Record]:
        return [record(*entry) for entry in self._control.live.history.failures(FAILURES)]

    async def tap(self, wanted: Wanted) -> Source:
        tap = self._control.taps.open(wanted)
        log_tap(self._control.telemetry.log, wanted)
        return tap

    def drain(self) -> None:
        self._drain.begin()


def log_tap(log: Log, wanted: Wanted) -> None:
    """Logs that somebody looks at requests, and at how much of them."""
    log("info", "tapped", seconds=wanted.seconds, headers=wanted.headers, reveal=wanted.reveal, secrets=wanted.secrets)
