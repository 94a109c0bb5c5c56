"""What the Gateway API itself refuses in an HTTPRoute or GRPCRoute, whichever parents the document has.

The rules are those of its custom resource definitions (apis/v1: httproute_types.go, grpcroute_types.go and
shared_types.go): a cluster never holds what is found here, a file may. What is valid but cannot be done by a sidecar,
`gateway.py` and `gateway_rules.py` refuse for the documents of our Services.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from l7proxy.config.gateway_model import (
    CORE,
    LABEL,
    PATH,
    BackendObject,
    CommonRoute,
    FieldMatch,
    GRPCMethodMatch,
    GRPCRouteMatch,
    HeaderModifier,
    HTTPPathMatch,
    HTTPRouteMatch,
    HTTPRouteRule,
    ParentRef,
    PathModifier,
    RouteFilter,
    Rule,
)
from l7proxy.config.model import Resource
from l7proxy.core.errors import Problem
from l7proxy.core.fields import FORMATS, duration

FILTERS = {
    "RequestHeaderModifier": "request_header_modifier",
    "ResponseHeaderModifier": "response_header_modifier",
    "RequestRedirect": "request_redirect",
    "URLRewrite": "url_rewrite",
    "RequestMirror": "request_mirror",
    "CORS": "cors",
    "ExternalAuth": "external_auth",
    "ExtensionRef": "extension_ref",
}
"""The key that each type of filter has."""
_ONCE = ("RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite", "CORS")
_PATH = re.compile(PATH)
_NOT_WITHIN = ("//", "/./", "/../", "%2f", "%2F")
_NOT_AT_END = ("/.", "/..")
_GRPC_NAMES = {
    "service": re.compile(r"\.?[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"),
    "method": re.compile(r"[A-Za-z_][A-Za-z0-9_]*"),
}


def note(problems: list[Problem], resource: Resource[Any], path: str, message: str) -> None:
    """Adds a problem with the place of `path`."""
    problems.append(Problem(*resource.where(path), f"{path}: {message}"))


def rules_of(resource: Resource[CommonRoute]) -> Sequence[Rule]:
    """Returns the rules of a document of either kind."""
    rules: Sequence[Rule] = resource.spec.rules  # type: ignore[attr-defined]
    return rules


def valid(resource: Resource[CommonRoute], problems: list[Problem]) -> bool:
    """Tells whether the Gateway API accepts a document; adds to `problems` why it does not."""
    before = len(problems)
    checks = _Checks(resource, problems)
    if resource.namespace and not LABEL.fullmatch(resource.namespace):
        checks.wrong("metadata.namespace", f"{resource.namespace!r} is not the name of a namespace")
    checks.parents(resource.spec.parent_refs)
    names: dict[str, int] = {}
    for number, rule in enumerate(rules_of(resource)):
        where = f"spec.rules[{number}]"
        if rule.name and names.setdefault(rule.name, number) != number:
            checks.wrong(f"{where}.name", f"rules[{names[rule.name]}] has the name {rule.name!r} already")
        checks.rule(rule, where)
    return len(problems) == before


class _Checks:
    def __init__(self, resource: Resource[Any], problems: list[Problem]) -> None:
        self._resource = resource
        self._problems = problems

    def wrong(self, path: str, message: str) -> None:
        note(self._problems, self._resource, path, message)

    def parents(self, refs: Sequence[ParentRef]) -> None:
        """Parents are distinct: where several are one object, all name its sections or ports, each another."""
        seen: dict[Any, list[ParentRef]] = {}
        for number, ref in enumerate(refs):
            others = seen.setdefault((ref.group, ref.kind, ref.namespace, ref.name), [])
            for other in others:
                same = (ref.section_name, ref.port) == (other.section_name, other.port)
                if same or (not ref.section_name, ref.port is None) != (not other.section_name, other.port is None):
                    self.wrong(f"spec.parentRefs[{number}]", f"{ref.kind} {ref.name!r} is a parent already")
                    break
            others.append(ref)

    def rule(self, rule: Rule, where: str) -> None:
        matches: Sequence[HTTPRouteMatch | GRPCRouteMatch] = rule.matches
        for number, match in enumerate(matches):
            at = f"{where}.matches[{number}]"
            if isinstance(match, GRPCRouteMatch):
                self._method(match.method, f"{at}.method")
            else:
                self._path(match.path, f"{at}.path.value")
                self._fields(match.query_params, f"{at}.queryParams")
            self._fields(match.headers, f"{at}.headers")
        self._filters(rule.filters, rule, f"{where}.filters")
        for number, backend in enumerate(rule.backend_refs):
            at = f"{where}.backendRefs[{number}]"
            self._backend(backend, at)
            self._filters(backend.filters, rule, f"{at}.filters")
        if rule.backend_refs and any(entry.type == "RequestRedirect" for entry in rule.filters):
            self.wrong(f"{where}.backendRefs", "a redirect leaves nothing to send there")
        if isinstance(rule, HTTPRouteRule):
            request, attempt = rule.timeouts.request, rule.timeouts.backend_request
            # Zero is no bound.
            if request is not None and attempt is not None and 0 < duration(request) < duration(attempt):
                message = "an attempt cannot take longer than the whole request"
                self.wrong(f"{where}.timeouts.backendRequest", message)

    def _path(self, match: HTTPPathMatch, where: str) -> None:
        text = match.value
        if match.type == "RegularExpression":
            return
        if not text.startswith("/"):
            self.wrong(where, f"{text!r} is not a path: it starts with /")
        elif found := [part for part in _NOT_WITHIN if part in text]:
            self.wrong(where, f"{text!r}: a path cannot contain {found[0]!r}")
        elif found := [part for part in _NOT_AT_END if text.endswith(part)]:
            self.wrong(where, f"{text!r}: a path cannot end with {found[0]!r}")
        elif not _PATH.fullmatch(text):
            self.wrong(where, f"{text!r} has characters that are written as %XX in a path")

    def _method(self, match: GRPCMethodMatch | None, where: str) -> None:
        if match is None:
            return
        if not (match.service or match.method):
            self.wrong(where, "names neither a service nor a method")
        for key, pattern in _GRPC_NAMES.items():
            text = getattr(match, key)
            if match.type == "Exact" and text and not pattern.fullmatch(text):
                self.wrong(f"{where}.{key}", f"{text!r} is not the name of a gRPC {key}")

    def _fields(self, fields: Sequence[FieldMatch], where: str) -> None:
        """A list of conditions is a map by name as it is spelled; of other spellings the first counts."""
        seen = set()
        for number, field in enumerate(fields):
            at = f"{where}[{number}].name"
            self._name(field.name, at)
            if field.name in seen:
                self.wrong(at, f"there is a condition on {field.name!r} already")
            seen.add(field.name)

    def _filters(self, filters: Sequence[RouteFilter], rule: Rule, where: str) -> None:
        seen: dict[str, str] = {}
        for number, entry in enumerate(filters):
            at = f"{where}[{number}]"
            key = FILTERS.get(entry.type)
            given = [name for name in RouteFilter.__struct_fields__[1:] if getattr(entry, name) is not None]
            if given != ([key] if key is not None else []):
                self.wrong(at, f"{entry.type} has the one key of its name beside type")
                continue
            if entry.type in seen and entry.type in _ONCE:
                self.wrong(at, f"there is a {entry.type} already")
            seen.setdefault(entry.type, at)
            for modifier, name in (
                (entry.request_header_modifier, "requestHeaderModifier"),
                (entry.response_header_modifier, "responseHeaderModifier"),
            ):
                if modifier is not None:
                    self._modifier(modifier, f"{at}.{name}")
            for moved in (entry.request_redirect, entry.url_rewrite):
                if moved is not None and moved.path is not None:
                    self._moved(moved.path, rule, at)
            if entry.external_auth is not None:
                self._backend(entry.external_auth.backend_ref, f"{at}.externalAuth.backendRef")
        if "RequestRedirect" in seen and "URLRewrite" in seen:
            self.wrong(seen["URLRewrite"], "a redirect leaves nothing to rewrite")

    def _modifier(self, modifier: HeaderModifier, where: str) -> None:
        """One name has one action. In `set` and `add` the later of two spellings is ignored, not refused."""
        actions: dict[str, str] = {}
        lists: tuple[tuple[str, Iterable[str]], ...] = (
            ("set", [field.name for field in modifier.set]),
            ("add", [field.name for field in modifier.add]),
            ("remove", modifier.remove),
        )
        for action, names in lists:
            spelled = set()
            for number, name in enumerate(names):
                at = f"{where}.{action}[{number}]"
                self._name(name, at)
                key = name if action != "remove" else name.lower()
                if key in spelled or actions.setdefault(name.lower(), action) != action:
                    self.wrong(at, f"there is more than one edit of {name.lower()!r}")
                spelled.add(key)

    def _moved(self, modifier: PathModifier, rule: Rule, where: str) -> None:
        full, prefix = modifier.replace_full_path is not None, modifier.replace_prefix_match is not None
        if (full, prefix) != (modifier.type == "ReplaceFullPath", modifier.type == "ReplacePrefixMatch"):
            self.wrong(where, f"{modifier.type} has the one key of its name beside type")
        elif prefix:
            paths = [match.path.type for match in rule.matches if not isinstance(match, GRPCRouteMatch)]
            if paths != ["PathPrefix"]:
                self.wrong(where, "ReplacePrefixMatch takes exactly one match, of type PathPrefix")

    def _backend(self, ref: BackendObject, where: str) -> None:
        if ref.kind == "Service" and ref.group in CORE and ref.port is None:
            self.wrong(where, "a Service is called at a port: key 'port' is missing")

    def _name(self, name: str, where: str) -> None:
        try:
            FORMATS["header"].parse(name)
        except ValueError as error:
            self.wrong(where, str(error))
