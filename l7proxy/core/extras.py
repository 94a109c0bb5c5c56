"""Optional dependencies: imported when configured, and missed with the name of the extra that brings them."""

import importlib
from typing import Any


class MissingExtra(Exception):
    """A configured feature needs a package that is not installed."""


def need(module: str, extra: str) -> Any:
    """Imports `module`, or raises MissingExtra naming the pip extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise MissingExtra(f"this needs the package {package!r}: pip install 'l7proxy[{extra}]'") from error
