"""An application that speaks HTTP/2 by prior knowledge: Hypercorn, whose HTTP/2 is not ours."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.net import Address, accepts, free_address
from tests.support.process import Process


@pytest.fixture(scope="session")
def h2_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """The address of a Hypercorn process that serves `tests.h2.apps:app` over HTTP/2 and HTTP/1.1 in plain text."""
    address = free_address()
    folder = tmp_path_factory.mktemp("hypercorn")
    settings = folder / "hypercorn.toml"
    # At its limit of requests Hypercorn sends a GOAWAY that names requests as taken which it then leaves unanswered.
    settings.write_text(f'bind = ["{address[0]}:{address[1]}"]\nkeep_alive_max_requests = 1000000\n')
    command = [sys.executable, "-m", "hypercorn", "tests.h2.apps:app", "--config", str(settings)]
    root = str(Path(__file__).parents[2])
    process = Process("hypercorn", command, folder, {"PYTHONPATH": root})
    process.wait_until(lambda: accepts(address))
    yield address
    process.stop()
