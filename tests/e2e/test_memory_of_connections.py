"""Connections that have ended cost nothing, however long their timeouts would have run."""

import subprocess

import pytest

from tests.conftest import StartSidecar
from tests.support.net import Address
from tests.support.sidecar import Sidecar, route

MIB = 1 << 20


def connect(proxy: Sidecar, times: int) -> None:
    """Opens and closes that many connections, with one request on each."""
    host, port = proxy.inbound
    command = ["h2load", "--h1", "-c100", "-n100", f"http://{host}:{port}/"]
    for _ in range(times // 100):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        assert "100 2xx" in done.stdout


@pytest.mark.needs("h2load")
def test_connections_that_have_ended_leave_no_memory(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(route("direct", directResponse={"status": 200, "body": "ok"}), app=uvicorn_app)
    connect(proxy, 3000)
    before = proxy.process.rss
    connect(proxy, 10_000)
    assert proxy.process.rss - before < 4 * MIB
