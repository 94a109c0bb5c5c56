"""How requests end that would come back to this process for ever.

A connection to one of our own listeners is refused where it would be opened. A longer way round, over other proxies,
ends by the field CDN-Loop (RFC 8586): whatever is forwarded carries our mark in it, and what comes with it is refused.
"""

import secrets
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress

from l7proxy.core.address import Address, address_of

FIELD = b"cdn-loop"

_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=8BI")
_ATTRIBUTE = struct.Struct("=HH")
_GET_ROUTE, _NEW_ROUTE, _REQUEST, _DESTINATION, _LOCAL = 26, 24, 1, 1, 2


def is_local(address: Address) -> bool:
    """Asks the kernel whether an address is one of this host's (`ip route get`); False where it may not be asked.

    To bind to the address would tell as well, but for hosts with `ip_nonlocal_bind`, where any address can be bound to.
    """
    if address.is_loopback:
        return True
    packed = address.packed
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    question = _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    question += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _DESTINATION) + packed
    with suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        # The answer is there when `send` returns.
        kernel.setblocking(False)
        kernel.send(_HEADER.pack(_HEADER.size + len(question), _GET_ROUTE, _REQUEST, 1, 0) + question)
        answer = kernel.recv(4096)
        return _HEADER.unpack_from(answer)[1] == _NEW_ROUTE and answer[_HEADER.size + 7] == _LOCAL
    return False


class Listening:
    """Addresses that are listened on, as pairs of host and port; `local` tells which ones a wildcard stands for."""

    def __init__(self, addresses: Iterable[tuple[str, int]] = (), local: Callable[[Address], bool] = is_local) -> None:
        self._hosts: dict[int, set[Address]] = {}
        self._local = local
        for host, port in addresses:
            self._hosts.setdefault(port, set()).add(address_of(host))

    def on_port(self, port: int) -> bool:
        """Tells whether any address has this port."""
        return port in self._hosts

    def accepts(self, host: str, port: int) -> bool:
        """Tells whether a connection to an address would end here; raises ValueError where `host` is none."""
        bound = self._hosts.get(port)
        if bound is None:
            return False
        address = address_of(host)
        if address.is_unspecified:
            # Linux connects to the loopback interface when it is asked for no address in particular.
            address = address_of("127.0.0.1" if address.version == 4 else "::1")
        # `[::]` takes IPv4 too.
        wild = any(one.is_unspecified and one.version >= address.version for one in bound)
        return address in bound or (wild and self._local(address))


class Loops:
    """What this process is known by, to itself and on the way: there is one, as there is one set of listening sockets.

    `fields` are what requests carry that were forwarded for the application ([False]) and to it ([True]). They differ,
    since a gateway that stands behind the sidecar passes on over the outbound listener what came over the inbound one.
    """

    def __init__(self) -> None:
        self.begin((), secrets.token_hex(8))

    def begin(self, addresses: Iterable[tuple[str, int]], token: str) -> None:
        """Sets what is listened on, and the token that no other sidecar has; workers have one together."""
        self.addresses = tuple(addresses)
        self.token = token
        self.listening = Listening(self.addresses)
        self.fields = tuple((FIELD, f"l7proxy-{token}-{side}".encode()) for side in ("out", "in"))

    def passed(self, hops: bytes, inbound: bool) -> bool:
        """Tells whether a request with these values of CDN-Loop has passed the listener of a direction before.

        The mark is looked for as bytes: it stands nowhere by chance, and a list that a client made unreadable, such as
        by a quote that does not end, must not hide it.
        """
        return self.fields[inbound][1] in hops


loops = Loops()
