"""The proxy's own log: JSON lines of a level, bounded in number."""

import json
from pathlib import Path
from typing import Any

import pytest

from l7proxy.core.stats import Stats
from l7proxy.telemetry.log import BURST, Level, Log


def lines(path: Path, log: Log) -> list[dict[str, Any]]:
    log.close(5)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_holds_the_event_and_its_fields(tmp_path: Path) -> None:
    log = Log(Stats(), str(tmp_path / "log"))
    log("warning", "configuration rejected", file="a.yaml", line=3, path=tmp_path)
    [line] = lines(tmp_path / "log", log)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "event": "configuration rejected",
        "file": "a.yaml",
        "line": 3,
        "path": str(tmp_path),
    }


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_only_what_is_of_the_level_or_above_is_written(tmp_path: Path, level: Level, written: list[str]) -> None:
    log = Log(Stats(), str(tmp_path / "log"))
    log.level = level
    for write in (log.debug, log.info, log.warning, log.error):
        write("something")
    assert [line["level"] for line in lines(tmp_path / "log", log)] == written


def test_there_is_no_other_level(tmp_path: Path) -> None:
    log = Log(Stats(), str(tmp_path / "log"))
    with pytest.raises(KeyError):
        log.level = "loud"
    assert log.level == "info"
    log.close()


def test_a_flood_of_one_event_is_cut_short_and_told(tmp_path: Path) -> None:
    now = 1_000_000.0
    log = Log(Stats(), str(tmp_path / "log"), clock=lambda: now)
    for _ in range(BURST + 50):
        log.info("handshake failed")
    log.info("another")
    now += 1
    log.info("handshake failed")
    log.info("handshake failed")
    written = lines(tmp_path / "log", log)
    assert len(written) == BURST + 3
    assert [line.get("suppressed") for line in written[-3:]] == [None, 50, None]
