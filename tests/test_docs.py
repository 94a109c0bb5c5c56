"""The documents say what is: their examples run, the code that they name exists, their links lead somewhere."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SIDECAR = "apiVersion: l7proxy.io/v1\nkind: Sidecar\nmetadata: {name: docs}\nspec: {inbound: {app: 'http://127.0.0.1:8080'}}\n"
PAGES = sorted(page for folder in (".", "docs", "k8s", "policies", "bench") for page in (ROOT / folder).glob("*.md"))


class Block(NamedTuple):
    """One fenced block: its language, the file name behind it, and where it stands."""

    page: str
    line: int
    language: str
    name: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in re.finditer(r"^```(\w+)[ ]?([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(str(page.relative_to(ROOT)), line, match[1], match[2].strip(), match[3]))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
YAML = [
    block for block in BLOCKS if block.language == "yaml" and "apiVersion: l7proxy.io" in block.text and not block.name
]


def where(block: Block) -> str:
    return f"{block.page}:{block.line}"


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": str(Path(sys.executable).parent)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("block", YAML, ids=where)
def test_yaml_examples_pass_the_check(block: Block, tmp_path: Path) -> None:
    (tmp_path / "example.yaml").write_text(block.text)
    if "kind: Sidecar" not in block.text:
        (tmp_path / "sidecar.yaml").write_text(SIDECAR)
    done = run(sys.executable, "-m", "l7proxy", "check", "-c", ".", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_python_example_goes_unrun() -> None:
    assert [where(block) for block in BLOCKS if block.language == "python" and not block.name] == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.name for b in blocks(page))], ids=lambda page: page.stem
)
def test_files_of_one_page_work_together(page: Path, tmp_path: Path) -> None:
    """Named blocks are files; the package that a pyproject.toml describes counts as installed; `test_*.py` are run."""
    files = [block for block in blocks(page) if block.name]
    for block in files:
        (tmp_path / block.name).write_text(block.text)
    project = tmp_path / "pyproject.toml"
    if project.exists():
        about = tomllib.loads(project.read_text())["project"]
        info = tmp_path / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
        groups = about.get("entry-points", {})
        lines = [
            f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
    for block in files:
        if block.name.endswith(".yaml"):
            done = run(sys.executable, "-m", "l7proxy", "check", "-c", block.name, folder=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
        elif block.name.startswith("test_"):
            done = run(sys.executable, block.name, folder=tmp_path)
            assert done.returncode == 0, done.stderr


def _names(path: Path) -> set[str]:
    """Returns what a module defines at its top, and in its classes as `Class.name`."""
    names: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.update(
                    f"{prefix}{node.name}.{n.name}" for n in ast.walk(node) if isinstance(n, ast.AsyncFunctionDef)
                )
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    collect(ast.parse(path.read_text()).body, "")
    return names


REFERENCES = [
    (f"{page.relative_to(ROOT)}", match[1], match[2])
    for page in PAGES
    for match in re.finditer(r"`([\w/.-]+\.py):([A-Za-z_][\w.]*)`", page.read_text())
]


@pytest.mark.parametrize(("page", "file", "name"), REFERENCES, ids=[f"{f}:{n}" for _, f, n in REFERENCES])
def test_code_that_is_named_exists(page: str, file: str, name: str) -> None:
    path = ROOT / file
    assert path.exists(), f"{page} names {file}"
    assert name in _names(path), f"{page} names {name} in {file}"


LINKS = [
    (page, match[1])
    for page in PAGES
    for match in re.finditer(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    if "://" not in match[1]
]


@pytest.mark.parametrize(("page", "link"), LINKS, ids=[f"{page.stem}-{link}" for page, link in LINKS])
def test_links_lead_somewhere(page: Path, link: str) -> None:
    assert (page.parent / link).exists()


def test_the_life_of_a_request_names_its_code() -> None:
    """It is the map of the code: it has to name a good part of it."""
    assert len([1 for page, _, _ in REFERENCES if page.endswith("life-of-a-request.md")]) > 20
