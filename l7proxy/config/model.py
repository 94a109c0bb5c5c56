"""The configuration as types: each struct is a block of YAML, its annotations are the reference and the JSON Schema.

`Part`s are frozen and compare by value, so that a resource that did not change needs no new compilation. Keys are
written in camelCase. `exactly_one` and `at_most_one` name the keys that exclude each other.
"""

from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, Union

from msgspec import Meta, Struct, field

from l7proxy.core.errors import Problem
from l7proxy.core.expanded import Expanded
from l7proxy.core.fields import (
    Cidr,
    CollectorUrl,
    Duration,
    File,
    HeaderName,
    HeaderValue,
    Host,
    HostPattern,
    HostPort,
    Listen,
    Method,
    PathRegex,
    PathText,
    Regex,
    Size,
    Timestamp,
    UpstreamName,
    Url,
)
from l7proxy.core.handler import Filter

API_VERSION = "l7proxy.io/v1"
APP = "app"
"""The name of the upstream that is the local application."""

Spec = TypeVar("Spec")
Text = Annotated[str, Meta(min_length=1)]
Span = Annotated[Duration, Meta(gt=0)]
"""A duration that is more than nothing."""


def doc(text: str, **rules: Any) -> Any:
    """Returns the annotation that documents one key."""
    return Meta(description=text, **rules)


class Part(Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename="camel"):
    """A block of the configuration."""

    exactly_one: ClassVar[tuple[tuple[str, ...], ...]] = ()
    at_most_one: ClassVar[tuple[tuple[str, ...], ...]] = ()


# Sidecar


class Service(Part, frozen=True):
    """Who the application is, for telemetry and for documents that select workloads."""

    name: Annotated[str, doc("The service's name; `service.name` of its telemetry.")] = "unknown"
    namespace: Annotated[str, doc("The Kubernetes namespace.")] = "default"
    mesh: Annotated[str, doc("The mesh that the service belongs to.")] = ""
    version: Annotated[str, doc("The service's version; by default the label `version`.")] = ""
    labels: Annotated[dict[str, str], doc("The workload's labels, for documents that select by label.")] = {}


class Tls(Part, frozen=True):
    """Certificates: files, the SPIFFE Workload API, or a development CA."""

    at_most_one = (("cert", "spiffe", "dev"), ("key", "spiffe", "dev"), ("ca", "dev"))

    cert: Annotated[File | None, doc("The certificate chain, leaf first (PEM).")] = None
    key: Annotated[File | None, doc("The private key of the leaf (PEM).")] = None
    ca: Annotated[File | None, doc("The certificate authorities to trust (PEM).")] = None
    crl: Annotated[File | None, doc("Revoked certificates (PEM).")] = None
    spiffe: Annotated[
        Annotated[
            str,
            Meta(
                pattern="^unix:/.+$", extra={"meant": "a socket by its absolute path, like unix:/run/spire/agent.sock"}
            ),
        ]
        | None,
        doc("The socket of the SPIFFE Workload API, in place of files."),
    ] = None
    dev: Annotated[
        Annotated[
            str,
            Meta(
                pattern="^[a-z0-9._-]{1,255}$", extra={"meant": "a trust domain, like demo: lower case, digits and ._-"}
            ),
        ]
        | None,
        doc(
            "A trust domain whose CA is made on the spot, in `~/.local/state/l7proxy`: all sidecars of this user trust "
            "each other, as `spiffe://DOMAIN/ns/NAMESPACE/sa/NAME` of their service. For laptops, never for production."
        ),
    ] = None
    trust_domains: Annotated[
        tuple[str, ...], doc("Trust domains of peers that are accepted beside that of our own certificate.")
    ] = ()
    min_version: Annotated[Literal["1.2", "1.3"], doc("The oldest TLS version that is spoken.")] = "1.2"


class InboundTls(Tls, frozen=True):
    """TLS towards callers."""

    mode: Annotated[
        Literal["STRICT", "PERMISSIVE", "DISABLE"],
        doc("STRICT refuses who shows no valid certificate, PERMISSIVE serves plain text too, DISABLE speaks none."),
    ] = "STRICT"


class Inbound(Part, frozen=True):
    """The listener for requests to the application."""

    listen: Annotated[Listen, doc("The address to listen on.")] = "0.0.0.0:15006"
    app: Annotated[Url | None, doc("The local application: where a route without another target goes.")] = None
    tls: Annotated[InboundTls | None, doc("TLS towards callers; plain text without it.")] = None
    allow_ips: Annotated[tuple[Cidr, ...], doc("If set, only these addresses may connect.")] = field(
        default=(), name="allowIPs"
    )
    deny_ips: Annotated[tuple[Cidr, ...], doc("These addresses may not connect.")] = field(default=(), name="denyIPs")
    trusted_proxies: Annotated[
        tuple[str, ...],
        doc(
            "Identities or address blocks whose forwarding headers are believed; an address of these in "
            "`x-forwarded-for` is one more proxy."
        ),
    ] = ()
    trusted_hops: Annotated[
        int,
        doc(
            "How many proxies before this one are believed about the client's address, whoever they are; a chain that "
            "is shorter says nothing.",
            ge=0,
            le=100,
        ),
    ] = 0
    forwarded_client_cert: Annotated[
        Literal["SANITIZE_SET", "APPEND_FORWARD", "ALWAYS_FORWARD_ONLY"],
        doc(
            "What becomes of `x-forwarded-client-cert`: made anew, added to, or left as it came (the last two only "
            "from trusted proxies)."
        ),
    ] = "SANITIZE_SET"
    encoded_slashes: Annotated[
        Literal["REJECT", "UNESCAPE", "KEEP"] | None,
        doc(
            "What becomes of `%2F` and `%5C` in paths. By default they are refused on routes with authorization and "
            "kept on others."
        ),
    ] = None


class Outbound(Part, frozen=True):
    """The listener for requests of the application to others."""

    listen: Annotated[Listen, doc("The address to listen on.")] = "127.0.0.1:15001"
    policy: Annotated[
        Literal["REGISTRY_ONLY", "ALLOW_ANY"],
        doc(
            "Whether hosts that no outbound Route names are refused or called as they are; with ALLOW_ANY, CONNECT "
            "opens a tunnel to them."
        ),
    ] = "REGISTRY_ONLY"


class Admin(Part, frozen=True):
    """The admin API; it should stay on the loopback interface or on a Unix socket."""

    listen: Annotated[Listen, doc("The address to listen on.")] = "127.0.0.1:15000"


class Metrics(Part, frozen=True):
    """The Prometheus endpoint `/metrics`."""

    listen: Annotated[Listen, doc("The address to listen on.")] = "0.0.0.0:9090"


class Health(Part, frozen=True):
    """The probes `/ready` and `/live`."""

    listen: Annotated[Listen, doc("The address to listen on.")] = "0.0.0.0:15021"


class Tracing(Part, frozen=True):
    """Distributed traces. Trace context is propagated even without this block."""

    sampling: Annotated[
        float, doc("The share of requests to trace when the caller did not decide.", ge=0.0, le=1.0)
    ] = 0.01
    otlp: Annotated[
        CollectorUrl | None, doc("The OTLP collector that gets the spans, over HTTP (port 4318) or gRPC (port 4317).")
    ] = None
    b3: Annotated[bool, doc("Read and write B3 headers too.")] = False
    errors: Annotated[bool, doc("Send our own spans of every request that failed, whoever decided against them.")] = (
        False
    )


class RouteTracing(Part, frozen=True):
    """Traces of one route's requests."""

    sampling: Annotated[
        float,
        doc("The share of them to trace when the caller did not decide, in place of the Sidecar's.", ge=0.0, le=1.0),
    ]


class Debug(Part, frozen=True):
    """Requests that ask for their own decision in a header that is signed with a key."""

    key: Annotated[File, doc("The file of the key: at least 32 bytes, such as 64 hexadecimal digits.")]


class AccessLog(Part, frozen=True):
    """One line for each request."""

    path: Annotated[str, doc("The file to write.", min_length=1)] = "/dev/stdout"
    format: Annotated[Literal["json", "text"], doc("How a line is written.")] = "json"


class Timeouts(Part, frozen=True):
    """Times that bound each connection from callers."""

    header: Annotated[Span, doc("From a request's first byte to the end of its head.")] = 10.0
    stream_idle: Annotated[
        Duration, doc("How long a request or response may stand still; `0s` for no bound.", ge=0)
    ] = 300.0
    connection_idle: Annotated[Span, doc("How long a connection may wait for its next request.")] = 3600.0
    connection_age: Annotated[
        Span | None, doc("How old a connection may grow before it is ended gracefully, give or take a tenth.")
    ] = None
    handshake: Annotated[Span, doc("How long a TLS handshake may take.")] = 10.0


class Http2Limits(Part, frozen=True):
    """Limits of each HTTP/2 connection."""

    concurrent_streams: Annotated[int, doc("Requests at the same time on one connection.", ge=1, le=1_000_000)] = 1000
    stream_window: Annotated[Size, doc("The flow-control window of a stream.", ge=65535, le=2**31 - 1)] = 65536
    connection_window: Annotated[Size, doc("The flow-control window of a connection.", ge=65535, le=2**31 - 1)] = (
        1048576
    )
    stream_window_max: Annotated[
        Size, doc("How far the window of a stream grows while its reader keeps up.", ge=65535, le=2**31 - 1)
    ] = 1048576
    buffered: Annotated[
        Size, doc("Bytes received and not yet read, over all streams, above which nothing more is let in.", ge=65535)
    ] = 8388608
    continuations: Annotated[int, doc("CONTINUATION frames of one header section.", ge=1, le=1000)] = 16
    resets: Annotated[int, doc("Resets at once, by the peer or through its fault; work earns more.", ge=1)] = 1000
    pings: Annotated[int, doc("PING frames at once; work earns more, here and below.", ge=1)] = 200
    settings: Annotated[int, doc("SETTINGS frames at once.", ge=1)] = 100
    priorities: Annotated[int, doc("PRIORITY frames at once.", ge=1)] = 1000
    window_updates: Annotated[int, doc("WINDOW_UPDATE frames at once.", ge=1)] = 2000
    empty_data: Annotated[int, doc("Empty DATA frames at once.", ge=1)] = 100
    stray_frames: Annotated[
        int, doc("Frames of streams that have ended, of unknown types, and acknowledgements, at once.", ge=1)
    ] = 2000


class Limits(Part, frozen=True):
    """Sizes and counts beyond which a request is refused. What counts many is for each process (see `workers`)."""

    header_block: Annotated[Size, doc("All header fields together (431).", ge=1024)] = 61440
    header_size: Annotated[Size, doc("One header field (431).", ge=256)] = 16384
    header_count: Annotated[int, doc("The number of header fields (431).", ge=1, le=10_000)] = 100
    target: Annotated[Size, doc("The request target (414).", ge=256)] = 8192
    connections: Annotated[
        int, doc("Connections at a time, for each of the two listeners; more wait until one ends.", ge=1)
    ] = 20_000
    requests: Annotated[int, doc("Requests under way at a time (503 `overflow`).", ge=1)] = 20_000
    buffered: Annotated[
        Size,
        doc(
            "Bytes that all connections of one listener may hold while they wait for a slower reader; beyond it the "
            "connection that holds the most is cut (`overflow`).",
            ge=65536,
        ),
    ] = 268435456
    buffered_per_connection: Annotated[
        Size,
        doc(
            "Bytes that one connection may hold; beyond it nothing more is read for it than it takes, and its new "
            "requests wait.",
            ge=65536,
        ),
    ] = 16777216
    http2: Annotated[Http2Limits, doc("Limits of HTTP/2.")] = Http2Limits()


class Drain(Part, frozen=True):
    """How the process ends."""

    grace: Annotated[Duration, doc("How long it goes on serving after SIGTERM, at most.", ge=0)] = 25.0
    goaway: Annotated[
        Duration,
        doc(
            "How long an open connection may still be used: the time between the first and the final GOAWAY of "
            "HTTP/2, and until a connection of HTTP/1.1 without a request is closed.",
            ge=0,
        ),
    ] = 5.0
    quiet: Annotated[
        Duration,
        doc(
            "It ends early once no connection is open and none came for so long, and the application no longer "
            "listens if there is an outbound listener; with `0s` once no connection is open.",
            ge=0,
        ),
    ] = 5.0


class Sidecar(Part, frozen=True):
    """The process: its listeners, the service that it stands beside, and its telemetry.

    A listener exists only where its block is written.
    """

    service: Annotated[Service, doc("Who the application is.")] = Service()
    inbound: Annotated[Inbound | None, doc("The listener for requests to the application.")] = None
    outbound: Annotated[Outbound | None, doc("The listener for the application's own requests.")] = None
    admin: Annotated[Admin | None, doc("The admin API.")] = None
    metrics: Annotated[Metrics | None, doc("The Prometheus endpoint.")] = None
    health: Annotated[Health | None, doc("The endpoint for probes.")] = None
    tracing: Annotated[Tracing | None, doc("Distributed traces.")] = None
    access_log: Annotated[AccessLog | None, doc("The access log.")] = None
    debug: Annotated[Debug | None, doc("Who may ask on a request itself why it was decided so.")] = None
    timeouts: Annotated[Timeouts, doc("Times that bound each connection from callers.")] = Timeouts()
    limits: Annotated[Limits, doc("Sizes and counts beyond which a request is refused.")] = Limits()
    drain: Annotated[Drain, doc("How the process ends.")] = Drain()
    workers: Annotated[int, doc("The number of processes that share the ports.", ge=1, le=256)] = 1


# Upstream


class Endpoint(Part, frozen=True):
    """One address of an upstream and its share of the load."""

    address: Annotated[HostPort, doc("Where it is.")]
    weight: Annotated[int, doc("Its share of the load, relative to the others.", ge=1, le=1_000_000)] = 1


class Breakers(Part, frozen=True):
    """How much may happen at once, over all endpoints; what goes beyond is answered 503 `overflow`."""

    connections: Annotated[
        int,
        doc(
            "Open connections. At the limit idle ones to other endpoints are closed; without any, requests wait up to "
            "`connectTimeout`. The first connection to an endpoint is opened whatever the limit, as with Envoy.",
            ge=1,
        ),
    ] = 1024
    pending: Annotated[int, doc("Requests that wait for a connection.", ge=0)] = 1024
    requests: Annotated[int, doc("Requests in flight.", ge=1)] = 1024


class Ejection(Part, frozen=True):
    """When an endpoint that fails is left out for a while. The local application never is."""

    failures: Annotated[int, doc("5xx answers or connect failures in a row; 0 turns ejection off.", ge=0)] = 5
    time: Annotated[Span, doc("How long it is left out, times the number of ejections in a row.")] = 30.0
    max_time: Annotated[Span, doc("The longest time that it is left out.")] = 300.0
    max_percent: Annotated[
        int, doc("The share of endpoints that may be out, though always one and never the last.", ge=0, le=100)
    ] = 10


class UpstreamTls(Tls, frozen=True):
    """TLS towards the upstream. Certificate and authorities are the inbound listener's own where none are named."""

    identity: Annotated[
        str | None, doc("Who the server must be: a SPIFFE ID or a DNS name; by default the name that is called.")
    ] = None
    sni: Annotated[Host | None, doc("The server name to ask for; by default the host of the endpoint's address.")] = (
        None
    )


class Upstream(Part, frozen=True):
    """A service that requests are sent to."""

    exactly_one = (("endpoints", "dns"),)

    endpoints: Annotated[
        tuple[HostPort | Endpoint, ...], doc("Its addresses: `host:port`, or with a weight.", min_length=1)
    ] = ()
    dns: Annotated[HostPort | None, doc("A name that resolves to all of its addresses, with their port.")] = None
    protocol: Annotated[
        Literal["http1", "http2", "auto"], doc("What it speaks; `auto` asks by ALPN, without TLS it is HTTP/1.1.")
    ] = "http1"
    balance: Annotated[
        Literal["peakEwma", "leastRequest", "roundRobin"],
        doc("How an endpoint is picked: the lesser of two random ones by latency or by load, or in turn."),
    ] = "peakEwma"
    panic_percent: Annotated[int, doc("With fewer healthy endpoints than this share, all are used.", ge=0, le=100)] = 50
    breakers: Annotated[Breakers, doc("How much may happen at once.")] = Breakers()
    ejection: Annotated[Ejection, doc("When a failing endpoint is left out.")] = Ejection()
    tls: Annotated[UpstreamTls | None, doc("TLS towards it; plain text without it.")] = None
    connect_timeout: Annotated[
        Span,
        doc("How long a connection may take to open, and how long a request may wait at the limit of connections."),
    ] = 5.0
    idle_timeout: Annotated[
        Span | None,
        doc("How long an unused connection is kept; by default 1s to the local application, else 3s, with HTTP/2 60s."),
    ] = None
    keepalive: Annotated[
        Span | None,
        doc("HTTP/2: how long a connection that owes answers may be silent before a PING asks for a sign of life."),
    ] = None


# Route


class TextMatch(Part, frozen=True):
    """A condition on the value of a header or query parameter."""

    exactly_one = (("exact", "prefix", "suffix", "regex", "present"),)

    exact: Annotated[str | None, doc("The whole value.")] = None
    prefix: Annotated[Text | None, doc("The start of the value.")] = None
    suffix: Annotated[Text | None, doc("The end of the value.")] = None
    regex: Annotated[Regex | None, doc("A regular expression that matches the whole value.")] = None
    present: Annotated[bool | None, doc("Whether there must be a value, or none.")] = None


class PathMatch(Part, frozen=True):
    """A condition on the normalised path."""

    exactly_one = (("exact", "prefix", "regex"),)

    exact: Annotated[PathText | None, doc("The whole path; `/café` is `/caf%C3%A9`.")] = None
    prefix: Annotated[PathText | None, doc("Whole segments at its start: `/v1` matches `/v1/a`, not `/v10`.")] = None
    regex: Annotated[PathRegex | None, doc("A regular expression that matches the whole path.")] = None


class CallMatch(PathMatch, frozen=True):
    """The path of gRPC calls, by patterns: how many characters a GRPCRoute names of their service and their method."""

    service: int = 0
    method: int = 0


class Match(Part, frozen=True):
    """Conditions that must all hold."""

    path: Annotated[PathMatch, doc("The path; by default every one.")] = PathMatch(prefix="/")
    methods: Annotated[tuple[Method, ...], doc("One of these methods; by default any.")] = ()
    headers: Annotated[
        dict[HeaderName, Union[HeaderValue, TextMatch]], doc("Header fields, by name: a value or a condition.")
    ] = {}
    query: Annotated[dict[str, Union[str, TextMatch]], doc("Query parameters, by name: a value or a condition.")] = {}


class Backend(Part, frozen=True):
    """One part of a split."""

    upstream: Annotated[UpstreamName, doc("The name of an Upstream, or `app`.")]
    weight: Annotated[int, doc("Its share of the requests, relative to the others.", ge=0, le=1_000_000)] = 1


class Redirect(Part, frozen=True):
    """Sends the client elsewhere. What is not named stays as it was asked for."""

    at_most_one = (("prefix", "path"),)

    status: Annotated[Literal[301, 302, 303, 307, 308], doc("The status of the answer.")] = 302
    scheme: Annotated[Literal["http", "https"] | None, doc("The scheme to go to.")] = None
    host: Annotated[Host | None, doc("The host to go to.")] = None
    port: Annotated[Annotated[int, Meta(ge=1, le=65535)] | None, doc("The port to go to.")] = None
    path: Annotated[PathText | None, doc("The path to go to.")] = None
    prefix: Annotated[PathText | None, doc("Replaces the matched prefix in the path to go to.")] = None


class DirectResponse(Part, frozen=True):
    """Answers without an upstream."""

    status: Annotated[int, doc("The status of the answer.", ge=200, le=599)] = 200
    headers: Annotated[dict[HeaderName, HeaderValue], doc("Its header fields.")] = {}
    body: Annotated[str, doc("Its body.")] = ""


class Rewrite(Part, frozen=True):
    """What the upstream is asked for in place of what the client asked for."""

    at_most_one = (("prefix", "path"),)

    prefix: Annotated[PathText | None, doc("Replaces the matched prefix.")] = None
    path: Annotated[PathText | None, doc("Replaces the whole path.")] = None
    host: Annotated[Text | None, doc("Replaces the host.")] = None


class PathHandling(Part, frozen=True):
    """Which spelling of the path the application gets."""

    forward: Annotated[
        Literal["normalized", "original"],
        doc("`original` forwards the target as it came; not together with authorization by path."),
    ] = "normalized"


class Route(Part, frozen=True):
    """Which requests go where, and what holds for them.

    An inbound route that names no target goes to the local application.
    """

    at_most_one = (("upstream", "split", "redirect", "directResponse"),)

    direction: Annotated[Literal["inbound", "outbound"], doc("Which listener it belongs to.")] = "inbound"
    hosts: Annotated[
        tuple[HostPattern, ...], doc("Hosts: exact, `*.suffix` (any depth) or `*`; ports are ignored.", min_length=1)
    ] = ("*",)
    matches: Annotated[tuple[Match, ...], doc("Any of these; by default everything.", min_length=1)] = (Match(),)
    upstream: Annotated[UpstreamName | None, doc("The name of an Upstream, or `app`.")] = None
    split: Annotated[tuple[Backend, ...], doc("Several upstreams by weight.", min_length=1)] = ()
    redirect: Annotated[Redirect | None, doc("Sends the client elsewhere.")] = None
    direct_response: Annotated[DirectResponse | None, doc("Answers without an upstream.")] = None
    rewrite: Annotated[Rewrite | None, doc("Changes what the upstream is asked for.")] = None
    path: Annotated[PathHandling, doc("Which spelling of the path the application gets.")] = PathHandling()
    connect: Annotated[
        bool, doc("Whether CONNECT may open a tunnel, whose bytes go to an endpoint of the upstream as they are.")
    ] = False
    tracing: Annotated[RouteTracing | None, doc("Traces of these requests.")] = None
    policies: Annotated[
        tuple[Filter, ...],
        Meta(description="What holds for these requests, by name of the policy.", extra={"map": "policies"}),
    ] = ()
    """In policy order, which is not the order of the YAML."""


# Everything together


class Metadata(Part, frozen=True):
    """What a document is called."""

    name: Annotated[
        str,
        doc(
            "The name, unique among documents of its kind.",
            max_length=253,
            pattern="^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
            extra={"meant": "a name: letters, digits and ._- between them"},
        ),
    ]
    namespace: Annotated[str, doc("The Kubernetes namespace.")] = ""
    labels: Annotated[dict[str, str], doc("Labels, for those who read the document.")] = {}
    annotations: Annotated[dict[str, str], doc("Annotations, for those who read the document.")] = {}


class ForeignMetadata(Metadata, frozen=True, forbid_unknown_fields=False):
    """Metadata as Kubernetes writes it, with keys that say nothing to us."""

    creation_timestamp: Annotated[
        Timestamp, doc("When Kubernetes created the document: of two that contradict each other the older one holds.")
    ] = ""


class Resource(Struct, Generic[Spec], frozen=True, gc=False):
    """One document: its name, what it says, and where it stands.

    `line` is the line of its first key; `lines` maps the path of each value (`spec.policies.authorization.allow[0]`) to
    the number of lines after that. `created` is when Kubernetes created it, in UTC, "" where that is not written.
    `origin` names the document of the Gateway API that it was translated from, where it was.
    """

    kind: str
    name: str
    spec: Spec
    namespace: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    file: str = ""
    line: int = 0
    lines: dict[str, int] = {}
    created: str = ""
    origin: str = ""

    def where(self, path: str) -> tuple[str, int]:
        """Returns (file, line) of the value at `path`, or of the nearest value that encloses it."""
        while path:
            line = self.lines.get(path)
            if line is not None:
                return self.file, self.line + line
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.file, self.line


class Model(Struct, frozen=True, gc=False):
    """A whole configuration, ready to be compiled.

    `routes` are in order of precedence: of equal matches the first decides. `others` are documents of further kinds
    (Istio's) by kind. `version` is the same for the same content. `expanded` are the texts of all documents that hold
    values of the environment.
    """

    sidecar: Resource[Sidecar]
    upstreams: dict[str, Resource[Upstream]] = {}
    routes: tuple[Resource[Route], ...] = ()
    others: dict[str, tuple[Resource[Any], ...]] = {}
    warnings: tuple[Problem, ...] = ()
    version: str = ""
    expanded: tuple[Expanded, ...] = ()
