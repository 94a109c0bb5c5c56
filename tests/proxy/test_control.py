"""How the updates of a source go live, and what becomes of those that cannot."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

from l7proxy.config.load import app_model
from l7proxy.config.model import Model
from l7proxy.config.overrides import Overrides
from l7proxy.core.stats import Stats
from l7proxy.proxy.control import follow
from l7proxy.telemetry.facade import Telemetry
from l7proxy.telemetry.log import Log


class Twice:
    """Yields two models, and keeps what it is told of them."""

    def __init__(self) -> None:
        self.models = [app_model(Overrides(app=f"http://127.0.0.1:{port}")) for port in (1, 2)]
        self.told: list[str] = []

    async def updates(self) -> AsyncIterator[Model]:
        for model in self.models:
            yield model

    def accept(self, version: str) -> None:
        self.told.append(f"accept {version}")

    def reject(self, version: str, error: Exception) -> None:
        self.told.append(f"reject {version}: {error}")


def test_an_update_that_fails_as_none_should_is_refused_and_the_next_one_taken(tmp_path: Path) -> None:
    source, stats = Twice(), Stats()
    log = Log(stats, str(tmp_path / "log"))
    first, second = source.models

    async def apply(model: Model) -> None:
        if model is first:
            raise ValueError("nobody thought of this")

    asyncio.run(follow(source, apply, Telemetry(stats, log), first.sidecar.spec))
    log.close(5)
    why = f"{first.sidecar.file}: internal error: ValueError: nobody thought of this"
    assert source.told == [f"reject {first.version}: {why}", f"accept {second.version}"]
    assert [json.loads(line)["message"] for line in (tmp_path / "log").read_text().splitlines()] == [why]
    assert stats.counter("l7proxy_config_rejected_total", "Configurations that were refused").value == 1
