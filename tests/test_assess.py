"""Evaluation of runs: what is recorded, what is served again and what is not, and what a comparison makes of several."""

from __future__ import annotations

import json
import math
import zlib

import numpy as np
import pandas as pd
import pytest

from talas_lib import (
    assess,
    collapse,
    compare,
    efficiency,
    item_results,
    params,
    runs,
    scoring,
    sources,
    spread,
    stages,
)
from talas_lib.comparison import Comparison
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.texts import comparison_key
from talas_lib.uncertainty import METRICS, paired_bootstrap, t_interval

SMALL = {
    "student": "tiny",
    "teacher": "tiny",
    "pooling": "mean",  # first tokens of an untrained tiny model are all alike
    "corpus": "tiny",
    "max_sentences": 32,
    "epochs": 1,
    "batch_size": 8,
    "lr": 1e-3,
    "device": "cpu",
}
GRID = {"optimizer": ["adamw", "asam"], "seed": [1, 2, 3]}
TINY = params.load_tasks("tiny")


@pytest.fixture(scope="module")
def comparison(outputs):
    for cell in params.expand_grid(SMALL | {"grid": GRID}):
        assess.evaluate_run(stages.train_run(params.resolve("03_train", cell)), TINY)
    return compare.collect(params.resolve("06_compare", SMALL | {"tasks": "tiny", "grid": GRID}))


@pytest.fixture
def run(comparison):
    return comparison.members[0]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A run in a folder of its own, that a test may damage."""
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    return stages.train_run(params.resolve("03_train", SMALL | {"optimizer": "adamw"}))


def no_encoding(monkeypatch):
    monkeypatch.setattr(Encoder, "encode", lambda *_, **__: pytest.fail("something was encoded again"))


# ---- the record


def test_a_record_holds_scores_geometry_and_cost(run):
    record = run.evaluation("tiny")
    for model in (record, *record["references"].values()):
        assert model["avg"] == pytest.approx(np.mean([row["score"] for row in model["tasks"].values()]))
        assert -1 <= model["geometry"]["mean_cosine"] <= 1
        cost = model["efficiency"]
        assert cost["parameters"] > cost["parameters_without_embeddings"] > 0
        assert cost["score_per_million_parameters"] == pytest.approx(model["avg"] / cost["parameters"] * 1e6)
        assert cost["score_per_ms"] == pytest.approx(model["avg"] / cost["ms_per_sentence"])
        assert (cost["sentences"], cost["device"], cost["precision"]) == (256, "cpu", "fp32")
    assert record["collapse"] is None
    assert record["suite"]["version"] == scoring.EVALUATION_VERSION


def test_items_give_the_recorded_scores(run):
    record = run.evaluation("tiny")
    items = item_results.load(assess.items_file(run, "tiny"), record["suite"])
    assert items.keys() == record["tasks"].keys()
    for task, row in record["tasks"].items():
        found = METRICS[row["metric"]](items[task], np.ones((1, row["n"])))
        assert 100 * found[0] == pytest.approx(row["score"], abs=1e-4), task


def test_progress_counts_the_texts_of_the_run_and_of_references_that_are_not_kept(own):
    told = []
    assess.evaluate_run(own, TINY, progress=lambda done, total: told.append((done, total)))
    texts = len({text for task in sources.load_tasks(TINY) for text in task.data.all_texts})
    assert {total for _, total in told} == {4 * texts}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (4 * texts, 4 * texts)
    again = []
    (own.folder / "records" / "evaluate-tiny.json").unlink()
    assess.evaluate_run(own, TINY, progress=lambda done, total: again.append((done, total)))
    assert {total for _, total in again} == {texts}
    assert again[-1] == (texts, texts)


def test_bf16_is_another_evaluation(own, monkeypatch):
    full = assess.evaluate_run(own, TINY)
    half = assess.evaluate_run(own, TINY, precision="bf16")
    assert (full["suite"]["precision"], half["suite"]["precision"]) == ("fp32", "bf16")
    assert half["efficiency"]["precision"] == half["references"]["teacher"]["efficiency"]["precision"] == "bf16"
    assert half["geometry"] != full["geometry"]
    assert half["references"]["teacher"]["geometry"] != full["references"]["teacher"]["geometry"]
    assert half["avg"] == pytest.approx(full["avg"], abs=5)
    no_encoding(monkeypatch)
    assert assess.evaluate_run(own, TINY, precision="bf16") == own.evaluation("tiny")


# ---- what is served again


@pytest.mark.parametrize("damage", ["items gone", "items cut", "items of another", "older version"])
def test_a_record_that_is_not_whole_is_made_again(own, damage):
    record = assess.evaluate_run(own, TINY)
    file = assess.items_file(own, "tiny")
    before = file.read_bytes()
    if damage == "items gone":
        file.unlink()
    elif damage == "items cut":
        file.write_bytes(before[:100])
    elif damage == "items of another":
        item_results.save(file, {"name": "tiny"}, {})
    else:
        older = {k: v for k, v in record["suite"].items() if k != "version"}
        own.write_record("evaluate-tiny", record | {"suite": older})
    again = assess.evaluate_run(own, TINY)
    assert again["suite"] == record["suite"]
    assert {task: row["score"] for task, row in again["tasks"].items()} == pytest.approx(
        {task: row["score"] for task, row in record["tasks"].items()}
    )
    assert item_results.load(file, again["suite"]).keys() == again["tasks"].keys()


@pytest.mark.parametrize("damage", ["json", "items", "both"])
def test_damaged_references_are_computed_again(own, damage, tmp_path):
    record = assess.evaluate_run(own, TINY)
    for file in (tmp_path / "cache").glob("scores-*"):
        if damage == "both" or (damage == "json") == (file.suffix == ".json"):
            file.write_bytes(file.read_bytes()[:20])
    (own.folder / "records" / "evaluate-tiny.json").unlink()
    again = assess.evaluate_run(own, TINY)
    assert {name: model["avg"] for name, model in again["references"].items()} == pytest.approx(
        {name: model["avg"] for name, model in record["references"].items()}
    )


def test_references_are_keyed_by_all_that_changes_them(own, monkeypatch):
    asked = []
    what = scoring.Evaluation.of(TINY)
    items = {"tiny_pairs": {"cosine": np.zeros(60)}, "tiny_similarity": {"cosine": np.zeros(60)}}
    tasks = {task.name: {"details": {}} for task in what.tasks}
    scored = scoring.Scored({"avg": 1.0, "tasks": tasks}, items)
    monkeypatch.setattr(scoring, "_kept_scores", lambda content, compute: asked.append(content) or scored)
    monkeypatch.setattr(scoring, "kept", lambda *_: {"parameters": 1, "ms_per_sentence": 1.0})
    changes = [what, scoring.Evaluation.of(TINY, precision="bf16")]
    changes.append(scoring.Evaluation("tiny", "paper", what.tasks))
    changes.append(scoring.Evaluation("tiny", "tiny", what.tasks[:1]))
    for evaluation in changes:
        scoring.reference_scores(own.params, evaluation)
    monkeypatch.setattr(scoring, "EVALUATION_VERSION", scoring.EVALUATION_VERSION + 1)
    scoring.reference_scores(own.params, what)
    keys = {json.dumps(content, sort_keys=True, default=str) for content in asked}
    assert len(keys) == len(asked) == 3 * 5


def test_cost_is_measured_anew_for_other_threads_and_scores_are_not(own, monkeypatch):
    what = scoring.Evaluation.of(TINY)
    scoring.reference_scores(own.params, what)
    monkeypatch.setattr(scoring, "score_encoder", lambda *_, **__: pytest.fail("scored again"))
    monkeypatch.setattr(scoring.torch, "get_num_threads", lambda: 64)
    found = scoring.reference_scores(own.params, what)
    assert found["teacher"]["efficiency"]["threads"] == 64
    monkeypatch.setattr(efficiency, "measure", lambda *_: pytest.fail("measured again"))
    assert scoring.reference_scores(own.params, what) == found


# ---- several suites


def test_every_suite_has_a_record_of_its_own(own):
    main = assess.evaluate_run(own, TINY)
    extra = assess.evaluate_run(own, params.load_tasks("extra-tiny"))
    assert own.evaluation("tiny") == json.loads(json.dumps(main))
    assert own.evaluation("extra-tiny")["avg"] == extra["avg"]
    card = (own.folder / "model" / "README.md").read_text()
    assert "| tiny_topics |" in card
    assert "| tiny_clusters |" in card
    p = own.params
    for suite, expected in ((None, extra), ("tiny", main), ("extra-tiny", extra)):
        assert compare.scores_table(Comparison((own,), (p,), suite)).loc["talas + adamw", "avg"] == expected["avg"]
    with pytest.raises(
        TalasError, match=r"has no record of tasks mini; .*04_evaluate\.ipynb with -p run \S+ -p tasks mini"
    ):
        compare.scores_table(Comparison((own,), (p,), "mini"))


# ---- texts seen in training


def test_unseen_scores_of_runs_and_references(own):
    corpus = stages.load_corpus(own.params).texts
    whole = sources.load_tasks(TINY)
    seen = {comparison_key(text) for text in [*corpus, *whole[1].data.left[:10]]}
    what = scoring.Evaluation.of(TINY)
    references = scoring.reference_scores(own.params, what, seen=seen)
    row = references["teacher"]["tasks"]["tiny_pairs"]
    rows = whole[1].data.unseen_rows(seen)
    assert row["details"]["unseen_n"] == len(rows) < row["n"]
    encoder = sources.load_teacher(own.params.teacher_spec)
    fresh = scoring.score_encoder(encoder, what, training_texts=[*corpus, *whole[1].data.left[:10]])
    assert row["details"]["unseen_score"] == pytest.approx(
        fresh.record["tasks"]["tiny_pairs"]["details"]["unseen_score"], abs=1e-4
    )
    # what is kept on disk does not depend on a corpus
    plain = scoring.reference_scores(own.params, what)
    assert "unseen_n" not in plain["teacher"]["tasks"]["tiny_pairs"]["details"]


def test_unseen_table_averages_unseen_with_the_rest(comparison):
    assert compare.unseen_table(comparison).empty  # the tiny corpus is built without the test texts
    record = comparison.members[0].evaluation("tiny")
    changed = json.loads(json.dumps(record))
    for model in (changed, *changed["references"].values()):
        model["tasks"]["tiny_pairs"]["details"] |= {"unseen_n": 50, "unseen_score": 10.0}

    class One(Comparison):
        def evaluation(self, index):
            return changed

    table = compare.unseen_table(One(comparison.members[:1], comparison.resolved[:1]))
    scores = {task: row["score"] for task, row in record["tasks"].items()} | {"tiny_pairs": 10.0}
    assert list(table.columns) == ["tiny_pairs, unseen", "avg"]
    assert table.loc["talas + adamw"].tolist() == pytest.approx([10.0, np.mean(list(scores.values()))])
    assert len(table) == 4


# ---- several runs


def test_groups_leave_out_the_seed(comparison):
    assert comparison.groups() == {"talas + adamw": [0, 1, 2], "talas + asam": [3, 4, 5]}
    assert comparison.label(4) == "talas + asam, seed 2"


def test_labels_name_what_differs_within_a_method_and_within_an_optimizer():
    cells = [
        {"optimizer": "asam", "rho": 0.1},
        {"optimizer": "asam", "rho": 0.2},
        {"optimizer": "adamw", "method_params": {"temperature": 0.2}},
        {"optimizer": "adamw", "method": "simcse", "batch_size": 16},
    ]
    resolved = tuple(params.resolve("03_train", SMALL | cell) for cell in cells)
    c = Comparison((None,) * 4, resolved)
    assert [c.label(i) for i in range(4)] == [
        "talas + asam, batch_size 8, temperature 0.1, rho 0.1",
        "talas + asam, batch_size 8, temperature 0.1, rho 0.2",
        "talas + adamw, batch_size 8, temperature 0.2",
        "simcse + adamw, batch_size 16",
    ]


def test_labels_say_what_a_loss_is_without():
    changes = [{}, {"weight_simcse": 0.0}, {"weight_simcse": 0.0, "weight_lasd": 0.0}, {"weight_tamd": 0.5}]
    resolved = tuple(params.resolve("03_train", SMALL | {"method_params": change}) for change in changes)
    c = Comparison((None,) * 4, resolved)
    assert [c.label(i) for i in range(4)] == [
        "talas + asam, weight_tamd 0.75",
        "talas + asam, weight_tamd 0.75, without simcse",
        "talas + asam, weight_tamd 0.75, without simcse and lasd",
        "talas + asam, weight_tamd 0.5",
    ]


def test_means_over_seeds(comparison):
    table = spread.seeds_table(comparison)
    averages = [comparison.evaluation(i)["avg"] for i in range(3)]
    assert table.loc["talas + adamw", "n"] == 3
    assert table.loc["talas + adamw", "avg"] == f"{np.mean(averages):.2f} ± {np.std(averages, ddof=1):.2f}"
    one = spread.seeds_table(Comparison(comparison.members[:1], comparison.resolved[:1]))
    assert one.loc["talas + adamw", "avg"] == f"{averages[0]:.2f}"
    [first, _] = spread.group_rows(comparison)
    assert (first["seeds"], first["n"]) == ([1, 2, 3], 3)


def test_differences_are_paired_by_seed(comparison):
    table = spread.differences_table(comparison, "talas + asam").set_index(["group", "task"])
    apart = [comparison.evaluation(i)["avg"] - comparison.evaluation(i + 3)["avg"] for i in range(3)]
    row = table.loc["talas + adamw", "avg"]
    expected = t_interval(apart)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((expected.value, expected.low, expected.high))
    assert (row["n"], row["better"]) == (3, sum(d > 0 for d in apart))
    assert set(table.index.get_level_values("task")) == {*comparison.evaluation(0)["tasks"], "avg"}
    # runs of which only one seed is shared: a difference, and no interval
    some = [0, 1, 4, 5]
    part = Comparison(tuple(comparison.members[i] for i in some), tuple(comparison.resolved[i] for i in some))
    row = spread.differences_table(part).set_index("task").loc["avg"]
    assert row["n"] == 1
    assert math.isnan(row["low"])
    with pytest.raises(
        TalasError, match=r"no group 'talas \+ sam' .*Did you mean .* There are: talas \+ adamw, talas \+ asam"
    ):
        spread.differences_table(comparison, "talas + sam")


def test_bootstrap_over_items(comparison):
    table = spread.bootstrap_table(comparison, resamples=60).set_index("task")
    tasks = comparison.evaluation(0)["tasks"]
    assert list(table.index) == [*tasks, "avg"]
    means = [np.mean([comparison.evaluation(i)["avg"] for i in group]) for group in ((3, 4, 5), (0, 1, 2))]
    assert table.loc["avg", "difference"] == pytest.approx(means[0] - means[1], abs=1e-3)
    assert table.loc["avg", "n"] == sum(row["n"] for row in tasks.values())
    assert (table["low"] <= table["high"]).all()
    assert (table["seeds"] == 3).all()
    pd.testing.assert_frame_equal(table, spread.bootstrap_table(comparison, resamples=60).set_index("task"))
    items = [item_results.load(assess.items_file(run, "tiny"))["tiny_pairs"] for run in comparison.members]
    seed = (0, zlib.crc32(b"tiny_pairs"))
    direct = paired_bootstrap("average_precision", items[3:], items[:3], resamples=60, seed=seed)
    row = table.loc["tiny_pairs"]
    assert (row["low"], row["high"], row["p"]) == (direct.low, direct.high, direct.p)


def test_runs_evaluated_differently_are_not_compared(comparison, monkeypatch):
    changed = {comparison.members[1].id: {"precision": "bf16"}}
    original = runs.Run.evaluation

    def evaluation(self, suite=None):
        found = original(self, suite)
        return found | {"suite": found["suite"] | changed.get(self.id, {})}

    monkeypatch.setattr(runs.Run, "evaluation", evaluation)
    with pytest.raises(TalasError, match=r"evaluated differently \(tasks tiny, precision fp32, .* precision bf16"):
        compare.scores_table(comparison)


def test_cost_beside_scores(comparison):
    table = compare.efficiency_table(comparison)
    assert list(table.index[:3]) == list(compare.REFERENCE_LABELS.values())
    assert len(table) == 9
    assert (table["M parameters"] > table["M without embeddings"]).all()
    np.testing.assert_allclose(
        table["avg / M parameters"].astype(float), table["avg"] / table["M parameters"], rtol=1e-9
    )


def test_verdict_and_summary_over_seeds(comparison):
    text = compare.verdict(comparison)
    assert "over 3 seeds" in text
    assert "talas + asam lies " in text
    assert "paired over 3 seeds (95 % interval" in text
    result = compare.summary(comparison, name="x")
    assert [group["n"] for group in result["groups"]] == [3, 3]
    assert {"unseen", "efficiency", "collapse"} <= result["runs"][0].keys()
    single = Comparison(comparison.members[:4:3], comparison.resolved[:4:3])
    assert "With one seed" in compare.verdict(single)


def test_alarms_are_shown_with_their_run(comparison, monkeypatch):
    assert compare.alarms(comparison) == {}
    record, evaluation = Comparison.record, Comparison.evaluation
    bad = comparison.members[4].id
    of_training = {"collapse": "train trouble"}
    monkeypatch.setattr(
        Comparison, "record", lambda c, run, stage: record(c, run, stage) | (of_training if run.id == bad else {})
    )
    after = {4: {"collapse": "evaluate trouble"}}
    monkeypatch.setattr(Comparison, "evaluation", lambda c, index: evaluation(c, index) | after.get(index, {}))
    assert compare.alarms(comparison) == {
        "talas + asam, seed 2": "in training, train trouble; after training, evaluate trouble"
    }


def test_a_collapsed_student_is_found_at_evaluation(own, monkeypatch):
    untrained = {"geometry": {"mean_cosine": 0.3, "effective_rank": 40.0}}
    monkeypatch.setattr(collapse.Circumstances, "of", classmethod(lambda cls, *_: cls(lr=0.01)))
    references = {"untrained_mean": untrained}
    found = assess._collapse(own, {"mean_cosine": 0.99, "effective_rank": 3.0}, references)
    assert "collapsed towards one direction" in found
    assert "learning rate 0.01" in found
    assert assess._collapse(own, {"mean_cosine": 0.35, "effective_rank": 35.0}, references) is None
