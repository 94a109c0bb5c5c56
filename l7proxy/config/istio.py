"""Istio's security documents as they are: PeerAuthentication sets the TLS mode, AuthorizationPolicy becomes rules.

Both apply to us when they stand in our namespace (the Sidecar's `service.namespace`, also when they name none) or in
the root namespace `istio-system`, and their selector matches `service.labels`.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union
from urllib.parse import urlsplit

from msgspec import field, structs

from l7proxy.config.model import APP, Model, Part, Resource, doc
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.fields import network, split_host_port
from l7proxy.filters.authorizer import Attribute, Clause, Rule, RuleSet, check_header, check_path

ROOT_NAMESPACE = "istio-system"
Mode = Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]
Texts = tuple[str, ...]
Group = tuple[tuple[Clause, ...], ...]


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
    rules: Annotated[tuple[AuthorizationRule, ...], doc("Any of these.")] = ()
    action: Annotated[Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"], doc("What a match means.")] = "ALLOW"
    provider: Annotated[dict[str, str], doc("Who decides for CUSTOM.")] = field(default_factory=dict)


_PATTERN = re.compile(r"\*|\*?[^*]+|[^*]+\*")
_TEMPLATED = re.compile(r"\{\*\*?\}")
_BRACES = frozenset("{}")
_LATER: dict[str, str] = {
    "request.auth.": "JWT authentication is not supported yet",
    "experimental.": "Envoy's own filter state does not exist here",
    "destination.ip": "the address that a caller dialled is not known for certain",
    "connection.sni": "names in TLS are not matched",
}
_KEYS: dict[str, Attribute] = {
    "source.ip": "peerIP",
    "remote.ip": "clientIP",
    "source.namespace": "namespace",
    "source.principal": "principal",
    "source.serviceAccount": "serviceAccount",
    "destination.port": "port",
}
_SOURCE: tuple[tuple[str, Attribute], ...] = (
    ("principals", "principal"),
    ("namespaces", "namespace"),
    ("service_accounts", "serviceAccount"),
    ("ip_blocks", "peerIP"),
    ("remote_ip_blocks", "clientIP"),
)
_OPERATION: tuple[tuple[str, Attribute], ...] = (
    ("hosts", "host"),
    ("ports", "port"),
    ("methods", "method"),
    ("paths", "path"),
)
# As Go's strconv.ParseBool reads it.
_DRY_RUN = dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "false", "FALSE", "False"), False
)
_HEADER = re.compile(r"request\.headers\[([^\]\s]+)\]")


def translate(model: Model) -> Model:
    """Returns the model with the TLS mode that its PeerAuthentications ask for.

    Raises ConfigError for what cannot be enforced as it is written.
    """
    problems: list[Problem] = []
    found = None
    try:
        enforced = rules(model)
        if enforced is not None and enforced.by_path:
            problems += _originals(model, enforced)
    except ConfigError as error:
        problems += error.problems
    try:
        found = peer_mode(model)
    except ConfigError as error:
        problems += error.problems
    sidecar = model.sidecar
    inbound = sidecar.spec.inbound
    tls = inbound.tls if inbound is not None else None
    if found is not None and found[0] == "STRICT" and inbound is not None and tls is None:
        problems.append(Problem(*found[1], "mode STRICT needs a certificate: the Sidecar's inbound.tls names none"))
    if problems:
        raise ConfigError(problems)
    if found is None or inbound is None or tls is None:
        # Nothing but plain text is possible without a certificate, which is what PERMISSIVE and DISABLE allow.
        return model
    inbound = structs.replace(inbound, tls=structs.replace(tls, mode=found[0]))
    return structs.replace(model, sidecar=structs.replace(sidecar, spec=structs.replace(sidecar.spec, inbound=inbound)))


def _originals(model: Model, enforced: RuleSet) -> list[Problem]:
    """Returns the routes that forward another path than the one that the rules allow."""
    return [
        Problem(
            *route.where("spec.path.forward"),
            f"spec.path.forward: original cannot be forwarded where rules depend on the path, as at {enforced.by_path}",
        )
        for route in model.routes
        if route.spec.direction == "inbound" and route.spec.path.forward == "original"
    ]


def peer_mode(model: Model) -> tuple[Literal["STRICT", "PERMISSIVE", "DISABLE"], tuple[str, int]] | None:
    """Returns the mode of the application's port and where it is written; None if no document decides.

    The most specific wins: port, workload, namespace, mesh; among equals the one that stands first in the files.
    """
    problems: list[Problem] = []
    port = app_port(model)
    best: tuple[tuple[bool, int], Any, tuple[str, int]] | None = None
    for document in model.others.get("PeerAuthentication", ()):
        levels = _levels(document, problems)
        if not applies(document, model):
            continue
        scope = _scope(document, model)
        choices = [((False, scope), document.spec.mtls.mode, "spec.mtls")]
        choices += [((True, scope), mode, path) for number, mode, path in levels if number == port]
        for rank, mode, path in choices:
            if mode != "UNSET" and (best is None or rank > best[0]):
                best = rank, mode, document.where(path)
    if problems:
        raise ConfigError(problems)
    return None if best is None else (best[1], best[2])


def _levels(document: Resource[Any], problems: list[Problem]) -> list[tuple[int, Mode, str]]:
    """Returns (port, mode, place) of what a PeerAuthentication says of single ports."""
    levels = document.spec.port_level_mtls
    found: list[tuple[int, Mode, str]] = []
    if not isinstance(levels, dict):
        found = [(level.port, level.mode, f"spec.portLevelMtls[{n}]") for n, level in enumerate(levels)]
    else:
        for key, mtls in levels.items():
            path = f"spec.portLevelMtls.{key}"
            if _is_port(key):
                found.append((int(key), mtls.mode, path))
            else:
                problems.append(Problem(*document.where(path), f"{path}: {key!r} is not a port"))
    seen: set[int] = set()
    for number, _, path in found:
        if number in seen:
            problems.append(Problem(*document.where(path), f"{path}: port {number} is there already"))
        seen.add(number)
    return found


def rules(model: Model) -> RuleSet | None:
    """Returns the rules of all AuthorizationPolicies that apply to us, None if none does; raises ConfigError."""
    problems: list[Problem] = []
    found: dict[str, list[Rule]] = {"DENY": [], "ALLOW": [], "AUDIT": []}
    allows = shadow_allows = any_applies = False
    where = ""
    for document in model.others.get("AuthorizationPolicy", ()):
        spec: AuthorizationPolicy = document.spec
        translated = list(_translate(document, model, problems))
        if spec.action == "CUSTOM":
            message = "action CUSTOM asks an external authorizer, which is not supported: nothing would be enforced"
            problems.append(Problem(*document.where("spec.action"), message))
            continue
        if spec.target_refs or not applies(document, model):
            continue
        any_applies = True
        shadow = _DRY_RUN.get(document.annotations.get("istio.io/dry-run", "false"))
        if shadow is None:
            problems.append(Problem(*document.where(""), "the annotation istio.io/dry-run is neither true nor false"))
            continue
        found[spec.action] += [structs.replace(rule, shadow=shadow) for rule in translated]
        if spec.action == "ALLOW":
            allows |= not shadow
            shadow_allows = True
            where = where or "{}:{}".format(*document.where(""))
    if problems:
        raise ConfigError(problems)
    if not any_applies:
        return None
    deny, allow, audit = (tuple(found[action]) for action in ("DENY", "ALLOW", "AUDIT"))
    return RuleSet(deny, allow, audit, allows, shadow_allows, where)


def applies(document: Resource[Any], model: Model) -> bool:
    """Tells whether a document of Istio's is for our workload."""
    service = model.sidecar.spec.service
    if document.namespace not in ("", service.namespace, ROOT_NAMESPACE):
        return False
    selector: Selector | None = document.spec.selector
    return selector is None or selector.match_labels.items() <= service.labels.items()


def app_port(model: Model) -> int:
    """Returns the port of the local application, 0 if there is none."""
    stands_for = model.upstreams.get(APP)
    if stands_for is not None:
        first = stands_for.spec.dns or stands_for.spec.endpoints[0]
        return split_host_port(first if isinstance(first, str) else first.address)[1]
    inbound = model.sidecar.spec.inbound
    if inbound is None or inbound.app is None:
        return 0
    parts = urlsplit(inbound.app)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536


def _scope(document: Resource[Any], model: Model) -> int:
    if document.spec.selector is not None and document.spec.selector.match_labels:
        return 2
    namespace = model.sidecar.spec.service.namespace
    return 0 if document.namespace == ROOT_NAMESPACE != namespace else 1


def _translate(document: Resource[Any], model: Model, problems: list[Problem]) -> Iterator[Rule]:
    """Yields the rules of one policy; adds to `problems` what they ask for in vain."""
    namespace = document.namespace or model.sidecar.spec.service.namespace
    spec: AuthorizationPolicy = document.spec
    for number, rule in enumerate(spec.rules):
        place = f"spec.rules[{number}]"
        reader = _Reader(document, namespace, problems)
        groups: list[Group] = []
        if rule.from_:
            groups.append(
                tuple(
                    reader.block(entry.source, _SOURCE, f"{place}.from[{n}].source")
                    for n, entry in enumerate(rule.from_)
                )
            )
        if rule.to:
            groups.append(
                tuple(
                    reader.block(entry.operation, _OPERATION, f"{place}.to[{n}].operation")
                    for n, entry in enumerate(rule.to)
                )
            )
        conditions = [reader.condition(entry, f"{place}.when[{n}]") for n, entry in enumerate(rule.when)]
        if conditions:
            groups.append((tuple(clause for clauses in conditions for clause in clauses),))
        name = f"{document.namespace}/{document.name}" if document.namespace else document.name
        yield Rule(f"{name}[{number}]", tuple(groups), where="{}:{}".format(*document.where(place)))


def _names_accounts(source: Source) -> bool:
    return bool(source.service_accounts or source.not_service_accounts)


def _names_others(source: Source) -> bool:
    return bool(source.principals or source.not_principals or source.namespaces or source.not_namespaces)


class _Reader:
    """Turns the blocks of one policy into clauses."""

    def __init__(self, document: Resource[Any], namespace: str, problems: list[Problem]) -> None:
        self._document = document
        self._namespace = namespace
        self._problems = problems

    def block(
        self, block: Source | Operation, table: tuple[tuple[str, Attribute], ...], path: str
    ) -> tuple[Clause, ...]:
        """Returns the clauses of a source or an operation."""
        if isinstance(block, Source) and (block.request_principals or block.not_request_principals):
            self._wrong(path, "requestPrincipals: JWT authentication is not supported yet")
            return ()
        if isinstance(block, Source) and _names_accounts(block) and _names_others(block):
            # As in Istio: an account says which namespace it is in, and which principal it has.
            self._wrong(path, "serviceAccounts cannot stand beside principals or namespaces")
            return ()
        clauses = []
        for name, attribute in table:
            for negated in (False, True):
                values = getattr(block, f"not_{name}" if negated else name)
                if values:
                    clauses.append(self._clause(attribute, values, negated, path))
        if not clauses:
            # As in Istio: what a template left empty must not let everybody do everything.
            empty, key = ("operation", "to") if isinstance(block, Operation) else ("source", "from")
            self._wrong(path, f"an empty {empty} is refused by Istio: name one, or leave `{key}` out")
        return tuple(clauses)

    def condition(self, entry: Condition, path: str) -> Iterator[Clause]:
        """Yields the clauses of one condition."""
        header = _HEADER.fullmatch(entry.key)
        attribute: Attribute | None = "header" if header else _KEYS.get(entry.key)
        if attribute is None:
            why = next((why for start, why in _LATER.items() if entry.key.startswith(start)), "there is no such key")
            self._wrong(f"{path}.key", f"{entry.key!r}: {why}")
            return
        if header:
            try:
                check_header(header[1].lower())
            except ValueError as error:
                self._wrong(f"{path}.key", str(error))
                return
        if not entry.values and not entry.not_values:
            self._wrong(path, "needs values or notValues")
        for values, negated in ((entry.values, False), (entry.not_values, True)):
            if values:
                yield self._clause(attribute, values, negated, path, header[1].lower() if header else "")

    def _clause(self, attribute: Attribute, values: Texts, negated: bool, path: str, key: str = "") -> Clause:
        checked = []
        for value in values:
            try:
                if attribute in ("peerIP", "clientIP"):
                    network(value)
                elif attribute == "port":
                    if not _is_port(value):
                        raise ValueError(f"{value!r} is not a port")
                elif attribute == "path" and _TEMPLATED.search(value):
                    if "*" in _TEMPLATED.sub("", value):
                        raise ValueError(f"{value!r}: {{*}} and * cannot stand together")
                elif not _PATTERN.fullmatch(value):
                    raise ValueError(f"{value!r}: a * can only stand at the start or at the end")
                elif attribute == "serviceAccount" and "*" in value:
                    # As in Istio. https://istio.io/latest/docs/reference/config/security/authorization-policy/#Source
                    raise ValueError(f"{value!r}: a service account is named without *; principals may have one")
                elif attribute == "principal" and value.startswith("spiffe://"):
                    raise ValueError(f"{value!r}: a principal is written without spiffe://")
                if attribute == "path":
                    if not _BRACES.isdisjoint(_TEMPLATED.sub("", value)):
                        raise ValueError(f"{value!r}: braces stand for a template, which is {{*}} or {{**}}")
                    check_path(value)
            except ValueError as error:
                self._wrong(path, str(error))
                continue
            if attribute == "serviceAccount" and "/" not in value:
                value = f"{self._namespace}/{value}"
            checked.append(value)
        return Clause(attribute, tuple(checked), negated, key)

    def _wrong(self, path: str, message: str) -> None:
        self._problems.append(Problem(*self._document.where(path), message))
