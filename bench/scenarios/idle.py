"""Idle keep-alive connections: what each costs in memory, and whether all of them still work."""

import resource
import socket
from dataclasses import dataclass
from typing import ClassVar

from bench.compare import Plan
from bench.contenders import ENVOY, FULL, L7PROXY, NGINX, Contender, Proxy
from bench.lab import SIZES, Lab
from bench.load import h2load_count
from bench.model import Finding, Result
from bench.process import BenchError

CONNECTIONS = 10_000
GOAL = 10 * 1024
REQUEST = b"GET /1k HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Idle:
    """Opens the connections with one request each, looks at the memory, and sends one more request on each."""

    name: ClassVar[str] = "idle"
    title: ClassVar[str] = f"{CONNECTIONS:,} idle keep-alive connections, features on"

    def run(self, lab: Lab, plan: Plan) -> Result:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        if most < CONNECTIONS + 1000:
            raise BenchError(f"{CONNECTIONS} connections need more than the {most} descriptors that are allowed")
        result = Result(self.name, self.title)
        for contender in (L7PROXY, ENVOY, NGINX):
            if plan.wants(contender):
                with result.without(contender.name):
                    result.findings.append(self._measure(lab, contender))
        result.notes.append(f"All {CONNECTIONS:,} connections of each answered a second request afterwards.")
        return result

    def _measure(self, lab: Lab, contender: Contender) -> Finding:
        proxy = contender.start(lab, FULL, contender.name)
        held: list[socket.socket] = []
        try:
            h2load_count(proxy.url("/1k"), 32, 2000, ["--h1"])
            before = proxy.process.rss()
            for _ in range(CONNECTIONS):
                held.append(socket.create_connection(("127.0.0.1", proxy.port), 5))
                _exchange(proxy, held[-1])
            each = (proxy.process.rss() - before) / CONNECTIONS
            for connection in held:
                _exchange(proxy, connection)
        finally:
            for connection in held:
                connection.close()
            proxy.process.stop()
        text = f"{contender.name}: memory of an idle connection"
        if contender is not L7PROXY:
            return Finding(text, each / 1024, "KiB")
        return Finding(text, each / 1024, "KiB", f"<= {GOAL // 1024} KiB", each <= GOAL)


def _exchange(proxy: Proxy, connection: socket.socket) -> None:
    """Sends one request and reads its answer to the end."""
    try:
        connection.sendall(REQUEST)
        answer = connection.recv(4096)
        while answer.startswith(b"HTTP/1.1 200 ") and len(answer.partition(b"\r\n\r\n")[2]) < SIZES["1k"]:
            more = connection.recv(4096)
            if not more:
                break
            answer += more
    except OSError as error:
        raise BenchError(f"{proxy.label}: an idle connection is not usable: {error}") from error
    if not answer.startswith(b"HTTP/1.1 200 ") or len(answer.partition(b"\r\n\r\n")[2]) != SIZES["1k"]:
        raise BenchError(f"{proxy.label}: an idle connection answered {answer[:300]!r}")


SCENARIOS = (Idle(),)
