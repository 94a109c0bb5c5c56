"""Ports that nobody else uses, and waiting that ends as soon as it can."""

import os
import random
import socket
import time
from collections.abc import Callable
from typing import TypeVar

Address = tuple[str, int]
T = TypeVar("T")

# Below the kernel's ephemeral range, or an outgoing connection of another test could take the port first.
_PORTS = range(20_000, 32_000)
_given: set[int] = set()
_random = random.Random(os.getpid() ^ time.monotonic_ns())


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that nothing listens on and that this process has not given out before."""
    for _ in range(1000):
        port = _random.choice(_PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError("no free port")


def free_address() -> Address:
    """Returns ("127.0.0.1", a free port)."""
    return "127.0.0.1", free_port()


def wait_for(what: Callable[[], T | None], timeout: float = 5.0, message: str | Callable[[], str] = "") -> T:
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
