"""From files and folders to one checked Model, or to every mistake in them."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from msgspec import structs

from l7proxy.config import checks, shadow
from l7proxy.config.documents import Broken, Document, read
from l7proxy.config.kinds import routers, translators
from l7proxy.config.model import APP, Model, Resource, Route, Sidecar
from l7proxy.config.overrides import NONE, Overrides
from l7proxy.config.yaml import MAX_BYTES, VARIABLE_NAMES, chunks
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.expanded import Expanded
from l7proxy.core.files import open_regular, size_of
from l7proxy.core.slices import Steps, drained, finish

SUFFIXES = (".yaml", ".yml", ".json")
"""What a file in a folder must be called to be read; hidden files and folders within are not."""
_PART = 64 * 1024


def load(paths: Sequence[str], overrides: Overrides = NONE, elsewhere: bool = False, thorough: bool = False) -> Model:
    """Returns the model that the files and folders at `paths` describe, with the values of `overrides`.

    Of a configuration that runs `elsewhere`, the certificates and other files that it names need not be here;
    `thorough` looks at what is in certificates, too. Raises ConfigError with every problem of every file.
    """
    return finish(Loader(elsewhere=elsewhere, thorough=thorough).steps(paths, overrides))


def app_model(overrides: Overrides) -> Model:
    """Returns the model of `l7proxy run --app URL`: every listener at its default, all requests to the application.

    Raises ConfigError.
    """
    sidecar = overrides.alone()
    problems: list[Problem] = []
    finish(checks.loops(sidecar, (), True, problems))
    if problems:
        raise ConfigError(problems)
    return Model(sidecar, version=blake2b(repr(overrides).encode(), digest_size=6).hexdigest())


class Loader:
    """Loads again and again: documents that did not change are not read anew, and their specs stay the same objects."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, elsewhere: bool = False, thorough: bool = False
    ) -> None:
        self._environment = environment
        self._elsewhere = elsewhere
        self._thorough = thorough
        self._known: dict[tuple[str, bytes], Document | None] = {}
        self.files: set[str] = set()
        """Files, such as certificates, that the documents of the last attempt refer to."""

    def steps(self, paths: Sequence[str], overrides: Overrides = NONE) -> Steps[Model]:
        """Does what `load` does in steps of well under a millisecond, so that an event loop can serve between them."""
        problems: list[Problem] = []
        found: list[Document | Broken] = []
        known: dict[tuple[str, bytes], Document | None] = {}
        content = blake2b(repr(overrides).encode(), digest_size=6)
        files = expand(paths, problems)
        for file in files:
            try:
                found += yield from self._documents(file, known, content.update, problems)
            except ConfigError as error:
                problems += error.problems
                found.append(Broken())
        documents: list[Document] = []
        broken: list[Broken] = []
        references: set[str] = set()
        expanded: dict[str, Expanded] = {}
        for item in found:
            if isinstance(item, Broken):
                broken.append(item)
                continue
            documents.append(item)
            expanded.update((str(text), text) for text in item.expanded)
            references.update(reference.value for reference in item.references if reference.kind == "file")
            yield
        # Kept even when another document is broken: the next attempt will find most of them unchanged.
        before, self._known = self._known, known
        yield from drained(before)
        self.files = references
        if self._elsewhere:
            documents = [document.without_files() for document in documents]
        model = yield from _model(documents, broken, overrides, content.hexdigest(), problems)
        if model is not None and self._thorough:
            checks.certificates(model, problems)
        secrets = tuple(expanded.values())
        if model is None or problems:
            places = {file: place for place, file in enumerate(files)}
            problems.sort(key=lambda problem: (places.get(problem.file, -1), problem.line))
            # A document that stands for several Routes has each mistake once.
            raise ConfigError(list(dict.fromkeys(problem.concealing(secrets) for problem in problems)))
        if not secrets:
            return model
        warnings = tuple(problem.concealing(secrets) for problem in model.warnings)
        return structs.replace(model, expanded=secrets, warnings=warnings)

    def _documents(
        self,
        file: str,
        known: dict[tuple[str, bytes], Document | None],
        hashed: Callable[[bytes], None],
        problems: list[Problem],
    ) -> Steps[list[Document | Broken]]:
        folder = os.path.dirname(file)
        found: list[Document | Broken] = []
        for chunk in chunks(contents(file), file):
            if chunk is None:
                yield
                continue
            values = [self._environment.get(name.decode(), "") for name in VARIABLE_NAMES.findall(chunk.data)]
            digest = blake2b(chunk.data + repr(values).encode(), digest_size=16).digest()
            hashed(digest)
            key = (file, digest)
            if key in self._known:
                document: Document | Broken | None = self._known[key]
            else:
                document = yield from read(chunk, file, folder, self._environment, problems)
            if isinstance(document, Document):
                document = document.at(chunk.offset)
            if not isinstance(document, Broken):
                known[key] = document
            if document is not None:
                found.append(document)
            yield
        if not found:
            raise ConfigError([Problem(file, 1, "there is no document in this file")])
        return found


def _model(
    documents: list[Document], broken: list[Broken], overrides: Overrides, version: str, problems: list[Problem]
) -> Steps[Model | None]:
    """Puts documents together and checks what is between them; None where they are too few to make a model.

    With problems it is a model of what is right, in which more of them may be found.
    """
    yield from checks.unique(documents, problems)
    by_kind = yield from _by_kind(documents)
    sidecars = by_kind["Sidecar"]
    stands_in = False
    if sidecars:
        sidecar = overrides.over(sidecars[0])
    elif overrides.app is not None:
        sidecar = overrides.alone()
    elif any(item.kind in ("Sidecar", "") for item in broken):
        # It is there but cannot be read: what it might say is no reason to find fault with the others.
        stands_in = True
        sidecar = Overrides(app="http://127.0.0.1:80").alone()
    else:
        if documents:
            problems.append(Problem(documents[0].resource.file, 1, "there is no document of kind Sidecar"))
        return None
    warnings: list[Problem] = []
    for routes_of in routers(by_kind) if not stands_in else ():
        documents = yield from routes_of(documents, sidecar.spec, problems, warnings)
        by_kind = yield from _by_kind(documents)
    del by_kind["Sidecar"]
    checks.callers(sidecar, problems)
    upstreams = {resource.name: resource for resource in by_kind.pop("Upstream")}
    for upstream in upstreams.values():
        checks.server(upstream, problems)
        yield
    # What a document is called that cannot be read at all may be any name that another one refers to.
    names = None if Broken() in broken else {*upstreams, *(item.name for item in broken if item.kind == "Upstream")}
    inbound = sidecar.spec.inbound
    has_app = APP in upstreams or (inbound is not None and inbound.app is not None)
    routes: list[Resource[Route]] = []
    for resource in by_kind.pop("Route"):
        if checks.route(resource, sidecar.spec, has_app, problems, warnings):
            routes.append(resource)
        yield
    checks.listeners(sidecar, problems)
    yield from checks.loops(sidecar, upstreams.values(), overrides.app is not None, problems)
    yield from checks.references(documents, names, has_app, problems)
    yield from shadow.shadowed(routes, problems, warnings)
    model = Model(
        sidecar, upstreams, tuple(routes), {kind: tuple(resources) for kind, resources in by_kind.items()}, (), version
    )
    if stands_in:
        return None
    for translate in translators(model):
        try:
            model = translate(model)
        except ConfigError as error:
            problems += error.problems
    checks.tls(model.sidecar, problems)
    yield from shadow.unenforced(model.routes, warnings)
    return structs.replace(model, warnings=(*model.warnings, *warnings))


def _by_kind(documents: list[Document]) -> Steps[dict[str, list[Resource[Any]]]]:
    found: dict[str, list[Resource[Any]]] = {"Sidecar": [], "Upstream": [], "Route": []}
    for document in documents:
        found.setdefault(document.resource.kind, []).append(document.resource)
        yield
    return found


def expand(paths: Sequence[str], problems: list[Problem]) -> list[str]:
    """Returns the files at the paths, each once, those of a folder in the order of their names."""
    files: dict[str, None] = {}
    for path in paths:
        if os.path.isdir(path):
            try:
                shown = sorted(name for name in os.listdir(path) if name[0] != ".")
            except OSError as error:
                problems.append(Problem(path, 0, f"cannot be read: {error.strerror}"))
                continue
            names = [name for name in shown if name.endswith(SUFFIXES)]
            if not names:
                deeper = any(os.path.isdir(os.path.join(path, name)) for name in shown)
                also = "; folders within it are not read" if deeper else ""
                problems.append(Problem(path, 0, f"there is no YAML file in this folder{also}"))
            files.update(dict.fromkeys(os.path.join(path, name) for name in names))
        else:
            files[path] = None
    return [file for file in files if not os.path.isdir(file)]


def contents(file: str) -> Iterator[bytes]:
    """Reads a file in parts; raises ConfigError when it cannot be read or is too large."""
    try:
        with open_regular(file) as source:
            # Asked first: nobody waits for the beginning of a file that will be refused. It may still grow.
            size = size_of(source)
            while size <= MAX_BYTES and (part := source.read(_PART)):
                yield part
                size = max(size, source.tell())
            if size > MAX_BYTES:
                raise ConfigError([Problem(file, 0, f"is larger than {MAX_BYTES >> 20} MiB")])
    except OSError as error:
        raise ConfigError([Problem(file, 0, f"cannot be read: {error.strerror}")]) from None


def find_sidecar(paths: Sequence[str]) -> Sidecar | None:
    """Returns what the Sidecar document at the paths says, whatever is wrong with others; None where there is none.

    Raises ConfigError when it is wrong itself, or when there is none and a file cannot be read.
    """
    problems: list[Problem] = []
    for file in expand(paths, problems):
        try:
            found = [chunk for chunk in chunks(contents(file), file) if chunk is not None and b"Sidecar" in chunk.data]
        except ConfigError as error:
            problems += error.problems
            continue
        for chunk in found:
            wrong: list[Problem] = []
            document = finish(read(chunk, file, os.path.dirname(file), os.environ, wrong))
            if isinstance(document, Document) and document.resource.kind == "Sidecar":
                spec: Sidecar = document.resource.spec
                return spec
            if isinstance(document, Broken) and document.kind in ("Sidecar", ""):
                problems += wrong
    if problems:
        raise ConfigError(problems)
    return None
