"""`l7proxy tap` beside a real sidecar: what it prints, what it says beside that, and how it ends."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.cli.test_check import l7proxy
from tests.cli.test_top import ENV, address, traffic
from tests.conftest import StartSidecar
from tests.support.net import Address, free_address, wait_for
from tests.support.sidecar import Sidecar, route, upstream


class Tap:
    """A running `l7proxy tap` that has begun to look."""

    def __init__(self, proxy: Sidecar, *arguments: str) -> None:
        before = proxy.process.stderr.count('"event":"tapped"')
        command = [sys.executable, "-m", "l7proxy", "tap", "-c", str(proxy.config), *arguments]
        self.process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: proxy.process.stderr.count('"event":"tapped"') > before, 20)

    def end(self) -> tuple[int, list[str], str]:
        """Waits for its end; returns the status, the lines that it printed, and what it said beside them."""
        out, err = self.process.communicate(timeout=30)
        assert "Traceback" not in err
        return self.process.returncode, out.splitlines(), err


@contextlib.contextmanager
def tap(proxy: Sidecar, *arguments: str) -> Iterator[Tap]:
    running = Tap(proxy, *arguments)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()


@pytest.fixture(scope="module")
def proxy(shared_sidecar: StartSidecar, uvicorn_app: Address) -> Sidecar:
    return shared_sidecar(
        route("read", matches=[{"path": {"prefix": "/status"}}]),
        route("away", matches=[{"path": {"prefix": "/away"}}], upstream="nowhere"),
        upstream("nowhere", ("127.0.0.1", 1)),
        app=uvicorn_app,
    )


def test_a_line_tells_of_a_request_at_a_glance(proxy: Sidecar) -> None:
    with tap(proxy, "--limit", "3") as running:
        proxy.get("/status/200?token=abc")
        proxy.get("/away")
        proxy.get("/none")
        status, lines, err = running.end()
    assert (status, err) == (0, "3 shown of 3 that ended\n")
    shown = [re.sub(r"^\S+  | +\d+\.\dms|:\d{5}", "", line) for line in lines]
    assert shown == [
        "inbound   200 -  GET test/status/200  route read  to app 127.0.0.1  from 127.0.0.1",
        "inbound   503 UF  GET test/away  route away  to nowhere 127.0.0.1:1 at attempt 3  from 127.0.0.1"
        "  upstream_connect: 127.0.0.1:1: Connection refused",
        "inbound   404 NR  GET test/none  no route  from 127.0.0.1  no_route",
    ]


def test_filters_pass_what_fits_all_of_them(proxy: Sidecar) -> None:
    arguments = ["--route", "read", "--status", "4xx", "--status", "503", "--path", "/status/", "--method", "get"]
    with tap(proxy, *arguments, "--direction", "inbound", "--limit", "2") as running:
        for target in ("/away", "/status/200", "/status/404", "/none", "/status/503"):
            proxy.get(target)
        status, lines, err = running.end()
    assert status == 0
    assert [line.split()[2] for line in lines] == ["404", "503"]
    assert err == "2 shown of 5 that ended\n"


def test_json_is_a_record_a_line(proxy: Sidecar) -> None:
    with tap(proxy, "--json", "--limit", "2", "--headers") as running:
        proxy.get("/status/200", authorization="s3cret")
        proxy.get("/away")
        status, lines, _ = running.end()
    assert status == 0
    first, second = map(json.loads, lines)
    assert (first["route"], first["status"], second["code"]) == ("read", 200, "upstream_connect")
    assert ["authorization", "[hidden]"] in first["request_headers"]


def test_fields_are_shown_beneath_and_secrets_only_when_that_is_said(proxy: Sidecar) -> None:
    def shown(*arguments: str) -> list[str]:
        with tap(proxy, "--limit", "1", *arguments) as running:
            proxy.get("/status/200?key=s3cret-q", authorization="s3cret-a", x_tenant="blue")
            status, lines, _ = running.end()
        assert status == 0
        return lines

    assert len(shown()) == 1
    lines = shown("--headers")
    assert {"    > authorization: [hidden]", "    > x-tenant: [hidden]", "    < content-type: text/plain"} <= {*lines}
    assert "s3cret" not in "".join(lines)
    lines = shown("--headers", "X-Tenant, X-Other")
    assert {"    > authorization: [hidden]", "    > x-tenant: blue"} <= {*lines}
    lines = shown("--show-secrets")
    assert "GET test/status/200?key=s3cret-q " in lines[0]
    assert "    > authorization: s3cret-a" in lines


def test_no_client_can_make_the_terminal_do_anything(proxy: Sidecar) -> None:
    with tap(proxy, "--limit", "1", "--show-secrets") as running:
        with proxy.client() as client:
            client.request(b"GET /status/200?%1b[2J HTTP/1.1\r\nhost: test\r\nx-evil: \x9b31mred\xe9\r\n\r\n")
        _, lines, _ = running.end()
    assert "    > x-evil: \\x9b31mredé" in lines
    assert all(line.isprintable() for line in lines)


def test_it_ends_after_its_time(proxy: Sidecar) -> None:
    with tap(proxy, "--for", "500ms") as running:
        assert running.end() == (0, [], "0 shown of 0 that ended\n")


def test_ctrl_c_ends_it_quietly(proxy: Sidecar) -> None:
    with tap(proxy) as running:
        proxy.get("/status/200")
        assert running.process.stdout is not None
        assert "GET test/status/200" in running.process.stdout.readline()
        running.process.send_signal(signal.SIGINT)
        assert running.end() == (0, [], "")


def test_a_reader_that_has_seen_enough_ends_it(proxy: Sidecar) -> None:
    with tap(proxy) as running, traffic(proxy, "/status/200"):
        assert running.process.stdout is not None and running.process.stderr is not None
        running.process.stdout.readline()
        running.process.stdout.close()
        assert running.process.wait(20) == 0
        assert running.process.stderr.read() == ""


def test_what_is_read_too_slowly_is_left_out_and_said(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app)
    with tap(proxy, "--json", "--show-secrets", "--limit", "2000") as running:
        with proxy.client() as client:
            # The pipe is full, so that it reads no more, and then neither does anybody.
            for _ in range(2500):
                assert client.get("/status/200", x_pad="x" * 8000).status == 200
        wait_for(lambda: proxy.metrics()("l7proxy_tap_dropped_total") > 0)
        stop = threading.Event()

        def more() -> None:
            with proxy.client() as client:
                while not stop.is_set():
                    client.get("/status/200")

        thread = threading.Thread(target=more)
        thread.start()
        status, lines, err = running.end()
        stop.set()
        thread.join()
    assert (status, len(lines)) == (0, 2000)
    assert re.search(r"2000 shown of \d+ that ended, \d+ left out as they came faster than they were read\n$", err)


def test_several_workers_are_one(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app, workers=2)
    wait_for(lambda: proxy.metrics()("l7proxy_workers") == 2, 30)
    with tap(proxy, "--limit", "20", "--json") as running:
        for number in range(20):
            proxy.get(f"/status/200/{number}")
        status, lines, err = running.end()
    assert (status, err) == (0, "20 shown of 20 that ended\n")
    assert {json.loads(line)["path"] for line in lines} == {f"/status/200/{number}" for number in range(20)}


def test_a_sidecar_that_ends_is_said(sidecar: StartSidecar) -> None:
    proxy = sidecar(app=free_address())
    with tap(proxy) as running:
        proxy.stop()
        assert running.end() == (1, [], f"l7proxy tap: the sidecar at {address(proxy)} went away\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--status", "6xx"), "status must be like 404 or 5xx"),
        (("--direction", "up"), "direction must be one of inbound, outbound"),
        (("--for", "2h"), "seconds must be at most 3600"),
        (("--limit", "-1"), "limit must be at least 0"),
    ],
)
def test_what_the_sidecar_refuses_is_said(proxy: Sidecar, arguments: tuple[str, ...], message: str) -> None:
    assert l7proxy("tap", "-c", str(proxy.config), *arguments) == (1, "", f"l7proxy tap: {message}\n")


def test_wrong_usage() -> None:
    status, _, err = l7proxy("tap", "--for", "soon")
    assert (status, "'soon' is not a duration" in err) == (2, True)
    status, out, _ = l7proxy("tap", "--help")
    assert status == 0
    for word in ("--route", "--peer", "--show-secrets", "--admin", "--for"):
        assert word in out
