"""The access log: every line is there once, typed, and nobody waits for who reads it."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from l7proxy.core.stats import Counter, Stats
from l7proxy.telemetry.access import BATCH, AccessLog, take_down
from l7proxy.telemetry.lines import MAX_PENDING
from tests.support.net import wait_for
from tests.telemetry.requests import finished

IDENTITY = "spiffe://demo/ns/shop/sa/checkout"


def logged(path: Path, work: Callable[[AccessLog], Coroutine[Any, Any, None]], **options: Any) -> list[str]:
    """Runs `work` on a new log at `path` and returns the lines once all is written."""

    async def main() -> None:
        log = AccessLog(Stats(), str(path), **options)
        await work(log)
        assert log.close(5)

    asyncio.run(main())
    return path.read_text().splitlines()


def dropped(stats: Stats, reason: str) -> float:
    counter = stats.families["l7proxy_access_log_dropped_total"].children[("reason", reason),]
    assert isinstance(counter, Counter)
    return counter.value


def test_a_line_says_all_of_a_request(tmp_path: Path) -> None:
    async def work(log: AccessLog) -> None:
        request = finished(IDENTITY, request_id=b"id-1", trace_id=b"ab" * 16, bytes_in=3, bytes_out=5, grpc_status=14)
        request.flags, request.code, request.detail = "UAEX", "denied", "rule deny[0] at orders.yaml:12"
        log.write(take_down(request, 403, 0.0051234, "v7"))

    before = time.time()
    [text] = logged(tmp_path / "log", work)
    line = json.loads(text)
    moment = line.pop("time")
    assert abs(time.mktime(time.strptime(moment[:-5], "%Y-%m-%dT%H:%M:%S")) - time.timezone - before) < 10
    assert moment[-5] == "." and moment[-1] == "Z"
    assert line == {
        "event": "request",
        "direction": "inbound",
        "method": "GET",
        "scheme": "http",
        "authority": "orders.example.com:8080",
        "path": "/v1/orders/17",
        "protocol": "1.1",
        "route": "orders-read",
        "status": 403,
        "grpc_status": 14,
        "flags": "UAEX",
        "code": "denied",
        "detail": "rule deny[0] at orders.yaml:12",
        "bytes_in": 3,
        "bytes_out": 5,
        "duration_ms": 5.123,
        "queue_ms": 1.0,
        "connect_ms": 0.5,
        "first_byte_ms": 4.0,
        "upstream": "app",
        "endpoint": "127.0.0.1:8080",
        "attempts": 1,
        "peer": IDENTITY,
        "source": "10.0.0.17",
        "request_id": "id-1",
        "trace_id": "ab" * 16,
        "config_version": "v7",
    }


def test_what_did_not_happen_is_null(tmp_path: Path) -> None:
    async def work(log: AccessLog) -> None:
        log.write(take_down(finished(route=None, t_sent=0.0, t_connected=0.0, t_head=0.0, attempt=0), 404, 0.001, ""))

    line = json.loads(logged(tmp_path / "log", work)[0])
    assert [line[key] for key in ("grpc_status", "queue_ms", "connect_ms", "first_byte_ms")] == [None] * 4
    assert (line["route"], line["attempts"]) == ("", 0)


def test_a_tunnel_has_a_line_when_it_opens_and_one_when_it_ends(tmp_path: Path) -> None:
    async def work(log: AccessLog) -> None:
        log.write(take_down(finished(), 101, 0.001, "", "tunnel_open"))
        log.write(take_down(finished(), 101, 5.0, "", "tunnel_end"))

    assert [json.loads(line)["event"] for line in logged(tmp_path / "log", work)] == ["tunnel_open", "tunnel_end"]


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_client_cannot_forge_a_line(tmp_path: Path, format: str) -> None:
    evil = b'/a"\n[2026-01-01T00:00:00.000Z] request \xff\x00\x1b[31m'

    async def work(log: AccessLog) -> None:
        request = finished(path=evil, authority=evil, method=evil, request_id=evil)
        log.write(take_down(request, 200, 0.001, ""))

    [line] = logged(tmp_path / "log", work, format=format)
    assert line.isprintable()
    if format == "json":
        assert json.loads(line)["path"] == evil.decode("utf-8", "replace")


def test_the_text_format_names_the_same_things(tmp_path: Path) -> None:
    async def work(log: AccessLog) -> None:
        log.write(take_down(finished(IDENTITY, request_id=b"id-1", bytes_out=5), 200, 0.005, "v7"))
        log.write(
            take_down(finished(route=None, upstream="", endpoint="", flags="NR", code="no_route"), 404, 0.001, "v7")
        )

    first, second = logged(tmp_path / "log", work, format="text")
    assert first.split("] ", 1)[1] == (
        'request inbound "GET /v1/orders/17 HTTP/1.1" 200 - - 0 5 5.0 app 127.0.0.1:8080 "orders.example.com:8080"'
        f' orders-read {IDENTITY} 10.0.0.17 "id-1" -'
    )
    assert ' 404 NR no_route 0 0 1.0 - - "orders.example.com:8080" - - 10.0.0.17 "" -' in second


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 1000])
def test_every_request_has_its_line_in_order(tmp_path: Path, count: int) -> None:
    async def work(log: AccessLog) -> None:
        for number in range(count):
            log.write(take_down(finished(bytes_out=number), 200, 0.001, ""))
            if number % 100 == 99:
                await asyncio.sleep(0)

    lines = logged(tmp_path / "log", work)
    assert [json.loads(line)["bytes_out"] for line in lines] == list(range(count))


def test_a_line_is_written_soon_without_another_request(tmp_path: Path) -> None:
    async def main() -> None:
        log = AccessLog(Stats(), str(tmp_path / "log"))
        log.write(take_down(finished(), 200, 0.001, ""))
        for _ in range(100):
            await asyncio.sleep(0.01)
            if (tmp_path / "log").read_text():
                break
        else:
            raise AssertionError("nothing was written within a second")
        log.close(5)

    asyncio.run(main())


def test_after_reopen_lines_go_to_a_new_file_and_none_is_lost(tmp_path: Path) -> None:
    async def work(log: AccessLog) -> None:
        for number in range(300):
            if number == 150:
                os.rename(tmp_path / "log", tmp_path / "log.1")
                log.reopen()
            log.write(take_down(finished(bytes_out=number), 200, 0.001, ""))
            await asyncio.sleep(0)

    new = logged(tmp_path / "log", work)
    old = (tmp_path / "log.1").read_text().splitlines()
    assert [json.loads(line)["bytes_out"] for line in old] == list(range(150))
    assert [json.loads(line)["bytes_out"] for line in new] == list(range(150, 300))


def test_reopening_before_the_first_line_makes_the_new_file(tmp_path: Path) -> None:
    async def work(log: AccessLog) -> None:
        os.rename(tmp_path / "log", tmp_path / "log.1")
        log.reopen()

    assert logged(tmp_path / "log", work) == []
    assert (tmp_path / "log.1").read_text() == ""


def test_a_request_that_ends_after_its_log_was_closed_is_still_written(tmp_path: Path) -> None:
    async def work(log: AccessLog) -> None:
        log.write(take_down(finished(bytes_out=1), 200, 0.001, ""))
        log.close()
        log.write(take_down(finished(bytes_out=2), 200, 0.001, ""))

    assert [json.loads(line)["bytes_out"] for line in logged(tmp_path / "log", work)] == [1, 2]


def test_closing_leaves_neither_thread_nor_descriptor(tmp_path: Path) -> None:
    async def work(log: AccessLog) -> None:
        log.write(take_down(finished(), 200, 0.001, ""))

    def open_now() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    def nothing_is_left() -> bool:
        before = open_now()
        for _ in range(5):
            logged(tmp_path / "log", work)
        return open_now() == before

    logged(tmp_path / "log", work)
    # What other tests have left to threads and to the garbage collector may end meanwhile.
    wait_for(nothing_is_left)


def test_a_full_pipe_stops_nothing_and_every_line_is_written_or_counted(tmp_path: Path) -> None:
    """The reader stands still until the log gave up some lines; what it then reads and what was dropped add up."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    total = 3 * MAX_PENDING // len(logged(tmp_path / "one", _one)[0])
    stats = Stats()
    slowest = 0.0

    async def main() -> None:
        nonlocal slowest
        log = AccessLog(stats, str(pipe))
        request = finished()
        for number in range(total):
            request.bytes_out = number
            started = time.perf_counter()
            log.write(take_down(request, 200, 0.001, ""))
            slowest = max(slowest, time.perf_counter() - started)
            if number % 50 == 0:
                await asyncio.sleep(0)
        assert not log.close(0.1)
        await asyncio.to_thread(drain, log)

    received = bytearray()

    def drain(log: AccessLog) -> None:
        os.set_blocking(reader, False)
        while not log.close(0.001):
            receive()
        receive()

    def receive() -> None:
        try:
            while data := os.read(reader, 1 << 20):
                received.extend(data)
        except BlockingIOError:
            pass

    asyncio.run(main())
    os.close(reader)
    lines = [json.loads(line) for line in received.splitlines()]
    lost = dropped(stats, "queue_full")
    assert lost > 0
    assert len(lines) + lost == total
    assert len({line["bytes_out"] for line in lines}) == len(lines)
    assert slowest < 1


async def _one(log: AccessLog) -> None:
    log.write(take_down(finished(bytes_out=10_000), 200, 0.001, ""))


def test_lines_that_a_full_disk_refuses_are_counted() -> None:
    stats = Stats()

    async def main() -> None:
        log = AccessLog(stats, "/dev/full")
        for _ in range(100):
            log.write(take_down(finished(), 200, 0.001, ""))
        assert log.close(5)

    asyncio.run(main())
    assert dropped(stats, "write_failed") == 100


def test_when_a_disk_fills_up_whole_lines_are_kept_and_the_rest_counted(tmp_path: Path) -> None:
    """A process of its own whose files may grow to 10,000 bytes only (EFBIG, as ENOSPC with a little room left)."""
    script = tmp_path / "fill.py"
    script.write_text(
        "import asyncio, resource, signal, sys\n"
        "from l7proxy.core.stats import Stats\n"
        "from l7proxy.telemetry.access import AccessLog, take_down\n"
        "from tests.telemetry.requests import finished\n"
        "async def main():\n"
        "    stats = Stats()\n"
        "    log = AccessLog(stats, sys.argv[1])\n"
        "    for number in range(100):\n"
        "        log.write(take_down(finished(bytes_out=number), 200, 0.001, ''))\n"
        "    assert log.close(5)\n"
        "    print(int(stats.counter('l7proxy_access_log_dropped_total', '', reason='write_failed').value))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "asyncio.run(main())\n"
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, str(script), str(tmp_path / "log")]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, timeout=30)
    assert run.stderr == ""
    *lines, torn = (tmp_path / "log").read_text().split("\n")
    assert [json.loads(line)["bytes_out"] for line in lines] == list(range(len(lines)))
    assert 0 < len(lines) < 100
    assert torn
    assert len(lines) + int(run.stdout) == 100


def test_a_path_that_cannot_be_opened_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no/such"):
        AccessLog(Stats(), str(tmp_path / "no/such"))


def test_standard_output_may_be_a_pipe_that_others_made_non_blocking(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    saved = os.dup(1)
    total = 1000
    received = bytearray()

    def collect() -> None:
        while received.count(b"\n") < total:
            time.sleep(0.001)
            received.extend(os.read(read, 4096))

    thread = threading.Thread(target=collect)
    thread.start()

    async def main() -> None:
        log = AccessLog(Stats(), "/dev/stdout")
        for number in range(total):
            log.write(take_down(finished(bytes_out=number), 200, 0.001, ""))
        assert log.close(10)

    os.dup2(write, 1)
    try:
        asyncio.run(main())
    finally:
        os.dup2(saved, 1)
        for descriptor in (saved, write):
            os.close(descriptor)
    thread.join(10)
    os.close(read)
    assert [json.loads(line)["bytes_out"] for line in received.splitlines()] == list(range(total))


def test_files_of_a_pipe_that_is_never_read_do_not_keep_the_process(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    async def main() -> None:
        log = AccessLog(Stats(), str(tmp_path / "pipe"))
        for _ in range(1000):
            log.write(take_down(finished(), 200, 0.001, ""))
        started = time.monotonic()
        assert not log.close(0.2)
        assert time.monotonic() - started < 2

    asyncio.run(main())
