"""`l7proxy check`: every mistake of a configuration, one line each, and nothing is started."""

import argparse
import asyncio
import random
import sys
from collections.abc import Coroutine
from typing import Any

from msgspec import structs

from l7proxy.cli import flags
from l7proxy.config.load import load
from l7proxy.config.model import Model
from l7proxy.core.errors import ConfigError
from l7proxy.core.handler import Keep
from l7proxy.core.slices import finish
from l7proxy.core.stats import Stats
from l7proxy.proxy.compile import Compiler
from l7proxy.telemetry.facade import Telemetry
from l7proxy.telemetry.log import Log


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("paths", metavar="PATH", nargs="*", help="a YAML file or a folder of them")
    parser.add_argument(
        "-c",
        "--config",
        metavar="PATH",
        action="append",
        default=[],
        help="the same, as `run` takes it; repeatable (or L7PROXY_CONFIG)",
    )
    flags.configure(parser)


def run(args: argparse.Namespace) -> int:
    """Prints `file:line: message` for each mistake and each warning; returns 1 when there is a mistake."""
    paths = [*args.config, *args.paths] or flags.paths()
    if not paths:
        print("l7proxy check: name a file or a folder", file=sys.stderr)
        return 2
    try:
        model = load(paths, flags.overrides(args), thorough=True)
        for warning in model.warnings:
            print(f"{warning} (warning)", file=sys.stderr)
        asyncio.run(_compile(model))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    count = len(model.routes)
    print(f"ok: {count} {'route' if count == 1 else 'routes'}, version {model.version}")
    return 0


async def _compile(model: Model) -> None:
    """Compiles the model as `run` would, but opens no log and no connection; raises ConfigError."""
    quiet = structs.replace(model.sidecar.spec, access_log=None, tracing=None)
    stats = Stats()
    telemetry = Telemetry(stats, Log(stats, level="error"))
    compiler = Compiler(telemetry, Keep(), random.Random(), _never)
    try:
        finish(compiler.steps(structs.replace(model, sidecar=structs.replace(model.sidecar, spec=quiet))))
    finally:
        compiler.rollback()
        telemetry.close()


def _never(work: Coroutine[Any, Any, Any]) -> None:
    work.close()
