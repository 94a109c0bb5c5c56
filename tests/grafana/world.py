"""Two sidecars in one mesh under every kind of traffic, and a count of what their clients saw."""

import collections
import threading
import time
from pathlib import Path

import grpc
import pytest

from tests.h2.grpc_service import Calls, GrpcServer, run
from tests.identity.pki import ORDERS, WEB, Authority, Pair, TlsClient, context
from tests.support.client import Client
from tests.support.net import Address, free_address, wait_for
from tests.support.server import OK, Connection, Server
from tests.support.sidecar import Document, Sidecar, route, upstream

BATCH = "spiffe://demo/ns/shop/sa/batch"
BAD = "apiVersion: l7proxy.io/v1\nkind: Route\nmetadata: {name: bad}\nspec: {hots: [a]}\n"


class World:
    """`web` calls `orders` by mTLS; `traffic` counts what was seen in `seen` by (route, status)."""

    def __init__(self, folder: Path, app: Address, collector: str) -> None:
        self.seen: collections.Counter[tuple[str, int]] = collections.Counter()
        self.by_caller: collections.Counter[str] = collections.Counter()
        self.grpc_seen: collections.Counter[str] = collections.Counter()
        self.refused = 0
        self.ca = Authority(folder)
        self.pairs: dict[str, Pair] = {
            name: self.ca.issue(name.rpartition("/")[2], name) for name in (ORDERS, WEB, BATCH)
        }
        self.flaky = Server(_every_other)
        self.held = Server(_holding)
        self.echo = GrpcServer()
        tracing = {"sampling": 1, "otlp": collector}
        self.documents = self._routes(app)
        self.orders = Sidecar(
            folder,
            *self.documents,
            app=app,
            name="orders",
            service={"name": "orders", "mesh": "demo"},
            inbound={"tls": self._tls(ORDERS)},
            tracing=tracing,
        )
        calls: list[Document] = [
            upstream("orders", self.orders.inbound, tls={**self._tls(WEB), "identity": ORDERS}),
            upstream("orders-h2", self.orders.inbound, tls={**self._tls(WEB), "identity": ORDERS}, protocol="http2"),
            route("to-orders", direction="outbound", hosts=["orders"], upstream="orders"),
            route("to-echo", direction="outbound", hosts=["echo"], upstream="orders-h2"),
        ]
        self.web = Sidecar(
            folder, *calls, app=app, name="web", service={"name": "web", "mesh": "demo"}, tracing=tracing
        )

    def close(self) -> None:
        for part in (self.web, self.orders):
            part.stop()
        for server in (self.flaky, self.held):
            server.close()
        self.echo.close()

    def traffic(self) -> None:
        """One round of everything that a panel shows."""
        for _ in range(5):
            self._get(WEB, "status", "/status/200", 200)
            self._get(WEB, "status", "/status/404", 404)
            self._get(BATCH, "private", "/private", 403)
            self._get(BATCH, "shadow", "/bytes/100", 200)
        for _ in range(3):
            self._get(WEB, "status", "/status/500", 500)
            self._get(WEB, "flaky", "/flaky", 200)
            self._get(WEB, "", "/nowhere", 404)
            self._get(BATCH, "away", "/away", 200)
        self._get(WEB, "slow", "/slow/600", 200)
        with Client(self.web.outbound) as client:
            for _ in range(10):
                self._count(WEB, "status", client.get("/status/200", "orders").status, 200)
        for _ in range(2):
            status = self._ask(BATCH, "/limited")
            self._count(BATCH, "limited", status, 429 if ("limited", 200) in self.seen else 200)
        self._overflow()
        run(self._grpc, self.web.outbound, ("grpc.default_authority", "echo"))
        self._refused()

    def reject_a_configuration(self) -> None:
        """Writes a mistake, waits until it is refused, and takes it back."""
        before = self.orders.metrics()("l7proxy_config_rejected_total")
        self.orders.configure(*self.documents, BAD)
        wait_for(lambda: self.orders.metrics()("l7proxy_config_rejected_total") > before, 10)
        self.orders.configure(*self.documents)

    def _routes(self, app: Address) -> list[Document]:
        no_batch = [{"name": "no-batch", "identities": [BATCH]}]
        later = [{"name": "later", "identities": [BATCH], "mode": "SHADOW"}]
        return [
            upstream("flaky", self.flaky.address),
            upstream("held", self.held.address, breakers={"requests": 1}),
            # The dead one comes first, so that it is tried.
            upstream("half", free_address(), app, balance="roundRobin", ejection={"failures": 1, "time": "300s"}),
            upstream("echo", self.echo.address, protocol="http2"),
            _route("status", "/status"),
            _route("slow", "/slow"),
            _route("private", "/private", policies={"authorization": {"deny": no_batch}}),
            _route("shadow", "/bytes", policies={"authorization": {"deny": later}}),
            _route("flaky", "/flaky", upstream="flaky", policies={"retry": {"attempts": 2, "on": ["503"]}}),
            _route("limited", "/limited", policies={"rateLimit": {"requests": 1, "per": "1h"}}),
            _route("away", "/away", upstream="half"),
            _route("held", "/held", upstream="held"),
            _route("grpc", "/test.Echo", upstream="echo"),
        ]

    def _tls(self, name: str) -> dict[str, str]:
        pair = self.pairs[name]
        return {"cert": str(pair.cert), "key": str(pair.key), "ca": str(self.ca.file)}

    def _ask(self, caller: str, path: str) -> int:
        with TlsClient(self.orders.inbound, context(self.ca, self.pairs[caller])) as client:
            return client.get(path, "orders").status

    def _get(self, caller: str, name: str, path: str, status: int) -> None:
        self._count(caller, name, self._ask(caller, path), status)

    def _count(self, caller: str, name: str, status: int, expected: int) -> None:
        assert status == expected, name
        self.seen[name, status] += 1
        self.by_caller[caller] += 1

    def _overflow(self) -> None:
        """Holds one request and sends another: the upstream takes one at a time."""
        before = len(self.held.requests)
        statuses: list[int] = []
        first = threading.Thread(target=lambda: statuses.append(self._ask(WEB, "/held")))
        first.start()
        self.held.wait_for_requests(before + 1)
        self._get(WEB, "held", "/held", 503)
        first.join(10)
        self._count(WEB, "held", statuses[0], 200)

    async def _grpc(self, calls: Calls) -> None:
        for _ in range(4):
            assert await calls.unary(b"hello") == b"hello"
            self.grpc_seen["OK"] += 1
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await calls.unary(b"fail")
        self.grpc_seen[error.value.code().name] += 1

    def _refused(self) -> None:
        """Callers without a certificate, and a request without a Host."""
        for _ in range(8):
            with pytest.raises(OSError), TlsClient(self.orders.inbound, context(self.ca)) as client:
                client.get("/status/200", "orders")
            self.refused += 1
        with TlsClient(self.orders.inbound, context(self.ca, self.pairs[WEB])) as client:
            assert client.request(b"GET / HTTP/1.1\r\n\r\n").status == 400
        self.seen["", 400] += 1


def _route(name: str, prefix: str, **spec: object) -> Document:
    return route(name, matches=[{"path": {"prefix": prefix}}], **spec)  # type: ignore[arg-type]


def _every_other(connection: Connection) -> None:
    """Answers 503 and 200 in turn."""
    while True:
        connection.read()
        busy = len(connection.server.requests) % 2
        connection.send(OK.replace(b"200 OK", b"503 Busy") if busy else OK)


def _holding(connection: Connection) -> None:
    """Answers after a while."""
    while True:
        connection.read()
        time.sleep(0.2)
        connection.send(OK)
