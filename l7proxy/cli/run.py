"""`l7proxy run`: the sidecar itself."""

import argparse
import sys

from l7proxy.config.load import app_model
from l7proxy.core.errors import ConfigError
from l7proxy.server import run as server


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


def run(args: argparse.Namespace) -> int:
    """Serves until a signal ends the process."""
    if not args.config and not args.app:
        print("l7proxy run: name the application with --app URL, or a configuration with -c PATH", file=sys.stderr)
        return 2
    server.prepare()
    try:
        if not args.config:
            status = server.run(app_model(args.app))
        else:
            from l7proxy.config.files import Files

            source = Files(args.config, args.app)
            status = server.run(source.load(), source)
    except ConfigError as error:
        server.complain(str(error))
        status = 1
    return server.leave(status)
