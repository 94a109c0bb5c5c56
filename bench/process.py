"""Processes pinned to one core, and what the kernel says that they have used."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROXY_CORE = max(os.sched_getaffinity(0))
LOAD_CORE = min(os.sched_getaffinity(0))


class BenchError(Exception):
    """Ends the scenario: something that the figures rely on is not true."""


def free_port() -> int:
    """Returns a TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def core_busy(core: int) -> float:
    """Returns the seconds that a core has worked, for anybody, or was taken away by the hypervisor."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    raise BenchError(f"the kernel does not tell what core {core} does")


@dataclass(slots=True)
class Process:
    """A started command with its output in a file; figures cover the process and its living descendants."""

    name: str
    popen: subprocess.Popen[bytes]
    output: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    def tree(self) -> list[int]:
        """Returns the pids of the process and of all its descendants."""
        found = [self.pid]
        for pid in found:
            for task in _listing(Path(f"/proc/{pid}/task")):
                with suppress(OSError):
                    found.extend(int(child) for child in (task / "children").read_text().split())
        return found

    def cpu(self) -> float:
        """Returns the CPU seconds used so far, user and system, to the nanosecond."""
        total = 0.0
        for pid in self.tree():
            with suppress(OSError):
                # clock_getcpuclockid(3) computes this same number; /proc/PID/stat only counts in ticks of 10 ms.
                total += time.clock_gettime((~pid << 3) | 2)
        return total

    def cpu_with_children(self) -> float:
        """Returns the CPU seconds used so far, ended children included, in ticks of 10 ms."""
        total = 0
        for pid in self.tree():
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(int(field) for field in fields[11:15])
        return total / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        """Returns the resident memory in bytes."""
        total = 0
        for pid in self.tree():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmRSS:"):
                        total += int(line.split()[1]) * 1024
        return total

    def descriptors(self) -> int:
        """Returns how many file descriptors are open."""
        return sum(len(_listing(Path(f"/proc/{pid}/fd"))) for pid in self.tree())

    def alive(self) -> bool:
        return self.popen.poll() is None

    def tail(self, lines: int = 12) -> str:
        """Returns the last lines of the output, for error messages."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Asks the process to end, waits 5 seconds, then ends it and everything that it started."""
        pids = self.tree()
        if self.alive():
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(5)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait(5)
        for pid in pids[1:]:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def spawn(
    name: str,
    command: Sequence[str],
    cores: Sequence[int],
    output: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Process:
    """Starts `command` pinned to `cores`, its stdout and stderr appended to the file `output`."""
    with output.open("ab") as sink:
        popen = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, cores)), *command],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
    return Process(name, popen, output)


def wait_for_port(process: Process, port: int, seconds: float = 20) -> None:
    """Returns when `port` accepts connections; raises BenchError when the process ends or stays silent."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not process.alive():
            raise BenchError(f"{process.name} ended with status {process.popen.returncode}:\n{process.tail()}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.02)
    raise BenchError(f"{process.name} does not listen on {port} after {seconds:.0f} s:\n{process.tail()}")


def _listing(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
