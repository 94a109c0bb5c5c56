"""A child process with its output in files, ended by its id."""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support.net import wait_for


class Process:
    """A running program; `stdout` and `stderr` are files in `folder`, `env` adds to this process's environment."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.out = folder / f"{name}.out"
        self.err = folder / f"{name}.err"
        with self.out.open("ab") as out, self.err.open("ab") as err:
            self.popen = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env={**os.environ, **(env or {})},
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def stdout(self) -> str:
        return self.out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.err.read_text(errors="replace")

    @property
    def rss(self) -> int:
        """Resident memory in bytes."""
        return self._status("VmRSS:") * 1024

    @property
    def peak_rss(self) -> int:
        """The greatest resident memory so far, in bytes."""
        return self._status("VmHWM:") * 1024

    @property
    def cpu(self) -> float:
        """Seconds of CPU used so far, in user and system mode."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """The number of open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def wait_until(self, ready: Callable[[], object], timeout: float = 15.0) -> None:
        """Waits for `ready()`; fails with the program's stderr when it ends before, or after `timeout` seconds."""

        def check() -> bool:
            code = self.popen.poll()
            assert code is None, f"{self.name} ended with status {code}:\n{self.stderr}"
            return bool(ready())

        wait_for(check, timeout, lambda: f"{self.name} was not ready in {timeout} s:\n{self.stderr}")

    def kill(self, number: int) -> None:
        """Sends a signal, if the process still runs."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 10.0) -> int:
        """Sends a signal and returns the exit status; kills the process after `timeout` seconds."""
        self.kill(number)
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait(10)
            raise AssertionError(f"{self.name} did not end {timeout} s after its signal:\n{self.stderr}") from None

    def _status(self, key: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1])
        raise LookupError(key)
