"""Nothing is lost and nothing half-written is read: kills with SIGKILL, full disks, flipped bytes, two builders at once."""

from __future__ import annotations

import builtins
import contextlib
import errno
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fault_pipeline
import numpy as np
import pytest
import safetensors.torch
import yaml

from talas_lib import checkpoints, kept_weights, model_folders, params, paths, sources, teacher_cache
from talas_lib.cache_files import read_record, write_record
from talas_lib.errors import TalasError

HERE = Path(__file__).parent
MOMENTS = [round(share, 3) for share in np.random.default_rng(20260722).uniform(0, 1, 20).tolist()]


# ---- kill -9


@pytest.mark.parametrize(
    "shares",
    [pytest.param(MOMENTS[:3], id="3"), pytest.param(MOMENTS[3:], marks=pytest.mark.slow, id="17 more")],
)
def test_a_killed_pipeline_ends_as_the_undisturbed_one(shares: list[float], tmp_path: Path) -> None:
    """Real processes, killed at seeded random moments of caching, training, evaluation and sharpness; then the same again.
    Caches, weights, logged steps, scores by item and eigenvalues are those of a pipeline that nobody disturbed, to the bit."""
    command = [sys.executable, str(HERE / "fault_pipeline.py"), str(tmp_path), *map(str, shares)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=paths.root(), timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["files"] > 60
    for moment in report["moments"]:
        assert moment["codes"] == [-9, 0], (moment, done.stderr[-3000:])
        assert moment["different"] == [], moment


# ---- a full disk, at every place that writes


class FullDisk:
    """Lists the places that write below a folder, or lets one of them fail with ENOSPC.

    A place is the operation and the line of this project that asked for it.
    """

    def __init__(self, folder: Path, fails_at: str | None = None) -> None:
        self.folder, self.fails_at = folder, fails_at
        self.places: list[str] = []

    def __call__(self, operation: str, target: object) -> None:
        if str(self.folder) not in str(target):
            return
        frames = [f for f in traceback.extract_stack() if "talas_lib" in f.filename]
        last = frames[-1] if frames else None
        place = f"{operation} in {Path(last.filename).stem}.{last.name}, line {last.lineno}" if last else operation
        caller = next((f for f in reversed(frames) if Path(f.filename).stem not in ("files", "cache_files")), None)
        if caller is not None:
            place += f" for {Path(caller.filename).stem}.{caller.name}"
        if place not in self.places:
            self.places.append(place)
            if place == self.fails_at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))


@contextmanager
def on(full: FullDisk) -> Iterator[None]:
    """Inside, every operation that writes goes past a FullDisk first."""
    open_file, rename, make, make_folder, open_path, write_text = (
        open,
        os.replace,
        tempfile.mkdtemp,
        os.mkdir,
        Path.open,
        Path.write_text,
    )

    def replace(source: Any, target: Any, **kwargs: Any) -> None:
        full("rename", target)
        rename(source, target, **kwargs)

    def mkdtemp(*args: Any, **kwargs: Any) -> str:
        full("folder", kwargs.get("dir", ""))
        return make(*args, **kwargs)

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        if not os.path.exists(path):
            full("folder", path)
        make_folder(path, *args, **kwargs)

    def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wax+"):
            full("open", self)
        return open_path(self, mode, *args, **kwargs)

    def text(self: Path, *args: Any, **kwargs: Any) -> int:
        full("write", self)
        return write_text(self, *args, **kwargs)

    def saving(saver: Any) -> Any:
        def save(tensors: Any, file: Any, metadata: Any = None) -> None:
            full("save", file)
            saver(tensors, file, metadata=metadata)

        return save

    def built_in(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wax+"):
            full("open", file)
        return open_file(file, mode, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", built_in)
        patch.setattr(os, "replace", replace)
        patch.setattr(os, "mkdir", mkdir)
        patch.setattr(tempfile, "mkdtemp", mkdtemp)
        patch.setattr(Path, "open", opened)
        patch.setattr(Path, "write_text", text)
        for module in (checkpoints, kept_weights, safetensors.torch):
            patch.setattr(module, "save_file", saving(module.save_file))
        yield


def under(folder: Path, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TALAS_OUTPUTS", str(folder))
        sources._tasks.cache_clear()
        work()


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["vectors"], id="vectors"),
        pytest.param(["models"], id="models", marks=pytest.mark.slow),
        pytest.param(["tokens", "alignment"], id="tokens", marks=pytest.mark.slow),
        pytest.param(["train"], id="train", marks=pytest.mark.slow),
        pytest.param(["evaluate", "sharpness"], id="measure", marks=pytest.mark.slow),
    ],
)
def test_a_disk_that_fills_up_at_any_place_costs_nothing_that_was_finished(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every place that writes fails once with ENOSPC. The error comes out, nothing half-written counts, and with room again the
    same call ends with the bits of a disk that never was full."""
    work = fault_pipeline.stages_of()
    before = list(work)[: list(work).index(names[0])]
    base, whole = tmp_path / "base", tmp_path / "whole"
    under(base, lambda: [work[name]() for name in before], monkeypatch)
    base.mkdir(exist_ok=True)
    shutil.copytree(base, whole)
    listing = FullDisk(whole)
    with on(listing):
        under(whole, lambda: [work[name]() for name in names], monkeypatch)
    expected = fault_pipeline.contents(whole)
    assert len(listing.places) >= 4, listing.places
    for number, place in enumerate(listing.places):
        outputs = tmp_path / f"full-{number}"
        shutil.copytree(base, outputs)
        with on(FullDisk(outputs, place)), pytest.raises((OSError, TalasError), match=r"No space left|disk"):
            under(outputs, lambda: [work[name]() for name in names], monkeypatch)
        under(outputs, lambda: [work[name]() for name in names], monkeypatch)
        assert fault_pipeline.differences(expected, fault_pipeline.contents(outputs)) == [], place
        shutil.rmtree(outputs)


# ---- flipped bytes


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["meta.json", "shard-00000.json"])
def test_a_flipped_byte_anywhere_in_a_record_of_a_cache_is_found(name: str, tmp_path: Path) -> None:
    """Every byte in turn: either it changes no value that is read, or the record is refused, and building again mends it."""

    def embed(texts: Any) -> np.ndarray:
        return np.array([[len(text), 1.0] for text in texts], np.float32)

    texts = ["a", "bb", "ccc", "dddd", "eeeee"]
    cache = teacher_cache.build(tmp_path, {"weights": "w"}, texts, embed, shard_size=2)
    file, vectors = cache.folder / name, cache.vectors(range(5))
    whole = file.read_bytes()
    meant = read_record(file, "record")
    for place in range(len(whole)):
        flip(file, place)
        with contextlib.suppress(TalasError):
            assert meant.items() <= read_record(file, "record").items(), place
        file.write_bytes(whole)
    for place in range(0, len(whole), 211):
        flip(file, place)
        mended = teacher_cache.build(tmp_path, {"weights": "w"}, texts, embed, shard_size=2)
        np.testing.assert_array_equal(mended.vectors(range(5)), vectors)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = {
        "a": 1,
        "b": [1.5, float("inf"), None],
        "c": {"é": "x"},
        "d": (1, 2),
        "e": np.float32(0.1),
        "f": Path("x/y"),
    }
    write_record(tmp_path / "r.json", record)
    found = read_record(tmp_path / "r.json", "record")
    assert found == {
        "a": 1,
        "b": [1.5, None, None],
        "c": {"é": "x"},
        "d": [1, 2],
        "e": float(np.float32(0.1)),
        "f": "x/y",
    }
    (tmp_path / "r.json").write_text('{"from": "an earlier version"}')
    assert read_record(tmp_path / "r.json", "record") == {"from": "an earlier version"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Outputs with all caches and one finished run."""
    outputs = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALAS_OUTPUTS", str(outputs))
        from talas_lib import stages

        stages.train_run(resolved())
        yield outputs


def resolved(**changes: Any) -> Any:
    names = params.notebook_schema("03_train").names
    small = {"max_sentences": 16, "optimizer": "adamw", "probe_every": 0}
    return params.resolve("03_train", {k: v for k, v in fault_pipeline.values(**small | changes).items() if k in names})


@pytest.mark.parametrize("pattern", ["model/model.safetensors", "model/talas_heads.safetensors", "model/config.json",
                                     "model/tokenizer.json", "model/1_Pooling/config.json"])  # fmt: skip
def test_a_flipped_byte_in_a_student_is_refused_by_name(pattern: str, trained: Path) -> None:
    from talas_lib import runs, stages

    run = runs.open_run(resolved(), create=False)
    file = run.folder / pattern
    place = file.stat().st_size // 2
    flip(file, place)
    try:
        with pytest.raises(
            TalasError, match=rf"{file.name} is damaged, changed or missing.*SHA256SUMS.*Make the folder"
        ):
            stages.load_run_student(run)
    finally:
        flip(file, place)
    stages.load_run_student(run)


def test_a_flipped_byte_in_a_tiny_model_has_it_made_again(trained: Path) -> None:
    """Else it would be another teacher, with vectors and a cache of its own."""
    spec = resolved().teacher_spec
    folder = sources.model_folder(spec)
    identity = sources.teacher_identity(spec)
    flip(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 9)
    assert sources.teacher_identity(spec) == identity


def test_a_flipped_byte_in_a_cache_or_a_checkpoint_has_tests_of_its_own() -> None:
    """Where they are: shards and places of each cache, assets, checkpoints."""
    wanted = {
        "test_teacher_cache.py": "test_a_flipped_byte_is_found_and_only_its_shard_made_again",
        "test_token_cache.py": "test_a_flipped_byte_is_found_and_only_its_shard_made_again",
        "test_assets.py": "test_a_flipped_byte_is_found_by_hashing_and_the_file_rebuilt",
        "test_train.py": "test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused",
    }
    for file, test in wanted.items():
        assert f"def {test}(" in (HERE / file).read_text(), file


def test_a_disk_that_fills_up_leaves_the_export_that_was_there(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder to give away, at every place that writes it; the graphs for ONNX have a test of their own."""
    from talas_lib import runs
    from talas_lib.release import publish

    run = runs.open_run(resolved(), create=False)
    monkeypatch.setattr(publish.onnx_files, "require", lambda: None)
    monkeypatch.setattr(publish.onnx_files, "export_onnx", lambda folder: folder / "model.onnx")
    monkeypatch.setattr(publish.onnx_files, "quantize", lambda file: file.write_bytes(b"graph"))
    publish.export_run(run)
    listing = FullDisk(run.folder)
    with on(listing):
        whole = fault_pipeline.contents(publish.export_run(run).folder)
    assert len(listing.places) >= 6, listing.places
    for place in listing.places:
        with on(FullDisk(run.folder, place)), pytest.raises(OSError, match="No space left"):
            publish.export_run(run)
        assert fault_pipeline.contents(run.folder / "export") == whole, place
        assert not list(run.folder.glob(".export*")), place


# ---- keys


def key_of(p: Any) -> str:
    from talas_lib import stages

    identity = sources.teacher_identity(p.teacher_spec, precision=p.precision)
    return teacher_cache.cache_key(identity, stages.load_corpus(p).texts)


def test_whatever_changes_a_vector_changes_the_key(tmp_path: Path, tiny_encoder_folder: Any) -> None:
    """A corpus line, each file of the model, pooling, prompt, maximum length, precision: none shares a cache with another."""
    corpus = tmp_path / "mine.txt"
    lines = [f"sentence number {i}" for i in range(4)]
    corpus.write_text("\n".join(lines))
    model = tmp_path / "teacher"
    shutil.copytree(tiny_encoder_folder("bert"), model)

    def p(**changes: Any) -> Any:
        return resolved(corpus=str(corpus), teacher=str(model), max_sentences=None, **changes)

    keys = [key_of(p()), key_of(p(precision="bf16")), key_of(p(max_length=16))]
    teacher = p().teacher_spec
    for change in ({"pooling": "cls"}, {"prompt": "query: "}, {"normalize": False}, {"padding_side": "left"}):
        identity = sources.teacher_identity(teacher.model_copy(update=change))
        keys.append(teacher_cache.cache_key(identity, lines))
    assert key_of(p()) == keys[0]
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"):
        content = (model / name).read_bytes()
        if name.endswith(".json"):
            (model / name).write_text(json.dumps(json.loads(content) | {"note": "changed"}))
        else:
            flip(model / name, len(content) - 1)
        keys.append(key_of(p()))
        (model / name).write_bytes(content)
    corpus.write_text("\n".join([*lines[:-1], lines[-1] + "."]))
    keys.append(key_of(p()))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "sentencepiece.bpe.model", "added_tokens.json"])
def test_a_tokenizer_without_tokenizer_json_is_its_vocabulary(name: str, tmp_path: Path) -> None:
    from talas_lib.model_folders import folder_fingerprint

    for file in ("config.json", "model.safetensors", "tokenizer_config.json", name):
        (tmp_path / file).write_text("{}")
    before = folder_fingerprint(tmp_path)
    (tmp_path / name).write_text("{ }")
    assert folder_fingerprint(tmp_path)["tokenizer"] != before["tokenizer"]
    (tmp_path / "tokenizer.json").write_text("{}")  # which is then all that is read
    with_json = folder_fingerprint(tmp_path)
    (tmp_path / name).write_text("{}")
    assert folder_fingerprint(tmp_path) == with_json


# ---- two at once


def two_at_once(work: Callable[[str, int, Any], None], root: Path) -> None:
    """Two processes that begin together, and both end well. work(root, number, gate) waits at the gate."""
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(2)
    workers = [context.Process(target=work, args=(str(root), n, gate)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]


def _build(root: str, number: int, gate: Any) -> None:
    texts = [f"text {i}" for i in range(300)]

    def embed(some: Any) -> np.ndarray:
        with (Path(root) / f"calls-{number}").open("a") as stream:
            stream.write("".join(f"{text}\n" for text in some))
        return np.array([[float(len(text)), float(text.split()[1])] for text in some], np.float32) + 1

    gate.wait()
    cache = teacher_cache.build(Path(root) / "cache", {"weights": "w"}, texts, embed, shard_size=16)
    assert cache.vectors([7])[0, 1] == 8


def test_two_processes_build_one_cache(tmp_path: Path) -> None:
    two_at_once(_build, tmp_path)
    encoded = "".join(file.read_text() for file in tmp_path.glob("calls-*")).splitlines()
    assert len(encoded) == len(set(encoded)) == 300
    (folder,) = (tmp_path / "cache").glob("teacher-*/")
    teacher_cache.TeacherCache.open(folder)


def _make_tiny(root: str, number: int, gate: Any) -> None:
    os.environ["TALAS_OUTPUTS"] = root
    gate.wait()
    folder = sources.model_folder(resolved().teacher_spec)
    model_folders.check_sums(folder)
    (Path(root) / f"made-{number}").write_text(str(folder))


def test_two_processes_make_one_tiny_model(tmp_path: Path) -> None:
    two_at_once(_make_tiny, tmp_path)
    assert len({file.read_text() for file in tmp_path.glob("made-*")}) == 1
    assert len(list((tmp_path / "cache" / "tiny").glob("[!.]*"))) == 1
    assert not list((tmp_path / "cache" / "tiny").glob(".*"))


def test_random_kills_of_a_build_never_leave_a_cache_that_opens_wrong(tmp_path: Path) -> None:
    """A quick one for the caches alone: many kills in a row, each build going on where the last one died."""
    texts = [f"text {i}" for i in range(200)]
    rng = random.Random(5)

    def embed(some: Any) -> np.ndarray:
        return np.array([[float(len(t)), float(t.split()[1]) + 1] for t in some], np.float32)

    def work() -> None:
        teacher_cache.build(tmp_path, {"weights": "w"}, texts, embed, shard_size=4)

    codes = []
    while not codes or codes[-1] != 0:
        codes.append(
            fault_pipeline.kill_after(
                fault_pipeline.start(tmp_path / "outputs", work), rng.uniform(0, 0.02 * len(codes))
            )
        )
        assert len(codes) < 200
    cache = teacher_cache.build(tmp_path, {"weights": "w"}, texts, lambda _: pytest.fail("it was whole"), shard_size=4)
    np.testing.assert_array_equal(cache.vectors(range(200))[:, 1], np.arange(200) + 1)


def test_presets_of_the_smoke_pipeline_are_what_the_kills_run() -> None:
    """The pipeline of fault_pipeline.py is the preset's: a parameter that changes there changes here."""
    preset = yaml.safe_load((paths.params_dir() / "presets" / "smoke.yaml").read_text())
    assert set(preset["grid"]["optimizer"]) == {"asam", "adamw"}
    assert preset["epochs"] * 64 // preset["batch_size"] // preset["checkpoint_every"] >= 2
