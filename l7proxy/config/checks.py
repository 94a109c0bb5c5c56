"""What is wrong between documents that are each right: names that clash or lead nowhere, files, targets, listeners."""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from l7proxy.config.documents import Document
from l7proxy.config.kinds import KINDS
from l7proxy.config.model import APP, Endpoint, Match, Model, Resource, Route, Sidecar, Tls, Upstream
from l7proxy.config.precedence import exact_key, prefix_key
from l7proxy.config.scalars import suggest
from l7proxy.core.errors import Problem
from l7proxy.core.fields import network, split_host_port
from l7proxy.core.files import open_regular
from l7proxy.core.loops import Listening
from l7proxy.core.slices import Steps, drained
from l7proxy.filters.authorization import Authorization
from l7proxy.identity.peer import peer_named
from l7proxy.identity.report import check
from l7proxy.identity.sources import Files
from l7proxy.identity.spiffe import check_trust_domain

Problems = list[Problem]

_LISTENERS = ("inbound", "outbound", "admin", "metrics", "health")

_ADDRESS = re.compile(r"[0-9.]+|[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*")
"""What was meant as an address, whether or not it is one: no host name looks so."""


def unique(documents: Iterable[Document], problems: Problems) -> Steps[None]:
    """Two documents of a kind cannot have one name, and there is one Sidecar."""
    seen: dict[tuple[str, str, str], Resource[Any]] = {}
    sidecar: Resource[Sidecar] | None = None
    for document in documents:
        resource = document.resource
        # Ours are known by their name alone, whatever namespace they name.
        kind = KINDS[resource.kind]
        namespace = resource.namespace if kind.foreign else ""
        other = seen.setdefault((kind.routes or kind.name, namespace, resource.name), resource)
        if other is not resource:
            _note(problems, resource, "metadata.name", f"{other.kind} {other.name!r} is defined in {_place(other)}")
        elif resource.kind == "Sidecar":
            if sidecar is not None:
                _note(problems, resource, "kind", f"there can be one Sidecar, and {_place(sidecar)} defines it")
            sidecar = sidecar or resource
        yield
    yield from drained(seen)


def references(documents: Iterable[Document], upstreams: set[str] | None, app: bool, problems: Problems) -> Steps[None]:
    """Files and upstreams that documents refer to must exist; without `upstreams` any name may."""
    files: dict[str, str] = {}
    for document in documents:
        for reference in document.references:
            if reference.kind == "file":
                if reference.value not in files:
                    files[reference.value] = _unreadable(reference.value)
                if files[reference.value]:
                    _note(problems, document.resource, reference.path, files[reference.value])
            elif reference.value == APP:
                if not app:
                    message = "there is no application: inbound.app is not set"
                    _note(problems, document.resource, reference.path, message)
            elif upstreams is not None and reference.value not in upstreams:
                message = f"unknown upstream {reference.value!r}" + suggest(reference.value, [*upstreams, APP])
                _note(problems, document.resource, reference.path, message)
        yield


def route(resource: Resource[Route], sidecar: Sidecar, app: bool, problems: Problems, warnings: Problems) -> bool:
    """What a route says must fit together, and there must be a listener and a target for it; tells whether it does."""
    spec = resource.spec
    before = len(problems)
    for number, match in enumerate(spec.matches):
        if why := impossible(match):
            _note(problems, resource, f"spec.matches[{number}].path", why)
        if spec.rewrite is not None and spec.rewrite.prefix is not None and match.path.prefix is None:
            _note(problems, resource, "spec.rewrite.prefix", f"matches[{number}] has no path prefix to replace")
        if spec.redirect is not None and spec.redirect.prefix is not None and match.path.prefix is None:
            _note(problems, resource, "spec.redirect.prefix", f"matches[{number}] has no path prefix to replace")
    if spec.split and not any(backend.weight for backend in spec.split):
        _note(problems, resource, "spec.split", "all weights are 0")
    if not (spec.upstream or spec.split or spec.redirect or spec.direct_response):
        if spec.direction == "outbound":
            _note(problems, resource, "spec", "an outbound route needs upstream, split, redirect or directResponse")
        elif not app:
            _note(problems, resource, "spec", "the route names no target, and inbound.app is not set")
    if spec.path.forward == "original" and any(isinstance(it, Authorization) and it.by_path for it in spec.policies):
        _note(problems, resource, "spec.path.forward", "original cannot be forwarded where rules depend on the path")
    if spec.rewrite is not None and (spec.redirect or spec.direct_response):
        _note(problems, resource, "spec.rewrite", "there is no upstream to rewrite for")
    if spec.tracing is not None and (sidecar.tracing is None or sidecar.tracing.otlp is None):
        _note(warnings, resource, "spec.tracing", "the Sidecar has no tracing.otlp: nothing is traced")
    if (sidecar.inbound if spec.direction == "inbound" else sidecar.outbound) is None:
        _note(warnings, resource, "spec.direction", f"the Sidecar has no {spec.direction} listener for this route")
    return len(problems) == before


def callers(resource: Resource[Sidecar], problems: Problems) -> None:
    """Who is trusted must be somebody: an address block, a SPIFFE ID, a DNS name or a trust domain."""
    inbound = resource.spec.inbound
    if inbound is None:
        return
    _each(problems, resource, "spec.inbound.trustedProxies", inbound.trusted_proxies, _proxy)
    if inbound.tls is not None:
        _each(problems, resource, "spec.inbound.tls.trustDomains", inbound.tls.trust_domains, check_trust_domain)


def server(resource: Resource[Upstream], problems: Problems) -> None:
    """The same for who an upstream must be."""
    tls = resource.spec.tls
    if tls is None:
        return
    _each(problems, resource, "spec.tls.trustDomains", tls.trust_domains, check_trust_domain)
    if tls.identity is not None:
        try:
            _named(tls.identity)
        except ValueError as error:
            _note(problems, resource, "spec.tls.identity", str(error))


def tls(resource: Resource[Sidecar], problems: Problems) -> None:
    """What callers are spoken to with must be named."""
    inbound = resource.spec.inbound
    block = inbound.tls if inbound is not None else None
    if block is None or block.mode == "DISABLE" or block.spiffe or block.dev:
        return
    if block.cert is None or block.ca is None:
        missing = "cert and key" if block.cert is None else "ca"
        _note(problems, resource, "spec.inbound.tls", f"mode {block.mode} needs {missing}, or spiffe or dev")


def certificates(model: Model, problems: Problems) -> None:
    """The certificates in the files that are named must be good: they match, and chains and dates are in order."""
    inbound = model.sidecar.spec.inbound
    if inbound is not None and inbound.tls is not None and inbound.tls.mode != "DISABLE":
        _certificates(model.sidecar, "spec.inbound.tls", inbound.tls, True, problems)
    for upstream in model.upstreams.values():
        if upstream.spec.tls is not None:
            _certificates(upstream, "spec.tls", upstream.spec.tls, False, problems)


def _certificates(resource: Resource[Any], path: str, tls: Tls, server: bool, problems: Problems) -> None:
    named = {getattr(tls, key): f"{path}.{key}" for key in ("ca", "crl", "key", "cert")}
    if all(file is None or not _unreadable(file) for file in named):
        for problem in check(Files(tls.cert, tls.key, tls.ca, tls.crl), server):
            _note(problems, resource, named.get(problem.file, path), f"{problem.file}: {problem.message}")


def listeners(resource: Resource[Sidecar], problems: Problems) -> None:
    """No two listeners share an address."""
    taken: dict[str, str] = {}
    for name in _LISTENERS:
        block = getattr(resource.spec, name)
        if block is None or block.listen.endswith(":0"):
            continue
        other = next((other for address, other in taken.items() if _overlap(address, block.listen)), None)
        if other is not None:
            where = getattr(resource.spec, other).listen
            too = "too" if where == block.listen else f"and so on {block.listen} too"
            _note(problems, resource, f"spec.{name}.listen", f"{other} listens on {where} {too}")
        taken[block.listen] = name


def _overlap(one: str, other: str) -> bool:
    """Tells whether two addresses cannot be listened on at the same time; `[::]` takes IPv4 too."""
    if one == other or one.startswith("unix:") or other.startswith("unix:"):
        return one == other
    (host, port), (other_host, other_port) = split_host_port(one), split_host_port(other)
    if port != other_port:
        return False
    hosts = {host, other_host}
    return len(hosts) == 1 or "::" in hosts or ("0.0.0.0" in hosts and not any(":" in text for text in hosts))


def loops(
    sidecar: Resource[Sidecar], upstreams: Iterable[Resource[Upstream]], app_given: bool, problems: Problems
) -> Steps[None]:
    """Nothing is forwarded to one of the sidecar's own listeners, as far as an address tells; `app_given` by a flag."""
    own = _Own(sidecar.spec)
    inbound = sidecar.spec.inbound
    if inbound is not None and inbound.app is not None:
        url = urlsplit(inbound.app)
        back = own.listener(url.hostname or "", url.port or (443 if url.scheme == "https" else 80))
        if back and app_given:
            problems.append(Problem("--app", 0, f"{inbound.app} {back}"))
        elif back:
            _note(problems, sidecar, "spec.inbound.app", f"{inbound.app} {back}")
    for upstream in upstreams:
        named = {f"spec.endpoints[{number}]": entry for number, entry in enumerate(upstream.spec.endpoints)}
        if upstream.spec.dns is not None:
            named["spec.dns"] = upstream.spec.dns
        for path, entry in named.items():
            address = entry.address if isinstance(entry, Endpoint) else entry
            if back := own.listener(*split_host_port(address)):
                _note(problems, upstream, path, f"{address} {back}")
        yield


class _Own:
    """The sidecar's listeners, as destinations."""

    def __init__(self, spec: Sidecar) -> None:
        blocks = {name: getattr(spec, name) for name in _LISTENERS}
        listens = {name: block.listen for name, block in blocks.items() if block is not None}
        # Which addresses a machine has beside its loopback interface is known where the sidecar runs, not here.
        self._listening = {
            f"{name} listener ({listen})": Listening([split_host_port(listen)], lambda address: address.is_loopback)
            for name, listen in listens.items()
            if not listen.startswith("unix:")
        }

    def listener(self, host: str, port: int) -> str:
        """Says which listener certainly answers at an address, or nothing."""
        with suppress(ValueError):
            for name, listening in self._listening.items():
                if listening.accepts("127.0.0.1" if host == "localhost" else host, port):
                    return f"is the sidecar's own {name}: requests would come back to it"
        return ""


def _each(
    problems: Problems, resource: Resource[Any], path: str, values: Iterable[str], check: Callable[[str], object]
) -> None:
    for number, value in enumerate(values):
        try:
            check(value)
        except ValueError as error:
            _note(problems, resource, f"{path}[{number}]", str(error))


def _proxy(text: str) -> None:
    """Raises ValueError for what is neither a block of addresses nor an identity."""
    if not text.startswith("spiffe://") and (_ADDRESS.fullmatch(text) or "/" in text):
        network(text)
    else:
        peer_named(text)


def _named(text: str) -> None:
    """Raises ValueError for what is neither an identity nor an address."""
    if _ADDRESS.fullmatch(text):
        ip_address(text)
    else:
        peer_named(text)


def impossible(match: Match) -> str:
    """Returns why no request has the path that a match asks for, or nothing."""
    try:
        _path(match)
    except ValueError as error:
        return f"no request has such a path: {error}"
    return ""


def _path(match: Match) -> None:
    """Raises ValueError for a path that no normalised request path can match."""
    path = match.path
    if path.exact is not None and len(exact_key(path.exact).split(b"/")) != len(path.exact.split("/")):
        raise ValueError(f"{path.exact!r} is {exact_key(path.exact).decode()!r} once it is normalised")
    if path.prefix is not None:
        written, key = path.prefix.rstrip("/"), prefix_key(path.prefix)
        if len(key.split(b"/")) != len(written.split("/")):
            raise ValueError(f"{path.prefix!r} is {key.decode() or '/'!r} once it is normalised")


def _unreadable(path: str) -> str:
    """Returns why a file cannot be read, or nothing."""
    try:
        with open_regular(path) as file:
            file.read(1)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return ""


def _note(problems: Problems, resource: Resource[Any], path: str, message: str) -> None:
    problems.append(Problem(*resource.where(path), f"{path}: {message}"))


def _place(resource: Resource[Any]) -> str:
    return f"{resource.file}:{resource.line}"
