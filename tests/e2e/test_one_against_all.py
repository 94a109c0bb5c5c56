"""One client may cost its own connection, never the others': what it holds is counted, bounded, and given back."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.h2.raw import RawClient
from tests.support.client import Client
from tests.support.net import Address, wait_for
from tests.support.server import OK, Connection
from tests.support.sidecar import Sidecar, route, upstream
from tests.wire.h2_peer import GET, HELLO, POST, Fields, data, headers, settings, window_update

MIB = 1 << 20
SMALL = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"
NO_WINDOW = HELLO + settings((4, 0))


def big(size: int) -> Fields:
    return [*GET[:3], (b":path", b"/bytes/%d" % size)]


def ask(size: int) -> bytes:
    return b"GET /bytes/%d HTTP/1.1\r\nhost: test\r\n\r\n" % size


def buffered(proxy: Sidecar) -> float:
    return proxy.metrics()("l7proxy_buffered_bytes")


def cut(proxy: Sidecar, listener: str) -> float:
    return proxy.metrics()("l7proxy_downstream_cut_total", listener=listener)


class Gate:
    """An application that reads requests and answers when it is told to."""

    def __init__(self) -> None:
        self.open = threading.Event()

    def __call__(self, connection: Connection) -> None:
        while connection.read():
            self.open.wait(30)
            connection.send(OK)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open.set()


def flood(sock: socket.socket, data: bytes, times: int) -> threading.Thread:
    """Sends `data` that often beside the test, until the proxy closes."""

    def work() -> None:
        with contextlib.suppress(OSError):
            for _ in range(times):
                sock.sendall(data)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


# Pipelining.


def test_pipelining_without_end_costs_a_bounded_buffer(sidecar: StartSidecar) -> None:
    """The client reads the answers, so that each of them asks for more input."""
    proxy = sidecar(route("all", directResponse={"status": 200, "body": "ok"}))
    long = b"GET /%b HTTP/1.1\r\nhost: test\r\n\r\n" % (b"x" * 1000)
    with proxy.client() as client, proxy.client() as other:
        assert other.request(SMALL).status == 200
        before = proxy.process.rss
        thread = flood(client.sock, long * 1000, 60)
        for number in range(4000):
            assert client.read().status == 200
            if number % 400 == 0:
                assert buffered(proxy) < MIB
                assert other.request(SMALL).status == 200
        client.sock.shutdown(socket.SHUT_RDWR)
        thread.join()
        assert proxy.process.peak_rss - before < 12 * MIB


def test_pipelined_requests_that_wait_are_counted(sidecar: StartSidecar, serve: StartServer, gate: Gate) -> None:
    proxy = sidecar(app=serve(gate).address)
    with proxy.client() as client:
        client.send(SMALL + SMALL * 1000)
        wait_for(lambda: buffered(proxy) >= 1000 * len(SMALL))
        gate.open.set()
        assert [client.read().status for _ in range(1001)] == [200] * 1001
        wait_for(lambda: buffered(proxy) == 0)


# What one connection may hold.


@pytest.mark.parametrize("protocol", ["http1", "http2"])
def test_an_http2_client_that_takes_nothing_holds_its_share_and_no_more(
    protocol: str, sidecar: StartSidecar, uvicorn_app: Address, h2_app: Address
) -> None:
    """New requests of its own wait for room; those of others are answered meanwhile, and none of all is lost."""
    app = uvicorn_app if protocol == "http1" else h2_app
    size, streams = 200_000, 150
    proxy = sidecar(
        upstream("u", app, protocol=protocol), route("u", upstream="u"), limits={"bufferedPerConnection": "1MiB"}
    )
    with RawClient(proxy.inbound, NO_WINDOW, timeout=60) as client:
        for _ in range(streams // 2):
            client.request(big(size))
        wait_for(lambda: buffered(proxy) > MIB)
        begun = proxy.metrics()("l7proxy_requests")
        for _ in range(streams // 2):
            client.request(big(size))
        for _ in range(20):
            assert proxy.get("/bytes/10").status == 200
            # Beyond the share is what the reads of one turn brought, or what an HTTP/2 upstream's windows had admitted.
            assert buffered(proxy) < MIB + (2 * 262_144 if protocol == "http1" else streams * 65_535)
        assert proxy.metrics()("l7proxy_requests") == begun
        client.send(settings((4, 2**30)) + window_update(0, 2**30))
        client.until(lambda reader: len(reader.ended) == streams)
        assert {len(body) for body in client.reader.bodies.values()} == {size}
        wait_for(lambda: buffered(proxy) == 0)
        assert cut(proxy, "inbound") == 0


def test_requests_that_wait_to_begin_end_with_their_streams(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    proxy = sidecar(app=uvicorn_app, limits={"bufferedPerConnection": "64KiB"}, timeouts={"streamIdle": "2s"})
    with RawClient(proxy.inbound, NO_WINDOW, timeout=30) as client:
        first = client.request(big(500_000))
        wait_for(lambda: buffered(proxy) > 65_536)
        late = client.request(big(10))
        # Its client does not take what would make room for it.
        client.until(lambda reader: late in reader.heads)
        assert client.reader.heads[late][0][":status"] == "408"
        client.until(lambda reader: first in reader.resets)
    wait_for(lambda: buffered(proxy) == 0)
    wait_for(lambda: '"status":408' in proxy.log.read_text().replace(" ", ""))


@pytest.mark.parametrize("hostile", ["window of 0", "slow readers"])
def test_the_largest_holder_is_cut_and_everybody_else_is_served(
    hostile: str, sidecar: StartSidecar, uvicorn_app: Address
) -> None:
    proxy = sidecar(app=uvicorn_app, limits={"buffered": "4MiB"})
    with contextlib.ExitStack() as stack:
        small = stack.enter_context(RawClient(proxy.inbound, NO_WINDOW, timeout=30))
        waits = small.request(big(50_000))
        wait_for(lambda: buffered(proxy) >= 50_000)
        old = stack.enter_context(proxy.client())
        if hostile == "window of 0":
            client = stack.enter_context(RawClient(proxy.inbound, NO_WINDOW, timeout=30))
            for _ in range(100):
                client.request(big(500_000))
            client.until(lambda reader: client.closed)
        else:
            for _ in range(40):
                reader = stack.enter_context(proxy.client(receive_buffer=4096))
                reader.send(ask(50_000_000))
            wait_for(lambda: cut(proxy, "inbound") > 0)
        for _ in range(10):
            assert old.request(SMALL).status == 200
            assert proxy.get("/bytes/10").status == 200
        assert buffered(proxy) <= 4 * MIB
        # Who held little is still there, and gets what waited for it.
        small.send(settings((4, 100_000)))
        assert small.answer(waits)[":status"] == "200"

    def is_logged() -> bool:
        lines = [json.loads(line) for line in proxy.log.read_text().splitlines()]
        return any((line["code"], line["flags"]) == ("overflow", "UO") for line in lines)

    wait_for(is_logged)


def test_clients_outside_take_nothing_from_what_the_application_calls(
    sidecar: StartSidecar, uvicorn_app: Address
) -> None:
    proxy = sidecar(
        upstream("u", uvicorn_app),
        route("out", direction="outbound", upstream="u"),
        app=uvicorn_app,
        limits={"buffered": "4MiB"},
    )
    with contextlib.ExitStack() as stack:
        calls = stack.enter_context(RawClient(proxy.outbound, NO_WINDOW, timeout=30))
        waits = [calls.request(big(300_000)) for _ in range(5)]
        wait_for(lambda: buffered(proxy) >= 5 * 50_000)
        for _ in range(40):
            reader = stack.enter_context(proxy.client(receive_buffer=4096))
            reader.send(ask(50_000_000))
        wait_for(lambda: cut(proxy, "inbound") > 0)
        with Client(proxy.outbound) as other:
            assert other.get("/bytes/10").status == 200
        calls.send(settings((4, 2**30)) + window_update(0, 2**30))
        for stream in waits:
            assert calls.answer(stream)[":status"] == "200"
        assert cut(proxy, "outbound") == 0


# What is held is counted.


def requests_that_wait() -> dict[str, tuple[bytes, int]]:
    head = b"".join(b"x-%d: %b\r\n" % (number, b"v" * 8000) for number in range(5))
    return {
        "whole bodies": (b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 30000\r\n\r\n" + b"b" * 30_000, 30_000),
        "large heads": (b"GET / HTTP/1.1\r\nhost: test\r\n%b\r\n" % head, len(head)),
        "the start of a head": (b"GET / HTTP/1.1\r\nhost: test\r\n%b" % head, len(head)),
    }


@pytest.mark.parametrize("kind", requests_that_wait())
def test_requests_under_way_are_counted(kind: str, sidecar: StartSidecar, serve: StartServer, gate: Gate) -> None:
    raw, size = requests_that_wait()[kind]
    proxy = sidecar(app=serve(gate).address)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(proxy.client()) for _ in range(4)]
        for client in clients:
            client.send(raw)
        wait_for(lambda: buffered(proxy) >= 4 * size)
        gate.open.set()
        if kind != "the start of a head":
            assert [client.read().status for client in clients] == [200] * 4
            wait_for(lambda: buffered(proxy) == 0)
    wait_for(lambda: buffered(proxy) == 0)


def test_uploads_that_wait_for_a_slow_application_are_counted(sidecar: StartSidecar, serve: StartServer) -> None:
    done = threading.Event()

    def deaf(connection: Connection) -> None:
        connection.read_head()
        done.wait(30)

    proxy = sidecar(app=serve(deaf).address)
    before = proxy.process.rss
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                client = stack.enter_context(Client(proxy.inbound, timeout=0.3))
                client.send(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100000000\r\n\r\n")
                with contextlib.suppress(TimeoutError):
                    for _ in range(100):
                        client.send(b"x" * MIB)
            # In streams and in what the application's sockets have not taken: all that memory has grown by.
            grown = proxy.process.rss - before
            assert buffered(proxy) > grown / 2
    finally:
        done.set()
    wait_for(lambda: buffered(proxy) == 0)


def test_memory_goes_back_when_slow_clients_have_left(sidecar: StartSidecar, uvicorn_app: Address) -> None:
    """Others, which came in between and stay, lie between what was freed and the end of the heap."""
    proxy = sidecar(app=uvicorn_app)
    proxy.get("/bytes/1000000")
    before = proxy.process.rss
    with contextlib.ExitStack() as others:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(RawClient(proxy.inbound, NO_WINDOW, timeout=30)) for _ in range(12)]
            for number in range(40):
                for client in clients:
                    client.request(big((300_000, 70_000, 1_000_000)[number % 3]))
                for _ in range(6):
                    other = others.enter_context(proxy.client())
                    other.send(b"GET / HTTP/1.1\r\nhost: test\r\nx: %b" % (b"v" * 3000))
            wait_for(lambda: buffered(proxy) > 80 * MIB, 40)
        wait_for(lambda: buffered(proxy) < 2 * MIB)
        wait_for(lambda: proxy.process.rss - before < 25 * MIB)


# Tiny units.


def tiny_chunks(body: bytes) -> bytes:
    return b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"


BODY = os.urandom(60_000)


def echo_of(connection: Connection) -> None:
    """Answers each upload with its length in the first line and its bytes in chunks of one."""
    while request := connection.read():
        connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + tiny_chunks(request.body))


def over_http1(proxy: Sidecar) -> bytes:
    with proxy.client() as client:
        head = b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n"
        answer = client.request(head + tiny_chunks(BODY))
        assert answer.status == 200
        # The connection is in step: what follows is answered too.
        assert client.request(head + tiny_chunks(b"again")).body == b"again"
        return answer.body


def over_http2(proxy: Sidecar) -> bytes:
    with RawClient(proxy.inbound, HELLO + settings((4, 2**30)), timeout=30) as client:
        stream = client.request(POST, end=False)
        frames = b"".join(data(stream, bytes((byte,))) for byte in BODY)
        thread = threading.Thread(target=client.send, args=(frames + data(stream, b"", end=True),))
        thread.start()
        assert client.answer(stream)[":status"] == "200"
        thread.join()
        return client.reader.bodies[stream]


@pytest.mark.parametrize("send", [over_http1, over_http2])
def test_bodies_in_single_bytes_arrive_whole_both_ways(
    send: Callable[[Sidecar], bytes], sidecar: StartSidecar, serve: StartServer
) -> None:
    assert send(sidecar(app=serve(echo_of).address)) == BODY


def test_uploads_in_single_bytes_leave_every_other_turn_to_others(sidecar: StartSidecar, serve: StartServer) -> None:
    """While one connection has 40,000 chunks in hand, another is answered many times."""
    proxy = sidecar(
        upstream("app", serve(echo_of).address),
        route("up", matches=[{"methods": ["POST"]}], upstream="app"),
        route("direct", directResponse={"status": 200, "body": "ok"}),
    )
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(proxy.client())
        assert other.request(SMALL).status == 200
        upload = b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n" + tiny_chunks(BODY)
        clients = [stack.enter_context(proxy.client()) for _ in range(8)]
        echoed: list[bytes] = []
        threads = [
            threading.Thread(target=lambda client=client: echoed.append(client.request(upload).body))
            for client in clients
        ]
        before = proxy.process.cpu
        answered = 0
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert other.request(SMALL).status == 200
            answered += 1
        spent = proxy.process.cpu - before
    assert echoed == [BODY] * 8
    # Not a matter of the clock: each second of work has that many turns in it.
    assert answered > 20 * spent, f"{answered} answers in {spent} s of CPU"


def test_a_head_is_answered_while_others_of_its_batch_have_not_begun(sidecar: StartSidecar) -> None:
    """Hundreds of requests that come in one read are begun over several turns, in their order."""
    proxy = sidecar(route("all", directResponse={"status": 200, "body": "ok"}))
    with RawClient(proxy.inbound, timeout=30) as client:
        client.send(b"".join(headers(2 * number + 1, GET) for number in range(900)))
        client.until(lambda reader: len(reader.ended) == 900)
        assert list(client.reader.heads) == [2 * number + 1 for number in range(900)]
