"""Istio's security documents as they are: PeerAuthentication sets the TLS mode, AuthorizationPolicy becomes rules.

Both apply to us when they stand in our namespace (the Sidecar's `service.namespace`, also when they name none) or in
the root namespace `istio-system`, and their selector matches `service.labels`.
"""

import re
from collections.abc import Iterator
from typing import Any, Literal

from msgspec import structs

from l7proxy.config.istio_model import AuthorizationPolicy, Condition, Operation, Source, Texts
from l7proxy.config.istio_mtls import peer_mode
from l7proxy.config.istio_scope import in_scope, is_port, selects
from l7proxy.config.model import Model, Resource
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.fields import network
from l7proxy.core.patterns import check
from l7proxy.filters.authorizer import Attribute, Clause, Rule, RuleSet, check_header, check_path, is_of_mesh

Group = tuple[tuple[Clause, ...], ...]
Name = Attribute | Literal["serviceAccount"]
"""What a policy names; a service account is compared as a `principalRegex`."""

_PATTERN = re.compile(r"\*|\*?[^*]+|[^*]+\*")
_TEMPLATED = re.compile(r"\{\*\*?\}")
_ACCOUNT = re.compile(r"([^/*]+/)?[^/*]+")
_LATER: dict[str, str] = {
    "request.auth.": "JWT authentication is not supported yet",
    "experimental.": "Envoy's own filter state does not exist here",
    "destination.ip": "the address that a caller dialled is not known for certain",
    "connection.sni": "names in TLS are not matched",
}
_KEYS: dict[str, Name] = {
    "source.ip": "peerIP",
    "remote.ip": "clientIP",
    "source.namespace": "namespace",
    "source.principal": "principal",
    "source.serviceAccount": "serviceAccount",
    "source.trustDomain": "trustDomain",
    "destination.port": "port",
}
_SOURCE: tuple[tuple[str, Name], ...] = (
    ("principals", "principal"),
    ("namespaces", "namespace"),
    ("service_accounts", "serviceAccount"),
    ("trust_domains", "trustDomain"),
    ("ip_blocks", "peerIP"),
    ("remote_ip_blocks", "clientIP"),
)
_OPERATION: tuple[tuple[str, Name], ...] = (
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
    warnings: list[Problem] = []
    found = None
    try:
        enforced = rules(model, warnings)
        if enforced is not None and enforced.by_path:
            problems += _originals(model, enforced)
    except ConfigError as error:
        problems += error.problems
    try:
        found = peer_mode(model, warnings)
    except ConfigError as error:
        problems += error.problems
    sidecar = model.sidecar
    inbound = sidecar.spec.inbound
    tls = inbound.tls if inbound is not None else None
    if found is not None and found[0] == "STRICT" and inbound is not None and tls is None:
        problems.append(Problem(*found[1], "mode STRICT needs a certificate: the Sidecar's inbound.tls names none"))
    if problems:
        raise ConfigError(problems)
    model = structs.replace(model, warnings=(*model.warnings, *warnings))
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


def rules(model: Model, warnings: list[Problem] | None = None) -> RuleSet | None:
    """Returns the rules of all AuthorizationPolicies that apply to us, None if none does; raises ConfigError.

    Adds to `warnings` what is written in vain.
    """
    problems: list[Problem] = []
    found: dict[str, list[Rule]] = {"DENY": [], "ALLOW": [], "AUDIT": []}
    allows = shadow_allows = any_applies = False
    where = ""
    for document in in_scope("AuthorizationPolicy", model):
        spec: AuthorizationPolicy = document.spec
        targets = spec.target_refs or spec.target_ref
        if spec.selector is not None and targets:
            message = "spec: only one of selector and targetRefs can stand here: Istio would apply it to no sidecar"
            problems.append(Problem(*document.where("spec.selector"), message))
        if not selects(document, model, problems) or targets:
            continue
        any_applies = True
        translated = list(_translate(document, model, problems))
        if spec.action == "CUSTOM":
            message = "action CUSTOM asks an external authorizer, which is not supported: nothing would be enforced"
            problems.append(Problem(*document.where("spec.action"), message))
            continue
        if spec.provider:
            message = f"spec.provider: stands beside action CUSTOM alone, not beside {spec.action}"
            problems.append(Problem(*document.where("spec.provider"), message))
        shadow = _DRY_RUN.get(document.annotations.get("istio.io/dry-run", "false"))
        if shadow is None:
            problems.append(Problem(*document.where(""), "the annotation istio.io/dry-run is neither true nor false"))
            continue
        if spec.action == "DENY" and not spec.rules and warnings is not None:
            message = "a DENY policy without rules denies nothing, as in Istio; `rules: [{}]` denies everything"
            warnings.append(Problem(*document.where("spec"), message))
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


def _check_template(path: str) -> None:
    """Raises ValueError for braces in a path that are no template, as Istio's CheckValidPathTemplate reads them."""
    segments = path.strip("/").split("/")
    templates = [segment for segment in segments if _TEMPLATED.fullmatch(segment)]
    if sum(segment.count("{") + segment.count("}") for segment in segments) != 2 * len(templates):
        raise ValueError(f"{path!r}: braces stand for a template, which is a segment {{*}} or {{**}}")
    if "{**}" in templates[:-1]:
        raise ValueError(f"{path!r}: no template comes after {{**}}")


def _namespace_expression(value: str) -> str:
    """Returns the expression of istiod's `srcNamespaceGenerator`; raises ValueError for one that Envoy refuses."""
    return _expression(value, ".*/ns/{}/.*".format(value.replace("*", ".*")))


def _account_expression(value: str) -> str:
    """Returns the expression of istiod's `serviceAccountRegex`; raises ValueError for one that Envoy refuses."""
    namespace, _, account = value.partition("/")
    return _expression(value, f"spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?")


def _expression(value: str, pattern: str) -> str:
    # As in Istio, nothing in the value is escaped.
    try:
        check(pattern)
    except ValueError as error:
        raise ValueError(f"{value!r} makes no regular expression, as which Istio reads it: {error}") from None
    return pattern


def _names_accounts(source: Source) -> bool:
    return bool(source.service_accounts or source.not_service_accounts)


def _names_others(source: Source) -> bool:
    return bool(source.principals or source.not_principals or source.namespaces or source.not_namespaces)


class _Reader:
    """Turns the blocks of one policy into clauses."""

    def __init__(self, document: Resource[Any], namespace: str, problems: list[Problem]) -> None:
        self._document = document
        self._allows = document.spec.action == "ALLOW"
        self._namespace = namespace
        self._problems = problems

    def block(self, block: Source | Operation, table: tuple[tuple[str, Name], ...], path: str) -> tuple[Clause, ...]:
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
        attribute: Name | None = "headerField" if header else _KEYS.get(entry.key)
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

    def _clause(self, attribute: Name, values: Texts, negated: bool, path: str, key: str = "") -> Clause:
        checked = []
        for value in values:
            try:
                if attribute in ("peerIP", "clientIP"):
                    network(value)
                elif attribute == "port":
                    if not is_port(value):
                        raise ValueError(f"{value!r} is not a port")
                elif attribute == "path" and _TEMPLATED.search(value):
                    if "*" in _TEMPLATED.sub("", value):
                        raise ValueError(f"{value!r}: {{*}} and * cannot stand together")
                elif not _PATTERN.fullmatch(value):
                    raise ValueError(f"{value!r}: a * can only stand at the start or at the end")
                elif attribute == "serviceAccount" and "*" in value:
                    # As in Istio. https://istio.io/latest/docs/reference/config/security/authorization-policy/#Source
                    raise ValueError(f"{value!r}: a service account is named without *; principals may have one")
                elif attribute == "serviceAccount" and not _ACCOUNT.fullmatch(value):
                    raise ValueError(f"{value!r} is not a service account like NAME or NAMESPACE/NAME")
                elif attribute == "principal" and value.startswith("spiffe://"):
                    raise ValueError(f"{value!r}: a principal is written without spiffe://")
                if attribute == "path":
                    _check_template(value)
                    check_path(value)
                elif attribute == "namespace":
                    value = _namespace_expression(value)
                elif attribute == "serviceAccount":
                    value = _account_expression(value if "/" in value else f"{self._namespace}/{value}")
            except ValueError as error:
                self._wrong(path, str(error))
                continue
            checked.append(str(int(value)) if attribute == "port" else value)
        read_as, found = self._reading(attribute, checked, negated)
        return Clause(read_as, tuple(found), negated, key)

    def _reading(self, attribute: Name, values: list[str], negated: bool) -> tuple[Attribute, list[str]]:
        """Returns the attribute that these values are compared with, and the values as they are compared.

        Where Istio compares less than we know of a request, the narrower reading lets through and the wider denies.
        """
        lets_through = self._allows != negated
        if attribute == "host" and lets_through:
            # Envoy compares the port too; for us `example.com:8080` is `example.com`, which no DENY may miss.
            return "authority", [value.lower() for value in values]
        if attribute == "principal" and "*" in values and not lets_through:
            # For Envoy a DNS name is a principal as well.
            return "identity", ["*"]
        if attribute == "principal" and any(map(is_of_mesh, values)):
            return "meshPrincipal", values
        if attribute == "namespace" or attribute == "serviceAccount":
            return "principalRegex", values
        return attribute, values

    def _wrong(self, path: str, message: str) -> None:
        self._problems.append(Problem(*self._document.where(path), message))
