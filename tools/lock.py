"""Rewrite requirements.lock and requirements-docs.lock from the packages of the running environment: `make lock`.

What only the extra `docs` of pyproject.toml asks for, directly or through others, goes into requirements-docs.lock.
Versions are read from the environment; the hashes are those the package index serves for all platforms, so one lock
works on Linux and macOS. `uv` does the look-up; it is installed in a temporary folder, not in the environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]

# torch: see the header; torchvision: nothing here imports it, and its index build need not fit the installed torch;
# pip and uv: the tools that install; talas: the project itself.
LEFT_OUT = {"torch", "torchvision", "pip", "uv", "talas"}
# Needed on one platform only, hence not in an environment elsewhere.
ELSEWHERE = ["appnope==0.1.4 ; sys_platform == 'darwin'"]  # ipykernel on macOS
# Come with torch's CUDA build alone.
CUDA_ONLY = re.compile(r"(nvidia|cuda)-.*|triton")

HEADER = """\
# Exact versions the committed results were made with; written by `make lock`, not by hand.
# Install with `pip install --require-hashes --no-deps -r requirements.lock` (`make setup` does).
# torch is not here: it is installed by version, torch=={torch}, since the CPU build served in one place is not the
# file served in another. torchvision is not here because nothing imports it.
"""

DOCS_HEADER = """\
# What `make docs` needs beside requirements.lock; written by `make lock`, not by hand.
# `make docs` installs it into .venv/docs: `pip install --require-hashes --no-deps --target .venv/docs -r requirements-docs.lock`.
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def frozen() -> dict[str, str]:
    """`name==version` of every installed distribution that belongs in a lock, by name, sorted."""
    pins = {}
    for distribution in metadata.distributions():
        name = canonical(distribution.metadata["Name"])
        if name not in LEFT_OUT and not CUDA_ONLY.fullmatch(name):
            pins[name] = f"{name}=={distribution.version}"
    return dict(sorted(pins.items()))


def needed(requirements: Iterable[str]) -> set[str]:
    """Names of the installed distributions that these requirements ask for, directly or through others."""
    found: set[str] = set()
    asked = [Requirement(text) for text in requirements]
    while asked:
        requirement = asked.pop()
        extras = ("", *requirement.extras)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonical(requirement.name)
        try:
            inner = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            for text in inner:
                one = Requirement(text)
                if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras):
                    one.marker = None
                    asked.append(one)
    return found


def only_docs() -> set[str]:
    """Names of the installed distributions that nothing but the site needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = dict(project["optional-dependencies"])
    docs = needed(extras.pop("docs"))
    return docs - needed([*project["dependencies"], *(text for texts in extras.values() for text in texts)])


def hashed(pins: list[str]) -> str:
    """The pins with the hashes of all their files. Raises CalledProcessError when a pin cannot be installed on the
    oldest supported Python, or is not on the index."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "frozen.in").write_text("\n".join(pins) + "\n")
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--target", folder / "uv", "uv"], check=True)
        options = ["--no-deps", "--generate-hashes", "--universal", "--python-version", "3.11", "--no-config"]
        quiet = ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "-q"]
        command = [folder / "uv" / "bin" / "uv", "pip", "compile", folder / "frozen.in", *options, *quiet]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("UV_")}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=clean).stdout


def main() -> None:
    pins, docs = frozen(), only_docs()
    torch = metadata.version("torch").split("+")[0]
    ours = [pin for name, pin in pins.items() if name not in docs] + ELSEWHERE
    (ROOT / "requirements.lock").write_text(HEADER.format(torch=torch) + hashed(ours))
    (ROOT / "requirements-docs.lock").write_text(DOCS_HEADER + hashed([pins[name] for name in sorted(docs)]))
    print(
        f"requirements.lock: {len(ours)} packages, requirements-docs.lock: {len(docs)};"
        f" torch=={torch} is installed by version (TORCH_VERSION in the Makefile)"
    )


if __name__ == "__main__":
    main()
