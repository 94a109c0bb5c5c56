"""File descriptors, and who may still open one when they become few.

The kernel gives each new descriptor the lowest free number, so a high one says that all below it are taken: that is
known at once, where counting takes longer the more there are.
"""

import os
import resource
from contextlib import suppress


def raise_limit() -> None:
    """Allows this process as many descriptors as its user may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def accept_ceiling() -> int:
    """Returns the number from which clients' connections have to wait: what is left is for connections to upstreams."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit - min(limit // 4, 1024)


def dial_ceiling() -> int:
    """Returns the number from which no connection to an upstream is opened: what is left is for operators and files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit - min(limit // 8, 16)


def below(ceiling: int) -> bool:
    """Says whether the next descriptor would be below `ceiling`."""
    try:
        number = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(number)
    return number < ceiling
