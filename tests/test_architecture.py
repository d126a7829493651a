"""The shape of the source: which module may import which, how long one may be, and what no file of the project holds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "talas_lib"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_LINES = 400

# A module imports from its own row and the rows above it. What is not named here is an edge and may import anything.
ROWS = (
    "pooling losses reduction relation_losses token_losses experts alignment sharpness_aware curvature curvature_estimate"
    " pyhessian_adapter loss_rise landscape hessian packed metrics probes uncertainty collapse",
    "files cache_files blocks encoders tokenization static_encoder model_folders tiny tiny_texts texts"
    " item_results distribution pretrained signal_files teacher_cache alignment_cache"
    " corpora tasks assets"
    " asset_registry checkpoints kept_weights",
    "methods",
    "token_cache schedule training_data divergence stepper train evaluate efficiency fixed_objective",
)
EDGE = len(ROWS)
ROW = {name: number for number, names in enumerate(ROWS) for name in names.split()}
# Imported from below all the same, each for one reason.
EXEMPT = {
    ("methods", "paths"),  # the registry lists the files of params/methods
}


def row(module: str) -> int:
    return ROW.get(module, EDGE)


def project_imports(source: str) -> Iterator[tuple[str, bool]]:
    """(module of talas_lib, whether for type checkers only) of every project import, nested ones included."""
    tree = ast.parse(source)
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    typing_only = {id(inner) for guard in guards for statement in guard.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("talas_lib."):
                yield name.split(".")[1], id(node) in typing_only
            elif name.startswith("."):
                yield f"relative import {name}", False


def upward_imports(module: str, source: str) -> list[str]:
    """Imports of `module` that go against the direction of ROWS."""
    found = []
    for target, typing_only in project_imports(source):
        allowed = (
            row(target) <= row(module)
            or (target == "errors" and row(module) > 0)
            or (target == "params" and typing_only)  # procedures and models are handed specs, and name their types
            or (module, target) in EXEMPT
        )
        if not allowed:
            found.append(f"{module} imports {target}")
    return found


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    """The name under talas_lib that a file belongs to: a module or a subpackage."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    assert upward_imports(room(file), file.read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("losses", "from talas_lib import train"),
        ("losses", "from talas_lib.errors import TalasError"),  # tensors in, tensors out: no message for a user
        ("encoders", "import talas_lib.methods.talas"),
        ("train", "def f():\n    from talas_lib import paths"),  # procedures choose no paths
        ("evaluate", "from talas_lib.params import resolve"),
        ("methods", "from .base import Objective"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str) -> None:
    assert len(upward_imports(module, source)) == 1


def test_every_named_module_exists() -> None:
    assert {name for name in ROW if not (PACKAGE / name).is_dir() and not (PACKAGE / f"{name}.py").is_file()} == set()
    assert not (PACKAGE / "utils.py").exists()


def test_modules_are_short() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in modules()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def texts() -> Iterator[Path]:
    """Every text file of the project that people write."""
    folders = ("talas_lib", "tests", "params", "notebooks", "docs", "tools", "benchmarks", "results", ".ci")
    endings = {".py", ".md", ".yaml", ".yml", ".toml", ".cff", ".ipynb", ".json", ".csv", ".html", ""}
    for file in [*ROOT.iterdir(), *(inner for folder in folders for inner in (ROOT / folder).rglob("*"))]:
        parts = file.relative_to(ROOT).parts
        if file.is_file() and file.suffix in endings and not {"__pycache__", ".ipynb_checkpoints"} & set(parts):
            yield file


# A path from the root of somebody's machine, but not the tail of a URL or of a relative path.
MACHINE_PATH = re.compile(r"(?<![\w./:~}-])/(?:root|work|opt|farm|mnt|Users/\w+|home/\w+)/")


def test_no_path_of_a_machine() -> None:
    found = {
        f"{file.relative_to(ROOT)}:{number}"
        for file in texts()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    }
    assert found == set()
    assert MACHINE_PATH.search("see " + "/".join(["", "home", "ada", "data"]))
    assert not MACHINE_PATH.search("https://example.org/work/page and ~/work/data")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_is_valid_and_has_no_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.source for cell in code if cell.outputs or cell.execution_count is not None] == [], "run `make format`"
