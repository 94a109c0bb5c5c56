"""TLS towards callers: plain text or TLS by the first byte, then a handshake with whatever certificate is live."""

import asyncio
from collections.abc import Callable
from typing import Any, cast, get_args

from l7proxy.core.address import known_as
from l7proxy.core.stats import Counter, Stats
from l7proxy.identity import openssl
from l7proxy.identity.contexts import Identity, Side
from l7proxy.identity.handshakes import Handshakes
from l7proxy.identity.material import Material
from l7proxy.identity.openssl import Version
from l7proxy.identity.refusal import Reason, Refused
from l7proxy.identity.transport import TlsTransport

_PLAIN_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 34\r\nconnection: close\r\n\r\n"
    b"plain HTTP was sent to a TLS port\n"
)
_TLS_RECORD = 0x16
"""The first byte of every TLS connection: a handshake record."""


class ServerTls(Side):
    """TLS of one listener. `established` and `plain` make the protocol that speaks once it is known how.

    `required` is STRICT: clients must show a certificate. With `plain`, a first byte that is not TLS's is served as
    plain text (PERMISSIVE); without it such a connection is refused.
    """

    server = True
    server_name = ""

    def __init__(
        self,
        identity: Identity,
        handshakes: Handshakes,
        stats: Stats,
        log: Callable[..., None],
        established: Callable[[TlsTransport], asyncio.Protocol],
        plain: Callable[[], asyncio.Protocol] | None = None,
        listener: str = "inbound",
        required: bool = True,
        min_version: Version = "1.2",
        timeout: float = 10.0,
        protocols: tuple[bytes, ...] = (b"h2", b"http/1.1"),
    ) -> None:
        super().__init__(identity)
        self.plain = plain
        self.required = required
        self.timeout = timeout
        self.handshakes = handshakes
        self.step = handshakes.step
        self._established = established
        self._min_version = min_version
        self.protocols = protocols
        self._stats = stats
        self._log = log
        self._listener = listener
        self.loop = asyncio.get_running_loop()
        for reason in get_args(Reason):
            self._failures(reason)
        help = "TLS handshakes that were completed"
        self._full = stats.counter("l7proxy_tls_handshakes_total", help, listener=listener, resumed="false")
        self._resumed = stats.counter("l7proxy_tls_handshakes_total", help, listener=listener, resumed="true")

    def accept(self) -> asyncio.Protocol:
        """Returns the protocol for a connection that was just accepted."""
        return _FirstByte(self)

    def established(self, transport: TlsTransport) -> asyncio.Protocol:
        self.settle(transport)
        transport.server_name = transport.handle.server_name
        (self._resumed if transport.resumed else self._full).value += 1
        self.handshakes.pending -= 1
        return self._established(transport)

    def failed(self, transport: TlsTransport, refusal: Refused) -> None:
        self.handshakes.pending -= 1
        self.refused(transport.get_extra_info("peername"), refusal)

    def ended(self, transport: TlsTransport) -> None:
        """Nothing is kept of a connection: what a client resumes is in its ticket."""

    def refused(self, address: Any, refusal: Refused) -> None:
        """Counts and logs one connection that never came to a request."""
        self._failures(refusal.reason).value += 1
        source = known_as(address[0]) if isinstance(address, tuple) else ""
        self._log(
            "warning", "handshake failed",
            listener=self._listener, source=source, reason=refusal.reason, detail=refusal.detail,
        )  # fmt: skip

    def _failures(self, reason: str) -> Counter:
        help = "TLS handshakes that failed, by reason"
        return self._stats.counter("l7proxy_tls_handshake_failures_total", help, listener=self._listener, reason=reason)

    def _make(self, material: Material) -> openssl.Context:
        # A session knows no more which CA vouched for it, so it is of no use where that matters.
        tickets = len(material.bundles) <= 1
        return openssl.server_context(material, self.required, self._min_version, tickets)


class _FirstByte(asyncio.Protocol):
    """A connection of which nothing is known yet: its first byte tells TLS from plain text."""

    __slots__ = ("_tls", "_tcp", "_timer", "_handshake")

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        self._tcp: asyncio.Transport | None = None
        self._handshake: TlsTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tcp = cast(asyncio.Transport, transport)
        tls = self._tls
        if tls.handshakes.full:
            refusal = Refused("overload", f"{tls.handshakes.most} handshakes are under way, which is the limit")
            tls.refused(tcp.get_extra_info("peername"), refusal)
            tcp.abort()
            return
        tls.handshakes.pending += 1
        self._tcp = tcp
        self._timer = tls.loop.call_later(tls.timeout, self._time_out)

    def data_received(self, data: bytes) -> None:
        tls, tcp = self._tls, self._tcp
        if tcp is None:
            return
        if data[0] == _TLS_RECORD and not tls.identity.material.chain:
            refusal = Refused("no_certificate", "there is no certificate of our own yet: its source has not answered")
            tls.refused(tcp.get_extra_info("peername"), refusal)
            self._leave()
            tcp.close()
        elif data[0] == _TLS_RECORD:
            self._tcp = None
            transport = self._handshake = TlsTransport(tls, self._timer)
            tcp.set_protocol(transport)
            transport.connection_made(tcp)
            transport.data_received(data)
        elif tls.plain is not None:
            self._leave()
            inner = tls.plain()
            tcp.set_protocol(inner)
            inner.connection_made(tcp)
            inner.data_received(data)
        else:
            text = data[:1].isalpha()
            why = "the peer spoke plain text; no sidecar there?" if text else "the peer does not speak TLS"
            tls.refused(tcp.get_extra_info("peername"), Refused("plain_text" if text else "not_tls", why))
            self._leave()
            if text:
                tcp.write(_PLAIN_ANSWER)
            tcp.close()

    def connection_lost(self, error: Exception | None) -> None:
        # A connection without a byte is a port scan or a TCP health check: no failure worth a line.
        if self._tcp is not None:
            self._leave()

    def _time_out(self) -> None:
        seconds = self._tls.timeout
        if self._handshake is not None:
            self._handshake.give_up(Refused("timeout", f"the handshake was not done after {seconds:g} s"))
        elif self._tcp is not None:
            refusal = Refused("timeout", f"not one byte came in {seconds:g} s")
            self._tls.refused(self._tcp.get_extra_info("peername"), refusal)
            self._tcp.abort()

    def _leave(self) -> None:
        self._tcp = None
        self._timer.cancel()
        self._tls.handshakes.pending -= 1
