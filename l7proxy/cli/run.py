"""`l7proxy run`: the sidecar itself."""

import argparse
import os
import sys

from l7proxy.config.load import app_model
from l7proxy.core.errors import ConfigError
from l7proxy.server.program import complain, leave, prepare
from l7proxy.server.run import run as serve
from l7proxy.server.takeover import usual_path


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("--app", metavar="URL", help="the local application, like http://127.0.0.1:8080")
    parser.add_argument(
        "-c",
        "--config",
        metavar="PATH",
        action="append",
        default=[],
        help="a YAML file or a folder of them; repeatable",
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
    if not args.config and not args.app:
        print("l7proxy run: name the application with --app URL, or a configuration with -c PATH", file=sys.stderr)
        return 2
    prepare()
    try:
        if not args.config:
            status = serve(app_model(args.app), path=_meeting_point(args))
        else:
            from l7proxy.config.files import Files

            source = Files(args.config, args.app)
            status = serve(source.load(), source, _meeting_point(args))
    except (ConfigError, OSError) as error:
        complain(str(error))
        status = 1
    return leave(status)


def _meeting_point(args: argparse.Namespace) -> str | None:
    """Returns the Unix socket where processes take over from each other, None when they do not."""
    if args.takeover is None or args.takeover:
        path: str | None = args.takeover
        return path
    return usual_path(repr((args.app, [os.path.abspath(path) for path in args.config])))
