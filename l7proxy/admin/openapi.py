"""The OpenAPI document (3.1) of the admin API, made of the declarations that it is served by."""

from collections.abc import Iterator, Sequence
from inspect import cleandoc
from typing import Any

import msgspec

from l7proxy import __version__
from l7proxy.admin.answers import Error
from l7proxy.admin.declare import JSON, Endpoint, parameters, repeatable

_ABOUT = "What operators ask of a running sidecar. What changes something is POST."
_ALWAYS = {421: "Host is not a name of this machine: a page in a browser may have been pointed here."}
_POST = {403: "It carries Origin, as what a web page sends does."}
_QUERY = {400: "The query makes no sense."}


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Returns the document that describes the endpoints."""
    writer = _Writer(endpoints)
    paths: dict[str, Any] = {}
    for endpoint in sorted(endpoints, key=lambda endpoint: endpoint.path):
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = writer.operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "l7proxy admin API", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": writer.components},
    }


class _Writer:
    """Knows the schema of every type that is declared."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        queries = [endpoint.query for endpoint in endpoints if endpoint.query is not None]
        kinds = [kind for endpoint in endpoints for kind in endpoint.content.values()]
        types = [Error, *(part for kind in kinds for part in _parts(kind)), *queries]
        template = "#/components/schemas/{name}"
        schemas, self.components = msgspec.json.schema_components(types, ref_template=template)
        for schema in self.components.values():
            schema["description"] = cleandoc(schema.get("description", ""))
        self._schemas = dict(zip(types, schemas, strict=True))
        self._queries = {query: self.components.pop(query.__name__) for query in dict.fromkeys(queries)}

    def operation(self, endpoint: Endpoint) -> dict[str, Any]:
        """Returns how one endpoint is asked, and what it answers."""
        content = {media: {"schema": self._schema(kind)} for media, kind in endpoint.content.items()}
        refusal = {JSON: {"schema": self._schemas[Error]}}
        refusals = {**_ALWAYS, **endpoint.refusals}
        if endpoint.method == "POST":
            refusals |= _POST
        if endpoint.minds:
            refusals |= _QUERY
        responses = {
            str(status): {"description": what, "content": content} for status, what in endpoint.answers.items()
        }
        responses |= {str(status): {"description": why, "content": refusal} for status, why in sorted(refusals.items())}
        return {
            "summary": endpoint.summary,
            "parameters": list(self._parameters(endpoint)),
            "responses": responses,
        }

    def _schema(self, kind: Any) -> dict[str, Any]:
        found = [self._schemas[part] for part in _parts(kind)]
        return found[0] if len(found) == 1 else {"description": "One line.", "anyOf": found}

    def _parameters(self, endpoint: Endpoint) -> Iterator[dict[str, Any]]:
        if endpoint.query is None:
            return
        written = self._queries[endpoint.query]
        for name, field in parameters(endpoint.query).items():
            schema = dict(written["properties"][name])
            yield {
                "name": name,
                "in": "query",
                "description": schema.pop("description", ""),
                "required": field.required,
                "schema": schema,
                **({"style": "form", "explode": True} if repeatable(field) else {}),
            }


def _parts(kind: Any) -> Sequence[Any]:
    return kind if isinstance(kind, tuple) else (kind,)
