"""The flags of `run` that stand in place of values of the YAML, and the variables that stand in place of the flags."""

import argparse
import difflib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from l7proxy.config.overrides import Overrides
from l7proxy.core.errors import ConfigError, Problem
from l7proxy.core.fields import collector_url, url

PREFIX = "L7PROXY_"
_OURS = ("CONFIG", "LOG_LEVEL")
_KUBERNETES = re.compile(r"(^|_)(SERVICE_HOST|SERVICE_PORT|PORT)(_|$)")
"""What Kubernetes adds to the environment of every container beside a Service that is called l7proxy or l7proxy-..."""


class Flag(NamedTuple):
    """`--NAME VALUE`, and the variable `L7PROXY_NAME`."""

    name: str
    metavar: str
    help: str
    read: Callable[[str], Any]

    @property
    def variable(self) -> str:
        return f"{PREFIX}{self.name.upper()}"


def _text(value: str) -> str:
    return value


def _count(value: str) -> int:
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= 256):
        raise ValueError(f"{value!r} is not a number of processes from 1 to 256")
    return int(value)


FLAGS = (
    Flag("app", "URL", "the local application, like http://127.0.0.1:8080", url),
    Flag("service", "NAME", "the service's name", _text),
    Flag("namespace", "NAME", "the Kubernetes namespace", _text),
    Flag("mesh", "NAME", "the mesh that the service belongs to", _text),
    Flag("otlp", "URL", "the OTLP collector that gets the spans, http:// or grpc://", collector_url),
    Flag("workers", "N", "the number of processes that share the ports", _count),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    group = parser.add_argument_group("in place of what the YAML says")
    for flag in FLAGS:
        group.add_argument(f"--{flag.name}", metavar=flag.metavar, help=f"{flag.help} (or {flag.variable})")


def overrides(args: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Overrides:
    """Returns what flags and variables say; a flag wins, and an empty variable is none.

    Raises ConfigError for each value that is wrong, and for variables of our prefix that mean nothing.
    """
    problems = [Problem(name, 0, message) for name, message in _unknown(environment)]
    found: dict[str, Any] = {}
    for flag in FLAGS:
        given: str | None = getattr(args, flag.name)
        name, value = (
            (f"--{flag.name}", given) if given is not None else (flag.variable, environment.get(flag.variable))
        )
        if not value and given is None:
            continue
        try:
            found[flag.name] = flag.read(value or "")
        except ValueError as error:
            problems.append(Problem(name, 0, str(error)))
    if problems:
        raise ConfigError(problems)
    return Overrides(**found)


def variable(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """Returns what a variable of our prefix says, "" when it is unset."""
    assert name in _OURS
    return environment.get(PREFIX + name, "")


def paths() -> list[str]:
    """Returns the files and folders that L7PROXY_CONFIG names."""
    return [path for path in variable("CONFIG").split(os.pathsep) if path]


def _unknown(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    known = [*(flag.variable for flag in FLAGS), *(PREFIX + name for name in _OURS)]
    found = []
    for name in environment:
        if name.startswith(PREFIX) and name not in known and not _KUBERNETES.search(name.removeprefix(PREFIX)):
            near = difflib.get_close_matches(name, known, 1)
            found.append((name, f"there is no such variable{f'; did you mean {near[0]}?' if near else ''}"))
    return found
