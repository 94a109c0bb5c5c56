"""Fixtures that start real parts, and the rule that nothing is skipped unseen."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.net import Address, accepts, free_address
from tests.support.nginx import Nginx
from tests.support.process import Process
from tests.support.server import Script, Server
from tests.support.servers import program
from tests.support.sidecar import Document, Sidecar

StartSidecar = Callable[..., Sidecar]
StartServer = Callable[..., Server]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(program, ...): skipped where one of these programs is not installed")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if program(name) is None:
                pytest.skip(f"{name} is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Where CI=true, a test that is skipped has failed: a machine of ours has every part."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped where CI=true allows no skip: {report.longrepr}"
    return report


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[StartSidecar]:
    """Starts sidecars: `sidecar(*documents, app=address, **spec)`; each must end with a quiet stderr."""
    running: list[Sidecar] = []

    def start(*documents: Document, **options: Any) -> Sidecar:
        options.setdefault("name", f"sidecar{len(running)}" if running else "sidecar")
        started = Sidecar(tmp_path, *documents, **options)
        running.append(started)
        return started

    yield start
    _stop_all(running)


@pytest.fixture(scope="module")
def shared_sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartSidecar]:
    """As `sidecar`, for sidecars that a whole module shares."""
    running: list[Sidecar] = []

    def start(*documents: Document, **options: Any) -> Sidecar:
        started = Sidecar(tmp_path_factory.mktemp("sidecar"), *documents, **options)
        running.append(started)
        return started

    yield start
    _stop_all(running)


@pytest.fixture
def serve() -> Iterator[StartServer]:
    """Starts scripted servers: `serve(script)`."""
    running: list[Server] = []

    def start(script: Script | None = None, address: Address | None = None) -> Server:
        server = Server(script, address)
        running.append(server)
        return server

    yield start
    for server in running:
        server.close()


@pytest.fixture(scope="session")
def uvicorn_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """The address of a uvicorn process that serves `tests.support.apps:app`."""
    yield from _uvicorn(tmp_path_factory, "tests.support.apps:app")


@pytest.fixture(scope="session")
def starlette_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """The address of a uvicorn process that serves `tests.support.routed:app`."""
    yield from _uvicorn(tmp_path_factory, "tests.support.routed:app")


def _uvicorn(tmp_path_factory: pytest.TempPathFactory, app: str) -> Iterator[Address]:
    address = free_address()
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(address[1])]
    # A request whose client has gone, to `/slow/20000` for one, would keep uvicorn from ending.
    options = ["--log-level", "warning", "--timeout-keep-alive", "30", "--timeout-graceful-shutdown", "1"]
    root = str(Path(__file__).parents[1])
    process = Process("uvicorn", command + options, tmp_path_factory.mktemp("uvicorn"), {"PYTHONPATH": root})
    process.wait_until(lambda: accepts(address))
    yield address
    process.stop()


@pytest.fixture(scope="session")
def h2_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """The address of a Hypercorn process, whose HTTP/2 is not ours: it serves `tests.h2.apps:app` in plain text."""
    address = free_address()
    folder = tmp_path_factory.mktemp("hypercorn")
    settings = folder / "hypercorn.toml"
    # At its limit of requests Hypercorn sends a GOAWAY that names requests as taken which it then leaves unanswered.
    settings.write_text(f'bind = ["{address[0]}:{address[1]}"]\nkeep_alive_max_requests = 1000000\n')
    command = [sys.executable, "-m", "hypercorn", "tests.h2.apps:app", "--config", str(settings)]
    root = str(Path(__file__).parents[1])
    process = Process("hypercorn", command, folder, {"PYTHONPATH": root})
    process.wait_until(lambda: accepts(address))
    yield address
    process.stop()


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[..., Nginx]]:
    """Starts an nginx: `nginx(server="...")`; the test is to be marked `needs("nginx")`."""
    running: list[Nginx] = []

    def start(**options: Any) -> Nginx:
        running.append(Nginx(tmp_path, **options))
        return running[-1]

    yield start
    for server in running:
        server.stop()


def _stop_all(running: list[Sidecar]) -> None:
    errors = []
    for sidecar in running:
        try:
            sidecar.stop()
        except AssertionError as error:
            errors.append(error)
    if errors:
        raise errors[0]
