"""One rule of an HTTPRoute or GRPCRoute, read: its matches, filters and timeouts as a Route has them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from msgspec import structs

from l7proxy.config.checks import impossible
from l7proxy.config.gateway_checks import FILTERS, note
from l7proxy.config.gateway_model import (
    CORE,
    LABEL,
    FieldMatch,
    GRPCRouteMatch,
    HeaderField,
    HeaderModifier,
    HTTPRouteMatch,
    HTTPRouteRule,
    PathModifier,
    Rule,
    Timeouts,
)
from l7proxy.config.model import CallMatch, Match, PathMatch, Redirect, Resource, Rewrite, Route, TextMatch
from l7proxy.config.scalars import listed
from l7proxy.core.errors import Problem
from l7proxy.core.fields import FORMATS, duration
from l7proxy.core.handler import Filter
from l7proxy.filters.authorizer import check_header
from l7proxy.filters.headers import Edit, Headers
from l7proxy.filters.timeout import Timeout

_GRPC_FILTERS = ("RequestHeaderModifier", "ResponseHeaderModifier")
_HTTP_FILTERS = (*_GRPC_FILTERS, "RequestRedirect", "URLRewrite")
_PATHS: dict[str, Literal["exact", "prefix", "regex"]] = {
    "Exact": "exact",
    "PathPrefix": "prefix",
    "RegularExpression": "regex",
}
_PORTS = {"http": 80, "https": 443}
_GRPC = TextMatch(regex=r"application/grpc([+;].*)?")


class RuleReader:
    """Reads one rule of a valid document; `places` maps the places of the Route to those that they come from."""

    def __init__(self, resource: Resource[Any], path: str, rule: Rule, problems: list[Problem]) -> None:
        self.places = {"spec": path}
        self._resource = resource
        self._path = path
        self._rule = rule
        self._problems = problems

    def route(self) -> Route:
        """Returns a Route without direction, hosts and upstreams; it says nothing where there are problems."""
        rule, found = self._rule, self._filters()
        if rule.session_persistence is not None:
            self._wrong(f"{self._path}.sessionPersistence", "is not supported")
        if isinstance(rule, HTTPRouteRule) and rule.retry is not None:
            self._wrong(f"{self._path}.retry", "is not supported: the retry policy of a Route is")
        self._backends("request_redirect" in found)
        matches = tuple(self._matches())
        redirect, rewrite = found.get("request_redirect"), found.get("url_rewrite")
        policies: list[Filter] = []
        request, response = (self._edit(found, f"{side}_header_modifier") for side in ("request", "response"))
        if Edit() != request or Edit() != response:
            policies.append(Headers(request, response))
        if isinstance(rule, HTTPRouteRule) and rule.timeouts != Timeouts():
            policies += self._timeout(rule.timeouts)
        spec = Route(matches=matches, policies=tuple(policies))
        if redirect:
            there, where = redirect
            self.places["spec.redirect"] = where
            port = there.port or _PORTS.get(there.scheme)
            path = self._moved(there.path, where)
            return structs.replace(
                spec, redirect=Redirect(there.status_code, there.scheme, there.hostname, port, **path)
            )
        if rewrite:
            there, where = rewrite
            self.places["spec.rewrite"] = where
            path = self._moved(there.path, where)
            return structs.replace(spec, rewrite=Rewrite(host=there.hostname, **path))
        return spec

    def _backends(self, redirects: bool) -> None:
        refs, path = self._rule.backend_refs, f"{self._path}.backendRefs"
        if not redirects and not refs:
            self._wrong(self._path, "there is no backendRef: every request would be answered 500")
        if refs and not any(ref.weight for ref in refs):
            self._wrong(path, "all weights are 0: every request would be answered 500")
        for number, ref in enumerate(refs):
            where = f"{path}[{number}]"
            if ref.kind != "Service" or ref.group not in CORE:
                self._wrong(where, f"only a Service can be sent requests, not a {ref.kind}")
            elif not LABEL.fullmatch(ref.name):
                self._wrong(f"{where}.name", f"{ref.name!r} is not the name of a Service")
            if ref.filters:
                self._wrong(f"{where}.filters", "filters of one backend are not supported: those of the rule are")

    def _matches(self) -> Iterator[Match]:
        matches: Sequence[HTTPRouteMatch | GRPCRouteMatch] = self._rule.matches or type(self._rule)().matches
        for number, match in enumerate(matches):
            where = self.places[f"spec.matches[{number}]"] = f"{self._path}.matches[{number}]"
            before = len(self._problems)
            found = self._http(match, where) if isinstance(match, HTTPRouteMatch) else self._grpc(match, where)
            if len(self._problems) == before and (why := impossible(found)):
                self._wrong(f"{where}.path", why)
            yield found

    def _http(self, match: HTTPRouteMatch, where: str) -> Match:
        kind = _PATHS[match.path.type]
        text = self._text("pathregex" if kind == "regex" else "path", match.path.value, f"{where}.path.value")
        if match.method == "CONNECT":
            self._wrong(f"{where}.method", "CONNECT opens a tunnel, which takes a Route with connect: true")
        return Match(
            PathMatch(**{kind: text}),
            (match.method,) if match.method is not None else (),
            self._fields(match.headers, f"{where}.headers", True),
            self._fields(match.query_params, f"{where}.queryParams", False),
        )

    def _grpc(self, match: GRPCRouteMatch, where: str) -> Match:
        """A call is a POST to /SERVICE/METHOD. https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md"""
        path = PathMatch(prefix="/")
        called, at = match.method, f"{where}.method"
        if called is not None and called.type == "RegularExpression":
            service = self._text("pathregex", called.service or "[^/]+", f"{at}.service")
            method = self._text("pathregex", called.method or "[^/]+", f"{at}.method")
            path = CallMatch(regex=f"/({service})/({method})", service=len(called.service), method=len(called.method))
        elif called is not None:
            if called.service and called.method:
                path = PathMatch(exact=f"/{called.service}/{called.method}")
            elif called.service:
                path = PathMatch(prefix=f"/{called.service}")
            else:
                path = CallMatch(regex=f"/[^/]+/{called.method}", method=len(called.method))
        headers = self._fields(match.headers, f"{where}.headers", True)
        if headers.setdefault("content-type", _GRPC) is not _GRPC:
            self._wrong(f"{where}.headers", "content-type is matched already: by it gRPC calls are known")
        return Match(path, ("POST",), headers)

    def _fields(self, fields: Sequence[FieldMatch], path: str, headers: bool) -> dict[str, str | TextMatch]:
        found: dict[str, str | TextMatch] = {}
        for number, field in enumerate(fields):
            where = f"{path}[{number}]"
            name, value = field.name, field.value
            if headers:
                name = name.lower()
                self._checked(check_header, name, f"{where}.name")
            # HTTPHeaderMatch: subsequent entries with an equivalent header name MUST be ignored.
            if name in found:
                continue
            if field.type == "RegularExpression":
                found[name] = TextMatch(regex=self._text("regex", value, f"{where}.value"))
            else:
                found[name] = self._text("value", value, f"{where}.value") if headers else value
        return found

    def _filters(self) -> dict[str, tuple[Any, str]]:
        """Returns the block of each filter and where it stands."""
        known = _HTTP_FILTERS if isinstance(self._rule, HTTPRouteRule) else _GRPC_FILTERS
        found: dict[str, tuple[Any, str]] = {}
        for number, entry in enumerate(self._rule.filters):
            where = f"{self._path}.filters[{number}]"
            if entry.type in known:
                name = FILTERS[entry.type]
                found[name] = getattr(entry, name), where
            else:
                self._wrong(f"{where}.type", f"{entry.type!r} is not supported: only {listed(known)} are")
        return found

    def _edit(self, found: dict[str, tuple[Any, str]], name: str) -> Edit:
        modifier, where = found.get(name, (HeaderModifier(), ""))
        edit = Edit(_firsts(modifier.set), _firsts(modifier.add), tuple(name.lower() for name in modifier.remove))
        if where:
            self.places.setdefault("spec.policies.headers", where)
            self.places[f"spec.policies.headers.{name.partition('_')[0]}"] = where
        return edit if self._checked(Headers, edit, where) is not None else Edit()

    def _timeout(self, timeouts: Timeouts) -> Iterator[Timeout]:
        where = f"{self._path}.timeouts"
        request, attempt = (
            duration(text) or None if text is not None else None
            for text in (timeouts.request, timeouts.backend_request)
        )
        self.places["spec.policies.timeout"] = where
        self.places["spec.policies.timeout.request"] = f"{where}.request"
        self.places["spec.policies.timeout.perTry"] = f"{where}.backendRequest"
        if request is not None or attempt is not None:
            yield Timeout(request, attempt)

    def _moved(self, modifier: PathModifier | None, where: str) -> dict[str, str]:
        """Returns the key of a Rewrite or Redirect that a path modifier stands for."""
        if modifier is None:
            return {}
        if modifier.replace_full_path is not None:
            return {"path": modifier.replace_full_path}
        return {"prefix": self._text("path", modifier.replace_prefix_match or "/", where)}

    def _text(self, kind: str, text: str, path: str) -> str:
        """Returns a text as a format of Routes reads it."""
        return str(self._checked(FORMATS[kind].parse, text, path) or text)

    def _checked(self, check: Callable[[Any], Any], value: Any, path: str) -> Any:
        try:
            return check(value)
        except ValueError as error:
            return self._wrong(path, str(error))

    def _wrong(self, path: str, message: str) -> None:
        note(self._problems, self._resource, path, message)


def _firsts(fields: Iterable[HeaderField]) -> dict[str, str]:
    """HTTPHeader: the first entry counts, subsequent entries with an equivalent header name MUST be ignored."""
    found: dict[str, str] = {}
    for field in fields:
        found.setdefault(field.name.lower(), field.value)
    return found
