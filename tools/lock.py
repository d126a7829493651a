"""Rewrite requirements.lock from the packages of the running environment: `make lock`.

Versions are read from the environment; the hashes are those the package index serves for all platforms, so one lock
works on Linux and macOS. `uv` does the look-up; it is installed in a temporary folder, not in the environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

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


def frozen() -> list[str]:
    """`name==version` of every installed distribution that belongs in the lock, sorted."""
    pins = set()
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name not in LEFT_OUT and not CUDA_ONLY.fullmatch(name):
            pins.add(f"{name}=={distribution.version}")
    return sorted(pins)


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
    pins = frozen() + ELSEWHERE
    torch = metadata.version("torch").split("+")[0]
    (ROOT / "requirements.lock").write_text(HEADER.format(torch=torch) + hashed(pins))
    print(
        f"requirements.lock: {len(pins)} packages; torch=={torch} is installed by version (TORCH_VERSION in the Makefile)"
    )


if __name__ == "__main__":
    main()
