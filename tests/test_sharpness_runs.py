"""Sharpness of runs: weights kept on the way, what is recorded, laws of a whole objective, and tables made of records."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from talas_lib import fixed_objective, kept_weights, params, runs, stages
from talas_lib.curvature import lanczos
from talas_lib.errors import TalasError
from talas_lib.hessian import hvp_operator
from talas_lib.methods.base import Objective
from talas_lib.sharpness import flatness, loss_gap, measurement, stage, table4

SMALL = {
    "student": "tiny",
    "teacher": "tiny",
    "corpus": "tiny",
    "max_sentences": 40,
    "epochs": 3,
    "batch_size": 8,
    "lr": 1e-3,
    "device": "cpu",
    "checkpoint_every": 5,  # an epoch, so that a kept epoch and a checkpoint are made after the same step
}
SHARP = {"sharpness_batches": 2, "sharpness_batch_size": 6, "sharpness_max_iter": 10, "estimator": "lanczos"}
GRID = {"optimizer, rho": [["adamw", None], ["asam", 0.5]], "seed": [1, 2]}


def training(**changes):
    return params.resolve("03_train", SMALL | changes)


def asked(run, **changes):
    return params.resolve("05_sharpness", SHARP | {"run": run.id, "device": "cpu"} | changes)


@pytest.fixture(scope="module")
def run(outputs):
    """AdamW with the weights of epochs 1 and 2 kept."""
    return stages.train_run(training(optimizer="adamw", seed=1, keep_epochs=[1, 2, 3]))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of outputs that a test may damage."""
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def opened(run):
    """Student, method and the objective's data of the finished run."""
    student, method = stage.trained_weights(run)
    p = run.params
    corpus = stages.load_corpus(p)
    data = stages.training_data(p, student, corpus, stages.open_caches(p, corpus))
    return student, method, Objective(student, method, needs=p.needs), data


# ---- kept weights


def test_keeping_epochs_changes_no_run(run):
    assert run.id == training(optimizer="adamw", seed=1).run_id
    assert "keep_epochs" not in run.params.run_config()
    assert kept_weights.kept_epochs(run.folder) == [1, 2]  # the last epoch's are the model


def test_kept_weights_are_those_of_the_epoch(outputs, run, monkeypatch):
    """A copy that stops after two epochs of the same schedule has them; unused rows decayed so far, and no further."""
    from talas_lib import train as module

    states = {}
    original = module.train

    def watched(objective, *args, on_epoch, **more):
        def look(epoch):
            states[epoch] = {k: v.clone() for k, v in objective.method.heads.state_dict().items()}
            on_epoch(epoch)

        result = original(objective, *args, on_epoch=look, **more)
        states["last"] = {k: v.clone() for k, v in objective.student.model.state_dict().items()}
        return result

    monkeypatch.setattr(stages, "train", watched)
    monkeypatch.setenv("TALAS_OUTPUTS", str(outputs / "again"))
    again = stages.train_run(training(optimizer="adamw", seed=1, keep_epochs=[1, 2]))
    for epoch in (1, 2):
        first, second = (load_file(kept_weights.file_of(r.folder, epoch)) for r in (run, again))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[k], second[k]) for k in first)
        for name, value in states[epoch].items():
            assert torch.equal(first[f"heads.{name}"], value)
        assert {k.removeprefix("student.") for k in first if k.startswith("student.")} == states["last"].keys()
    table = next(k for k in states["last"] if k.endswith("word_embeddings.weight"))
    start = stages.sources.load_student(run.params.student_spec).model.state_dict()[table]
    tables = [start, *(load_file(kept_weights.file_of(run.folder, e))[f"student.{table}"] for e in (1, 2))]
    tables.append(states["last"][table])
    corpus = stages.load_corpus(run.params)
    used = set(stages.sources.load_student(run.params.student_spec).tokenize(corpus.texts).ids.tolist())
    unused = next(row for row in range(5, len(start)) if row not in used and start[row].any())
    ratios = [float((b[unused] / a[unused]).mean()) for a, b in pairwise(tables)]
    assert all(0.999 < ratio < 1 for ratio in ratios)  # decay alone, a little in every epoch


def test_whole_state_is_what_training_ends_with(run, monkeypatch, own):
    """At the last step the state before the vocabulary is made whole equals the model after it."""
    from talas_lib.schedule import spans
    from talas_lib.train import decay_of_unused_rows, train

    p = training(optimizer="adamw", seed=1, epochs=1)
    corpus = stages.load_corpus(p)
    caches = stages.open_caches(p, corpus)
    student = stages.sources.load_student(p.student_spec)
    method = stages.build_method(p, student=student, teacher_dims=caches.dims)
    settings = stages.settings_of(p)
    plan = spans(method.stages, len(corpus), settings)
    seen = {}

    def look(epoch):
        seen[epoch] = student.whole_state(decay_of_unused_rows(plan, settings, 5 * epoch))

    train(Objective(student, method), stages.training_data(p, student, corpus, caches), settings, on_epoch=look)
    after = student.model.state_dict()
    assert seen[1].keys() == after.keys()
    assert all(torch.equal(seen[1][k], after[k]) for k in after)
    assert all(torch.equal(v, after[k]) for k, v in student.whole_state().items())


class Killed(Exception):
    pass


@pytest.mark.parametrize("moment", ["before the checkpoint", "in the last epoch"])
def test_a_killed_run_keeps_the_same_weights(run, own, monkeypatch, moment):
    save, written = kept_weights.save, []

    def save_and_die(*args):
        written.append(save(*args))
        raise Killed

    def die(row):
        if row["step"] == 11:
            raise Killed

    p = training(optimizer="adamw", seed=1, keep_epochs=[1, 2])
    with monkeypatch.context() as patch:
        if moment == "before the checkpoint":
            patch.setattr(kept_weights, "save", save_and_die)
        with pytest.raises(Killed):
            stages.train_run(p, on_log=die)
    assert len(written) == (moment == "before the checkpoint")
    again = stages.train_run(p)
    assert again.read_record("train")["resumed_from"] == (0 if written else 10)
    for epoch in (1, 2):
        first, second = (kept_weights.file_of(r.folder, epoch).read_bytes() for r in (run, again))
        assert first == second


def test_epochs_that_are_not_there_are_answered(run, own):
    with pytest.raises(TalasError, match=r"keep_epochs names 9, and this run has 3 epochs\. Accepted: 1 to 3"):
        stages.train_run(p := training(optimizer="adamw", seed=1, keep_epochs=[1, 9]))
    assert runs.Run(p.run_id).status == "new"  # asked before anything is made
    with pytest.raises(TalasError, match=r"keep_epochs has the entry 0, expected whole numbers at least 1"):
        training(keep_epochs=[0])
    with pytest.raises(TalasError, match=r"entry '3', expected whole numbers"):
        training(keep_epochs=["3"])


def test_a_damaged_or_missing_epoch_says_so(run, own, outputs, monkeypatch):
    student, method = stage.trained_weights(run)
    modules = {"student": student.model, "heads": method.heads}
    file = kept_weights.save(own, 1, {name: module.state_dict() for name, module in modules.items()})
    kept_weights.load(own, 1, modules)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(TalasError, match="cannot be read"):
        kept_weights.load(own, 1, modules)
    with pytest.raises(TalasError, match=r"no weights of epoch 7; there are: 1, .* keep_epochs"):
        kept_weights.load(own, 7, modules)
    assert [f.name for f in file.parent.iterdir()] == [file.name]


# ---- the fixed objective


def test_fixed_rows_grow_at_the_end():
    few, many = fixed_objective.fixed_rows(500, 3, 8, seed=4), fixed_objective.fixed_rows(500, 20, 8, seed=4)
    assert np.array_equal(few, many[:3])
    assert len(set(many.ravel())) == 160


def test_subsets_cover_the_encoder_once_and_bound_each_other(opened):
    """Every weight is in one layer; the largest eigenvalue of a part is never above that of the whole (interlacing)."""
    student, method, objective, data = opened
    with fixed_objective.fixed_objective(objective, data, fixed_objective.fixed_rows(40, 2, 8, seed=0)) as fixed:
        parts = fixed.named(["layers"])
        assert parts[0] == "embeddings"
        assert parts[1:] == [f"layer-{n}" for n in range(1, student.num_layers + 1)]
        ids = [id(w) for part in parts for w in fixed.parameters(part)]
        assert sorted(ids) == sorted(id(w) for w in fixed.parameters("encoder"))
        assert [id(w) for w in fixed.parameters("heads")] == [id(w) for w in method.heads.parameters()]
        assert fixed.named(["layer-1", "layers", "encoder"]) == ["layer-1", "embeddings", *parts[2:], "encoder"]
        with pytest.raises(TalasError, match=r"no subset 'encodr' .* Did you mean 'encoder'"):
            fixed.named(["encodr"])
        top = {}
        for name in (*parts, "encoder", "encoder+heads"):
            operator = hvp_operator(fixed.losses, fixed.parameters(name), cache_graphs=True)
            top[name] = lanczos(operator, seed=0, tol=1e-4)[0].value
        assert max(top[part] for part in parts) <= top["encoder"] * (1 + 1e-4)
        assert top["encoder"] <= top["encoder+heads"] * (1 + 1e-4)
    assert student.used_vocabulary is None  # whole again
    assert not student.training


def test_scaled_heads_are_the_same_function_with_other_curvature(opened):
    """H(cW) = H(W) / c^2 on the full objective: the encoder's eigenvalue does not see the scale of the heads."""
    _, method, objective, data = opened
    found = {}
    with fixed_objective.fixed_objective(objective, data, fixed_objective.fixed_rows(40, 1, 8, seed=0)) as fixed:
        for scale in (1, 10):
            with torch.no_grad():
                torch._foreach_mul_(list(method.heads.parameters()), float(scale))
            found[scale] = []
            for name in ("encoder", "heads"):
                operator = hvp_operator(fixed.losses, fixed.parameters(name), cache_graphs=True)
                found[scale].append(lanczos(operator, seed=0, tol=1e-4)[0].value)
            found[scale].append(fixed.losses[0]().item())
    (encoder, heads, loss), (encoder_10, heads_10, loss_10) = found[1], found[10]
    assert loss_10 == pytest.approx(loss, rel=1e-5)
    assert encoder_10 == pytest.approx(encoder, rel=1e-2)
    assert heads / heads_10 == pytest.approx(100, rel=1e-2)


def test_dropout_is_held_fixed_by_its_seed(opened):
    student, _, objective, data = opened
    rows = fixed_objective.fixed_rows(40, 2, 8, seed=0)
    found = {}
    for seed in (None, 3, 4):
        with fixed_objective.fixed_objective(objective, data, rows, dropout_seed=seed) as fixed:
            assert student.training == (seed is not None)
            values = [loss().item() for loss in fixed.losses]
            assert values == [loss().item() for loss in fixed.losses]
            with torch.no_grad():
                assert values == pytest.approx([loss().item() for loss in fixed.losses], rel=0 if seed else 1e-6)
            found[seed] = values
    assert found[3] != found[4]
    assert min(abs(a - b) for a, b in zip(found[3], found[None], strict=True)) > 1e-5
    assert not student.training


# ---- what is recorded


def test_a_run_is_measured_over_its_epochs(run, monkeypatch):
    wanted = asked(run, sharpness_epochs=[1, 3], final_batches=3, single_batches=True)
    told: list[tuple[int, int]] = []
    record = stage.sharpness_run(run, wanted, progress=lambda *counts: told.append(counts))
    assert told == [(number, 6) for number in range(1, 7)]  # two epochs and the end, each with the untrained student
    by_epoch = stage.epoch_records(run)
    assert list(by_epoch) == [1, 3]
    assert record["epoch"] == by_epoch[3]["epoch"] == 3
    rows = fixed_objective.fixed_rows(40, 3, 6, seed=42)
    assert record["batches"] == rows.tolist()
    assert by_epoch[3]["batches"] == rows[:2].tolist()
    assert record["loss"] == pytest.approx(np.mean(record["batch_losses"]))
    assert record["batch_losses"][:2] == by_epoch[3]["batch_losses"]  # the last epoch's weights are the final ones
    assert by_epoch[1]["loss"] > by_epoch[3]["loss"]
    assert by_epoch[1]["lambda_max"] != by_epoch[3]["lambda_max"]
    single = [row["value"] for row in record["rows"] if row["batch"] is not None]
    assert len(single) == 3
    assert np.mean(single) >= record["lambda_max"] * 0.98  # both to a few products' accuracy
    assert not any(row["batch"] is not None for row in by_epoch[3]["rows"])
    quantities = {row["quantity"] for row in record["rows"]}
    assert quantities == {"lambda_max", "asam_rise", "asam_rise_steps", "random_rise"}
    rises = {row["quantity"]: row["value"] for row in record["rows"]}
    assert rises["asam_rise_steps"] >= rises["asam_rise"] > abs(rises["random_rise"])
    # served again, and only what was measured with other settings is measured anew
    monkeypatch.setattr(stage, "measure", lambda *_: pytest.fail("measured again"))
    assert stage.sharpness_run(run, wanted) == run.read_record("sharpness") == record
    with pytest.raises(TalasError, match=r"has no weights of epoch 9\. There are: 1, 2, 3\. .*keep_epochs: \[9\]"):
        stage.sharpness_run(run, asked(run, sharpness_epochs=[9]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharpness_batches": 0}, "nothing to measure"),
        ({"subsets": []}, "subsets is empty"),
        ({"estimator": "quick", "top_eigenvalues": 2}, "top_eigenvalues is 2 and estimator quick"),
        ({"landscape": 4}, r"landscape is 4; .* 0, 3, 5, 7"),
    ],
)
def test_settings_that_do_not_go_together(run, changes, message):
    with pytest.raises(TalasError, match=message):
        measurement.Measurement.of(asked(run, **changes))


def test_everything_at_once(run, opened):
    """Subsets, several eigenvalues, trace, gap, landscape: each where it belongs, the middle of the plane the stored loss."""
    student, method, _, _ = opened
    how = measurement.Measurement.of(
        asked(run, subsets=["encoder", "layer-1"], top_eigenvalues=2, trace_draws=4, held_out_batches=2, landscape=3)
    )
    record = measurement.measure(student, method, run.params, how)
    found = {(row["quantity"], row["subset"]): row["value"] for row in record["rows"]}
    assert found["lambda_max", "encoder"] == record["lambda_max"] >= found["lambda_2", "encoder"]
    assert {("lambda_2", "layer-1"), ("trace", "encoder")} <= found.keys()
    assert ("trace", "layer-1") not in found
    plane, line = record["landscape"]["plane"], record["landscape"]["line"]
    assert plane["losses"][1][1] == line["losses"][2] == record["landscape"]["loss"] == record["loss"]
    assert line["curvature"] == pytest.approx(record["lambda_max"], rel=1e-4)
    step = line["positions"][3]
    parabola = record["loss"] + line["slope"] * step + line["curvature"] / 2 * step**2
    assert line["losses"][3] == pytest.approx(parabola, rel=0.2)
    gap = record["gap"]
    assert gap["gap"] == pytest.approx(gap["held_out_loss"] - gap["train_loss"])
    assert gap["train_loss"] == pytest.approx(record["loss"], rel=1e-5)  # the same two batches
    assert (gap["batches"], gap["sentences"]) == (2, 12)


# ---- unseen sentences


def test_unseen_sentences_are_unseen(run):
    p = run.params
    trained = set(stages.load_corpus(p).texts)
    assert len(trained) == 40
    left = loss_gap.unseen_corpus(p, 10)  # of the 64 sentences of the tiny corpus, 24 are left over
    assert len(set(left.texts)) == len(left) == 10
    assert not trained & set(left.texts)
    more = loss_gap.unseen_corpus(p, 100)  # a built corpus is drawn larger
    assert len(more) == 100
    assert not trained & set(more.texts)


def test_a_file_that_was_trained_on_whole_leaves_nothing(own):
    file = own / "mine.txt"
    file.write_text("\n".join(f"Sentence number {n} about nothing." for n in range(30)))
    whole = training(corpus=str(file), max_sentences=None)
    assert loss_gap.unseen_corpus(whole, 5) is None
    part = training(corpus=str(file), max_sentences=25)
    assert len(loss_gap.unseen_corpus(part, 50)) == 5


# ---- between two runs, and tables of several


@pytest.fixture(scope="module")
def study(run):
    """Four runs, two optimizers and two seeds, measured over epochs 1 and 3, with a score on record."""
    found = [run]
    cells = [{"optimizer": "adamw", "seed": 2}, {"optimizer": "asam", "rho": 0.5, "seed": 1}]
    for cell in [*cells, {"optimizer": "asam", "rho": 0.5, "seed": 2}]:
        found.append(stages.train_run(training(**cell, keep_epochs=[1])))
    for number, each in enumerate(found):
        more = {"single_batches": True, "held_out_batches": 1, "landscape": 3, "ball_steps": 2}
        settings = asked(each, sharpness_epochs=[1, 3], **more)
        stage.sharpness_run(each, settings)
        each.write_record(runs.evaluation_stage("tiny"), {"suite": {"name": "tiny"}, "avg": 60 + number % 3})
    return found


@pytest.fixture
def preset(study, monkeypatch):
    values = SMALL | SHARP | {"tasks": "tiny", "report": "table4", "landscape": 3, "grid": GRID}
    monkeypatch.setattr(params, "load_preset", lambda name: values)
    return values


def test_the_line_between_two_runs_begins_and_ends_at_theirs(study):
    first, second = study[0], study[2]
    line = stage.line_between(first, second, asked(first, landscape=5))
    at, losses = np.array(line["positions"]), np.array(line["losses"])
    assert at.tolist() == [-0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5]
    assert losses[at == 0] == first.read_record("sharpness")["loss"]
    assert losses[at == 1] == second.read_record("sharpness")["loss"]
    again = stage.line_between(first, second, asked(first, landscape=5))
    assert again == line
    other = stages.train_run(training(optimizer="adamw", method="simcse", epochs=1))
    with pytest.raises(TalasError, match=r"differ in teacher, method: there is no one loss"):
        stage.line_between(first, other, asked(first))


def test_the_table_is_tidy(study):
    table = table4.table(study)
    wanted = "run optimizer rho seed epoch quantity subset value residual converged hvps seconds"
    assert " ".join(table.columns[:12]) == wanted
    head = table[(table["quantity"] == "lambda_max") & (table["subset"] == "encoder")]
    assert not head.duplicated(["run", "epoch"]).any()
    assert sorted(set(head["epoch"])) == [0, 1, 3]
    assert len(head) == 4 * 3
    assert head.groupby("seed")["value"].apply(lambda v: v.iloc[0] == v.iloc[3]).all()  # one untrained student a seed
    for run in study:
        row = head[(head["run"] == run.id) & (head["epoch"] == 3)].iloc[0]
        assert row["value"] == stage.epoch_records(run)[3]["lambda_max"]
        assert row["hvps"] > 0
    assert set(table["label"]) == {"adamw", "asam, rho 0.5"}
    assert table[table["optimizer"] == "adamw"]["rho"].isna().all()
    gap = table[table["quantity"].isin(["train_loss", "held_out_loss", "loss_gap"])]
    assert len(gap) == 3 * len(head)
    assert gap["residual"].isna().all()
    final = table4.final_table(study)
    assert final[final["batch"].notna()].groupby("run").size().tolist() == [2] * 4


def test_files_are_made_from_records_and_come_out_the_same(study, preset, tmp_path, monkeypatch):
    folder = table4.write("mine", folder=tmp_path / "first")
    tables = {f.stem for f in folder.glob("*.csv")}
    assert tables == {"table4", "final", "lines", "flatness", "correlations"}
    drawn = {f.stem for f in folder.glob("*.png")}
    assert drawn == {"table4", "asam_rise", "gap", "single_batches", "eigenvector", "planes", "lines", "flatness"}
    lines = pd.read_csv(folder / "lines.csv")
    assert set(lines["line"]) == {"to asam, rho 0.5, seed 1", "to asam, rho 0.5, seed 2"}
    assert "rank correlation" in (folder / "flatness.md").read_text()
    monkeypatch.setattr(stage, "measure", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(table4, "_draw", lambda *_: None)
    again = table4.write("mine", folder=tmp_path / "second")
    for file in folder.glob("*.csv"):
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_the_command_line_answers_what_is_missing(study, preset, capsys, monkeypatch, own):
    assert table4.main(["write", "mine"]) == 2
    assert "not trained yet: " in capsys.readouterr().err


def test_runs_of_a_preset_get_records_by_the_quick_estimator(own, preset, capsys):
    one = stages.train_run(training(optimizer="adamw", seed=1, epochs=1))
    preset.update({"epochs": 1})
    assert table4.main(["measure", "mine", "--batches", "1", "--methods", "simcse"]) == 0
    assert "lambda_max" not in capsys.readouterr().out
    assert table4.main(["measure", "mine", "--methods", "talass"]) == 2
    assert "Did you mean" in capsys.readouterr().err
    assert table4.main(["measure", "mine", "--tables", "table1"]) == 2
    assert "has no tables" in capsys.readouterr().err
    assert table4.main(["measure", "mine", "--batches", "1"]) == 0
    assert capsys.readouterr().out.count("lambda_max") == 1  # the others are not trained
    assert {row["estimator"] for row in runs.Run(one.id).read_record("sharpness")["rows"]} >= {"quick"}


# ---- flatness and score


def rows_of(objective, sharp, scores):
    table = pd.DataFrame({"objective": objective, "lambda_max": sharp, "score": scores})
    return table.assign(**{name: np.nan for name in flatness.QUANTITIES if name != "lambda_max"})


def test_runs_are_ranked_among_those_of_one_loss_one_measurement_and_one_suite(study):
    evaluations = {"tiny": {"name": "tiny"}, "others": {"name": "others"}}

    class Scored:  # a measured run, and scores of two suites
        def __init__(self, run):
            self.run, self.id, self.params, self.read_record = run, run.id, run.params, run.read_record

        def evaluation(self, suite):
            return {"suite": evaluations[suite], "avg": 50.0} if suite in evaluations else None

    found = [Scored(run) for run in study]
    rows = flatness.flatness_rows([(run, "tiny") for run in found])
    assert rows["objective"].nunique() == 1
    assert list(rows["run"]) == [run.id for run in study]
    several = [(found[0], "tiny"), (found[1], "others"), (found[2], "others"), (found[3], "never scored")]
    names = list(flatness.flatness_rows(several)["objective"])
    assert [name.rpartition("; ")[2] for name in names] == ["scored on tiny", "scored on others", "scored on others"]


def test_objectives_are_named_by_what_tells_them_apart():
    def traits(changed="", suite="paper", batches=8, seed=42):
        return {"changed": changed, "suite": suite, "batches": f"{batches} batches", "drawn": f"drawn by seed {seed}"}

    examples = [
        ("talas, cls", traits(batches=32)),
        ("talas, cls", traits(batches=32, seed=43)),
        ("talas, cls", traits()),
        ("talas, cls", traits("without lasd")),
        ("talas, mean", traits()),
        ("simcse, cls", traits()),
        ("simcse, cls", traits()),
    ]
    assert flatness._names(examples) == [
        "talas, cls; 32 batches; drawn by seed 42",
        "talas, cls; 32 batches; drawn by seed 43",
        "talas, cls; 8 batches",
        "talas, cls; without lasd",
        "talas, mean",
        "simcse, cls (1)",
        "simcse, cls (2)",
    ]


def test_rank_correlations_are_scipys_within_objectives():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    first = rows_of("a", rng.gamma(2, 5, 12), rng.normal(70, 1, 12))
    second = rows_of("b", 1000 * rng.gamma(2, 5, 8), rng.normal(50, 1, 8))  # another loss: another scale, other scores
    lonely = rows_of("c", [1.0, 2.0], [1.0, 2.0])
    found = flatness.correlations(pd.concat([first, second, lonely])).set_index("objective")
    expected = [spearmanr(part["lambda_max"], part["score"]).statistic for part in (first, second)]
    np.testing.assert_allclose(found.loc[["a", "b"], "spearman"], expected)
    assert found.loc["all", "spearman"] == pytest.approx((12 * expected[0] + 8 * expected[1]) / 20)
    assert found.loc["all", "n"] == 20
    assert "c" not in found.index
    assert (found["low"] <= found["spearman"]).all()
    assert (found["spearman"] <= found["high"]).all()
    pd.testing.assert_frame_equal(flatness.correlations(first), flatness.correlations(first))


def test_words_claim_no_more_than_the_interval():
    rng = np.random.default_rng(1)
    sharp = np.arange(1.0, 21)
    flatter_better = flatness.correlations(rows_of("a", sharp, -sharp + rng.normal(0, 0.5, 20)))
    sharper_better = flatness.correlations(rows_of("a", sharp, sharp + rng.normal(0, 0.5, 20)))
    neither = flatness.correlations(rows_of("a", sharp, rng.normal(0, 1, 20)))
    assert flatness.in_words(flatter_better).endswith("flatter goes with better here.")
    assert flatness.in_words(sharper_better).endswith("sharper goes with better here.")
    assert flatness.in_words(neither).endswith("do not show that flatness goes with score.")
    assert "nothing can be said" in flatness.in_words(flatness.correlations(rows_of("a", [1.0], [1.0])))
