"""Mutual TLS: keep-alive requests behind client certificates, and new connections, full and resumed."""

import json
from collections.abc import Sequence

from bench.compare import Comparison, Entry
from bench.contenders import ENVOY, HAPROXY, L7PROXY, NGINX, Proxy, Setup
from bench.load import Load, run, wrk
from bench.model import Goal
from bench.process import BenchError

MTLS = Setup(tls=True)
ENTRIES = tuple(Entry(contender, MTLS) for contender in (L7PROXY, ENVOY, NGINX, HAPROXY))
THREADS = 16


def keep_alive(proxy: Proxy, seconds: int) -> Load:
    """Asks for 1 KB over 32 connections, each opened once with a client certificate."""
    return wrk(proxy.url("/1k"), 32, seconds, proxy.lab.client_certificate())


def _handshakes(proxy: Proxy, seconds: float, mode: str) -> Load:
    pem, ca = str(proxy.lab.certs / "client.pem"), str(proxy.lab.certs / "ca.crt")
    tool = str(proxy.lab.handshaker)
    found = json.loads(run([tool, str(proxy.port), "/1k", str(THREADS), str(seconds), pem, ca, mode], seconds))
    # Each thread earns its first ticket with a full handshake, which is not among the requests.
    wanted = found["requests"] if mode == "resume" else 0
    if found["failed"] or found["resumed"] != wanted:
        raise BenchError(f"{proxy.label}: {mode} handshakes: {found}")
    return Load(found["requests"], found["seconds"], found["p50"], found["p99"], THREADS)


def full(proxy: Proxy, seconds: int) -> Load:
    """Opens connections with a full handshake each."""
    return _handshakes(proxy, seconds, "full")


def resumed(proxy: Proxy, seconds: int) -> Load:
    """Opens connections that resume the session of the one before."""
    return _handshakes(proxy, seconds, "resume")


def _resumes(proxy: Proxy) -> Sequence[str]:
    load = _handshakes(proxy, 0.2, "resume")
    return [f"all of {load.requests} connections that offered a session resumed it"]


HANDSHAKE_NOTE = (
    "One request and its answer on each connection; both sides verify P-256 certificates. The generator is C over "
    "OpenSSL with 16 threads on the load core, and may be the limit: compare requests per core, which count the "
    "server's CPU alone."
)
SCENARIOS = (
    Comparison(
        name="mtls",
        title="mTLS, HTTP/1.1, 32 connections, 1 KB, features on, identity rule",
        entries=ENTRIES,
        drive=keep_alive,
        goals=(Goal("l7proxy", "envoy", "rate", 1.2), Goal("l7proxy", "envoy", "per_core", 1.2)),
        notes=("A shim over SSL_CTX_new gives wrk its client certificate.",),
    ),
    Comparison(
        name="handshakes",
        title="mTLS, new connections with full handshakes, features on",
        entries=ENTRIES,
        drive=full,
        goals=(Goal("l7proxy", "envoy", "per_core", 0.6),),
        notes=(HANDSHAKE_NOTE,),
        unit="connections",
    ),
    Comparison(
        name="handshakes-resumed",
        title="mTLS, new connections with resumed sessions, features on",
        entries=ENTRIES,
        drive=resumed,
        goals=(Goal("l7proxy", "envoy", "per_core", 1.0),),
        check=_resumes,
        notes=(HANDSHAKE_NOTE,),
        unit="connections",
    ),
)
