"""The container image. No engine runs where this is tested: the Dockerfile is linted, and its steps are carried out in
a fresh Debian, read-only, as its user and as process 1.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from l7proxy import __version__
from tests.container.image import BUILD, FINAL, ROOT, Container, make
from tests.support.client import Client
from tests.support.net import Address, accepts, free_address, turn, wait_for

HADOLINT = Path(sys.executable).parent / "hadolint"


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


def test_a_linter_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_labels_say_what_is_in_it() -> None:
    labels = dict(part.split("=", 1) for part in shlex.split(FINAL.last("LABEL").rest))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert (told["title"], told["description"]) == (project["name"], project["description"])
    assert (told["licenses"], told["version"]) == (project["license"], __version__)
    assert told["base.name"] == FINAL.image


def test_only_locked_wheels_are_installed() -> None:
    commands = [command for step in BUILD.steps if step.word == "RUN" for command in step.rest.split("&&")]
    installs = [command for command in commands if "pip install" in command]
    assert len(installs) == 3
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

in_a_root = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a fresh Debian"),
    pytest.mark.needs("debootstrap", "unshare"),
    pytest.mark.timeout(900),
]


def marked(test: Any) -> Any:
    for mark in in_a_root:
        test = mark(test)
    return test


HEALTH = ("127.0.0.1", 15021)
"""Where the image's health check looks."""

Start = Callable[..., Container]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the final image."""
    root = make(tmp_path_factory.mktemp("image"))
    # Where Kubernetes would make the mount point.
    (root / "etc" / "l7proxy").mkdir()
    return root


@pytest.fixture
def inbound() -> Address:
    return free_address()


@pytest.fixture
def config(tmp_path: Path, inbound: Address) -> Path:
    """A folder with the configuration, as the user of the image may read it."""
    folder = tmp_path / "config"
    folder.mkdir()
    sidecar = {
        "apiVersion": "l7proxy.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": "${POD_NAME}"},
        "spec": {
            "inbound": {"listen": f"{inbound[0]}:{inbound[1]}", "app": "http://127.0.0.1:9"},
            "admin": {"listen": "127.0.0.1:15000"},
            "health": {"listen": f"{HEALTH[0]}:{HEALTH[1]}"},
            "accessLog": {"path": "/dev/stdout"},
            "drain": {"quiet": "0s"},
        },
    }
    (folder / "sidecar.yaml").write_text(yaml.safe_dump(sidecar))
    return folder


@pytest.fixture
def start(image: Path, tmp_path: Path, config: Path) -> Iterator[Start]:
    """Starts a container with the configuration; `ready` waits until it serves."""
    running: list[Container] = []

    def run(ready: bool = True, mounted: Path | None = config, **env: str) -> Container:
        folder = tmp_path / f"output{len(running)}"
        folder.mkdir()
        container = Container(image, folder, mounted, env)
        running.append(container)
        if ready:
            container.process.wait_until(lambda: accepts(HEALTH) and get(HEALTH, "/ready") == 200, 60)
        return container

    # The image's health check, and what it asks of the admin API, leave no choice of ports.
    with turn("default-ports"):
        yield run
        for container in running:
            if container.process.popen.poll() is None:
                if container.first:
                    os.kill(container.first, signal.SIGKILL)
                container.process.popen.wait(10)


def get(address: Address, path: str) -> int:
    with Client(address) as client:
        return client.get(path, "localhost").status


def ended(container: Container) -> tuple[int, list[str]]:
    """Returns the exit status, and what it said on stderr that is no event."""
    status = container.process.popen.wait(60)
    return status, [line for line in container.process.stderr.splitlines() if not line.startswith("{")]


@marked
def test_the_image_serves_as_its_user_on_a_read_only_root(start: Start, inbound: Address) -> None:
    container = start(POD_NAME="orders-7")
    with Client(inbound) as client:
        answer = client.get()
        assert (answer.status, answer["x-l7proxy-error"]) == (503, "upstream_connect")
    status = Path(f"/proc/{container.first}/status").read_text()
    assert re.search(r"^Uid:\s+1337\s+1337\s+1337", status, re.MULTILINE)
    assert re.search(r"^NSpid:\s+\d+\s+1$", status, re.MULTILINE)
    wait_for(lambda: '"upstream_connect"' in container.process.stdout)
    assert "Traceback" not in container.process.stderr


@marked
def test_the_health_check_follows_the_process(start: Start) -> None:
    container = start(POD_NAME="orders-7")
    check = FINAL.last("HEALTHCHECK").exec_form

    def healthy() -> bool:
        return container.run(check).returncode == 0

    assert healthy()
    os.kill(container.first, signal.SIGSTOP)
    assert not healthy()
    os.kill(container.first, signal.SIGCONT)
    assert healthy()
    entry = FINAL.last("ENTRYPOINT").exec_form
    assert container.run([*entry, "admin", "--post", "/drain"]).returncode == 0
    assert not healthy(), "a container that drains is not for new requests"


@marked
def test_sigterm_ends_process_1(start: Start) -> None:
    container = start(POD_NAME="orders-7")
    os.kill(container.first, signal.SIGTERM)
    assert ended(container) == (0, [])
    assert '"drained"' in container.process.stderr


@marked
def test_sigterm_ends_process_1_while_it_starts(start: Start, config: Path) -> None:
    """The kernel drops signals that process 1 has no handler for, and a configuration of this size takes a while."""
    route = "---\n{{apiVersion: l7proxy.io/v1, kind: Route, metadata: {{name: r{n}}}, spec: {{hosts: [h{n}]}}}}\n"
    (config / "routes.yaml").write_text("".join(route.format(n=n) for n in range(5000)))
    container = start(ready=False, POD_NAME="orders-7")

    def handles_sigterm() -> bool:
        status = Path(f"/proc/{container.first}/status").read_text() if container.first else ""
        caught = re.search(r"^SigCgt:\s+([0-9a-f]+)", status, re.MULTILINE)
        return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)

    container.process.wait_until(handles_sigterm)
    assert not accepts(HEALTH)
    os.kill(container.first, signal.SIGTERM)
    assert ended(container) == (128 + signal.SIGTERM, [])


@marked
def test_a_variable_that_the_pod_does_not_set_is_told_with_file_and_line(start: Start) -> None:
    status, said = ended(start(ready=False))
    assert status == 1
    assert said == ["/etc/l7proxy/sidecar.yaml:4: environment variable POD_NAME is not set"]


@marked
def test_a_volume_that_is_not_mounted_is_told(start: Start, image: Path) -> None:
    assert ended(start(ready=False, mounted=None)) == (1, ["/etc/l7proxy: there is no YAML file in this folder"])
    (image / "etc" / "l7proxy").rmdir()
    try:
        assert ended(start(ready=False, mounted=None)) == (
            1,
            ["/etc/l7proxy: cannot be read: No such file or directory"],
        )
    finally:
        (image / "etc" / "l7proxy").mkdir()


@marked
def test_files_that_its_user_may_not_read_are_told(start: Start, config: Path) -> None:
    (config / "sidecar.yaml").chmod(0o600)
    status, said = ended(start(ready=False, POD_NAME="orders-7"))
    assert (status, said) == (1, ["/etc/l7proxy/sidecar.yaml: cannot be read: Permission denied"])
    config.chmod(0o700)
    status, said = ended(start(ready=False, POD_NAME="orders-7"))
    assert (status, said) == (1, ["/etc/l7proxy: cannot be read: Permission denied"])


@marked
def test_what_would_be_written_to_the_read_only_root_is_told(start: Start, config: Path) -> None:
    text = (config / "sidecar.yaml").read_text()
    (config / "sidecar.yaml").write_text(text.replace("/dev/stdout", "/var/log/access.log"))
    status, said = ended(start(ready=False, POD_NAME="orders-7"))
    assert status == 1
    assert len(said) == 1
    assert "accessLog.path: /var/log/access.log: Read-only file system" in said[0]


@marked
def test_the_image_stays_small(image: Path) -> None:
    """All of it, the base too."""
    size = sum(path.lstat().st_size for path in image.rglob("*") if not path.is_dir() or path.is_symlink())
    assert size < 150e6


@marked
def test_there_is_no_shell_and_no_package_manager(image: Path) -> None:
    found = {path.name for folder in ("usr/bin", "usr/sbin") for path in (image / folder).iterdir()}
    assert not found & {"sh", "dash", "bash", "apt-get", "dpkg", "pip", "pip3"}
