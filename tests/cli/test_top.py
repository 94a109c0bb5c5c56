"""`l7proxy top` beside real sidecars: what it counts, in a terminal, in a pipe, and with several workers."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from l7proxy.cli.asking import Sidecar as Asked
from l7proxy.cli.red import CLIENT, SERVER, Reading, Red
from l7proxy.cli.top import read, report
from tests.conftest import StartSidecar
from tests.support.client import Client
from tests.support.net import Address, free_address, wait_for
from tests.support.sidecar import Sidecar, route, upstream

BOUNDS = [0.1, 0.2, 1.0]
ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1", "TERM": "xterm"}


def address(proxy: Sidecar) -> str:
    return f"{proxy.admin[0]}:{proxy.admin[1]}"


def rows(table: str) -> dict[str, list[str]]:
    """The cells of each row, by name."""
    return {cells[0]: cells[1:] for line in table.splitlines() if (cells := line.split())}


@contextlib.contextmanager
def traffic(proxy: Sidecar, *targets: str) -> Iterator[None]:
    """Sends requests all the time."""
    stop = threading.Event()

    def send() -> None:
        with proxy.client() as client:
            while not stop.is_set():
                for target in targets:
                    client.get(target)
                time.sleep(0.005)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    stop.set()
    thread.join()


def reading(when: float, *series: tuple[str, str, int, list[int]]) -> Reading:
    """What a sidecar says that has served these: route, status, count and buckets."""
    labels = {"l7proxy_direction": "inbound", "http_request_method": "GET", "rpc_response_status_code": ""}
    told = [
        {
            "labels": {**labels, "l7proxy_route": name, "http_response_status_code": status},
            "count": count,
            "sum": 0.0,
            "buckets": buckets,
        }
        for name, status, count, buckets in series
    ]
    return Reading(when, {SERVER: {"bounds": BOUNDS, "series": told}, CLIENT: {"series": []}}, [])


def test_percentiles_are_estimated_as_prometheus_does() -> None:
    red = Red("a", buckets=[50, 40, 9, 1])
    assert red.quantile(0.5, BOUNDS) == pytest.approx(0.1)
    assert red.quantile(0.7, BOUNDS) == pytest.approx(0.15)
    assert red.quantile(0.95, BOUNDS) == pytest.approx(0.2 + 0.8 * 5 / 9)
    assert red.quantile(1, BOUNDS) == float("inf")
    assert Red("a").quantile(0.5, BOUNDS) is None
    assert Red("a", buckets=[0, 0, 0, 0]).quantile(0.5, BOUNDS) is None


def test_only_what_came_since_counts_and_a_counter_may_begin_anew() -> None:
    before = reading(0.0, ("a", "200", 10, [10, 0, 0, 0]), ("b", "200", 5, [5, 0, 0, 0]))
    now = reading(2.0, ("a", "200", 13, [10, 3, 0, 0]), ("a", "503", 1, [1, 0, 0, 0]), ("b", "200", 2, [0, 2, 0, 0]))
    first, second = now.routes(before)
    assert (first.name, first.count, first.failed, first.refused, first.buckets) == ("a", 4, 1, 0, [1, 3, 0, 0])
    assert (second.name, second.count, second.buckets) == ("b", 2, [0, 2, 0, 0])


def test_what_does_not_fit_the_screen_is_left_out_and_counted() -> None:
    now = reading(2.0, *((f"r{number:02}", "200", number + 1, [number + 1, 0, 0, 0]) for number in range(30)))
    lines = report(Asked("127.0.0.1:1"), reading(0.0), now, 12)
    assert len(lines) <= 12
    assert lines[3].startswith("r29 ")
    assert any(re.fullmatch(r"\.\.\. \d+ more", line) for line in lines)


@pytest.mark.parametrize("workers", [1, 2])
def test_requests_are_counted_by_route_and_upstream(sidecar: StartSidecar, uvicorn_app: Address, workers: int) -> None:
    proxy = sidecar(
        route("ok", matches=[{"path": {"prefix": "/status/200"}}]),
        route("failing", matches=[{"path": {"prefix": "/status"}}]),
        route("slow", matches=[{"path": {"prefix": "/slow"}}]),
        route("closed", matches=[{"path": {"prefix": "/closed"}}], policies={"authorization": {"allow": []}}),
        route("away", matches=[{"path": {"prefix": "/away"}}], upstream="nowhere"),
        route("out", direction="outbound", hosts=["out"], upstream="app"),
        route("idle", matches=[{"path": {"prefix": "/idle"}}]),
        upstream("nowhere", ("127.0.0.1", 1)),
        app=uvicorn_app,
        workers=workers,
    )
    wait_for(lambda: proxy.metrics()("l7proxy_workers") == (workers if workers > 1 else 0), 30)
    asked = Asked(address(proxy))
    proxy.get("/status/200")
    before = read(asked)
    for target, times in (("/status/200", 8), ("/status/503", 2), ("/status/404", 3), ("/closed", 2), ("/away", 1)):
        for _ in range(times):
            proxy.get(target)
    with Client(proxy.outbound) as client:
        client.get("/", host="out")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(proxy.client()).send(b"GET /slow/3000 HTTP/1.1\r\nhost: test\r\n\r\n")
        wait_for(lambda: proxy.metrics()("l7proxy_upstream_requests", l7proxy_upstream="app") == 3)
        now = read(asked)
    routes = {red.name: red for red in now.routes(before)}
    assert {name: (red.count, red.refused, red.failed) for name, red in routes.items()} == {
        "ok": (8, 0, 0),
        "failing": (5, 3, 2),
        "closed": (2, 2, 0),
        "away": (1, 0, 1),
        "out": (1, 0, 0),
        "slow": (0, 0, 0),
    }
    assert {name: red.active for name, red in routes.items() if red.active} == {"slow": 3}
    assert routes["out"].direction == "outbound"
    upstreams = {red.name: (red.count, red.refused, red.failed, red.active) for red in now.upstreams(before)}
    assert upstreams["app"] == (14, 3, 2, 3)
    assert upstreams["nowhere"][1:] == (0, upstreams["nowhere"][0], 0)
    text = "\n".join(report(asked, before, now))
    assert (f"   {workers} workers   " in text) == (workers > 1)
    assert rows(text)["failing"][0] == "inbound"
    assert rows(text)["failing"][2:4] == ["60.0", "40.0"]


def test_once_prints_one_table_for_scripts(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(route("all"), app=uvicorn_app)
    command = [sys.executable, "-m", "l7proxy", "top", "--once", "--interval", "500ms", "-c", str(proxy.config)]
    with traffic(proxy, "/status/200", "/status/500"):
        done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    direction, rate, refused, failed, half, most, _ = rows(done.stdout)["all"]
    assert (direction, refused) == ("inbound", "0.0")
    assert float(rate) > 1 and 20 < float(failed) < 80
    assert half.endswith("s") and most.endswith("s")
    assert float(rows(done.stdout)["app"][1]) > 1


def test_in_a_pipe_one_table_follows_the_other(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(route("all"), app=uvicorn_app)
    proxy.get()
    command = [sys.executable, "-m", "l7proxy", "top", "--interval", "200ms", "--admin", address(proxy)]
    with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None and top.stderr is not None
        lines = [top.stdout.readline() for _ in range(16)]
        top.send_signal(signal.SIGINT)
        rest, err = top.communicate(timeout=20)
    assert (top.returncode, err) == (0, "")
    assert len([line for line in lines if line.startswith("ROUTE ")]) >= 2
    assert "\x1b" not in "".join(lines) + rest


def test_who_has_seen_enough_may_go(sidecar: StartSidecar) -> None:
    proxy = sidecar(app=free_address())
    command = [sys.executable, "-m", "l7proxy", "top", "--interval", "200ms", "--admin", address(proxy)]
    with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None and top.stderr is not None
        assert top.stdout.readline()
        top.stdout.close()
        assert top.wait(20) == 0
        assert top.stderr.read() == ""


class Terminal:
    """`l7proxy top` in a terminal of 100 columns and 20 lines."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (20, 100))
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        command = [sys.executable, "-m", "l7proxy", "top", *arguments]
        self.process = subprocess.Popen(
            command, env=ENV, stdin=slave, stdout=slave, stderr=subprocess.PIPE, start_new_session=True
        )
        self.seen = ""

    def read(self, wait: float = 0.2) -> str:
        while select.select([self.master], [], [], wait)[0]:
            self.seen += os.read(self.master, 65536).decode()
            wait = 0
        return self.seen

    def wait_for(self, pattern: str) -> None:
        wait_for(lambda: re.search(pattern, self.read()), 20, lambda: f"{pattern} is not in {self.seen!r}")

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> tuple[int, bytes]:
        """Waits for its end; returns the status and what was written to stderr."""
        status = self.process.wait(20)
        self.read()
        assert self.process.stderr is not None
        err = self.process.stderr.read()
        self.process.stderr.close()
        assert termios.tcgetattr(self._slave) == self.before
        os.close(self._slave)
        os.close(self.master)
        return status, err


@pytest.mark.parametrize("way", ["q", "ctrl-c", "SIGTERM"])
def test_a_terminal_is_drawn_anew_and_given_back(sidecar: StartSidecar, uvicorn_app: Address, way: str) -> None:
    proxy = sidecar(route("orders"), app=uvicorn_app)
    with traffic(proxy, "/status/200"):
        terminal = Terminal("--interval", "300ms", "-c", str(proxy.config))
        terminal.wait_for(r"orders +inbound +[1-9]")
        seen = len(terminal.seen)
        terminal.wait_for(rf"(?s).{{{seen}}}.*orders +inbound")
    if way == "q":
        terminal.press(b"xq")
    elif way == "ctrl-c":
        terminal.process.send_signal(signal.SIGINT)
    else:
        terminal.process.terminate()
    assert terminal.end() == (0, b"")
    assert terminal.seen.startswith("\x1b[?1049h\x1b[?25l")
    assert terminal.seen.endswith("\x1b[?25h\x1b[?1049l")
    frames = terminal.seen.split("\x1b[H")[1:]
    assert len(frames) > 2
    for frame in frames:
        lines = re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", frame).split("\r\n")
        assert len(lines) <= 20
        assert max(map(len, lines)) <= 100


def test_a_sidecar_that_comes_back_is_watched_on(sidecar: StartSidecar) -> None:
    proxy = sidecar(app=free_address())
    terminal = Terminal("--interval", "200ms", "-c", str(proxy.config))
    terminal.wait_for("ROUTE")
    proxy.stop()
    terminal.wait_for("nothing answers at")
    seen = len(terminal.seen)
    sidecar(app=free_address(), admin={"listen": address(proxy)})
    terminal.wait_for(rf"(?s).{{{seen}}}.*ROUTE")
    terminal.press(b"q")
    assert terminal.end() == (0, b"")


def test_only_a_terminal_that_is_there_at_the_start_is_watched() -> None:
    terminal = Terminal("--admin", "127.0.0.1:1")
    status, err = terminal.end()
    assert status == 1
    assert err.startswith(b"l7proxy top: nothing answers at 127.0.0.1:1 ")
    assert terminal.seen == ""
