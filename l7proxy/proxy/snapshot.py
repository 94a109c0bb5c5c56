"""One configuration, compiled: what a request is served by from its first byte to its last."""

from collections.abc import Callable

from msgspec import Struct

from l7proxy.config.model import Model, Resource
from l7proxy.config.model import Route as RouteSpec
from l7proxy.core.buffers import BufferPool
from l7proxy.core.handler import Handler
from l7proxy.core.message import Request, Response
from l7proxy.proxy.debug import Debugging
from l7proxy.proxy.forwarding import Forwarding
from l7proxy.proxy.identities import InboundIdentity
from l7proxy.proxy.router import Router
from l7proxy.proxy.spellings import Spellings
from l7proxy.telemetry.access import AccessLog, Entry
from l7proxy.telemetry.history import History
from l7proxy.telemetry.metrics import RouteMetrics
from l7proxy.telemetry.tracing import Tracer
from l7proxy.upstream.cluster import Cluster


class Route(Struct, frozen=True):
    """One compiled route.

    `original` forwards the path as it came, `connect` lets clients open tunnels; `document` is what describes it, None
    for a route that is there by itself.
    """

    name: str
    handle: Handler
    metrics: RouteMetrics
    original: bool = False
    connect: bool = False
    document: Resource[RouteSpec] | None = None


class Target(Struct, frozen=True):
    """What the router returns: a route, and the pattern of the path that matched."""

    route: Route
    pattern: str


class Side(Struct, frozen=True):
    """Everything that one direction needs.

    `fallback` takes what names a host that no route names: the application when there are no inbound routes, the
    destination itself under ALLOW_ANY. `unmatched` counts requests that end without a route. `strict` refuses paths
    that applications read differently, and `slashes` says what becomes of `%2F`: REJECT, UNESCAPE or KEEP.
    `spellings` leaves requests one spelling of the fields that this direction looks at, None where it looks at none.
    """

    inbound: bool
    router: Router[Target]
    forwarding: Forwarding
    unmatched: RouteMetrics
    fallback: Target | None
    strict: bool
    slashes: str
    spellings: Spellings | None


class Snapshot(Struct, frozen=True):
    """One live configuration. Requests in flight keep the snapshot that they began with.

    `tls` is how callers' connections are taken from now on, None for plain text; `admits` tells which addresses may
    connect, None when all may. `debug` tells which requests may know their decision, None when no request may.
    """

    version: str
    service: str
    inbound: Side
    outbound: Side
    tracer: Tracer
    log: AccessLog | None
    model: Model
    tls: InboundIdentity | None
    admits: Callable[[str], bool] | None
    clusters: dict[str, Cluster]
    debug: Debugging | None = None


class Live:
    """The one place that says which snapshot new requests get, and how much may be under way at once.

    `max_active` are requests. `outbound` are those of the `active` requests that the application makes; the others it
    serves. What the clients of one direction hold in memory takes nothing from those of the other.
    """

    __slots__ = ("snapshot", "active", "outbound", "max_active", "inbound_buffers", "outbound_buffers",
                 "refused", "on_failure", "history", "tap")  # fmt: skip

    def __init__(
        self, snapshot: Snapshot, refused: Callable[[str], None], on_failure: Callable[[Request, Exception], None]
    ) -> None:
        self.snapshot = snapshot
        self.active = 0
        self.outbound = 0
        self.max_active = 0
        self.inbound_buffers = BufferPool()
        self.outbound_buffers = BufferPool()
        self.refused = refused
        """Counts a request that was malformed, by reason."""
        self.on_failure = on_failure
        """Told of a policy that raised what is not a ProxyError."""
        self.history = History()
        """The requests that finished last."""
        self.tap: Callable[[Request, Response | None, int, Entry], None] | None = None
        """Told of every request at its end, while somebody looks; see `proxy.tap`."""
