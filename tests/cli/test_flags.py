"""What differs from pod to pod is said by flags or by variables, in place of the YAML."""

import argparse
import http.client
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from l7proxy.cli import flags
from l7proxy.config.overrides import Overrides
from l7proxy.core.errors import ConfigError
from tests.support.net import Address, accepts, free_address
from tests.support.process import Process

ROOT = str(Path(__file__).parents[2])


def read(*arguments: str, **environment: str) -> Overrides:
    parser = argparse.ArgumentParser()
    flags.configure(parser)
    return flags.overrides(parser.parse_args(arguments), {f"L7PROXY_{key}": text for key, text in environment.items()})


def refused(*arguments: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(*arguments, **environment)
    return str(caught.value).splitlines()


def test_a_flag_wins_over_its_variable_and_an_empty_variable_is_none() -> None:
    assert read() == Overrides()
    assert read("--service", "a", SERVICE="b", NAMESPACE="shop", MESH="") == Overrides(service="a", namespace="shop")
    assert read(APP="http://127.0.0.1:8080", OTLP="http://10.0.0.1:4318", WORKERS="3") == Overrides(
        app="http://127.0.0.1:8080", otlp="http://10.0.0.1:4318", workers=3
    )


def test_every_value_that_is_wrong_is_told_with_its_name() -> None:
    lines = refused("--app", "localhost:8080", WORKERS="0", OTLP="udp://a:1")
    assert [line.partition(":")[0] for line in lines] == ["--app", "L7PROXY_OTLP", "L7PROXY_WORKERS"]
    assert lines[2] == "L7PROXY_WORKERS: '0' is not a number of processes from 1 to 256"


def test_a_variable_that_means_nothing_is_a_mistake() -> None:
    assert refused(WORKER="2") == ["L7PROXY_WORKER: there is no such variable; did you mean L7PROXY_WORKERS?"]


def test_what_kubernetes_adds_for_a_service_of_our_name_is_left_alone() -> None:
    """It sets these in every container that starts after a Service called `l7proxy` or `l7proxy-web` is there."""
    made = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_80_TCP", "PORT_80_TCP_ADDR")
    assert read(**dict.fromkeys((*made, *(f"WEB_{name}" for name in made)), "tcp://10.0.0.1:80")) == Overrides()


def spec(admin: Address, **more: Any) -> str:
    inbound, admin_at = free_address(), f"{admin[0]}:{admin[1]}"
    block = {"inbound": {"listen": f"{inbound[0]}:{inbound[1]}"}, "admin": {"listen": admin_at}, **more}
    document = {"apiVersion": "l7proxy.io/v1", "kind": "Sidecar", "metadata": {"name": "yaml"}, "spec": block}
    return yaml.safe_dump(document)


def ask(address: Address, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=5)
    connection.request("GET", path, headers={"host": "localhost"})
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_a_sidecar_runs_by_variables_alone(tmp_path: Path) -> None:
    admin = free_address()
    (tmp_path / "a.yaml").write_text(spec(admin, service={"name": "yaml", "mesh": "demo"}))
    route = "{apiVersion: l7proxy.io/v1, kind: Route, metadata: {name: orders}, spec: {hosts: [orders]}}"
    (tmp_path / "b.yaml").write_text(route)
    env = {
        "PYTHONPATH": ROOT,
        "L7PROXY_CONFIG": "a.yaml:b.yaml",
        "L7PROXY_APP": "http://127.0.0.1:8080",
        "L7PROXY_SERVICE": "orders",
        "L7PROXY_WORKERS": "2",
        "L7PROXY_LOG_LEVEL": "error",
    }
    process = Process("sidecar", [sys.executable, "-m", "l7proxy", "run", "--namespace", "shop"], tmp_path, env)
    try:
        process.wait_until(lambda: accepts(admin) and ask(admin, "/ready")[0] == 200)
        documents = json.loads(ask(admin, "/config")[1])["documents"]
        found = {document["name"]: document["spec"] for document in documents}
        assert found["orders"]["hosts"] == ["orders"]
        service = found["yaml"]["service"]
        assert (service["name"], service["namespace"], service["mesh"]) == ("orders", "shop", "demo")
        assert (found["yaml"]["inbound"]["app"], found["yaml"]["workers"]) == ("http://127.0.0.1:8080", 2)
    finally:
        process.stop()
    assert process.stderr == "", "events below `error` are not logged"


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"L7PROXY_LOG_LEVEL": "loud"}, "L7PROXY_LOG_LEVEL: 'loud' is not one of debug, info, warning, error"),
        ({"L7PROXY_CONFIG": "none.yaml"}, "none.yaml: cannot be read: No such file or directory"),
        ({"L7PROXY_APP": "8080"}, "L7PROXY_APP: '8080' is not a URL"),
    ],
)
def test_a_start_with_a_wrong_variable_says_which(env: dict[str, str], line: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "l7proxy", "run"]
    done = subprocess.run(
        command, env={"PYTHONPATH": ROOT, **env}, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(line), done.stderr


def test_check_takes_the_same_values(tmp_path: Path) -> None:
    route = "---\n{apiVersion: l7proxy.io/v1, kind: Route, metadata: {name: a}, spec: {upstream: app}}"
    (tmp_path / "a.yaml").write_text(spec(free_address()) + route)
    command = [sys.executable, "-m", "l7proxy", "check", "-c", "a.yaml"]
    for env, status in (({}, 1), ({"L7PROXY_APP": "http://127.0.0.1:8080"}, 0)):
        done = subprocess.run(
            command, env={"PYTHONPATH": ROOT, **env}, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr


def test_check_reads_what_run_would_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(spec(free_address()))
    done = subprocess.run(
        [sys.executable, "-m", "l7proxy", "check"],
        env={"PYTHONPATH": ROOT, "L7PROXY_CONFIG": "a.yaml"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout[:4]) == (0, "ok: "), done.stderr


def test_the_documents_list_every_flag() -> None:
    page = (Path(ROOT) / "docs" / "running.md").read_text()
    for flag in flags.FLAGS:
        assert f"| `--{flag.name}` | `{flag.variable}` |" in page
