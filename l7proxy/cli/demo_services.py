"""The two services of `l7proxy demo`: plain HTTP, no dependency, and no idea that a mesh is there."""

import http.client
import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

AnyService = TypeVar("AnyService", bound="Service")

ORDERS = [{"id": number, "item": item} for number, item in enumerate(("tea", "honey", "bread"), 1)]


class Service(ThreadingHTTPServer):
    """A service on a free port of loopback; `answer` returns status and JSON for a path."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def answer(self, path: str) -> tuple[int, Any]:
        """Returns the status and the JSON value for a GET of `path`."""
        raise NotImplementedError

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that end early are everyday business here."""


class Orders(Service):
    """Knows the orders; every twentieth request finds it busy."""

    def __init__(self) -> None:
        super().__init__()
        self._count = itertools.count(1)

    def answer(self, path: str) -> tuple[int, Any]:
        return (503, {"error": "busy"}) if next(self._count) % 20 == 0 else (200, ORDERS)


class Web(Service):
    """Asks `orders` through the outbound side of its own sidecar, as any HTTP client with a proxy would."""

    def __init__(self, outbound: tuple[str, int]) -> None:
        super().__init__()
        self._outbound = outbound

    def answer(self, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(*self._outbound, timeout=5)
        try:
            asked = "/v1/admin" if path.startswith("/admin") else "/v1/orders"
            connection.request("GET", asked, headers={"host": "orders.demo"})
            answer = connection.getresponse()
            said = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return 502, {"error": str(error)}
        finally:
            connection.close()
        return answer.status, {"service": "web", "path": path, "orders": json.loads(said)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body leave in two writes: without this, the second waits for an acknowledgement.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        assert isinstance(self.server, Service)
        status, value = self.server.answer(self.path)
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The sidecar keeps the log."""


def start(service: AnyService) -> AnyService:
    """Serves on a thread of its own; returns the service."""
    threading.Thread(target=service.serve_forever, daemon=True).start()
    return service
