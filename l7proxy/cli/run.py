"""`l7proxy run`: the sidecar itself."""

import argparse
import os
import sys
from typing import cast

from l7proxy.cli import flags
from l7proxy.config.load import app_model
from l7proxy.config.overrides import Overrides
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.server.program import complain, end_at_signals, leave, prepare
from l7proxy.server.run import run as serve
from l7proxy.server.takeover import usual_path
from l7proxy.telemetry.log import LEVELS, Level


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument(
        "-c",
        "--config",
        metavar="PATH",
        action="append",
        default=[],
        help=f"a YAML file or a folder of them; repeatable (or L7PROXY_CONFIG, with {os.pathsep!r} between several)",
    )
    flags.configure(parser)
    parser.add_argument(
        "--log-level", metavar="LEVEL", choices=LEVELS, help=f"one of {', '.join(LEVELS)} (or L7PROXY_LOG_LEVEL)"
    )
    parser.add_argument(
        "--takeover",
        metavar="SOCKET",
        nargs="?",
        const="",
        help="take the listening sockets over from the process that was started with the same -c and --app, if there "
        "is one, and give them to the next; SOCKET is the Unix socket where they meet",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until a signal ends the process."""
    end_at_signals()
    prepare()
    try:
        paths = args.config or flags.paths()
        given = flags.overrides(args)
        level = _level(args)
        if not paths and given.app is None:
            print("l7proxy run: name the application with --app URL, or a configuration with -c PATH", file=sys.stderr)
            return 2
        meeting_point = _meeting_point(args.takeover, given, paths)
        if not paths:
            status = serve(app_model(given), path=meeting_point, level=level)
        else:
            from l7proxy.config.files import Files

            source = Files(paths, given)
            status = serve(source.load(), source, meeting_point, level)
    except (ConfigError, OSError) as error:
        complain(str(error))
        status = 1
    return leave(status)


def _level(args: argparse.Namespace) -> Level:
    level: str = args.log_level or flags.variable("LOG_LEVEL") or "info"
    if level not in LEVELS:
        raise ConfigError([Problem("L7PROXY_LOG_LEVEL", 0, f"{level!r} is not one of {', '.join(LEVELS)}")])
    return cast(Level, level)


def _meeting_point(takeover: str | None, given: Overrides, paths: list[str]) -> str | None:
    """Returns the Unix socket where processes take over from each other, None when they do not."""
    if takeover is None or takeover:
        return takeover
    return usual_path(repr((given.app, [os.path.abspath(path) for path in paths])))
