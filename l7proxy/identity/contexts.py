"""Who we are and whom we trust while it changes, and what both ends of TLS make of it.

A certificate or trust that changes means a fresh context, used from the next handshake on. Session tickets are sealed
with keys of their context, so that none outlives the trust that it was issued under.
"""

import time
from collections.abc import Callable

from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.identity import openssl
from l7proxy.identity.material import ANY, Material, span
from l7proxy.identity.peer import peer_of
from l7proxy.identity.refusal import Refused
from l7proxy.identity.transport import TlsTransport


class Identity:
    """Who we are and whom we trust, now. `trust_domains` are accepted beside that of our own certificate."""

    def __init__(self, name: str, material: Material, trust_domains: tuple[str, ...] = ()) -> None:
        self.name = name
        self.trust_domains = trust_domains
        self.material = material
        self.generation = 0
        self.rotated = 0.0

    def trust_domain(self) -> str:
        """Returns the trust domain of our own certificate, "" while there is none or it has no SPIFFE ID."""
        return self.material.trust_domain

    def update(self, material: Material) -> bool:
        """Takes a new certificate or trust for all handshakes that begin from now on; False if nothing changed.

        Raises BadMaterial for what OpenSSL cannot use, and goes on with what it has.
        """
        if material == self.material:
            return False
        openssl.try_out(material)
        self.material = material
        self.generation += 1
        self.rotated = time.time()
        return True

    def check(self, peer: Peer, anchor: Callable[[], bytes]) -> None:
        """Raises Refused unless the peer's trust domain is accepted and the authority `anchor()` may vouch for it."""
        material = self.material
        domain = peer.trust_domain
        accepted = {name for name in (material.trust_domain, *self.trust_domains) if name}
        if domain and accepted and domain not in accepted:
            raise Refused(
                "trust_domain",
                f"{peer.identity} is of trust domain {domain}; accepted here: {', '.join(sorted(accepted))}",
            )
        if peer.expires <= time.time():
            raise Refused("expired", f"certificate expired {span(time.time() - peer.expires)} ago ({peer.identity})")
        if material.crls_expire <= time.time():
            # OpenSSL says so in a full handshake; nobody does when a session is resumed.
            raise Refused("crl", "a revocation list has expired: a newer one must be put in its place")
        bundles = material.bundles
        if bundles:
            bundle = bundles.get(domain or material.trust_domain, bundles.get(ANY, ()))
            # Where there is one bundle OpenSSL has found the authority in it.
            if not bundle or (len(bundles) > 1 and anchor() not in bundle):
                raise Refused("unknown_ca", f"the CA that vouches for {peer.identity} is not one of its trust domain")

    def lifetime(self, peer: Peer) -> float:
        """Returns the seconds that a connection may live: until the first of both certificates expires, jittered.

        The jitter keeps connections that were opened together from ending together.
        """
        ends = [expires for expires in (peer.expires, self.material.expires) if expires]
        if not ends:
            return float("inf")
        left = max(min(ends) - time.time(), 0.0)
        return left - min(left * 0.1, 300.0) * (int(time.monotonic() * 1e6) % 1000 / 1000)


class Side:
    """What both roles share: a context for the live certificates, and the verdict on the peer's."""

    server = True

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._generation = -1
        self._context: openssl.Context | None = None

    @property
    def context(self) -> openssl.Context:
        """The context for a handshake that begins now."""
        if self._context is None or self._generation != self.identity.generation:
            self._context = self._make(self.identity.material)
            self._generation = self.identity.generation
        return self._context

    def _make(self, material: Material) -> openssl.Context:
        raise NotImplementedError

    def judge(self, leaf: bytes, anchor: Callable[[], bytes]) -> Peer:
        """Returns the peer that a verified leaf stands for; raises Refused."""
        peer = peer_of(leaf)
        self.identity.check(peer, anchor)
        self.expect(peer)
        return peer

    def expect(self, peer: Peer) -> None:
        """Raises Refused unless this is the peer that was called."""

    def settle(self, transport: TlsTransport) -> None:
        """Raises Refused if the peer may not be talked to after all: its session or our trust is out of date."""
        handle = transport.handle
        if transport.resumed and (leaf := handle.leaf):
            transport.peer = self.judge(leaf, lambda: b"")
        if transport.context is self._context and self._generation == self.identity.generation:
            return
        # The trust changed while this handshake was under way.
        peer = transport.peer
        if peer is not ANONYMOUS and (transport.resumed or handle.anchor not in self.identity.material.authorities):
            raise Refused("unknown_ca", f"the CA of {peer.identity} was removed during the handshake")
