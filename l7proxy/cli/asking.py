"""How a verb asks a running sidecar: where its admin API is, and what there is to say when nothing answers."""

import argparse
import http.client
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from l7proxy.cli import flags
from l7proxy.cli.admin import DEFAULT, Connection, address
from l7proxy.config.load import find_sidecar
from l7proxy.core.errors import ConfigError
from l7proxy.core.fields import duration

TIMEOUT = 30.0
"""Seconds that an answer may take; a sidecar that is under load answers operators all the same."""

Fields = Sequence[tuple[str, str]]
T = TypeVar("T")


class NoAnswer(Exception):
    """The admin API cannot be asked, or does not want to answer; its text is for who runs the verb."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says which sidecar is asked."""
    parser.add_argument(
        "--admin",
        metavar="ADDRESS",
        type=address,
        help=f"where its admin API is: HOST:PORT or unix:PATH (default: what -c says, else {DEFAULT})",
    )
    parser.add_argument(
        "-c",
        "--config",
        metavar="PATH",
        action="append",
        default=[],
        help="the configuration that it runs, which says where its admin API is; repeatable (or L7PROXY_CONFIG)",
    )


def ask(verb: str, args: argparse.Namespace, work: Callable[["Sidecar"], None]) -> int:
    """Lets `work` ask the sidecar that the arguments name; returns 1 when it cannot be asked, and says why."""
    try:
        work(_find(args))
    except NoAnswer as error:
        print(f"l7proxy {verb}: {error}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def _find(args: argparse.Namespace) -> "Sidecar":
    paths = args.config or flags.paths()
    if args.admin or not paths:
        return Sidecar(args.admin or DEFAULT)
    spec = find_sidecar(paths)
    if spec is None or spec.admin is None:
        raise NoAnswer(
            "the configuration has no admin listener: add `admin: {}` to the Sidecar, or name it with --admin"
        )
    if spec.admin.listen.endswith(":0"):
        raise NoAnswer("the sidecar has picked the port of its admin API: its log names it, for --admin")
    return Sidecar(spec.admin.listen)


def seconds(text: str) -> float:
    """Reads a time of the command line."""
    try:
        return duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def printable(text: str) -> str:
    """Returns the text without anything that a terminal would obey."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


class Sidecar:
    """The admin API at an address."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, kind: type[T], query: Fields = ()) -> T:
        """Returns what is answered, read as JSON of this kind. Raises NoAnswer."""
        with self._asked(path, query) as response:
            return msgspec.json.decode(response.read(), type=kind)

    def lines(self, path: str, query: Fields = ()) -> Iterator[bytes]:
        """Yields the lines of an answer as they come. Raises NoAnswer, also when none comes for `TIMEOUT`."""
        with self._asked(path, query) as response:
            yield from iter(response.readline, b"")

    def gone(self) -> str:
        """Says that it ended before its answer did."""
        return f"the sidecar at {self.address} went away"

    @contextmanager
    def _asked(self, path: str, query: Fields) -> Iterator[http.client.HTTPResponse]:
        begun = False
        try:
            with closing(Connection(self.address, TIMEOUT)) as connection:
                connection.request("GET", f"{path}?{urlencode(query)}" if query else path)
                response = connection.getresponse()
                if response.status != 200:
                    raise NoAnswer(self._refusal(path, response))
                begun = True
                yield response
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            raise NoAnswer(self._silence(error, begun)) from None

    def _refusal(self, path: str, response: http.client.HTTPResponse) -> str:
        try:
            why = msgspec.json.decode(response.read(), type=dict[str, Any])["error"]
        except (msgspec.DecodeError, KeyError):
            return f"what answers at {self.address} is no admin API of l7proxy: {response.status} for {path}"
        return f"the sidecar at {self.address} does not know {path}" if response.status == 404 else str(why)

    def _silence(self, error: Exception, begun: bool) -> str:
        if isinstance(error, TimeoutError):
            return f"what listens at {self.address} does not answer"
        if begun and not isinstance(error, msgspec.DecodeError):
            return self.gone()
        if isinstance(error, OSError):
            return (
                f"nothing answers at {self.address} ({error.strerror or error}): name the admin API with --admin or -c"
            )
        return f"what answers at {self.address} is no admin API of l7proxy"
