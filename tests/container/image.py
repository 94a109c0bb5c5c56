"""Carries the Dockerfile's steps out in a fresh Debian, and runs what comes of them as an engine would.

The base of the final stage cannot be had here. It is made of Debian's packages, and so is what stands for it: these
packages' files and nothing else, no shell, no package manager.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.container.dockerfile import read
from tests.support.process import Process

ROOT = Path(__file__).parents[2]
BUILD, FINAL = read(ROOT / "Dockerfile")

DISTROLESS = (
    # What `static`, `base`, `cc` and `python3` of distroless add to each other, in Debian 12.
    *("base-files", "netbase", "tzdata", "media-types", "ca-certificates"),
    *("libc6", "libssl3"),
    *("libgcc-s1", "libgomp1", "libstdc++6"),
    *("libbz2-1.0", "libdb5.3", "libexpat1", "liblzma5", "libsqlite3-0", "libuuid1", "libncursesw6", "libtinfo6"),
    *("python3-distutils", "zlib1g", "libcom-err2", "libcrypt1", "libgssapi-krb5-2", "libk5crypto3", "libkeyutils1"),
    *("libkrb5-3", "libkrb5support0", "libnsl2", "libreadline8", "libtirpc3", "libffi8"),
    *("libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal"),
)
_LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}


def make(folder: Path) -> Path:
    """Returns the root of the final image."""
    build, final = folder / "build", folder / "final"
    options = ["--variant=minbase", f"--include={','.join(DISTROLESS)}"]
    _run(["debootstrap", *options, "bookworm", str(build)])
    shutil.copy("/etc/resolv.conf", build / "etc" / "resolv.conf")
    shutil.copy(os.environ.get("PIP_CERT", "/etc/ssl/certs/ca-certificates.crt"), build / "tmp" / "ca.crt")
    _copy_packages(build, final)
    at = "/"
    for step in BUILD.steps:
        if step.word == "WORKDIR":
            at = step.rest
            (build / at.lstrip("/")).mkdir()
        elif step.word == "COPY":
            _copy(step.rest, build, at)
        else:
            assert step.word == "RUN"
            _step(build, step.rest, at, PIP_CERT="/tmp/ca.crt", DEBIAN_FRONTEND="noninteractive", HOME="/root")
    for step in FINAL.steps:
        if step.word == "COPY":
            origin, source, target = shlex.split(step.rest)
            assert origin == f"--from={BUILD.name}"
            shutil.copytree(build / source.lstrip("/"), final / target.lstrip("/"), symlinks=True)
    shutil.rmtree(build)
    return final


def _copy_packages(build: Path, final: Path) -> None:
    for name in ("dev", "proc", "tmp", "etc", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"):
        (final / name).mkdir(parents=True)
    for name, target in _LINKS.items():
        (final / name).symlink_to(target)
    listed = _run(["chroot", str(build), "dpkg-query", "--listfiles", *DISTROLESS]).splitlines()
    for name in sorted({line.lstrip("/") for line in listed if line.startswith("/")}):
        source, target = build / name, final / name
        if not os.path.lexists(source) or target.is_symlink():
            continue
        if source.is_dir() and not source.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
        else:
            shutil.copy2(source, target, follow_symlinks=False)
    (final / "usr" / "bin" / "python3").symlink_to("python3.11")


def _copy(rest: str, root: Path, folder: str) -> None:
    *sources, target = shlex.split(rest)
    place = root / target.lstrip("/") if target.startswith("/") else root / folder.lstrip("/") / target
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)


def _step(root: Path, command: str, folder: str, **env: str) -> None:
    line = ["chroot", str(root), "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    line += [f"{key}={value}" for key, value in env.items()]
    _run([*line, "/bin/sh", "-c", f"cd {shlex.quote(folder)} && {command}"])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


class Container:
    """The image at work: its own process tree, its user and a read-only root; the network is that of the machine.

    `config` is mounted where a ConfigMap would be, None leaves it out. `env` adds to the image's environment.
    """

    def __init__(self, image: Path, folder: Path, config: Path | None, env: Mapping[str, str] | None = None) -> None:
        self._image = image
        self._config = config
        self._env = {**FINAL.environment, **(env or {})}
        command = [*FINAL.last("ENTRYPOINT").exec_form, *FINAL.last("CMD").exec_form]
        self.process = Process("container", self._inside(command), folder)

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs a program of the image in a container of its own, beside this one's network."""
        return subprocess.run(self._inside(command), capture_output=True, text=True, timeout=60, check=False)

    @property
    def first(self) -> int:
        """The process that is number 1 inside; 0 while there is none."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(found or 0)

    def _inside(self, command: Sequence[str]) -> list[str]:
        root = shlex.quote(str(self._image))
        mounts = [f"mount --bind {root} {root}"]
        if self._config is not None:
            mounts.append(f"mount --bind {shlex.quote(str(self._config))} {root}/etc/l7proxy")
        mounts += [
            f"mount -o remount,ro,bind {root}",
            f"mount -t devtmpfs dev {root}/dev",
            f"mount -t proc proc {root}/proc",
        ]
        user = FINAL.last("USER").rest
        env = shlex.join(f"{key}={value}" for key, value in {"PATH": "/usr/bin:/bin", **self._env}.items())
        run = f"exec env -i {env} /usr/sbin/chroot --userspec={user} {root} {shlex.join(command)}"
        return ["unshare", "--pid", "--mount", "--fork", "sh", "-c", " && ".join([*mounts, run])]
