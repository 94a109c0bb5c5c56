"""Clusters from their specifications, with the endpoints that the last configuration had already."""

from random import Random

from l7proxy.config.model import APP, Resource, Sidecar, Upstream
from l7proxy.config.model import Endpoint as EndpointSpec
from l7proxy.core.fields import split_host_port
from l7proxy.core.handler import Keep
from l7proxy.core.stats import Stats
from l7proxy.identity.client_tls import ClientTls
from l7proxy.proxy.identities import Identities
from l7proxy.telemetry.metrics import Metrics
from l7proxy.upstream.auto import AutoTransport
from l7proxy.upstream.cluster import Cluster, Settings
from l7proxy.upstream.dial import Dial
from l7proxy.upstream.dns import Resolver
from l7proxy.upstream.endpoint import Endpoint
from l7proxy.upstream.h2_pool import H2Transport
from l7proxy.upstream.pool import H1Transport
from l7proxy.upstream.transport import url_of
from l7proxy.upstream.waiting import Load

APP_IDLE = 1.0
IDLE = 3.0
"""Seconds that an unused connection is kept: below what servers allow, so that they do not close it first."""
IDLE_H2 = 60.0
"""The same for HTTP/2, whose servers say goodbye before they close."""
_TRANSPORTS = {"http1": H1Transport, "http2": H2Transport, "auto": AutoTransport}


class Clusters:
    """Makes clusters and remembers the live ones, so that endpoints keep their connections over a swap."""

    def __init__(self, stats: Stats, metrics: Metrics, keep: Keep, random: Random, identities: Identities) -> None:
        self._stats = stats
        self._metrics = metrics
        self._keep = keep
        self._random = random
        self._identities = identities
        self._made: dict[str, tuple[Upstream, Cluster]] = {}

    def get(
        self, name: str, spec: Upstream, document: Resource[Upstream] | None, sidecar: Resource[Sidecar]
    ) -> Cluster:
        """Returns the cluster for an upstream; an unchanged one is the one that is live. Raises ConfigError."""
        before = self._made.get(name)
        where = document.where("spec.tls") if document is not None else ("", 0)
        tls = {host: self._identities.upstream(name, spec, host, sidecar, where) for host in _hosts(spec)}
        if (
            before is not None
            and before[0] == spec
            and before[1].tls == tls
            and ("cluster", name, id(before[1])) in self._keep
        ):
            cluster = before[1]
        else:
            cluster = self._make(name, spec, before[1] if before is not None else None, tls)
        self._keep.get(("load", name), Load)
        return self._keep.get(("cluster", name, id(cluster)), lambda: cluster)

    def commit(self, live: dict[str, tuple[Upstream, Cluster]]) -> None:
        """These clusters are live now."""
        for name, (_, cluster) in live.items():
            if self._made.get(name, (None, None))[1] is not cluster:
                cluster.activate()
        self._made = live

    def _make(self, name: str, spec: Upstream, before: Cluster | None, tls: dict[str, ClientTls | None]) -> Cluster:
        load = self._keep.get(("load", name), Load)
        metrics = self._metrics.upstream(name)
        settings = Settings(
            balance=spec.balance,
            panic_percent=spec.panic_percent,
            max_connections=spec.breakers.connections,
            max_pending=spec.breakers.pending,
            max_requests=spec.breakers.requests,
            eject_failures=0 if name == APP else spec.ejection.failures,
            eject_time=spec.ejection.time,
            eject_max_time=spec.ejection.max_time,
            eject_max_percent=spec.ejection.max_percent,
        )
        cluster = Cluster(name, settings, load, metrics, self._stats, self._random)
        cluster.tls = tls
        have = {} if before is None else {endpoint.key: endpoint for endpoint in before.endpoints}

        def endpoint(address: str) -> Endpoint:
            host, port = split_host_port(address)
            http2 = spec.protocol == "http2"
            idle = spec.idle_timeout or (IDLE_H2 if http2 else APP_IDLE if name == APP else IDLE)
            # Whom a pool speaks for is part of what it is: other identities have other connections.
            named = split_host_port(spec.dns)[0] if spec.dns is not None else host
            dial = Dial(host, port, spec.connect_timeout, idle, keepalive=spec.keepalive, tls=tls[named])
            key = (dial, spec.protocol)
            found = have.get(key)
            if found is None:
                scheme = "http" if spec.tls is None else "https"
                transport = _TRANSPORTS[spec.protocol](dial, load, metrics)
                found = Endpoint(str(address), url_of(scheme, address), transport, key)
                have[key] = found
            return found

        if spec.dns is not None:
            host, port = split_host_port(spec.dns)
            if before is not None:
                cluster.set_endpoints(before.endpoints if _same_dns(before, spec.dns) else ())
            cluster.resolver = Resolver(
                host, port, lambda addresses: cluster.set_endpoints(map(endpoint, addresses)), self._stats, name
            )
        else:
            cluster.weights = {
                entry.address: entry.weight for entry in spec.endpoints if isinstance(entry, EndpointSpec)
            }
            cluster.set_endpoints(
                endpoint(entry.address if isinstance(entry, EndpointSpec) else entry) for entry in spec.endpoints
            )
        return cluster


def _hosts(spec: Upstream) -> list[str]:
    """Returns the names or addresses that an upstream is called by."""
    if spec.dns is not None:
        return [split_host_port(spec.dns)[0]]
    addresses = [entry.address if isinstance(entry, EndpointSpec) else entry for entry in spec.endpoints]
    return list(dict.fromkeys(split_host_port(address)[0] for address in addresses))


def _same_dns(before: Cluster, name: str) -> bool:
    resolver = before.resolver
    return resolver is not None and f"{resolver.host}:{resolver.port}" == name
