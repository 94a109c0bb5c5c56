"""A start that cannot be says why in one line, and neither start nor end waits for who does not read."""

import fcntl
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import StartServer, StartSidecar
from tests.support.net import Address, accepts, free_address, wait_for

ROOT = str(Path(__file__).parents[2])


def text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def config(folder: Path, **spec: object) -> Path:
    path = folder / "sidecar.yaml"
    path.write_text(
        yaml.safe_dump({"apiVersion": "l7proxy.io/v1", "kind": "Sidecar", "metadata": {"name": "a"}, "spec": spec})
    )
    return path


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "l7proxy", "run", "-c", str(path)]


def refused(path: Path) -> list[str]:
    """Returns the lines of a start that failed with status 1: one for each thing that is wrong."""
    done = subprocess.run(
        command(path), capture_output=True, text=True, timeout=20, env={**os.environ, "PYTHONPATH": ROOT}
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    return lines


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken(workers: int, tmp_path: Path, sidecar: StartSidecar, serve: StartServer) -> None:
    address = serve().address
    lines = refused(config(tmp_path, inbound={"listen": text(address)}, workers=workers))
    assert lines == [f"cannot listen on {text(address)}: Address already in use"]


def test_certificates_that_cannot_be_read(tmp_path: Path) -> None:
    tls = {"cert": "tls.crt", "key": "tls.key", "ca": "ca.crt"}
    for name in tls.values():
        (tmp_path / name).write_text("no certificate")
    path = config(tmp_path, inbound={"listen": text(free_address()), "tls": tls})
    said = refused(path)
    assert [name for name in tls.values() for line in said if f"{tmp_path}/{name}: no " in line] == list(tls.values())
    (tmp_path / "tls.crt").unlink()
    assert any("tls.crt" in line for line in refused(path))


def test_files_and_folders_that_are_missing(tmp_path: Path) -> None:
    (line,) = refused(tmp_path / "none.yaml")
    assert "No such file" in line
    (line,) = refused(config(tmp_path, metrics={"listen": text(free_address())}, accessLog={"path": "/none/log"}))
    assert "accessLog.path: /none/log: No such file" in line


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The writing end of a pipe that takes no byte more, and that nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * 4096)
    yield writer
    os.close(reader)
    os.close(writer)


def test_full_pipes_keep_nobody_from_starting_serving_and_ending(
    tmp_path: Path, full_pipe: int, serve: StartServer
) -> None:
    inbound = free_address()
    path = config(
        tmp_path,
        inbound={"listen": text(inbound), "app": f"http://{text(serve().address)}"},
        accessLog={},
        drain={"quiet": "0s"},
    )
    process = subprocess.Popen(
        command(path), stdout=full_pipe, stderr=full_pipe, env={**os.environ, "PYTHONPATH": ROOT}
    )
    try:
        wait_for(lambda: accepts(inbound))
        for _ in range(20):
            with urllib.request.urlopen(f"http://{text(inbound)}/", timeout=5) as answer:
                assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(8) == 0
    finally:
        process.kill()


def test_a_full_pipe_keeps_nobody_from_failing(tmp_path: Path, full_pipe: int, serve: StartServer) -> None:
    path = config(tmp_path, inbound={"listen": text(serve().address)})
    done = subprocess.run(command(path), stderr=full_pipe, timeout=20, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.returncode == 1


def test_without_stdin_stdout_and_stderr(tmp_path: Path, serve: StartServer) -> None:
    inbound = free_address()
    app = serve()
    path = config(
        tmp_path,
        inbound={"listen": text(inbound), "app": f"http://{text(app.address)}"},
        accessLog={},
        drain={"quiet": "0s"},
    )
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command(path)]
    process = subprocess.Popen(shell, env={**os.environ, "PYTHONPATH": ROOT})
    try:
        wait_for(lambda: accepts(inbound))
        with urllib.request.urlopen(f"http://{text(inbound)}/", timeout=5) as answer:
            assert answer.read() == b"ok"
        assert {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(8) == 0
    finally:
        process.kill()
