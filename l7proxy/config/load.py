"""From files and folders to one checked Model, or to every mistake in them."""

import os
import re
import stat
from collections.abc import Callable, Generator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from msgspec import structs

from l7proxy.config import checks, shadow
from l7proxy.config.documents import Document, read
from l7proxy.config.kinds import translators
from l7proxy.config.model import APP, Admin, Health, Inbound, Metrics, Model, Outbound, Resource, Route, Sidecar
from l7proxy.config.yaml import MAX_BYTES, chunks
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.fields import url
from l7proxy.core.slices import finish

SUFFIXES = (".yaml", ".yml", ".json")
"""What a file in a folder must be called to be read; hidden files and folders within are not."""
_PART = 256 * 1024
_NAMES = re.compile(rb"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load(paths: Sequence[str], app: str | None = None) -> Model:
    """Returns the model that the files and folders at `paths` describe; `app` stands for `inbound.app`.

    Raises ConfigError with every problem of every file.
    """
    return finish(Loader().steps(paths, app))


def app_model(app: str) -> Model:
    """Returns the model of `l7proxy run --app URL`: every listener at its default, all requests to the application.

    Raises ConfigError for what is not a URL.
    """
    spec = Sidecar(
        inbound=Inbound(app=_url(app)),
        outbound=Outbound(policy="ALLOW_ANY"),
        admin=Admin(),
        metrics=Metrics(),
        health=Health(),
    )
    return Model(Resource("Sidecar", "sidecar", spec), version=blake2b(app.encode(), digest_size=6).hexdigest())


class Loader:
    """Loads again and again: documents that did not change are not read anew, and their specs stay the same objects."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._known: dict[tuple[str, bytes], Document | None] = {}

    def steps(self, paths: Sequence[str], app: str | None = None) -> Generator[None, None, Model]:
        """Does what `load` does in steps of well under a millisecond, so that an event loop can serve between them."""
        problems: list[Problem] = []
        documents: list[Document] = []
        known: dict[tuple[str, bytes], Document | None] = {}
        content = blake2b(repr(app).encode(), digest_size=6)
        files = _expand(paths, problems)
        for file in files:
            try:
                data = yield from _contents(file)
                found = yield from self._documents(file, data, known, content.update, problems)
            except ConfigError as error:
                problems += error.problems
            else:
                documents += found
        model: Model | None = None
        if not problems:
            model = yield from _model(documents, app, content.hexdigest(), problems)
        if model is None or problems:
            places = {file: place for place, file in enumerate(files)}
            problems.sort(key=lambda problem: (places.get(problem.file, -1), problem.line))
            raise ConfigError(problems)
        self._known = known
        return model

    def _documents(
        self,
        file: str,
        data: bytes,
        known: dict[tuple[str, bytes], Document | None],
        hashed: Callable[[bytes], None],
        problems: list[Problem],
    ) -> Generator[None, None, list[Document]]:
        folder = os.path.dirname(file)
        found: list[Document] = []
        failed = len(problems)
        for chunk in chunks(data, file):
            values = [self._environment.get(name.decode(), "") for name in _NAMES.findall(chunk.data)]
            digest = blake2b(chunk.data + repr(values).encode(), digest_size=16).digest()
            hashed(digest)
            key = (file, digest)
            if key in self._known:
                document = self._known[key]
            else:
                try:
                    document = yield from read(chunk, file, folder, self._environment)
                except ConfigError as error:
                    problems += error.problems
                    continue
            known[key] = document
            if document is not None:
                found.append(document.at(chunk.offset))
            yield
        if not found and failed == len(problems):
            raise ConfigError([Problem(file, 0, "there is no document in this file")])
        return found


def _model(
    documents: list[Document], app: str | None, version: str, problems: list[Problem]
) -> Generator[None, None, Model | None]:
    """Puts documents together that are each right, and checks what is between them."""
    yield from checks.unique(documents, problems)
    by_kind: dict[str, list[Resource[Any]]] = {"Sidecar": [], "Upstream": [], "Route": []}
    for document in documents:
        by_kind.setdefault(document.resource.kind, []).append(document.resource)
        yield
    if not by_kind["Sidecar"]:
        if app is None:
            problems.append(Problem(documents[0].resource.file, 0, "there is no document of kind Sidecar"))
            return None
        by_kind["Sidecar"].append(app_model(app).sidecar)
    elif app is not None:
        by_kind["Sidecar"][0] = _with_app(by_kind["Sidecar"][0], app)
    sidecar: Resource[Sidecar] = by_kind.pop("Sidecar")[0]
    upstreams = {resource.name: resource for resource in by_kind.pop("Upstream")}
    warnings: list[Problem] = []
    routes: list[Resource[Route]] = []
    inbound = sidecar.spec.inbound
    has_app = inbound is not None and inbound.app is not None
    for resource in by_kind.pop("Route"):
        checks.route(resource, sidecar.spec, has_app or APP in upstreams, problems, warnings)
        routes.append(resource)
        yield
    checks.listeners(sidecar, problems)
    yield from checks.references(documents, upstreams, has_app, problems)
    if problems:
        return None
    model = Model(
        sidecar, upstreams, tuple(routes), {kind: tuple(resources) for kind, resources in by_kind.items()}, (), version
    )
    for translate in translators(model):
        model = translate(model)
    yield from shadow.shadowed(model.routes, problems, warnings)
    yield from shadow.unenforced(model.routes, warnings)
    return structs.replace(model, warnings=(*model.warnings, *warnings))


def _with_app(sidecar: Resource[Sidecar], app: str) -> Resource[Sidecar]:
    inbound = structs.replace(sidecar.spec.inbound or Inbound(), app=_url(app))
    return structs.replace(sidecar, spec=structs.replace(sidecar.spec, inbound=inbound))


def _url(app: str) -> str:
    try:
        return url(app)
    except ValueError as error:
        raise ConfigError([Problem("--app", 0, str(error))]) from None


def _expand(paths: Sequence[str], problems: list[Problem]) -> list[str]:
    """Returns the files at the paths, each once, those of a folder in the order of their names."""
    files: dict[str, None] = {}
    for path in paths:
        if os.path.isdir(path):
            try:
                names = sorted(name for name in os.listdir(path) if name.endswith(SUFFIXES) and name[0] != ".")
            except OSError as error:
                problems.append(Problem(path, 0, f"cannot be read: {error.strerror}"))
                continue
            if not names:
                problems.append(Problem(path, 0, "there is no YAML file in this folder"))
            files.update(dict.fromkeys(os.path.join(path, name) for name in names))
        else:
            files[path] = None
    return [file for file in files if not os.path.isdir(file)]


def _contents(file: str) -> Generator[None, None, bytes]:
    """Reads a file in parts; raises ConfigError when it cannot be read or is too large."""
    parts: list[bytes] = []
    size = 0
    try:
        # A pipe that nobody writes would hold the event loop for ever.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as source:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError([Problem(file, 0, "is not a regular file")])
            while part := source.read(_PART):
                size += len(part)
                if size > MAX_BYTES:
                    raise ConfigError([Problem(file, 0, f"is larger than {MAX_BYTES >> 20} MiB")])
                parts.append(part)
                yield
    except OSError as error:
        raise ConfigError([Problem(file, 0, f"cannot be read: {error.strerror}")]) from None
    return b"".join(parts)
