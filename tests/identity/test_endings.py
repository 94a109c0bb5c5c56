"""An answer in TLS reaches a client that is still sending, and both directions end as TLS has it."""

import ssl

import pytest

from tests.identity.conftest import StartSecure
from tests.identity.pki import Authority, Pair, context
from tests.support.client import Client


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST / HTTP/1.1\r\nhost: a\r\nhost: a\r\ncontent-length: 4000000\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5 \r\n", b"400"),
        (b"POST /" + b"x" * 9000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", b"414"),
    ],
)
def test_a_refusal_waits_for_a_client_that_is_still_sending(
    head: bytes, status: bytes, secure: StartSecure, ca: Authority, web: Pair
) -> None:
    proxy = secure()
    with Client(proxy.inbound) as client:
        wrapped = context(ca, web).wrap_socket(client.sock, server_hostname="localhost", suppress_ragged_eofs=False)
        wrapped.sendall(head)
        for _ in range(60):
            # A connection that was closed at once would answer this with a reset, and the answer might go with it.
            wrapped.sendall(b"x" * 65_536)
        received = b""
        while data := wrapped.recv(65_536):
            received += data
        assert received.startswith(b"HTTP/1.1 " + status)
        assert received.endswith(b"}\n")
        wrapped.close()


def test_a_goaway_is_read_to_its_end(secure: StartSecure, ca: Authority, web: Pair) -> None:
    from tests.wire.h2_peer import HELLO, Reader, frame

    proxy = secure()
    settings = context(ca, web)
    settings.set_alpn_protocols(["h2"])
    with Client(proxy.inbound) as client:
        wrapped = settings.wrap_socket(client.sock, server_hostname="localhost", suppress_ragged_eofs=False)
        assert isinstance(wrapped, ssl.SSLSocket)
        wrapped.sendall(HELLO + frame(9, 0, 1))
        for _ in range(60):
            wrapped.sendall(b"x" * 65_536)
        reader = Reader()
        while data := wrapped.recv(65_536):
            reader.feed(data)
        assert reader.goaway is not None
        assert reader.goaway[2] == b"continuation_unexpected"
        wrapped.close()
