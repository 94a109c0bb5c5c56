"""Why a peer is not talked to: one exception, a short reason for the metrics and a sentence for the log."""

from typing import Literal

Reason = Literal[
    "plain_text", "not_tls", "no_certificate", "unknown_ca", "expired", "not_yet_valid", "revoked", "crl", "purpose",
    "bad_certificate", "trust_domain", "wrong_identity", "version", "cipher", "alpn", "peer_refused", "closed",
    "timeout", "overload", "protocol",
]  # fmt: skip


class Refused(ConnectionError):
    """A handshake that failed. `reason` is one of a few words, `detail` a sentence for whoever reads the log."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(detail)


class Unwanted(Refused):
    """The peer refused our certificate in the first bytes that it sent after the handshake: it has read nothing more.

    In TLS 1.3 the server judges the client once the client's side of the handshake is done (RFC 8446 4.4.2.4), and
    what the client has sent by then is thrown away.
    """
