"""The host and port of an authority (`Host`, `:authority`) in the one spelling that is matched and authorised."""

import ipaddress


def host_of(authority: bytes) -> bytes:
    """Returns the host: lower case, no port, no trailing dot, IPv6 without brackets in its shortest form."""
    host = authority.lower()
    if host.startswith(b"["):
        inner = host[1:].partition(b"]")[0]
        try:
            return str(ipaddress.IPv6Address(inner.decode())).encode()
        except ValueError:
            return inner
    return host.partition(b":")[0].removesuffix(b".")


def port_of(authority: bytes) -> bytes:
    """Returns the digits of the port, b"" where there are none."""
    return authority.rpartition(b"]")[2].partition(b":")[2]
