"""The manifests as kustomize renders them."""

import functools
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support.servers import program

ROOT = Path(__file__).parents[2]
Document = dict[str, Any]

SERVICES = ["overlays/native", "overlays/classic", "overlays/cert-manager", "overlays/spire"]
JOBS = ["examples/job-native", "examples/job-classic"]
OTHERS = ["examples/three-services", "monitoring"]
WORKLOADS = ("Deployment", "Job")


class Rendered:
    """The documents of one kustomization, by kind and name."""

    def __init__(self, documents: list[Document]) -> None:
        self.all = documents
        self._by_name = {(document["kind"], document["metadata"]["name"]): document for document in documents}

    def __getitem__(self, kind: str) -> Document:
        """Returns the one document of a kind."""
        (found,) = self.named(kind).values()
        return found

    def named(self, kind: str) -> dict[str, Document]:
        """Returns the documents of a kind by their names."""
        return {name: document for (known, name), document in self._by_name.items() if known == kind}

    @property
    def workloads(self) -> dict[str, Document]:
        return {name: document for kind in WORKLOADS for name, document in self.named(kind).items()}

    @property
    def pods(self) -> dict[str, Document]:
        """The pod templates, by the name of the workload."""
        return {name: document["spec"]["template"] for name, document in self.workloads.items()}


@functools.cache
def render(name: str) -> Rendered:
    """Returns what kustomize makes of `k8s/NAME`, without a warning."""
    command = [program("kubectl") or "kubectl", "kustomize", str(ROOT / "k8s" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return Rendered(list(yaml.safe_load_all(done.stdout)))


def containers(pod: Document) -> list[Document]:
    """Returns the containers in the order in which kubelet starts them."""
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def sidecar(pod: Document) -> Document:
    """Returns the container that is the sidecar."""
    (found,) = (container for container in containers(pod) if container["name"] == "l7proxy")
    return dict(found)


def policies(rendered: Rendered, pod: Document) -> dict[str, str]:
    """Returns the files that the sidecar of a pod finds in its ConfigMap."""
    (volume,) = (volume for volume in pod["spec"]["volumes"] if volume["name"] == "policies")
    data: dict[str, str] = rendered.named("ConfigMap")[volume["configMap"]["name"]]["data"]
    return data


def configuration(rendered: Rendered, pod: Document) -> Document:
    """Returns the `spec` of a pod's Sidecar document."""
    return dict(yaml.safe_load(policies(rendered, pod)["sidecar.yaml"])["spec"])
