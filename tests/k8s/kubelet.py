"""Runs a pod template as kubelet would: volumes, the downward API, start order, probes, hooks, signals and the end.

A container is a process with namespaces of its own, on a copy of this machine's files (an overlay) with its mounts, its
user and its capabilities. `/usr/bin/python3` in it is this Python, with this checkout: what the image has is tested
elsewhere.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.container.image import FINAL
from tests.k8s.cluster import Cluster
from tests.k8s.manifests import ROOT, Document, Rendered, containers
from tests.k8s.volumes import Projected
from tests.support.client import Client
from tests.support.net import wait_for
from tests.support.process import Process

_PATHS = (ROOT, Path(sysconfig.get_path("purelib")))


class End(NamedTuple):
    """How a container ended, and when, in seconds since the end of its pod began."""

    status: int
    seconds: float
    killed: bool


class Container:
    """One running container."""

    def __init__(self, pod: "Pod", spec: Document, command: Sequence[str]) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self._pod = pod
        self._seen = 0
        folder = pod.folder / f"container-{self.name}"
        folder.mkdir()
        self._env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": ":".join(map(str, _PATHS)),
            **pod.environment(spec),
        }
        enter = ["nsenter", "--target", str(pod.network.pid), "--net", "--uts", "--ipc"]
        enters = f"exec chroot {folder}/mounts/root {self._as_user(command)}"
        script = " && ".join([*self._mounts(folder), f"touch {folder}/mounted", enters])
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]
        self.process = Process(self.name, [*enter, *unshare], folder)
        # A short job may be over before it was seen.
        wait_for(lambda: self.first or not self.running, 15, lambda: self.process.stderr)
        assert (folder / "mounted").exists(), self.process.stderr

    def _as_user(self, command: Sequence[str]) -> str:
        security = {**self._pod.template["spec"].get("securityContext", {}), **self.spec.get("securityContext", {})}
        user = str(security.get("runAsUser", 0))
        line = ["setpriv", f"--reuid={user}", f"--regid={security.get('runAsGroup', user)}", "--clear-groups"]
        if security.get("capabilities") == {"drop": ["ALL"]}:
            line += ["--bounding-set=-all", "--inh-caps=-all"]
        if security.get("allowPrivilegeEscalation") is False:
            line.append("--no-new-privs")
        return shlex.join([*line, "env", "-i", *(f"{key}={value}" for key, value in self._env.items()), *command])

    def _mounts(self, folder: Path) -> list[str]:
        base, root = f"{folder}/mounts", f"{folder}/mounts/root"
        lines = [
            f"mkdir {base} && mount -t tmpfs tmpfs {base} && mkdir {base}/upper {base}/work {root}",
            f"mount -t overlay overlay -o lowerdir=/,upperdir={base}/upper,workdir={base}/work {root}",
            f"cp {self._pod.folder}/hosts {root}/etc/hosts",
            f"ln -sf {os.path.realpath(sys.executable)} {root}/usr/bin/python3",
            f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev",
        ]
        for path in (*_PATHS, Path(sys.base_prefix)):
            # Where others may not go into a folder above, the container's user may, in this copy.
            above = " ".join(f"{root}{parent}" for parent in path.parents if parent != Path("/"))
            if not above:
                # A folder of the root, as /usr is where the system's own Python runs: it is there already.
                continue
            lines.append(f"mkdir -p {root}{path} && chmod a+x {above} && mount --bind {path} {root}{path}")
        for name, text in self._pod.programs.items():
            program = folder / name
            program.write_text(text)
            program.chmod(0o755)
            lines.append(f"cp {program} {root}/usr/local/bin/")
        for mount in self.spec.get("volumeMounts", ()):
            at = f"{root}{mount['mountPath']}"
            lines.append(f"mkdir -p {at} && mount --bind {self._pod.volumes[mount['name']]} {at}")
            if mount.get("readOnly"):
                lines.append(f"mount -o remount,ro,bind {at}")
        if self.spec.get("securityContext", {}).get("readOnlyRootFilesystem"):
            lines.append(f"mount -o remount,ro {root}")
        return lines

    @property
    def first(self) -> int:
        """The process that is number 1 inside; 0 while it is not there."""
        child = int(_read(f"/proc/{self.process.pid}/task/{self.process.pid}/children") or 0)
        # Until then it is what mounts, and what changes the user; there is nothing to read while it becomes the next.
        if child and child != self._seen:
            said = _read(f"/proc/{child}/cmdline")
            if said and b"mount" not in said and b"--reuid" not in said:
                self._seen = child
        return child if child == self._seen else 0

    @property
    def running(self) -> bool:
        return self.process.popen.poll() is None

    def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, as `kubectl exec` and hooks do."""
        inside = [
            "nsenter",
            "--target",
            str(self.first),
            "--mount",
            "--pid",
            "--net",
            "--uts",
            "--ipc",
            "--root",
            "--wd=/",
        ]
        script = ["sh", "-c", self._as_user(command)]
        return subprocess.run([*inside, *script], capture_output=True, text=True, timeout=90, check=False)

    def probe(self, kind: str) -> bool:
        """Asks once what the container's probe asks; True where there is no such probe."""
        probe = self.spec.get(kind)
        if probe is None:
            return True
        ports = {entry["name"]: entry["containerPort"] for entry in self.spec["ports"]}
        address = self._pod.address, ports[probe["httpGet"]["port"]]

        def ask() -> bool:
            try:
                with Client(address, timeout=probe.get("timeoutSeconds", 1)) as client:
                    return 200 <= client.get(probe["httpGet"]["path"], f"{address[0]}:{address[1]}").status < 400
            except Exception:
                return False

        return self._pod.cluster.node.do(ask)

    def signal(self, number: int) -> None:
        if first := self.first:
            os.kill(first, number)


class Pod:
    """A pod of a rendered workload.

    `images` are the commands that stand for images, `programs` the scripts that its containers find in PATH, and
    `certificates` is the folder that a CSI driver mounts.
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        rendered: Rendered,
        workload: str,
        images: Mapping[str, Sequence[str]],
        programs: Mapping[str, str] | None = None,
        certificates: Path | None = None,
    ) -> None:
        self.cluster, self.folder = cluster, folder
        self.template = rendered.pods[workload]
        self.name = f"{workload}-7d9c-x2x4z"
        self.namespace = rendered.workloads[workload]["metadata"].get("namespace", "default")
        self.network, self.address = cluster.join(self.name)
        self.containers: dict[str, Container] = {}
        self.ends: dict[str, End] = {}
        self.programs = programs or {}
        self._images = {"l7proxy": FINAL.last("ENTRYPOINT").exec_form, **images}
        folder.mkdir(parents=True)
        self.config_maps: dict[str, Projected] = {}
        self.volumes: dict[str, Path] = {}
        for volume in self.template["spec"].get("volumes", ()):
            name = volume["name"]
            if "configMap" in volume:
                data = rendered.named("ConfigMap")[volume["configMap"]["name"]]["data"]
                self.config_maps[name] = Projected(folder / "volumes" / name, data)
                self.volumes[name] = self.config_maps[name].folder
            else:
                assert certificates is not None, volume["csi"]["driver"]
                self.volumes[name] = certificates
        names = [f"{address} {host}" for host, addresses in cluster.names.items() for address in addresses]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", f"{self.address} {self.name}", *names, ""]))

    def environment(self, spec: Document) -> dict[str, str]:
        """Returns what the container's `env` says, with the downward API."""
        found: dict[str, str] = {"HOSTNAME": self.name}
        for entry in spec.get("env", ()):
            found[entry["name"]] = entry["value"] if "value" in entry else self._field(entry["valueFrom"]["fieldRef"])
        return found

    def _field(self, reference: Document) -> str:
        path: str = reference["fieldPath"]
        if label := re.fullmatch(r"metadata\.labels\['(.+)'\]", path):
            return str(self.template["metadata"]["labels"].get(label[1], ""))
        return {
            "metadata.name": self.name,
            "metadata.namespace": self.namespace,
            "metadata.uid": "7d1f2f0c-6b5e-4a57-9d35-6f3c0c8a1b11",
            "spec.nodeName": "node",
            "status.podIP": self.address,
        }[path]

    @property
    def _sidecars(self) -> list[str]:
        inits = self.template["spec"].get("initContainers", ())
        return [spec["name"] for spec in inits if spec.get("restartPolicy") == "Always"]

    def start(self) -> None:
        """Starts the containers in their order; returns when the last one is started, not when it is ready."""
        for spec in containers(self.template):
            image: str = spec["image"].rpartition(":")[0]
            command = [*spec.get("command", self._images.get(image, ())), *spec.get("args", ())]
            container = self.containers[spec["name"]] = Container(self, spec, command)
            if "startupProbe" in spec:
                probe = spec["startupProbe"]
                bound = probe["periodSeconds"] * probe["failureThreshold"]
                container.process.wait_until(lambda container=container: container.probe("startupProbe"), bound)
            if "postStart" in spec.get("lifecycle", {}):
                done = container.execute(spec["lifecycle"]["postStart"]["exec"]["command"])
                assert done.returncode == 0, f"{done.stderr}\n{container.process.stderr}"

    @property
    def ready(self) -> bool:
        return all(container.probe("readinessProbe") for container in self.containers.values() if container.running)

    @property
    def alive(self) -> bool:
        return all(container.probe("livenessProbe") for container in self.containers.values())

    def wait_ready(self) -> None:
        wait_for(lambda: self.ready, 60, lambda: str({c.name: c.process.stderr for c in self.containers.values()}))

    def delete(self) -> dict[str, End]:
        """Ends the pod; returns how each container ended."""
        begun = time.monotonic()
        grace: float = self.template["spec"].get("terminationGracePeriodSeconds", 30)
        threads = [
            threading.Thread(target=self._end, args=(container, begun, grace)) for container in self.containers.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(grace + 60)
        return self.ends

    def _end(self, container: Container, begun: float, grace: float) -> None:
        """The hook comes first, then a native sidecar waits for all others, then the signals."""
        hook = container.spec.get("lifecycle", {}).get("preStop")
        if hook is not None and container.running:
            container.execute(hook["exec"]["command"])
        if container.name in self._sidecars:
            others = [other for other in self.containers.values() if other.name not in self._sidecars]
            while any(other.running for other in others) and time.monotonic() < begun + grace:
                time.sleep(0.05)
        self._stop(container, begun, max(begun + grace - time.monotonic(), 2))

    def _stop(self, container: Container, begun: float, patience: float) -> None:
        container.signal(signal.SIGTERM)
        try:
            status, killed = container.process.popen.wait(patience), False
        except subprocess.TimeoutExpired:
            container.signal(signal.SIGKILL)
            status, killed = container.process.popen.wait(10), True
        self.ends[container.name] = End(status, time.monotonic() - begun, killed)

    def complete(self, timeout: float = 60) -> dict[str, End]:
        """Waits until the containers of a Job are done, and ends its native sidecars, as kubelet does."""
        begun = time.monotonic()
        for name, container in self.containers.items():
            if name not in self._sidecars:
                status = container.process.popen.wait(timeout)
                self.ends[name] = End(status, time.monotonic() - begun, False)
        for name in self._sidecars:
            self._stop(self.containers[name], begun, self.template["spec"].get("terminationGracePeriodSeconds", 30))
        return self.ends

    def close(self) -> None:
        """Leaves nothing behind."""
        for container in self.containers.values():
            if container.running:
                container.signal(signal.SIGKILL)
                container.process.popen.kill()
                container.process.popen.wait(10)
        self.network.close()


def _read(path: str) -> bytes:
    """Returns what a file of a process holds, b"" when that has ended."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
