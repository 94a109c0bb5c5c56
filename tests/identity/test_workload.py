"""The SPIFFE Workload API, from a real gRPC server that speaks it over a Unix socket."""

import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from l7proxy.identity.workload import METADATA, messages
from tests.conftest import StartServer, StartSidecar
from tests.identity.pki import ORDERS, WEB, Authority, Pair, ask, context
from tests.support.net import wait_for
from tests.support.sidecar import Sidecar

Request, Response = messages()
DER = Encoding.DER


class WorkloadApi:
    """Streams what it was last told to every client, like an agent."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.calls = 0
        self.refused: list[Any] = []
        self._response: Any = None
        self._changed = threading.Condition()
        self._stopping = False
        self._server: grpc.Server | None = None

    def start(self) -> None:
        self._stopping = False
        self._server = grpc.server(ThreadPoolExecutor(8))
        method = grpc.unary_stream_rpc_method_handler(self._fetch, Request.FromString, Response.SerializeToString)
        handler = grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", {"FetchX509SVID": method})
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._server is not None:
            self._server.stop(0.1).wait()

    def give(self, ca: Authority, *uris: str, federated: dict[str, Authority] | None = None) -> None:
        response = Response()
        for uri in uris:
            certificate, key = ca.sign(uri)
            response.svids.add(
                spiffe_id=uri,
                x509_svid=certificate.public_bytes(DER),
                x509_svid_key=key.private_bytes(DER, PrivateFormat.PKCS8, NoEncryption()),
                bundle=ca.certificate.public_bytes(DER),
            )
        for domain, other in (federated or {}).items():
            response.federated_bundles[f"spiffe://{domain}"] = other.certificate.public_bytes(DER)
        self.send(response)

    def send(self, response: Any) -> None:
        with self._changed:
            self._response = response
            self._changed.notify_all()

    def _fetch(self, request: Any, call: grpc.ServicerContext) -> Iterator[Any]:
        self.calls += 1
        if METADATA[0] not in call.invocation_metadata():
            call.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing")
        sent = None
        while not self._stopping:
            with self._changed:
                self._changed.wait_for(lambda sent=sent: self._response is not sent or self._stopping, 0.5)  # type: ignore[misc]
                found = self._response
            if found is not sent:
                sent = found
                yield sent


@pytest.fixture
def api(tmp_path: Path) -> Iterator[WorkloadApi]:
    found = WorkloadApi(tmp_path / "agent.sock")
    found.start()
    yield found
    found.stop()


def start(sidecar: StartSidecar, serve: StartServer, api: WorkloadApi, **tls: Any) -> Sidecar:
    return sidecar(app=serve().address, inbound={"tls": {"spiffe": f"unix:{api.socket}", **tls}})


def rejected(made: ssl.SSLContext, started: Sidecar) -> bool:
    try:
        ask(started.inbound, made)
    except (ssl.SSLError, OSError):
        return True
    return False


def test_an_svid_is_taken_rotated_and_its_bundle_believed(
    sidecar: StartSidecar, serve: StartServer, api: WorkloadApi, ca: Authority, web: Pair, tmp_path: Path
) -> None:
    api.give(ca, ORDERS)
    started = start(sidecar, serve, api)
    wait_for(lambda: "certificate rotated" in started.process.stderr)
    assert ask(started.inbound, context(ca, web)).status == 200
    other = Authority(tmp_path, "other")
    theirs = other.issue("theirs", WEB)
    api.give(other, ORDERS)
    wait_for(lambda: started.process.stderr.count("certificate rotated") == 2)
    assert ask(started.inbound, context(other, theirs)).status == 200
    assert rejected(context(other, web), started)


def test_until_there_is_an_svid_nobody_is_let_in(
    sidecar: StartSidecar, serve: StartServer, api: WorkloadApi, ca: Authority, web: Pair
) -> None:
    started = start(sidecar, serve, api)
    assert rejected(context(ca, web), started)
    wait_for(lambda: "there is no certificate of our own yet" in started.process.stderr)
    api.give(ca, ORDERS)
    wait_for(lambda: not rejected(context(ca, web), started))


def test_an_agent_that_goes_away_takes_nothing_with_it(
    sidecar: StartSidecar, serve: StartServer, api: WorkloadApi, ca: Authority, web: Pair
) -> None:
    api.give(ca, ORDERS)
    started = start(sidecar, serve, api)
    wait_for(lambda: "certificate rotated" in started.process.stderr)
    api.stop()
    wait_for(lambda: "certificate rejected" in started.process.stderr)
    assert ask(started.inbound, context(ca, web)).status == 200
    calls = api.calls
    api.give(ca, ORDERS)
    api.start()
    wait_for(lambda: started.process.stderr.count("certificate rotated") == 2, 10)
    assert api.calls > calls


def test_parts_that_do_not_fit_are_refused(
    sidecar: StartSidecar, serve: StartServer, api: WorkloadApi, ca: Authority, web: Pair
) -> None:
    api.give(ca, ORDERS)
    started = start(sidecar, serve, api)
    wait_for(lambda: "certificate rotated" in started.process.stderr)
    response = Response()
    certificate, _ = ca.sign(ORDERS)
    _, key = ca.sign(ORDERS)
    response.svids.add(
        spiffe_id=ORDERS,
        x509_svid=certificate.public_bytes(DER),
        x509_svid_key=key.private_bytes(DER, PrivateFormat.PKCS8, NoEncryption()),
        bundle=ca.certificate.public_bytes(DER),
    )
    api.send(response)
    wait_for(lambda: "an SVID whose parts do not fit" in started.process.stderr)
    api.send(Response())
    wait_for(lambda: "sent no SVID" in started.process.stderr)
    assert ask(started.inbound, context(ca, web)).status == 200


def test_a_federated_ca_vouches_for_its_own_trust_domain_alone(
    sidecar: StartSidecar, serve: StartServer, api: WorkloadApi, ca: Authority, web: Pair, tmp_path: Path
) -> None:
    partner = Authority(tmp_path, "partner")
    api.give(ca, ORDERS, federated={"partner": partner})
    started = start(sidecar, serve, api, trustDomains=["partner"])
    wait_for(lambda: "certificate rotated" in started.process.stderr)
    made = context(ca, partner.issue("theirs", "spiffe://partner/x"))
    assert ask(started.inbound, made).status == 200
    assert ask(started.inbound, context(ca, web)).status == 200
    assert rejected(context(ca, partner.issue("forged", WEB)), started)
    wait_for(lambda: f"the CA that vouches for {WEB} is not one of its trust domain" in started.process.stderr)


def test_nobody_vouches_for_a_trust_domain_whose_authorities_are_not_there(
    sidecar: StartSidecar, serve: StartServer, api: WorkloadApi, ca: Authority, web: Pair
) -> None:
    api.give(ca, ORDERS)
    started = start(sidecar, serve, api, trustDomains=["partner"])
    wait_for(lambda: "certificate rotated" in started.process.stderr)
    assert ask(started.inbound, context(ca, web)).status == 200
    assert rejected(context(ca, ca.issue("forged", "spiffe://partner/x")), started)
    sentence = "the CA that vouches for spiffe://partner/x is not one of its trust domain"
    wait_for(lambda: sentence in started.process.stderr)
