"""Ports that nobody else uses, and waiting that ends as soon as it can."""

import itertools
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Address = tuple[str, int]
T = TypeVar("T")

# Below the kernel's ephemeral range, or an outgoing connection of another test could take the port first; above the
# sidecar's own defaults, which some tests want. Each process takes one block, so that test processes side by side never
# pick the same port.
_FIRST, _BLOCK, _BLOCKS = 16_000, 1_000, 16
_ports: Iterator[int] | None = None
_lock: socket.socket | None = None


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that nothing listens on, and none that was given out shortly before."""
    global _ports
    if _ports is None:
        _ports = itertools.cycle(_own_block())
    for port in itertools.islice(_ports, _BLOCK):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no free port")


def _own_block() -> range:
    """Returns a block of ports that is this process's as long as it lives: an abstract socket is the lock."""
    global _lock
    for block in range(_BLOCKS):
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0l7proxy-test-ports-{block}")
        except OSError:
            lock.close()
            continue
        _lock = lock
        start = _FIRST + block * _BLOCK
        return range(start, start + _BLOCK)
    raise RuntimeError(f"more than {_BLOCKS} test processes at once")


def free_address() -> Address:
    """Returns ("127.0.0.1", a free port)."""
    return "127.0.0.1", free_port()


@contextmanager
def turn(name: str, timeout: float = 300.0) -> Iterator[None]:
    """Lets one test process at a time into the blocks of one name: for ports, say, that are not ours to choose."""

    def taken() -> socket.socket | None:
        lock = socket.socket(socket.AF_UNIX)
        try:
            lock.bind(f"\0l7proxy-test-{name}")
        except OSError:
            lock.close()
            return None
        return lock

    with wait_for(taken, timeout, f"{name} was never free"):
        yield


def wait_for(what: Callable[[], T | None], timeout: float = 10.0, message: str | Callable[[], str] = "") -> T:
    """Returns the first true value of `what()`, asked every 10 ms; raises AssertionError after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError((message() if callable(message) else message) or f"{what} stayed {value!r}")
        time.sleep(0.01)


def accepts(address: Address) -> bool:
    """True when something accepts connections at `address`."""
    try:
        socket.create_connection(address, 1).close()
    except OSError:
        return False
    return True
