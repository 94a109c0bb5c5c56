"""A CA, the certificates of two workloads, and a sidecar that wants to see one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.identity.pki import ORDERS, WEB, Authority, Pair
from tests.support.server import Server
from tests.support.sidecar import Document, Sidecar

StartSecure = Callable[..., Sidecar]


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def web(ca: Authority) -> Pair:
    """The caller's certificate."""
    return ca.issue("web", WEB)


@pytest.fixture
def orders(ca: Authority) -> Pair:
    """The sidecar's certificate."""
    return ca.issue("orders", ORDERS)


@pytest.fixture
def app(serve: StartServer) -> Server:
    """The application behind the sidecar."""
    return serve()


@pytest.fixture
def secure(sidecar: StartSidecar, app: Server, ca: Authority, orders: Pair) -> StartSecure:
    """Starts a sidecar whose inbound listener speaks TLS; keywords are added to its `tls` block."""

    def start(*documents: Document, inbound: dict[str, object] | None = None, **tls: object) -> Sidecar:
        block = {"cert": str(orders.cert), "key": str(orders.key), "ca": str(ca.file), **tls}
        return sidecar(*documents, app=app.address, inbound={"tls": block, **(inbound or {})})

    return start
