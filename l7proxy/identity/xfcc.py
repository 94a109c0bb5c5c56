"""The header `x-forwarded-client-cert`: what the application is told about the caller's certificate.

As Envoy writes it: elements separated by commas, each a list of `Key=value` separated by semicolons.
"""

from collections.abc import Callable
from typing import Literal

from l7proxy.core.headers import Headers, joined
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


def rewriter(mode: Mode, by: Callable[[], str]) -> Callable[[Headers, Peer, bool], None]:
    """Returns a function that puts the header right in place: `rewrite(headers, peer, trusted)`.

    Nobody's header is believed unless `trusted`; then APPEND_FORWARD adds to what came and ALWAYS_FORWARD_ONLY leaves
    it. `by()` is our own identity now: it changes when the certificate does.
    """
    elements: dict[tuple[str, str], bytes] = {}

    def rewrite(headers: Headers, peer: Peer, trusted: bool) -> None:
        came = joined(headers, NAME)
        if trusted and mode == "ALWAYS_FORWARD_ONLY":
            return
        if came is not None:
            headers[:] = [pair for pair in headers if pair[0] != NAME]
        value = b""
        if peer.fingerprint:
            key = (by(), peer.fingerprint)
            value = elements.get(key, b"")
            if not value:
                if len(elements) >= _MOST:
                    elements.clear()
                value = elements[key] = element(key[0], peer)
        if trusted and came and mode == "APPEND_FORWARD":
            value = b"%b,%b" % (came, value) if value else came
        if value:
            headers.append((NAME, value))

    return rewrite


def _quoted(value: str) -> str:
    if _SPECIAL.isdisjoint(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
