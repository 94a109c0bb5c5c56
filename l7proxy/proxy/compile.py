"""From a model to a snapshot: every decision that does not depend on the request is taken here, once."""

import time
from collections.abc import Callable, Coroutine, Generator
from random import Random
from typing import Any

from msgspec import Struct

from l7proxy.config.model import APP, Match, Model, Resource, Sidecar, Upstream
from l7proxy.config.model import Route as RouteSpec
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.extras import MissingExtra
from l7proxy.core.handler import Build, Handler, Keep, RouteInfo
from l7proxy.filters.retry import Retry
from l7proxy.proxy import targets
from l7proxy.proxy.clusters import Clusters
from l7proxy.proxy.egress import Egress
from l7proxy.proxy.forwarding import Forwarding
from l7proxy.proxy.router import Router, Rule
from l7proxy.proxy.snapshot import Route, Side, Snapshot, Target
from l7proxy.telemetry.access import AccessLog
from l7proxy.telemetry.facade import Telemetry, resource
from l7proxy.telemetry.tracing import Tracer
from l7proxy.upstream.cluster import Cluster


class _Memo(Struct):
    """What a route was compiled to, and what it asked to be kept."""

    resource: Resource[RouteSpec]
    clusters: tuple[Cluster, ...]
    route: Route
    kept: list[Any]


class _Retired:
    """Calls what the filters of one route asked for when the route goes."""

    def __init__(self) -> None:
        self.actions: list[Callable[[], None]] = []

    def close(self) -> None:
        for action in self.actions:
            action()


class Compiler:
    """Compiles model after model; what did not change is taken from the last one."""

    def __init__(
        self,
        telemetry: Telemetry,
        keep: Keep,
        random: Random,
        spawn: Callable[[Coroutine[Any, Any, Any]], None],
    ) -> None:
        self._telemetry = telemetry
        self._stats = telemetry.stats
        self._metrics = telemetry.metrics
        self._keep = keep
        self._random = random
        self._spawn = spawn
        self._log = telemetry.log
        self._clusters = Clusters(self._stats, self._metrics, keep, random)
        self._memo: dict[tuple[str, str], _Memo] = {}
        self._next: dict[tuple[str, str], _Memo] = {}
        self._serial = 0
        self._specs: dict[str, tuple[Upstream, Cluster]] = {}

    def steps(self, model: Model) -> Generator[None, None, Snapshot]:
        """Compiles in steps of well under a millisecond; raises ConfigError with every problem found."""
        self._next = {}
        self._specs = {}
        sidecar = model.sidecar.spec
        inbound, outbound = sidecar.inbound, sidecar.outbound
        if inbound is not None and inbound.app is not None:
            self._specs[APP] = self._app(inbound.app)
        for name, upstream in model.upstreams.items():
            self._specs[name] = (upstream.spec, self._clusters.get(name, upstream.spec))
            yield
        problems: list[Problem] = []
        rules: dict[bool, list[Rule[Target]]] = {True: [], False: []}
        strict = {True: False, False: False}
        for document in model.routes:
            towards_us = document.spec.direction == "inbound"
            try:
                route = self._route(document)
            except (ConfigError, MissingExtra, ValueError, KeyError) as error:
                file, line = document.where("spec")
                problems += error.problems if isinstance(error, ConfigError) else [Problem(file, line, str(error))]
                continue
            for match in document.spec.matches:
                rules[towards_us].append(Rule(document.spec.hosts, match, Target(route, _pattern(match))))
            strict[towards_us] |= any(policy.name == "authorization" for policy in document.spec.policies)
            yield
        if problems:
            raise ConfigError(problems)
        keep = self._keep
        slashes = inbound.encoded_slashes if inbound is not None else None
        strict[True] |= bool(model.others) or slashes == "REJECT"
        fallback = None
        if APP in self._specs and not rules[True]:
            fallback = Target(self._plain("", True, self._specs[APP][1].send), "/")
        anywhere = None
        if outbound is not None and outbound.policy == "ALLOW_ANY":
            egress = keep.get(("egress",), lambda: Egress(self._stats, self._metrics, self._random))
            anywhere = Target(self._plain("", False, egress.send), "/")
        forwarding = Forwarding() if inbound is None else Forwarding(inbound.trusted_proxies, inbound.trusted_hops)
        snapshot = Snapshot(
            version=model.version,
            service=sidecar.service.name.encode("ascii", "replace"),
            inbound=Side(
                True,
                (yield from Router.build(rules[True])),
                forwarding,
                self._metrics.route(keep, "", True),
                fallback,
                strict[True],
                slashes or "",
            ),
            outbound=Side(
                False,
                (yield from Router.build(rules[False])),
                forwarding,
                self._metrics.route(keep, "", False),
                anywhere,
                False,
                "KEEP",
            ),
            tracer=self._tracer(sidecar),
            log=self._access_log(model.sidecar),
            model=model,
            clusters={name: cluster for name, (_, cluster) in self._specs.items()},
        )
        return snapshot

    def commit(self) -> None:
        """What was compiled last goes live; what only the configuration before it used is closed."""
        self._memo = self._next
        self._clusters.commit(self._specs)
        _close(self._keep.commit())

    def rollback(self) -> None:
        """What was compiled last is given up."""
        _close(self._keep.rollback())

    def close(self) -> None:
        """Lets go of everything that is live."""
        _close(self._keep.commit())

    def _tracer(self, sidecar: Sidecar) -> Tracer:
        target = resource(sidecar.service)
        tracing = sidecar.tracing
        if tracing is None:
            return self._telemetry.tracer(self._keep, target)
        return self._telemetry.tracer(self._keep, target, tracing.otlp, tracing.sampling, tracing.b3)

    def _access_log(self, sidecar: Resource[Sidecar]) -> AccessLog | None:
        spec = sidecar.spec.access_log
        if spec is None:
            return None
        try:
            return self._telemetry.access_log(self._keep, spec.path, spec.format)
        except OSError as error:
            file, line = sidecar.where("spec.accessLog.path")
            raise ConfigError([Problem(file, line, f"accessLog.path: {spec.path}: {error.strerror}")]) from None

    def _app(self, url: str) -> tuple[Upstream, Cluster]:
        scheme, _, rest = url.partition("://")
        address = rest.partition("/")[0]
        if address.rpartition(":")[2].isdigit() is False or address.endswith("]"):
            address += ":443" if scheme == "https" else ":80"
        spec = Upstream(endpoints=(address,))
        return spec, self._clusters.get(APP, spec)

    def _route(self, resource: Resource[RouteSpec]) -> Route:
        spec = resource.spec
        key = (spec.direction, resource.name)
        names = [spec.upstream] if spec.upstream else [backend.upstream for backend in spec.split]
        if not (names or spec.redirect or spec.direct_response):
            names = [APP]
        clusters = tuple(self._cluster(name) for name in names)
        memo = self._memo.get(key)
        if memo is not None and memo.resource == resource and _same(memo.clusters, clusters):
            self._keep.renew(memo.kept)
            self._next[key] = memo
            return memo.route
        self._keep.asked()
        route = self._compile(resource, clusters)
        self._next[key] = _Memo(resource, clusters, route, self._keep.asked())
        return route

    def _compile(self, resource: Resource[RouteSpec], clusters: tuple[Cluster, ...]) -> Route:
        spec = resource.spec
        info = RouteInfo(resource.name, spec.direction == "inbound", resource.file, resource.line)
        if spec.redirect is not None:
            handle = targets.redirect(spec.redirect)
        elif spec.direct_response is not None:
            handle = targets.direct(spec.direct_response)
        elif len(clusters) == 1:
            handle = clusters[0].send
        else:
            weights = [backend.weight for backend in spec.split]
            handle = targets.split(list(zip([c.send for c in clusters], weights, strict=True)), self._random)
        policies = list(spec.policies)
        if clusters and not any(isinstance(policy, Retry) for policy in policies):
            # Nothing was sent when a connection could not be opened: that much is retried by default.
            policies.append(Retry())
        if spec.rewrite is not None:
            handle = targets.rewrite(handle, spec.rewrite, spec.matches)
        self._serial += 1
        retired = self._keep.get(("retired", self._serial), _Retired)
        for policy in reversed(policies):
            handle = policy.wrap(handle, self._build(info, resource, policy.name, retired))
        return Route(
            resource.name,
            handle,
            self._metrics.route(
                self._keep,
                resource.name,
                info.inbound,
                [(_pattern(match), method.encode()) for match in spec.matches for method in match.methods or ("GET",)],
            ),
            spec.path.forward == "original",
            resource.file,
            resource.line,
        )

    def _plain(self, name: str, inbound: bool, handle: Handler) -> Route:
        """A route that no document describes."""
        info = RouteInfo(name, inbound)
        build = self._build(info, None, "retry", self._keep.get(("retired", name, inbound), _Retired))
        return Route(name, Retry().wrap(handle, build), self._metrics.route(self._keep, name, inbound))

    def _build(self, info: RouteInfo, resource: Resource[RouteSpec] | None, policy: str, retired: _Retired) -> Build:
        def line(path: str) -> tuple[str, int]:
            if resource is None:
                return "", 0
            return resource.where(f"spec.policies.{policy}.{path}" if path else f"spec.policies.{policy}")

        return Build(
            info,
            self._stats,
            self._keep,
            time.monotonic,
            self._random,
            lambda name: self._cluster(name).send,
            self._spawn,
            retired.actions.append,
            self._log,
            line,
        )

    def _cluster(self, name: str) -> Cluster:
        found = self._specs.get(name)
        if found is None:
            raise ValueError(
                "there is no local application: inbound.app is not set" if name == APP else f"unknown upstream {name!r}"
            )
        return found[1]


def _same(before: tuple[Cluster, ...], now: tuple[Cluster, ...]) -> bool:
    return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))


def _pattern(match: Match) -> str:
    """Returns the path pattern as the metric label `http_route` shows it."""
    path = match.path
    return path.exact or path.prefix or path.regex or "/"


def _close(dropped: list[Any]) -> None:
    for thing in dropped:
        close = getattr(thing, "close", None)
        if close is not None:
            close()
