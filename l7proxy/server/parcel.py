"""Models on their way to workers, in pieces: what a worker has is not sent again, and none blocks it for long."""

import pickle
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from msgspec import structs

from l7proxy.config.model import Model, Resource
from l7proxy.core.slices import Steps

_PIECE = 20
"""Documents in one piece."""

Digest = bytes
Piece = tuple[Digest, bytes]


def pack(model: Model) -> Steps[tuple[Model, list[Piece]]]:
    """Returns the model without its documents, and these in pieces."""
    resources: list[Resource[Any]] = [*model.upstreams.values(), *model.routes]
    for kind in model.others.values():
        resources += kind
    pieces: list[Piece] = []
    for at in range(0, len(resources), _PIECE):
        data = pickle.dumps(resources[at : at + _PIECE], pickle.HIGHEST_PROTOCOL)
        pieces.append((blake2b(data, digest_size=16).digest(), data))
        yield
    return structs.replace(model, upstreams={}, routes=(), others={}, warnings=()), pieces


class Pieces:
    """What a worker has of the models that it was sent."""

    def __init__(self) -> None:
        self._known: dict[Digest, list[Resource[Any]]] = {}

    def missing(self, digests: Iterable[Digest]) -> list[Digest]:
        """Returns those that are to be sent."""
        return [digest for digest in digests if digest not in self._known]

    def add(self, digest: Digest, data: bytes) -> None:
        """Takes one piece."""
        self._known[digest] = pickle.loads(data)

    def build(self, head: Model, digests: list[Digest]) -> Model:
        """Returns the whole model, and forgets what it does not need."""
        self._known = {digest: self._known[digest] for digest in digests}
        kinds: dict[str, list[Resource[Any]]] = {}
        for digest in digests:
            for resource in self._known[digest]:
                kinds.setdefault(resource.kind, []).append(resource)
        upstreams = {resource.name: resource for resource in kinds.pop("Upstream", ())}
        routes = tuple(kinds.pop("Route", ()))
        others = {kind: tuple(resources) for kind, resources in kinds.items()}
        return structs.replace(head, upstreams=upstreams, routes=routes, others=others)
