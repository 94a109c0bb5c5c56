"""The command line: one module of `cli/` for each verb, imported only when it is asked for."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from l7proxy import __version__

VERBS = {
    "run": "run the sidecar",
    "check": "check a configuration and name every mistake",
    "explain": "say what becomes of a request, and why",
    "why": "say what happened to a finished request, and why",
    "top": "watch the requests of a running sidecar by route and upstream",
    "tap": "watch single requests of a running sidecar as they end",
    "test": "hold a configuration to the cases and invariants of test files",
    "diff": "say what changes between two configurations, as decisions on requests",
    "schema": "print the JSON Schema of the configuration",
    "demo": "run two services with a sidecar each",
    "admin": "ask a running sidecar over its admin API or its probes",
    "certs": "make certificates for a laptop or a demo",
}

UNREAD = 128 + 13
"""The status when nobody reads the output to its end: what a shell says of a program that SIGPIPE ended."""


ENDLESS = ("tap", "top")
"""Verbs that go on until nobody reads them any more: that is no failure of theirs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns 0, 1 when a configuration is wrong, or 2 for wrong usage, or UNREAD."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog="l7proxy", description="An HTTP-aware L7 sidecar for microservices.")
    parser.add_argument("--version", action="version", version=f"l7proxy {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    for verb, help in VERBS.items():
        subparser = verbs.add_parser(verb, help=help, description=f"{help[0].upper()}{help[1:]}.")
        if verb == asked:
            # Only the verb that runs is imported: `run` stays light.
            module = import_module(f"l7proxy.cli.{verb}")
            module.configure(subparser)
            subparser.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has seen enough; Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if args.verb in ENDLESS else UNREAD
    return status


if __name__ == "__main__":
    sys.exit(main())
