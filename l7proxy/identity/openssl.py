"""The seam to OpenSSL: the one that the package `cryptography` carries, used through pyOpenSSL.

Why not the standard library's `ssl`: it stands on whatever OpenSSL the interpreter was built with (3.0 spends twice the
CPU of 4.0 on a handshake), cannot take keys from memory and cannot say which certificate failed for which reason.
Contexts are made with pyOpenSSL; connections use the binding beneath it, whose wrappers cost a tenth of a handshake
and half of what TLS adds to a request.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.serialization import load_der_private_key
from OpenSSL import SSL, crypto

from l7proxy.identity.material import BadMaterial, Material

Version = Literal["1.2", "1.3"]
Context = SSL.Context
Session = Any
"""What a client resumes: an SSL_SESSION."""

_lib: Any = Binding.lib
_ffi: Any = Binding.ffi

SIZE = 256 * 1024
BUFFER = _ffi.new("char[]", SIZE)
"""What OpenSSL reads into and writes into: shared, since nothing waits between filling and copying."""
VIEW = _ffi.buffer(BUFFER)

ssl_read: Callable[[Any, Any, int], int] = _lib.SSL_read
ssl_write: Callable[[Any, bytes, int], int] = _lib.SSL_write
bio_read: Callable[[Any, Any, int], int] = _lib.BIO_read
bio_write: Callable[[Any, bytes, int], int] = _lib.BIO_write
do_handshake: Callable[[Any], int] = _lib.SSL_do_handshake
get_error: Callable[[Any, int], int] = _lib.SSL_get_error
clear_errors: Callable[[], None] = _lib.ERR_clear_error

_NAME = _ffi.new("unsigned char **")
_LENGTH = _ffi.new("unsigned int *")

WANT_READ: int = _lib.SSL_ERROR_WANT_READ
ZERO_RETURN: int = _lib.SSL_ERROR_ZERO_RETURN
TLS1_3: int = SSL.TLS1_3_VERSION

# AES-128 with SHA-256 first, as BoringSSL has it: processors do both, and SHA-384 made handshakes 5 % dearer.
_SUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
_CIPHERS = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    b"ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
_NO_AUTO_CHAIN = 0x8
"""SSL_MODE_NO_AUTO_CHAIN: what was configured is sent, and no chain is built and verified for each handshake."""
_TICKET_SECONDS = 3600
_DEPTH = 8
"""Certificates between a leaf and its root."""


class Owner(Protocol):
    """Whose handshake it is; asked while it runs."""

    def verify(self, leaf: bytes, anchor: Callable[[], bytes]) -> bool:
        """Judges the leaf (DER) of a chain that OpenSSL found in order; `anchor()` is the authority it ends at."""

    def unverified(self, certificate: bytes, error: int) -> None:
        """Learns which certificate (DER) failed, and its X509_V_ERR number."""

    def choose(self, offered: list[bytes]) -> bytes | None:
        """Picks one of the protocols that a client offers, or None for a refusal."""


class Handle:
    """One connection's state in OpenSSL, with a buffer for what arrives and one for what is to be sent."""

    __slots__ = ("ssl", "incoming", "outgoing", "_key")

    def __init__(self, context: Context, owner: Owner, server: bool, server_name: str = "") -> None:
        raw = _lib.SSL_new(context._context)
        self._key = int(_ffi.cast("uintptr_t", raw))
        self.ssl = _ffi.gc(raw, _lib.SSL_free)
        self.incoming, self.outgoing = _lib.BIO_new(_lib.BIO_s_mem()), _lib.BIO_new(_lib.BIO_s_mem())
        _lib.SSL_set_bio(raw, self.incoming, self.outgoing)
        if server:
            _lib.SSL_set_accept_state(raw)
        else:
            _lib.SSL_set_connect_state(raw)
            if server_name:
                _lib.SSL_set_tlsext_host_name(raw, server_name.encode("ascii"))
        _owners[self._key] = owner

    def settled(self) -> None:
        """The handshake is over, well or not: its owner is asked nothing more."""
        _owners.pop(self._key, None)

    @property
    def version(self) -> int:
        """The protocol version, 0x0303 or 0x0304."""
        return int(_lib.SSL_version(self.ssl))

    @property
    def cipher(self) -> str:
        """OpenSSL's name of the cipher."""
        return str(_ffi.string(_lib.SSL_CIPHER_get_name(_lib.SSL_get_current_cipher(self.ssl))).decode("ascii"))

    @property
    def resumed(self) -> bool:
        """Whether the handshake resumed a session."""
        return bool(_lib.SSL_session_reused(self.ssl))

    @property
    def protocol(self) -> bytes:
        """What was settled by ALPN, b"" for nothing."""
        _lib.SSL_get0_alpn_selected(self.ssl, _NAME, _LENGTH)
        return bytes(_ffi.buffer(_NAME[0], _LENGTH[0])[:]) if _LENGTH[0] else b""

    @property
    def server_name(self) -> str:
        """The name that the client asked for (SNI), "" if it asked for none."""
        name = _lib.SSL_get_servername(self.ssl, _lib.TLSEXT_NAMETYPE_host_name)
        return str(_ffi.string(name).decode("latin-1")) if name != _ffi.NULL else ""

    @property
    def own(self) -> bytes:
        """The certificate that we show in DER, b"" if we have none."""
        own = _lib.SSL_get_certificate(self.ssl)
        return b"" if own == _ffi.NULL else _der(own)

    @property
    def leaf(self) -> bytes:
        """The certificate that the peer showed in DER, b"" if it showed none."""
        leaf = _lib.SSL_get_peer_certificate(self.ssl)
        if leaf == _ffi.NULL:
            return b""
        try:
            return _der(leaf)
        finally:
            _lib.X509_free(leaf)

    @property
    def anchor(self) -> bytes:
        """The trusted certificate that the peer's chain ends at in DER; b"" for a resumed session."""
        chain = _lib.SSL_get0_verified_chain(self.ssl)
        return b"" if chain == _ffi.NULL else _der(_lib.sk_X509_value(chain, _lib.sk_X509_num(chain) - 1))

    @property
    def session(self) -> Session:
        """What this connection leaves to the next; with TLS 1.3 of use only once the server has sent a ticket."""
        return _ffi.gc(_lib.SSL_get1_session(self.ssl), _lib.SSL_SESSION_free)

    def resume(self, session: Session) -> None:
        """Offers a session to the server; one that cannot be resumed is left out of the handshake."""
        _lib.SSL_set_session(self.ssl, session)

    def shut_down(self) -> None:
        """Puts a close_notify behind what was written."""
        if _lib.SSL_shutdown(self.ssl) < 0:
            clear_errors()


def server_context(material: Material, required: bool, min_version: Version = "1.2", tickets: bool = True) -> Context:
    """Returns a context for connections that others open; `required` refuses clients without a certificate."""
    context = _context(SSL.TLS_SERVER_METHOD, material, min_version)
    context.set_session_id(b"l7proxy")
    # Tickets are all that a session lives in: their keys belong to this context and die with it.
    context.set_timeout(_TICKET_SECONDS)
    if not tickets:
        context.set_options(SSL.OP_NO_TICKET)
    mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0)
    _lib.SSL_CTX_set_verify(context._context, mode, _on_verify)
    _lib.SSL_CTX_set_alpn_select_cb(context._context, _on_alpn, _ffi.NULL)
    return context


def client_context(material: Material, protocols: Sequence[bytes], min_version: Version = "1.2") -> Context:
    """Returns a context for connections that we open; `protocols` are offered by ALPN.

    Without authorities of its own it trusts those of the system.
    """
    context = _context(SSL.TLS_CLIENT_METHOD, material, min_version)
    _lib.SSL_CTX_set_verify(context._context, SSL.VERIFY_PEER, _on_verify)
    if not material.bundles:
        context.set_default_verify_paths()
    if protocols:
        context.set_alpn_protos(list(protocols))
    return context


def try_out(material: Material) -> None:
    """Raises BadMaterial if no context can be made of it: a key that is too small, an algorithm that is too old."""
    try:
        _context(SSL.TLS_METHOD, material, "1.2")
    except (SSL.Error, crypto.Error, ValueError) as error:
        reasons = (
            "; ".join(part for entry in error.args[0] for part in entry[2:]) if isinstance(error, SSL.Error) else ""
        )
        raise BadMaterial([("the certificate", f"cannot be used: {reasons or error}")]) from None


def errors() -> list[str]:
    """Takes what OpenSSL has to say of the last failure, innermost first."""
    found = []
    while code := _lib.ERR_get_error():
        text = _lib.ERR_reason_error_string(code)
        found.append(_ffi.string(text).decode("latin-1") if text != _ffi.NULL else f"error {code:#x}")
    return found


def _context(method: int, material: Material, min_version: Version) -> Context:
    context = Context(method)
    context.set_min_proto_version(_VERSIONS[min_version])
    context.set_options(_OPTIONS)
    context.set_cipher_list(_CIPHERS)
    context.set_tls13_ciphersuites(_SUITES)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify_depth(_DEPTH)
    context.set_mode(_NO_AUTO_CHAIN)
    # pyOpenSSL turns this on; our buffer takes everything, so a write is done when it returns.
    context.clear_mode(_lib.SSL_MODE_ENABLE_PARTIAL_WRITE)
    if material.chain:
        leaf, *others = map(x509.load_der_x509_certificate, material.chain)
        context.use_certificate(leaf)
        for other in others:
            context.add_extra_chain_cert(other)
        context.use_privatekey(load_der_private_key(material.key, None))  # type: ignore[arg-type]
        context.check_privatekey()
    store = context.get_cert_store()
    assert store is not None
    for der in material.authorities:
        store.add_cert(crypto.X509.from_cryptography(x509.load_der_x509_certificate(der)))
    # Every certificate that is named as trusted is an anchor, an intermediate too.
    flags = crypto.X509StoreFlags.PARTIAL_CHAIN
    if material.crls:
        flags |= crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
        for crl in material.crls:
            store.add_crl(x509.load_der_x509_crl(crl))
    store.set_flags(flags)
    return context


_owners: dict[int, Owner] = {}
"""Who is asked, by the address of the connection's state."""
_PROTOCOLS = {name: _ffi.new("unsigned char[]", name) for name in (b"h2", b"http/1.1")}
"""OpenSSL keeps a pointer to the name that was chosen."""


@_ffi.callback("int (*)(int, X509_STORE_CTX *)")  # type: ignore[untyped-decorator]
def _on_verify(fine: int, store: Any) -> int:
    """Called for each certificate of a chain from the root to the leaf, and for each that fails."""
    depth = _lib.X509_STORE_CTX_get_error_depth(store)
    if fine and depth:
        return 1
    ssl = _lib.X509_STORE_CTX_get_ex_data(store, _lib.SSL_get_ex_data_X509_STORE_CTX_idx())
    owner = _owners[int(_ffi.cast("uintptr_t", ssl))]
    certificate = _der(_lib.X509_STORE_CTX_get_current_cert(store))
    if not fine:
        owner.unverified(certificate, _lib.X509_STORE_CTX_get_error(store))
        return 0

    def anchor() -> bytes:
        chain = _lib.X509_STORE_CTX_get1_chain(store)
        try:
            return _der(_lib.sk_X509_value(chain, _lib.sk_X509_num(chain) - 1))
        finally:
            _lib.sk_X509_free(chain)

    if owner.verify(certificate, anchor):
        return 1
    # The peer gets the alert bad_certificate.
    _lib.X509_STORE_CTX_set_error(store, _lib.X509_V_ERR_CERT_REJECTED)
    return 0


@_ffi.callback("int (*)(SSL *, unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *)")  # type: ignore[untyped-decorator]
def _on_alpn(ssl: Any, out: Any, length: Any, offered: Any, size: int, _: Any) -> int:
    """Called with what the client offers: names, each behind its length."""
    data = _ffi.buffer(offered, size)[:]
    names = []
    while data:
        names.append(data[1 : 1 + data[0]])
        data = data[1 + data[0] :]
    chosen = _owners[int(_ffi.cast("uintptr_t", ssl))].choose(names)
    if chosen is None:
        return int(_lib.SSL_TLSEXT_ERR_ALERT_FATAL)
    length[0], out[0] = len(chosen), _PROTOCOLS[chosen]
    return int(_lib.SSL_TLSEXT_ERR_OK)


def _der(certificate: Any) -> bytes:
    """Returns an X509 structure in DER."""
    bio = _lib.BIO_new(_lib.BIO_s_mem())
    _lib.i2d_X509_bio(bio, certificate)
    data = _ffi.new("char **")
    size = _lib.BIO_get_mem_data(bio, data)
    found = bytes(_ffi.buffer(data[0], size)[:])
    _lib.BIO_free(bio)
    return found
