"""Runs on disk: found again, never overwritten, never seen half-written, not led outside their folder."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from talas_lib import files, params, runs
from talas_lib.errors import TalasError
from talas_lib.params import recipe

TINY = {"teacher": "tiny", "student": "tiny", "corpus": "tiny"}


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty outputs folder, also for child processes."""
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def train(**values: Any) -> params.ResolvedParams:
    return params.resolve("03_train", TINY | values)


# ---- whole files


def test_atomic_writes_replace_and_leave_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "a.json"
    runs.atomic_write_json(file, {"b": 1, "a": [1, None]})
    assert file.read_text() == '{\n  "b": 1,\n  "a": [\n    1,\n    null\n  ]\n}\n'
    runs.atomic_write_text(file, "ä\n")
    assert file.read_bytes() == "ä\n".encode()
    assert [p.name for p in file.parent.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    runs.atomic_write_text(file, "old")
    with pytest.raises(TypeError, match="object is not JSON"):
        runs.atomic_write_json(file, {"x": object()})

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        runs.atomic_write_text(file, "new")
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_files_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    """A temporary file made for its owner alone would lock colleagues out of shared results."""
    old = os.umask(0o022)
    try:
        runs.atomic_write_text(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_readers_never_see_a_half(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    contents = [json.dumps({"value": [n] * 20_000}) for n in range(2)]
    runs.atomic_write_text(file, contents[0])
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(file.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(60):
        runs.atomic_write_text(file, contents[n % 2])
    done.set()
    reader.join()
    assert seen <= set(contents)


def test_scalars_of_other_libraries_become_json() -> None:
    value = {"a": np.float32(0.5), "b": np.arange(2), 3: (float("nan"), float("inf")), "p": Path("x"), "t": True}
    assert files.plain(value) == {"a": 0.5, "b": [0, 1], "3": [None, None], "p": "x", "t": True}


# ---- one run


def test_a_run_from_new_to_finished(outputs: Path) -> None:
    p = train()
    assert runs.open_run(p, create=False).status == "new"
    assert not outputs.exists()
    run = runs.open_run(p)
    assert (run.id, run.folder, run.status) == (p.run_id, outputs / p.run_id, "partial")
    assert run.read_record("train") is None
    run.append_metrics({"step": 1, "loss": 0.5})
    run.write_record("train", {"steps": 1})
    assert run.status == "finished"
    assert run.read_record("train") == {"steps": 1}
    run.finish("evaluate", avg=60.0)
    assert run.stages == ("evaluate", "train")
    assert run.manifest["status"] == {"evaluate": "finished", "train": "finished"}
    assert runs.open_run(p).status == "finished"


def test_the_manifest_says_what_the_run_is() -> None:
    p = train(rho=0.5)
    manifest = runs.open_run(p).manifest
    assert manifest["run"] == p.run_id
    assert manifest["recipe_version"] == params.RECIPE_VERSION
    assert manifest["run_config"] == json.loads(json.dumps(p.run_config()))
    assert manifest["params"]["values"]["rho"] == 0.5
    assert manifest["status"] == {}
    assert {"talas", "python", "torch", "transformers"} <= set(manifest["versions"])
    assert manifest["versions"]["torch"].startswith("2.")
    assert manifest["created"].endswith("+00:00")


def test_a_run_gives_back_its_parameters_whatever_happened_to_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    p = train(rho=0.5, method_params={"num_anchor_layers": 1})
    run = runs.open_run(p)
    monkeypatch.setattr(recipe, "RECIPE_VERSION", 99)
    back = runs.find_run(run.id).params
    assert back.values == p.values
    assert back.method_config == p.method_config
    assert back.optimizer_spec == p.optimizer_spec
    assert back.student_spec == p.student_spec
    assert back.run_id == run.id
    assert back.run_config()["recipe_version"] == params.RECIPE_VERSION


def test_a_finished_run_is_never_overwritten() -> None:
    run = runs.open_run(train())
    run.append_metrics({"step": 1})
    run.write_record("train", {"steps": 1})
    for forbidden in (
        lambda: run.write_record("train", {"steps": 2}),
        lambda: run.append_metrics({"step": 2}),
        lambda: run.truncate_metrics(0),
    ):
        with pytest.raises(TalasError, match=f"run {run.id} is finished"):
            forbidden()
    assert run.read_record("train") == {"steps": 1}
    assert len(run.read_metrics()) == 1
    run.write_record("sharpness", {"value": 1.0})
    run.write_record("sharpness", {"value": 2.0})  # other batches may be measured later
    assert run.read_record("sharpness") == {"value": 2.0}


def test_a_folder_of_other_parameters_under_the_same_id_is_not_touched() -> None:
    run = runs.open_run(train())
    manifest = run.manifest
    manifest["run_config"]["lr"] = 1.0
    runs.atomic_write_json(run.folder / "manifest.json", manifest)
    with pytest.raises(TalasError, match="made with other parameters under the same id"):
        runs.open_run(train())


def test_evaluations_by_suite_the_last_one_at_the_end() -> None:
    run = runs.open_run(train())
    assert (run.evaluations(), run.evaluation(), run.evaluation("mini")) == ({}, None, None)
    for moment, suite in enumerate(("mini", "paper", "my.suite")):
        file = run.write_record(runs.evaluation_stage(suite), {"suite": {"name": suite}, "avg": float(moment)})
        os.utime(file, ns=(moment, moment))
    assert list(run.evaluations()) == ["mini", "paper", "my.suite"]
    assert (run.evaluation()["avg"], run.evaluation("mini")["avg"]) == (2.0, 0.0)
    assert run.stages == ("evaluate-mini", "evaluate-my-suite", "evaluate-paper")


def test_damaged_files_say_what_to_do() -> None:
    run = runs.open_run(train())
    (run.folder / "records").mkdir()
    (run.folder / "records" / "evaluate.json").write_text('{"avg": 6')
    with pytest.raises(TalasError, match=r"the evaluate record of run .* is damaged.*delete the file"):
        run.read_record("evaluate")
    (run.folder / "manifest.json").write_text("[]")
    with pytest.raises(TalasError, match=r"no usable manifest.*holds no mapping"):
        runs.open_run(train())


@pytest.mark.parametrize(
    "run_id",
    [
        "../../etc/passwd",
        "..",
        "",
        "a/b",
        "/abs",
        "tiny--tiny--talas--asam--s42--0123456",
        "tiny--tiny--talas--asam--s42--0123456g",
        "tiny--tiny--talas--asam--s42--01234567/..",
        "tiny--..--talas--asam--s42--01234567",
        "tiny--tiny--talas--asam--s42--01234567\n",
        "Tiny--tiny--talas--asam--s42--01234567",
        "tiny--tiny+--talas--asam--s42--01234567",
        "tiny--tiny+../x--talas--asam--s42--01234567",
        "tiny--tiny,tiny--talas--asam--s42--01234567",
        "tiny--tiny--talas+cdm--asam--s42--01234567",
        "tiny--tiny--talas--asam--s-1--01234567",
        None,
        42,
    ],
)
def test_ids_that_are_no_ids(run_id: Any) -> None:
    with pytest.raises(TalasError, match=r"is no run id. Accepted: <student>--<teacher>"):
        runs.find_run(run_id)


@pytest.mark.parametrize("stage", ["../train", "a/b", "", "Train", ".hidden"])
def test_stages_that_are_no_stages(stage: str) -> None:
    run = runs.open_run(train())
    with pytest.raises(TalasError, match="is no stage name"):
        run.write_record(stage, {})
    with pytest.raises(TalasError, match="is no stage name"):
        run.read_record(stage)


def test_every_resolved_id_is_a_valid_one() -> None:
    for optimizer in params.available("optimizers"):
        for teacher in params.available("teachers"):
            p = params.resolve("03_train", TINY | {"teacher": teacher, "optimizer": optimizer, "method": "simcse"})
            assert runs.check_run_id(p.run_id) == p.run_id


def test_several_teachers_in_an_id() -> None:
    run = runs.Run("tiny--tiny+minilm-l6+e5.v2--talas--asam--s42--01234567")
    assert runs.check_run_id(run.id) == run.id


# ---- metrics


def test_metrics_survive_a_torn_line() -> None:
    run = runs.open_run(train())
    run.append_metrics({"step": 1, "loss": 0.5})
    run.append_metrics({"step": 2, "loss": np.float32(0.25), "bad": float("nan")})
    with (run.folder / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"step": 3, "lo')
    assert [row["step"] for row in run.read_metrics()] == [1, 2]
    assert run.read_metrics()[1]["loss"] == 0.25
    assert run.read_metrics()[1]["bad"] is None
    run.append_metrics({"step": 3, "loss": 0.125})
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]
    assert (run.folder / "metrics.jsonl").read_text().count("\n") == 3


def test_metrics_are_cut_back_to_the_checkpoint() -> None:
    run = runs.open_run(train())
    for step in (1, 2, 3, 4):
        run.append_metrics({"step": step})
    with (run.folder / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"st')
    run.truncate_metrics(2)
    assert [row["step"] for row in run.read_metrics()] == [1, 2]
    run.append_metrics({"step": 3})
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]
    run.truncate_metrics(0)
    assert run.read_metrics() == []


def test_a_new_run_has_no_metrics_and_may_be_cut() -> None:
    run = runs.open_run(train())
    run.truncate_metrics(0)
    assert run.read_metrics() == []
    with pytest.raises(TalasError, match="needs a whole `step`"):
        run.append_metrics({"loss": 1.0})


def test_training_time_adds_up_over_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: clock[0])
    first = runs.open_run(train())
    first.truncate_metrics(0)
    for step, seconds in ((1, 10.0), (2, 10.0), (3, 10.0)):
        clock[0] += seconds
        first.append_metrics({"step": step})
    assert [row["elapsed_s"] for row in first.read_metrics()] == [10.0, 20.0, 30.0]
    clock[0] += 1000  # killed; the last checkpoint was at step 2
    again = runs.open_run(train())
    again.truncate_metrics(2)
    assert runs.earlier_seconds(again) == 20.0
    clock[0] += 5
    again.append_metrics({"step": 3})
    assert [row["elapsed_s"] for row in again.read_metrics()] == [10.0, 20.0, 25.0]
    assert runs.earlier_seconds(again) == 20.0


def test_killed_in_the_middle_of_appending(outputs: Path) -> None:
    """A real kill -9 while rows stream in: what is read is whole, and appending goes on."""
    code = (
        "from talas_lib import params, runs\n"
        f"run = runs.open_run(params.resolve('03_train', {TINY!r}))\n"
        "for step in range(10**9):\n"
        "    run.append_metrics({'step': step, 'pad': 'x' * 5000})\n"
        "    print(step, flush=True) if step == 20 else None\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    run = runs.open_run(train())
    steps = [row["step"] for row in run.read_metrics()]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 20
    run.append_metrics({"step": len(steps)})
    assert len(run.read_metrics()) == len(steps) + 1


# ---- finding


def finished(**values: Any) -> runs.Run:
    run = runs.open_run(train(**values))
    run.write_record("train", {"steps": 1})
    return run


def test_latest_is_the_last_that_finished() -> None:
    with pytest.raises(TalasError, match=r"no finished run in .*03_train"):
        runs.latest_run()
    first, second = finished(seed=1), finished(seed=2)
    os.utime(first.folder / "records" / "train.json", (2e9, 2e9))
    runs.open_run(train(seed=3))  # partial: does not count
    second.write_record("evaluate", {"avg": 1.0})  # evaluating does not make it the latest
    assert runs.latest_run().id == first.id
    assert runs.find_run("latest").id == first.id
    assert runs.find_run(second.id).id == second.id


def test_an_id_that_is_not_there_names_those_that_are() -> None:
    run = finished(seed=1)
    other = run.id[:-8] + "00000000"
    with pytest.raises(TalasError) as caught:
        runs.find_run(other)
    assert f"no run {other!r}" in str(caught.value)
    assert f"Did you mean {run.id!r}?" in str(caught.value)


def test_the_table_of_runs(outputs: Path) -> None:
    assert list(runs.list_runs().columns)[:9] == [
        "run",
        "student",
        "teacher",
        "method",
        "optimizer",
        "seed",
        "status",
        "avg",
        "suite",
    ]
    assert len(runs.list_runs()) == 0
    good = finished(seed=7)
    good.write_record("evaluate-mini", {"avg": 61.5, "suite": {"name": "mini"}})
    partial = runs.open_run(train(seed=8, optimizer="adamw"))
    table = runs.list_runs().set_index("run")
    assert set(table.index) == {good.id, partial.id}
    assert table.loc[good.id, "status"] == "finished"
    assert (table.loc[good.id, "avg"], table.loc[good.id, "suite"]) == (61.5, "mini")
    assert (table.loc[partial.id, "status"], table.loc[partial.id, "optimizer"]) == ("partial", "adamw")
    assert np.isnan(table.loc[partial.id, "avg"])
    assert table.loc[good.id, "seed"] == 7
    assert table.loc[good.id, "corpus"] == "tiny"


def test_foreign_and_half_written_folders(outputs: Path) -> None:
    good = finished(seed=7)
    for name in ("cache", "nb", "quickstart", "My Thesis", ".hidden", "a--b--c", "records"):
        (outputs / name).mkdir()
    (outputs / "README.md").write_text("x")
    (outputs / (good.id[:-8] + "aaaaaaaa")).write_text("a file, not a folder")
    half = outputs / (good.id[:-8] + "bbbbbbbb")
    half.mkdir()
    broken = outputs / (good.id[:-8] + "cccccccc")
    (broken / "records").mkdir(parents=True)
    (broken / "manifest.json").write_text('{"run": ')
    (broken / "records" / "train.json").write_text("{}")
    (broken / "records" / "evaluate-mini.json").write_text('{"avg"')
    table = runs.list_runs().set_index("run")
    assert dict(table["status"]) == {good.id: "finished", half.name: "partial", broken.name: "partial"}
    assert runs.latest_run().id in (good.id, broken.name)
