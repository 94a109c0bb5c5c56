"""Who the client says it is, and how much of that is believed: `x-forwarded-*` and the headers that only we may set."""

from collections.abc import Callable, Sequence

from l7proxy.core.address import Address, Network, address_of, network_of
from l7proxy.core.headers import Headers, joined, vouches
from l7proxy.core.message import Request
from l7proxy.identity.xfcc import ClientCert, Mode

_OURS = (b"x-l7proxy-", b"x-envoy-")
_STARTS = frozenset((b"x-", b"x_", b"fo"))
"""How a header begins that might be one of these."""


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
        networks = {entry: block for entry in trusted if (block := _network(entry)) is not None}
        self._identities = frozenset(entry for entry in trusted if entry not in networks)
        self._networks = list(networks.values())
        self._hops = hops
        self._client_cert = ClientCert(mode, by)
        self._trusts_anyone = bool(self._identities or self._networks or hops)

    def apply(self, request: Request) -> None:
        """Sets `request.forwarded` and the forwarding headers that the application gets."""
        headers = request.headers
        if self._trusts_anyone and self.believes(request):
            self._append(request)
            return
        # Two bytes tell most names apart from these at once.
        for name, _ in headers:
            if name[:2] in _STARTS and _tells(name):
                headers[:] = [pair for pair in headers if not _tells(pair[0])]
                break
        request.forwarded = request.source
        headers += (
            (b"x-forwarded-for", request.source.encode()),
            (b"x-forwarded-proto", request.scheme),
            (b"x-forwarded-host", request.authority),
        )
        self._client_cert.add(headers, request.peer)

    def believes(self, request: Request) -> bool:
        """Whether the peer's own forwarding headers count."""
        return self._hops > 0 or self._knows(request)

    def _knows(self, request: Request) -> bool:
        """Whether the peer is one of the trusted proxies, by its certificate or its address."""
        return request.peer.identity in self._identities or self._is_proxy(_address(request.source))

    def _is_proxy(self, address: Address | None) -> bool:
        return address is not None and any(address in block for block in self._networks)

    def _append(self, request: Request) -> None:
        chain = joined(request.headers, b"x-forwarded-for")
        request.forwarded = self._client(chain.split(b",") if chain else []) or request.source
        headers: Headers = [
            pair
            for pair in request.headers
            if pair[0] != b"x-forwarded-for"
            and not pair[0].startswith(_OURS)
            and (b"_" not in pair[0] or not _tells(pair[0]))
        ]
        source = request.source.encode()
        headers.append((b"x-forwarded-for", chain + b", " + source if chain else source))
        names = {name for name, _ in headers}
        if b"x-forwarded-proto" not in names:
            headers.append((b"x-forwarded-proto", request.scheme))
        if b"x-forwarded-host" not in names:
            headers.append((b"x-forwarded-host", request.authority))
        self._client_cert.rewrite(headers, request.peer, self._knows(request))
        request.headers = headers

    def _client(self, chain: Sequence[bytes]) -> str:
        """Reads who the client is from the right, where each believed proxy vouches for the address that it saw.

        "" where that cannot be told: the chain is shorter than the hops that are believed, or holds no address there.
        """
        left = len(chain) - max(self._hops, 1)
        found = ""
        while left >= 0 and (address := _address(chain[left].decode("latin-1").strip())) is not None:
            found = str(address)
            if not self._is_proxy(address):
                break
            left -= 1
        return found


def _tells(name: bytes) -> bool:
    """Whether a header says who the client is, or is ours to set."""
    return name == b"forwarded" or vouches(name)


def _address(text: str) -> Address | None:
    """Returns the address in a text, which some proxies write with its port; None where there is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return address_of(text)
    except ValueError:
        return None


def _network(entry: str) -> Network | None:
    try:
        return network_of(entry)
    except ValueError:
        return None
