"""A WSGI server of the standard library, which reads `X_User` as `X-User`, as CGI, WSGI and PHP do."""

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from tests.support.net import Address


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class WsgiServer:
    """Answers 200 on a thread of its own; `environs` are the variables of each request."""

    def __init__(self) -> None:
        self.environs: list[dict[str, Any]] = []
        self._server = make_server("127.0.0.1", 0, self._app, handler_class=_Quiet)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> "WsgiServer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> Address:
        return "127.0.0.1", self._server.server_port

    def _app(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.environs.append(environ)
        start("200 OK", [("content-length", "2")])
        return [b"ok"]
