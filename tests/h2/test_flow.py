"""Flow control end to end: who stands still stops only himself, and costs a bounded amount of memory."""

import threading
import time
from collections.abc import Iterator

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient, RawServer
from tests.support.net import Address, wait_for
from tests.support.server import Connection
from tests.support.sidecar import Sidecar, route, upstream
from tests.wire.h2_peer import (
    GET,
    HELLO,
    POST,
    Fields,
    data,
    headers,
    rst_stream,
    settings,
    window_update,
)

MEBIBYTE = 1 << 20


def at(path: str, method: bytes = b"GET") -> Fields:
    return [(b":method", method), *GET[1:3], (b":path", path.encode())]


@pytest.fixture(scope="module", params=["http1", "http2"])
def proxy(
    request: pytest.FixtureRequest, shared_sidecar: StartSidecar, uvicorn_app: Address, h2_app: Address
) -> Sidecar:
    address = uvicorn_app if request.param == "http1" else h2_app
    return shared_sidecar(
        upstream("u", address, protocol=request.param, breakers={"requests": 5000, "pending": 5000}),
        route("u", upstream="u"),
    )


def test_a_stalled_download_neither_stalls_a_thousand_others_nor_grows_memory(proxy: Sidecar) -> None:
    # The stream's window is the default and never opened; the connection's is wide open.
    with RawClient(proxy.inbound, HELLO + window_update(0, 1 << 30), timeout=60) as client:
        stalled = client.request(at("/bytes/100000000"))
        client.until(lambda reader: len(reader.bodies.get(stalled, b"")) == 65_535)
        rss = proxy.process.rss
        for _ in range(10):
            streams = [client.request(at("/bytes/10000")) for _ in range(100)]
            for stream in streams:
                assert client.answer(stream)[":status"] == "200"
                assert len(client.reader.bodies[stream]) == 10_000
        assert proxy.process.rss - rss < 8 * MEBIBYTE
        assert len(client.reader.bodies[stalled]) == 65_535
        # It was only held back: as its window opens, it goes on where it was.
        client.send(window_update(stalled, 1_000_000))
        client.until(lambda reader: len(reader.bodies[stalled]) == 1_065_535)
        client.send(rst_stream(stalled))


def test_a_stalled_upload_neither_stalls_the_others_nor_grows_memory(
    sidecar: StartSidecar, serve: StartServer, uvicorn_app: Address
) -> None:
    release = threading.Event()

    def deaf(connection: Connection) -> None:
        connection.read_head()
        release.wait(60)

    proxy = sidecar(
        upstream("deaf", serve(deaf).address),
        upstream("u", uvicorn_app),
        route("deaf", matches=[{"path": {"prefix": "/deaf"}}], upstream="deaf"),
        route("u", upstream="u"),
    )
    with RawClient(proxy.inbound, timeout=60) as client:
        stalled = [client.request(at("/deaf", b"POST"), end=False) for _ in range(20)]
        rss = proxy.process.rss
        sent = 0
        for stream in stalled:
            # As much as was granted, and a little less than the connection allows.
            for _ in range(4):
                client.send(data(stream, b"x" * 16_000))
                sent += 16_000
        for _ in range(500):
            stream = client.request(at("/count", b"POST"), end=False)
            client.send(data(stream, b"y" * 2000, end=True))
            assert client.answer(stream)[":status"] == "200"
            assert client.reader.bodies[stream] == b"2000"
        assert proxy.process.rss - rss < 16 * MEBIBYTE
        release.set()


def test_unread_uploads_shut_the_connection_at_their_bound(sidecar: StartSidecar, serve: StartServer) -> None:
    """Past `buffered` bytes that nobody reads, the connection's window stays shut, whatever the streams allow."""
    release = threading.Event()

    def deaf(connection: Connection) -> None:
        connection.read_head()
        release.wait(60)

    proxy = sidecar(
        # All but one wait for the one connection, with their bodies.
        upstream("deaf", serve(deaf).address, breakers={"connections": 1, "pending": 5000}),
        route("deaf", upstream="deaf"),
        limits={"http2": {"buffered": "1MiB", "connectionWindow": "1MiB"}},
    )
    with RawClient(proxy.inbound) as client:
        room = 65_535
        for _ in range(200):
            stream = client.request(POST, end=False)
            for _ in range(4):
                time.sleep(0.001)
                room = granted(client) - sent(client)
                if room < 16_000:
                    break
                send(client, stream, b"x" * 16_000)
        assert MEBIBYTE < sent(client) < 4 * MEBIBYTE
        assert granted(client) - sent(client) < MEBIBYTE
    release.set()


_sent: dict[int, int] = {}


def sent(client: RawClient) -> int:
    return _sent.get(id(client), 0)


def send(client: RawClient, stream: int, payload: bytes) -> None:
    client.send(data(stream, payload))
    _sent[id(client)] = sent(client) + len(payload)


def granted(client: RawClient) -> int:
    client.sock.setblocking(False)
    try:
        while raw := client.sock.recv(1 << 20):
            client.reader.feed(raw)
    except BlockingIOError:
        pass
    finally:
        client.sock.settimeout(client.timeout)
    return 65_535 + client.reader.increments.get(0, 0)


def test_a_slow_reader_stops_a_fast_upstream(sidecar: StartSidecar, serve: StartServer) -> None:
    written = [0]

    def endless(connection: Connection) -> None:
        server = RawServer(connection)
        stream = server.request()
        server.send(headers(stream, [(b":status", b"200")], end=False))
        room = 65_535
        while True:
            allowed = 65_535 + server.reader.increments.get(stream, 0)
            connection_room = 65_535 + server.reader.increments.get(0, 0)
            room = min(allowed, connection_room) - written[0]
            if room < 16_384:
                before = dict(server.reader.increments)
                server.until(lambda reader, before=before: reader.increments != before)
                continue
            server.send(data(stream, b"x" * 16_384))
            written[0] += 16_384

    proxy = sidecar(upstream("u", serve(endless).address, protocol="http2"), route("u", upstream="u"))
    with RawClient(proxy.inbound) as client:
        stream = client.request()
        client.until(lambda reader: len(reader.bodies.get(stream, b"")) == 65_535)
        before = wait_for(lambda: settled(written), 10)
        assert before < 4 * MEBIBYTE
        for _ in range(100):
            had = len(client.reader.bodies[stream])
            client.send(window_update(stream, 65_535) + window_update(0, 65_535))
            client.until(lambda reader, had=had: len(reader.bodies[stream]) >= had + 65_535)
        assert written[0] > before
        assert proxy.process.peak_rss < 200 * MEBIBYTE


def settled(written: list[int]) -> int:
    before = written[0]
    time.sleep(0.3)
    return before if written[0] == before else 0


def test_a_gigabyte_passes_each_way_in_flat_memory(proxy: Sidecar) -> None:
    size = 256 * MEBIBYTE
    with RawClient(proxy.inbound, HELLO + settings((4, 1 << 30)) + window_update(0, 1 << 30), timeout=60) as client:
        before = proxy.process.peak_rss
        stream = client.request(at(f"/bytes/{size}"))
        seen = 0
        while seen < size:
            client.until(lambda reader: reader.bodies.get(stream))
            seen += len(client.reader.bodies.pop(stream, b""))
            if client.reader.ended:
                break
        assert seen == size
        assert proxy.process.peak_rss - before < 24 * MEBIBYTE


def test_cancelling_a_download_reaches_the_upstream(sidecar: StartSidecar, serve: StartServer) -> None:
    resets: list[int] = []

    def script(connection: Connection) -> None:
        server = RawServer(connection)
        stream = server.request()
        server.send(headers(stream, [(b":status", b"200")], end=False) + data(stream, b"x"))
        server.until(lambda reader: reader.resets)
        resets.append(server.reader.resets[stream])

    proxy = sidecar(upstream("u", serve(script).address, protocol="http2"), route("u", upstream="u"))
    with RawClient(proxy.inbound) as client:
        stream = client.request()
        client.until(lambda reader: stream in reader.bodies)
        client.send(rst_stream(stream))
        wait_for(lambda: resets, 5)
    assert resets == [8]
    (line,) = proxy.log_lines(1)
    assert line["flags"] == "DC"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    _sent.clear()
