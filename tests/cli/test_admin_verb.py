"""`l7proxy admin`: the admin API where there is no curl."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import StartSidecar
from tests.support.net import free_address

ROOT = str(Path(__file__).parents[2])


def ask(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "l7proxy", "admin", *arguments]
    done = subprocess.run(command, env={"PYTHONPATH": ROOT}, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_it_prints_the_answer_and_its_status_says_whether_it_is_good(sidecar: StartSidecar, tmp_path: Path) -> None:
    proxy = sidecar(health={"listen": f"unix:{tmp_path}/health.sock"})
    at = ("--at", f"{proxy.admin[0]}:{proxy.admin[1]}")
    assert ask(*at, "/ready") == (0, "ok\n", "")
    assert ask("--at", f"unix:{tmp_path}/health.sock", "/ready") == (0, "ok\n", "")
    assert '"/loglevel"' in ask(*at, "/")[1]
    assert ask(*at, "--post", "/drain")[:2] == (0, '{\n  "draining": true\n}\n')
    assert ask(*at, "/ready") == (1, "", "draining\n")
    assert ask(*at, "/drain")[0] == 1, "what changes something is POST"


def test_it_waits_until_the_answer_is_good(sidecar: StartSidecar) -> None:
    address = free_address()
    at = f"{address[0]}:{address[1]}"
    with ThreadPoolExecutor() as pool:
        late = pool.submit(ask, "--at", at, "--wait", "60", "/ready")
        sidecar(health={"listen": at})
        assert late.result() == (0, "ok\n", "")
    status, _, error = ask("--at", "127.0.0.1:1", "--wait", "0.3", "/ready")
    assert (status, "refused" in error) == (1, True)


def test_nobody_there_and_no_address() -> None:
    host, port = free_address()
    status, out, error = ask("--at", f"{host}:{port}", "/ready")
    assert (status, out) == (1, "")
    assert error == f"l7proxy admin: {host}:{port}: [Errno 111] Connection refused\n"
    status, _, error = ask("--at", "localhost", "/ready")
    assert status == 2
    assert "'localhost' is not host:port or unix:PATH" in error
