"""What the process itself uses, under the names that Prometheus' client libraries give it, and the event loop's lag."""

import asyncio
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

from l7proxy.core.stats import Stats

PERIOD = 0.25
"""Seconds between two looks at the event loop."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_DESCRIPTORS = "/proc/self/fd"


def observe_process(stats: Stats) -> None:
    """Adds the metrics of the process; they are read when they are asked for."""
    cpu = stats.counter("process_cpu_seconds_total", "User and system CPU time spent in seconds")

    def refresh() -> None:
        cpu.value = time.process_time()

    stats.refresh.append(refresh)
    gauges: tuple[tuple[str, str, Callable[[], float]], ...] = (
        ("process_resident_memory_bytes", "Resident memory size in bytes", lambda: _memory(1)),
        ("process_virtual_memory_bytes", "Virtual memory size in bytes", lambda: _memory(0)),
        ("process_open_fds", "Number of open file descriptors", open_descriptors),
        ("process_max_fds", "Maximum number of open file descriptors", _max_descriptors),
    )
    for name, help, read in gauges:
        stats.gauge(name, help, read)
    started = stats.gauge("process_start_time_seconds", "Start time of the process since unix epoch in seconds")
    started.value = _start_time()


def open_descriptors() -> float:
    """Returns how many descriptors are open; newer kernels tell without a list of them all."""
    return os.stat(_DESCRIPTORS).st_size or len(os.listdir(_DESCRIPTORS))


class LoopLag:
    """Observes how late the event loop does what is due: the time that every request waits at that moment."""

    def __init__(self, stats: Stats, loop: asyncio.AbstractEventLoop) -> None:
        self._lag = stats.histogram("l7proxy_event_loop_lag_seconds", "How late the event loop runs what is due")
        self._loop = loop
        self._due = time.monotonic() + PERIOD
        self._timer = loop.call_later(PERIOD, self._look)

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = time.monotonic()
        self._lag.observe(max(0.0, now - self._due))
        self._due = now + PERIOD
        self._timer = self._loop.call_later(PERIOD, self._look)


def _memory(field: int) -> float:
    return int(Path("/proc/self/statm").read_text().split()[field]) * _PAGE


def _max_descriptors() -> float:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _start_time() -> float:
    """Returns when the process began, in seconds since the epoch: field 22 of proc(5)'s stat, in ticks since boot."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / _TICK
