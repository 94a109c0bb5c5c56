import asyncio
import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from l7proxy.config.files import Files
from l7proxy.config.model import Model
from l7proxy.core.errors import ConfigError
from tests.config.test_load import SIDECAR, route

INTERVAL = 0.02


@asynccontextmanager
async def watched(*paths: Path):
    """Loads the paths and yields (the source, a queue of its updates)."""
    source = Files([str(path) for path in paths], interval=INTERVAL)
    source.load()
    updates: asyncio.Queue[Model | ConfigError] = asyncio.Queue()

    async def follow() -> None:
        async for update in source.updates():
            updates.put_nowait(update)

    task = asyncio.create_task(follow())
    await asyncio.sleep(INTERVAL)
    try:
        yield source, updates
    finally:
        task.cancel()


async def names(updates: asyncio.Queue[Model | ConfigError]) -> list[str]:
    update = await asyncio.wait_for(updates.get(), 5)
    assert isinstance(update, Model), update
    return [found.name for found in update.routes]


async def error(updates: asyncio.Queue[Model | ConfigError]) -> str:
    update = await asyncio.wait_for(updates.get(), 5)
    assert isinstance(update, ConfigError), update
    return str(update)


def replace(file: Path, text: str) -> None:
    draft = file.with_name(".draft")
    draft.write_text(text)
    os.replace(draft, file)


def test_a_file_that_is_replaced_is_taken_up(tmp_path):
    async def go() -> None:
        file = tmp_path / "a.yaml"
        file.write_text(SIDECAR)
        async with watched(file) as (_, updates):
            replace(file, SIDECAR + route("r", "{hosts: [a]}"))
            assert await names(updates) == ["r"]
            assert updates.empty()

    asyncio.run(go())


def test_files_that_come_and_go_in_a_folder_are_taken_up(tmp_path):
    async def go() -> None:
        (tmp_path / "a.yaml").write_text(SIDECAR)
        async with watched(tmp_path) as (_, updates):
            (tmp_path / "b.yaml").write_text(route("r", "{hosts: [a]}"))
            assert await names(updates) == ["r"]
            (tmp_path / "b.yaml").unlink()
            assert await names(updates) == []

    asyncio.run(go())


def test_a_swapped_link_is_taken_up_as_kubelet_makes_it(tmp_path):
    def publish(version: str, text: str) -> None:
        (tmp_path / version).mkdir()
        (tmp_path / version / "a.yaml").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(version)
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")

    async def go() -> None:
        publish("..1", SIDECAR + route("r1", "{hosts: [a]}"))
        (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
        async with watched(tmp_path) as (_, updates):
            publish("..2", SIDECAR + route("r2", "{hosts: [a]}"))
            assert await names(updates) == ["r2"]

    asyncio.run(go())


def test_a_broken_file_is_told_once_and_the_repaired_one_is_taken_up(tmp_path):
    async def go() -> None:
        file = tmp_path / "a.yaml"
        file.write_text(SIDECAR)
        async with watched(file) as (_, updates):
            replace(file, SIDECAR + "\n--- [")
            assert "a.yaml:9: not valid YAML" in await error(updates)
            await asyncio.sleep(5 * INTERVAL)
            assert updates.empty()
            file.unlink()
            assert await error(updates) == f"{file}: cannot be read: No such file or directory"
            file.write_text(SIDECAR + route("r", "{hosts: [a]}"))
            assert await names(updates) == ["r"]

    asyncio.run(go())


def test_a_file_that_is_still_being_written_is_not_read(tmp_path):
    async def go() -> None:
        file = tmp_path / "a.yaml"
        file.write_text(SIDECAR)
        async with watched(file) as (_, updates):
            with file.open("w") as half:
                for line in (SIDECAR + route("r", "{hosts: [a]}")).splitlines(keepends=True):
                    half.write(line)
                    half.flush()
                    await asyncio.sleep(INTERVAL / 2)
            assert await names(updates) == ["r"]

    asyncio.run(go())


def test_a_missing_certificate_that_appears_is_enough(tmp_path):
    async def go() -> None:
        file = tmp_path / "a.yaml"
        file.write_text(SIDECAR)
        async with watched(file) as (_, updates):
            replace(file, SIDECAR.replace("{app:", "{tls: {mode: DISABLE, ca: ca.pem}, app:"))
            assert "ca.pem cannot be read" in await error(updates)
            (tmp_path / "ca.pem").write_text("x")
            assert await names(updates) == []

    asyncio.run(go())


def test_reload_takes_up_the_files_though_nothing_changed(tmp_path):
    async def go() -> None:
        file = tmp_path / "a.yaml"
        file.write_text(SIDECAR)
        async with watched(file) as (source, updates):
            source.reload()
            assert await names(updates) == []
            assert updates.empty()

    asyncio.run(go())


def test_a_change_between_the_first_load_and_the_first_look_is_not_lost(tmp_path):
    async def go() -> None:
        file = tmp_path / "a.yaml"
        file.write_text(SIDECAR)
        source = Files([str(file)], interval=INTERVAL)
        source.load()
        replace(file, SIDECAR + route("r", "{hosts: [a]}"))
        update = await asyncio.wait_for(anext(source.updates()), 5)
        assert isinstance(update, Model) and len(update.routes) == 1

    asyncio.run(go())


def test_the_first_load_raises_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError):
        Files([str(tmp_path / "nothing.yaml")]).load()
