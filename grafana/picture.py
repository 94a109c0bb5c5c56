"""Draws panels of the dashboards from a real run: `python -m grafana.picture`.

The run is `l7proxy demo` under load that comes and goes. A visitor asks for what it may not have, somebody comes
without a certificate, and for a while the rate limit is lower: the configuration of the running sidecar is changed.
"""

import argparse
import contextlib
import http.client
import math
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from bench.svg import document, element, text
from grafana.files import ROOT
from grafana.live import Answered, Span, answered
from grafana.plot import Box, panel, style

PICTURE = ROOT.parent / "docs" / "pictures" / "service.svg"

WINDOW = "15s"
"""Over how much time rates are taken: a quarter of what Grafana takes by itself, as the run is short."""

WARMING = 20
"""Seconds before what is drawn: Prometheus looks for its targets 5 s after it began, and a rate needs its window."""

POINTS = 90
WIDTH, GAP, HEAD = 960.0, 10.0, 66.0
LIMIT, LOWERED = "requests: 500", "requests: 25"

# Rows from top to bottom: height, and (dashboard, panel, service) from left to right.
ROWS: list[tuple[float, list[tuple[str, str, str]]]] = [
    (88, [("service", title, "orders") for title in ("Requests", "Errors", "p50", "p99")]),
    (184, [("service", title, "orders") for title in ("Requests by route", "Errors by route", "p99 by route")]),
    (204, [("service", title, "orders") for title in ("Durations", "Percentiles")]),
    (
        184,
        [
            ("service", "Requests by caller", "orders"),
            ("service", "Status", "orders"),
            ("service", "Retries and rate limits", "web"),
        ],
    ),
    (184, [("security", title, "orders") for title in ("Denied by caller", "Rate limited", "Failed handshakes")]),
]


class Mark(NamedTuple):
    """What was done to the running demo, and when."""

    time: float
    what: str


class Failed(Exception):
    """There is no picture; the words say why."""


class Demo:
    """A running `l7proxy demo`: where things are, as it printed them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("Ctrl-C"):
                break
        self.web = self._find(r"^demo ready: (.+)$", said)
        self.prometheus = self._find(r"^demo prometheus: (http:.+)$", said)
        self.orders = self._find(r"(https:\S+)$", said)
        self.folder = Path(self._find(r" removes (.+)\.$", said))

    @staticmethod
    def _find(pattern: str, said: str) -> str:
        if found := re.search(pattern, said, re.MULTILINE):
            return found[1]
        raise Failed(f"the demo does not say what is needed:\n{said}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m grafana.picture", description="draws panels from a real run")
    parser.add_argument("--seconds", type=int, default=180, metavar="N", help="how long the run takes (default 180)")
    parser.add_argument("--to", type=Path, default=PICTURE, metavar="FILE", help=f"default {PICTURE}")
    args = parser.parse_args()
    # So that the demo is ended too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        picture = run(args.seconds)
    except Failed as error:
        print(f"grafana.picture: {error}", file=sys.stderr)
        return 1
    args.to.parent.mkdir(exist_ok=True)
    args.to.write_text(picture)
    print(args.to)
    return 0


def run(seconds: int) -> str:
    """Returns the picture of a demo that ran for `seconds`; raises Failed where a panel has nothing to show."""
    with _demo() as demo:
        begin = time.time() + min(WARMING, seconds)
        marks = _events(demo, begin, seconds)
        span = Span(begin, begin + seconds, max(1.0, round(seconds / POINTS)))
        panels = [
            [
                (answered(demo.prometheus, board, title, service, span, WINDOW), f"{board.capitalize()} · {service}")
                for board, title, service in row
            ]
            for _, row in ROWS
        ]
    if empty := [one.title for row in panels for one, _ in row if not one.shows()]:
        raise Failed(f"nothing to show: {', '.join(empty)}")
    return _draw(panels, span, marks)


@contextlib.contextmanager
def _demo() -> Iterator[Demo]:
    process = subprocess.Popen([sys.executable, "-m", "l7proxy", "demo"], stdout=subprocess.PIPE, text=True)
    try:
        yield Demo(process)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _events(demo: Demo, begin: float, seconds: int) -> list[Mark]:
    """Lets the run take its time; returns what was done."""
    over = threading.Event()
    certificates = demo.folder / "certs"
    visitor, nobody = (ssl.create_default_context(cafile=str(certificates / "ca.crt")) for _ in range(2))
    visitor.load_cert_chain(certificates / "visitor" / "tls.crt", certificates / "visitor" / "tls.key")

    def waves() -> float:
        return 30 - 25 * math.cos((time.time() - begin) / seconds * 4 * math.pi)

    callers = [
        threading.Thread(target=_ask, args=(over, *call))
        for call in ((waves, demo.web), (lambda: 4.0, demo.orders, visitor), (lambda: 1.0, demo.orders, nobody))
    ]
    for caller in callers:
        caller.start()
    file = demo.folder / "orders" / "sidecar.yaml"
    normal = file.read_text()
    marks: list[Mark] = []
    try:
        for share, what, configuration in (
            (0.6, "rate limit lowered", normal.replace(LIMIT, LOWERED)),
            (0.85, "and back", normal),
        ):
            time.sleep(max(begin + seconds * share - time.time(), 0))
            file.write_text(configuration)
            marks.append(Mark(time.time(), what))
        time.sleep(max(begin + seconds - time.time(), 0))
    finally:
        over.set()
        for caller in callers:
            caller.join(10)
    return marks


def _ask(over: threading.Event, rate: Callable[[], float], url: str, context: ssl.SSLContext | None = None) -> None:
    """Asks for `url` `rate()` times a second, each time on a connection of its own."""
    address = urlsplit(url)
    assert address.hostname
    while not over.wait(1 / rate()):
        connection = (
            http.client.HTTPSConnection(address.hostname, address.port, timeout=5, context=context)
            if context
            else http.client.HTTPConnection(address.hostname, address.port, timeout=5)
        )
        # Being refused is what some are there for.
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", address.path or "/")
            connection.getresponse().read()


def _draw(panels: Sequence[Sequence[tuple[Answered, str]]], span: Span, marks: Sequence[Mark]) -> str:
    done = ", ".join(f"{mark.what} at {_clock(mark.time - span.begin)}" for mark in marks)
    minutes = f"{(span.end - span.begin) / 60:.3g} minutes"
    parts = [
        style(),
        element("rect", class_="page fill", width="100%", height="100%"),
        text(GAP + 2, 28, "orders, as its sidecar sees it", class_="ink", font_size=17, font_weight="bold"),
        text(GAP + 2, 48, f"Panels of the dashboards, from {minutes} of l7proxy demo. Dashed: {done}.", class_="dim"),
    ]
    y = HEAD
    for (height, _), row in zip(ROWS, panels, strict=True):
        width = (WIDTH - GAP * (len(row) + 1)) / len(row)
        for at, (one, where) in enumerate(row):
            parts.append(
                panel(one, where, Box(GAP + at * (width + GAP), y, width, height), span, [mark.time for mark in marks])
            )
        y += height + GAP
    return document(WIDTH, y, parts)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


if __name__ == "__main__":
    sys.exit(main())
