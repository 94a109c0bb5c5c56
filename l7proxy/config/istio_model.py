"""Istio's PeerAuthentication and AuthorizationPolicy, as their references describe them."""

from typing import Annotated, Literal, Union

from msgspec import field

from l7proxy.config.model import Part, doc

Mode = Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]
Texts = tuple[str, ...]


class Selector(Part, frozen=True):
    """Which workloads a document is for."""

    match_labels: Annotated[dict[str, str], doc("Labels that a workload must have.")] = field(default_factory=dict)


class Mtls(Part, frozen=True):
    """A TLS mode."""

    mode: Annotated[Mode, doc("UNSET inherits from the wider document.")] = "UNSET"


class PortMtls(Part, frozen=True):
    """The TLS mode of one port of the application."""

    port: Annotated[int, doc("The application's port.", ge=1, le=65535)]
    mode: Annotated[Mode, doc("UNSET inherits from the wider document.")] = "UNSET"


class PeerAuthentication(Part, frozen=True):
    """How callers speak to workloads: TLS with a certificate, plain text or both."""

    selector: Annotated[Selector | None, doc("Which workloads; all of the namespace without it.")] = None
    mtls: Annotated[Mtls, doc("The mode of every port.")] = Mtls()
    port_level_mtls: Annotated[
        Union[dict[str, Mtls], tuple[PortMtls, ...]], doc("Modes by port: a mapping, or a list of port and mode.")
    ] = ()


class Source(Part, frozen=True):
    """Who calls; every list that is written must match."""

    principals: Annotated[Texts, doc("`trust-domain/ns/NAMESPACE/sa/ACCOUNT` of callers.")] = ()
    not_principals: Annotated[Texts, doc("Those who are not meant.")] = ()
    request_principals: Annotated[Texts, doc("Subjects of JWTs; not supported.")] = ()
    not_request_principals: Annotated[Texts, doc("Subjects of JWTs; not supported.")] = ()
    namespaces: Annotated[Texts, doc("Namespaces of callers.")] = ()
    not_namespaces: Annotated[Texts, doc("Namespaces that are not meant.")] = ()
    service_accounts: Annotated[Texts, doc("Service accounts of callers, `NAMESPACE/NAME` or `NAME`, no `*`.")] = ()
    not_service_accounts: Annotated[Texts, doc("Service accounts that are not meant.")] = ()
    trust_domains: Annotated[Texts, doc("Trust domains of callers.")] = ()
    not_trust_domains: Annotated[Texts, doc("Trust domains that are not meant.")] = ()
    ip_blocks: Annotated[Texts, doc("Addresses of the peer.")] = ()
    not_ip_blocks: Annotated[Texts, doc("Addresses of the peer that are not meant.")] = ()
    remote_ip_blocks: Annotated[Texts, doc("Addresses of the client, as trusted proxies forward it.")] = ()
    not_remote_ip_blocks: Annotated[Texts, doc("Addresses of the client that are not meant.")] = ()


class Operation(Part, frozen=True):
    """What is asked for; every list that is written must match."""

    hosts: Annotated[Texts, doc("Hosts, without regard to case.")] = ()
    not_hosts: Annotated[Texts, doc("Hosts that are not meant.")] = ()
    ports: Annotated[Texts, doc("Ports of the application.")] = ()
    not_ports: Annotated[Texts, doc("Ports that are not meant.")] = ()
    methods: Annotated[Texts, doc("Methods.")] = ()
    not_methods: Annotated[Texts, doc("Methods that are not meant.")] = ()
    paths: Annotated[Texts, doc("Paths; `{*}` is one segment and `{**}` any number of them.")] = ()
    not_paths: Annotated[Texts, doc("Paths that are not meant.")] = ()


class From(Part, frozen=True):
    """One source of a rule."""

    source: Annotated[Source, doc("Who calls.")]


class To(Part, frozen=True):
    """One operation of a rule."""

    operation: Annotated[Operation, doc("What is asked for.")]


class Condition(Part, frozen=True):
    """A further condition on an attribute."""

    key: Annotated[str, doc("The attribute, like `request.headers[x-tenant]` or `source.namespace`.")]
    values: Annotated[Texts, doc("Values that match.")] = ()
    not_values: Annotated[Texts, doc("Values that must not match.")] = ()


class AuthorizationRule(Part, frozen=True):
    """Matches when one source, one operation and all conditions do."""

    from_: Annotated[tuple[From, ...], doc("Sources; everybody without it.", min_length=1)] = field(
        default=(), name="from"
    )
    to: Annotated[tuple[To, ...], doc("Operations; everything without it.", min_length=1)] = ()
    when: Annotated[tuple[Condition, ...], doc("Conditions.")] = ()


class AuthorizationPolicy(Part, frozen=True):
    """Who may call which workloads. ALLOW without rules denies everything."""

    selector: Annotated[Selector | None, doc("Which workloads; all of the namespace without it.")] = None
    target_refs: Annotated[
        tuple[dict[str, str], ...], doc("Gateways and services; such policies are not for sidecars and do nothing.")
    ] = ()
    target_ref: Annotated[dict[str, str], doc("One of `targetRefs`, as older documents write it.")] = field(
        default_factory=dict
    )
    rules: Annotated[tuple[AuthorizationRule, ...], doc("Any of these.")] = ()
    action: Annotated[Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"], doc("What a match means.")] = "ALLOW"
    provider: Annotated[dict[str, str], doc("Who decides for CUSTOM.")] = field(default_factory=dict)
