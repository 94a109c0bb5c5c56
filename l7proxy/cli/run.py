"""`l7proxy run`: the sidecar itself."""

import argparse
import sys

from l7proxy.config.load import app_model
from l7proxy.core.errors import ConfigError
from l7proxy.server.program import complain, leave, prepare
from l7proxy.server.run import run as serve


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
    prepare()
    try:
        if not args.config:
            status = serve(app_model(args.app))
        else:
            from l7proxy.config.files import Files

            source = Files(args.config, args.app)
            status = serve(source.load(), source)
    except ConfigError as error:
        complain(str(error))
        status = 1
    return leave(status)
