"""The documents of the Gateway API as types: HTTPRoute and GRPCRoute, gateway.networking.k8s.io/v1.

What stands in them for others, or for later, is read as it is; `gateway.py` says what we do with it.
"""

import re
from typing import Annotated, Any, Literal

from msgspec import Meta

from l7proxy.config.model import Part, Text, doc
from l7proxy.core.fields import HeaderValue, Host, HostPattern, PathText

Port = Annotated[int, Meta(ge=1, le=65535)]
Kind = Literal["Exact", "RegularExpression"]
HTTPMethod = Literal["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]
LABEL = re.compile("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""The name of a Service or of a namespace: one label of the DNS, so that `NAME.NAMESPACE` names one Service."""
Namespace = Annotated[str, Meta(pattern=f"^{LABEL.pattern}$", extra={"meant": "the name of a namespace"})]
PATH = "^(?:[A-Za-z0-9/._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})+$"
"""What a path is made of that is compared as it is written."""
# GEP-2257
Span = Annotated[
    str, Meta(pattern="^([0-9]{1,5}(h|m|s|ms)){1,4}$", extra={"meant": "a duration like 500ms, 10s or 1h30m"})
]


class ParentRef(Part, frozen=True):
    """What a route is for. `port` and `sectionName` of a Service are refused: a Route is for every port."""

    name: Annotated[Text, doc("Its name.")]
    group: Annotated[str, doc('Its API group; `""` for a Service.')] = "gateway.networking.k8s.io"
    kind: Annotated[str, doc("`Service`; what is for others does nothing in a sidecar.")] = "Gateway"
    namespace: Annotated[Namespace, doc("Its namespace; by default the document's.")] = ""
    section_name: Annotated[str, doc("The name of one of its ports.")] = ""
    port: Annotated[Port | None, doc("One of its ports.")] = None


class FieldMatch(Part, frozen=True):
    """A condition on a header field or a query parameter; of several on one name the first counts."""

    name: Annotated[Text, doc("Its name.")]
    value: Annotated[Text, doc("Its value, or what matches the whole of it.")]
    type: Annotated[Kind, doc("How the value is compared.")] = "Exact"


class HTTPPathMatch(Part, frozen=True):
    """A condition on the path."""

    type: Annotated[Literal["Exact", "PathPrefix", "RegularExpression"], doc("How the path is compared.")] = (
        "PathPrefix"
    )
    value: Annotated[str, doc("The path, whole segments at its start, or what matches the whole of it.")] = "/"


class HTTPRouteMatch(Part, frozen=True):
    """Conditions that must all hold."""

    path: Annotated[HTTPPathMatch, doc("The path.")] = HTTPPathMatch()
    headers: Annotated[tuple[FieldMatch, ...], doc("Header fields.")] = ()
    query_params: Annotated[tuple[FieldMatch, ...], doc("Query parameters.")] = ()
    method: Annotated[HTTPMethod | None, doc("The method; by default any.")] = None


class GRPCMethodMatch(Part, frozen=True):
    """A condition on what is called."""

    service: Annotated[str, doc("The gRPC service; by default any.")] = ""
    method: Annotated[str, doc("The method; by default any.")] = ""
    type: Annotated[Kind, doc("How both are compared.")] = "Exact"


class GRPCRouteMatch(Part, frozen=True):
    """Conditions that must all hold."""

    method: Annotated[GRPCMethodMatch | None, doc("What is called.")] = None
    headers: Annotated[tuple[FieldMatch, ...], doc("Header fields.")] = ()


class HeaderField(Part, frozen=True):
    """One header field; of several in one list that have one name the first counts."""

    name: Annotated[Text, doc("Its name.")]
    value: Annotated[HeaderValue, doc("Its value.", min_length=1)]


class HeaderModifier(Part, frozen=True):
    """Edits of header fields."""

    set: Annotated[tuple[HeaderField, ...], doc("Fields that get this one value.")] = ()
    add: Annotated[tuple[HeaderField, ...], doc("Fields that get one more value.")] = ()
    remove: Annotated[tuple[Text, ...], doc("Fields that go.")] = ()


class PathModifier(Part, frozen=True):
    """Another path."""

    type: Annotated[Literal["ReplaceFullPath", "ReplacePrefixMatch"], doc("What is replaced.")]
    replace_full_path: Annotated[PathText | None, doc("Replaces the whole path.")] = None
    replace_prefix_match: Annotated[str | None, doc("Replaces the prefix that matched.")] = None


class RequestRedirect(Part, frozen=True):
    """Sends the client elsewhere."""

    scheme: Annotated[Literal["http", "https"] | None, doc("The scheme to go to.")] = None
    hostname: Annotated[Host | None, doc("The host to go to.")] = None
    path: Annotated[PathModifier | None, doc("The path to go to.")] = None
    port: Annotated[Port | None, doc("The port to go to; by default that of the scheme, where one is named.")] = None
    status_code: Annotated[Literal[301, 302, 303, 307, 308], doc("The status of the answer.")] = 302


class URLRewrite(Part, frozen=True):
    """What the backend is asked for."""

    hostname: Annotated[Host | None, doc("Replaces the host.")] = None
    path: Annotated[PathModifier | None, doc("Replaces the path.")] = None


class BackendObject(Part, frozen=True):
    """An object that can be called."""

    name: Annotated[Text, doc("The name of the Service.")]
    group: Annotated[str, doc("Its API group.")] = ""
    kind: Annotated[str, doc("`Service`.")] = "Service"
    namespace: Annotated[Namespace, doc("Its namespace; by default the document's.")] = ""
    port: Annotated[Port | None, doc("Its port; which one an Upstream calls, its own document says.")] = None


class HTTPAuth(Part, frozen=True):
    """How an authorization server over HTTP is asked."""

    path: Annotated[str, doc("Goes before the path.", pattern=PATH)] = ""
    allowed_headers: Annotated[tuple[str, ...], doc("Header fields of the request that it gets.")] = ()
    allowed_response_headers: Annotated[tuple[str, ...], doc("Header fields of its answer that requests get.")] = ()


class ExternalAuth(Part, frozen=True):
    """An authorization server. Not supported: it is read so that what is wrong in it is found."""

    protocol: Annotated[Literal["HTTP", "GRPC"], doc("What it speaks.")]
    backend_ref: Annotated[BackendObject, doc("Where it is.")]
    grpc: Annotated[Any, doc("How it is asked over gRPC.")] = None
    http: Annotated[HTTPAuth | None, doc("How it is asked over HTTP.")] = None
    forward_body: Annotated[Any, doc("Whether it gets the body.")] = None

    def __post_init__(self) -> None:
        if (self.http is not None, self.grpc is not None) != (self.protocol == "HTTP", self.protocol == "GRPC"):
            raise ValueError(f"protocol {self.protocol} has the key {self.protocol.lower()!r} beside it")


class RouteFilter(Part, frozen=True):
    """One step of what happens to a request. What stands under an unsupported one is not looked at."""

    type: Annotated[str, doc("Which of the keys below this is.")]
    request_header_modifier: Annotated[HeaderModifier | None, doc("Edits of requests.")] = None
    response_header_modifier: Annotated[HeaderModifier | None, doc("Edits of responses.")] = None
    request_redirect: Annotated[RequestRedirect | None, doc("A redirect.")] = None
    url_rewrite: Annotated[URLRewrite | None, doc("A rewrite.")] = None
    request_mirror: Annotated[Any, doc("Not supported.")] = None
    cors: Annotated[Any, doc("Not supported.")] = None
    external_auth: Annotated[ExternalAuth | None, doc("Not supported.")] = None
    extension_ref: Annotated[Any, doc("Not supported.")] = None


class BackendRef(BackendObject, frozen=True):
    """Where requests go: an Upstream, or in a route of our own Service the application."""

    weight: Annotated[int, doc("Its share of the requests.", ge=0, le=1_000_000)] = 1
    filters: Annotated[tuple[RouteFilter, ...], doc("Not supported.")] = ()


class Timeouts(Part, frozen=True):
    """How long a request may wait for the head of its response; `0s` for no bound."""

    request: Annotated[Span | None, doc("In all.")] = None
    backend_request: Annotated[Span | None, doc("Each attempt.")] = None


class RouteRule(Part, frozen=True):
    """What HTTP and gRPC have in common."""

    name: Annotated[str, doc("For those who read the document.")] = ""
    filters: Annotated[tuple[RouteFilter, ...], doc("What happens to requests.")] = ()
    backend_refs: Annotated[tuple[BackendRef, ...], doc("Where they go, by weight.")] = ()
    session_persistence: Annotated[Any, doc("Not supported.")] = None


class HTTPRouteRule(RouteRule, frozen=True):
    """Requests that match, and where they go."""

    matches: Annotated[tuple[HTTPRouteMatch, ...], doc("Any of these; without any of them everything.")] = (
        HTTPRouteMatch(),
    )
    timeouts: Annotated[Timeouts, doc("How long a request may wait.")] = Timeouts()
    retry: Annotated[Any, doc("Not supported.")] = None


class GRPCRouteRule(RouteRule, frozen=True):
    """Calls that match, and where they go."""

    matches: Annotated[tuple[GRPCRouteMatch, ...], doc("Any of these; without any of them every call.")] = (
        GRPCRouteMatch(),
    )


class CommonRoute(Part, frozen=True):
    """What HTTP and gRPC have in common."""

    parent_refs: Annotated[tuple[ParentRef, ...], doc("What the route is for.")] = ()
    hostnames: Annotated[tuple[HostPattern, ...], doc("For Gateways; ignored for Services.")] = ()


class HTTPRoute(CommonRoute, frozen=True):
    """Where the requests to a Service go."""

    rules: Annotated[tuple[HTTPRouteRule, ...], doc("The most specific match of any rule decides.", min_length=1)] = ()


class GRPCRoute(CommonRoute, frozen=True):
    """Where the gRPC calls of a Service go."""

    rules: Annotated[tuple[GRPCRouteRule, ...], doc("The most specific match of any rule decides.")] = ()


Rule = HTTPRouteRule | GRPCRouteRule

CORE = ("", "core")
"""The API group of Services, in both of its spellings."""
