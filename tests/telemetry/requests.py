"""Finished requests to count, log and trace."""

from typing import Any, NamedTuple

from l7proxy.core.message import Attempt, Request
from l7proxy.core.peer import Peer


class NamedRoute(NamedTuple):
    name: str


def finished(identity: str = "", route: str | None = "orders-read", **fields: Any) -> Request:
    """Returns a request as it is when its response has been sent; `fields` overlay its own."""
    request = Request(
        method=b"GET",
        scheme=b"http",
        authority=b"orders.example.com:8080",
        path=b"/v1/orders/17",
        query=b"",
        target=b"/v1/orders/17",
        headers=[(b"user-agent", b"test/1")],
        body=b"",
        peer=Peer(identity=identity),
        source="10.0.0.17",
        pattern="/v1/orders",
        upstream="app",
        endpoint="127.0.0.1:8080",
        attempt=1,
        t_start=100.0,
        t_sent=100.001,
        t_connected=100.0015,
        t_head=100.004,
    )
    request.route = None if route is None else NamedRoute(route)
    for name, value in fields.items():
        setattr(request, name, value)
    return request


def tried(endpoint: str, status: int, code: str, detail: str, reason: str) -> Attempt:
    """Returns an attempt at `app` that another followed."""
    return Attempt("app", endpoint, status, code, detail, reason, 100.001, 100.0015, 0.0, 100.002)
