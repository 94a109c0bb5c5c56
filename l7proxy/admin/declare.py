"""Endpoints as declarations: what is served, what a query may hold and what the OpenAPI document says are one thing."""

import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct, structs
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from l7proxy.core.expanded import encoded

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = "application/json"
OK = MappingProxyType({200: "The answer."})

_BOUND = re.compile(r"Expected `\w+` ([<>]=?) (\S+)")
_BOUNDS = {"<=": "at most", ">=": "at least", "<": "less than", ">": "more than"}
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class Refused(Exception):
    """A question that gets no answer: with which status, and why."""

    def __init__(self, status: int, why: str) -> None:
        self.status = status
        self.why = why


class Endpoint(Struct, frozen=True):
    """One method of one path; made by `get` and `post`.

    The fields of `query` are the parameters; those that may be given more than once are tuples. `content` is the type
    of what is answered, by media type, several where each line is of one of them; `answers` says with which statuses,
    and `refusals` with which others it may refuse beside those of every endpoint.
    """

    method: Literal["GET", "POST"]
    path: str
    answer: Callable[..., Awaitable[Any]]
    summary: str
    query: type[Struct] | None
    content: Mapping[str, Any]
    answers: Mapping[int, str] = OK
    refusals: Mapping[int, str] = {}

    @property
    def minds(self) -> bool:
        """Whether a query may be refused; probes and scrapers may add one to what answers plain text."""
        return self.query is not None or JSON in self.content


def get(path: str, answer: Callable[..., Awaitable[Any]], **more: Any) -> Endpoint:
    """Declares what can be asked for; see `declared`."""
    return declared("GET", path, answer, **more)


def post(path: str, answer: Callable[..., Awaitable[Any]], **more: Any) -> Endpoint:
    """Declares what changes something; see `declared`."""
    return declared("POST", path, answer, **more)


def declared(
    method: Literal["GET", "POST"],
    path: str,
    answer: Callable[..., Awaitable[Any]],
    content: Mapping[str, Any] | None = None,
    **more: Any,
) -> Endpoint:
    """Returns the endpoint that an asynchronous function is.

    Its docstring is the summary. It takes the request, and a `query` where it has parameters, whose annotation is their
    type. What it returns is written as JSON, and is of the type that it says; or it returns a Response of `content`.
    """
    hints = get_type_hints(answer, include_extras=True)
    content = content or {JSON: hints["return"]}
    return Endpoint(method, path, answer, answer.__doc__ or "", hints.get("query"), content, **more)


def application(endpoints: Sequence[Endpoint]) -> App:
    """Returns what serves the endpoints; any other path is 404, any other method 405."""
    paths: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    routes = [Route(path, _server(methods), methods=list(methods)) for path, methods in paths.items()]

    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return as_json({"error": error.detail}, error.status_code, error.headers)

    app = Starlette(routes=routes, exception_handlers={HTTPException: refuse})
    app.router.redirect_slashes = False
    return cast(App, app)


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Returns an answer that people can read too."""
    text = msgspec.json.format(msgspec.json.encode(value, enc_hook=encoded), indent=2)
    return Response(text + b"\n", status, headers, media_type=JSON)


def parameters(query: type[Struct] | None) -> dict[str, structs.FieldInfo]:
    """Returns the parameters of a query by name."""
    return {field.encode_name: field for field in structs.fields(query)} if query is not None else {}


def repeatable(field: structs.FieldInfo) -> bool:
    """Says whether a parameter may be given more than once."""
    return get_origin(_kind(field)) is tuple


def _server(methods: Mapping[str, Endpoint]) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        endpoint = methods["GET" if request.method == "HEAD" else request.method]
        try:
            if endpoint.query is not None:
                result = await endpoint.answer(request, query=_read(endpoint.query, request))
            else:
                if endpoint.minds and request.query_params:
                    raise Refused(400, f"{request.method} {endpoint.path} takes no parameters")
                result = await endpoint.answer(request)
        except Refused as error:
            return as_json({"error": error.why}, error.status)
        return result if isinstance(result, Response) else as_json(result)

    return serve


def _read(query: type[Struct], request: Request) -> Any:
    """Returns what a query asks for; raises Refused that says what is wrong with it."""
    fields = parameters(query)
    texts: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name not in fields:
            raise Refused(400, f"unknown parameter {name!r}; there are {', '.join(fields)}")
        texts[name] = (*texts.get(name, ()), text) if repeatable(fields[name]) else text
    for name, field in fields.items():
        if field.required and name not in texts:
            raise Refused(400, f"the parameter {name} is missing")
    return query(**{fields[name].name: _convert(name, fields[name], text) for name, text in texts.items()})


def _convert(name: str, field: structs.FieldInfo, text: Any) -> Any:
    try:
        return msgspec.convert(text, field.type, strict=False)
    except msgspec.ValidationError as error:
        kind = _kind(field)
        kind = get_args(kind)[0] if get_origin(kind) is tuple else kind
        if get_origin(kind) is Literal:
            raise Refused(400, f"{name} must be one of {', '.join(get_args(kind))}") from None
        raise Refused(400, f"{name} must be {_meant(field, kind, str(error))}") from None


def _meant(field: structs.FieldInfo, kind: Any, told: str) -> str:
    """Returns in words what a value has to be that msgspec refuses."""
    if bound := _BOUND.match(told):
        return f"{_BOUNDS[bound[1]]} {float(bound[2]):g}"
    if "matching regex" in told:
        return f"like {' or '.join(get_args(field.type)[1].examples[0])}"
    return _TYPES[kind]


def _kind(field: structs.FieldInfo) -> Any:
    return get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type
