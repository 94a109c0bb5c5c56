"""What there is to say about certificates: expiry metrics, the admin API's `/certs`, what `check` finds."""

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import TypedDict

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from l7proxy.core.errors import Problem
from l7proxy.core.stats import Stats
from l7proxy.identity.contexts import Identity
from l7proxy.identity.doctor import describe
from l7proxy.identity.material import BadMaterial, Material, date, issued_by, lifetime_problem, read_certificates
from l7proxy.identity.peer import peer_of
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


def check(files: Files, now: float | None = None) -> list[Problem]:
    """Returns what is wrong with certificate files: unreadable, a key that does not match, a broken chain, dates."""
    now = time.time() if now is None else now
    try:
        material = files.read()
    except BadMaterial as error:
        return [Problem(where, 0, what) for where, what in error.problems]
    problems = []
    chain = [x509.load_der_x509_certificate(der) for der in material.chain]
    for certificate, issuer in pairwise(chain):
        if not issued_by(certificate, issuer):
            what = f"{describe(issuer)} did not sign {describe(certificate)}, which stands before it"
            problems.append(Problem(files.cert or "", 0, what))
    if chain:
        try:
            peer_of(material.chain[0])
        except Refused as refusal:
            problems.append(Problem(files.cert or "", 0, refusal.detail.replace("the peer's", "the")))
    problems += [Problem(files.cert or "", 0, problem) for found in chain if (problem := lifetime_problem(found, now))]
    if files.ca:
        with open(files.ca, "rb") as file:
            authorities = read_certificates(file.read(), files.ca)
        dated = [lifetime_problem(found, now) for found in authorities]
        problems += [Problem(files.ca, 0, problem) for problem in dated if problem]
        problems += [
            Problem(files.ca, 0, f"{describe(found)} is not a CA certificate")
            for found in authorities
            if not _is_ca(found)
        ]
    return problems


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
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
