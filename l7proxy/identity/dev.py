"""A certificate authority made on the spot, for demos, laptops and tests; never for production."""

import datetime
import ipaddress
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from l7proxy.identity.spiffe import check_trust_domain, parse

_SLACK = datetime.timedelta(minutes=5)
"""Certificates begin a little in the past, for peers whose clock is behind."""


class DevCa:
    """A P-256 authority for one trust domain; `issue` makes the certificates of workloads."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, trust_domain: str) -> None:
        self.certificate = certificate
        self.trust_domain = trust_domain
        self._key = key

    @classmethod
    def make(cls, trust_domain: str, lifetime: datetime.timedelta = datetime.timedelta(days=365)) -> "DevCa":
        """Makes a new authority; raises ValueError for a trust domain that is none."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, f"l7proxy dev CA of {check_trust_domain(trust_domain)}")]
        )
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            _builder(name, name, key.public_key(), now, lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, SHA256())
        )
        return cls(certificate, key, trust_domain)

    @classmethod
    def load(cls, folder: Path, trust_domain: str) -> "DevCa":
        """Reads the authority that `save` wrote; raises OSError or ValueError."""
        key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{folder / 'ca.key'} is not the key of a dev CA")
        return cls(x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()), key, trust_domain)

    @classmethod
    def open(cls, folder: Path, trust_domain: str) -> "DevCa":
        """Reads the authority in `folder`, or makes it; whoever comes second takes what the first has made."""
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            cls.make(trust_domain).save(draft)
            try:
                os.rename(draft, folder)
            except OSError:
                shutil.rmtree(draft)
        return cls.load(folder, trust_domain)

    def save(self, folder: Path) -> None:
        """Writes `ca.crt` and `ca.key`."""
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "ca.key", key_pem(self._key), 0o600)
        write(folder / "ca.crt", self.certificate.public_bytes(Encoding.PEM))

    def issue(
        self,
        spiffe_id: str = "",
        names: Sequence[str] = (),
        lifetime: datetime.timedelta = datetime.timedelta(days=30),
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Returns a leaf for a SPIFFE ID, with DNS names or addresses beside or in place of it."""
        key = ec.generate_private_key(ec.SECP256R1())
        sans: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(parse(spiffe_id)))] if spiffe_id else []
        sans += map(_name, names)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, (spiffe_id or names[0]).rpartition("/")[2][:64])])
        now = datetime.datetime.now(datetime.UTC)
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            _builder(subject, self.certificate.subject, key.public_key(), now, lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(sans), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )
        return certificate, key

    def issue_files(
        self,
        folder: Path,
        spiffe_id: str = "",
        names: Sequence[str] = (),
        lifetime: datetime.timedelta = datetime.timedelta(days=30),
    ) -> None:
        """Writes `tls.crt`, `tls.key` and `ca.crt` for one workload, as cert-manager and kubelet lay them out."""
        certificate, key = self.issue(spiffe_id, names, lifetime)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "tls.key", key_pem(key), 0o600)
        write(folder / "tls.crt", certificate.public_bytes(Encoding.PEM))
        write(folder / "ca.crt", self.certificate.public_bytes(Encoding.PEM))


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Returns a private key as PKCS #8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes a file so that a reader sees the old content or the new, never half of it."""
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    os.replace(draft, path)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + lifetime)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
