"""The certificates that a configuration names: each set of files or Workload API once, while it is used."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from cryptography.x509 import load_der_x509_certificate
from msgspec import Struct, structs

from l7proxy.config.model import InboundTls, Resource, Tls, Upstream, UpstreamTls
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.extras import MissingExtra
from l7proxy.core.handler import Keep
from l7proxy.identity.client_tls import ClientTls, Expected
from l7proxy.identity.contexts import Identity
from l7proxy.identity.material import BadMaterial, Material, lifetime_problem
from l7proxy.identity.openssl import Version, try_out
from l7proxy.identity.report import count_expiry, forget_expiry
from l7proxy.identity.sources import CertificateSource, DevSource, Files, FileSource, dev_folder
from l7proxy.telemetry.facade import Telemetry

Spawn = Callable[[Coroutine[Any, Any, Any]], None]
Where = tuple[str, int]

ALPN: dict[str, tuple[bytes, ...]] = {"http1": (b"http/1.1",), "http2": (b"h2",), "auto": (b"h2", b"http/1.1")}


class InboundIdentity(Struct, frozen=True):
    """How callers are spoken to: what the acceptor asks at each connection."""

    identity: Identity
    required: bool
    plain: bool
    min_version: Version
    timeout: float


class Followed:
    """An identity whose source is followed until nobody uses it any more."""

    def __init__(self, name: str, source: CertificateSource, tls: Tls, telemetry: Telemetry, spawn: Spawn) -> None:
        first = source.first()
        try_out(first)
        self.identity = Identity(name, first, tls.trust_domains)
        self._stats, self._log = telemetry.stats, telemetry.log
        if first.chain and (problem := lifetime_problem(load_der_x509_certificate(first.chain[0]), time.time())):
            # Peers refuse it: yet its successor is taken once it is there, and whoever waits for us sees why.
            self._log("warning", "certificate out of its dates", certificate=name, detail=problem)
        self._rejected = self._stats.counter(
            "l7proxy_certificate_rejected_total", "New certificates that could not be used", certificate=name
        )
        count_expiry(self._stats, self.identity)
        self._task: asyncio.Task[None] | None = None
        spawn(self._follow(source))

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        forget_expiry(self._stats, self.identity)

    async def _follow(self, source: CertificateSource) -> None:
        self._task = asyncio.current_task()
        await source.watch(self._take, self._reject)

    def _take(self, material: Material) -> None:
        try:
            changed = self.identity.update(material)
        except BadMaterial as error:
            self._reject(error)
            return
        if changed:
            self._log("info", "certificate rotated", certificate=self.identity.name, identity=material.identity)

    def _reject(self, error: Exception) -> None:
        self._rejected.value += 1
        self._log("error", "certificate rejected", certificate=self.identity.name, detail=str(error))


class Identities:
    """Makes identities from the configuration's TLS blocks; equal blocks share one, over configuration swaps too."""

    def __init__(self, telemetry: Telemetry, keep: Keep, spawn: Spawn) -> None:
        self._telemetry = telemetry
        self._keep = keep
        self._spawn = spawn

    def inbound(self, sidecar: Resource[Any]) -> InboundIdentity | None:
        """Returns how callers are spoken to, None for plain text; raises ConfigError."""
        spec = sidecar.spec
        tls: InboundTls | None = spec.inbound.tls if spec.inbound is not None else None
        if tls is None or tls.mode == "DISABLE":
            return None
        return InboundIdentity(
            self._identity("inbound", tls, sidecar, sidecar.where("spec.inbound.tls")),
            tls.mode == "STRICT",
            tls.mode == "PERMISSIVE",
            tls.min_version,
            spec.timeouts.handshake,
        )

    def upstream(self, name: str, spec: Upstream, host: str, sidecar: Resource[Any], where: Where) -> ClientTls | None:
        """Returns the client's side towards one host of an upstream, None for plain text; raises ConfigError."""
        if spec.tls is None:
            return None
        tls = _inherited(spec.tls, sidecar.spec.inbound.tls if sidecar.spec.inbound is not None else None)
        identity = self._identity(f"upstream/{name}", tls, sidecar, where)
        expected = Expected(spec.tls.identity or host, spec.tls.sni or ("" if _is_address(host) else host))
        protocols = ALPN[spec.protocol]
        key = ("client tls", id(identity), expected, protocols, tls.min_version)
        return self._keep.get(key, lambda: ClientTls(identity, expected, protocols, tls.min_version))

    def live(self) -> list[Identity]:
        """Returns every identity of the live configuration."""
        return [kept.identity for kept in self._keep.of(Followed)]

    def _identity(self, name: str, tls: Tls, sidecar: Resource[Any], where: Where) -> Identity:
        service = sidecar.spec.service
        own = f"spiffe://{tls.dev}/ns/{service.namespace}/sa/{service.name}" if tls.dev else ""
        key = ("identity", tls.cert, tls.key, tls.ca, tls.crl, tls.spiffe, own, tls.trust_domains)

        def make() -> Followed:
            return Followed(name, _source(tls, own), tls, self._telemetry, self._spawn)

        try:
            return self._keep.get(key, make).identity
        except BadMaterial as error:
            raise ConfigError([Problem(*where, f"{path}: {what}") for path, what in error.problems]) from None
        except MissingExtra as error:
            raise ConfigError([Problem(*where, str(error))]) from None


def trust_domain_of(tls: InboundTls | None) -> str | None:
    """Returns the trust domain of the certificate that callers see, "" without one; None where it is not known yet."""
    if tls is None or tls.mode == "DISABLE":
        return ""
    if tls.dev is not None:
        return tls.dev
    try:
        return _source(tls, "").first().trust_domain if tls.spiffe is None else None
    except BadMaterial:
        return None


def _source(tls: Tls, own: str) -> CertificateSource:
    if tls.dev is not None:
        return DevSource(dev_folder(tls.dev), own)
    if tls.spiffe is None:
        return FileSource(Files(tls.cert, tls.key, tls.ca, tls.crl))
    from l7proxy.identity.workload import WorkloadSource

    return WorkloadSource(tls.spiffe)


def _inherited(tls: UpstreamTls, inbound: InboundTls | None) -> Tls:
    """Returns the block with what it does not name taken from the inbound listener's."""
    if inbound is None or tls.spiffe or tls.dev:
        return tls
    if tls.cert is None:
        tls = structs.replace(tls, cert=inbound.cert, key=inbound.key, spiffe=inbound.spiffe, dev=inbound.dev)
    if tls.ca is None:
        tls = structs.replace(tls, ca=inbound.ca, crl=tls.crl or inbound.crl)
    if not tls.trust_domains:
        tls = structs.replace(tls, trust_domains=inbound.trust_domains)
    return tls


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()
