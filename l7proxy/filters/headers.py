"""Header fields that are set, added or removed on the way."""

from collections.abc import Callable
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from l7proxy.core.fields import HeaderName, HeaderValue
from l7proxy.core.handler import Build, Filter, Handler
from l7proxy.core.headers import Headers as Fields
from l7proxy.core.headers import spellings
from l7proxy.core.message import Request, Response


class Edit(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What happens to header fields, in this order: remove, set, add."""

    set: Annotated[dict[HeaderName, HeaderValue], Meta(description="Fields that get this one value.")] = {}
    add: Annotated[dict[HeaderName, HeaderValue], Meta(description="Fields that get one more value.")] = {}
    remove: Annotated[tuple[HeaderName, ...], Meta(description="Fields that go.")] = ()


class Headers(Filter, frozen=True):
    """Edits the header fields of requests and responses (Gateway API's header modifiers).

    Host is changed by `rewrite`, what frames a message is the proxy's own business, and CDN-Loop is left as it is (RFC
    8586): `host`, `content-length`, `transfer-encoding`, `connection`, `upgrade` and `cdn-loop` cannot be edited.
    """

    name: ClassVar[str] = "headers"

    request: Annotated[Edit, Meta(description="Edits of requests.")] = Edit()
    response: Annotated[Edit, Meta(description="Edits of responses.")] = Edit()

    def __post_init__(self) -> None:
        fixed = {"host", "content-length", "transfer-encoding", "connection", "upgrade", "cdn-loop"}
        for edit in (self.request, self.response):
            for name in (*edit.set, *edit.add, *edit.remove):
                if name.lower() in fixed:
                    raise ValueError(f"{name!r} cannot be edited")

    @property
    def request_fields(self) -> tuple[str, ...]:
        edit = self.request
        return tuple(name.lower() for name in (*edit.remove, *edit.set, *edit.add))

    def wrap(self, inner: Handler, build: Build) -> Handler:
        on_request, on_response = _compile(self.request), _compile(self.response)

        async def handle(request: Request) -> Response:
            if on_request is not None:
                request.headers = on_request(request.headers)
            response = await inner(request)
            if on_response is not None:
                response.headers = on_response(response.headers)
            return response

        return handle


def _compile(edit: Edit) -> Callable[[Fields], Fields] | None:
    gone = frozenset(spelling for name in (*edit.remove, *edit.set) for spelling in spellings(name.lower().encode()))
    more = [
        (name.lower().encode(), value.encode("latin-1", "replace"))
        for pairs in (edit.set, edit.add)
        for name, value in pairs.items()
    ]
    if gone:
        return lambda headers: [pair for pair in headers if pair[0] not in gone] + more
    return (lambda headers: headers + more) if more else None
