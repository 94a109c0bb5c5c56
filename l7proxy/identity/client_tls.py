"""TLS towards an upstream: who it must be is settled before the first byte of a request leaves.

A connection resumes the session of the last one to the same endpoint, which saves both ends half of the handshake. A
session is judged as its certificate was, and is gone with the context that it was made in: see `contexts`.
"""

import asyncio
import ipaddress
import time
from collections.abc import Callable
from typing import Any, TypeVar

from cryptography import x509
from msgspec import Struct

from l7proxy.core.peer import Peer
from l7proxy.identity import openssl
from l7proxy.identity.contexts import Identity, Side
from l7proxy.identity.material import Material
from l7proxy.identity.openssl import Version
from l7proxy.identity.peer import extension
from l7proxy.identity.refusal import Refused
from l7proxy.identity.transport import TlsTransport

P = TypeVar("P", bound=asyncio.Protocol)

_MOST_SESSIONS = 256
"""Endpoints of one upstream whose sessions are kept, those that were connected to last."""


Where = tuple[Any, ...]
"""The endpoint of a connection: host and port, or the path of a socket."""


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
        self._sessions: dict[Where, _Session] = {}

    async def connect(self, make: Callable[[], P], **where: Any) -> tuple[TlsTransport, P]:
        """Opens a connection (`host=, port=` or `path=`) and returns it once the server has proved who it is.

        Raises Refused or another OSError. In TLS 1.3 the server may still refuse us after this: the protocol then loses
        its connection with the Unwanted that says so.
        """
        attempt = _Attempt(self, make, tuple(where.values()))
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

    def session(self, where: Where) -> "_Session | None":
        """Returns the session that a connection to an endpoint may offer."""
        found = self._sessions.get(where)
        # A session no longer tells who vouched for the server, so it is of no use where that matters.
        usable = found is not None and found.expires > time.time() and len(self.identity.material.bundles) <= 1
        return found if usable else None

    def keep_session(self, where: Where, transport: TlsTransport) -> "_Session":
        """Returns what a connection leaves to the next one to the same endpoint."""
        session = _Session(transport)
        if transport.context is self.context:
            self._sessions.pop(where, None)
            self._sessions[where] = session
            if len(self._sessions) > _MOST_SESSIONS:
                del self._sessions[next(iter(self._sessions))]
        return session

    def _make(self, material: Material) -> openssl.Context:
        self._sessions.clear()
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

    def __init__(self, tls: ClientTls, make: Callable[[], Any], where: Where) -> None:
        self.tls = tls
        self.where = where
        self.context = tls.context
        self.server_name = tls.expected.sni
        self.protocols = tls.protocols
        self.judge = tls.judge
        self.done: asyncio.Future[None] = tls._loop.create_future()
        self.transport = TlsTransport(self)
        if (session := tls.session(where)) is not None:
            self.transport.handle.resume(session.value)
        self._make = make
        self.inner: Any = None

    def protocol(self) -> Any:
        return self.transport

    def step(self, work: TlsTransport) -> None:
        work.advance()

    def established(self, transport: TlsTransport) -> asyncio.Protocol:
        self.tls.admit(transport)
        self._session = self.tls.keep_session(self.where, transport)
        self.inner = inner = self._make()
        if not self.done.done():
            self.done.set_result(None)
        return inner  # type: ignore[no-any-return]

    def failed(self, transport: TlsTransport, refusal: Refused) -> None:
        if not self.done.done():
            self.done.set_exception(refusal)

    def ended(self, transport: TlsTransport) -> None:
        self._session.settle()


class _Session:
    """What one connection leaves to the next; `expires` with the server's certificate, which resuming does not renew.

    The ticket comes some time after the handshake (RFC 8446 4.6.1): until the connection ends it is asked for anew.
    """

    def __init__(self, transport: TlsTransport) -> None:
        self.expires = transport.peer.expires
        self._handle: openssl.Handle | None = transport.handle
        self._value: openssl.Session = None

    @property
    def value(self) -> openssl.Session:
        return self._value if self._handle is None else self._handle.session

    def settle(self) -> None:
        """The connection has ended: only the session is kept of it."""
        self._value, self._handle = self.value, None


def _is_named(peer: Peer, name: str) -> bool:
    """Tells whether a DNS name or address is among the subject alternative names (RFC 9525 6.3)."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return covers(peer.dns_names, name)
    names = extension(x509.load_der_x509_certificate(peer.chain[0]), x509.SubjectAlternativeName)
    return names is not None and address in names.get_values_for_type(x509.IPAddress)


def covers(dns_names: tuple[str, ...], host: str) -> bool:
    """Tells whether a certificate's DNS names cover a host: whole, or `*` for exactly its first label."""
    host = host.lower().rstrip(".")
    rest = host.partition(".")[2]
    for name in dns_names:
        name = name.lower()
        if name == host or (name.startswith("*.") and rest and "." in rest and name[2:] == rest):
            return True
    return False
