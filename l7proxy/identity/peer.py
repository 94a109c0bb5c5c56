"""From a verified leaf certificate to the Peer that it stands for, or to the reason why it stands for nobody.

X509-SVID sections 2 to 5: one URI SAN at most, a SPIFFE ID with a path, no signing certificate.
"""

import hashlib
import re
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from l7proxy.core.fields import FORMATS
from l7proxy.core.peer import Peer
from l7proxy.identity.refusal import Refused
from l7proxy.identity.spiffe import parse

E = TypeVar("E", bound=x509.ExtensionType)

_DNS = re.compile(r"[A-Za-z0-9_*.-]+")
_MOST = 4096
_peers: dict[bytes, Peer] = {}


def peer_of(der: bytes) -> Peer:
    """Returns the Peer of a leaf in DER.

    Parsed once for each certificate. Raises Refused, reason bad_certificate.
    """
    digest = hashlib.sha256(der).digest()
    peer = _peers.get(digest)
    if peer is None:
        if len(_peers) >= _MOST:
            del _peers[next(iter(_peers))]
        peer = _peers[digest] = _parse(der, digest.hex())
    return peer


def peer_named(identity: str) -> Peer:
    """Returns the Peer of a certificate with this one SPIFFE ID or DNS name; raises ValueError for what is neither."""
    if not identity.startswith("spiffe://"):
        try:
            return Peer(identity=identity, dns_names=(FORMATS["hostname"].parse(identity),))
        except ValueError as error:
            raise ValueError(f"{error}, nor a SPIFFE ID like spiffe://demo/ns/shop/sa/web") from None
    spiffe = parse(identity)
    if not spiffe.path:
        raise ValueError(f"{identity} names a trust domain, not a workload")
    return Peer(identity, spiffe.trust_domain, spiffe.namespace, spiffe.service_account, identity)


def names_of(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """Returns the (URI, DNS) subject alternative names; raises ValueError for what cannot be read."""
    names = extension(certificate, x509.SubjectAlternativeName)
    if names is None:
        return [], []
    uris: list[str] = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris, names.get_values_for_type(x509.DNSName)


def extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    """Returns an extension, None where there is none; raises ValueError for what cannot be read."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(str(error)) from None


def pem_of(der: bytes) -> str:
    """Returns a certificate as PEM."""
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode("ascii")


def _parse(der: bytes, fingerprint: str) -> Peer:
    try:
        certificate = x509.load_der_x509_certificate(der)
        subject = certificate.subject.rfc4514_string()
        uris, dns = names_of(certificate)
        _check_usage(certificate)
    except (ValueError, x509.InvalidVersion) as error:
        raise Refused("bad_certificate", f"the peer's certificate cannot be read: {error}") from None
    if len(uris) > 1:
        raise Refused("bad_certificate", f"the certificate has {len(uris)} URI names, and an identity is one: {uris}")
    identity = trust_domain = namespace = account = uri = ""
    if uris:
        uri = uris[0]
        try:
            spiffe = parse(uri)
        except ValueError as error:
            raise Refused("bad_certificate", f"the certificate's URI name is not a SPIFFE ID: {error}") from None
        if not spiffe.path:
            raise Refused("bad_certificate", f"{uri} names a trust domain, not a workload")
        identity, trust_domain = uri, spiffe.trust_domain
        namespace, account = spiffe.namespace, spiffe.service_account
    elif dns:
        # What looks like a SPIFFE ID is one only as a URI name, which the trust domain is held to.
        identity = next(filter(_DNS.fullmatch, dns), "")
    if not identity:
        raise Refused("bad_certificate", f"the certificate of {subject or 'nobody'} has neither a URI nor a DNS name")
    return Peer(
        identity=identity,
        trust_domain=trust_domain,
        namespace=namespace,
        service_account=account,
        uri=uri,
        dns_names=tuple(dns),
        subject=subject,
        fingerprint=fingerprint,
        expires=certificate.not_valid_after_utc.timestamp(),
        chain=(der,),
    )


def _check_usage(certificate: x509.Certificate) -> None:
    """Refuses signing certificates as leaves (X509-SVID 4.1 and 4.3)."""
    constraints = extension(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise Refused("bad_certificate", "the peer shows a CA certificate as its own")
    usage = extension(certificate, x509.KeyUsage)
    if usage is None:
        return
    if usage.key_cert_sign or usage.crl_sign:
        raise Refused("bad_certificate", "the peer's certificate may sign others, which a workload's must not")
    if not usage.digital_signature:
        raise Refused("bad_certificate", "the peer's certificate may not be used for signatures (keyUsage)")
