"""The layers of DESIGN: each module imports only what is below it, and heavy parts only when they are configured."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_no_module_imports_upwards() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_the_contract_names_every_package() -> None:
    import tomllib

    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {name.strip().removeprefix("l7proxy.") for layer in layers for name in layer.split("|")}
    there = {
        path.stem for path in (ROOT / "l7proxy").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there - {"__init__", "__main__"} <= named


@pytest.mark.parametrize("module", ["grpc", "aioquic", "redis", "google.protobuf", "opentelemetry.sdk.trace", "h11"])
def test_heavy_parts_are_not_imported_to_start(module: str) -> None:
    code = f"import sys, l7proxy.cli.run; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_httpx_is_imported_in_few_places() -> None:
    """Its API lives on in httpx2: the move must stay small."""
    users = [path for path in (ROOT / "l7proxy").rglob("*.py") if "import httpx" in path.read_text()]
    assert len(users) <= 4, users
