"""How long a request may wait for its response."""

import asyncio
from collections.abc import Awaitable
from typing import Annotated, ClassVar

from msgspec import Meta

from l7proxy.core.errors import ProxyError
from l7proxy.core.fields import Duration
from l7proxy.core.handler import Build, Filter, Handler
from l7proxy.core.message import Request, Response
from l7proxy.core.stream import Stream

Span = Annotated[Duration, Meta(gt=0)]


class Timeout(Filter, frozen=True):
    """Bounds the wait for a response head, the wait of one attempt, and a body that stands still.

    `request` runs from the end of the request to the head of the response, retries included (Envoy's route timeout).
    A request or attempt that is late gets 504 `upstream_timeout`; a body that stands still is cut.
    """

    name: ClassVar[str] = "timeout"

    request: Annotated[
        Span | None, Meta(description="From the end of the request to the head of its response, retries included.")
    ] = None
    per_try: Annotated[Span | None, Meta(description="The same for each attempt.")] = None
    idle: Annotated[Span | None, Meta(description="How long the response body may stand still.")] = None

    def wrap(self, inner: Handler, build: Build) -> Handler:
        total, per_try, idle, clock = self.request, self.per_try, self.idle, build.clock

        def handle(request: Request) -> Awaitable[Response]:
            if total is not None:
                request.timeout = total
                if type(request.body) is bytes:
                    deadline = clock() + total
                    if request.deadline is None or deadline < request.deadline:
                        request.deadline = deadline
            if per_try is not None:
                request.per_try = per_try
            return inner(request)

        if idle is None:
            return handle
        still = idle

        async def handle_and_watch(request: Request) -> Response:
            response = await handle(request)
            if isinstance(response.body, Stream) and request.upgrade is None:
                watch_idle(response, response.body, still)
            return response

        return handle_and_watch


def watch_idle(response: Response, body: Stream, seconds: float) -> None:
    """Fails `body` when no byte arrives for `seconds` while its reader keeps up with it."""
    loop = asyncio.get_running_loop()
    before = body.total
    timer: asyncio.TimerHandle | None = None

    def look() -> None:
        nonlocal before, timer
        # Bytes that wait for a slow reader are not the upstream's fault.
        if body.total == before and not body.size:
            body.close(ProxyError("upstream_timeout", "the response body stood still"))
            return
        before = body.total
        timer = loop.call_later(seconds, look)

    def stop(error: BaseException | None) -> None:
        if timer is not None:
            timer.cancel()

    timer = loop.call_later(seconds, look)
    response.then(stop)
