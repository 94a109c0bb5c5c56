"""`/tap`: requests as they end, by what was asked for, without what is secret, and at nobody's expense."""

import asyncio
import contextlib
import http.client
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlencode

import pytest
from websockets.sync.client import connect

from l7proxy.admin import tapping
from l7proxy.admin.app import admin_app
from l7proxy.core.stats import Stats
from l7proxy.proxy.snapshot import Live
from l7proxy.proxy.tap import Batch, Taps, Wanted
from tests.conftest import StartSidecar
from tests.identity.pki import ORDERS, WEB, Authority, TlsClient, context
from tests.lifecycle.test_workers import pids
from tests.support.client import Client
from tests.support.net import Address, free_address, wait_for
from tests.support.sidecar import Sidecar, route, upstream
from tests.test_admin import ask

Line = dict[str, Any]


class Reader:
    """One tap on a sidecar, begun; lines are read as they come."""

    def __init__(self, proxy: Sidecar, *query: tuple[str, str], receive_buffer: int = 0) -> None:
        self.connection = http.client.HTTPConnection(*proxy.admin, timeout=20)
        if receive_buffer:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.settimeout(20)
            sock.connect(proxy.admin)
            self.connection.sock = sock
        self.connection.request("GET", f"/tap?{urlencode(query)}")
        self.response = self.connection.getresponse()
        if self.response.status == 200:
            assert self.response.headers["content-type"] == "application/x-ndjson"
            assert self.line()["event"] == "begin"

    def line(self) -> Line:
        line: Line = json.loads(self.response.readline())
        return line

    def requests(self, count: int) -> list[Line]:
        """Reads so many requests, and none of them is a note."""
        return [self.line() for _ in range(count)]

    def rest(self) -> list[Line]:
        """Reads to the end."""
        return [json.loads(line) for line in self.response]

    def close(self) -> None:
        self.response.close()
        self.connection.close()


@contextlib.contextmanager
def tap(proxy: Sidecar, *query: tuple[str, str], **options: Any) -> Iterator[Reader]:
    reader = Reader(proxy, *query, **options)
    try:
        yield reader
    finally:
        reader.close()


@pytest.fixture(scope="module")
def proxy(shared_sidecar: StartSidecar, uvicorn_app: Address, tmp_path_factory: pytest.TempPathFactory) -> Sidecar:
    return shared_sidecar(
        route("read", matches=[{"path": {"prefix": "/status"}}]),
        route("ws", matches=[{"path": {"prefix": "/ws"}}]),
        route("away", matches=[{"path": {"prefix": "/away"}}], upstream="nowhere"),
        route("closed", matches=[{"path": {"prefix": "/closed"}}], policies={"authorization": {"allow": []}}),
        route("out", direction="outbound", hosts=["out"], upstream="app"),
        upstream("nowhere", ("127.0.0.1", 1)),
        app=uvicorn_app,
    )


def send_all(proxy: Sidecar) -> None:
    """One request of each kind."""
    for target in ("/status/200", "/status/404", "/away", "/closed", "/none"):
        proxy.get(target)
    with proxy.client() as client:
        client.request(b"POST /status/200 HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\n\r\nhi")
    with Client(proxy.outbound) as client:
        client.get("/status/200", host="out")


EVERYTHING = [
    "GET /status/200 200",
    "GET /status/404 404",
    "GET /away 503",
    "GET /closed 403",
    "GET /none 404",
    "POST /status/200 200",
    "GET /status/200 200",
]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ([], EVERYTHING),
        ([("direction", "outbound")], EVERYTHING[6:]),
        ([("direction", "outbound"), ("direction", "inbound")], EVERYTHING),
        ([("route", "read")], [*EVERYTHING[:2], EVERYTHING[5]]),
        ([("route", "")], [EVERYTHING[4]]),
        ([("method", "post")], [EVERYTHING[5]]),
        ([("path", "/status/4"), ("path", "/c")], [EVERYTHING[1], EVERYTHING[3]]),
        ([("status", "5xx"), ("status", "403")], EVERYTHING[2:4]),
        ([("status", "4xx"), ("route", "read"), ("method", "GET")], [EVERYTHING[1]]),
        ([("flag", "UF"), ("flag", "NR")], [EVERYTHING[2], EVERYTHING[4]]),
        ([("peer", "spiffe://demo/*")], []),
    ],
)
def test_what_was_asked_for_is_told(proxy: Sidecar, query: list[tuple[str, str]], expected: list[str]) -> None:
    with tap(proxy, *query, ("limit", str(len(expected))), ("seconds", "20" if expected else "1")) as reader:
        send_all(proxy)
        *lines, end = reader.rest()
    assert [f"{line['method']} {line['path']} {line['status']}" for line in lines] == expected
    assert end == {
        "event": "end",
        "seen": end["seen"],
        "told": len(expected),
        "dropped": 0,
        "why": "limit" if expected else "time",
    }
    assert len(expected) <= end["seen"] <= 7


def test_a_line_is_that_of_the_access_log(proxy: Sidecar) -> None:
    with tap(proxy, ("limit", "1")) as reader:
        proxy.get("/away?token=abc")
        [line, _] = reader.rest()

    def logged() -> Line | None:
        return next((entry for entry in proxy.log_lines() if entry["request_id"] == line["request_id"]), None)

    assert line == wait_for(logged)


def test_callers_are_told_apart(sidecar: StartSidecar, uvicorn_app: Address, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, web = authority.issue("orders", ORDERS), authority.issue("web", WEB)
    tls = {"mode": "PERMISSIVE", "cert": str(ours.cert), "key": str(ours.key), "ca": str(authority.file)}
    proxy = sidecar(app=uvicorn_app, inbound={"tls": tls})
    with tap(proxy, ("peer", "spiffe://demo/ns/shop/*"), ("limit", "1")) as reader:
        proxy.get("/plain")
        with TlsClient(proxy.inbound, context(authority, web)) as client:
            client.get("/by-web")
        [line, end] = reader.rest()
    assert (line["path"], line["peer"], end["seen"]) == ("/by-web", WEB, 2)


def test_tunnels_are_told_when_they_open_and_end_and_so_is_what_was_no_request(proxy: Sidecar) -> None:
    with tap(proxy) as reader:
        with connect(f"ws://127.0.0.1:{proxy.inbound[1]}/ws", compression=None):
            opened = reader.line()
        ended = reader.line()
        with proxy.client() as client:
            client.request(b"GET /\x01 HTTP/1.1\r\nhost: test\r\n\r\n")
        refused = reader.line()
    assert [(line["event"], line["status"]) for line in (opened, ended)] == [("tunnel_open", 101), ("tunnel_end", 101)]
    assert (refused["status"], refused["route"], refused["code"]) == (400, "", "bad_request")


SECRETS = (b"s3cret-token", b"s3cret-cookie", b"s3cret-custom", b"s3cret-query")


def fields(proxy: Sidecar, *query: tuple[str, str]) -> tuple[Line, bytes]:
    """What a tap tells of one request full of secrets, and its bytes."""
    with tap(proxy, ("limit", "1"), ("path", "/status"), *query) as reader:
        with proxy.client() as client:
            client.get(
                "/status/200?key=s3cret-query",
                authorization="Bearer s3cret-token",
                cookie="id=s3cret-cookie",
                x_custom="s3cret-custom",
                accept="text/plain",
                X_Tenant="blue",
            )
        raw = reader.response.readline()
    return json.loads(raw), raw


def test_no_header_field_is_told_by_default(proxy: Sidecar) -> None:
    line, raw = fields(proxy)
    assert not line.keys() & {"request_headers", "response_headers", "query"}
    assert not any(secret in raw for secret in SECRETS)


def test_values_are_hidden_but_for_those_that_are_never_secret(proxy: Sidecar) -> None:
    line, raw = fields(proxy, ("headers", "true"))
    told = dict(line["request_headers"])
    assert not any(secret in raw for secret in (*SECRETS, b"blue"))
    assert {name: told[name] for name in ("authorization", "cookie", "x-custom", "x-tenant")} == dict.fromkeys(
        ("authorization", "cookie", "x-custom", "x-tenant"), "[hidden]"
    )
    assert (told["accept"], told["x-request-id"]) == ("text/plain", line["request_id"])
    assert dict(line["response_headers"])["content-type"] == "text/plain"


def test_a_value_is_revealed_by_name_and_all_when_that_is_said(proxy: Sidecar) -> None:
    line, raw = fields(proxy, ("headers", "true"), ("reveal", "X-Tenant"), ("reveal", "x-custom"))
    told = dict(line["request_headers"])
    assert (told["x-tenant"], told["x-custom"], told["cookie"]) == ("blue", "s3cret-custom", "[hidden]")
    assert not any(secret in raw for secret in (SECRETS[0], SECRETS[1], SECRETS[3]))
    line, raw = fields(proxy, ("secrets", "true"))
    assert all(secret in raw for secret in SECRETS)
    assert line["query"] == "key=s3cret-query"
    assert '"tapped","seconds":600.0,"headers":false,"reveal":[],"secrets":true' in proxy.process.stderr


async def served(app: Any, query: bytes, server: tuple[str, int] | None, method: str = "GET") -> list[Any]:
    """What an ASGI application sends to a GET of /tap that came to an address of ours."""
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": "/tap", "query_string": query, "server": server, "root_path": ""}
    await app(
        {**scope, "headers": [(b"host", b"10.0.0.7:15000")], "http_version": "1.1", "scheme": "http"}, receive, send
    )
    return sent


class Stub:
    """A view and a source that tell of nothing, or of what they are given."""

    def __init__(self, *batches: Batch) -> None:
        self.batches = list(batches)
        self.closed = False

    async def tap(self, wanted: Wanted) -> "Stub":
        return self

    async def take(self, seconds: float) -> Batch:
        await asyncio.sleep(0 if self.batches else seconds)
        return self.batches.pop(0) if self.batches else Batch()

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("query", [b"reveal=cookie", b"secrets=true", b"secrets=true&headers=true"])
def test_values_leave_this_machine_never(query: bytes) -> None:
    app = admin_app(Stub())  # type: ignore[arg-type]
    for server, status in ((("10.0.0.7", 15000), 403), (("127.0.0.1", 15000), 200), (None, 200)):
        sent = asyncio.run(served(app, query + b"&seconds=0.01", server))
        assert sent[0]["status"] == status
    assert asyncio.run(served(app, b"headers=true&seconds=0.01", ("10.0.0.7", 15000)))[0]["status"] == 200


def test_a_quiet_tap_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tapping, "ALIVE", 0.02)
    stub = Stub(Batch([], 3))
    sent = asyncio.run(served(admin_app(stub), b"seconds=0.2", None))  # type: ignore[arg-type]
    notes = [json.loads(message["body"]) for message in sent[1:] if message["body"]]
    assert [note["event"] for note in notes[:2]] == ["begin", "waiting"]
    assert notes[-1] == {"event": "end", "seen": 3, "told": 0, "dropped": 0, "why": "time"}
    assert stub.closed


def test_what_is_left_out_is_said_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub(Batch([b"1\n"], 4, 3), Batch([b"2\n", b"3\n"], 2))
    sent = asyncio.run(served(admin_app(stub), b"limit=2&seconds=9", None))  # type: ignore[arg-type]
    lines = b"".join(message["body"] for message in sent[1:]).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"event": "begin", "seen": 0, "told": 0, "dropped": 0, "why": ""},
        1,
        {"event": "dropped", "seen": 4, "told": 1, "dropped": 3, "why": ""},
        2,
        {"event": "end", "seen": 6, "told": 2, "dropped": 3, "why": "limit"},
    ]


def test_requests_are_looked_at_only_while_somebody_does() -> None:
    live = cast(Live, SimpleNamespace(tap=None))
    taps = Taps(live, Stats())
    first, second = taps.open(Wanted()), taps.open(Wanted())
    assert live.tap is not None
    first.close()
    assert live.tap is not None
    second.close()
    second.close()
    assert live.tap is None


def test_a_reader_that_stops_reading_holds_up_nobody(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app)
    pad = "x" * 8000
    with tap(proxy, ("headers", "true"), ("reveal", "x-pad"), receive_buffer=4096) as stuck, proxy.client() as client:
        before = proxy.process.rss
        for _ in range(2500):
            assert client.get("/status/200", x_pad=pad).status == 200
        assert proxy.process.rss - before < 16 << 20
        dropped = proxy.metrics()("l7proxy_tap_dropped_total")
        assert 0 < dropped < 2500
        told, notes = 0, []
        # What waited is told, then what was left out; then it goes on.
        while not notes or notes[-1]["dropped"] < dropped:
            line = stuck.line()
            if line["event"] == "request":
                told += 1
            else:
                notes.append(line)
        assert notes[-1] == {"event": "dropped", "seen": 2500, "told": told, "dropped": dropped, "why": ""}
        assert told + dropped == 2500
        client.get("/status/404")
        assert stuck.line()["path"] == "/status/404"


def test_there_are_only_so_many_taps_and_those_that_ended_do_not_count(proxy: Sidecar) -> None:
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            for _ in range(tapping.MOST):
                stack.enter_context(tap(proxy))
            answer = ask(proxy.admin, "/tap")
            assert (answer.status, answer.json) == (429, {"error": f"there are {tapping.MOST} taps already"})
        wait_for(lambda: ask(proxy.admin, "/tap?seconds=0.01").status == 200)


def test_a_tap_does_not_hold_up_the_end(sidecar: StartSidecar) -> None:
    proxy = sidecar(app=free_address())
    with tap(proxy) as reader:
        assert proxy.stop() == 0
        assert reader.response.readline() == b""


def test_several_workers_are_looked_at_together(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app, workers=2)
    wait_for(lambda: ask(proxy.admin, "/ready").status == 200, 30)
    with tap(proxy) as reader, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(24)]
        # So that both of them take some; see test_both_workers_serve.
        for number, client in enumerate(clients):
            assert client.get(f"/status/200/{number}").status == 200
        assert sorted(line["path"] for line in reader.requests(24)) == sorted(f"/status/200/{n}" for n in range(24))
        for pid in pids(proxy):
            os.kill(pid, signal.SIGKILL)
        wait_for(
            lambda: proxy.metrics()("l7proxy_worker_restarts_total") == 2 and ask(proxy.admin, "/config").status == 200,
            30,
        )
        # Those that took their place are found within half a second.
        seen: list[str] = []

        def told() -> bool:
            proxy.get("/status/404")
            seen.append(reader.line()["path"]) if readable(reader) else None
            return bool(seen)

        wait_for(told, 20)
        assert seen == ["/status/404"]


def test_a_stuck_reader_of_several_workers_holds_up_nobody(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app, workers=2)
    wait_for(lambda: ask(proxy.admin, "/ready").status == 200, 30)
    pad = "x" * 8000
    with tap(proxy, ("secrets", "true"), receive_buffer=4096) as stuck, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(16)]
        for _ in range(250):
            for client in clients:
                assert client.get("/status/200", x_pad=pad).status == 200
        dropped = wait_for(lambda: proxy.metrics()("l7proxy_tap_dropped_total"))
        told, note = 0, {"seen": 0}
        while note["seen"] < 4000:
            line = stuck.line()
            if line["event"] == "request":
                told += 1
            else:
                note = line
        assert (note["told"], note["dropped"]) == (told, dropped)
        assert told + dropped == 4000


def readable(reader: Reader) -> bool:
    return bool(select.select([reader.connection.sock], [], [], 0.2)[0])
