"""The one seam to Hypercorn: what of it we use, and nothing else imports it.

Its configuration and socket binding serve as they are. Its protocols do not: they are 5 to 25 times slower than ours,
show no peer certificate, and lose streams when they drain (see docs/decisions.md).
"""

import socket

from hypercorn.config import Config

BACKLOG = 4096


def bind(address: str, share: bool = False) -> list[socket.socket]:
    """Opens the listening sockets of `host:port`, `[v6]:port`, `unix:PATH` or `fd://N`.

    With `share` several processes may listen on the same port (SO_REUSEPORT). Raises OSError that names the address.
    """
    config = Config()
    config.bind = [address]
    config.workers = 2 if share else 1
    config.umask = 0o077 if address.startswith("unix:") else None
    try:
        sockets = config.create_sockets().insecure_sockets
        for sock in sockets:
            sock.listen(BACKLOG)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror or error}") from error
    return sockets
