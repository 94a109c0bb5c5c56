"""Which protocol speaks on a connection that was accepted: plain or TLS by the live configuration, then by ALPN."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from l7proxy.identity.client_tls import covers
from l7proxy.identity.handshakes import Handshakes
from l7proxy.identity.peer import pem_of
from l7proxy.identity.server_tls import ServerTls
from l7proxy.identity.transport import TlsTransport
from l7proxy.proxy.identities import InboundIdentity
from l7proxy.server.h1 import H1Protocol
from l7proxy.server.h2 import H2Protocol
from l7proxy.server.listener import Listener
from l7proxy.wire.authority import host_of

# RFC 8446 B.4 and the ECDHE suites of TLS 1.2: what the ASGI extension wants as a number.
_SUITES = {
    "TLS_AES_128_GCM_SHA256": 0x1301,
    "TLS_AES_256_GCM_SHA384": 0x1302,
    "TLS_CHACHA20_POLY1305_SHA256": 0x1303,
    "ECDHE-ECDSA-AES128-GCM-SHA256": 0xC02B,
    "ECDHE-ECDSA-AES256-GCM-SHA384": 0xC02C,
    "ECDHE-RSA-AES128-GCM-SHA256": 0xC02F,
    "ECDHE-RSA-AES256-GCM-SHA384": 0xC030,
    "ECDHE-RSA-CHACHA20-POLY1305": 0xCCA8,
    "ECDHE-ECDSA-CHACHA20-POLY1305": 0xCCA9,
}


class Secure:
    """Makes the protocols of one listener; `settings` says how callers are spoken to now."""

    def __init__(
        self,
        listener: Listener,
        settings: Callable[[], InboundIdentity | None],
        handshakes: Handshakes,
        log: Callable[..., None],
    ) -> None:
        self._listener = listener
        self._settings = settings
        self._handshakes = handshakes
        self._log = log
        self._made: tuple[InboundIdentity, ServerTls] | None = None

    def protocol(self) -> asyncio.Protocol:
        """Returns the protocol for a connection that was just accepted."""
        settings = self._settings()
        if settings is None:
            return H1Protocol(self._listener)
        if self._made is None or self._made[0] != settings:
            self._made = settings, self._tls(settings)
        return self._made[1].accept()

    def _tls(self, settings: InboundIdentity) -> ServerTls:
        listener = self._listener

        def established(transport: TlsTransport) -> asyncio.Protocol:
            make = H2Protocol if transport.protocol == b"h2" else H1Protocol
            protocol = make(listener, transport.peer, secure=True)
            protocol.extensions["tls"] = _extension(transport, settings.identity.material.chain[0])
            protocol.serves = _serves(transport, settings.identity.material.dns_names)
            # Neither certificate may be shown after its end, however long the connection is kept busy.
            protocol.expires = listener.now + settings.identity.lifetime(transport.peer)
            return protocol

        return ServerTls(
            settings.identity,
            self._handshakes,
            listener.stats,
            self._log,
            established,
            (lambda: H1Protocol(listener)) if settings.plain else None,
            listener.name,
            settings.required,
            settings.min_version,
            settings.timeout,
        )


def _serves(transport: TlsTransport, dns_names: tuple[str, ...]) -> Callable[[bytes], bool] | None:
    """Returns what tells whether a host may be asked for on this connection, None for any (RFC 9110 15.5.20).

    Only a client that asked for a name by SNI can be misdirected, and only a certificate with DNS names says to whom.
    """
    if not transport.server_name or not dns_names:
        return None
    asked = host_of(transport.server_name.encode("latin-1"))

    @functools.lru_cache(64)
    def serves(authority: bytes) -> bool:
        host = host_of(authority)
        return host == asked or covers(dns_names, host.decode("latin-1"))

    return serves


def _extension(transport: TlsTransport, certificate: bytes) -> dict[str, Any]:
    """Returns the connection's entry `tls` of the scope, as ASGI's TLS extension 0.2 describes it."""
    handle, peer = transport.handle, transport.peer
    return {
        "server_cert": _own_pem(certificate),
        "client_cert_chain": _chain(peer.chain),
        "client_cert_name": peer.subject or None,
        "client_cert_error": None,
        "tls_version": handle.version,
        "cipher_suite": _SUITES.get(handle.cipher),
    }


@functools.lru_cache(1024)
def _chain(chain: tuple[bytes, ...]) -> list[str]:
    return [pem_of(der) for der in chain]


@functools.lru_cache(16)
def _own_pem(der: bytes) -> str:
    return pem_of(der)
