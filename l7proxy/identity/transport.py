"""TLS over any asyncio transport: the protocol of the encrypted side and the transport of the plain one in one object.

`Role` says how one end of a handshake behaves; the listener's and the upstream's are in `contexts`.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.identity import openssl
from l7proxy.identity.doctor import explain_failure, explain_verify
from l7proxy.identity.openssl import BUFFER, SIZE, VIEW, WANT_READ, ZERO_RETURN
from l7proxy.identity.refusal import Refused

_ssl_read, _ssl_write = openssl.ssl_read, openssl.ssl_write
_bio_read, _bio_write = openssl.bio_read, openssl.bio_write
_get_error = openssl.get_error


_MAX_WAITING = 64 * 1024
"""Bytes of a handshake that may wait for their turn before the rest is left in the kernel."""
_MAX_RECORDS = 256
"""Records that are decrypted in one turn of the event loop: one of a single byte costs as much as a full one."""


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

    def ended(self, transport: "TlsTransport") -> None:
        """Learns that a connection has ended whose handshake was done."""


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """One TLS connection.

    `timer` is what ends a handshake that takes too long. `peer` is who is at the other end, `protocol` what ALPN
    settled (b"" for nothing) and `server_name` the name that the client asked for. A connection that ends without a
    close_notify ends with ConnectionResetError, so that a body which ends with the connection cannot be cut short
    unseen. Once the handshake is done, `data_received` and `write` are closures: each request pays for both.
    """

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
        self._paused = False
        """Whether the inner protocol wants to read nothing now."""
        self._behind = False
        """Whether records wait to be decrypted in another turn."""
        # Bytes that the record under way still lacks; 0 at the end of one, -1 where that is not known.
        self._lacks = 0
        self._told = False
        self._first = False
        """Whether what is being read is all that the server has sent since the handshake, in one record."""
        self._witness: socket.socket | None = None

    # The protocol of the TCP transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.tcp = tcp = cast(asyncio.Transport, transport)
        self._send = tcp.write
        if not self.role.server:
            self.role.step(self)

    def data_received(self, data: bytes) -> None:
        waiting = self._waiting
        if waiting is not None:
            waiting.append(data)
            self._lacks = _missing(data, self._lacks)
            if len(waiting) == 1:
                self.role.step(self)
            if sum(map(len, waiting)) > _MAX_WAITING:
                self.pause_reading()

    def eof_received(self) -> bool:
        return self._ended and self._half

    def connection_lost(self, error: Exception | None) -> None:
        self._hear_last_words()
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
            # Without these cycles the memory goes with the connection, and not when somebody collects it.
            self.__dict__.pop("data_received", None)
            self.__dict__.pop("write", None)
            self.role.ended(self)
            inner.connection_lost(error)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    # The transport of the inner protocol.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nothing can be written before the handshake or after the end."""

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if self._closing or self.tcp is None:
            return
        self._closing = True
        self.__dict__.pop("write", None)
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
        self._paused = True
        if self.tcp is not None:
            self.tcp.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        if self._behind:
            self._decrypt_later()
        elif self.tcp is not None:
            self.tcp.resume_reading()

    def is_reading(self) -> bool:
        return self.tcp is not None and self.tcp.is_reading()

    def can_write_eof(self) -> bool:
        # It can be said, but many peers take it for the end of both directions.
        return False

    def write_eof(self) -> None:
        """Ends the sending side, of TLS and then of TCP; what the peer still sends is read."""
        if self._closing or self.tcp is None:
            return
        self.__dict__.pop("write", None)
        self.handle.shut_down()
        self._flush()
        self.tcp.write_eof()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self.tcp is not None:
            self.tcp.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self.tcp.get_write_buffer_size() if self.tcp is not None else 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.tcp.get_extra_info(name, default) if self.tcp is not None else default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._inner = cast(asyncio.Protocol, protocol)
        self._bind(self._inner.data_received)

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
        try:
            self.refusal = self.refusal or explain_verify(error, certificate, self.role.server)
        except Exception as failure:
            # OpenSSL reads certificates that nobody else can, and a client may show any.
            self.refusal = Refused("bad_certificate", f"the peer's certificate cannot be read: {failure}")

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
        if self._paused:
            self.resume_reading()
        waiting.clear()
        result = openssl.do_handshake(self._ssl)
        if result != 1:
            error = _get_error(self._ssl, result)
            # The alert that says why leaves before the connection ends.
            self._flush()
            if error != WANT_READ:
                self._fail(self._explain())
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
        self._bind(inner.data_received)
        if handle.version == openssl.TLS1_3 and not self.role.server and not self.resumed:
            self._await_verdict()
        inner.connection_made(self)
        # Requests may have come with the end of the handshake.
        self.data_received(b"")

    def give_up(self, refusal: Refused) -> None:
        """Ends a handshake that is not done."""
        if self._inner is None:
            self._fail(refusal)
            self.abort()

    def _bind(self, receive: Callable[[bytes], None]) -> None:
        """Makes the closures that decrypt for `receive` and encrypt what is written."""
        ssl, incoming, outgoing = self._ssl, self._in, self._out
        send, flush, end, fail = self._send, self._flush, self._end, self._break
        later = self._decrypt_later
        missing, self._lacks = self._lacks, -1

        def data_received(data: bytes) -> None:
            nonlocal missing
            total = len(data)
            _bio_write(incoming, data, total)
            size = _ssl_read(ssl, BUFFER, SIZE)
            if size > 0 and missing == 0 and total > 5 and total == 5 + (data[3] << 8 | data[4]):
                # One whole record, as nearly always: nothing else can be there.
                receive(VIEW[0:size])
                return
            missing = _missing(data, missing)
            pieces = []
            while size > 0:
                pieces.append(VIEW[0:size])
                if len(pieces) == _MAX_RECORDS:
                    later()
                    receive(b"".join(pieces))
                    return
                size = _ssl_read(ssl, BUFFER, SIZE)
            # Asked before anything else happens: OpenSSL only remembers its last failure.
            error = _get_error(ssl, size)
            if pieces:
                receive(b"".join(pieces))
            if error != WANT_READ:
                end(error)

        def write(data: bytes | bytearray | memoryview) -> None:
            if not data:
                return
            if data.__class__ is not bytes:
                data = bytes(data)
            if _ssl_write(ssl, data, len(data)) <= 0:
                fail()
                return
            size = _bio_read(outgoing, BUFFER, SIZE)
            send(VIEW[0:size])
            if size == SIZE:
                flush()

        self.write = write  # type: ignore[method-assign]
        self._receive_by(data_received)

    def _receive_by(self, receive: Callable[[bytes], None]) -> None:
        self.data_received = receive  # type: ignore[assignment, method-assign]
        if self.tcp is not None:
            # uvloop looks the method up once.
            self.tcp.set_protocol(self)

    def _decrypt_later(self) -> None:
        """Leaves the records that are there to the next turn of the event loop, for which other connections wait."""
        self._behind = True
        if self.tcp is not None:
            self.tcp.pause_reading()
            asyncio.get_running_loop().call_soon(self._on_turn)

    def _on_turn(self) -> None:
        if self.tcp is not None and self._behind and not self._paused:
            self._behind = False
            self.tcp.resume_reading()
            self.data_received(b"")

    def _await_verdict(self) -> None:
        """Has the first bytes looked at: the server may refuse our certificate after the handshake is done for us.

        Session tickets or an answer say that it was accepted. An alert that comes along with other records is no
        verdict: when in doubt, the server has read what we sent.
        """
        with suppress(OSError):
            self._witness = self.get_extra_info("socket").dup()
        receive = self.data_received
        seen = b""

        def receive_first(data: bytes) -> None:
            nonlocal seen
            seen += data
            if len(seen) > 5 and len(seen) >= (record := 5 + (seen[3] << 8 | seen[4])):
                self._receive_by(receive)
                self._first = len(seen) == record
                witness, self._witness = self._witness, None
                if witness is not None:
                    witness.close()
            receive(data)
            self._first = False

        self._receive_by(receive_first)

    def _hear_last_words(self) -> None:
        """Reads the verdict that came before the connection broke.

        Who refuses us closes without reading what we have sent meanwhile. The kernel then fails our writes, and the
        event loop closes the socket for it, though the alert lies there unread.
        """
        witness, self._witness = self._witness, None
        if witness is not None:
            self.__dict__.pop("write", None)
            self._send = _discard
            with witness, suppress(OSError):
                self.data_received(witness.recv(SIZE, socket.MSG_DONTWAIT))

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
        self.refusal = self._explain()
        self._closing = True
        self._flush()
        if self.tcp is not None:
            self.tcp.close()

    def _explain(self) -> Refused:
        return self.refusal or explain_failure(openssl.errors(), self.role.server, self.handle.own, self._first)

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


def _discard(data: bytes | bytearray | memoryview) -> None:
    """Takes the place of `write` on a connection that has ended."""


def _missing(data: bytes, missing: int) -> int:
    """Returns how many bytes the last record in `data` lacks, given what was missing before it; -1 if unknown."""
    if missing < 0:
        return -1
    total = len(data)
    while missing + 5 <= total:
        missing += 5 + (data[missing + 3] << 8 | data[missing + 4])
    # A header that is cut in two says nothing about its record's length.
    return missing - total if missing >= total else -1
