"""TLS over any asyncio transport: the protocol of the encrypted side and the transport of the plain one in one object.

`Role` says how one end of a handshake behaves; the listener's and the upstream's are in `contexts`.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.identity import openssl
from l7proxy.identity.doctor import explain_failure, explain_verify
from l7proxy.identity.openssl import BUFFER, SIZE, VIEW, WANT_READ, ZERO_RETURN
from l7proxy.identity.refusal import Refused

_ssl_read, _ssl_write = openssl.ssl_read, openssl.ssl_write
_bio_read, _bio_write = openssl.bio_read, openssl.bio_write
_get_error = openssl.get_error


class Role(Protocol):
    """What one side of a handshake knows and is told."""

    @property
    def server(self) -> bool: ...

    @property
    def server_name(self) -> str:
        """The name that a client asks for, "" for none."""

    @property
    def context(self) -> openssl.Context:
        """What a handshake that begins now is done with."""

    @property
    def protocols(self) -> Sequence[bytes]:
        """What may be settled by ALPN, the best first."""

    def judge(self, leaf: bytes, anchor: Callable[[], bytes]) -> Peer:
        """Returns the peer that a verified certificate stands for; raises Refused."""

    def step(self, work: "TlsTransport") -> None:
        """Has `work.advance()` called, now or when there is time for it."""

    def established(self, transport: "TlsTransport") -> asyncio.Protocol:
        """Returns the protocol that speaks on a connection whose handshake is done; raises Refused."""

    def failed(self, transport: "TlsTransport", refusal: Refused) -> None:
        """Learns that a handshake failed; called once, and never after `established` returned."""


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """One TLS connection.

    `timer` is what ends a handshake that takes too long. `peer` is who is at the other end, `protocol` what ALPN
    settled (b"" for nothing) and `server_name` the name that the client asked for. A connection that ends without a
    close_notify ends with ConnectionResetError, so that a body which ends with the connection cannot be cut short
    unseen.
    """

    __slots__ = ("role", "tcp", "handle", "peer", "protocol", "server_name", "resumed", "refusal", "context",
                 "_timer", "_ssl", "_in", "_out", "_send", "_inner", "_receive", "_waiting", "_closing", "_ended",
                 "_half", "_told")  # fmt: skip

    def __init__(self, role: Role, timer: asyncio.TimerHandle | None = None) -> None:
        super().__init__()
        self.role = role
        self.tcp: asyncio.Transport | None = None
        self.context = role.context
        self.handle = handle = openssl.Handle(self.context, self, role.server, role.server_name)
        self._ssl, self._in, self._out = handle.ssl, handle.incoming, handle.outgoing
        self.peer: Peer = ANONYMOUS
        self.protocol = b""
        self.server_name = ""
        self.resumed = False
        self.refusal: Refused | None = None
        self._timer = timer
        self._inner: asyncio.Protocol | None = None
        self._waiting: list[bytes] | None = []
        self._closing = False
        self._ended = False
        self._half = False
        self._told = False

    # The protocol of the TCP transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.tcp = tcp = cast(asyncio.Transport, transport)
        self._send = tcp.write
        if not self.role.server:
            self.role.step(self)

    def data_received(self, data: bytes) -> None:
        if self._waiting is not None:
            self._waiting.append(data)
            if len(self._waiting) == 1:
                self.role.step(self)
            return
        _bio_write(self._in, data, len(data))
        self._read()

    def eof_received(self) -> bool:
        return self._ended and self._half

    def connection_lost(self, error: Exception | None) -> None:
        self.tcp = None
        self._closing = True
        self._waiting = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        inner, self._inner = self._inner, None
        if inner is None:
            self._fail(Refused("closed", "the peer closed the connection inside the handshake"))
        else:
            if self.refusal is not None:
                error = self.refusal
            elif error is None and not self._ended:
                error = ConnectionResetError("the peer closed the connection without saying so in TLS")
            inner.connection_lost(error)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    # The transport of the inner protocol.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or not data:
            return
        if data.__class__ is not bytes:
            data = bytes(data)
        if _ssl_write(self._ssl, data, len(data)) <= 0:
            self._break()
            return
        size = _bio_read(self._out, BUFFER, SIZE)
        self._send(VIEW[0:size])
        if size == SIZE:
            self._flush()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if self._closing or self.tcp is None:
            return
        self._closing = True
        if self._inner is not None:
            self.handle.shut_down()
            self._flush()
        self.tcp.close()

    def abort(self) -> None:
        self._closing = True
        if self.tcp is not None:
            self.tcp.abort()

    def is_closing(self) -> bool:
        return self._closing or self.tcp is None or self.tcp.is_closing()

    def pause_reading(self) -> None:
        if self.tcp is not None:
            self.tcp.pause_reading()

    def resume_reading(self) -> None:
        if self.tcp is not None:
            self.tcp.resume_reading()

    def is_reading(self) -> bool:
        return self.tcp is not None and self.tcp.is_reading()

    def can_write_eof(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self.tcp is not None:
            self.tcp.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self.tcp.get_write_buffer_size() if self.tcp is not None else 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.tcp.get_extra_info(name, default) if self.tcp is not None else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._inner = cast(asyncio.Protocol, protocol)
        self._receive = self._inner.data_received

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast(asyncio.Protocol, self._inner)

    # What OpenSSL asks inside the handshake.

    def verify(self, leaf: bytes, anchor: Callable[[], bytes]) -> bool:
        try:
            self.peer = self.role.judge(leaf, anchor)
        except Refused as refusal:
            self.refusal = refusal
        except Exception as failure:
            self.refusal = Refused("bad_certificate", f"the peer's certificate cannot be judged: {failure}")
        return self.refusal is None

    def unverified(self, certificate: bytes, error: int) -> None:
        self.refusal = self.refusal or explain_verify(error, certificate, self.role.server)

    def choose(self, offered: list[bytes]) -> bytes | None:
        for protocol in self.role.protocols:
            if protocol in offered:
                return protocol
        names = ", ".join(name.decode("latin-1") for name in offered[:8])
        self.refusal = Refused("alpn", f"the client offers only {names} (ALPN), which is not HTTP")
        return None

    # Inside.

    def advance(self) -> None:
        """Does the next step of the handshake with what has arrived."""
        waiting = self._waiting
        if waiting is None or self._closing or self.tcp is None:
            return
        for data in waiting:
            _bio_write(self._in, data, len(data))
        waiting.clear()
        result = openssl.do_handshake(self._ssl)
        if result != 1:
            error = _get_error(self._ssl, result)
            # The alert that says why leaves before the connection ends.
            self._flush()
            if error != WANT_READ:
                self._fail(self.refusal or explain_failure(openssl.errors(), self.role.server))
                self.close()
            return
        handle = self.handle
        if handle.version != openssl.TLS1_3 or not self.role.server:
            self._flush()
        # In TLS 1.3 all that is left to send are session tickets: they leave with the first bytes of the answer.
        self._waiting = None
        handle.settled()
        self.protocol = handle.protocol
        self.resumed = handle.resumed
        try:
            inner = self.role.established(self)
        except Refused as refusal:
            self._fail(refusal)
            self.abort()
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._inner = inner
        self._receive = inner.data_received
        inner.connection_made(self)
        self._read()

    def give_up(self, refusal: Refused) -> None:
        """Ends a handshake that is not done."""
        if self._inner is None:
            self._fail(refusal)
            self.abort()

    def _read(self) -> None:
        """Passes on everything that can be decrypted, in one piece."""
        ssl = self._ssl
        size = _ssl_read(ssl, BUFFER, SIZE)
        data = b""
        if size > 0:
            data = VIEW[0:size]
            size = _ssl_read(ssl, BUFFER, SIZE)
            if size > 0:
                pieces = [data]
                while size > 0:
                    pieces.append(VIEW[0:size])
                    size = _ssl_read(ssl, BUFFER, SIZE)
                data = b"".join(pieces)
        # Asked before anything else happens: OpenSSL only remembers its last failure.
        error = _get_error(ssl, size)
        if data:
            self._receive(data)
        if error != WANT_READ:
            self._end(error)

    def _end(self, error: int) -> None:
        """Nothing more can be read: the peer said so, or what it sent makes no sense."""
        if self._closing or self._ended or self._inner is None:
            openssl.clear_errors()
        elif error == ZERO_RETURN:
            self._ended = True
            self._half = bool(self._inner.eof_received())
            if not self._half:
                self.close()
        else:
            self._break()

    def _break(self) -> None:
        """Ends a connection on which TLS itself failed."""
        self.refusal = self.refusal or explain_failure(openssl.errors(), self.role.server)
        self._closing = True
        self._flush()
        if self.tcp is not None:
            self.tcp.close()

    def _flush(self) -> None:
        while (size := _bio_read(self._out, BUFFER, SIZE)) > 0:
            self._send(VIEW[0:size])

    def _fail(self, refusal: Refused) -> None:
        if self._told:
            return
        self._told = True
        self.refusal = refusal
        self.handle.settled()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.role.failed(self, refusal)
