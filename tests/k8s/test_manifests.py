"""The manifests: rendered by kustomize, held to the official schemas, and to what the sidecar really does.

No cluster runs where this is tested.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
OVERLAYS = ["native", "classic"]
VERSIONS = ["1.29", "1.31", "1.33", "1.35"]

pytestmark = pytest.mark.needs("kubectl")


def render(overlay: str) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=OVERLAYS)
def documents(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """The rendered documents by kind."""
    return {document["kind"]: document for document in render(request.param)}


def sidecar_of(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    (found,) = [c for c in (*pod.get("initContainers", ()), *pod["containers"]) if c["name"] == "l7proxy"]
    return dict(found)


def config_of(documents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return dict(yaml.safe_load(documents["ConfigMap"]["data"]["sidecar.yaml"])["spec"])


def port(listen: str) -> int:
    return int(listen.rpartition(":")[2])


@pytest.mark.parametrize("version", VERSIONS)
def test_each_document_is_valid(version: str, documents: dict[str, dict[str, Any]]) -> None:
    for document in documents.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_configuration_passes_the_check(documents: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    for name, text in documents["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    named = {entry["name"] for entry in sidecar_of(documents)["env"]}
    env = {**os.environ, "PYTHONPATH": str(ROOT), **dict.fromkeys(named, "shop")}
    command = [sys.executable, "-m", "l7proxy", "check", "-c", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ports_and_probes_are_those_of_the_listeners(documents: dict[str, dict[str, Any]]) -> None:
    container, config = sidecar_of(documents), config_of(documents)
    ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
    assert ports == {name: port(config[name]["listen"]) for name in ("inbound", "metrics", "health")}
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "health"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/live", "port": "health"}
    (service,) = documents["Service"]["spec"]["ports"]
    assert service["targetPort"] == "inbound"
    allowed = {entry["port"] for entry in documents["NetworkPolicy"]["spec"]["ingress"][0]["ports"]}
    assert allowed == set(ports.values())


def test_the_drain_ends_before_the_pod_is_killed(documents: dict[str, dict[str, Any]]) -> None:
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    grace = float(config_of(documents)["drain"]["grace"].removesuffix("s"))
    slept = sum(
        float(container["lifecycle"]["preStop"]["exec"]["command"][1])
        for container in pod["containers"]
        if "lifecycle" in container
    )
    assert grace + slept < pod["terminationGracePeriodSeconds"]


def test_the_container_may_do_nothing_that_it_need_not(documents: dict[str, dict[str, Any]]) -> None:
    container = sidecar_of(documents)
    security = container["securityContext"]
    assert (security["runAsUser"], security["runAsNonRoot"]) == (1337, True)
    assert security["readOnlyRootFilesystem"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert documents["ServiceAccount"]["automountServiceAccountToken"] is False
    assert container["resources"]["limits"]["memory"]


def test_the_policies_are_a_folder_so_that_updates_arrive(documents: dict[str, dict[str, Any]]) -> None:
    """A file that is mounted by subPath would never change in a running pod."""
    (mount,) = sidecar_of(documents)["volumeMounts"]
    assert "subPath" not in mount
    assert mount["mountPath"] == sidecar_of(documents)["args"][-1]
    (volume,) = documents["Deployment"]["spec"]["template"]["spec"]["volumes"]
    assert volume["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"] == "orders-policies"


def test_everything_selects_the_same_pods(documents: dict[str, dict[str, Any]]) -> None:
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        documents["Service"]["spec"]["selector"],
        documents["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        documents["Deployment"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels.items()


def test_a_native_sidecar_starts_before_the_application() -> None:
    pod = {document["kind"]: document for document in render("native")}["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["initContainers"]
    assert container["restartPolicy"] == "Always"
    assert container["startupProbe"]["httpGet"]["port"] == "health"
