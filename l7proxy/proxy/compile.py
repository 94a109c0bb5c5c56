"""From a model to a snapshot: every decision that does not depend on the request is taken here, once."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import lru_cache
from random import Random
from typing import Any

from msgspec import Struct

from l7proxy.config.model import APP, Inbound, Match, Model, Resource, Sidecar, Upstream, UpstreamTls
from l7proxy.config.model import Route as RouteSpec
from l7proxy.core.address import address_of, network_of
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.extras import MissingExtra
from l7proxy.core.handler import Build, Filter, Handler, Keep, RouteInfo
from l7proxy.core.slices import Steps, drained
from l7proxy.filters.authorization import guard
from l7proxy.filters.authorizer import Authorizer
from l7proxy.filters.retry import Retry
from l7proxy.proxy import targets
from l7proxy.proxy.clusters import Clusters
from l7proxy.proxy.debug import Debugging
from l7proxy.proxy.egress import NAME as EGRESS
from l7proxy.proxy.egress import Egress
from l7proxy.proxy.forwarding import Forwarding
from l7proxy.proxy.identities import Identities, InboundIdentity
from l7proxy.proxy.router import Router, Rule
from l7proxy.proxy.snapshot import Route, Side, Snapshot, Target
from l7proxy.proxy.spellings import Spellings, named_by
from l7proxy.proxy.trace import arriving, sampling, watched
from l7proxy.telemetry.access import AccessLog
from l7proxy.telemetry.facade import Telemetry, resource
from l7proxy.telemetry.tracing import Tracer
from l7proxy.upstream.cluster import Cluster

_MISTAKES = (ConfigError, MissingExtra, ValueError, KeyError)
"""What a policy raises that cannot be compiled as it is written."""


class _Memo(Struct):
    """What a route was compiled to, and what it asked to be kept."""

    resource: Resource[RouteSpec]
    clusters: tuple[Cluster, ...]
    authorizer: Authorizer | None
    watched: bool
    tracer: Tracer | None
    route: Route
    kept: list[Any]


class _Retired:
    """Calls what the filters of one route asked for when the route goes."""

    def __init__(self) -> None:
        self.actions: list[Callable[[], None]] = []

    def close(self) -> None:
        for action in self.actions:
            try:
                action()
            except Exception as failure:
                # Whatever was not let go of, the configuration that comes after is live.
                context = {"message": "a policy failed as it was let go of", "exception": failure}
                asyncio.get_running_loop().call_exception_handler(context)


class Compiler:
    """Compiles model after model; what did not change is taken from the last one."""

    def __init__(
        self,
        telemetry: Telemetry,
        keep: Keep,
        random: Random,
        spawn: Callable[[Coroutine[Any, Any, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._telemetry = telemetry
        self._stats = telemetry.stats
        self._metrics = telemetry.metrics
        self._keep = keep
        self._random = random
        self._spawn = spawn
        self._clock = clock
        self._log = telemetry.log
        self.identities = Identities(telemetry, keep, spawn)
        self._clusters = Clusters(self._stats, self._metrics, keep, random, self.identities)
        self._memo: dict[tuple[str, str], _Memo] = {}
        self._next: dict[tuple[str, str], _Memo] = {}
        self._serial = 0
        self._authorizer: Authorizer | None = None
        self._tracer = Tracer()
        self._specs: dict[str, tuple[Upstream, Cluster]] = {}
        self._watches = False

    def steps(self, model: Model) -> Steps[Snapshot]:
        """Compiles in steps of well under a millisecond; raises ConfigError with every problem found."""
        try:
            return (yield from self._steps(model))
        except ConfigError as error:
            raise ConfigError([problem.concealing(model.expanded) for problem in error.problems]) from error

    def _steps(self, model: Model) -> Steps[Snapshot]:
        self._next = {}
        self._specs = {}
        sidecar = model.sidecar.spec
        self._watches = self.watches(sidecar)
        inbound, outbound = sidecar.inbound, sidecar.outbound
        if inbound is not None and inbound.app is not None:
            self._specs[APP] = self._app(inbound.app, model.sidecar)
        problems: list[Problem] = []
        for name, upstream in model.upstreams.items():
            try:
                cluster = self._clusters.get(name, upstream.spec, upstream, model.sidecar)
            except ConfigError as error:
                problems += error.problems
                continue
            self._specs[name] = (upstream.spec, cluster)
            yield
        if problems:
            raise ConfigError(problems)
        tls = self.identities.inbound(model.sidecar)
        self._tracer = self._begin_with(model.sidecar)
        self._guard_with(model, tls)
        rules: dict[bool, list[Rule[Target]]] = {True: [], False: []}
        strict = {True: False, False: False}
        named: dict[bool, set[str]] = {True: set(), False: set()}
        for document in model.routes:
            towards_us = document.spec.direction == "inbound"
            try:
                route = self._route(document)
            except _MISTAKES as error:
                file, line = document.where("spec")
                problems += error.problems if isinstance(error, ConfigError) else [Problem(file, line, str(error))]
                continue
            for match in document.spec.matches:
                rules[towards_us].append(Rule(document.spec.hosts, match, Target(route, _pattern(match))))
            named[towards_us].update(named_by(document.spec))
            strict[towards_us] |= any(policy.name == "authorization" for policy in document.spec.policies)
            yield
        if problems:
            raise ConfigError(problems)
        if self._authorizer is not None:
            named[True].update(self._authorizer.rules.headers)
        keep = self._keep
        slashes = inbound.encoded_slashes if inbound is not None else None
        strict[True] |= bool(model.others) or slashes == "REJECT"
        fallback = None
        if APP in self._specs and not rules[True]:
            fallback = Target(self._plain("", True, self.end(APP, self._specs[APP][1].send)), "/")
        anywhere = None
        if outbound is not None and outbound.policy == "ALLOW_ANY":
            egress = keep.get(("egress",), lambda: Egress(self._stats, self._metrics, self._random))
            anywhere = Target(self._plain("", False, self.end(EGRESS, egress.send), connect=True), "/")
        forwarding = _forwarding(inbound, tls)
        snapshot = Snapshot(
            version=model.version,
            service=sidecar.service.name,
            inbound=Side(
                True,
                (yield from Router.build(rules[True])),
                forwarding,
                self._metrics.route(keep, "", True),
                fallback,
                strict[True],
                slashes or "",
                Spellings(named[True]) if named[True] else None,
            ),
            outbound=Side(
                False,
                (yield from Router.build(rules[False])),
                forwarding,
                self._metrics.route(keep, "", False),
                anywhere,
                False,
                "KEEP",
                Spellings(named[False]) if named[False] else None,
            ),
            tracer=self._tracer,
            log=self._access_log(model.sidecar),
            model=model,
            tls=tls,
            admits=_admits(inbound),
            clusters={name: cluster for name, (_, cluster) in self._specs.items()},
            debug=self._debugging(model.sidecar),
        )
        yield from drained(rules[True])
        yield from drained(rules[False])
        return snapshot

    def commit(self) -> Steps[None]:
        """What was compiled last goes live at once; the steps close what only the configuration before it used."""
        memo, self._memo = self._memo, self._next
        self._clusters.commit(self._specs)
        return _let_go(memo, self._keep.swap())

    def rollback(self) -> None:
        """What was compiled last is given up."""
        _close(self._keep.rollback())

    def close(self) -> None:
        """Lets go of everything that is live."""
        _close(self._keep.commit())

    def _begin_with(self, sidecar: Resource[Sidecar]) -> Tracer:
        target = resource(sidecar.spec.service)
        tracing = sidecar.spec.tracing
        if tracing is None:
            return self._telemetry.tracer(self._keep, target)
        settings = (tracing.otlp, tracing.sampling, tracing.b3, tracing.errors)
        try:
            return self._telemetry.tracer(self._keep, target, *settings)
        except MissingExtra as error:
            file, line = sidecar.where("spec.tracing.otlp")
            raise ConfigError([Problem(file, line, f"tracing.otlp: {error}")]) from None

    def _access_log(self, sidecar: Resource[Sidecar]) -> AccessLog | None:
        spec = sidecar.spec.access_log
        if spec is None:
            return None
        try:
            return self._telemetry.access_log(self._keep, spec.path, spec.format)
        except OSError as error:
            file, line = sidecar.where("spec.accessLog.path")
            raise ConfigError([Problem(file, line, f"accessLog.path: {spec.path}: {error.strerror}")]) from None

    def _debugging(self, sidecar: Resource[Sidecar]) -> Debugging | None:
        spec = sidecar.spec.debug
        if spec is None:
            return None
        path = spec.key
        try:
            return self._keep.get(("debug", path), lambda: Debugging(path, self._stats))
        except (OSError, ValueError) as error:
            file, line = sidecar.where("spec.debug.key")
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError([Problem(file, line, f"debug.key: {path}: {why}")]) from None

    def _app(self, url: str, sidecar: Resource[Sidecar]) -> tuple[Upstream, Cluster]:
        scheme, _, rest = url.partition("://")
        address = rest.partition("/")[0]
        if address.rpartition(":")[2].isdigit() is False or address.endswith("]"):
            address += ":443" if scheme == "https" else ":80"
        spec = Upstream(endpoints=(address,), tls=UpstreamTls() if scheme == "https" else None)
        return spec, self._clusters.get(APP, spec, None, sidecar)

    def _route(self, resource: Resource[RouteSpec]) -> Route:
        spec = resource.spec
        key = (spec.direction, resource.name)
        names = [spec.upstream] if spec.upstream else [backend.upstream for backend in spec.split]
        if not (names or spec.redirect or spec.direct_response):
            names = [APP]
        clusters = tuple(self._cluster(name) for name in names)
        memo = self._memo.get(key)
        guarded = self._authorizer if spec.direction == "inbound" else None
        tracer = self._tracer if spec.tracing is not None else None
        if (
            memo is not None
            and memo.resource == resource
            and _same(memo.clusters, clusters)
            and memo.authorizer is guarded
            and memo.watched is self._watches
            and memo.tracer is tracer
        ):
            self._keep.renew(memo.kept)
            self._next[key] = memo
            return memo.route
        self._keep.asked()
        route = self._compile(resource, clusters)
        self._next[key] = _Memo(resource, clusters, guarded, self._watches, tracer, route, self._keep.asked())
        return route

    def _compile(self, resource: Resource[RouteSpec], clusters: tuple[Cluster, ...]) -> Route:
        spec = resource.spec
        info = RouteInfo(resource.name, spec.direction == "inbound", resource.file, resource.line)
        if spec.redirect is not None:
            handle = self.end("", targets.redirect(spec.redirect, spec.matches))
        elif spec.direct_response is not None:
            handle = self.end("", targets.direct(spec.direct_response))
        elif len(clusters) == 1:
            handle = self.end(clusters[0].name, clusters[0].send)
        else:
            weights = [backend.weight for backend in spec.split]
            ends = [self.end(cluster.name, cluster.send) for cluster in clusters]
            handle = targets.split(list(zip(ends, weights, strict=True)), self._random)
        policies = list(spec.policies)
        if clusters and not any(isinstance(policy, Retry) for policy in policies):
            # Nothing was sent when a connection could not be opened: that much is retried by default.
            policies.append(Retry())
        if spec.rewrite is not None:
            handle = targets.rewrite(handle, spec.rewrite, spec.matches)
        self._serial += 1
        retired = self._keep.get(("retired", self._serial), _Retired)
        for policy in reversed(policies):
            handle = self.wrap(policy, handle, self._build(info, resource, policy.name, retired))
        handle = self._guarded(handle, self._build(info, resource, "", retired))
        if spec.tracing is not None:
            handle = sampling(self._tracer, spec.tracing.sampling, handle)
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
            spec.connect,
            resource,
        )

    def _plain(self, name: str, inbound: bool, handle: Handler, connect: bool = False) -> Route:
        """A route that no document describes."""
        info = RouteInfo(name, inbound)
        build = self._build(info, None, "retry", self._keep.get(("retired", name, inbound), _Retired))
        handle = self._guarded(self.wrap(Retry(), handle, build), build)
        return Route(name, handle, self._metrics.route(self._keep, name, inbound), connect=connect)

    def watches(self, sidecar: Sidecar) -> bool:
        """Says whether a request may have a trace of what is decided about it; else policies are not looked at."""
        traced = sidecar.tracing is not None and sidecar.tracing.otlp is not None
        return traced or sidecar.debug is not None

    def wrap(self, policy: Filter, inner: Handler, build: Build) -> Handler:
        """Returns the handler of one policy around `inner`."""
        try:
            handle = policy.wrap(inner, build)
        except _MISTAKES:
            raise
        except Exception as failure:
            # Whatever a policy of another package stumbles over: what is live goes on.
            raise ValueError(f"policies.{policy.name}: {type(failure).__name__}: {failure}") from failure
        return watched(policy.name, handle) if self._watches else handle

    def end(self, upstream: str, handle: Handler) -> Handler:
        """Returns the innermost handler, of an upstream or of the route's own answer (""); `explain` stops here."""
        return arriving(upstream, handle) if self._watches else handle

    def aside(self, upstream: str, handle: Handler) -> Handler:
        """Returns the handler for what a policy itself asks of an upstream; `explain` asks nothing."""
        return handle

    def trust_domain(self, tls: InboundIdentity | None) -> Callable[[], str]:
        """Returns what tells the trust domain of the certificate that callers see, "" while there is none."""
        return tls.identity.trust_domain if tls is not None else str

    def _guard_with(self, model: Model, tls: InboundIdentity | None) -> None:
        """Takes the AuthorizationPolicies that hold for every inbound route beside the route's own rules."""
        rules = None
        if "AuthorizationPolicy" in model.others:
            from l7proxy.config import istio, istio_scope

            rules = istio.rules(model)
        if rules is None:
            self._authorizer = None
            return
        port = istio_scope.app_port(model)
        trust_domain = self.trust_domain(tls)
        if self._authorizer is None or self._authorizer.made_of != (rules, port, trust_domain):
            self._authorizer = Authorizer(rules, port, trust_domain)

    def _guarded(self, handle: Handler, build: Build) -> Handler:
        if self._authorizer is None or not build.route.inbound:
            return handle
        return guard(self._authorizer, handle, build, "AuthorizationPolicy")

    def _build(self, info: RouteInfo, resource: Resource[RouteSpec] | None, policy: str, retired: _Retired) -> Build:
        def line(path: str) -> tuple[str, int]:
            if resource is None:
                return "", 0
            return resource.where(f"spec.policies.{policy}.{path}" if path else f"spec.policies.{policy}")

        return Build(
            info,
            self._stats,
            self._keep,
            self._clock,
            self._random,
            lambda name: self.aside(name, self._cluster(name).send),
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


def _admits(inbound: Inbound | None) -> Callable[[str], bool] | None:
    """Returns what tells whether an address may connect, None when every one may."""
    if inbound is None or not (inbound.allow_ips or inbound.deny_ips):
        return None
    allowed = [network_of(block) for block in inbound.allow_ips]
    denied = [network_of(block) for block in inbound.deny_ips]

    @lru_cache(4096)
    def admits(text: str) -> bool:
        address = address_of(text)
        if any(address in block for block in denied):
            return False
        return not allowed or any(address in block for block in allowed)

    return admits


def _forwarding(inbound: Inbound | None, tls: InboundIdentity | None) -> Forwarding:
    if inbound is None:
        return Forwarding()
    by = (lambda: tls.identity.material.identity) if tls is not None else str
    return Forwarding(inbound.trusted_proxies, inbound.trusted_hops, inbound.forwarded_client_cert, by)


def _same(before: tuple[Cluster, ...], now: tuple[Cluster, ...]) -> bool:
    return len(before) == len(now) and all(one is other for one, other in zip(before, now, strict=True))


def _pattern(match: Match) -> str:
    """Returns the path pattern as the metric label `http_route` shows it."""
    path = match.path
    return path.exact or path.prefix or path.regex or "/"


def _let_go(memo: dict[Any, _Memo], dropped: Iterator[Any]) -> Steps[None]:
    for thing in dropped:
        if thing is not None:
            _close([thing])
        yield
    yield from drained(memo)


def _close(dropped: list[Any]) -> None:
    for thing in dropped:
        close = getattr(thing, "close", None)
        if close is not None:
            close()
