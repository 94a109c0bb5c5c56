"""How an endpoint is reached, and what the pools of every protocol ask on the way."""

import asyncio
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar, cast

from msgspec import Struct

from l7proxy.core import descriptors
from l7proxy.core.errors import ProxyError
from l7proxy.core.loops import loops
from l7proxy.core.message import Body, Request
from l7proxy.core.pacing import PacedProtocol
from l7proxy.core.stats import Counter, Gauge
from l7proxy.identity.client_tls import ClientTls
from l7proxy.identity.refusal import Unwanted
from l7proxy.upstream.waiting import Share

IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
"""RFC 9110 9.2.2."""
TICK = 0.005
"""Seconds that a timeout may be late."""

NEVER = float("inf")


class WrongProtocol(ProxyError):
    """ALPN settled on another protocol than the one that the pool speaks; nothing was sent."""

    def __init__(self, protocol: bytes) -> None:
        super().__init__("upstream_connect", f"the upstream chose {protocol.decode('latin-1')} (ALPN)")


class Expiring(PacedProtocol):
    """A connection to an upstream; none is used for a new request after `expires` (monotonic seconds).

    `where` is the endpoint, `chosen` what ALPN settled on, b"" for nothing. `lost` tells that it has ended, and
    `refusal` that the upstream refused our certificate once the connection was open for us: it has read nothing of a
    request.
    """

    lost = False
    where = ""
    expires = NEVER
    chosen = b""
    refusal: Unwanted | None = None

    def not_admitted(self, refusal: Unwanted) -> ProxyError:
        """Returns what a request gets whose connection was refused so."""
        return ProxyError("upstream_connect", f"{self.where}: {refusal.detail}")


Connection = TypeVar("Connection", bound=Expiring)


class PoolMetrics(Protocol):
    """What a pool counts; `telemetry.metrics.UpstreamMetrics` is one."""

    sent: Counter
    received: Counter
    connections: Gauge
    connects: Counter
    connect_failures: Counter
    surplus: Counter


class Dial(Struct, frozen=True):
    """How to reach an endpoint; times in seconds. `path` is that of a Unix socket.

    `tls` says how the endpoint is spoken to in TLS, and as whom; None is plain text. `keepalive` is how long an HTTP/2
    connection that owes answers may be silent before it is asked for a sign of life.
    """

    host: str
    port: int
    connect_timeout: float = 5.0
    idle_timeout: float = 3.0
    path: str = ""
    keepalive: float | None = None
    tls: ClientTls | None = None


async def connect(
    dial: Dial, share: Share, metrics: PoolMetrics, make: Callable[[], Connection], timeout: float | None
) -> Connection:
    """Opens a connection that `share` counts already; one that cannot be opened is released. Raises ProxyError."""
    where = dial.path or f"{dial.host}:{dial.port}"
    try:
        if not descriptors.below(descriptors.dial_ceiling()):
            raise ProxyError("overflow", "the process has no file descriptor to spare")
        async with asyncio.timeout(timeout):
            if loops.listening.on_port(dial.port) and not dial.path:
                connection = await _elsewhere(dial, make)
            else:
                connection = await _open(dial, dial.host, make)
        connection.where = where
        if connection.lost:
            # Before anybody counted on being told so.
            raise connection.refusal or ConnectionResetError("closed at once")
    except (OSError, TimeoutError) as error:
        share.release()
        metrics.connect_failures.value += 1
        why = "timed out" if isinstance(error, TimeoutError) else (error.strerror or str(error))
        raise ProxyError("upstream_connect", f"{where}: {why}") from error
    except BaseException:
        share.release()
        raise
    metrics.connects.value += 1
    metrics.connections.value += 1
    return connection


async def _open(dial: Dial, host: str, make: Callable[[], Connection]) -> Connection:
    """Opens one connection to a host. Raises OSError."""
    loop = asyncio.get_running_loop()
    if dial.tls is not None:
        transport, connection = await dial.tls.connect(make, host=host, port=dial.port)
        connection.chosen = transport.protocol
        connection.expires = time.monotonic() + dial.tls.identity.lifetime(transport.peer)
    elif dial.path:
        _, connection = await loop.create_unix_connection(make, dial.path)
    else:
        _, connection = await loop.create_connection(make, host, dial.port)
    return connection


async def _elsewhere(dial: Dial, make: Callable[[], Connection]) -> Connection:
    """Opens one connection to a port that we listen on ourselves, unless it is on one of our own addresses.

    It is opened to the very addresses that were looked at: the next answer about a name may be another one. Raises
    OSError and ProxyError.
    """
    found = await asyncio.get_running_loop().getaddrinfo(dial.host, dial.port, type=socket.SOCK_STREAM)
    hosts = list(dict.fromkeys(str(address[0]) for *_, address in found))
    for host in hosts:
        if loops.listening.accepts(host, dial.port):
            raise ProxyError("loop_detected", f"{dial.host}:{dial.port} is a listener of this sidecar")
    for host in hosts[:-1]:
        with suppress(OSError):
            return await _open(dial, host, make)
    return await _open(dial, hosts[-1], make)


def head_deadline(ledger: Request) -> float | None:
    """Returns when the response head of a request that is out now is due, in monotonic seconds; None for never."""
    if ledger.deadline is None and ledger.timeout is not None:
        ledger.deadline = time.monotonic() + ledger.timeout
    deadline = ledger.deadline
    if ledger.per_try is not None:
        this_try = time.monotonic() + ledger.per_try
        return this_try if deadline is None else min(deadline, this_try)
    return deadline


def time_left(ledger: Request | None, limit: float | None) -> float | None:
    """Returns the seconds until a request's deadline, at most `limit`; None when there is neither."""
    if ledger is None or ledger.deadline is None:
        return limit
    left = max(ledger.deadline - time.monotonic(), 0.0)
    return left if limit is None else min(left, limit)


def untouched(body: Body) -> bool:
    """Tells whether nothing of a request body was read yet."""
    return type(body) is bytes or (cast(Any, body).taken == 0)


def is_alive(transport: asyncio.Transport, silent: bool = True) -> bool:
    """Asks the kernel whether the peer has closed: the event loop may not have been told yet.

    Bytes that nobody asked for are as bad as an end where the peer should be `silent`.
    """
    sock = transport.get_extra_info("socket")
    if sock is None:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | select.POLLRDHUP if silent else select.POLLRDHUP)
    return not poll.poll(0)
