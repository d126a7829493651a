"""The surroundings of every test: one thread, no network, none of the user's files, and small shared fixtures."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from talas_lib.runs import Run

# Set before anything imports torch or transformers. Child processes (notebook kernels, Snakemake) inherit it.
USERS = {name: os.environ.pop(name, None) for name in ("TALAS_DATA", "TALAS_ASSETS")}
SCRATCH = Path(tempfile.mkdtemp(prefix="talas-tests-"))
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": str(SCRATCH / "huggingface"),
    "TALAS_OUTPUTS": str(SCRATCH / "outputs"),
    "IPYTHONDIR": str(SCRATCH / "ipython"),
    "JUPYTER_CONFIG_DIR": str(SCRATCH / "jupyter" / "config"),
    "JUPYTER_DATA_DIR": str(SCRATCH / "jupyter" / "data"),
    "JUPYTER_RUNTIME_DIR": str(SCRATCH / "jupyter" / "runtime"),
    "JUPYTER_PREFER_ENV_PATH": "1",
    "MPLBACKEND": "agg",
}


# In force from collection on, for this process and, by the sitecustomize.py in that folder, for every Python it starts.
GUARD = Path(__file__).parent / "guard"
if str(GUARD) not in sys.path:  # a worker of xdist is such a child
    sys.path.insert(1, str(GUARD))
    importlib.import_module("no_network").install()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(GUARD), os.environ.get("PYTHONPATH")]))


def pytest_unconfigure() -> None:
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(autouse=True)
def _users_data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test marked `data` sees the user's TALAS_DATA and TALAS_ASSETS; it skips when there is no TALAS_DATA."""
    if request.node.get_closest_marker("data") is None:
        return
    if not USERS["TALAS_DATA"]:
        pytest.skip("needs local data sets: set TALAS_DATA to a folder of <task>/<split>.jsonl.gz")
    for name, value in USERS.items():
        if value:
            monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One outputs folder for all tests of a module, which may share its runs."""
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALAS_OUTPUTS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory, tiny_texts: list[str]) -> Iterator[Run]:
    """A finished run on a CSV of 160 sentences in an outputs folder of its own, which all tests of a module share."""
    from small_run import small_run

    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALAS_OUTPUTS", str(folder / "outputs"))
        yield small_run(folder, tiny_texts[:160])


@pytest.fixture(scope="session")
def tiny_texts() -> list[str]:
    """300 different synthetic sentences on six topics, always the same."""
    from talas_lib.tiny_texts import tiny_sentences

    return [sentence.text for sentence in tiny_sentences(300, seed=0)]


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory, tiny_texts: list[str]) -> Callable[[str], Path]:
    """A function from an architecture (see `talas_lib.tiny.build`) to the folder of a random model of it, built once.

    Treat the folder as read-only: other tests share it.
    """
    from talas_lib import tiny

    folders: dict[str, Path] = {}

    def folder(arch: str) -> Path:
        if arch not in folders:
            folders[arch] = tiny.build(arch, tmp_path_factory.mktemp(f"tiny-{arch}"), tiny_texts)
        return folders[arch]

    return folder
