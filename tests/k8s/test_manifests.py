"""The manifests: rendered by kustomize, held to the official schemas, and to what the sidecar really does.

No cluster runs where this is tested.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from grafana.files import files
from l7proxy import __version__
from l7proxy.cli.flags import FLAGS
from l7proxy.telemetry.facade import POD
from tests.k8s.manifests import (
    JOBS,
    OTHERS,
    ROOT,
    SERVICES,
    Document,
    configuration,
    containers,
    policies,
    render,
    sidecar,
)

VERSIONS = ["1.29", "1.31", "1.33", "1.35", "1.37"]
OPERATOR = json.loads((Path(__file__).parent / "schema" / "prometheus-operator.json").read_text())
NO_SCHEMA = {"ClusterSPIFFEID"}
"""No registry has the definition of these."""

pytestmark = pytest.mark.needs("kubectl")

every = pytest.mark.parametrize("name", [*SERVICES, *JOBS, *OTHERS])
with_sidecars = pytest.mark.parametrize("name", [*SERVICES, *JOBS, "examples/three-services"])


@pytest.mark.parametrize("version", VERSIONS)
@every
def test_each_document_is_valid(name: str, version: str) -> None:
    for document in render(name).all:
        kind = document["kind"]
        if kind in OPERATOR:
            jsonschema.validate(document, OPERATOR[kind])
        elif kind not in NO_SCHEMA:
            kubernetes_validate.validate(document, version, strict=True)


def test_the_schemas_refuse_what_is_not_known() -> None:
    monitor = json.loads(json.dumps(render("monitoring")["PodMonitor"]))
    monitor["spec"]["podMetricsEndpoints"][0]["prot"] = "metrics"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(monitor, OPERATOR["PodMonitor"])
    deployment = json.loads(json.dumps(render("overlays/native")["Deployment"]))
    deployment["spec"]["template"]["spec"]["initContainers"][0]["restartPolcy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[0], strict=True)


def test_every_kustomization_of_the_repository_is_tested() -> None:
    found = {path.parent for path in (ROOT / "k8s").rglob("kustomization.yaml")}
    tested = {ROOT / "k8s" / name for name in (*SERVICES, *JOBS, *OTHERS)}
    used = {path for path in found if any(part in ("base", "components") for part in path.parts)}
    used |= {path for path in found if path.parent.name == "three-services"}
    assert found == tested | used


@with_sidecars
def test_the_configuration_passes_the_check(name: str, tmp_path: Path) -> None:
    rendered = render(name)
    for workload, pod in rendered.pods.items():
        folder = tmp_path / workload
        folder.mkdir()
        for file, text in policies(rendered, pod).items():
            # The certificates come with the pod.
            (folder / file).write_text(re.sub(r"^ +tls: \{mode.*\n", "", text, flags=re.MULTILINE))
        env = {entry["name"]: "shop" for entry in sidecar(pod)["env"]}
        command = [sys.executable, "-m", "l7proxy", "check", "-c", str(folder)]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr


@with_sidecars
def test_the_variables_are_those_of_the_flags(name: str) -> None:
    known = {flag.variable for flag in FLAGS} | set(POD)
    for pod in render(name).pods.values():
        assert {entry["name"] for entry in sidecar(pod)["env"]} <= known
        label = "app.kubernetes.io/name"
        assert f"metadata.labels['{label}']" in {
            entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in sidecar(pod)["env"]
        }
        assert pod["metadata"]["labels"][label]


@with_sidecars
def test_ports_and_probes_are_those_of_the_listeners(name: str) -> None:
    rendered = render(name)
    for pod in rendered.pods.values():
        container, config = sidecar(pod), configuration(rendered, pod)
        ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
        for listener in ports.keys() & config.keys():
            assert int(config[listener]["listen"].rpartition(":")[2]) == ports[listener]
        assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "health"}
        assert container["livenessProbe"]["httpGet"] == {"path": "/live", "port": "health"}
        assert config["admin"]["listen"] == "127.0.0.1:15000", "the admin API stays within the pod"
        for service in rendered.named("Service").values():
            assert [entry["targetPort"] for entry in service["spec"]["ports"]] == ["inbound"]
        for policy in rendered.named("NetworkPolicy").values():
            assert {entry["port"] for entry in policy["spec"]["ingress"][0]["ports"]} == set(ports.values())


@with_sidecars
def test_the_end_of_the_pod_leaves_time_for_the_drain(name: str) -> None:
    rendered = render(name)
    for pod in rendered.pods.values():
        grace = float(configuration(rendered, pod).get("drain", {}).get("grace", "25s").removesuffix("s"))
        slept = [
            float(container["lifecycle"]["preStop"]["exec"]["command"][1])
            for container in containers(pod)
            if container["name"] == "app" and "lifecycle" in container
        ]
        if native(pod):
            # One after the other: the application's hook and end, then the sidecar.
            assert sum(slept) + grace < pod["spec"]["terminationGracePeriodSeconds"]
        else:
            assert max([grace, *slept]) < pod["spec"]["terminationGracePeriodSeconds"]


def native(pod: Document) -> bool:
    return sidecar(pod).get("restartPolicy") == "Always"


@with_sidecars
def test_the_container_may_do_nothing_that_it_need_not(name: str) -> None:
    """What the Pod Security Standard `restricted` asks for, and a read-only root beyond it."""
    for pod in render(name).pods.values():
        container = sidecar(pod)
        security = container["securityContext"]
        assert (security["runAsUser"], security["runAsGroup"], security["runAsNonRoot"]) == (1337, 1337, True)
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["resources"]["limits"]["memory"]
        assert container["image"] == f"l7proxy:{__version__}"
        assert not pod["spec"].get("hostNetwork")


@with_sidecars
def test_the_sidecar_asks_nothing_of_the_kubernetes_api(name: str) -> None:
    """The one right there is, is used by cert-manager's driver in the name of the pod."""
    rendered = render(name)
    for account in rendered.named("ServiceAccount").values():
        assert account["automountServiceAccountToken"] is False
    for role in rendered.named("Role").values():
        assert role["rules"] == [
            {"apiGroups": ["cert-manager.io"], "resources": ["certificaterequests"], "verbs": ["create"]}
        ]
    accounts = {document["spec"].get("serviceAccountName") for document in rendered.pods.values()}
    for binding in rendered.named("RoleBinding").values():
        (subject,) = binding["subjects"]
        assert subject["name"] in accounts
        assert binding["roleRef"]["name"] in rendered.named("Role")


@with_sidecars
def test_the_policies_are_a_folder_so_that_updates_arrive(name: str) -> None:
    """A file that is mounted by subPath would never change in a running pod, nor a ConfigMap that has another name."""
    rendered = render(name)
    for workload, pod in rendered.pods.items():
        (mount,) = (mount for mount in sidecar(pod)["volumeMounts"] if mount["name"] == "policies")
        assert "subPath" not in mount
        assert mount["mountPath"] == sidecar(pod)["args"][-1]
        (volume,) = (volume for volume in pod["spec"]["volumes"] if volume["name"] == "policies")
        assert volume["configMap"]["name"] == f"{workload}-policies"
        assert volume["configMap"]["name"] in rendered.named("ConfigMap")


@with_sidecars
def test_certificates_are_where_the_configuration_looks(name: str) -> None:
    rendered = render(name)
    for pod in rendered.pods.values():
        tls = configuration(rendered, pod).get("inbound", {}).get("tls", {})
        mounts = {mount["name"]: mount["mountPath"] for mount in sidecar(pod)["volumeMounts"]}
        drivers = {volume["name"]: volume.get("csi", {}) for volume in pod["spec"]["volumes"]}
        named = [str(tls[key]).removeprefix("unix:") for key in ("cert", "key", "ca", "spiffe") if key in tls]
        assert ("spiffe" in mounts) == bool(named)
        assert all(path.startswith(mounts["spiffe"] + "/") for path in named)
        if named:
            assert drivers["spiffe"]["readOnly"]
        if "cert" in tls:
            group = drivers["spiffe"]["volumeAttributes"]["spiffe.csi.cert-manager.io/fs-group"]
            assert int(group) == sidecar(pod)["securityContext"]["runAsGroup"]


@with_sidecars
def test_everything_selects_the_same_pods(name: str) -> None:
    rendered = render(name)
    for workload, document in rendered.named("Deployment").items():
        labels = document["spec"]["template"]["metadata"]["labels"]
        selectors = [
            document["spec"]["selector"]["matchLabels"],
            rendered.named("Service")[workload]["spec"]["selector"],
            *(p["spec"]["podSelector"]["matchLabels"] for p in rendered.named("NetworkPolicy").values()),
        ]
        for selector in selectors:
            assert selector
            assert selector.items() <= labels.items()


@with_sidecars
def test_the_sidecar_starts_before_the_application(name: str) -> None:
    for pod in render(name).pods.values():
        first = containers(pod)[0]
        assert first["name"] == "l7proxy"
        if native(pod):
            assert first["startupProbe"]["httpGet"] == {"path": "/ready", "port": "health"}
        else:
            # kubelet starts the next container when the hook of this one is done.
            assert first["lifecycle"]["postStart"]["exec"]["command"][-1] == "/ready"


def test_the_classic_job_says_when_it_is_done() -> None:
    (app,) = (c for c in containers(render("examples/job-classic").pods["report"]) if c["name"] == "app")
    assert "-X POST http://127.0.0.1:15000/quit; exit $code" in app["command"][-1]
    assert native(render("examples/job-native").pods["report"])


def test_the_monitor_finds_every_sidecar() -> None:
    monitor = render("monitoring")["PodMonitor"]["spec"]
    for name in (*SERVICES, *JOBS, "examples/three-services"):
        for pod in render(name).pods.values():
            assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
            ports = {entry["name"] for entry in sidecar(pod)["ports"]}
            assert {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]} <= ports


def test_rules_and_dashboards_are_those_of_grafana() -> None:
    rendered, made = render("monitoring"), files()
    assert rendered["PrometheusRule"]["spec"] == yaml.safe_load(made["rules/l7proxy.yaml"])
    found: dict[str, Any] = {}
    for document in rendered.named("ConfigMap").values():
        assert document["metadata"]["labels"] == {"grafana_dashboard": "1"}
        found |= document["data"]
        # What `kubectl apply` can write into an annotation.
        assert len(json.dumps(document)) < 256 * 1024
    assert found == {
        name.removeprefix("dashboards/"): text for name, text in made.items() if name.startswith("dashboards/")
    }


def test_the_forms_differ_in_nothing_but_their_form() -> None:
    native, classic = (
        {key: value for key, value in sidecar(render(f"overlays/{form}").pods["orders"]).items() if key != "lifecycle"}
        for form in ("native", "classic")
    )
    assert {key: value for key, value in native.items() if key not in ("restartPolicy", "startupProbe")} == classic
