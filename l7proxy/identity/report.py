"""What there is to say about certificates: expiry metrics, the admin API's `/certs`, what `check` finds."""

import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypedDict

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from l7proxy.core.errors import Problem
from l7proxy.core.stats import Stats
from l7proxy.identity.contexts import Identity
from l7proxy.identity.material import BadMaterial, Material, date, describe, issued_by, lifetime_problem, span
from l7proxy.identity.openssl import try_out
from l7proxy.identity.peer import extension, peer_of
from l7proxy.identity.refusal import Refused
from l7proxy.identity.sources import Files

_GAUGE = "l7proxy_certificate_expiry_seconds"
_HELP = "Seconds until the first certificate of a chain or bundle expires; negative once it has"


class ShownCertificate(TypedDict):
    """One certificate; `name` is its identity, or the subject where it names none."""

    name: str
    subject: str
    issuer: str
    serial: str
    notBefore: str
    notAfter: str
    expiresInSeconds: int
    sha256: str


class ShownIdentity(TypedDict):
    """One certificate in use with its chain, the authorities that peers are verified by, and when it was replaced."""

    name: str
    identity: str
    trustDomains: list[str]
    chain: list[ShownCertificate]
    authorities: dict[str, list[ShownCertificate]]
    revoked: int
    rotated: str | None
    generation: int


def count_expiry(stats: Stats, identity: Identity) -> None:
    """Declares the expiry gauges of one identity; they follow its certificates as they change."""
    # A Workload API that has not answered yet will bring both.
    waiting = identity.material == Material()
    if identity.material.chain or waiting:
        stats.gauge(_GAUGE, _HELP, lambda: _left(identity.material.chain), certificate=identity.name, role="leaf")
    if identity.material.bundles or waiting:
        stats.gauge(_GAUGE, _HELP, lambda: _left(identity.material.authorities), certificate=identity.name, role="ca")


def forget_expiry(stats: Stats, identity: Identity) -> None:
    """Removes the gauges of an identity that is no longer used."""
    for role in ("leaf", "ca"):
        stats.forget(_GAUGE, certificate=identity.name, role=role)


def certificates(identities: Sequence[Identity]) -> list[ShownIdentity]:
    """Returns what `/certs` shows."""
    shown: list[ShownIdentity] = []
    for identity in identities:
        material = identity.material
        shown.append(
            {
                "name": identity.name,
                "identity": material.identity,
                "trustDomains": sorted({material.trust_domain, *identity.trust_domains} - {""}),
                "chain": [_show(der) for der in material.chain],
                "authorities": {
                    domain or "*": [_show(der) for der in bundle] for domain, bundle in material.bundles.items()
                },
                "revoked": sum(len(x509.load_der_x509_crl(crl)) for crl in material.crls),
                "rotated": date(identity.rotated) if identity.rotated else None,
                "generation": identity.generation,
            }
        )
    return shown


def check(files: Files, server: bool = True, now: float | None = None) -> list[Problem]:
    """Returns what is wrong with certificate files: unreadable, a key that does not match, a broken chain, dates.

    `server` tells for which end of a connection they are. `file` of a problem is the file that it is in.
    """
    now = time.time() if now is None else now
    try:
        material = files.read()
        try_out(material)
    except BadMaterial as error:
        return [Problem(where, 0, what) for where, what in error.problems]
    chain = [x509.load_der_x509_certificate(der) for der in material.chain]
    authorities = [x509.load_der_x509_certificate(der) for der in material.authorities]
    found = {
        files.cert: [*_in_chain(chain, server), *(lifetime_problem(one, now) for one in chain)],
        files.ca: [
            *(lifetime_problem(one, now) for one in authorities),
            *(f"{describe(one)} is not a CA certificate" for one in authorities if not _is_ca(one)),
        ],
        files.crl: _in_lists([x509.load_der_x509_crl(der) for der in material.crls], authorities, now),
    }
    return [Problem(file or "", 0, what) for file, problems in found.items() for what in problems if what]


def _in_chain(chain: Sequence[x509.Certificate], server: bool) -> Iterator[str]:
    for certificate, issuer in pairwise(chain):
        if not issued_by(certificate, issuer):
            yield f"{describe(issuer)} did not sign {describe(certificate)}, which stands before it"
    for leaf in chain[:1]:
        try:
            peer_of(leaf.public_bytes(Encoding.DER))
        except Refused as refusal:
            yield refusal.detail.replace("the peer's", "the")
        needed, side = (
            (ExtendedKeyUsageOID.SERVER_AUTH, "server") if server else (ExtendedKeyUsageOID.CLIENT_AUTH, "client")
        )
        try:
            usages = extension(leaf, x509.ExtendedKeyUsage)
        except ValueError:
            continue
        if usages is not None and needed not in usages and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in usages:
            yield f"{describe(leaf)} may not be used by a {side} (extended key usage)"


def _in_lists(
    lists: Sequence[x509.CertificateRevocationList], authorities: Sequence[x509.Certificate], now: float
) -> Iterator[str]:
    for crl in lists:
        issuer = crl.issuer.rfc4514_string()
        end = crl.next_update_utc
        if end is not None and end.timestamp() <= now:
            ago = span(now - end.timestamp())
            yield f"the revocation list of {issuer} expired {ago} ago, so that it lets nobody in"
        issuers = [one for one in authorities if one.subject == crl.issuer]
        if issuers and not any(_signed(crl, one) for one in issuers):
            yield f"the revocation list of {issuer} is signed by somebody else"
    names = {crl.issuer for crl in lists}
    if lists and authorities and not any(one.subject in names for one in authorities):
        yield "no list in it is of an authority that is trusted, so that nobody is let in"


def _signed(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _left(certificates: Sequence[bytes]) -> float:
    ends = (x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp() for der in certificates)
    return min(ends, default=0.0) - time.time()


def _show(der: bytes) -> ShownCertificate:
    certificate = x509.load_der_x509_certificate(der)
    end = certificate.not_valid_after_utc.timestamp()
    return {
        "name": describe(certificate),
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{certificate.serial_number:x}",
        "notBefore": date(certificate.not_valid_before_utc.timestamp()),
        "notAfter": date(end),
        "expiresInSeconds": int(end - time.time()),
        "sha256": certificate.fingerprint(SHA256()).hex(),
    }


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        constraints = extension(certificate, x509.BasicConstraints)
    except ValueError:
        return False
    return constraints is not None and constraints.ca
