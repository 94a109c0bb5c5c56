"""What our own server knows of a request beyond the ASGI scope: `scope["extensions"]["l7proxy"]`."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from l7proxy.core.headers import Headers
from l7proxy.core.message import Body
from l7proxy.core.peer import Peer


class Exchange(Protocol):
    """One request on one of our server's connections, whichever protocol it speaks.

    `authority` is the one host that was asked for, and `headers` are the end-to-end fields without Host; the list is
    the application's to change. `body` is the request body (`bytes` when it arrived whole); the response goes through
    ASGI's `send`, where 101 (or 200 to an extended CONNECT) as status turns both bodies into a raw tunnel. `upgrade` is
    the protocol asked for, lower case. `destination` is the address that the client dialled before a redirection, or
    None. A client that goes away cancels the task that runs the application. `serves` tells whether a host may be asked
    for on this connection; None is any.
    """

    authority: bytes
    headers: Headers
    body: Body
    peer: Peer
    upgrade: bytes | None
    destination: tuple[str, int] | None

    @property
    def serves(self) -> Callable[[bytes], bool] | None: ...


class Refusal(NamedTuple):
    """An answer to what never became a request: its error code and reason, and who got it over which protocol."""

    code: str
    reason: str
    version: str
    scheme: str
    peer: Peer
    client: tuple[str, int] | None
