"""Timeouts under concurrent load, where a connection's next request begins before its last one has gone on."""

import subprocess

import pytest

from tests.conftest import StartSidecar
from tests.support.net import Address
from tests.support.sidecar import route


@pytest.mark.needs("h2load")
def test_an_answered_request_leaves_no_timer_to_the_next_on_its_connection(
    sidecar: StartSidecar, uvicorn_app: Address
) -> None:
    proxy = sidecar(route("main", policies={"timeout": {"request": "1500ms"}}), app=uvicorn_app)
    host, port = proxy.inbound
    command = ["h2load", "--h1", "-c16", "-D3", f"http://{host}:{port}/bytes/100"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert " 2xx, 0 3xx, 0 4xx, 0 5xx" in printed
    assert " 0 failed, 0 errored, 0 timeout" in printed
