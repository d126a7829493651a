"""From a preset to its distinct runs, caches and encoders, to what is left of them, and to the text of a dry run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from talas_lib import params, paths, records
from talas_lib.__main__ import main
from talas_lib.errors import TalasError
from talas_lib.graph import dry_run, plan, workflow
from talas_lib.study import on_record, ready_made

BASE: dict[str, Any] = {
    "teachers": ["tiny"],
    "student": "tiny",
    "corpus": "tiny",
    "max_sentences": 24,
    "tasks": "tiny",
    "optimizer": "adamw",
    "epochs": 1,
    "batch_size": 8,
    "lr": 1.0e-3,
    "device": "cpu",
    "sharpness_batches": 0,
    "report": "mine",
}
TABLES: dict[str, Any] = {
    "first": {"title": "Two optimizers", "grid": {"optimizer": ["asam", "adamw"], "seed": [1, 2]}},
    "second": {
        "title": "Shares a run",
        "beside": ["extra-tiny"],
        "encoders": ["tiny-xlmr"],
        "grid": {"method": ["talas", "cdm"], "seed": [1]},
    },
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of params/ in a project of its own, with outputs and results there, current folder inside it."""
    shutil.copytree(paths.params_dir(), tmp_path / "params")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("TALAS_RESULTS", str(tmp_path / "results"))
    return tmp_path


def written(project: Path, **values: Any) -> str:
    (project / "params" / "presets" / "mine.yaml").write_text(yaml.safe_dump(BASE | values, sort_keys=False))
    return "mine"


def study(project: Path) -> plan.Plan:
    return plan.make(written(project, tables=TABLES))


# ---- runs, caches, encoders


def test_a_run_that_two_tables_share_is_planned_once_with_the_suites_of_both(project: Path) -> None:
    of = study(project)
    assert len(params.expand_grid(of.values)) == 6
    assert len(of.runs) == 5
    assert [(run.p.method, run.p.optimizer, run.p.seed) for run in of.runs] == [
        ("talas", "asam", 1),
        ("talas", "asam", 2),
        ("talas", "adamw", 1),
        ("talas", "adamw", 2),
        ("cdm", "adamw", 1),
    ]
    assert [run.tables for run in of.runs] == [("first",)] * 2 + [("first", "second"), ("first",), ("second",)]
    assert of.runs[2].suites == ("tiny", "extra-tiny")
    assert of.runs[3].suites == ("tiny",)
    assert not any(run.sharpness for run in of.runs)
    assert of.left() == {run.run_id: run.suites for run in of.runs}


def test_runs_that_read_the_same_share_a_cache(project: Path) -> None:
    of = study(project)
    vectors, tokens = of.caches
    assert set(vectors.readers) == {run.key for run in of.runs if run.p.method == "talas"}
    assert tokens.readers == (of.runs[4].key,)
    assert tokens.values["method"] == "cdm"
    assert of.cache_of(of.runs[4]) == tokens
    assert vectors.record != tokens.record
    several = written(
        project, grid={"method, teachers": [["simcse", ["tiny"]], ["static", ["tiny"]], ["rkd", ["tiny"]]]}
    )
    (only,) = plan.make(several).caches  # no teacher; a vocabulary of its own; vectors
    assert len(only.readers) == 1


def test_an_encoder_has_the_suite_of_its_table(project: Path) -> None:
    (encoder,) = study(project).encoders
    assert (encoder.name, encoder.suite, encoder.precision) == ("tiny-xlmr", "tiny", "fp32")
    again = TABLES | {"third": {"title": "Elsewhere", "tasks": "extra-tiny", "encoders": ["tiny-xlmr"]}}
    with pytest.raises(TalasError, match="encoder tiny-xlmr is asked for on tiny and, in table third, on extra-tiny"):
        plan.make(written(project, tables=again))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoders": ["tiny-xlm"]}, "unknown teacher 'tiny-xlm'"),
        ({"beside": ["tweet"]}, "unknown task suite 'tweet'. Did you mean 'tweet-eval'"),
        ({"method": "telas"}, "unknown method 'telas'"),
    ],
)
def test_names_in_tables_are_looked_up_at_once(project: Path, change: dict[str, Any], message: str) -> None:
    tables = TABLES | {"third": {"title": "x", **change}}
    with pytest.raises(TalasError, match=message):
        plan.make(written(project, tables=tables))


def test_some_tables_alone(project: Path) -> None:
    written(project, tables=TABLES)
    of = plan.make("mine", ["second"])
    assert [run.p.method for run in of.runs] == ["talas", "cdm"]
    assert list(of.values["tables"]) == ["second"]
    assert workflow.command(of, ["second"], 2)[-2:] == ["preset=mine", "tables=second"]


def test_sharpness_is_measured_where_one_table_asks_for_it(project: Path) -> None:
    tables = {"a": {"title": "a"}, "b": {"title": "b", "sharpness_batches": 2}}
    (run,) = plan.make(written(project, tables=tables)).runs
    assert run.sharpness
    (plain,) = plan.make(written(project)).runs
    assert not plain.sharpness


# ---- what is left


def finish(run: plan.PlannedRun, *suites: str) -> None:
    """Train and score a run in this process, and keep it on record."""
    from talas_lib import assess, stages

    made = stages.train_run(run.p)
    for suite in suites:
        assess.evaluate_run(made, params.load_tasks(suite))
    on_record.keep(plan.make("mine").values, run.run_id)


def test_what_is_on_record_is_left_out_and_what_lacks_a_suite_is_not(project: Path) -> None:
    of = study(project)
    finish(of.runs[0], "tiny")
    finish(of.runs[2], "tiny")
    assert list(of.left()) == [run.run_id for run in of.runs[1:]]
    assert of.left()[of.runs[2].run_id] == ("extra-tiny",)
    # the outputs are lost, the records are not
    shutil.rmtree(project / "outputs")
    assert list(of.left()) == [run.run_id for run in of.runs[1:]]


def test_rules_are_forced_where_times_do_not_tell(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = study(project)
    run = of.runs[2]
    assert workflow.outdated(of) == []
    finish(run, "tiny")
    assert workflow.outdated(of) == [f"keep_{run.run_id}"]
    monkeypatch.setattr(records, "EVALUATION_VERSION", records.EVALUATION_VERSION + 1)
    assert workflow.outdated(of) == [f"evaluate_{run.run_id}_tiny", f"keep_{run.run_id}"]
    assert workflow.command(of, [], 2)[-3] == "--forcerun"


def test_a_comparison_is_made_again_when_something_it_is_made_from_is_not_there(project: Path) -> None:
    """To Snakemake a report that is newer than all of its inputs that are there is up to date."""
    of = plan.make(written(project, tables={"first": TABLES["first"] | {"encoders": ["tiny-xlmr"]}}))
    for run in of.runs:
        finish(run, *run.suites)
    of.summary_file.parent.mkdir(parents=True, exist_ok=True)
    of.summary_file.write_text("{}")
    assert workflow.outdated(of) == ["compare"]
    assert ready_made.main(["mine", "tiny-xlmr"]) == 0
    assert workflow.outdated(of) == []
    of.record_file(of.runs[0].run_id).unlink()
    assert workflow.outdated(of) == ["compare"]
    assert workflow.command(of, [], 2)[-2:] == ["--forcerun", "compare"]
    of.summary_file.unlink()
    assert workflow.outdated(of) == []

    plain = plan.make(written(project, grid={"optimizer": ["asam", "adamw"]}))
    plain.summary_file.write_text("{}")
    for file in [file for run in plain.runs for file in plan.result_files(run, run.suites)]:
        assert workflow.outdated(plain) == ["compare"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    assert workflow.outdated(plain) == []


def test_a_study_does_not_end_well_while_runs_are_missing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study(project)
    monkeypatch.setattr(workflow, "run", lambda *_, **__: 0)  # a graph that says it has done everything
    assert main(["mine"]) == 2
    assert "5 of 5 runs are not on record although no job failed" in capsys.readouterr().err


def test_an_encoder_is_scored_and_kept(project: Path) -> None:
    of = study(project)
    (encoder,) = of.encoders
    assert not ready_made.is_kept(of, encoder)
    assert ready_made.main(["mine", "tiny-xlmr"]) == 0
    file = ready_made.record_file(of, "tiny-xlmr")
    assert file.is_file()
    assert ready_made.is_kept(of, encoder)
    record = on_record.read_reference("mine", "tiny-xlmr", "encoders")
    assert record is not None
    assert set(record["tasks"]) == {task.name for task in params.load_tasks("tiny").tasks}
    assert ready_made.main(["mine", "tiny-xlm"]) == 2


def test_an_encoder_scores_as_the_teacher_it_is(project: Path) -> None:
    from talas_lib import scoring

    what = scoring.Evaluation.of(params.load_tasks("tiny"))
    p = params.resolve("03_train", BASE | {"teachers": ["tiny-xlmr"]})
    teacher = scoring.reference_scores(p, what)["teacher"]
    assert scoring.encoder_scores(params.load_teacher("tiny-xlmr"), what) == teacher


# ---- the dry run


def test_the_dry_run_of_a_study(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("bench", "paper"):
        shutil.copytree(Path(__file__).parents[1] / "results" / name, project / "results" / name)
    of = study(project)
    finish(of.runs[0], "tiny")
    assert main(["mine", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("mine: 2 tables, 5 runs (1 in several tables, made once).\n1 of them is on record")
    lines = {line.split("  ")[0].strip() or line.strip(): line for line in said.splitlines()}
    assert [*next(line for line in said.splitlines() if line.strip().startswith("train ")).split()][1:3] == ["5", "4"]
    assert [*next(line for line in said.splitlines() if "score a run" in line).split()][-3:-1] == ["7", "6"]
    assert "token states" in said
    assert "cpu h: two threads" in said
    assert "T4" not in said
    assert lines
    with pytest.raises(SystemExit):
        main(["mine", "--dry"])  # no abbreviation that could run a study by mistake
    assert not (project / "outputs" / "mine").exists()


@pytest.mark.parametrize("name", sorted(set(params.available("presets")) - {"paper-study"}))
def test_every_preset_has_a_dry_run_without_its_models_or_data(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    assert main([name, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Estimated in all: [\d.]+ (hours|days) \(cpu\)", said)
    assert list(tmp_path.iterdir()) == []


def test_the_dry_run_of_the_papers_study_prints_hours_for_both_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper-study", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "paper-study: 6 tables, 225 runs" in said
    assert "cannot be told" in said  # the corpus is not here
    (total,) = (line.split() for line in said.splitlines() if line.strip().startswith("all "))
    cpu, gpu = float(total[-2]), float(total[-1])
    assert cpu > gpu > 10
    assert f"Estimated in all: {cpu / 24:.1f} days (cpu)" in said
    assert "results/paper/table3.csv" in said


def test_estimates_are_in_hours_below_two_days() -> None:
    assert [dry_run._in_all(hours) for hours in (6.84, 47.9, 48)] == ["6.8 hours", "47.9 hours", "2.0 days"]


def test_sentences_of_a_run(project: Path) -> None:
    assert dry_run.sentences(params.resolve("03_train", BASE)) == 24
    assert dry_run.sentences(params.resolve("03_train", {"corpus": "mini"})) == 4_096
    assert dry_run.sentences(params.resolve("03_train", {"corpus": "talas15k"})) == 14_760  # its file is not here
    (project / "own.csv").write_text("text,source\na,b\nc,d\n\n")
    (project / "own.txt").write_text("one\ntwo\n\nthree\n")
    assert dry_run.sentences(params.resolve("03_train", {"corpus": "./own.csv"})) == 2
    assert dry_run.sentences(params.resolve("03_train", {"corpus": "./own.txt"})) == 3


# ---- one at a time


def test_what_a_killed_call_has_left_running_keeps_the_lock(project: Path) -> None:
    code = (
        "import os, subprocess\nfrom talas_lib.graph import workflow\nwith workflow.only_one() as lock:\n"
        "    child = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, pass_fds=workflow.descriptors(lock))\n"
        "    print(child.pid, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    dead = project / ".snakemake" / "locks" / "0.input.lock"  # as Snakemake leaves it when it is killed
    dead.parent.mkdir()
    dead.touch()
    with pytest.raises(TalasError, match="another `make quickstart`"), workflow.only_one():
        pytest.fail("two at a time")
    assert dead.exists()
    os.kill(int(killed.stdout), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while dead.exists() and time.monotonic() < deadline:
        with contextlib.suppress(TalasError), workflow.only_one():
            assert not dead.exists()
        time.sleep(0.05)
    assert not dead.exists()


# ---- what failed


def test_failures_name_the_notebook_and_the_reason(project: Path) -> None:
    def leave(name: str, content: str) -> None:
        file = plan.executed("run-1", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    error = {"output_type": "error", "ename": "TalasError", "evalue": "no such folder"}
    leave("03_train.ipynb", json.dumps({"cells": [{"outputs": []}, {"outputs": [{"output_type": "stream"}, error]}]}))
    leave("04_evaluate-tiny.ipynb", json.dumps({"cells": [{"outputs": []}, {"cell_type": "markdown"}]}))
    leave("on_record.log", "some warning\nerror: nothing to keep yet\n\n")
    leave("ready_made.log", "some warning\n")
    assert sorted(workflow.failures(0.0)) == [
        ("run-1, 03_train", "TalasError: no such folder"),
        ("run-1, on_record", "error: nothing to keep yet"),
    ]
    assert workflow.failures(2**33) == []
