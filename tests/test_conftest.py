"""The surroundings that conftest.py promises: no network, none of the user's files, small models of real architectures."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
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
        lambda: socket.gethostbyname("example.org"),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"", 0, UNROUTED),
    ],
    ids=["connect", "connect_ex", "by-name", "lookup", "old-lookup", "datagram"],
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


# ---- the same in children

REACH = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
INSIDE = """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
left, right = socket.socketpair()
left.send(b"x")
named = socket.socket(socket.AF_UNIX)
named.bind("here")
named.listen()
socket.socket(socket.AF_UNIX).connect("here")
print(right.recv(1))
"""


def child(*command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    given = os.environ | environment
    return subprocess.run(command, env=given, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-c", REACH],
        ["sh", "-c", f'"{sys.executable}" -c "{REACH}"'],
        [sys.executable, "-c", f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {REACH!r}]))"],
    ],
    ids=["child", "through a shell", "grandchild"],
)
def test_the_network_is_refused_to_children(command: list[str]) -> None:
    done = child(*command)
    assert done.returncode != 0
    assert "NetworkRefused: a test reached for '192.0.2.1'" in done.stderr


def test_a_child_may_use_loopback_and_unix_sockets(tmp_path: Path) -> None:
    done = child(sys.executable, "-W", "ignore", "-c", INSIDE, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "b'x'\n"), done.stderr


def _reach(found: object) -> None:
    try:
        socket.create_connection(UNROUTED, timeout=1)
    except RuntimeError as error:
        found.put(str(error))  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_the_network_is_refused_to_workers(how: str) -> None:
    """As those of notebook_launcher and of data loaders are started."""
    context = multiprocessing.get_context(how)
    found = context.SimpleQueue()
    worker = context.Process(target=_reach, args=(found,))
    worker.start()
    worker.join(60)
    assert "tests do without a network" in found.get()


def test_the_network_is_refused_to_a_kernel() -> None:
    """A notebook's cells, as papermill and nbclient run them."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(REACH)])
    with pytest.raises(CellExecutionError, match="tests do without a network"):
        NotebookClient(book, kernel_name="python3").execute()


def test_the_network_is_refused_to_a_job_of_the_graph(tmp_path: Path) -> None:
    script = tmp_path / "reach.py"
    script.write_text(REACH)
    (tmp_path / "Snakefile").write_text(f"rule all:\n    shell: '{sys.executable} {script}'\n")
    done = child(sys.executable, "-m", "snakemake", "--cores", "1", cwd=tmp_path)
    assert done.returncode != 0
    assert "NetworkRefused" in done.stderr


def test_no_test_starts_a_child_without_these_surroundings() -> None:
    """`env` of a child is made of os.environ; nothing takes PYTHONPATH away or lets Python ignore it."""
    for file in Path(__file__).parent.glob("*.py"):
        source = file.read_text(encoding="utf-8")
        for lost in ("env" + "={", '"-' + 'I"', '"-' + 'E"', '"-' + 'S"', '"PYTHON' + 'PATH"'):
            assert lost not in source or file.name == "conftest.py", (file.name, lost)


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
