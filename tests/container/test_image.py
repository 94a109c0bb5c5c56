"""The container image. No engine runs where this is tested: the Dockerfile is linted, and its steps are carried out in
a fresh Debian, read-only, as its user and as process 1.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.container.dockerfile import read
from tests.support.client import Client
from tests.support.net import accepts, free_port, wait_for
from tests.support.process import Process

ROOT = Path(__file__).parents[2]
BUILD, FINAL = read(ROOT / "Dockerfile")
MIB = 1 << 20
DISTROLESS_MIB = 55
"""The size of the base image, which cannot be had here."""


def locked() -> dict[str, Version]:
    found = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    return {name.lower().replace("_", "-"): Version(version) for name, version in found}


def test_the_final_image_runs_as_1337_and_needs_no_shell() -> None:
    assert FINAL.last("USER").rest == "1337:1337"
    assert FINAL.last("ENTRYPOINT").exec_form[0].startswith("/")
    assert FINAL.last("CMD").exec_form == ["run", "-c", "/etc/l7proxy"]
    assert FINAL.last("HEALTHCHECK").exec_form[0].startswith("/")
    assert FINAL.last("STOPSIGNAL").rest == "SIGTERM"
    assert not [step for step in FINAL.steps if step.word == "RUN"]
    assert "org.opencontainers.image.licenses" in FINAL.last("LABEL").rest


def test_only_locked_wheels_are_installed() -> None:
    installs = [step.rest for step in BUILD.steps if "pip install" in step.rest]
    for line in installs:
        assert ("--require-hashes --target" in line and "--only-binary :all:" in line) or "--no-index" in line, line
    for name in ("requirements.lock", "requirements-build.lock"):
        text = (ROOT / name).read_text()
        pinned = re.findall(r"^[\w.-]+==\S+ .*\\\n\s+--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
        assert len(pinned) == len(re.findall(r"^\w", text, re.MULTILINE)), "each line has its hash"


def test_the_lock_satisfies_the_project() -> None:
    versions = locked()
    extras = ("", "grpc", "spiffe")
    for text in requires("l7proxy") or ():
        wanted = Requirement(text)
        if wanted.name != "l7proxy" and (
            wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras)
        ):
            assert versions[wanted.name.lower()] in wanted.specifier, f"{wanted}: make lock"


def test_the_build_context_holds_what_is_copied_and_little_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    let_in = [line[1:] for line in lines if line[0] == "!"]
    copied = [part for step in BUILD.steps if step.word == "COPY" for part in shlex.split(step.rest)[:-1]]
    assert sorted(copied) == sorted(let_in)
    assert all((ROOT / name).exists() for name in copied)
    assert not [name for name in let_in if fnmatch(name, "*.git*")]


# In a fresh root.

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a fresh Debian")


def _chroot(root: Path, command: str, folder: str = "/", **env: str) -> None:
    line = ["chroot", str(root), "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    line += [f"{key}={value}" for key, value in env.items()]
    script = f"cd {shlex.quote(folder)} && {command}"
    done = subprocess.run([*line, "/bin/sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def _copy(step_rest: str, root: Path, folder: str) -> None:
    *sources, target = shlex.split(step_rest)
    place = root / target.lstrip("/") if target.startswith("/") else root / folder.lstrip("/") / target
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the final image: Debian's Python, and what the build stage made."""
    folder = tmp_path_factory.mktemp("image")
    base, build = folder / "base", folder / "build"
    options = ["--variant=minbase", "--include=python3,ca-certificates"]
    done = subprocess.run(["debootstrap", *options, "bookworm", str(base)], capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    # Not copytree: it would read the device nodes of the root, and /dev/zero has no end.
    subprocess.run(["cp", "--archive", str(base), str(build)], check=True)
    shutil.copy("/etc/resolv.conf", build / "etc" / "resolv.conf")
    shutil.copy(os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt"), build / "tmp" / "ca.crt")
    at = "/"
    for step in BUILD.steps:
        if step.word == "WORKDIR":
            at = step.rest
            (build / at.lstrip("/")).mkdir()
        elif step.word == "COPY":
            _copy(step.rest, build, at)
        else:
            assert step.word == "RUN"
            _chroot(build, step.rest, at, PIP_CERT="/tmp/ca.crt", DEBIAN_FRONTEND="noninteractive", HOME="/root")
    for step in FINAL.steps:
        if step.word == "COPY":
            origin, source, target = shlex.split(step.rest)
            assert origin == f"--from={BUILD.name}"
            shutil.copytree(build / source.lstrip("/"), base / target.lstrip("/"), symlinks=True)
    shutil.rmtree(build)
    return base


class Container:
    """The image at work: its own process tree and a read-only root; the network is that of the machine."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.inbound, self.health = free_port(), free_port()
        self._image = image
        config = image / "etc" / "l7proxy"
        config.mkdir(exist_ok=True)
        sidecar = {
            "apiVersion": "l7proxy.io/v1",
            "kind": "Sidecar",
            "metadata": {"name": "${POD_NAME}"},
            "spec": {
                "inbound": {"listen": f"127.0.0.1:{self.inbound}", "app": "http://127.0.0.1:9"},
                "health": {"listen": f"127.0.0.1:{self.health}"},
                "accessLog": {"path": "/dev/stdout"},
            },
        }
        (config / "sidecar.yaml").write_text(yaml.safe_dump(sidecar))
        command = [*FINAL.last("ENTRYPOINT").exec_form, *FINAL.last("CMD").exec_form]
        self.process = Process("container", self._inside(command), folder)
        self.process.wait_until(lambda: accepts(("127.0.0.1", self.health)))
        with Client(("127.0.0.1", self.health)) as client:
            assert client.get("/ready", "localhost").status == 200

    def _inside(self, command: list[str]) -> list[str]:
        env = [f"{key}={value}" for key, value in {**FINAL.environment, "POD_NAME": "orders-7"}.items()]
        root = shlex.quote(str(self._image))
        mounts = (
            f"mount --bind {root} {root} && mount -o remount,ro,bind {root} && "
            f"mount -t devtmpfs dev {root}/dev && mount -t proc proc {root}/proc"
        )
        user = FINAL.last("USER").rest
        run = shlex.join(["chroot", f"--userspec={user}", str(self._image), "/usr/bin/env", "-i", *env, *command])
        return ["unshare", "--pid", "--mount", "--fork", "sh", "-c", f"{mounts} && exec {run}"]

    def healthy(self) -> bool:
        """Runs the image's own health check."""
        command = [part.replace("15021", str(self.health)) for part in FINAL.last("HEALTHCHECK").exec_form]
        return subprocess.run(self._inside(command), capture_output=True, check=False).returncode == 0

    @property
    def first(self) -> int:
        """The process that is number 1 inside."""
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text())


@pytest.fixture
def container(image: Path, tmp_path: Path) -> Iterator[Container]:
    running = Container(image, tmp_path)
    yield running
    if running.process.popen.poll() is None:
        os.kill(running.first, signal.SIGKILL)
        running.process.popen.wait(10)


@needs_root
@pytest.mark.needs("debootstrap", "unshare")
@pytest.mark.timeout(900)
def test_the_image_serves_as_its_user_on_a_read_only_root(container: Container) -> None:
    with Client(("127.0.0.1", container.inbound)) as client:
        answer = client.get()
        assert (answer.status, answer["x-l7proxy-error"]) == (503, "upstream_connect")
    status = Path(f"/proc/{container.first}/status").read_text()
    assert re.search(r"^Uid:\s+1337\s+1337\s+1337", status, re.MULTILINE)
    assert re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE)
    wait_for(lambda: '"upstream_connect"' in container.process.stdout)
    assert "Traceback" not in container.process.stderr


@needs_root
@pytest.mark.needs("debootstrap", "unshare")
@pytest.mark.timeout(900)
def test_the_health_check_follows_the_process(container: Container) -> None:
    assert container.healthy()
    os.kill(container.first, signal.SIGSTOP)
    assert not container.healthy()
    os.kill(container.first, signal.SIGCONT)
    assert container.healthy()


@needs_root
@pytest.mark.needs("debootstrap", "unshare")
@pytest.mark.timeout(900)
def test_sigterm_ends_process_1(container: Container) -> None:
    os.kill(container.first, signal.SIGTERM)
    assert container.process.popen.wait(20) == 0
    assert '"drained"' in container.process.stderr


@needs_root
@pytest.mark.needs("debootstrap", "unshare")
@pytest.mark.timeout(900)
def test_the_image_stays_small(image: Path) -> None:
    added = sum(path.lstat().st_size for path in (image / "opt").rglob("*"))
    assert added / MIB + DISTROLESS_MIB < 150


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert project["requires-python"] == ">=3.11"
    assert (ROOT / "LICENSE").read_text().strip().startswith("Apache License")
