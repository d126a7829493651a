"""The surroundings that conftest.py promises: no network, none of the user's files, small models of real architectures."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

UNROUTED = ("192.0.2.1", 80)  # reserved for documentation: nothing answers there


@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.create_connection(UNROUTED, timeout=1),
        lambda: socket.socket().connect_ex(UNROUTED),
        lambda: socket.create_connection(("example.org", 80), timeout=1),
        lambda: socket.getaddrinfo(b"example.org", 80),
    ],
    ids=["connect", "connect_ex", "by-name", "lookup"],
)
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_the_network_is_refused(reach: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match="tests do without a network"):
        reach()


def test_loopback_is_allowed() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        assert client.getpeername() == server.getsockname()


def test_the_users_folders_are_out_of_sight() -> None:
    from talas_lib import paths

    assert paths.data_dir() is None
    assert paths.assets_dir() is None
    assert paths.root() not in paths.outputs().parents


@pytest.mark.data
def test_a_data_test_sees_the_users_data() -> None:
    from talas_lib import paths

    assert paths.data_dir() == Path(os.environ["TALAS_DATA"]).expanduser().resolve()


def test_torch_runs_on_one_thread() -> None:
    import torch

    assert torch.get_num_threads() == 1


def test_tiny_texts_are_distinct(tiny_texts: list[str]) -> None:
    assert len(set(tiny_texts)) == len(tiny_texts) == 300


@pytest.mark.parametrize("arch", ["bert", "xlm-r", "mpnet", "qwen3"])
def test_tiny_encoder_is_built_once_and_loads(
    arch: str, tiny_encoder_folder: Callable[[str], Path], tiny_texts: list[str]
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tiny_encoder_folder(arch)
    assert tiny_encoder_folder(arch) == folder
    vectors = SentenceTransformer(str(folder), device="cpu").encode(tiny_texts[:3], show_progress_bar=False)
    assert vectors.shape == (3, 32)
    assert not (vectors[0] == vectors[1]).all()
