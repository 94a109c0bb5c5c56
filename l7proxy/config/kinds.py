"""The kinds of documents that a configuration may hold: which struct is the `spec` of which `apiVersion` and `kind`."""

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from l7proxy.config.model import API_VERSION, Model


class Kind(NamedTuple):
    """One kind of document. `spec` and `translate` are named as `module:attribute`, and imported when one is met.

    Documents of other projects are `foreign`: keys that we do not know in `metadata`, and their `status`, are no
    mistake. `translate(model)` is called once when there are documents of such a kind, with the model that holds them
    in `others`; it returns the model that also does what they say, or raises ConfigError. Documents that stand for
    Routes go before there is a model: `routes(documents, sidecar, problems, warnings)` returns the documents with
    Routes in their place. Kinds that share it share their names.
    """

    name: str
    versions: tuple[str, ...]
    spec: str
    foreign: bool = False
    translate: str = ""
    routes: str = ""


_ISTIO = ("security.istio.io/v1", "security.istio.io/v1beta1")
_TRANSLATE_ISTIO = "l7proxy.config.istio:translate"
_GATEWAY = ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1")
_GATEWAY_ROUTES = "l7proxy.config.gateway:routes"

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("Sidecar", (API_VERSION,), "l7proxy.config.model:Sidecar"),
        Kind("Upstream", (API_VERSION,), "l7proxy.config.model:Upstream"),
        Kind("Route", (API_VERSION,), "l7proxy.config.model:Route"),
        Kind("PeerAuthentication", _ISTIO, "l7proxy.config.istio_model:PeerAuthentication", True, _TRANSLATE_ISTIO),
        Kind("AuthorizationPolicy", _ISTIO, "l7proxy.config.istio_model:AuthorizationPolicy", True, _TRANSLATE_ISTIO),
        Kind("HTTPRoute", _GATEWAY, "l7proxy.config.gateway_model:HTTPRoute", True, routes=_GATEWAY_ROUTES),
        Kind("GRPCRoute", _GATEWAY[:1], "l7proxy.config.gateway_model:GRPCRoute", True, routes=_GATEWAY_ROUTES),
    )
}


@cache
def imported(name: str) -> Any:
    """Returns what `module:attribute` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def routers(kinds: Iterable[str]) -> list[Callable[..., Any]]:
    """Returns the functions that make Routes of documents of these kinds, each once."""
    return [imported(name) for name in dict.fromkeys(KINDS[kind].routes for kind in kinds) if name]


def translators(model: Model) -> list[Callable[[Model], Model]]:
    """Returns the functions that translate the model's foreign documents, each once."""
    names = dict.fromkeys(KINDS[kind].translate for kind in model.others)
    return [imported(name) for name in names if name]
