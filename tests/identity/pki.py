"""Certificates good and bad, and TLS clients that are not ours: Python's `ssl` on the system's OpenSSL."""

import datetime
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.client import Client
from tests.support.message import Message, Reader
from tests.support.net import Address

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
WEB = "spiffe://demo/ns/shop/sa/web"
ORDERS = "spiffe://demo/ns/shop/sa/orders"
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


class Pair:
    """Files of one certificate chain and its key."""

    def __init__(self, folder: Path, name: str) -> None:
        self.cert, self.key = folder / f"{name}.crt", folder / f"{name}.key"


class Authority:
    """A CA that signs whatever it is asked to."""

    def __init__(self, folder: Path, name: str = "ca", parent: "Authority | None" = None) -> None:
        self.folder = folder
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.parent = parent
        issuer = parent or self
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - DAY)
            .not_valid_after(NOW + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(sign=False, cert_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(issuer.key, SHA256())
        )
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self.pem)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def sign(
        self,
        *uris: str,
        dns: Sequence[str] = (),
        subject: str = "workload",
        start: datetime.datetime = NOW - DAY,
        end: datetime.datetime = NOW + DAY,
        usages: Sequence[x509.ObjectIdentifier] = BOTH,
        ca: bool = False,
        cert_sign: bool = False,
        padding: int = 0,
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(_usage(sign=True, cert_sign=cert_sign or ca), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier._init_without_validation(uri)  # what `uri` breaks is what is tested
            for uri in uris
        ]
        names += [x509.DNSName(name) for name in dns]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if padding:
            oid = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1")
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, b"x" * padding), critical=False)
        return builder.sign(self.key, SHA256()), key

    def issue(self, file: str, *uris: str, **options: Any) -> Pair:
        """Writes `file.crt`, with the intermediates behind it, and `file.key`."""
        certificate, key = self.sign(*uris, **options)
        chain, above = [certificate], self
        while above.parent is not None:
            chain.append(above.certificate)
            above = above.parent
        return save(self.folder, file, chain, key)

    def revoke(self, *pairs: Pair, next_update: datetime.datetime = NOW + DAY) -> Path:
        """Writes this CA's list of revoked certificates."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(NOW - 2 * DAY)
            .next_update(next_update)
        )
        for pair in pairs:
            serial = x509.load_pem_x509_certificate(pair.cert.read_bytes()).serial_number
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - DAY).build()
            builder = builder.add_revoked_certificate(revoked)
        file = self.folder / "crl.pem"
        file.write_bytes(builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM))
        return file


def save(folder: Path, file: str, chain: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey) -> Pair:
    """Writes a chain and a key, each in one step."""
    pair = Pair(folder, file)
    for path, data in (
        (pair.cert, b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)),
        (pair.key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())),
    ):
        draft = path.with_suffix(".draft")
        draft.write_bytes(data)
        draft.replace(path)
    return pair


def garbled(pem: bytes) -> bytes:
    """Returns a certificate that is whole but for the kind of its key, which nobody knows."""
    return replaced(pem, "2a8648ce3d0201", "2a8648ce3d027f")


def named_twice(pem: bytes) -> bytes:
    """Returns a certificate whose extended key usage stands there as a second list of names."""
    return replaced(pem, "551d25", "551d11")


def unreadable(pem: bytes) -> bytes:
    """Returns a certificate of X.509 version 10, which OpenSSL reads and `cryptography` does not."""
    return replaced(pem, "a003020102", "a003020109")


def replaced(pem: bytes, part: str, other: str) -> bytes:
    """Returns a certificate with one part of its DER (in hexadecimal) put in place of another."""
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    return ssl.DER_cert_to_PEM_cert(der.replace(bytes.fromhex(part), bytes.fromhex(other), 1)).encode()


def context(ca: Authority, pair: Pair | None = None, **options: Any) -> ssl.SSLContext:
    """Returns a client's context; the server's name is not checked, as SPIFFE's certificates have none."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.load_verify_locations(ca.file)
    if pair is not None:
        made.load_cert_chain(pair.cert, pair.key)
    made.set_alpn_protocols(options.pop("alpn", ["http/1.1"]))
    for name, value in options.items():
        setattr(made, name, value)
    return made


class TlsClient(Client):
    """A client whose connection is TLS; raises ssl.SSLError or OSError when the handshake is refused."""

    def __init__(
        self,
        address: Address,
        made: ssl.SSLContext,
        name: str | None = None,
        session: ssl.SSLSession | None = None,
        timeout: float = 10.0,
    ) -> None:
        super().__init__(address, timeout)
        try:
            self.tls = made.wrap_socket(self.sock, server_hostname=name, session=session)
        except BaseException:
            self.sock.close()
            raise
        self.sock = self.tls
        self.reader = Reader(self.sock)


def ask(address: Address, made: ssl.SSLContext, target: str = "/", host: str = "orders", **options: Any) -> Message:
    """Sends one GET on a connection of its own. In TLS 1.3 a refusal only shows when something is read."""
    with TlsClient(address, made, **options) as client:
        return client.get(target, host)


def openssl(*arguments: str, stdin: bytes = b"", timeout: float = 10.0) -> str:
    """Runs the openssl program and returns all that it says."""
    ran = subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, timeout=timeout, check=False)
    return (ran.stdout + ran.stderr).decode("latin-1")


def _usage(sign: bool, cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=cert_sign,
        crl_sign=cert_sign,
        encipher_only=False,
        decipher_only=False,
    )
