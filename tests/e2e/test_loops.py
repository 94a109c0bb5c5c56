"""Requests that would come back to the sidecar for ever: each way round ends at the first or second hop."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartServer, StartSidecar
from tests.e2e.test_errors import check
from tests.h2.raw import RawClient
from tests.support.client import Client
from tests.support.message import Message
from tests.support.net import Address, free_address, free_port
from tests.support.server import OK, Connection
from tests.support.sidecar import Sidecar, route, upstream

ANY = {"policy": "ALLOW_ANY"}


def text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def requests(*proxies: Sidecar) -> float:
    return sum(proxy.metrics()("http_server_request_duration_seconds_count") for proxy in proxies)


def call(address: Address, host: str, **headers: str) -> Message:
    with Client(address) as client:
        return client.get("/", host, **headers)


def refused(answer: Message) -> bool:
    return (answer.status, answer["x-l7proxy-error"]) == (508, "loop_detected")


def hops(message: Message) -> list[str]:
    """Returns the marks on a request that came over one sidecar or several."""
    return [value for line in message.all("cdn-loop") for value in line.split(", ")]


def interface_address() -> str:
    """Returns an address of this machine that is not on the loopback interface, by the route to anywhere else."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.2"
        return str(probe.getsockname()[0])


# A destination that is one of our own listeners.


def test_a_call_to_the_own_address_is_one_request_and_one_answer(sidecar: StartSidecar) -> None:
    proxy = sidecar(outbound=ANY)
    descriptors = Path(f"/proc/{proxy.process.pid}/fd")
    with Client(proxy.outbound) as client:
        client.get("/", "127.0.0.1:1")
        before, counted = len(os.listdir(descriptors)), requests(proxy)
        answer = client.get("/", text(proxy.outbound))
        assert len(os.listdir(descriptors)) == before
    assert requests(proxy) == counted + 1
    assert proxy.metrics()("l7proxy_downstream_accepted_total", listener="outbound") == 2, "ours, and that of the start"
    check(proxy, answer, 508, "loop_detected", "proxy_loop_detected", "NR", l7proxy_direction="outbound")
    line = proxy.log_lines()[-1]
    assert line["detail"] == f"{text(proxy.outbound)} is a listener of this sidecar"


@pytest.mark.parametrize("listener", ["inbound", "outbound", "admin", "metrics"])
def test_every_listener_is_refused_as_a_destination(listener: str, sidecar: StartSidecar, serve: StartServer) -> None:
    proxy = sidecar(app=serve().address, outbound=ANY)
    own = {"inbound": proxy.inbound, "outbound": proxy.outbound, "admin": proxy.admin, "metrics": proxy.metrics_at}
    assert refused(call(proxy.outbound, text(own[listener])))
    with Client(proxy.outbound) as client:
        client.send(f"CONNECT {text(own[listener])} HTTP/1.1\r\nhost: {text(own[listener])}\r\n\r\n".encode())
        assert refused(client.read("POST"))


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0", "[::ffff:127.0.0.1]", "0x7f000001", "2130706433", "0x7f.1"])
def test_the_own_address_is_known_in_every_spelling(host: str, sidecar: StartSidecar) -> None:
    proxy = sidecar(outbound=ANY)
    assert refused(call(proxy.outbound, f"{host}:{proxy.outbound[1]}"))
    assert requests(proxy) == 1


@pytest.mark.parametrize("host", ["127.1", "0177.0.0.1"])
def test_numbers_that_are_no_address_are_called_nowhere(host: str, sidecar: StartSidecar) -> None:
    proxy = sidecar(outbound=ANY)
    assert call(proxy.outbound, f"{host}:{proxy.outbound[1]}")["x-l7proxy-error"] == "egress_blocked"
    assert requests(proxy) == 1


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.8.8", "[::ffff:127.0.0.1]", "localhost", "0.0.0.0", interface_address()]
)
@pytest.mark.parametrize("listen", ["0.0.0.0", "[::]"])
def test_a_listener_on_all_addresses_is_known_by_each(listen: str, host: str, sidecar: StartSidecar) -> None:
    port = free_port()
    proxy = sidecar(outbound={"listen": f"{listen}:{port}", **ANY}, inbound=None)
    assert refused(call(("127.0.0.1", port), f"{host}:{port}"))
    assert requests(proxy) == 1


@pytest.mark.parametrize("host", ["[::1]", "[::]", "localhost"])
def test_an_ipv6_listener_is_known_too(host: str, sidecar: StartSidecar) -> None:
    port = free_port()
    sidecar(outbound={"listen": f"[::]:{port}", **ANY}, inbound=None)
    assert refused(call(("::1", port), f"{host}:{port}"))


def test_another_host_with_the_same_port_is_called(sidecar: StartSidecar, serve: StartServer) -> None:
    """Every sidecar of a mesh listens on the same port."""
    proxy = sidecar(outbound=ANY)
    app = serve(address=("127.0.0.2", proxy.outbound[1]))
    assert call(proxy.outbound, text(app.address)).status == 200
    assert call(proxy.outbound, f"localhost:{app.port}").status == 508


def test_no_upstream_leads_to_an_own_listener(sidecar: StartSidecar) -> None:
    """By a name that only the resolver knows, which no check of the configuration can tell."""
    own = free_address()
    proxy = sidecar(
        upstream("us", ("0x7f000001", own[1])),
        upstream("h2", ("0x7f000001", own[1]), protocol="http2"),
        route("us", hosts=["us.test"], upstream="us"),
        route("h2", hosts=["h2.test"], upstream="h2"),
        inbound={"listen": text(own)},
    )
    for host in ("us.test", "h2.test"):
        assert refused(call(own, host))
    assert requests(proxy) == 2


def test_workers_know_the_listeners_of_each_other_and_of_their_parent(sidecar: StartSidecar) -> None:
    proxy = sidecar(outbound=ANY, workers=2)
    for address in [proxy.outbound, proxy.admin, proxy.metrics_at] * 3:
        assert refused(call(proxy.outbound, text(address)))
    assert requests(proxy) == 9


# Longer ways round.


@pytest.fixture
def ring(sidecar: StartSidecar) -> Callable[..., list[Sidecar]]:
    """Starts sidecars of which each one's upstream is the next one's listener, and the last one's the first one's."""

    def start(size: int, direction: str, **spec: Any) -> list[Sidecar]:
        listen = [free_address() for _ in range(size)]
        proxies = []
        for number, address in enumerate(listen):
            following = listen[(number + 1) % size]
            if direction == "inbound":
                options: dict[str, Any] = {"inbound": {"listen": text(address)}, "app": following, **spec}
                proxies.append(sidecar(**options, outbound=None))
            else:
                documents = upstream("next", following), route("all", direction="outbound", upstream="next")
                proxies.append(sidecar(*documents, outbound={"listen": text(address)}, inbound=None, **spec))
            setattr(proxies[-1], direction, address)
        return proxies

    return start


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
@pytest.mark.parametrize("size", [2, 3])
def test_sidecars_that_point_at_each_other_end_at_the_second_visit(
    size: int, direction: str, ring: Callable[..., list[Sidecar]]
) -> None:
    proxies = ring(size, direction)
    answer = call(getattr(proxies[0], direction), "any.test")
    assert refused(answer)
    assert answer["proxy-status"] == f"{proxies[0].name}; error=proxy_loop_detected"
    assert requests(*proxies) == size + 1
    first = proxies[0].log_lines(2)
    assert sorted(line["detail"] for line in first) == ["", "the request has passed this sidecar before"]


def test_sidecars_with_workers_end_at_the_second_visit(ring: Callable[..., list[Sidecar]]) -> None:
    proxies = ring(2, "inbound", workers=2)
    for _ in range(8):
        assert refused(call(proxies[0].inbound, "any.test"))
    assert requests(*proxies) == 8 * 3


def test_a_websocket_and_a_grpc_call_end_as_well(ring: Callable[..., list[Sidecar]]) -> None:
    proxies = ring(2, "inbound")
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    assert refused(call(proxies[0].inbound, "any.test", **upgrade, sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ=="))
    with RawClient(proxies[0].inbound) as client:
        fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"any.test"), (b":path", b"/x.Y/Z")]
        head = client.answer(client.request([*fields, (b"content-type", b"application/grpc")]))
    assert (head[":status"], head["grpc-status"], head["x-l7proxy-error"]) == ("200", "13", "loop_detected")
    assert requests(*proxies) == 6


def test_a_pair_of_outbound_listeners_ends_where_the_second_is_named(sidecar: StartSidecar) -> None:
    first, second = sidecar(outbound=ANY), sidecar(outbound=ANY)
    answer = call(first.outbound, text(second.outbound))
    assert refused(answer)
    assert requests(first, second) == 2


def test_a_gateway_behind_the_sidecar_passes_on_what_came_over_it(
    sidecar: StartSidecar, serve: StartServer, nginx: Callable[..., Any]
) -> None:
    """Over the inbound listener to nginx, which sends all fields on over the outbound one of the same sidecar."""
    app, out = serve(), free_address()
    gateway = nginx(server=f"location / {{ proxy_pass http://{text(out)}; proxy_set_header Host behind.test; }}")
    proxy = sidecar(
        upstream("behind", app.address),
        route("behind", direction="outbound", hosts=["behind.test"], upstream="behind"),
        app=gateway.address,
        outbound={"listen": text(out)},
    )
    assert proxy.get().status == 200
    inwards, outwards = hops(app.requests[0])
    assert (inwards.removesuffix("-in"), inwards[-3:], outwards[-4:]) == (outwards.removesuffix("-out"), "-in", "-out")


# The field itself.


def test_a_mark_is_added_behind_those_that_came(sidecar: StartSidecar, serve: StartServer) -> None:
    app = serve()
    first, second = sidecar(app=app.address), sidecar(app=app.address)
    with first.client() as client:
        client.request(
            b'GET / HTTP/1.1\r\nhost: a\r\nCDN-Loop: foo123.foocdn.example, barcdn.example; trace="abc,d"\r\n'
            b"connection: cdn-loop\r\ncdn-loop: AnotherCDN; abc=123\r\n\r\n"
        )
    second.get()
    *theirs, ours = app.requests[0].all("cdn-loop")
    assert theirs == ['foo123.foocdn.example, barcdn.example; trace="abc,d"', "AnotherCDN; abc=123"]
    (other,) = app.requests[1].all("cdn-loop")
    assert ours != other, "each sidecar has a mark of its own"


@pytest.mark.parametrize(
    "lines",
    [
        ["{}"],
        ["first.example", "{}"],
        ["first.example , {} , last.example"],
        ["{};when=now"],
        ['first; a="x,y", {}'],
        ['first; a="unfinished', "{}"],
        ['first; a="unfinished, {}'],
    ],
)
@pytest.mark.parametrize("name", ["cdn-loop", "CDN-Loop"])
def test_the_own_mark_is_found_wherever_it_stands(
    name: str, lines: list[str], sidecar: StartSidecar, serve: StartServer
) -> None:
    app = serve()
    proxy = sidecar(app=app.address)
    proxy.get()
    (mark,) = app.requests[0].all("cdn-loop")
    fields = "".join(f"{name}: {line.format(mark)}\r\n" for line in lines)
    with proxy.client() as client:
        assert refused(client.request(f"GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n".encode()))
    assert len(app.requests) == 1


def test_a_request_that_is_tried_again_has_one_mark(sidecar: StartSidecar, serve: StartServer) -> None:
    def script(connection: Connection) -> None:
        connection.read()
        connection.send(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" if not number else OK)
        number.append(1)

    number: list[int] = []
    app = serve(script)
    proxy = sidecar(route("all", policies={"retry": {"on": ["503"]}}), app=app.address)
    assert proxy.get().status == 200
    assert [len(request.all("cdn-loop")) for request in app.requests] == [1, 1]


@pytest.mark.parametrize("server", ["hypercorn", "uvicorn"])
def test_under_another_server_a_loop_ends_as_well(server: str, sidecar: StartSidecar) -> None:
    ours = sidecar(app=free_address())
    theirs = sidecar(app=ours.inbound, server=server)
    ours.reconfigure(inbound={"app": f"http://{text(theirs.inbound)}"})
    answer = theirs.get()
    assert refused(answer)
    assert answer["proxy-status"].startswith(theirs.name)
    assert requests(ours) == 1
