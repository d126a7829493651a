"""Two commands that train one run: the second is refused by the run's name, and shows the run when the first has finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fault_pipeline
import pytest
import yaml

from talas_lib import params, paths, run_lock, runs, stages
from talas_lib.errors import TalasError

# Trains, says so at the first logged step, and goes on when it is told to.
HOLDER = """
import sys
import yaml
from talas_lib import params, stages

waited = []

def on_log(row):
    if not waited:
        waited.append(row)
        print("training", flush=True)
        sys.stdin.readline()

stages.train_run(params.resolve("03_train", yaml.safe_load(sys.argv[1])), on_log=on_log)
"""


def given(**changes: Any) -> dict[str, Any]:
    names = params.notebook_schema("03_train").names
    small = {"optimizer": "adamw", "probe_every": 0}
    return {k: v for k, v in fault_pipeline.values(**small | changes).items() if k in names}


@contextmanager
def another_process(values: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of training."""
    command = [sys.executable, "-c", HOLDER, yaml.safe_dump(values)]
    with subprocess.Popen(command, cwd=paths.root(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as held:
        try:
            assert held.stdout is not None
            assert held.stdout.readline() == "training\n"
            yield held
        finally:
            held.kill()


def files(folder: Path) -> dict[str, int]:
    return {str(f): f.stat().st_mtime_ns for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def test_a_run_that_is_being_trained_is_refused_until_it_has_finished(outputs: Path) -> None:
    """By the library and by the command line; nothing is touched meanwhile, and afterwards the same call shows the run."""
    values = given()
    p = params.resolve("03_train", values)
    with another_process(values) as held:
        before = files(outputs)
        with pytest.raises(
            TalasError, match=rf"{p.run_id} is being trained by another process.*step is 1\).*Wait"
        ) as caught:
            stages.train_run(p)
        assert "goes on from its last checkpoint" in str(caught.value)
        command = [sys.executable, "-m", "talas_lib.worker", "03_train", "-y", yaml.safe_dump(values)]
        done = subprocess.run(command, cwd=paths.root(), capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 2
        assert f"error: run {p.run_id} is being trained" in done.stderr
        assert files(outputs) == before
        held.communicate("go on\n", timeout=300)
        assert held.returncode == 0
    after = files(outputs)
    run = stages.train_run(p)
    assert run.status == "finished"
    assert files(outputs) == after
    assert not list(run.folder.rglob("*.lock"))


@pytest.mark.slow
def test_papermill_ends_with_the_refusal(outputs: Path) -> None:
    values = given()
    with another_process(values):
        command = [sys.executable, "-m", "papermill", "--no-progress-bar", "notebooks/03_train.ipynb"]
        command += [str(outputs / "03_train.ipynb"), "-y", yaml.safe_dump(values)]
        done = subprocess.run(command, cwd=paths.root(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode != 0
    assert "is being trained by another process" in done.stderr
    assert "goes on from its last checkpoint" in done.stderr


def test_a_killed_trainer_leaves_a_run_that_goes_on_and_ends_tidy(outputs: Path) -> None:
    values = given()
    with another_process(values) as held:
        held.send_signal(signal.SIGKILL)
        assert held.wait() == -signal.SIGKILL
    run = runs.open_run(params.resolve("03_train", values), create=False)
    assert (run.folder / run_lock.LOCK).is_file()
    half = run.folder / ".model.x" / "model.safetensors", run.folder / "checkpoints" / ".last.safetensors.x.tmp"
    for file in half:  # of a process that died while it wrote them
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half")
    assert stages.train_run(params.resolve("03_train", values)).status == "finished"
    assert [str(file) for file in run.folder.rglob("*") if "/." in str(file.relative_to(outputs))] == []
    assert list((run.folder / "checkpoints").iterdir()) == []


def test_other_runs_are_free(outputs: Path) -> None:
    with another_process(given()):
        assert stages.train_run(params.resolve("03_train", given(seed=7, epochs=1))).status == "finished"


def test_a_method_without_steps_has_the_same_lock(outputs: Path) -> None:
    p = params.resolve("03_train", given(method="static", teacher="tiny", method_params={"dim": 8}))
    with run_lock.training(runs.open_run(p)):
        child = fault_pipeline.start(outputs, lambda: run_lock.refuse_if_trained(runs.Run(p.run_id)))
        assert fault_pipeline.finish(child) == 1
    assert stages.train_run(p).status == "finished"


def test_who_waited_for_the_caches_finds_the_run_that_was_trained_meanwhile(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked before and after: the first answer may be old by the time the caches are there."""
    p = params.resolve("03_train", given())
    first = stages.train_run(p)
    before = files(first.folder)
    answers = iter([False])
    plain = stages._finished
    monkeypatch.setattr(stages, "_finished", lambda run: next(answers, None) is not None or plain(run))
    monkeypatch.setattr(stages, "_train", lambda *_: pytest.fail("it was trained already"))
    assert stages.train_run(p).status == "finished"
    assert files(first.folder) == before


def test_asking_makes_no_file(outputs: Path) -> None:
    run = runs.Run(params.resolve("03_train", given()).run_id)
    run_lock.refuse_if_trained(run)
    assert not outputs.exists()
    runs.open_run(params.resolve("03_train", given()))
    run_lock.refuse_if_trained(run)
    assert os.listdir(run.folder) == ["manifest.json"]
