"""Under somebody else's ASGI server the peer comes from the ASGI TLS extension."""

import asyncio
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from l7proxy.asgi import create_app
from l7proxy.identity.peer import pem_of
from tests.conftest import StartServer
from tests.identity.pki import ORDERS, WEB, Authority

CONFIG = """\
apiVersion: l7proxy.io/v1
kind: Sidecar
metadata: {{name: orders}}
spec: {{inbound: {{app: "http://{app}"}}}}
---
apiVersion: l7proxy.io/v1
kind: Route
metadata: {{name: orders}}
spec: {{policies: {{authorization: {{allow: [{{identities: ["{allowed}"]}}]}}}}}}
"""


async def ask(config: str, tls: dict[str, Any] | None) -> int:
    app = create_app(config)
    sent: list[dict[str, Any]] = []
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "https",
        "path": "/", "raw_path": b"/", "query_string": b"", "headers": [(b"host", b"orders")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "extensions": {} if tls is None else {"tls": tls},
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), 10)
    return int(sent[0]["status"])


@pytest.mark.parametrize(("identity", "status"), [(WEB, 200), (ORDERS, 403), (None, 403), ("https://no/spiffe", 403)])
def test_the_extension_names_the_caller(
    identity: str | None, status: int, serve: StartServer, ca: Authority, tmp_path: Any
) -> None:
    host, port = serve().address
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(app=f"{host}:{port}", allowed=WEB))
    tls = None
    if identity is not None:
        certificate, _ = ca.sign(identity)
        tls = {"client_cert_chain": [pem_of(certificate.public_bytes(Encoding.DER))], "client_cert_name": "x"}
    assert asyncio.run(ask(str(config), tls)) == status
