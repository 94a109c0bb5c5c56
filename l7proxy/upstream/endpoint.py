"""One address of an upstream: its transport, and what its answers say of its health."""

from typing import Any

from l7proxy.upstream.transport import Transport


class Endpoint:
    """One address. `latency` is a moving average in seconds and `stamp` the monotonic time of its last sample."""

    __slots__ = ("address", "url", "transport", "key", "active", "latency", "stamp", "failures", "ejected_until",
                 "ejections", "probing", "users")  # fmt: skip

    def __init__(self, address: str, url: Any, transport: Transport, key: object = None) -> None:
        self.address = address
        self.url = url
        self.transport = transport
        self.key = key
        """What its connections were made by: an endpoint with an equal key can take its place."""
        self.active = 0
        self.latency = 0.0
        self.stamp = 0.0
        self.failures = 0
        self.ejected_until = 0.0
        self.ejections = 0
        self.probing = False
        self.users = 0
        """Clusters that hold this endpoint: it outlives the one that made it."""
