"""Verbs that ask a running sidecar find it, and say what is wrong when they do not."""

import http.server
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_check import l7proxy
from tests.config.test_load import document
from tests.conftest import StartSidecar
from tests.support.net import Address, free_address
from tests.support.process import Process
from tests.support.sidecar import Sidecar

QUICK = ("top", "--once", "--interval", "200ms")


@pytest.fixture(scope="module")
def proxy(shared_sidecar: StartSidecar) -> Sidecar:
    return shared_sidecar(app=free_address())


@pytest.fixture
def stranger() -> Iterator[Address]:
    """A web server that is no sidecar."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[:2]  # type: ignore[misc]
    server.shutdown()
    server.server_close()


def text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def test_the_configuration_says_where_the_admin_api_is(proxy: Sidecar) -> None:
    for arguments, environment in ((["-c", str(proxy.config)], {}), ([], {"L7PROXY_CONFIG": str(proxy.config)})):
        status, out, err = l7proxy(*QUICK, *arguments, **environment)
        assert (status, err) == (0, "")
        assert out.startswith(text(proxy.admin))


def test_what_is_wrong_elsewhere_in_the_configuration_does_not_matter(proxy: Sidecar, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: Nonsense\n---\nspec: [Sidecar\n")
    (tmp_path / "b.yaml").write_text(document("Route", "r", "{hots: []}") + "---\n" + proxy.config.read_text())
    status, out, _ = l7proxy(*QUICK, "-c", str(tmp_path))
    assert (status, out.startswith(text(proxy.admin))) == (0, True)


def test_an_address_comes_before_the_configuration(proxy: Sidecar, tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(document("Sidecar", "a", "{admin: {listen: '127.0.0.1:1'}}"))
    for address in (text(proxy.admin), f"localhost:{proxy.admin[1]}"):
        assert l7proxy(*QUICK, "-c", str(config), "--admin", address)[0] == 0


def test_a_unix_socket_is_asked_too(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    config = tmp_path / "sidecar.yaml"
    config.write_text(document("Sidecar", "a", f"{{admin: {{listen: 'unix:{path}'}}}}"))
    root = str(Path(__file__).parents[2])
    process = Process(
        "l7proxy", [sys.executable, "-m", "l7proxy", "run", "-c", str(config)], tmp_path, {"PYTHONPATH": root}
    )
    try:
        process.wait_until(path.exists)
        for where in (("-c", str(config)), ("--admin", f"unix:{path}")):
            status, out, err = l7proxy(*QUICK, *where)
            assert (status, err, out.startswith(f"unix:{path}")) == (0, "", True)
    finally:
        process.stop()


def test_nobody_there_is_said_with_the_address(tmp_path: Path) -> None:
    nobody = text(free_address())
    config = tmp_path / "a.yaml"
    config.write_text(document("Sidecar", "a", f"{{admin: {{listen: '{nobody}'}}}}"))
    for where in (("--admin", nobody), ("-c", str(config))):
        assert l7proxy(*QUICK, *where) == (
            1,
            "",
            f"l7proxy top: nothing answers at {nobody} (Connection refused): name the admin API with --admin or -c\n",
        )
    status, _, err = l7proxy(*QUICK, "--admin", f"unix:{tmp_path}/none")
    assert (status, "No such file or directory" in err) == (1, True)


def test_the_usual_address_is_asked_by_default() -> None:
    # Somebody may well run a sidecar here: then it answers.
    status, out, err = l7proxy(*QUICK)
    assert (out if status == 0 else err).find("127.0.0.1:15000") >= 0


def test_another_server_is_not_taken_for_a_sidecar(stranger: Address) -> None:
    status, out, err = l7proxy(*QUICK, "--admin", text(stranger))
    assert (status, out) == (1, "")
    assert err == f"l7proxy top: what answers at {text(stranger)} is no admin API of l7proxy: 501 for /stats\n"


def test_json_of_another_server_is_not_taken_for_a_sidecar(uvicorn_app: Address) -> None:
    assert l7proxy(*QUICK, "--admin", text(uvicorn_app)) == (
        1,
        "",
        f"l7proxy top: what answers at {text(uvicorn_app)} is no admin API of l7proxy\n",
    )


def test_a_configuration_without_an_address_says_so(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    for spec, message in (
        ("{}", "the configuration has no admin listener: add `admin: {}` to the Sidecar, or name it with --admin"),
        (
            "{admin: {listen: '127.0.0.1:0'}}",
            "the sidecar has picked the port of its admin API: its log names it, for --admin",
        ),
        ("{admin: {listen: nowhere}}", f"{config}:5: spec.admin.listen: 'nowhere' is not an address to listen on"),
    ):
        config.write_text(document("Sidecar", "a", spec))
        status, out, err = l7proxy(*QUICK, "-c", str(config))
        assert (status, out) == (1, "")
        assert err.removeprefix("l7proxy top: ").startswith(message), err
    status, _, err = l7proxy(*QUICK, "-c", str(tmp_path / "none"))
    assert (status, err) == (1, f"{tmp_path}/none: cannot be read: No such file or directory\n")


@pytest.mark.parametrize("address", ["nowhere", "localhost", "127.0.0.1:99999", ":1", "unix:x"])
def test_what_is_no_address_is_wrong_usage(address: str) -> None:
    status, _, err = l7proxy(*QUICK, "--admin", address)
    assert status == 2
    assert "is not host:port or unix:PATH" in err
