"""What operators wait for: the start of the process, and the scrape of its metrics."""

import http.client
import ssl
import time
from dataclasses import dataclass
from typing import ClassVar

from bench import certs
from bench.client import fetch
from bench.compare import Plan
from bench.contenders import ENVOY, FULL, HAPROXY, L7PROXY, NGINX, Contender, Proxy, Setup
from bench.every import Every
from bench.lab import Lab
from bench.load import h2load_rate
from bench.model import Finding, Result
from bench.process import BenchError
from bench.scenarios.routes import documents
from bench.stats import median

ROUTES = 100
SCRAPE_GOAL_MS = 150


@dataclass(frozen=True, slots=True)
class Startup:
    """The time from the start of the process to its first forwarded answer."""

    name: ClassVar[str] = "startup"
    title: ClassVar[str] = "From the start of the process to the first answer, features on"

    def run(self, lab: Lab, plan: Plan) -> Result:
        result = Result(self.name, self.title)
        for contender in (L7PROXY, ENVOY, NGINX, HAPROXY):
            if plan.wants(contender):
                with result.without(contender.name):
                    value = median([_start(lab, contender) for _ in range(max(3, plan.rounds))])
                    goal = "<= 0.5 s" if contender is L7PROXY else ""
                    result.findings.append(Finding(contender.name, value, "s", goal, value <= 0.5 if goal else None))
        return result


def _start(lab: Lab, contender: Contender) -> float:
    began = time.monotonic()
    proxy = contender.start(lab, FULL, contender.name)
    taken = time.monotonic() - began
    proxy.process.stop()
    return taken


@dataclass(frozen=True, slots=True)
class Scrape:
    """Scrapes the metrics of 100 routes called by 20 identities, at rest and under 1,000 requests/s."""

    name: ClassVar[str] = "scrape"
    title: ClassVar[str] = f"l7proxy: a scrape of {ROUTES} routes x {len(certs.CALLERS)} peers, mTLS, features on"

    def run(self, lab: Lab, plan: Plan) -> Result:
        result = Result(self.name, self.title)
        if not plan.wants(L7PROXY):
            return result
        proxy = L7PROXY.start(lab, Setup(tls=True, more=documents(ROUTES)), "l7proxy")
        try:
            for caller in certs.CALLERS:
                _call_all_routes(proxy, caller)
            self._at_rest(proxy, result)
            self._under_load(proxy, result, plan)
        finally:
            proxy.process.stop()
        return result

    def _at_rest(self, proxy: Proxy, result: Result) -> None:
        series = proxy.metrics().count("\nhttp_server_request_duration_seconds_count{")
        if series < ROUTES * len(certs.CALLERS):
            raise BenchError(f"{series} request series for {ROUTES} routes x {len(certs.CALLERS)} peers")
        spent = []
        for _ in range(5):
            before = proxy.process.cpu()
            page = proxy.metrics()
            spent.append(1000 * (proxy.process.cpu() - before))
        value = median(spent)
        result.findings.append(
            Finding("CPU of a scrape", value, "ms", f"<= {SCRAPE_GOAL_MS} ms", value <= SCRAPE_GOAL_MS)
        )
        result.notes.append(f"{series:,} series of request durations; a page of {len(page) / 2**20:.1f} MiB.")

    def _under_load(self, proxy: Proxy, result: Result, plan: Plan) -> None:
        env, seconds = proxy.lab.client_certificate(), max(6, plan.seconds)
        quiet, busy = [], []
        for _ in range(plan.rounds):
            quiet.append(h2load_rate(proxy.url("/1k"), 1000, seconds, env).p99 or 0.0)
            with Every(2.0, lambda: fetch(f"http://127.0.0.1:{proxy.admin_port}/metrics")):
                busy.append(h2load_rate(proxy.url("/1k"), 1000, seconds, env).p99 or 0.0)
        value = median([one / other for one, other in zip(busy, quiet, strict=True)])
        result.findings += [
            Finding("p99 at 1,000 requests/s, no scrape", 1000 * median(quiet), "ms"),
            Finding("p99 at 1,000 requests/s, a scrape every 2 s", 1000 * median(busy), "ms"),
            Finding("rise of the p99 by the scrapes", value, "x", "<= 1.5x", value <= 1.5),
        ]


def _call_all_routes(proxy: Proxy, caller: str) -> None:
    context = ssl.create_default_context(cafile=str(proxy.lab.certs / "ca.crt"))
    context.load_cert_chain(proxy.lab.certs / f"{caller}.pem")
    connection = http.client.HTTPSConnection("127.0.0.1", proxy.port, timeout=5, context=context)
    try:
        for number in range(ROUTES):
            connection.request("GET", "/1k", headers={"Host": f"h{number}.bench"})
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise BenchError(f"{caller} got {response.status} from route {number}")
    except OSError as error:
        raise BenchError(f"{caller} cannot call: {error}") from error
    finally:
        connection.close()


SCENARIOS = (Startup(), Scrape())
