"""SPIFFE IDs, read as strictly as the SPIFFE-ID standard (section 2) writes them."""

import re

from msgspec import Struct

LONGEST = 2048
"""Bytes of a SPIFFE ID (SPIFFE-ID 2.3)."""

_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


class SpiffeId(Struct, frozen=True):
    """`spiffe://trust-domain/path`; `path` starts with a slash, or is empty for the trust domain itself."""

    trust_domain: str
    path: str = ""

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}"

    @property
    def namespace(self) -> str:
        """The Kubernetes namespace of an ID of Istio's form `/ns/NAMESPACE/sa/ACCOUNT`, else ""."""
        return self._account()[0]

    @property
    def service_account(self) -> str:
        """The service account of an ID of Istio's form, else ""."""
        return self._account()[1]

    def _account(self) -> tuple[str, str]:
        parts = self.path.split("/")
        return (parts[2], parts[4]) if len(parts) == 5 and parts[1] == "ns" and parts[3] == "sa" else ("", "")


def parse(text: str) -> SpiffeId:
    """Returns the SPIFFE ID; raises ValueError that says what is wrong with it."""
    if not text.startswith("spiffe://"):
        raise ValueError(f"{text[:80]!r} does not start with spiffe://")
    if len(text.encode("utf-8", "surrogatepass")) > LONGEST:
        raise ValueError(f"a SPIFFE ID has at most {LONGEST} bytes")
    domain, slash, path = text[9:].partition("/")
    check_trust_domain(domain)
    if slash:
        for segment in path.split("/"):
            if segment in (".", "..") or not _SEGMENT.fullmatch(segment):
                raise ValueError(f"{text!r}: {segment!r} is no segment of a SPIFFE path")
    return SpiffeId(domain, slash + path)


def check_trust_domain(text: str) -> str:
    """Returns the name of a trust domain as it stands; raises ValueError if it is none."""
    if not _DOMAIN.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is not a trust domain: lower-case letters, digits, dots, dashes, underscores")
    return text
