"""The load generators: each returns what it counted, or raises BenchError when an answer was not 2xx."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.process import LOAD_CORE, BenchError
from bench.stats import percentile

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of a generator saw: answers, seconds, latencies in seconds, answers that may still be under way."""

    requests: int
    seconds: float
    p50: float | None = None
    p99: float | None = None
    unfinished: int = 0
    extra: Mapping[str, float] = field(default_factory=dict)


def run(command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None) -> str:
    """Runs a generator on the load core and returns what it printed; it has `seconds` plus 30 to end."""
    done = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), *command],
        capture_output=True,
        text=True,
        timeout=seconds + 30,
        env={**os.environ, **(env or {})},
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"{command[0]} ended with status {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def wrk(
    url: str, connections: int, seconds: int, env: Mapping[str, str] | None = None, host: str | None = None
) -> Load:
    """Sends as many GET requests as `connections` keep-alive connections carry."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "--latency"]
    command += ["-H", f"Host: {host}", url] if host else [url]
    text = run(command, seconds, env)
    if "Non-2xx" in text or "Socket errors" in text:
        raise BenchError(f"wrk {url}: not every answer was 2xx:\n{text}")
    counted = _search(r"(\d+) requests in ([\d.]+)(\w+),", text)
    return Load(
        requests=int(counted[1]),
        seconds=float(counted[2]) * _UNITS[counted[3]],
        p50=_latency(text, "50%"),
        p99=_latency(text, "99%"),
        unfinished=connections,
    )


def h2load(
    url: str,
    connections: int,
    seconds: int,
    streams: int = 1,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Load:
    """Sends as many requests as `connections` x `streams` carry for `seconds`; HTTP/2 unless `--h1` is an option."""
    log = Path(f"/tmp/h2load-{os.getpid()}.tsv")
    command = ["h2load", f"-c{connections}", f"-m{streams}", f"-D{seconds}", f"--log-file={log}", *options, url]
    return _h2load(command, log, seconds, connections * streams, env)


def h2load_count(url: str, connections: int, requests: int, options: Sequence[str] = ()) -> Load:
    """Sends exactly `requests` requests."""
    log = Path(f"/tmp/h2load-{os.getpid()}.tsv")
    command = ["h2load", f"-c{connections}", f"-n{requests}", f"--log-file={log}", *options, url]
    return _h2load(command, log, 60, 0, None)


def h2load_rate(url: str, rate: int, seconds: float, env: Mapping[str, str] | None = None) -> Load:
    """Sends `rate` requests a second, evenly spread: one connection starts each millisecond, each with its own beat."""
    connections = 20 if rate <= 2000 else 32
    each = max(1, round(rate * seconds / connections))
    log = Path(f"/tmp/h2load-{os.getpid()}.tsv")
    command = [
        "h2load",
        f"-c{connections}",
        f"-n{each * connections}",
        "-r1",
        "--rate-period=1ms",
        f"--rps={rate / connections}",
        f"--log-file={log}",
        "--h1",
        url,
    ]
    return _h2load(command, log, seconds, 0, env)


def _h2load(command: Sequence[str], log: Path, seconds: float, unfinished: int, env: Mapping[str, str] | None) -> Load:
    log.unlink(missing_ok=True)
    try:
        text = run(command, seconds, env)
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    finally:
        log.unlink(missing_ok=True)
    done = _search(r"requests: (\d+) total, .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
    if any(int(done[group]) for group in (3, 4, 5)) or not rows:
        raise BenchError(f"{' '.join(command)}: not every answer was 2xx:\n{text}")
    began = min(int(row[0]) for row in rows)
    ended = max(int(row[0]) + int(row[2]) for row in rows)
    times = [int(row[2]) / 1e6 for row in rows]
    return Load(
        requests=int(done[2]),
        seconds=(ended - began) / 1e6,
        p50=percentile(times, 0.5),
        p99=percentile(times, 0.99),
        unfinished=unfinished,
    )


def _search(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    if found is None:
        raise BenchError(f"unexpected output:\n{text}")
    return found


def _latency(text: str, part: str) -> float:
    found = _search(rf"\s{part}\s+([\d.]+)(\w+)", text)
    return float(found[1]) * _UNITS[found[2]]
