"""Who is at the other end of a connection, as its verified certificate says."""

from msgspec import Struct


class Peer(Struct, frozen=True):
    """The verified identity of a TLS peer; every field is empty for a peer that showed no certificate.

    `identity` is the SPIFFE ID of the leaf, else its first DNS name. `fingerprint` is the SHA-256 of the leaf's DER in
    hexadecimal and `expires` its notAfter in seconds since the epoch.
    """

    identity: str = ""
    trust_domain: str = ""
    namespace: str = ""
    service_account: str = ""
    uri: str = ""
    dns_names: tuple[str, ...] = ()
    subject: str = ""
    fingerprint: str = ""
    expires: float = 0.0
    chain: tuple[bytes, ...] = ()


ANONYMOUS = Peer()
