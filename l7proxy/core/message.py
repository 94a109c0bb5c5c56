"""The two messages that pass through every handler chain."""

from collections.abc import Callable
from typing import Any, Union

from msgspec import Struct

from l7proxy.core.buffers import UNACCOUNTED, BufferAccount
from l7proxy.core.headers import Headers
from l7proxy.core.peer import ANONYMOUS, Peer
from l7proxy.core.stream import Stream

Body = Union[bytes, Stream]
"""A body that arrived whole is `bytes`; one still on its way is a `Stream`."""


class Attempt(Struct, frozen=True, gc=False, rename="camel"):
    """One attempt at an upstream that was not the last: another followed for `reason`, a condition of `retry.on`.

    `status` is 0 when no response head came, and `code` and `detail` then say why; the `t_*` marks are the ledger's.
    """

    upstream: str
    endpoint: str
    status: int
    code: str
    detail: str
    reason: str
    t_sent: float
    t_connected: float
    t_head: float
    t_end: float


class Request(Struct, weakref=False):
    """One request, and the ledger of what happened to it.

    `path` is the normalised path without the query, the one value that is matched and authorised; `target` is what
    is sent upstream. Header names are lower case; hop-by-hop fields are gone. `deadline` and the `t_*` marks are
    `time.monotonic` seconds; `timeout` becomes the deadline once the request has been sent whole, and `per_try` bounds
    each attempt. `tried` are the attempts that were followed by another one. `span_id` and `parent_id` are ours and our
    caller's in a trace that is not sampled; `undecided` tells that no caller said whether it is to be. `upgrade` is the
    protocol asked for (`websocket`), whose bytes follow in `body` once the answer is 101 (or 200 to a CONNECT). `hops`
    are the values of CDN-Loop that it came with (RFC 8586). `account` counts what the client's connection holds in
    memory.
    """

    method: bytes
    scheme: bytes
    authority: bytes
    path: bytes
    query: bytes
    target: bytes
    headers: Headers
    body: Body
    version: str = "1.1"
    peer: Peer = ANONYMOUS
    source: str = ""
    forwarded: str = ""
    inbound: bool = True
    upgrade: bytes | None = None
    deadline: float | None = None
    timeout: float | None = None
    per_try: float | None = None
    span: Any = None
    trace: Any = None
    grpc: bool = False
    destination: tuple[str, int] | None = None
    account: BufferAccount = UNACCOUNTED
    hops: bytes = b""
    # The ledger: written on the way, read once at the end.
    request_id: bytes = b""
    trace_id: bytes = b""
    span_id: bytes = b""
    parent_id: bytes = b""
    undecided: bool = False
    route: Any = None
    pattern: str = ""
    upstream: str = ""
    endpoint: str = ""
    attempt: int = 0
    tried: list[Attempt] | None = None
    code: str = ""
    detail: str = ""
    flags: str = ""
    grpc_status: int = -1
    bytes_in: int = 0
    bytes_out: int = 0
    t_start: float = 0.0
    t_sent: float = 0.0
    t_connected: float = 0.0
    t_head: float = 0.0

    def names(self) -> dict[str, str]:
        """Returns what a line of the event log is to say, so that the request is found in other logs and traces."""
        return {"request_id": self.request_id.decode("latin-1"), "trace_id": self.trace_id.decode("latin-1")}


class Response(Struct, weakref=False):
    """One response, handed over as soon as its head is known; the body may still be on its way.

    `trailers` go with a whole body; a `Stream` carries its own. `on_end(error)` is called once after the last byte,
    with None or the exception that cut the body short; use `then` to add to it.
    """

    status: int
    headers: Headers
    body: Body = b""
    trailers: Headers | None = None
    on_end: Callable[[BaseException | None], None] | None = None

    def then(self, action: Callable[[BaseException | None], None]) -> None:
        """Adds `action(error)` before what is to happen at the end of this response."""
        before = self.on_end
        if before is None:
            self.on_end = action
            return

        def both(error: BaseException | None) -> None:
            action(error)
            before(error)

        self.on_end = both
