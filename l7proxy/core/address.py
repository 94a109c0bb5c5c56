"""IP addresses as they are compared, counted and told, whichever way a socket, a header or a document writes them.

An IPv4 caller of a dual-stack socket, which the kernel shows as `::ffff:192.0.2.7` (RFC 4291 2.5.5.2), is known by its
IPv4 address. A link-local caller is known without the scope id of `fe80::1%eth0` (RFC 4007 11), which only says over
which of our interfaces it came.
"""

import ipaddress
from functools import lru_cache
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def address_of(text: str) -> Address:
    """Returns the address in a text; raises ValueError."""
    found = ipaddress.ip_address(text.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


def network_of(text: str) -> Network:
    """Returns the block of addresses in a text, of IPv4 where it holds nothing else; raises ValueError."""
    found = ipaddress.ip_network(text, strict=False)
    mapped = getattr(found.network_address, "ipv4_mapped", None)
    return ipaddress.IPv4Network((mapped, found.prefixlen - 96)) if mapped and found.prefixlen >= 96 else found


@lru_cache(4096)
def known_as(text: str) -> str:
    """Returns a socket's address as it is known; what is no address stands as it is."""
    try:
        return str(address_of(text)) if ":" in text else text
    except ValueError:
        return text


def end_of(name: Any) -> tuple[str, int] | None:
    """Returns the address and port of one end of a connection, None where its socket has none, as a Unix socket."""
    return (known_as(name[0]), name[1]) if isinstance(name, tuple | list) else None
