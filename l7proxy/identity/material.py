"""Certificates, keys and trust as they come from a source: read, checked, and held together as one `Material`."""

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)
from msgspec import Struct

from l7proxy.identity.peer import names_of
from l7proxy.identity.spiffe import parse

_KEYS = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)
NEVER = float("inf")
ANY = ""
"""The key of authorities that may vouch for every trust domain that is accepted."""


class BadMaterial(Exception):
    """Certificates that cannot be used; `problems` are (file or source, what is wrong)."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(f"{where}: {what}" for where, what in problems))


class Material(Struct, frozen=True):
    """All that a TLS context is made of, in DER.

    `chain` has the leaf first, `key` is its private key (PKCS #8); both are empty where only trust is configured.
    `bundles` are certificate authorities by the trust domain that they vouch for, `crls` lists of revoked certificates.
    `identity` is the leaf's SPIFFE ID, else its first DNS name; `expires` its notAfter in seconds since the epoch, and
    `crls_expire` when the first of the lists is out of date.
    """

    chain: tuple[bytes, ...] = ()
    key: bytes = b""
    bundles: dict[str, tuple[bytes, ...]] = {}
    crls: tuple[bytes, ...] = ()
    crls_expire: float = NEVER
    identity: str = ""
    trust_domain: str = ""
    dns_names: tuple[str, ...] = ()
    expires: float = 0.0

    @property
    def authorities(self) -> list[bytes]:
        """Every trusted authority, once."""
        return list(dict.fromkeys(der for bundle in self.bundles.values() for der in bundle))


def material(
    chain: Sequence[x509.Certificate] = (),
    key: bytes = b"",
    bundles: dict[str, tuple[bytes, ...]] | None = None,
    crls: Sequence[x509.CertificateRevocationList] = (),
) -> Material:
    """Returns the Material of parsed parts."""
    identity = trust_domain = ""
    dns: list[str] = []
    expires = 0.0
    if chain:
        uris, dns = names_of(chain[0])
        expires = min(certificate.not_valid_after_utc.timestamp() for certificate in chain)
        identity = dns[0] if dns else ""
        for uri in uris[:1]:
            if uri.startswith("spiffe://"):
                identity, trust_domain = uri, parse(uri).trust_domain
    return Material(
        chain=tuple(certificate.public_bytes(Encoding.DER) for certificate in chain),
        key=key,
        bundles=bundles or {},
        crls=tuple(crl.public_bytes(Encoding.DER) for crl in crls),
        crls_expire=min((crl.next_update_utc.timestamp() for crl in crls if crl.next_update_utc), default=NEVER),
        identity=identity,
        trust_domain=trust_domain,
        dns_names=tuple(dns),
        expires=expires,
    )


def read_certificates(data: bytes, what: str) -> list[x509.Certificate]:
    """Returns the certificates of a PEM text; raises BadMaterial."""
    if b"-----BEGIN CERT" not in data:
        raise BadMaterial([(what, "no certificate in it (PEM)")])
    try:
        found = [whole(one) for one in x509.load_pem_x509_certificates(data)]
    except ValueError:
        found = []
    except x509.InvalidVersion as error:
        raise BadMaterial([(what, f"a certificate in it is garbled: {error}")]) from None
    if data.count(b"-----BEGIN CERTIFICATE-----") != len(found) or not found:
        raise BadMaterial([(what, "a certificate in it is cut off or garbled")])
    return found


def read_crls(data: bytes, what: str) -> list[x509.CertificateRevocationList]:
    """Returns the revocation lists of a PEM text; raises BadMaterial."""
    end = b"-----END X509 CRL-----"
    try:
        found = [x509.load_pem_x509_crl(part + end) for part in data.split(end)[:-1]]
        for crl in found:
            _ = crl.issuer, crl.next_update_utc
    except (ValueError, x509.InvalidVersion) as error:
        raise BadMaterial([(what, f"not a revocation list: {error}")]) from None
    if not found or data.count(b"-----BEGIN X509 CRL-----") != len(found):
        raise BadMaterial([(what, "no complete revocation list in it (PEM)")])
    return found


def read_key(data: bytes, what: str) -> bytes:
    """Returns a private key (PEM or DER) as PKCS #8 DER; raises BadMaterial."""
    try:
        load = load_pem_private_key if b"-----BEGIN" in data else load_der_private_key
        key = load(data, None)
    except TypeError:
        raise BadMaterial([(what, "the key is encrypted; it must be readable without a password")]) from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadMaterial([(what, "no private key in it, or it is cut off")]) from None
    if not isinstance(key, _KEYS):
        raise BadMaterial([(what, f"keys of this kind are not used for TLS: {type(key).__name__}")])
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def whole(certificate: x509.Certificate) -> x509.Certificate:
    """Returns a certificate of which every part that we show can be read; they are parsed when they are asked for."""
    _ = certificate.subject, certificate.issuer, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return certificate


def matches(certificate: x509.Certificate, key: bytes) -> bool:
    """Tells whether the private key belongs to the certificate; raises ValueError where its own cannot be read."""
    loaded = load_der_private_key(key, None)
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        own = certificate.public_key().public_bytes(*form)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"the certificate's key cannot be read: {error}") from None
    return loaded.public_key().public_bytes(*form) == own


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Tells whether `issuer` signed the certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def lifetime_problem(certificate: x509.Certificate, now: float) -> str:
    """Returns what is wrong with the dates of a certificate at `now` (epoch seconds), or ""."""
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if now < start:
        return f"certificate not valid yet: in {span(start - now)} ({describe(certificate)})"
    if now >= end:
        return f"certificate expired {span(now - end)} ago ({describe(certificate)})"
    return ""


def describe(certificate: x509.Certificate) -> str:
    """Returns the name by which an operator knows a certificate: its SPIFFE ID, else its subject."""
    try:
        uris, dns = names_of(certificate)
    except ValueError:
        uris = dns = []
    found = uris or dns
    return (found[0] if found else certificate.subject.rfc4514_string()) or "a certificate without a name"


def span(seconds: float) -> str:
    """Returns a duration as somebody would say it: `3 h`, `12 min`, `40 days`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(int(seconds), 0)} s"


def date(seconds: float) -> str:
    """Returns epoch seconds as an RFC 3339 time in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
