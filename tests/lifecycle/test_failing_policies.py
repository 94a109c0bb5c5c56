"""A policy of another package that fails as it comes or goes never ends the following of the configuration."""

from pathlib import Path

import pytest

from tests.conftest import StartSidecar
from tests.support.net import wait_for
from tests.support.sidecar import Document, route

FRAGILE = """
from typing import ClassVar
from l7proxy.core.handler import Filter

class Fragile(Filter, frozen=True):
    '''Fails when it is told to.'''
    name: ClassVar[str] = 'fragile'
    when: str = ''

    def wrap(self, inner, build):
        if self.when == 'come':
            raise ZeroDivisionError('as it came')
        if self.when == 'go':
            build.close(lambda: 1 / 0)
        return inner
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """What a sidecar imports from, where the policy is installed."""
    package = tmp_path / "fragile"
    info = package / "fragile-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[l7proxy.filters]\nfragile = fragile:Fragile\n")
    (package / "fragile.py").write_text(FRAGILE)
    return f"{package}:{Path(__file__).parents[2]}"


@pytest.mark.parametrize("workers", [1, 2])
def test_the_configuration_is_followed_whatever_a_policy_does(workers: int, path: str, sidecar: StartSidecar) -> None:
    def answer(text: str, when: str = "") -> Document:
        policies = {"fragile": {"when": when}}
        return route("all", policies=policies, directResponse={"status": 200, "body": text})

    proxy = sidecar(answer("one", "go"), workers=workers, env={"PYTHONPATH": path})
    wait_for(lambda: proxy.metrics()("l7proxy_workers") == 2 or workers == 1, 20)
    proxy.configure(answer("never", "come"))
    wait_for(lambda: proxy.metrics()("l7proxy_config_rejected_total") == 1)
    wait_for(lambda: "ZeroDivisionError: as it came" in proxy.process.stderr)
    assert {proxy.get().body for _ in range(10)} == {b"one"}
    # This one takes the place of a policy that fails as it goes.
    proxy.reconfigure(answer("two"))
    proxy.reconfigure(answer("three"))
    assert {proxy.get().body for _ in range(10)} == {b"three"}
    wait_for(lambda: proxy.process.stderr.count("a policy failed as it was let go of") == workers)
    proxy.quiet = False
