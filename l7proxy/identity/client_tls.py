"""TLS towards an upstream: who it must be is settled before the first byte of a request leaves."""

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Any, TypeVar

from cryptography import x509
from msgspec import Struct

from l7proxy.core.peer import Peer
from l7proxy.identity import openssl
from l7proxy.identity.contexts import Identity, Side
from l7proxy.identity.material import Material
from l7proxy.identity.openssl import Version
from l7proxy.identity.refusal import Refused
from l7proxy.identity.transport import TlsTransport

P = TypeVar("P", bound=asyncio.Protocol)


class Expected(Struct, frozen=True):
    """Who a server must be: a SPIFFE ID, a DNS name or an IP address. `sni` is the name to ask for, "" for none."""

    identity: str
    sni: str = ""


class ClientTls(Side):
    """TLS towards one upstream."""

    server = False

    def __init__(
        self,
        identity: Identity,
        expected: Expected,
        protocols: tuple[bytes, ...] = (b"http/1.1",),
        min_version: Version = "1.2",
    ) -> None:
        super().__init__(identity)
        self.expected = expected
        self.protocols = protocols
        self._min_version = min_version
        self._loop = asyncio.get_running_loop()

    async def connect(self, make: Callable[[], P], **where: Any) -> tuple[TlsTransport, P]:
        """Opens a connection (`host=, port=` or `path=`) and returns it once the server has proved who it is.

        Raises Refused or another OSError. In TLS 1.3 the server may still refuse us after this: the protocol then loses
        its connection with the Refused that says so.
        """
        attempt = _Attempt(self, make)
        if "path" in where:
            await self._loop.create_unix_connection(attempt.protocol, **where)
        else:
            await self._loop.create_connection(attempt.protocol, **where)
        transport = attempt.transport
        try:
            await attempt.done
        except BaseException:
            transport.abort()
            raise
        return transport, attempt.inner

    def _make(self, material: Material) -> openssl.Context:
        return openssl.client_context(material, self.protocols, self._min_version)

    def expect(self, peer: Peer) -> None:
        wanted = self.expected.identity
        if wanted.startswith("spiffe://"):
            matches = peer.uri == wanted
        else:
            matches = _is_named(peer, wanted)
        if not matches:
            raise Refused("wrong_identity", f"expected {wanted}, got {peer.identity}")

    def admit(self, transport: TlsTransport) -> None:
        """Raises Refused unless a connection whose handshake is done may be used."""
        self.settle(transport)
        if transport.protocol and transport.protocol not in self.protocols:
            raise Refused("alpn", f"the server chose {transport.protocol!r} (ALPN), which was not offered")
        if not transport.protocol and b"http/1.1" not in self.protocols:
            raise Refused("alpn", "the server does not speak HTTP/2 (ALPN)")


class _Attempt:
    """The client's role in one handshake."""

    server = False

    def __init__(self, tls: ClientTls, make: Callable[[], Any]) -> None:
        self.tls = tls
        self.context = tls.context
        self.server_name = tls.expected.sni
        self.protocols = tls.protocols
        self.judge = tls.judge
        self.done: asyncio.Future[None] = tls._loop.create_future()
        self.transport = TlsTransport(self)
        self._make = make
        self.inner: Any = None

    def protocol(self) -> Any:
        return self.transport

    def step(self, work: TlsTransport) -> None:
        work.advance()

    def established(self, transport: TlsTransport) -> asyncio.Protocol:
        self.tls.admit(transport)
        self.inner = inner = self._make()
        if not self.done.done():
            self.done.set_result(None)
        return inner  # type: ignore[no-any-return]

    def failed(self, transport: TlsTransport, refusal: Refused) -> None:
        if not self.done.done():
            self.done.set_exception(refusal)


def _is_named(peer: Peer, name: str) -> bool:
    """Tells whether a DNS name or address is among the subject alternative names (RFC 9525 6.3)."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return covers(peer.dns_names, name)
    try:
        names = x509.load_der_x509_certificate(peer.chain[0]).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return False
    return address in names.value.get_values_for_type(x509.IPAddress)


def covers(dns_names: tuple[str, ...], host: str) -> bool:
    """Tells whether a certificate's DNS names cover a host: whole, or `*` for exactly its first label."""
    host = host.lower().rstrip(".")
    rest = host.partition(".")[2]
    for name in dns_names:
        name = name.lower()
        if name == host or (name.startswith("*.") and rest and "." in rest and name[2:] == rest):
            return True
    return False
