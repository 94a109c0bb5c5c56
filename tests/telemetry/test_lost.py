"""An application that does not pass the trace context on is found out."""

from l7proxy.core.stats import Stats
from l7proxy.telemetry import lost
from l7proxy.telemetry.lost import LostContext
from tests.conftest import StartServer, StartSidecar
from tests.support.client import Client
from tests.support.net import Address
from tests.support.server import OK, Connection
from tests.support.sidecar import route, upstream
from tests.telemetry.collector import Collector
from tests.telemetry.requests import finished

LOST = "l7proxy_trace_context_lost_total"


class Caller:
    """An application that calls through its sidecar for each request; with `/kept` it passes the trace context on."""

    def __init__(self) -> None:
        self.outbound: Address | None = None

    def __call__(self, connection: Connection) -> None:
        while True:
            request = connection.read()
            assert self.outbound is not None
            with Client(self.outbound) as client:
                context = {"traceparent": request.get("traceparent") or ""} if request.target == "/kept" else {}
                client.get("/", "orders", **context)
            connection.send(OK)


def test_an_application_that_loses_the_context_is_found_out(
    sidecar: StartSidecar, serve: StartServer, collector: Collector
) -> None:
    caller = Caller()
    proxy = sidecar(
        upstream("orders", serve().address),
        route("out", direction="outbound", hosts=["orders"], upstream="orders"),
        route("in"),
        app=serve(caller).address,
        tracing={"sampling": 0.5, "otlp": collector.url},
    )
    caller.outbound = proxy.outbound
    assert proxy.metrics()(LOST) == 0
    with Client(proxy.outbound) as client:
        assert client.get("/", "orders").status == 200
    for _ in range(3):
        proxy.get("/kept")
    assert proxy.metrics()(LOST) == 0, "nothing was at hand, and then the context was passed on"
    for _ in range(5):
        proxy.get("/lost")
    assert proxy.metrics()(LOST) == 5
    told = [line for line in proxy.process.stderr.splitlines() if "trace context lost" in line]
    assert len(told) == 1, "it is told once in a while"
    assert '"authority":"orders"' in told[0]


def test_a_tunnel_is_not_counted_and_the_log_is_told_once_in_a_while() -> None:
    stats, said, now, serving = Stats(), [], [0.0], [1]
    detector = LostContext(stats, lambda level, event, **_: said.append(event), lambda: serving[0], lambda: now[0])
    counter = stats.counter(LOST, "")
    detector(finished(method=b"CONNECT"))
    assert counter.value == 0
    for _ in range(3):
        detector(finished())
    assert (counter.value, said) == (3, ["trace context lost"])
    now[0] += lost.PAUSE
    serving[0] = 0
    detector(finished())
    assert (counter.value, len(said)) == (3, 1)
    serving[0] = 2
    detector(finished())
    assert (counter.value, len(said)) == (4, 2)
