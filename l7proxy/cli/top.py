"""`l7proxy top`: the requests of a running sidecar by route and upstream, as they come."""

import argparse
import datetime
import os
import sys
import time
from itertools import zip_longest

from l7proxy.admin.answers import Active, Metric
from l7proxy.cli import asking
from l7proxy.cli.asking import NoAnswer, Sidecar
from l7proxy.cli.red import NAMES, Reading, Red
from l7proxy.cli.screen import screen
from l7proxy.core.fields import show_duration

LEAST = 0.2
"""Seconds between two readings, at the least."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    asking.add_arguments(parser)
    parser.add_argument(
        "--interval",
        metavar="TIME",
        type=asking.seconds,
        default=2.0,
        help="how often to read, like 500ms (default: 2s)",
    )
    parser.add_argument("--once", action="store_true", help="print one interval and end, for scripts")
    parser.epilog = (
        "Rates, shares and percentiles are those of the last interval. FAILED counts statuses 5xx, and gRPC statuses "
        "that are errors of the service. Routes and upstreams without a request since the start are left out. In a "
        "terminal the newest table takes the place of the last one, and q ends it; elsewhere one follows the other."
    )


def run(args: argparse.Namespace) -> int:
    """Shows tables until it is told to end; returns 1 when nothing answers."""

    interval = max(LEAST, args.interval)

    def work(sidecar: Sidecar) -> None:
        if sys.stdout.isatty() and not args.once:
            _watch(sidecar, interval)
        else:
            _print(sidecar, interval, args.once)

    return asking.ask("top", args, work)


def read(sidecar: Sidecar) -> Reading:
    """Asks for all that a table is made of."""
    stats = sidecar.get("/stats", dict[str, Metric], [("name", name) for name in NAMES])
    return Reading(time.monotonic(), stats, sidecar.get("/requests", list[Active]))


def report(sidecar: Sidecar, before: Reading, now: Reading, height: int | None = None) -> list[str]:
    """Returns the lines of one refresh, `height` at the most."""
    seconds = now.when - before.when
    routes = [["ROUTE", "DIRECTION", *_COLUMNS, "IN-FLIGHT"]]
    routes += (
        [red.name or "-", red.direction, *_cells(red, seconds, now.bounds), str(red.active)]
        for red in now.routes(before)
    )
    upstreams = [["UPSTREAM", "CONNECTIONS", *_COLUMNS, "IN-FLIGHT"]]
    upstreams += (
        [red.name, str(red.connections), *_cells(red, seconds, now.bounds), str(red.active)]
        for red in now.upstreams(before)
    )
    lines = [_summary(sidecar, before, now), ""]
    if height is not None:
        # The upstreams get what the routes leave, but at least half of the room.
        room = max(0, height - len(lines) - 3)
        below = min(len(upstreams), max(room - len(routes), room // 2))
        routes, upstreams = _first(routes, room - below), _first(upstreams, below)
    return [*lines, *_aligned([*routes, [], *upstreams])]


_COLUMNS = ("RATE/S", "4XX%", "FAILED%", "P50", "P99")


def _cells(red: Red, seconds: float, bounds: list[float]) -> list[str]:
    shares = [f"{100 * part / red.count:.1f}" if red.count else "-" for part in (red.refused, red.failed)]
    return [f"{red.count / seconds:.1f}", *shares, *(_time(red.quantile(share, bounds)) for share in (0.5, 0.99))]


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds == float("inf"):
        return ">10s"
    return f"{seconds * 1000:.1f}ms" if seconds < 1 else f"{seconds:.2f}s"


def _summary(sidecar: Sidecar, before: Reading, now: Reading) -> str:
    cpu = (now.value("process_cpu_seconds_total") - before.value("process_cpu_seconds_total")) / (
        now.when - before.when
    )
    workers = int(now.value("l7proxy_workers"))
    parts = [
        sidecar.address,
        time.strftime("%H:%M:%S"),
        f"up {datetime.timedelta(seconds=int(time.time() - now.value('process_start_time_seconds')))}",
        *([f"{workers} workers"] if workers else []),
        f"{int(now.value('l7proxy_requests'))} requests in flight",
        f"CPU {100 * max(0.0, cpu):.0f} %",
        f"memory {int(now.value('process_resident_memory_bytes')) >> 20} MiB",
    ]
    return "   ".join(parts)


def _first(rows: list[list[str]], count: int) -> list[list[str]]:
    if len(rows) <= count:
        return rows
    return [*rows[: max(1, count - 1)], [f"... {len(rows) - max(1, count - 1)} more"]]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip_longest(*(row for row in rows if len(row) > 1), fillvalue="")]
    lines = []
    for row in rows:
        # Names stand to the left, numbers to the right.
        cells = [
            cell.ljust(width) if not place else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _print(sidecar: Sidecar, interval: float, once: bool) -> None:
    before = read(sidecar)
    while True:
        time.sleep(interval)
        now = read(sidecar)
        print("\n".join(report(sidecar, before, now)), end="\n" if once else "\n\n", flush=True)
        if once:
            return
        before = now


def _watch(sidecar: Sidecar, interval: float) -> None:
    before: Reading | None = read(sidecar)
    lines = [f"{sidecar.address}   measuring for {show_duration(interval)}; q ends it"]
    with screen() as draw:
        while not draw(lines, interval):
            try:
                now = read(sidecar)
                if before is not None:
                    lines = report(sidecar, before, now, os.get_terminal_size().lines)
                before = now
            except NoAnswer as error:
                # It may come back: the next one begins from what it says then.
                before, lines = None, [str(error)]
