"""One client against the others: what their requests and the memory feel of clients that cost more than they pay."""

import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

from bench.compare import Plan
from bench.contenders import ENVOY, FULL, L7PROXY, Contender
from bench.lab import PARTS, Lab
from bench.load import h2load_rate
from bench.model import Finding, Result
from bench.process import LOAD_CORE, BenchError

ATTACKS = {
    "pipelining": "one connection that pipelines without end and reads nothing",
    "window": "one HTTP/2 connection with a window of 0 and 900 requests for 1 MB",
    "readers": "1,250 connections that ask for 1 MB and read nothing",
    "chunks": "16 uploads in chunks of one byte",
    "frames": "16 HTTP/2 uploads in DATA frames of one byte",
}
RATE = 200


@dataclass(frozen=True, slots=True)
class Hostile:
    """Sends 200 requests a second over connections that are opened while an attack goes on, for each attack."""

    name: ClassVar[str] = "hostile"
    title: ClassVar[str] = f"{RATE} requests/s of others while one client attacks, features on"

    def run(self, lab: Lab, plan: Plan) -> Result:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        result = Result(self.name, self.title)
        seconds = max(plan.seconds, 3)
        for attack, text in ATTACKS.items():
            for contender in (L7PROXY, ENVOY):
                if plan.wants(contender):
                    with result.without(f"{contender.name}, {attack}"):
                        result.findings += _attacked(lab, contender, attack, text, seconds)
        result.notes.append("Generator, attacker and backend share one core; the proxy has the other.")
        return result


def _attacked(lab: Lab, contender: Contender, attack: str, text: str, seconds: int) -> list[Finding]:
    proxy = contender.start(lab, FULL, contender.name)
    command = [sys.executable, "-m", "bench.parts.hostile", attack, str(proxy.port), str(seconds + 4)]
    try:
        h2load_rate(proxy.url("/1k"), RATE, 1)
        before = proxy.process.rss()
        with subprocess.Popen(
            ["taskset", "-c", str(LOAD_CORE), *command], stdout=subprocess.PIPE, cwd=PARTS.parent.parent
        ) as attacker:
            try:
                if attacker.stdout is None or attacker.stdout.readline() != b"ready\n":
                    raise BenchError(f"the attack {attack} on {contender.name} did not begin")
                time.sleep(1)
                others = h2load_rate(proxy.url("/1k"), RATE, seconds)
                during = proxy.process.rss()
            finally:
                attacker.kill()
        time.sleep(2)
        after = proxy.process.rss()
    finally:
        proxy.process.stop()
    name = f"{contender.name}, {text}"
    return [
        Finding(f"{name}: others' median", 1000 * (others.p50 or 0.0), "ms"),
        Finding(f"{name}: others' p99", 1000 * (others.p99 or 0.0), "ms"),
        Finding(f"{name}: memory more", (during - before) / 2**20, "MiB"),
        Finding(f"{name}: of that left afterwards", (after - before) / 2**20, "MiB"),
    ]


SCENARIOS = (Hostile(),)
