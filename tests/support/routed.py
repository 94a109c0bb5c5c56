"""A Starlette application for uvicorn, whose routes are patterns that end in `$`."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def admin(_: Request) -> PlainTextResponse:
    return PlainTextResponse("admin")


async def other(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"other {request.scope['raw_path'].decode()}")


app = Starlette(routes=[Route("/admin", admin), Route("/admin/{name}", admin), Route("/{rest:path}", other)])
