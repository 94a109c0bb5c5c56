"""`l7proxy admin`: asks the admin API, or the probes, of a sidecar where there is no curl: in its own image."""

import argparse
import http.client
import socket
import sys
import time

# Nothing of ours is imported: as a health check this starts every ten seconds.
DEFAULT = "127.0.0.1:15000"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds this verb's arguments."""
    parser.add_argument("path", metavar="PATH", help="like /clusters; / lists all of them")
    parser.add_argument("--post", action="store_true", help="POST, for paths that change something: /drain, /quit, ...")
    parser.add_argument(
        "--at",
        metavar="ADDRESS",
        type=address,
        default=DEFAULT,
        help=f"where it listens: host:port or unix:PATH (default: {DEFAULT})",
    )
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=5.0, help="for an answer (default: 5)")
    parser.add_argument(
        "--wait", metavar="SECONDS", type=float, default=0.0, help="ask again until the answer is good, so long at most"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the answer; returns 0 when it is 2xx, else 1."""
    until = time.monotonic() + args.wait
    while True:
        good, said = _ask(args)
        if good or time.monotonic() >= until:
            print(said, end="" if said.endswith("\n") else "\n", file=sys.stdout if good else sys.stderr)
            return 0 if good else 1
        time.sleep(0.1)


def _ask(args: argparse.Namespace) -> tuple[bool, str]:
    """Returns whether the answer is good, and the answer, or why there is none."""
    connection = Connection(args.at, args.timeout)
    try:
        connection.request("POST" if args.post else "GET", args.path, headers={"host": "localhost"})
        response = connection.getresponse()
        return response.status // 100 == 2, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException, ValueError) as error:
        return False, f"l7proxy admin: {args.at}: {error}"
    finally:
        connection.close()


class Connection(http.client.HTTPConnection):
    """HTTP to `host:port`, `[v6]:port` or `unix:PATH`."""

    def __init__(self, address: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._address = address

    def connect(self) -> None:
        if self._address.startswith("unix:"):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._address.removeprefix("unix:"))
        else:
            host, _, port = self._address.rpartition(":")
            self.sock = socket.create_connection((host.strip("[]"), int(port)), self.timeout)


def address(text: str) -> str:
    """Reads an address of the command line."""
    host, _, port = text.rpartition(":")
    if not text.startswith("unix:/") and not (host and port.isdigit() and int(port) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port or unix:PATH")
    return text
