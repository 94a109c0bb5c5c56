"""The header `x-forwarded-client-cert`: what the application is told about the caller's certificate.

As Envoy writes it: elements separated by commas, each a list of `Key=value` separated by semicolons.
"""

from collections.abc import Callable
from typing import Literal

from l7proxy.core.headers import Headers, joined, without
from l7proxy.core.peer import Peer

Mode = Literal["SANITIZE_SET", "APPEND_FORWARD", "ALWAYS_FORWARD_ONLY"]

NAME = b"x-forwarded-client-cert"
_SPECIAL = frozenset(',;="')
_MOST = 1024
"""Elements kept for peers seen before: one certificate writes the same element for each request."""


def element(by: str, peer: Peer) -> bytes:
    """Returns the element that says who showed which certificate to `by` (our own SPIFFE ID, may be empty)."""
    if not peer.fingerprint:
        return b""
    pairs = [("By", by)] if by else []
    pairs.append(("Hash", peer.fingerprint))
    text = ";".join([f"{key}={_quoted(value)}" for key, value in pairs])
    subject = peer.subject.replace("\\", "\\\\").replace('"', '\\"')
    text += f';Subject="{subject}";URI={_quoted(peer.uri)}'
    for name in peer.dns_names:
        text += f";DNS={_quoted(name)}"
    if not text.isprintable():
        # A name in a certificate must not be able to end the header field.
        text = "".join(char if char.isprintable() else "?" for char in text)
    return text.encode("utf-8", "replace")


class ClientCert:
    """Writes the header. `by()` is our own identity now: it changes when the certificate does."""

    def __init__(self, mode: Mode, by: Callable[[], str]) -> None:
        self._mode = mode
        self._by = by
        self._elements: dict[tuple[str, str], bytes] = {}

    def add(self, headers: Headers, peer: Peer) -> None:
        """Adds what the peer's certificate says, if it showed one, to headers from which theirs was removed."""
        if peer.fingerprint:
            headers.append((NAME, self._element(peer)))

    def rewrite(self, headers: Headers, peer: Peer, trusted: bool) -> None:
        """Puts the header right in place.

        Nobody's is believed unless `trusted`; then APPEND_FORWARD adds to what came and ALWAYS_FORWARD_ONLY leaves it.
        """
        if trusted and self._mode == "ALWAYS_FORWARD_ONLY":
            return
        came = joined(headers, NAME)
        if came is not None:
            headers[:] = without(headers, NAME)
        values = [came] if trusted and came and self._mode == "APPEND_FORWARD" else []
        if peer.fingerprint:
            values.append(self._element(peer))
        if values:
            headers.append((NAME, b",".join(values)))

    def _element(self, peer: Peer) -> bytes:
        key = (self._by(), peer.fingerprint)
        value = self._elements.get(key)
        if value is None:
            if len(self._elements) >= _MOST:
                self._elements.clear()
            value = self._elements[key] = element(key[0], peer)
        return value


def _quoted(value: str) -> str:
    if _SPECIAL.isdisjoint(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
