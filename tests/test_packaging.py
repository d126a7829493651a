"""What a newcomer installs: the lock, the declared dependencies, the environment file, the kernel, the command layer."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
TORCH_VERSION = re.search(r"^TORCH_VERSION := (\S+)$", MAKEFILE, re.MULTILINE)


def locked() -> dict[str, str]:
    """Version by canonical name of every requirement in the lock."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", LOCK, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def declared(*extras: str) -> dict[str, Requirement]:
    """The requirements of pyproject.toml, those of the given extras included, by canonical name."""
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, texts)}


def lock_faults(text: str) -> list[str]:
    """What must not stand in a lock: a line that only works on one machine, a requirement without an exact version or hash."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    only_here = [
        line for line in lines if re.search(r"\+cpu|\+cu\d|file:|://| @ |^\s*-(?!-hash=)|(^|\s)\.{0,2}/", line)
    ]
    requirements = [
        (line, after) for line, after in zip(lines, [*lines[1:], ""], strict=True) if not line.startswith(" ")
    ]
    loose = [line for line, _ in requirements if not re.match(r"[A-Za-z0-9._-]+==[^\s;]+( ;.*)? \\$", line)]
    unhashed = [line for line, after in requirements if not re.match(r"    --hash=sha256:[0-9a-f]{64}( \\)?$", after)]
    left_out = [line for line, _ in requirements if re.match(r"(torch|torchvision|pip|talas|nvidia-.*|triton)==", line)]
    return only_here + loose + unhashed + left_out


def test_lock_is_exact_hashed_and_of_no_machine() -> None:
    assert lock_faults(LOCK) == []
    assert lock_faults((ROOT / "requirements-docs.lock").read_text()) == []
    assert len(locked()) > 150


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.13.0 \\",
        "torchvision==0.28.0 \\",
        "numpy==2.4.6+cpu \\",
        "numpy @ file:///somewhere/numpy.whl \\",
        "--index-url https://example.org/simple",
        "-e .",
        "./wheels/numpy.whl",
        "numpy>=2 \\",
        "numpy==2.4.6",
    ],
)
def test_lock_check_finds_faults(line: str) -> None:
    digest = "0" * 64
    good = f"scipy==1.17.1 \\\n    --hash=sha256:{digest} \\\n    --hash=sha256:{digest}\n"
    assert lock_faults(f"# a comment may name /a/path\n{good}") == []
    assert lock_faults(f"{good}{line}\n    --hash=sha256:{digest}\n")


def test_lock_without_hash_is_a_fault() -> None:
    assert lock_faults("numpy==2.4.6 \\\nscipy==1.17.1 \\\n    --hash=sha256:" + "0" * 64)


def test_lock_satisfies_every_declared_dependency() -> None:
    pins = locked()
    for name, requirement in declared("dev").items():
        if name != "torch":
            assert pins[name] in requirement.specifier, f"{requirement} against {pins[name]} in the lock"


def test_lock_holds_the_build_backend() -> None:
    # `make setup` installs talas without build isolation, hence without looking for a backend on the index
    backend = Requirement(tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"][0])
    assert locked()[canonicalize_name(backend.name)] in backend.specifier


def test_torch_is_named_by_version_in_one_place() -> None:
    assert TORCH_VERSION is not None
    assert f"torch=={TORCH_VERSION[1]}" in LOCK.partition("\naccelerate")[0]
    assert TORCH_VERSION[1] in declared()["torch"].specifier


def test_version_is_the_same_everywhere() -> None:
    import talas_lib

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert talas_lib.__version__ == PROJECT["version"] == citation["version"]
    assert PROJECT["license"] == citation["license"] == "Apache-2.0"
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def imported() -> Iterator[tuple[str, str]]:
    """(file, top-level package) of every import in talas_lib from outside it and the standard library."""
    for file in sorted((ROOT / "talas_lib").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"talas_lib"}:
                yield str(file.relative_to(ROOT)), name


def test_every_import_is_declared() -> None:
    distributions = metadata.packages_distributions()
    names = declared("gpu")
    missing = [
        (file, package)
        for file, package in imported()
        if not {canonicalize_name(name) for name in distributions.get(package, [package])} & names.keys()
    ]
    assert missing == [], "add these to `dependencies` in pyproject.toml"


def test_environment_file() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "talas"
    assert environment["channels"][0] == "conda-forge"
    assert "pytorch" not in environment["channels"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert "pip" in conda
    assert any(re.fullmatch(r"python=3\.1[1-9]", entry) for entry in conda)
    assert environment["dependencies"][-1] == {"pip": ["-e ."]}


def test_importing_the_package_loads_no_heavy_library() -> None:
    script = (
        "import importlib, json, pkgutil, sys\n"
        "import talas_lib, talas_lib.params, talas_lib.methods\n"
        "for module in pkgutil.iter_modules(talas_lib.methods.__path__):\n"
        "    importlib.import_module(f'talas_lib.methods.{module.name}')\n"
        "print(json.dumps([name for name in sys.modules if '.' not in name]))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "datasets", "sentence_transformers", "sklearn", "pandas", "matplotlib"}
    assert heavy.isdisjoint(json.loads(run.stdout))


def test_notebook_kernel_is_this_interpreter() -> None:
    from jupyter_client.kernelspec import KernelSpecManager

    spec = KernelSpecManager().get_kernel_spec("python3")
    assert Path(spec.resource_dir).is_relative_to(sys.prefix)
    assert Path(spec.argv[0]).name.startswith("python")


def test_make_explains_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    explained = set(re.findall(r"^([a-z-]+):.*## \S", MAKEFILE, re.MULTILINE))
    assert explained == set(phony[1].split())
    assert {"help", "quickstart", "test", "lab", "lint"} <= explained
    assert re.search(r"^\.DEFAULT_GOAL := help$", MAKEFILE, re.MULTILINE)


def test_ci_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text().splitlines()
