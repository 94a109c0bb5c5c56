"""The SPIFFE Workload API: X.509 SVIDs and bundles streamed over a Unix socket (SPIFFE Workload API, section 5.2)."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from l7proxy.core.extras import need
from l7proxy.identity.material import BadMaterial, Material, matches, material, read_key, whole
from l7proxy.identity.sources import Reject, Take
from l7proxy.identity.spiffe import parse

METHOD = "/SpiffeWorkloadAPI/FetchX509SVID"
METADATA = (("workload.spiffe.io", "true"),)
"""What every call must carry, so that no request forged through a proxy is answered."""

_BACKOFF = (0.1, 30.0)
"""The first and the longest wait in seconds before the stream is opened again."""
_STRING, _BYTES, _MESSAGE = 9, 12, 11
_SVID = (
    ("spiffe_id", _STRING),
    ("x509_svid", _BYTES),
    ("x509_svid_key", _BYTES),
    ("bundle", _BYTES),
    ("hint", _STRING),
)


def messages() -> tuple[Any, Any]:
    """Returns the protobuf classes (X509SVIDRequest, X509SVIDResponse), made from the standard's description."""
    descriptor_pb2 = need("google.protobuf.descriptor_pb2", "spiffe")
    descriptor_pool = need("google.protobuf.descriptor_pool", "spiffe")
    message_factory = need("google.protobuf.message_factory", "spiffe")
    file = descriptor_pb2.FileDescriptorProto(name="l7proxy/workload.proto", syntax="proto3")
    file.message_type.add(name="X509SVIDRequest")
    svid = file.message_type.add(name="X509SVID")
    for number, (name, kind) in enumerate(_SVID, 1):
        svid.field.add(name=name, number=number, type=kind, label=1)
    response = file.message_type.add(name="X509SVIDResponse")
    response.field.add(name="svids", number=1, type=_MESSAGE, label=3, type_name=".X509SVID")
    response.field.add(name="crl", number=2, type=_BYTES, label=3)
    entry = ".X509SVIDResponse.FederatedBundlesEntry"
    response.field.add(name="federated_bundles", number=3, type=_MESSAGE, label=3, type_name=entry)
    nested = response.nested_type.add(name="FederatedBundlesEntry")
    nested.options.map_entry = True
    nested.field.add(name="key", number=1, type=_STRING, label=1)
    nested.field.add(name="value", number=2, type=_BYTES, label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)

    def made(name: str) -> Any:
        return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))

    return made("X509SVIDRequest"), made("X509SVIDResponse")


class WorkloadSource:
    """Follows the Workload API; while it is away the last certificate stays, and is asked for again with patience."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._grpc = need("grpc", "spiffe")
        self._request, self._response = messages()

    def first(self) -> Material:
        return Material()

    async def watch(self, take: Take, reject: Reject) -> None:
        least, most = _BACKOFF
        wait = least
        while True:
            # Not even a Unix socket is to be asked for through a proxy that the environment names.
            options = (("grpc.enable_http_proxy", 0),)
            async with self._grpc.aio.insecure_channel(self._socket, options) as channel:
                call = channel.unary_stream(
                    METHOD,
                    request_serializer=self._request.SerializeToString,
                    response_deserializer=self._response.FromString,
                )
                try:
                    async for response in call(self._request(), metadata=METADATA):
                        try:
                            take(read(response))
                            wait = least
                        except BadMaterial as error:
                            reject(error)
                    reject(ConnectionError(f"{self._socket}: the Workload API ended the stream"))
                except self._grpc.aio.AioRpcError as error:
                    reject(ConnectionError(f"{self._socket}: {error.code().name}: {error.details()}"))
            # Jittered, so that a restarted agent is not met by everybody at once.
            await asyncio.sleep(wait * (0.5 + random.random() / 2))
            wait = min(wait * 2, most)


def read(response: Any) -> Material:
    """Returns the Material of a response; its first SVID is the one to use. Raises BadMaterial."""
    if not response.svids:
        raise BadMaterial([("the Workload API", "sent no SVID")])
    svid = response.svids[0]
    try:
        own = parse(svid.spiffe_id)
        chain = [whole(x509.load_der_x509_certificate(der)) for der in split(svid.x509_svid)]
        bundles = {own.trust_domain: _bundle(svid.bundle)}
        for name, bundle in response.federated_bundles.items():
            bundles[parse(name if "://" in name else f"spiffe://{name}").trust_domain] = _bundle(bundle)
        crls = [x509.load_der_x509_crl(der) for der in response.crl]
        key = read_key(svid.x509_svid_key, svid.spiffe_id)
        found = material(chain, key, bundles, crls)
        fits = bool(chain) and matches(chain[0], key) and found.identity == svid.spiffe_id
    except (ValueError, x509.InvalidVersion, BadMaterial) as error:
        raise BadMaterial([("the Workload API", f"sent an SVID that cannot be used: {error}")]) from None
    if not fits:
        raise BadMaterial([("the Workload API", f"sent an SVID whose parts do not fit: {svid.spiffe_id}")])
    return found


def split(data: bytes) -> Iterator[bytes]:
    """Yields the DER values that stand one behind the other; raises ValueError if the last is cut off."""
    at = 0
    while at < len(data):
        if len(data) - at < 2:
            raise ValueError("DER that is cut off")
        size, head = data[at + 1], 2
        if size & 0x80:
            head += size & 0x7F
            size = int.from_bytes(data[at + 2 : at + head])
        end = at + head + size
        if end > len(data):
            raise ValueError("DER that is cut off")
        yield data[at:end]
        at = end


def _bundle(data: bytes) -> tuple[bytes, ...]:
    return tuple(whole(x509.load_der_x509_certificate(der)).public_bytes(Encoding.DER) for der in split(data))
