"""Where models come from, whether they can be had, and what they are by content. No network: connections are faked."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from talas_lib import params, paths
from talas_lib.errors import TalasError
from talas_lib.params import fingerprints, sources


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable that would keep the hub away, an empty hub cache, no proxy."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "TALAS_ASSETS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def model_folder(folder: Path, **files: str) -> Path:
    """A folder that looks like a model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (
        {"config.json": '{"model_type": "bert"}', "model.safetensors": "weights", "tokenizer.json": "{}"} | files
    ).items():
        (folder / name).write_text(text)
    return folder


def connections(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> list[Any]:
    """Replace the connection attempt; returns the addresses tried."""
    tried: list[Any] = []

    def connect(address: Any, timeout: float) -> Any:
        tried.append((*address, timeout))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(socket, "create_connection", connect)
    return tried


class _Open:
    def close(self) -> None:
        pass


def test_each_kind_of_source() -> None:
    package = params.resolve_source(params.load_teacher("minilm-l6"))
    assert (package.kind, package.asset, package.hub_id) == (
        "package",
        "minilm-l6",
        "sentence-transformers/all-MiniLM-L6-v2",
    )
    tiny = params.resolve_source(params.load_teacher("tiny"))
    assert (tiny.kind, tiny.arch, tiny.seed) == ("tiny", "bert", 1)
    hub = params.resolve_source(params.load_teacher("bge-m3"))
    assert (hub.kind, hub.hub_id, len(hub.revision or "")) == ("hub", "BAAI/bge-m3", 40)
    local = params.resolve_source(params.load_teacher("bge-m3", "/models/bge"))
    assert (local.kind, local.path, local.revision) == ("local", Path("/models/bge"), None)


def test_the_tiny_student_differs_from_the_tiny_teacher() -> None:
    teacher = params.resolve_source(params.load_teacher("tiny"))
    student = params.resolve_source(params.load_student("tiny"))
    assert teacher != student


def test_local_assets_come_before_packages_and_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALAS_ASSETS", str(tmp_path))
    for name in ("minilm-l6", "bge-m3"):
        model_folder(tmp_path / name)
    for spec in (params.load_teacher("minilm-l6"), params.load_student("minilm-l3"), params.load_teacher("bge-m3")):
        found = params.resolve_source(spec)
        assert found.kind == "local"
        params.check_available(spec)
    assert params.resolve_source(params.load_student("minilm-l3")).path == tmp_path / "minilm-l6"  # by the asset's name
    assert params.resolve_source(params.load_teacher("qwen3-4b")).kind == "hub"
    assert params.resolve_source(params.load_teacher("tiny")).kind == "tiny"


def test_packages_and_tiny_models_need_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = connections(monkeypatch, OSError("unreachable"))
    for name in ("minilm-l6", "mpnet-base", "tiny", "tiny-qwen3"):
        params.check_available(params.load_teacher(name))
    assert tried == []


def test_packages_are_those_of_the_registry() -> None:
    with pytest.raises(TalasError, match=r"no package 'minilm-6'. Did you mean 'minilm-l6'"):
        params.check_available(params.load_teacher("minilm-l6", "package:minilm-6"))


def test_a_hub_teacher_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = connections(monkeypatch, OSError("Network is unreachable"))
    with pytest.raises(TalasError) as caught:
        params.check_available(params.load_teacher("qwen3-4b"))
    message = str(caught.value)
    assert tried == [("huggingface.co", 443, 3.0)]
    for fragment in (
        "Qwen/Qwen3-Embedding-4B",
        "Network is unreachable",
        "-p teacher_source /path/to/folder",
        "source: /path/to/folder` in params/teachers/qwen3-4b.yaml",
        "$TALAS_ASSETS/qwen3-4b/",
        "need no hub: minilm-l6, mpnet-base, tiny",
    ):
        assert fragment in message


def test_a_hub_student_names_the_students_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    connections(monkeypatch, OSError("no"))
    with pytest.raises(TalasError, match=r"-p student_source .*params/students/bert-base.yaml"):
        params.check_available(params.load_student("bert-base"))


def test_a_reachable_hub_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = connections(monkeypatch, _Open())
    params.check_available(params.load_teacher("qwen3-4b"))
    assert len(tried) == 1


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_variables_are_respected_without_trying(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    tried = connections(monkeypatch, _Open())
    monkeypatch.setenv(variable, "1")
    with pytest.raises(TalasError, match=f"{variable} is set"):
        params.check_available(params.load_teacher("bge-m3"))
    assert tried == []


def test_mirrors_and_proxies_are_what_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = connections(monkeypatch, _Open())
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080")
    params.check_available(params.load_teacher("bge-m3"))
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "http://proxy.example:3128"})
    params.check_available(params.load_teacher("bge-m3"))
    assert [address[:2] for address in tried] == [("mirror.example", 8080), ("proxy.example", 3128)]


def test_a_hanging_name_lookup_does_not_hang_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(sources, "HUB_TIMEOUT_S", 0.05)
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: release.wait(10) and _Open())
    began = time.monotonic()
    with pytest.raises(TalasError, match=r"did not answer within 0.05 s"):
        params.check_available(params.load_teacher("bge-m3"))
    release.set()
    assert time.monotonic() - began < 2


def test_the_hub_cache_counts_only_with_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = params.load_teacher("bge-m3")
    snapshot = tmp_path / "hub" / "models--BAAI--bge-m3" / "snapshots" / str(spec.revision)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TalasError, match="not in the local hub cache"):
        params.check_available(spec)
    (snapshot / "pytorch_model.bin").write_text("weights")
    params.check_available(spec)


def test_local_folders_must_hold_a_model(tmp_path: Path) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(TalasError) as caught:
            params.check_available(params.load_teacher("qwen3-4b", str(folder)))
        return str(caught.value)

    assert "no folder" in message(tmp_path / "gone")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no config.json" in message(empty)
    (empty / "adapter_config.json").write_text("{}")
    assert "merge it into its base model" in message(empty)
    (empty / "config.json").write_text("{}")
    assert "no weights" in message(empty)
    params.check_available(params.load_teacher("qwen3-4b", str(model_folder(tmp_path / "good"))))


def test_a_folder_given_as_a_teacher_is_answered_with_how_to_give_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, why in ((tmp_path / "gone", "no folder"), (tmp_path / "empty", "no config.json")):
        with pytest.raises(
            TalasError, match=rf"teacher '{folder.name}': .*{why}.*`-p teacher \./my_teacher`"
        ) as caught:
            params.check_available(params.load_teacher(str(folder)))
        assert "params/teachers" not in str(caught.value)  # there is no such file


def test_a_folder_s_bare_name_is_answered_with_the_way_to_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TalasError, match=r"unknown teacher 'mine'\. For the folder of that name write \./mine\."):
        params.load_teacher("mine")


def test_the_example_llm2vec_folder_fails_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(paths.params_dir(), tmp_path / "params")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)  # a project without models/
    with pytest.raises(TalasError, match="-p teacher_source /path/to/folder"):
        params.check_available(params.load_teacher("llm2vec"))


def test_a_local_model_is_its_content_not_its_place(tmp_path: Path) -> None:
    def identity(folder: Path) -> dict[str, Any]:
        return params.model_identity(params.load_teacher("tiny", str(folder)))

    here, there = model_folder(tmp_path / "a"), model_folder(tmp_path / "b" / "c")
    assert identity(here) == identity(there)
    assert str(tmp_path) not in str(identity(here))
    (there / "README.md").write_text("not part of the model")
    (there / "pytorch_model.bin").write_text("not read beside safetensors")
    assert identity(here) == identity(there)
    for changed in ("model.safetensors", "tokenizer.json", "config.json"):
        other = model_folder(tmp_path / changed, **{changed: '{"model_type": "bert", "other": 1}'})
        assert identity(other) != identity(here), changed


def test_hashes_are_remembered_by_size_and_time_of_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    assert params.file_sha256(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    read: list[Any] = []
    real = fingerprints.hashlib.file_digest
    monkeypatch.setattr(fingerprints.hashlib, "file_digest", lambda *a: read.append(a) or real(*a))
    params.file_sha256(file)
    assert read == []
    file.write_bytes(b"abd")
    os.utime(file, ns=(1, 1))
    assert params.file_sha256(file) != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert len(read) == 1
