"""WebSocket: echo round trips through the tunnel."""

import json
import sys

from bench.compare import Comparison, Entry
from bench.contenders import ENVOY, FULL, HAPROXY, L7PROXY, NGINX, Proxy
from bench.load import Load, run
from bench.model import Goal


def echoes(proxy: Proxy, seconds: int) -> Load:
    """Plays ping-pong with 64-byte messages on 32 connections; each echo is compared with what was sent."""
    command = [sys.executable, "-m", "bench.parts.ws_load", "127.0.0.1", str(proxy.port), "/ws", "32", str(seconds)]
    found = json.loads(run(command, seconds))
    return Load(found["requests"], found["seconds"], found["p50"], found["p99"])


SCENARIOS = (
    Comparison(
        name="websocket",
        title="WebSocket echo round trips, 32 connections, 64 bytes",
        entries=tuple(Entry(contender, FULL) for contender in (L7PROXY, ENVOY, NGINX, HAPROXY)),
        drive=echoes,
        goals=(Goal("l7proxy", "nginx", "per_core", 1.0),),
        reference="nginx",
        notes=("Client and echo application are Python on the load core and the limit: compare round trips per core.",),
        unit="round trips",
        logged=False,
    ),
)
