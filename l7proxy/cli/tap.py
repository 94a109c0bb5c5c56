"""`l7proxy tap`: single requests of a running sidecar, as they end."""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from l7proxy.cli import asking
from l7proxy.cli.asking import NoAnswer, Sidecar, printable

_FILTERS = (
    ("direction", "inbound or outbound"),
    ("route", "the name of the Route that took it, '' for none"),
    ("method", "its method"),
    ("path", "what its path begins with"),
    ("status", "its status, or 2xx, 4xx, ..."),
    ("peer", "the caller's identity, or what it begins with and *"),
    ("flag", "its response flag, like UF or RL"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    asking.add_arguments(parser)
    filters = parser.add_argument_group(
        "which requests", "Each is repeatable: one of its values has to fit, and one of every other that is given."
    )
    for name, help in _FILTERS:
        filters.add_argument(f"--{name}", metavar=name.upper(), action="append", default=[], help=help)
    shown = parser.add_argument_group("how much of each")
    shown.add_argument(
        "--headers",
        metavar="NAME,...",
        nargs="?",
        const="",
        help="header fields too; values that may be secrets are hidden, but for those of these names",
    )
    shown.add_argument("--show-secrets", action="store_true", help="every header field in the clear, and the query")
    shown.add_argument("--json", action="store_true", help="one JSON object a line, as in the access log")
    end = parser.add_argument_group("when to end")
    end.add_argument("--limit", metavar="N", type=int, default=0, help="after N requests")
    end.add_argument(
        "--for",
        metavar="TIME",
        dest="seconds",
        type=asking.seconds,
        default=600.0,
        help="after 30s, 5m, ...; at most 1h (default: 10m)",
    )
    parser.epilog = (
        "No request waits for this: those that end faster than they are read are left out, and it says how many. "
        "Fields of a request are shown as they went to the upstream."
    )


def run(args: argparse.Namespace) -> int:
    """Prints requests until it is told to end; returns 1 when nothing answers."""
    return asking.ask("tap", args, lambda sidecar: _tap(sidecar, args))


def _tap(sidecar: Sidecar, args: argparse.Namespace) -> None:
    told: dict[str, Any] = {}
    noted = 0.0
    for line in sidecar.lines("/tap", list(_query(args))):
        told = msgspec.json.decode(line)
        if "seen" in told:
            # Where much is left out there is a note of it many times a second.
            if told["event"] != "dropped" or time.monotonic() - noted > 1:
                noted = time.monotonic()
                _note(told)
        elif args.json:
            print(line.decode(), end="", flush=True)
        else:
            print("\n".join(_lines(told)), flush=True)
    if told.get("event") != "end":
        raise NoAnswer(sidecar.gone())


def _query(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for name, _ in _FILTERS:
        yield from ((name, value) for value in getattr(args, name))
    if args.headers is not None or args.show_secrets:
        yield "headers", "true"
    for name in (args.headers or "").split(","):
        if name.strip():
            yield "reveal", name.strip()
    if args.show_secrets:
        yield "secrets", "true"
    yield "seconds", str(args.seconds)
    yield "limit", str(args.limit)


def _note(note: dict[str, Any]) -> None:
    """Tells of the tap itself, beside the requests."""
    told, seen, dropped = note["told"], note["seen"], note["dropped"]
    left_out = f", {dropped} left out as they came faster than they were read" if dropped else ""
    if note["event"] == "end" or dropped or (note["event"] == "waiting" and not told):
        print(f"{told} shown of {seen} that ended{left_out}", file=sys.stderr, flush=True)


_EVENTS = {"request": "", "tunnel_open": "tunnel opens ", "tunnel_end": "tunnel ends "}


def _lines(told: dict[str, Any]) -> Iterator[str]:
    query = f"?{told['query']}" if told.get("query") else ""
    parts = [
        told["time"][11:23],
        f"{told['direction']:8}",
        f"{told['status']} {told['flags'] or '-':4}",
        f"{told['duration_ms']:8.1f}ms",
        f"{_EVENTS[told['event']]}{told['method'] or '?'} {printable(told['authority'] + told['path'] + query)}",
        f"route {told['route']}" if told["route"] else "no route",
    ]
    if told["upstream"]:
        attempts = f" at attempt {told['attempts']}" if told["attempts"] > 1 else ""
        parts.append(f"to {told['upstream']} {told['endpoint'] or '-'}{attempts}")
    parts.append(f"from {printable(told['peer'] or told['source'] or '?')}")
    if told["code"]:
        parts.append(f"{told['code']}{': ' if told['detail'] else ''}{printable(told['detail'])}")
    yield "  ".join(parts)
    for mark, side in ((">", "request_headers"), ("<", "response_headers")):
        for name, value in told.get(side, ()):
            yield f"    {mark} {printable(f'{name}: {value}')}"
