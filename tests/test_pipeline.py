"""From resolved parameters to a model that loads, for a teacher of every architecture, through the stages the notebooks call."""

from __future__ import annotations

import json

import numpy as np
import pytest

from talas_lib import assess, compare, export, fixed_objective, params, runs, sources, stages
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.sharpness import stage

TEACHERS = ["tiny", "tiny-qwen3", "tiny-xlmr", "tiny-mpnet", "tiny-bidirectional"]
SMALL = {
    "student": "tiny",
    "corpus": "tiny",
    "tasks": "tiny",
    "max_sentences": 48,
    "epochs": 2,
    "batch_size": 8,
    "lr": 1e-3,
    "device": "cpu",
}
SHARP = {"sharpness_batches": 1, "sharpness_batch_size": 8, "sharpness_max_iter": 12}


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    return tmp_path


def resolved(**values):
    return params.resolve("03_train", SMALL | values)


@pytest.mark.parametrize("teacher", TEACHERS)
def test_cache_train_evaluate_sharpness_export(teacher, outputs):
    p = resolved(teacher=teacher)
    run = stages.train_run(p)
    trained = run.read_record("train")
    rows = run.read_metrics()
    assert rows[-1]["step"] == trained["steps"] == 12
    assert rows[-1]["loss_tamd"] < rows[0]["loss_tamd"]
    assert {"ascent_gain", "ascent_cosine", "relative"} <= rows[0].keys()
    assert trained["loaded_cosine"] > 0.99999
    assert not list(run.folder.glob("checkpoints/*"))

    scores = assess.evaluate_run(run, params.load_tasks("tiny"))
    assert set(scores["references"]) == {"teacher", "untrained_cls", "untrained_mean"}
    assert all(np.isfinite(row["score"]) for row in scores["tasks"].values())
    assert scores["avg"] == pytest.approx(np.mean([r["score"] for r in scores["tasks"].values()]))
    assert "| task |" in (run.folder / "model" / "README.md").read_text()

    sharp = stage.sharpness_run(run, params.resolve("05_sharpness", SHARP | {"run": run.id}))
    for record in (sharp, sharp["untrained"]):
        assert np.isfinite(record["lambda_max"])
        assert {row["estimator"] for row in record["rows"]} == {"power", "lanczos", "ascent", "draws"}
        assert all({"residual", "iterations", "converged"} <= row.keys() for row in record["rows"])

    student = stages.load_run_student(run)
    again = export.save_student(student, outputs / "exported")
    assert export.check_loads(student, again, ["a boat", "the old farmer"]) > 0.99999


def test_calling_again_changes_nothing(outputs, monkeypatch):
    p = resolved(teacher="tiny")
    run = stages.train_run(p)
    assess.evaluate_run(run, params.load_tasks("tiny"))
    before = {f: f.stat().st_mtime_ns for f in outputs.rglob("*") if f.is_file() and f.suffix != ".lock"}
    monkeypatch.setattr(
        sources, "load_student", lambda *_, **__: pytest.fail("a finished run loaded its student again")
    )
    monkeypatch.setattr(Encoder, "encode", lambda *_, **__: pytest.fail("something was encoded again"))
    again = stages.train_run(p)
    assess.evaluate_run(again, params.load_tasks("tiny"))
    assert {f: f.stat().st_mtime_ns for f in before} == before


def test_the_teacher_is_not_loaded_for_training_when_its_cache_is_there(outputs, monkeypatch):
    p = resolved(teacher="tiny")
    stages.cache_teacher(p, stages.load_corpus(p))
    monkeypatch.setattr(sources, "load_teacher", lambda *_, **__: pytest.fail("the teacher was loaded"))
    assert stages.train_run(p).status == "finished"


def test_asam_and_adamw_see_the_same_data_order(outputs):
    first = stages.train_run(resolved(teacher="tiny", optimizer="asam")).read_metrics()[0]
    other = stages.train_run(resolved(teacher="tiny", optimizer="adamw")).read_metrics()[0]
    assert first["loss"] == other["loss"]
    assert "ascent_gain" not in other


def test_comparison_and_summary(outputs, monkeypatch):
    grid = SMALL | {"teacher": "tiny", "grid": {"optimizer": ["asam", "adamw"]}, "report": "both"}
    p = params.resolve("06_compare", grid)
    with pytest.raises(TalasError, match="not trained yet"):
        compare.collect(p)
    for cell in params.expand_grid(grid):
        run = stages.train_run(params.resolve("03_train", cell))
        assess.evaluate_run(run, params.load_tasks("tiny"))
        stage.sharpness_run(run, params.resolve("05_sharpness", SHARP | {"run": run.id}))
    c = compare.collect(p)
    with monkeypatch.context() as patched:
        patched.setattr(params, "available", lambda kind: ["small"])
        patched.setattr(params, "load_preset", lambda name: grid)
        with pytest.raises(
            TalasError, match=r"Finished are the runs of `-f params/presets/small.yaml`, .*; grid = \{'opt"
        ):
            compare.collect(params.resolve("06_compare", grid | {"seed": 7}))
    table = compare.scores_table(c)
    assert list(table.index) == [*compare.REFERENCE_LABELS.values(), "talas + asam", "talas + adamw"]
    folder = compare.write_report(c, name="both")
    result = json.loads((folder / "summary.json").read_text())
    assert {"teacher_avg", "base_cls_avg", "base_mean_avg", "runs", "versions", "verdict"} <= result.keys()
    for run in result["runs"]:
        assert run.keys() >= {
            "method",
            "optimizer",
            "seed",
            "avg",
            "tasks",
            "lambda_max",
            "lambda_max_residual",
            "seconds",
            "model_dir",
        }
        assert run["seconds"].keys() == {"cache", "train", "evaluate", "sharpness"}
    assert sorted(f.name for f in folder.glob("*.png")) == ["eigenvalues.png", "scores.png", "training.png"]
    assert "With one seed" in result["verdict"]
    listed = runs.list_runs()
    assert set(listed["optimizer"]) == {"asam", "adamw"}
    assert listed["avg"].notna().all()


def test_an_evaluation_on_other_tasks_is_not_served_from_the_record(outputs):
    run = stages.train_run(resolved(teacher="tiny"))
    suite = params.load_tasks("tiny")
    whole = assess.evaluate_run(run, suite)
    part = assess.evaluate_run(run, suite.model_copy(update={"tasks": suite.tasks[:1]}))
    assert len(part["tasks"]) == 1 < len(whole["tasks"])


def test_what_cannot_be_scored_or_does_not_fit_is_refused(outputs):
    run = runs.open_run(resolved(teacher="tiny"))
    with pytest.raises(TalasError, match="has not finished training"):
        assess.evaluate_run(run, params.load_tasks("tiny"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method_params": {"num_anchor_layers": 9}}, r"does not fit student tiny: num_anchor_layers=9.*3 blocks"),
        ({"method_params": {"lasd_pairs": 9}}, r"does not fit student tiny: lasd_pairs=9.*1 to 3 or all"),
        (
            {"method": "mse", "teacher": "mpnet-base"},
            r"method mse does not fit student tiny: .*32 dimensions, the teacher's 768",
        ),
    ],
)
def test_a_method_that_does_not_fit_is_refused_before_anything_is_cached_or_loaded(
    outputs, monkeypatch, values, message
):
    def never(*_args, **_options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(sources, "load_teacher", never)
    monkeypatch.setattr(sources, "load_student", never)
    with pytest.raises(TalasError, match=message):
        stages.train_run(resolved(**{"teacher": "tiny", **values}))
    assert not list(outputs.rglob("*.npy"))
    assert not list(outputs.glob("tiny--*"))


def test_fixed_batches_are_a_function_of_their_arguments():
    rows = fixed_objective.fixed_rows(100, 4, 8, seed=1)
    assert rows.shape == (4, 8)
    assert len(np.unique(rows)) == 32
    assert np.array_equal(rows, fixed_objective.fixed_rows(100, 4, 8, seed=1))
    assert not np.array_equal(rows, fixed_objective.fixed_rows(100, 4, 8, seed=2))
    assert fixed_objective.fixed_rows(5, 2, 8, seed=1).shape == (2, 5)
