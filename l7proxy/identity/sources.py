"""Where certificates come from: files that are watched, or a development CA; `workload` has the SPIFFE Workload API."""

import asyncio
import datetime
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Struct

from l7proxy.core.files import open_regular
from l7proxy.identity.dev import DevCa, key_pem
from l7proxy.identity.material import (
    ANY,
    BadMaterial,
    Material,
    lifetime_problem,
    matches,
    material,
    read_certificates,
    read_crls,
    read_key,
)

Take = Callable[[Material], None]
Reject = Callable[[Exception], None]

POLL = 0.5
"""Seconds between two looks at the files. A change is taken once two looks see the same: it may be half written."""
DEV_POLL = 30.0
"""Seconds between two looks at the clock, and between two attempts to renew a development certificate."""
_MOST_BYTES = 16 << 20


class CertificateSource(Protocol):
    """What yields certificates and trust, now and whenever they change."""

    def first(self) -> Material:
        """Returns what there is at once, nothing if it has to be waited for; raises BadMaterial."""

    async def watch(self, take: Take, reject: Reject) -> None:
        """Runs until it is cancelled: calls `take` for each change, and `reject` for one that cannot be used."""


class Files(Struct, frozen=True):
    """The files of one identity; `ca` and `crl` are optional, as are `cert` and `key` together."""

    cert: str | None = None
    key: str | None = None
    ca: str | None = None
    crl: str | None = None

    def read(self) -> Material:
        """Reads and checks all of them; raises BadMaterial with every problem."""
        problems: list[tuple[str, str]] = []
        chain: list[x509.Certificate] = []
        key = b""
        authorities: list[x509.Certificate] = []
        crls: list[x509.CertificateRevocationList] = []
        for path, kind in ((self.cert, "cert"), (self.key, "key"), (self.ca, "ca"), (self.crl, "crl")):
            if path is None:
                continue
            try:
                data = _read(path)
                if kind == "cert":
                    chain = read_certificates(data, path)
                elif kind == "key":
                    key = read_key(data, path)
                elif kind == "ca":
                    authorities = read_certificates(data, path)
                else:
                    crls = read_crls(data, path)
            except OSError as error:
                problems.append((path, f"cannot be read: {error.strerror or error}"))
            except BadMaterial as error:
                problems += error.problems
        try:
            if chain and key and not matches(chain[0], key):
                if any(matches(other, key) for other in chain[1:]):
                    problems.append((self.cert or "", "the leaf, whose key it is, must come first"))
                else:
                    problems.append((self.key or "", f"is not the key of the certificate in {self.cert}"))
        except ValueError as error:
            problems.append((self.cert or "", str(error)))
        if bool(self.cert) != bool(self.key):
            problems.append((self.cert or self.key or "", "a certificate and its key are needed together"))
        if problems:
            raise BadMaterial(problems)
        bundles = {ANY: tuple(found.public_bytes(Encoding.DER) for found in authorities)} if authorities else {}
        try:
            return material(chain, key, bundles, crls)
        except ValueError as error:
            raise BadMaterial([(self.cert or "", str(error))]) from None

    def state(self) -> tuple[tuple[int, int, int], ...]:
        """Returns what changes when a file does, whether it was written, renamed or reached by another link."""
        found = []
        for path in (self.cert, self.key, self.ca, self.crl):
            try:
                stat = os.stat(path) if path else None
            except OSError:
                stat = None
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size) if stat else (0, 0, 0))
        return tuple(found)


class FileSource:
    """Files that are read again when they change; a pair that does not fit, or half a file, leaves the old in place."""

    def __init__(self, files: Files, poll: float = POLL) -> None:
        self._files = files
        self._poll = poll
        self._state: tuple[tuple[int, int, int], ...] = ()

    def first(self) -> Material:
        self._state = self._files.state()
        return self._files.read()

    async def watch(self, take: Take, reject: Reject) -> None:
        rejected = ""
        before = self._state
        while True:
            await asyncio.sleep(self._poll)
            state = self._files.state()
            if state == self._state or state != before:
                before = state
                continue
            try:
                found = self._files.read()
                _refuse_expired(found)
            except BadMaterial as error:
                # Looked at again and again: the other half of the pair may be on its way.
                if str(error) != rejected:
                    rejected = str(error)
                    reject(error)
                continue
            rejected = ""
            self._state = state
            take(found)


def dev_folder(trust_domain: str) -> Path:
    """Returns where this user's development CA of a trust domain is kept."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "l7proxy" / trust_domain


class DevSource:
    """A leaf of the development CA in `folder`, which is made if there is none; renewed at half of its life."""

    def __init__(
        self,
        folder: Path,
        spiffe_id: str,
        lifetime: datetime.timedelta = datetime.timedelta(hours=24),
        poll: float = DEV_POLL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._id = spiffe_id
        self._lifetime = lifetime
        self._poll = poll
        self._clock = clock

    def first(self) -> Material:
        domain = self._id.removeprefix("spiffe://").partition("/")[0]
        try:
            ca = DevCa.open(self._folder, domain)
            certificate, key = ca.issue(self._id, ["localhost", "127.0.0.1"], self._lifetime)
        except (OSError, ValueError) as error:
            raise BadMaterial([(str(self._folder), f"cannot be used as a dev CA: {error}")]) from None
        bundle = (ca.certificate.public_bytes(Encoding.DER),)
        return material([certificate], read_key(key_pem(key), "key"), {ANY: bundle})

    async def watch(self, take: Take, reject: Reject) -> None:
        half = self._lifetime.total_seconds() / 2
        issued = self._clock()
        while True:
            await asyncio.sleep(self._poll)
            # By the clock that peers go by: that of the event loop stands still while a laptop sleeps.
            if issued <= self._clock() < issued + half:
                continue
            try:
                take(self.first())
                issued = self._clock()
            except BadMaterial as error:
                reject(error)


def _read(path: str) -> bytes:
    """Returns what is in a file; raises OSError."""
    with open_regular(path) as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise OSError(errno.EFBIG, "larger than 16 MiB")
    return data


def _refuse_expired(found: Material) -> None:
    if found.chain:
        problem = lifetime_problem(x509.load_der_x509_certificate(found.chain[0]), time.time())
        if problem:
            raise BadMaterial([("the new certificate", problem)])
