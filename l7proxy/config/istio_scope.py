"""Which of Istio's documents are for our workload."""

from typing import Any
from urllib.parse import urlsplit

from l7proxy.config.model import APP, Model, Resource
from l7proxy.core.errors import Problem
from l7proxy.core.fields import split_host_port

ROOT_NAMESPACE = "istio-system"


def in_scope(kind: str, model: Model) -> list[Resource[Any]]:
    """Returns the documents of a kind in our namespace and in the root namespace."""
    namespaces = model.sidecar.spec.service.namespace, ROOT_NAMESPACE
    return [other for other in model.others.get(kind, ()) if namespace_of(other, model) in namespaces]


def namespace_of(document: Resource[Any], model: Model) -> str:
    """Returns the namespace of a document, which is ours where it names none."""
    return document.namespace or model.sidecar.spec.service.namespace


def selects(document: Resource[Any], model: Model, problems: list[Problem]) -> bool:
    """Tells whether a document's selector matches our labels; adds to `problems` what Istio refuses in a selector."""
    if document.spec.selector is None:
        return True
    wanted: dict[str, str] = document.spec.selector.match_labels
    for label, value in wanted.items():
        if "*" in label + value:
            path = f"spec.selector.matchLabels.{label}"
            problems.append(Problem(*document.where(path), f"{path}: a selector takes whole labels, without *"))
    return wanted.items() <= model.sidecar.spec.service.labels.items()


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


def is_port(text: str) -> bool:
    """Tells whether a text is the number of a port."""
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536
