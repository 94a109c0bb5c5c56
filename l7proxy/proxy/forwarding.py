"""Who the client says it is, and how much of that is believed: `x-forwarded-*` and the headers that only we may set."""

import ipaddress
from collections.abc import Callable, Sequence

from l7proxy.core.headers import Headers, joined
from l7proxy.core.message import Request
from l7proxy.identity.xfcc import Mode, rewriter

_UNTRUSTED = (b"x-forwarded-", b"x-l7proxy-", b"x-envoy-", b"x-request-id")
_OURS = (b"x-l7proxy-", b"x-envoy-")


class Forwarding:
    """Rewrites the forwarding headers of inbound requests.

    `trusted` are identities and CIDR blocks whose headers are believed, `hops` the number of proxies in front that are
    believed whoever they are (Envoy's xff_num_trusted_hops). Everybody else's are replaced by what the connection says.
    `mode` says what becomes of x-forwarded-client-cert, which hops alone do not vouch for; `by` is our own identity.
    """

    def __init__(
        self,
        trusted: Sequence[str] = (),
        hops: int = 0,
        mode: Mode = "SANITIZE_SET",
        by: Callable[[], str] = str,
    ) -> None:
        networks = {entry: network for entry in trusted if (network := _network(entry)) is not None}
        self._identities = frozenset(entry for entry in trusted if entry not in networks)
        self._networks = list(networks.values())
        self._hops = hops
        self._client_cert = rewriter(mode, by)
        self._trusts_anyone = bool(self._identities or self._networks or hops)

    def apply(self, request: Request) -> None:
        """Sets `request.forwarded` and the forwarding headers that the application gets."""
        headers = request.headers
        if self._trusts_anyone and self.believes(request):
            self._append(request)
            return
        # Two bytes tell most names apart from these at once.
        for name, _ in headers:
            if (name[:2] == b"x-" and name.startswith(_UNTRUSTED)) or name == b"forwarded":
                headers[:] = [
                    pair for pair in headers if not pair[0].startswith(_UNTRUSTED) and pair[0] != b"forwarded"
                ]
                break
        request.forwarded = request.source
        headers += (
            (b"x-forwarded-for", request.source.encode()),
            (b"x-forwarded-proto", request.scheme),
            (b"x-forwarded-host", request.authority),
        )
        if request.peer.fingerprint:
            self._client_cert(headers, request.peer, False)

    def believes(self, request: Request) -> bool:
        """Whether the peer's own forwarding headers count."""
        return self._hops > 0 or self._knows(request)

    def _knows(self, request: Request) -> bool:
        """Whether the peer is one of the trusted proxies, by its certificate or its address."""
        if request.peer.identity in self._identities:
            return True
        if not self._networks:
            return False
        try:
            address = ipaddress.ip_address(request.source)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def _append(self, request: Request) -> None:
        headers: Headers = [pair for pair in request.headers if not pair[0].startswith(_OURS)]
        chain = joined(headers, b"x-forwarded-for")
        addresses = [part.strip() for part in chain.split(b",")] if chain else []
        # Read from the right: each believed hop vouches for the address that it saw.
        index = max(self._hops, 1)
        seen = addresses[-index] if len(addresses) >= index else (addresses[0] if addresses else b"")
        request.forwarded = seen.decode("latin-1") or request.source
        headers = [pair for pair in headers if pair[0] != b"x-forwarded-for"]
        source = request.source.encode()
        headers.append((b"x-forwarded-for", chain + b", " + source if chain else source))
        names = {name for name, _ in headers}
        if b"x-forwarded-proto" not in names:
            headers.append((b"x-forwarded-proto", request.scheme))
        if b"x-forwarded-host" not in names:
            headers.append((b"x-forwarded-host", request.authority))
        self._client_cert(headers, request.peer, self._knows(request))
        request.headers = headers


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None
