"""The surroundings of every test: one thread, no network, none of the user's files, and small shared fixtures."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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


class NetworkRefused(RuntimeError):
    """A test reached for the network. No OSError, so that no fallback for being offline swallows it."""


def _refuse_beyond_loopback(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", "::1") or str(name).startswith("127."):
        return
    raise NetworkRefused(
        f"a test reached for {name!r}: tests do without a network; build the data or the model in the test"
    )


def _guarded(original: Callable[..., Any]) -> Callable[..., Any]:
    def connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_beyond_loopback(address[0])
        return original(self, address)

    return connect


def _guarded_lookup(original: Callable[..., Any]) -> Callable[..., Any]:
    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_beyond_loopback(host)
        return original(host, *args, **kwargs)

    return getaddrinfo


# In force from collection on, for the whole process.
socket.socket.connect = _guarded(socket.socket.connect)  # type: ignore[method-assign]
socket.socket.connect_ex = _guarded(socket.socket.connect_ex)  # type: ignore[method-assign]
socket.getaddrinfo = _guarded_lookup(socket.getaddrinfo)


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
