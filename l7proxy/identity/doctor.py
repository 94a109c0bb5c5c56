"""The TLS doctor: what OpenSSL says of a failure, put in one sentence that tells an operator what is wrong."""

import time

from cryptography import x509

from l7proxy.identity.material import describe, lifetime_problem
from l7proxy.identity.refusal import Reason, Refused, Unwanted

# What follows are X509_V_ERR_* numbers, which are part of OpenSSL's interface and do not change.
_VERIFY: dict[int, tuple[Reason, str]] = {
    2: ("unknown_ca", "unknown CA: {issuer} signed {name} and is not among ours"),
    3: ("crl", "no revocation list of {issuer}, and every issuer needs one once there is one"),
    7: ("bad_certificate", "the signature on {name} does not belong to {issuer}"),
    8: ("crl", "the revocation list of {issuer} is signed by somebody else"),
    9: ("not_yet_valid", "{dates}"),
    10: ("expired", "{dates}"),
    11: ("crl", "the revocation list of {issuer} is not valid yet"),
    12: ("crl", "the revocation list of {issuer} has expired: a newer one must be put in its place"),
    18: ("unknown_ca", "unknown CA: {name} is self-signed and not among ours"),
    19: ("unknown_ca", "unknown CA: {name} is the root of the peer's chain and not among ours"),
    20: ("unknown_ca", "unknown CA: {issuer} signed {name} and is not among ours"),
    21: ("unknown_ca", "unknown CA: {issuer} signed {name} and is not among ours"),
    22: ("bad_certificate", "the peer's certificate chain is too long"),
    23: ("revoked", "{name} has been revoked (serial {serial})"),
    24: ("bad_certificate", "{name} is not a CA certificate and yet has signed another"),
    25: ("bad_certificate", "{name} may not sign a chain this long"),
    26: ("purpose", "{name} may not be used by {side} (extended key usage)"),
    79: ("bad_certificate", "{name} is not a CA certificate and yet has signed another"),
}
_PLAIN = "the peer spoke plain text; no sidecar there?"
# Parts of OpenSSL's reason texts, the first that is found wins.
_REASONS: tuple[tuple[str, Reason, str], ...] = (
    ("http request", "plain_text", _PLAIN),
    ("https proxy request", "plain_text", _PLAIN),
    ("peer did not return a certificate", "no_certificate", "the peer showed no certificate"),
    ("alert", "peer_refused", ""),
    ("wrong version number", "not_tls", "the peer does not speak TLS; no sidecar there?"),
    ("packet length too long", "not_tls", "the peer does not speak TLS; no sidecar there?"),
    ("bad record type", "not_tls", "the peer does not speak TLS; no sidecar there?"),
    ("unsupported protocol", "version", "the peer speaks no TLS version that is allowed here"),
    ("version too low", "version", "the peer speaks no TLS version that is allowed here"),
    ("no protocols available", "version", "no TLS version is allowed on both sides"),
    ("no shared cipher", "cipher", "no cipher is allowed on both sides"),
    ("no suitable signature algorithm", "cipher", "no signature algorithm is allowed on both sides"),
    ("no suitable key share", "cipher", "no key exchange group is allowed on both sides"),
    ("certificate verify failed", "bad_certificate", "the peer's certificate cannot be trusted"),
    ("excessive message size", "bad_certificate", "the peer's certificates are larger than 100 KiB"),
)
# What a peer says of our certificate, or of its absence.
_VERDICTS = {
    "unknown ca": "it does not know the CA of our certificate, {ours}",
    "certificate required": "it wants a client certificate and we showed none",
    "bad certificate": "it does not accept our certificate, {ours}",
    "certificate expired": "it says that our certificate has expired, {ours}",
    "certificate revoked": "it says that our certificate was revoked, {ours}",
    "certificate unknown": "it does not accept our certificate, {ours}",
    "unsupported certificate": "it does not accept certificates of our kind, {ours}",
    "access denied": "it denies access to our certificate, {ours}",
    "decrypt error": "it found no proof that we hold the key of our certificate, {ours}",
    "handshake failure": "it found nothing that both sides allow, or wants a client certificate",
}
_ALERTS = {
    **_VERDICTS,
    "protocol version": "it speaks no TLS version that is allowed here",
    "no application protocol": "it speaks none of the protocols that we offer (ALPN)",
    "unrecognized name": "it does not serve the name that we asked for (SNI)",
}


def explain_failure(reasons: list[str], server: bool, own: bytes = b"", first: bool = False) -> Refused:
    """Returns the refusal that OpenSSL's reason texts stand for.

    `own` is the certificate that we showed (DER), which a peer may have refused. The `first` word of a server after the
    handshake can be its verdict on it (`Unwanted`).
    """
    text = "; ".join(reasons)
    for part, reason, sentence in _REASONS:
        if part in text:
            if reason == "peer_refused":
                return _refused_by_peer(text, server, own, first)
            if reason == "not_tls" and not server:
                # A server that answers a ClientHello with something else is, nearly always, one for plain HTTP.
                return Refused("plain_text", _PLAIN)
            return Refused(reason, sentence)
    return Refused("protocol", f"TLS failed: {text or 'for no reason that OpenSSL tells'}")


def explain_verify(error: int, der: bytes, server: bool) -> Refused:
    """Returns the refusal for a certificate that OpenSSL did not verify (an X509_V_ERR number)."""
    certificate = x509.load_der_x509_certificate(der)
    reason, sentence = _VERIFY.get(error, ("bad_certificate", "{name} cannot be trusted (X.509 error {error})"))
    return Refused(
        reason,
        sentence.format(
            name=describe(certificate),
            issuer=certificate.issuer.rfc4514_string() or "an issuer without a name",
            serial=f"{certificate.serial_number:x}",
            dates=lifetime_problem(certificate, time.time()) or f"{describe(certificate)} is out of its dates",
            side="a client" if server else "a server",
            error=error,
        ),
    )


def _refused_by_peer(text: str, server: bool, own: bytes, first: bool) -> Refused:
    for alert, meaning in _ALERTS.items():
        if alert in text:
            kind = Unwanted if first and alert in _VERDICTS else Refused
            meaning = meaning.format(ours=_describe_own(own))
            return kind("peer_refused", f"the peer refused the handshake: {meaning} ({alert})")
    who = "client" if server else "server"
    return Refused("peer_refused", f"the {who} refused the handshake: {text}")


def _describe_own(der: bytes) -> str:
    if not der:
        return "which we did not show"
    certificate = x509.load_der_x509_certificate(der)
    problem = lifetime_problem(certificate, time.time())
    issuer = certificate.issuer.rfc4514_string() or "an issuer without a name"
    return problem or f"{describe(certificate)} signed by {issuer}"
