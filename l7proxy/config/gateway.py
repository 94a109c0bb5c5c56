"""The Gateway API's routes as they are: each rule of an HTTPRoute or GRPCRoute for a Service becomes a Route.

Their order is that of the reference for rules that are equal otherwise: the oldest document, then the first by
`{namespace}/{name}`, then the rules as they stand. Other documents come before them.

A route for our own Service (the Sidecar's `service`) is inbound, for another one outbound, and what is for a Gateway is
not for sidecars (GEP-1426). A Service is the Upstream that our resolver would find: `NAME`, or `NAME.NAMESPACE` where
its namespace is not ours.
"""

from bisect import insort
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from msgspec import structs

from l7proxy.config.documents import Document
from l7proxy.config.gateway_checks import note, rules_of, valid
from l7proxy.config.gateway_model import CORE, LABEL, BackendRef, CommonRoute
from l7proxy.config.gateway_rules import RuleReader
from l7proxy.config.model import APP, Backend, Resource, Route, Sidecar
from l7proxy.config.scalars import Reference
from l7proxy.core.errors import Problem
from l7proxy.core.slices import Steps


class Service(NamedTuple):
    """A Service of the cluster."""

    namespace: str
    name: str


class _Parent(NamedTuple):
    """A Service that a document is for, and where the document says so."""

    service: Service
    path: str


def routes(
    documents: Sequence[Document], sidecar: Sidecar, problems: list[Problem], warnings: list[Problem]
) -> Steps[list[Document]]:
    """Returns the documents with Routes in place of those of the Gateway API.

    Adds to `problems` what cannot be done as it is written, and to `warnings` what does nothing.
    """
    own = Service(sidecar.service.namespace, sidecar.service.name)
    ours: list[Resource[CommonRoute]] = []
    parents: dict[int, list[_Parent]] = {}
    for document in documents:
        if isinstance(document.resource.spec, CommonRoute):
            parents[id(document.resource)] = []
            if valid(document.resource, problems):
                ours.append(document.resource)
                parents[id(document.resource)] = _parents(document.resource, own, problems, warnings)
        yield
    yield from _settle(ours, parents, own, problems, warnings)
    ports: dict[Service, int] = {}
    found = [document for document in documents if id(document.resource) not in parents]
    yield
    ours = yield from _by_age(ours, own)
    for resource in ours:
        bound, rules = parents[id(resource)], rules_of(resource)
        if bound and not rules:
            note(problems, resource, "spec", "there is no rule: every request would be answered 500")
        for number in range(len(rules) if bound else 0):
            found += _Translation(resource, number, own, ports, problems).routes(bound)
        yield
    return found


def _by_age(resources: Sequence[Resource[CommonRoute]], own: Service) -> Steps[list[Resource[CommonRoute]]]:
    """Sorts documents so that of rules that are equal otherwise the first has precedence.

    HTTPRouteRule: the oldest by creation timestamp, then the first in alphabetical order by `{namespace}/{name}`. A
    document that has no timestamp was not created yet: it counts as younger than all that have.
    """
    found: list[tuple[bool, str, str, int]] = []
    for place, resource in enumerate(resources):
        name = f"{resource.namespace or own.namespace}/{resource.name}"
        insort(found, (not resource.created, resource.created, name, place))
        yield
    return [resources[place] for _, _, _, place in found]


def _parents(
    resource: Resource[CommonRoute], own: Service, problems: list[Problem], warnings: list[Problem]
) -> list[_Parent]:
    """Returns the Services that a document is for, of those that we may serve or call."""
    found = []
    local, before = resource.namespace or own.namespace, len(problems)
    for number, parent in enumerate(resource.spec.parent_refs):
        path = f"spec.parentRefs[{number}]"
        service = Service(parent.namespace or local, parent.name)
        # For a Service of another namespace than its own, a route holds for callers of its own alone.
        if parent.kind != "Service" or local not in (service.namespace, own.namespace):
            continue
        if parent.group not in CORE:
            note(problems, resource, path, 'a Service is of the core group: write group: ""')
        elif not LABEL.fullmatch(parent.name):
            note(problems, resource, f"{path}.name", f"{parent.name!r} is not the name of a Service")
        elif parent.port is not None or parent.section_name:
            key = "port" if parent.port is not None else "sectionName"
            note(problems, resource, f"{path}.{key}", "a route holds for every port of a Service here: leave it out")
        else:
            found.append(_Parent(service, path))
    if found and resource.spec.hostnames and all(parent.kind == "Service" for parent in resource.spec.parent_refs):
        note(warnings, resource, "spec.hostnames", "hostnames are for Gateways: a route of a Service ignores them")
    if not found and len(problems) == before:
        message = "none of these is a Service that this sidecar serves or calls: the document does nothing here"
        note(warnings, resource, "spec.parentRefs", message)
    return found


def _settle(
    resources: Sequence[Resource[CommonRoute]],
    parents: dict[int, list[_Parent]],
    own: Service,
    problems: list[Problem],
    warnings: list[Problem],
) -> Steps[None]:
    """Of a Service's routes those of its callers' namespace hold, if there are any, and all are of one kind."""
    bound: dict[Service, list[tuple[Resource[CommonRoute], _Parent]]] = defaultdict(list)
    for resource in resources:
        for parent in parents[id(resource)]:
            bound[parent.service].append((resource, parent))
        yield
    for service, pairs in bound.items():
        theirs = [pair for pair in pairs if (pair[0].namespace or own.namespace) == service.namespace]
        holding = [pair for pair in pairs if (pair[0].namespace or own.namespace) != service.namespace] or theirs
        for resource, parent in theirs if holding is not theirs else ():
            parents[id(resource)].remove(parent)
            message = f"does nothing here: {_place(holding[0][0])} holds for callers in {own.namespace}"
            note(warnings, resource, parent.path, message)
        grpc = next((resource for resource, _ in holding if resource.kind == "GRPCRoute"), None)
        for resource, parent in holding:
            if grpc is not None and resource.kind != grpc.kind:
                message = f"a Service has routes of one kind, and {service.name} has the {grpc.kind} in {_place(grpc)}"
                note(problems, resource, parent.path, message)
        yield


def _hosts(service: Service, own: Service) -> Iterator[str]:
    """Yields the names by which we may call a Service."""
    if service.namespace == own.namespace:
        yield service.name
    for end in ("", ".svc", ".svc.cluster.local"):
        yield f"{service.name}.{service.namespace}{end}"


class _Translation:
    """One rule on its way to Routes."""

    def __init__(
        self,
        resource: Resource[CommonRoute],
        number: int,
        own: Service,
        ports: dict[Service, int],
        problems: list[Problem],
    ) -> None:
        self._resource = resource
        self._path = f"spec.rules[{number}]"
        self._rule = rules_of(resource)[number]
        self._own = own
        self._ports = ports
        self._problems = problems
        self._origin = f"{resource.namespace}/{resource.name}" if resource.namespace else resource.name
        self._name = f"{self._origin}[{number}]"

    def routes(self, parents: Sequence[_Parent]) -> list[Document]:
        """Returns one Route for each direction; none where something is wrong."""
        before = len(self._problems)
        reader = RuleReader(self._resource, self._path, self._rule, self._problems)
        spec = reader.route()
        for number, ref in enumerate(self._rule.backend_refs):
            port = ref.port and self._ports.setdefault(self._service(ref), ref.port)
            if port != ref.port:
                path = f"{self._path}.backendRefs[{number}].port"
                message = f"this Service is called at port {port} elsewhere, and an Upstream stands for one of them"
                note(self._problems, self._resource, path, message)
        if len(self._problems) > before:
            return []
        found = []
        inbound = [parent for parent in parents if parent.service == self._own]
        outbound = [parent for parent in parents if parent.service != self._own]
        if inbound:
            found.append(self._document(spec, {**reader.places, "spec.direction": inbound[0].path}))
        if outbound:
            hosts = dict.fromkeys(host for parent in outbound for host in _hosts(parent.service, self._own))
            spec = structs.replace(spec, direction="outbound", hosts=tuple(hosts))
            found.append(self._document(spec, {**reader.places, "spec.direction": outbound[0].path}))
        return found

    def _document(self, spec: Route, places: dict[str, str]) -> Document:
        resource, places["spec.hosts"] = self._resource, places["spec.direction"]
        backends: list[Backend] = []
        references: list[Reference] = []
        for number, ref in enumerate(self._rule.backend_refs):
            path = places[f"spec.split[{number}]"] = f"{self._path}.backendRefs[{number}]"
            service = self._service(ref)
            name = ref.name if service.namespace == self._own.namespace else f"{ref.name}.{service.namespace}"
            if spec.direction == "inbound" and service == self._own:
                name = APP
            elif name == APP:
                message = f"the Upstream {APP!r} is the local application, not a Service of this name"
                note(self._problems, resource, f"{path}.name", message)
            backends.append(Backend(name, ref.weight))
            references.append(Reference("upstream", name, path))
            places[path] = places["spec.upstream"] = path
        if len(backends) == 1:
            spec = structs.replace(spec, upstream=backends[0].upstream)
        else:
            spec = structs.replace(spec, split=tuple(backends))
        file, line = resource.where(self._path)
        lines = {ours: resource.where(theirs)[1] - line for ours, theirs in places.items()}
        metadata = (resource.namespace, resource.labels, resource.annotations)
        route = Resource("Route", self._name, spec, *metadata, file, line, lines, origin=self._origin)
        return Document(route, tuple(references), 0)

    def _service(self, ref: BackendRef) -> Service:
        return Service(ref.namespace or self._resource.namespace or self._own.namespace, ref.name)


def _place(resource: Resource[Any]) -> str:
    return f"{resource.file}:{resource.line}"
