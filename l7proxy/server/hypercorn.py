"""The one seam to Hypercorn: what of it we use, and nothing else imports it.

Its configuration and socket binding serve as they are. Its protocols do not: they are 5 to 25 times slower than ours,
show no peer certificate, and lose streams when they drain (see docs/decisions.md).
"""

import socket

from hypercorn.config import Config

BACKLOG = 4096


def bind(address: str, workers: int = 1) -> list[socket.socket]:
    """Opens the listening sockets of `host:port`, `[v6]:port`, `unix:PATH` or `fd://N`: of TCP one for each worker.

    The kernel spreads connections over those of the workers (SO_REUSEPORT). Raises OSError that names the address.
    """
    sockets: list[socket.socket] = []
    config = Config()
    config.bind = [address]
    config.umask = 0o077 if address.startswith("unix:") else None
    try:
        # The first is alone on its port: the others would not notice another program that shares it.
        sockets += config.create_sockets().insecure_sockets
        if workers > 1 and sockets[0].family in (socket.AF_INET, socket.AF_INET6):
            sockets.pop().close()
            config.workers = workers
            for _ in range(workers):
                sockets += config.create_sockets().insecure_sockets
        for sock in sockets:
            sock.set_inheritable(False)
            sock.listen(BACKLOG)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror or error}") from error
    return sockets
