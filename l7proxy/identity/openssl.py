"""The seam to OpenSSL: the one that the package `cryptography` carries, used through pyOpenSSL.

Why not the standard library's `ssl`: it stands on whatever OpenSSL the interpreter was built with (3.0 spends twice the
CPU of 4.0 on a handshake), cannot take keys from memory and cannot say which certificate failed for which reason.
Contexts and handshakes use pyOpenSSL's own interface; the four calls that every request pays are bound here directly.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from cryptography.hazmat.primitives.serialization import load_der_private_key
from OpenSSL import SSL, crypto

from l7proxy.identity.material import Material

Version = Literal["1.2", "1.3"]
Connection = SSL.Connection
Context = SSL.Context
Verify = Callable[[Connection, bytes, int, int, bool], bool]
"""Asked for each certificate of a chain from the root to the leaf: (connection, DER, error, depth, fine so far)."""
ChooseProtocol = Callable[[Connection, list[bytes]], bytes | None]
"""Picks one of the protocols that a client offers, or None for a refusal."""

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
session_reused: Callable[[Any], int] = _lib.SSL_session_reused

WANT_READ: int = _lib.SSL_ERROR_WANT_READ
ZERO_RETURN: int = _lib.SSL_ERROR_ZERO_RETURN
TLS1_3: int = SSL.TLS1_3_VERSION

_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_VERSIONS = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_OPTIONS = SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_CIPHER_SERVER_PREFERENCE
_TICKET_SECONDS = 3600
_DEPTH = 8
"""Certificates between a leaf and its root."""


def server_context(
    material: Material,
    verify: Verify,
    choose: ChooseProtocol,
    required: bool,
    min_version: Version = "1.2",
    tickets: bool = True,
) -> Context:
    """Returns a context for connections that others open; `required` refuses clients without a certificate."""
    context = _context(SSL.TLS_SERVER_METHOD, material, min_version)
    context.set_session_id(b"l7proxy")
    # Tickets are all that a session lives in: their keys belong to this context and die with it.
    context.set_timeout(_TICKET_SECONDS)
    if not tickets:
        context.set_options(SSL.OP_NO_TICKET)
    mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if required else 0)
    context.set_verify(mode, _verify_callback(verify))

    def select(connection: Connection, offered: list[bytes]) -> Any:
        chosen = choose(connection, offered)
        return SSL.NO_OVERLAPPING_PROTOCOLS if chosen is None else chosen

    context.set_alpn_select_callback(select)
    return context


def client_context(
    material: Material,
    verify: Verify,
    protocols: Sequence[bytes],
    min_version: Version = "1.2",
) -> Context:
    """Returns a context for connections that we open; `protocols` are offered by ALPN."""
    context = _context(SSL.TLS_CLIENT_METHOD, material, min_version)
    context.set_verify(SSL.VERIFY_PEER, _verify_callback(verify))
    if protocols:
        context.set_alpn_protos(list(protocols))
    return context


def errors() -> list[str]:
    """Takes what OpenSSL has to say of the last failure, innermost first."""
    found = []
    while code := _lib.ERR_get_error():
        text = _lib.ERR_reason_error_string(code)
        found.append(_ffi.string(text).decode("latin-1") if text != _ffi.NULL else f"error {code:#x}")
    return found


def shutdown(ssl: Any) -> None:
    """Puts a close_notify behind what was written."""
    if _lib.SSL_shutdown(ssl) < 0:
        clear_errors()


def selected_protocol(ssl: Any) -> bytes:
    """Returns what was settled by ALPN, b"" for nothing."""
    data = _ffi.new("unsigned char **")
    length = _ffi.new("unsigned int *")
    _lib.SSL_get0_alpn_selected(ssl, data, length)
    return bytes(_ffi.buffer(data[0], length[0])[:]) if length[0] else b""


def server_name(ssl: Any) -> str:
    """Returns the name that the client asked for (SNI), "" if it asked for none."""
    name = _lib.SSL_get_servername(ssl, _lib.TLSEXT_NAMETYPE_host_name)
    return _ffi.string(name).decode("latin-1") if name != _ffi.NULL else ""


def peer_leaf(connection: Connection) -> bytes:
    """Returns the certificate that the peer showed in DER, b"" if it showed none."""
    leaf = connection.get_peer_certificate()
    return b"" if leaf is None else _der(leaf)


def _context(method: int, material: Material, min_version: Version) -> Context:
    context = Context(method)
    context.set_min_proto_version(_VERSIONS[min_version])
    context.set_options(_OPTIONS)
    context.set_cipher_list(_CIPHERS)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_verify_depth(_DEPTH)
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


def _verify_callback(verify: Verify) -> Callable[[Connection, crypto.X509, int, int, int], bool]:
    def callback(connection: Connection, certificate: crypto.X509, error: int, depth: int, fine: int) -> bool:
        return verify(connection, _der(certificate), error, depth, bool(fine))

    return callback


def _der(certificate: crypto.X509) -> bytes:
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)
