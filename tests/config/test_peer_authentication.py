"""PeerAuthentication against a literal reading of its reference and of istiod: the mode of the application's port.

https://istio.io/latest/docs/reference/config/security/peer_authentication/; the oracle below is istiod's
`initAuthenticationPolicies`, `getConfigsForWorkload` and `ComposePeerAuthentication`, line by line.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from l7proxy.config.load import load
from l7proxy.config.model import Model
from l7proxy.core.errors import ConfigError
from tests.cli.test_check import l7proxy
from tests.conftest import StartServer, StartSidecar
from tests.identity.pki import ORDERS, WEB, Authority, ask, context

Spec = dict[str, Any]
ROOT = "istio-system"
LABELS = {"app": "orders", "version": "v1"}
PORT = 8080


def document(name: str, namespace: str | None, created: str | None, spec: Spec) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": created}
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {key: value for key, value in metadata.items() if value is not None},
        "spec": spec,
    }


def loaded(folder: Path, documents: list[dict[str, Any]], namespace: str = "shop", mode: str = "PERMISSIVE") -> Model:
    sidecar = {
        "apiVersion": "l7proxy.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": "orders"},
        "spec": {
            "service": {"name": "orders", "namespace": namespace, "labels": LABELS},
            "inbound": {"app": f"http://127.0.0.1:{PORT}", "tls": {"mode": mode, "dev": "demo"}},
        },
    }
    file = folder / "a.yaml"
    file.write_text(yaml.safe_dump_all([sidecar, *documents], sort_keys=False))
    return load([str(file)])


def mode_of(model: Model) -> str:
    inbound = model.sidecar.spec.inbound
    assert inbound is not None
    assert inbound.tls is not None
    return inbound.tls.mode


def ports_of(spec: Spec) -> dict[int, str]:
    levels = spec.get("portLevelMtls", {})
    if isinstance(levels, list):
        return {level["port"]: level.get("mode", "UNSET") for level in levels}
    return {int(port): mtls.get("mode", "UNSET") for port, mtls in levels.items()}


def composed(documents: list[dict[str, Any]], namespace: str) -> str:
    """The mode of our port by istiod. Kubernetes gives every document a namespace: ours to those without."""

    def where(found: dict[str, Any]) -> str:
        return str(found["metadata"].get("namespace", namespace))

    def when(found: dict[str, Any]) -> tuple[str, str, str]:
        return found["metadata"].get("creationTimestamp", ""), found["metadata"]["name"], where(found)

    def chosen(wanted: str, selecting: bool) -> Spec:
        """The oldest document of a namespace that is for all of it, or that selects us."""
        for found in sorted(documents, key=when):
            labels = (found["spec"].get("selector") or {}).get("matchLabels") or {}
            if where(found) == wanted and bool(labels) == selecting and labels.items() <= LABELS.items():
                return dict(found["spec"])
        return {}

    mesh = chosen(ROOT, False)
    local = chosen(namespace, False) if namespace != ROOT else {}
    workload = chosen(namespace, True) if namespace != ROOT else {}
    mode = "PERMISSIVE"
    for spec in (mesh, local, workload):
        said = spec.get("mtls", {}).get("mode", "UNSET")
        mode = mode if said == "UNSET" else said
    said = ports_of(workload).get(PORT, "UNSET")
    return mode if said == "UNSET" else said


modes = st.sampled_from(["UNSET", "DISABLE", "PERMISSIVE", "STRICT"])
selectors = st.sampled_from(
    [None, {}, {"matchLabels": {}}, {"matchLabels": {"app": "orders"}}, {"matchLabels": LABELS},
     {"matchLabels": {"app": "web"}}, {"matchLabels": {"app": "orders", "tier": "x"}}]
)  # fmt: skip
levels = st.one_of(
    st.dictionaries(st.sampled_from([str(PORT), "9090"]), modes.map(lambda mode: {"mode": mode}), min_size=1),
    st.lists(st.sampled_from([PORT, 9090]), unique=True, min_size=1, max_size=2).flatmap(
        lambda ports: st.tuples(*[modes.map(lambda mode, port=port: {"port": port, "mode": mode}) for port in ports])
    ).map(list),
)  # fmt: skip


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    spec: Spec = {}
    if (selector := draw(selectors)) is not None:
        spec["selector"] = selector
    if draw(st.booleans()):
        spec["mtls"] = draw(st.sampled_from([{}, {"mode": draw(modes)}]))
    if draw(st.booleans()):
        spec["portLevelMtls"] = draw(levels)
    return spec


TIMES = (None, "2023-01-01T00:00:00Z", "2023-06-01T00:00:00Z", "2024-01-01T00:00:00Z")


@st.composite
def documents(draw: st.DrawFn) -> list[dict[str, Any]]:
    namespaces = st.sampled_from(["shop", "shop", ROOT, None, "other"])
    names = draw(st.permutations("abcdef"))
    return [
        document(name, draw(namespaces), draw(st.sampled_from(TIMES)), draw(specs()))
        for name in names[: draw(st.integers(1, 6))]
    ]


def refused_by_istio(found: dict[str, Any]) -> bool:
    """`ValidatePeerAuthentication`: mesh/namespace peer authentication cannot have port level mTLS."""
    return bool(found["spec"].get("portLevelMtls")) and not (found["spec"].get("selector") or {}).get("matchLabels")


STRICT, PERMISSIVE = {"mtls": {"mode": "STRICT"}}, {"mtls": {"mode": "PERMISSIVE"}}
US = {"selector": {"matchLabels": {"app": "orders"}}}
OPEN_PORT = {"portLevelMtls": {str(PORT): {"mode": "PERMISSIVE"}}}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents(), st.sampled_from(["shop", "shop", ROOT]))
@example([document("a", "shop", None, STRICT | OPEN_PORT)], "shop")
@example([document("a", ROOT, None, STRICT | OPEN_PORT)], "shop")
@example([document("a", "shop", None, STRICT), document("b", ROOT, None, US | PERMISSIVE)], "shop")
@example([document("a", "shop", TIMES[3], PERMISSIVE), document("b", "shop", TIMES[1], STRICT)], "shop")
@example([document("b", "shop", None, PERMISSIVE), document("a", "shop", None, STRICT)], "shop")
@example(
    [
        document("a", "shop", TIMES[1], {}),
        document("b", "shop", TIMES[2], PERMISSIVE),
        document("m", ROOT, None, STRICT),
    ],
    "shop",
)
@example([document("a", "shop", TIMES[1], US | STRICT), document("b", "shop", TIMES[2], US | OPEN_PORT)], "shop")
@example([document("a", ROOT, None, US | PERMISSIVE), document("b", ROOT, None, STRICT)], ROOT)
def test_the_mode_is_the_one_that_istiod_composes(tmp_path: Path, found: list[dict[str, Any]], namespace: str) -> None:
    expected = composed(found, namespace)
    try:
        mode = mode_of(loaded(tmp_path, found, namespace))
    except ConfigError:
        # Istio refuses such documents at admission; here they are refused where the port would be open for it.
        assert expected != "STRICT"
        assert any(refused_by_istio(one) and "STRICT" in ports_of(one["spec"]).values() for one in found)
    else:
        assert mode == expected


@given(documents())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_the_files_decides_nothing(tmp_path: Path, found: list[dict[str, Any]]) -> None:
    outcomes = []
    for order in (found, found[::-1]):
        try:
            outcomes.append(mode_of(loaded(tmp_path, order)))
        except ConfigError:
            outcomes.append("refused")
    assert outcomes[0] == outcomes[1]


def test_documents_that_leave_the_mode_unset_leave_it_to_the_sidecar(tmp_path: Path) -> None:
    for mode in ("STRICT", "PERMISSIVE"):
        assert mode_of(loaded(tmp_path, [document("a", "shop", None, US)], mode=mode)) == mode


def test_check_warns_of_what_has_no_effect(tmp_path: Path) -> None:
    loaded(tmp_path, [
        document("first", "shop", TIMES[1], STRICT | OPEN_PORT),
        document("later", "shop", TIMES[2], PERMISSIVE),
        document("root", ROOT, None, US | PERMISSIVE),
    ])  # fmt: skip
    file = tmp_path / "a.yaml"
    lines = file.read_text().splitlines()
    starts = [n for n, line in enumerate(lines, 1) if line.startswith("apiVersion")]
    port = next(n for n, line in enumerate(lines, 1) if line.strip().startswith(f"'{PORT}'"))
    selector = next(n for n, line in enumerate(lines, 1) if line.strip() == "selector:")
    status, _, told = l7proxy("check", "-c", str(file), HOME=str(tmp_path))
    assert status == 0
    assert set(told.splitlines()) == {
        f"{file}:{port}: spec.portLevelMtls.{PORT}: has no effect without a selector: Istio sets the ports of "
        "workloads alone (warning)",
        f"{file}:{starts[2]}: has no effect: first at {file}:{starts[1]} is the oldest document for the namespace "
        "(warning)",
        f"{file}:{selector}: spec.selector: a selector has no effect in {ROOT}, nor has the document: Istio ignores it "
        "(warning)",
    }


@pytest.mark.parametrize("scope", ["shop", ROOT])
def test_a_port_that_only_a_setting_without_effect_would_close_is_refused(scope: str, tmp_path: Path) -> None:
    spec = PERMISSIVE | {"portLevelMtls": {str(PORT): {"mode": "STRICT"}}}
    with pytest.raises(ConfigError, match=r"a\.yaml:\d+: spec\.portLevelMtls\.8080: STRICT needs a selector"):
        loaded(tmp_path, [document("a", scope, None, spec)])


@pytest.mark.parametrize("labels", [{"app": "*"}, {"app": "ord*"}, {"*": "x"}])
def test_a_selector_that_istio_refuses_is_refused(labels: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml:\d+: spec\.selector\.matchLabels\..*: a selector takes whole"):
        loaded(tmp_path, [document("a", "shop", None, STRICT | {"selector": {"matchLabels": labels}})])


def test_a_creation_time_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"metadata\.creationTimestamp: 'yesterday' is not a time"):
        loaded(tmp_path, [document("a", "shop", "yesterday", STRICT)])


def test_a_strict_namespace_stays_strict(sidecar: StartSidecar, serve: StartServer, tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    pair = ca.issue("orders", ORDERS)
    app = serve()
    open_port = {"portLevelMtls": {str(app.address[1]): {"mode": "PERMISSIVE"}}}
    started = sidecar(
        document("namespace", "shop", TIMES[2], STRICT | open_port),
        document("later", "shop", TIMES[3], PERMISSIVE),
        document("root", ROOT, TIMES[1], {"selector": {"matchLabels": LABELS}} | PERMISSIVE | open_port),
        app=app.address,
        inbound={"tls": {"mode": "PERMISSIVE", "cert": str(pair.cert), "key": str(pair.key), "ca": str(ca.file)}},
        service={"namespace": "shop", "labels": LABELS},
    )
    assert started.get().status == 400
    assert ask(started.inbound, context(ca, ca.issue("web", WEB))).status == 200
    assert [request.target for request in app.requests] == ["/"]
