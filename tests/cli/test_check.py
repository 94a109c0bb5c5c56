"""The command as its users run it: a process, its output and its exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.config.test_load import SIDECAR, route

ROOT = Path(__file__).parents[2]


def l7proxy(*arguments: str, folder: Path | None = None, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "l7proxy", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_a_right_configuration_is_said_to_be_right(tmp_path):
    (tmp_path / "a.yaml").write_text(SIDECAR + route("r", "{hosts: [a]}"))
    status, out, err = l7proxy("check", "a.yaml", folder=tmp_path)
    assert (status, err) == (0, "")
    assert out.startswith("ok: 1 route, version ")
    assert l7proxy("check", "-c", str(tmp_path)) == (0, out, "")


def test_every_mistake_is_one_line_with_file_and_line(tmp_path):
    (tmp_path / "a.yaml").write_text(SIDECAR.replace("inbound", "inbond") + route("r", "{upstream: nobody}"))
    status, out, err = l7proxy("check", "a.yaml", folder=tmp_path)
    assert (status, out) == (1, "")
    assert err == (
        "a.yaml:6: spec.inbond: unknown key; did you mean 'inbound'?\n"
        "a.yaml:12: spec.upstream: unknown upstream 'nobody'\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "policies/host-routing"),
        ("explain", "-c", "policies/host-routing", "GET", "/"),
        ("test", "policies/host-routing", "policies/host-routing/tests"),
        ("diff", "policies/host-routing", "policies/first-sidecar"),
        ("schema",),
    ],
)
def test_output_that_nobody_reads_ends_a_verb_quietly(arguments):
    reads, writes = os.pipe()
    os.close(reads)
    try:
        command = [sys.executable, "-m", "l7proxy", *arguments]
        done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, cwd=ROOT, timeout=60)
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_warning_is_shown_and_is_no_failure(tmp_path):
    (tmp_path / "a.yaml").write_text(
        SIDECAR.replace("outbound: {}", "") + route("r", "{direction: outbound, directResponse: {}}")
    )
    status, _, err = l7proxy("check", "a.yaml", folder=tmp_path)
    assert status == 0
    assert err == "a.yaml:12: spec.direction: the Sidecar has no outbound listener for this route (warning)\n"


def test_a_configuration_whose_sidecar_comes_from_the_command_line(tmp_path):
    (tmp_path / "a.yaml").write_text(route("r", "{hosts: [a]}"))
    assert l7proxy("check", "a.yaml", folder=tmp_path)[0] == 1
    assert l7proxy("check", "a.yaml", "--app", "http://127.0.0.1:8080", folder=tmp_path)[0] == 0


def test_a_variable_is_taken_from_the_environment(tmp_path):
    (tmp_path / "a.yaml").write_text(SIDECAR.replace("127.0.0.1", "${POD_IP}").replace("{app", "{ app"))
    (tmp_path / "a.yaml").write_text(SIDECAR.replace("http://127.0.0.1:8080", "'http://${POD_IP}:8080'"))
    status, _, err = l7proxy("check", "a.yaml", folder=tmp_path)
    assert (status, err) == (1, "a.yaml:6: environment variable POD_IP is not set\n")
    assert l7proxy("check", "a.yaml", folder=tmp_path, POD_IP="10.0.0.1")[0] == 0


@pytest.mark.parametrize("arguments", [("check",), ("check", "--nope"), ("nope",), (), ("schema", "--format", "xml")])
def test_wrong_usage_ends_with_2(arguments):
    status, out, err = l7proxy(*arguments)
    assert (status, out) == (2, "")
    assert "l7proxy" in err


def test_the_schema_is_printed_as_json():
    status, out, _ = l7proxy("schema")
    assert status == 0
    assert json.loads(out)["title"] == "l7proxy"


def test_a_policy_of_another_package_is_checked_like_our_own(tmp_path):
    package = tmp_path / "shout"
    (package / "shout-1.0.dist-info").mkdir(parents=True)
    (package / "shout-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1.0\n")
    (package / "shout-1.0.dist-info/entry_points.txt").write_text("[l7proxy.filters]\nshout = shout:Shout\n")
    (package / "shout.py").write_text(
        "from typing import ClassVar\n"
        "from l7proxy.core.handler import Filter\n"
        "class Shout(Filter, frozen=True):\n"
        "    '''Shouts.'''\n"
        "    name: ClassVar[str] = 'shout'\n"
        "    loud: bool = False\n"
        "    def wrap(self, inner, build):\n"
        "        return inner\n"
    )
    path = f"{package}:{Path(__file__).parents[2]}"
    (tmp_path / "a.yaml").write_text(SIDECAR + route("r", "{policies: {shout: {loud: true}}}"))
    assert l7proxy("check", "a.yaml", folder=tmp_path)[2] == "a.yaml:12: spec.policies.shout: unknown policy\n"
    assert l7proxy("check", "a.yaml", folder=tmp_path, PYTHONPATH=path)[0] == 0
    (tmp_path / "a.yaml").write_text(SIDECAR + route("r", "{policies: {shout: {laud: true}}}"))
    assert "did you mean 'loud'?" in l7proxy("check", "a.yaml", folder=tmp_path, PYTHONPATH=path)[2]
    assert '"shout"' in l7proxy("schema", PYTHONPATH=path)[1]
