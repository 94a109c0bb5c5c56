"""The TLS mode that Istio's PeerAuthentications ask for.

https://istio.io/latest/docs/reference/config/security/peer_authentication/, and `ComposePeerAuthentication` of istiod:
the oldest document of each scope counts, whatever others of that scope say.
"""

from typing import Any, Literal, NamedTuple

from l7proxy.config.istio_model import Mode
from l7proxy.config.istio_scope import ROOT_NAMESPACE, app_port, in_scope, is_port, namespace_of, selects
from l7proxy.config.model import Model, Resource
from l7proxy.core.errors import ConfigError, Problem

_SCOPES: tuple[Literal["mesh", "namespace", "workload"], ...] = ("mesh", "namespace", "workload")
"""From the widest to the narrowest; UNSET inherits from the one before."""


class _PortMode(NamedTuple):
    """What a document says of one port, and at which path of the document."""

    port: int
    mode: Mode
    path: str


def peer_mode(
    model: Model, warnings: list[Problem]
) -> tuple[Literal["STRICT", "PERMISSIVE", "DISABLE"], tuple[str, int]] | None:
    """Returns the mode of the application's port and where it is written; None if no document decides.

    Adds to `warnings` what is written in vain. Raises ConfigError, also for a port that a setting in vain would leave
    open.
    """
    problems: list[Problem] = []
    port = app_port(model)
    in_vain: list[tuple[Resource[Any], _PortMode]] = []
    chosen: dict[str, Resource[Any]] = {}
    # As istiod sorts them; a time that is not known is before all others.
    for document in sorted(
        in_scope("PeerAuthentication", model), key=lambda one: (one.created, one.name, namespace_of(one, model))
    ):
        ports = _ports(document, problems)
        if not selects(document, model, problems):
            continue
        scope = _scope(document, model)
        if scope is None:
            message = f"a selector has no effect in {ROOT_NAMESPACE}, nor has the document: Istio ignores it"
            warnings.append(Problem(*document.where("spec.selector"), f"spec.selector: {message}"))
        elif scope in chosen:
            older = "{}:{}".format(*chosen[scope].where(""))
            message = f"has no effect: {chosen[scope].name} at {older} is the oldest document for the {scope}"
            warnings.append(Problem(*document.where(""), message))
        else:
            chosen[scope] = document
            if scope != "workload":
                in_vain += [(document, setting) for setting in ports]
    found: tuple[Any, tuple[str, int]] | None = None
    for scope in _SCOPES:
        if scope in chosen and chosen[scope].spec.mtls.mode != "UNSET":
            found = chosen[scope].spec.mtls.mode, chosen[scope].where("spec.mtls")
    for setting in _ports(chosen["workload"], []) if "workload" in chosen else ():
        if setting.port == port and setting.mode != "UNSET":
            found = setting.mode, chosen["workload"].where(setting.path)
    inbound = model.sidecar.spec.inbound
    own = inbound.tls.mode if inbound is not None and inbound.tls is not None else "DISABLE"
    outcome = own if found is None else found[0]
    for document, setting in in_vain:
        if setting.port == port and setting.mode == "STRICT" != outcome:
            message = f"{setting.path}: STRICT needs a selector beside it: without one Istio leaves the port {outcome}"
            problems.append(Problem(*document.where(setting.path), message))
        else:
            message = f"{setting.path}: has no effect without a selector: Istio sets the ports of workloads alone"
            warnings.append(Problem(*document.where(setting.path), message))
    if problems:
        raise ConfigError(problems)
    return found


def _scope(document: Resource[Any], model: Model) -> Literal["mesh", "namespace", "workload"] | None:
    """Returns what a document is for; None for one that is for nothing.

    An empty selector is none. The root namespace has documents for the mesh alone, even if it is our own.
    """
    workload = document.spec.selector is not None and bool(document.spec.selector.match_labels)
    if namespace_of(document, model) == ROOT_NAMESPACE:
        return None if workload else "mesh"
    return "workload" if workload else "namespace"


def _ports(document: Resource[Any], problems: list[Problem]) -> list[_PortMode]:
    """Returns what a PeerAuthentication says of single ports."""
    levels = document.spec.port_level_mtls
    found: list[_PortMode] = []
    if not isinstance(levels, dict):
        found = [_PortMode(level.port, level.mode, f"spec.portLevelMtls[{n}]") for n, level in enumerate(levels)]
    else:
        for key, mtls in levels.items():
            path = f"spec.portLevelMtls.{key}"
            if is_port(key):
                found.append(_PortMode(int(key), mtls.mode, path))
            else:
                problems.append(Problem(*document.where(path), f"{path}: {key!r} is not a port"))
    seen: set[int] = set()
    for setting in found:
        if setting.port in seen:
            message = f"{setting.path}: port {setting.port} is there already"
            problems.append(Problem(*document.where(setting.path), message))
        seen.add(setting.port)
    return found
