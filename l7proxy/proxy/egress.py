"""Outbound requests to hosts that no route names, where ALLOW_ANY lets them pass."""

from collections import OrderedDict
from random import Random

from l7proxy.core.errors import ProxyError
from l7proxy.core.fields import split_host_port
from l7proxy.core.message import Request, Response
from l7proxy.core.stats import Stats
from l7proxy.telemetry.metrics import Metrics
from l7proxy.upstream.cluster import Cluster, Settings
from l7proxy.upstream.dial import Dial
from l7proxy.upstream.endpoint import Endpoint
from l7proxy.upstream.pool import H1Transport
from l7proxy.upstream.transport import url_of
from l7proxy.upstream.waiting import Load

NAME = "passthrough"
MAX_HOSTS = 1000
"""Destinations whose connections are kept; the one unused for longest makes room for a new one."""


class Egress:
    """Calls each request's own destination."""

    def __init__(self, stats: Stats, metrics: Metrics, random: Random) -> None:
        self._stats = stats
        self._metrics = metrics.upstream(NAME)
        self._random = random
        self._load = Load()
        self._clusters: OrderedDict[str, Cluster] = OrderedDict()

    async def send(self, request: Request) -> Response:
        """Sends to the address that the client dialled, or to the host that it names."""
        if request.destination is not None:
            host, port = request.destination
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        else:
            address = request.authority.decode("latin-1").lower()
            if address.endswith("]") or ":" not in address:
                address += ":80"
        cluster = self._clusters.get(address)
        if cluster is None:
            cluster = self._open(address)
        else:
            self._clusters.move_to_end(address)
        return await cluster.send(request)

    def close(self) -> None:
        """Lets go of every destination."""
        for cluster in self._clusters.values():
            cluster.close()
        self._clusters.clear()

    def _open(self, address: str) -> Cluster:
        try:
            host, port = split_host_port(address)
        except ValueError as error:
            raise ProxyError("egress_blocked", str(error)) from None
        cluster = Cluster(NAME, Settings(), self._load, self._metrics, self._stats, self._random)
        transport = H1Transport(Dial(host, port), self._load, self._metrics)
        cluster.set_endpoints([Endpoint(address, url_of("http", address), transport)])
        self._clusters[address] = cluster
        if len(self._clusters) > MAX_HOSTS:
            self._clusters.popitem(last=False)[1].close()
        return cluster
