"""One request and the way its response goes: what every server hands to the proxy, ours and others."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from l7proxy.core.buffers import BufferAccount
from l7proxy.core.headers import Headers
from l7proxy.core.message import Body
from l7proxy.core.peer import Peer

CONNECT = b"connect"
"""The `upgrade` of a CONNECT request (RFC 9110 9.3.6); extended CONNECT has that of its protocol."""


class Exchange(Protocol):
    """One request on a connection, whichever protocol it speaks.

    `authority` is the one host that was asked for; `path` stood before the `?` of the target and `query` behind it.
    `headers` are the end-to-end fields without Host; the list is the receiver's to change. `body` is the
    request body (`bytes` when it arrived whole). `upgrade` is the protocol asked for, lower case: 101 as the status of
    `start` turns both bodies into a raw tunnel. `client` and `server` are addresses, `destination` is the one that the
    client dialled before a redirection, or None. `serves` tells whether a host may be asked for on this connection;
    None is any. `extensions` are those of ASGI that the connection has (`tls`). `account` counts what the connection
    holds in memory.

    A client that goes away cancels the task that serves it.
    """

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    query: bytes
    version: str
    headers: Headers
    body: Body
    peer: Peer
    upgrade: bytes | None
    client: tuple[str, int] | None
    server: tuple[str, int] | None
    destination: tuple[str, int] | None
    account: BufferAccount

    @property
    def serves(self) -> Callable[[bytes], bool] | None: ...

    @property
    def extensions(self) -> dict[str, Any]: ...

    async def respond(self, status: int, headers: Headers, body: bytes, trailers: Headers | None = None) -> None:
        """Sends a whole response."""

    async def start(self, status: int, headers: Headers, data: bytes, trailers: bool = False) -> None:
        """Sends the head and the first bytes of a body that goes on; `trailers` says that there may be some."""

    async def write(self, data: bytes) -> None:
        """Sends body bytes, if there are any; returns when more may be sent."""

    @property
    def write_now(self) -> Callable[[bytes], bool] | None:
        """Sends body bytes from a callback; returns False when the client has to catch up first. None: `write` only."""

    async def end(self, trailers: Headers | None = None) -> None:
        """Ends the body."""


class Refusal(NamedTuple):
    """An answer to what never became a request: its error code and reason, and who got it over which protocol."""

    code: str
    reason: str
    version: str
    scheme: bytes
    peer: Peer
    client: tuple[str, int] | None
