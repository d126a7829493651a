"""Scores: against scikit-learn and scipy, by hand where a hand suffices, and refused where they would mean nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score, ndcg_score

from talas_lib import uncertainty
from talas_lib.errors import TalasError
from talas_lib.evaluate import Vectors, evaluate_suite
from talas_lib.metrics import retrieval_scores
from talas_lib.params import load_tasks as load_suite
from talas_lib.probes import probe_macro_f1
from talas_lib.tasks import Classification, PairRegression, Pairs, Retrieval, Similarity, Task, load_tasks
from talas_lib.tiny_texts import TOPICS


def bag_of_words(texts: Sequence[str]) -> np.ndarray:
    """Counts of the tiny topics' words, hashed into 64 columns by a fixed table: a fair encoder of the tiny texts."""
    words = sorted(
        {word for slots in TOPICS.values() for slot in slots.values() for phrase in slot for word in phrase.split()}
    )
    table = np.random.default_rng(0).normal(size=(len(words), 64)).astype(np.float32)
    column = dict(zip(words, table, strict=True))
    rows = []
    for text in texts:
        found = [column[word] for word in text.lower().rstrip(".").replace(",", "").split() if word in column]
        rows.append(np.sum(found, axis=0))
    return np.stack(rows)


def noise(texts: Sequence[str]) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(len(texts), 64)).astype(np.float32)


@pytest.fixture(scope="module")
def tiny_tasks() -> tuple[Task, ...]:
    return load_tasks(load_suite("tiny"), assets=lambda name: pytest.fail(name), data_dir=None)


def table(rows: dict[str, Sequence[float]], calls: list[list[str]] | None = None) -> object:
    def encode(texts: Sequence[str]) -> np.ndarray:
        if calls is not None:
            calls.append(list(texts))
        return np.array([rows[text] for text in texts])

    return encode


def pair_task(labels: tuple[int, ...] = (1, 0, 1), **fields: object) -> Task:
    return Task("pairs", "average_precision", Pairs(("a",) * 3, ("b", "c", "d"), labels), **fields)  # type: ignore[arg-type]


ROWS = {"a": (1, 0), "b": (1, 0.1), "c": (1, 1), "d": (0, 1)}


# ---- metrics


def test_pairs_are_average_precision_of_the_cosine() -> None:
    score = evaluate_suite(table(ROWS), [pair_task()]).scores[0]  # order b, c, d: positives at ranks 1 and 3
    assert score.score == pytest.approx(100 * (1 / 1 + 2 / 3) / 2)
    assert (score.n, score.kind, score.metric) == (3, "pair", "average_precision")


def test_similarity_is_spearman_of_the_cosine() -> None:
    task = Task("s", "spearman", Similarity(("a",) * 3, ("b", "c", "d"), (2.0, 5.0, 0.0)))
    # ranks of the cosines 3 2 1, of the scores 2 3 1: 1 - 6 (1 + 1 + 0) / (3 * 8)
    assert evaluate_suite(table(ROWS), [task]).scores[0].score == pytest.approx(50.0)


def test_retrieval_is_ndcg_at_10_by_hand() -> None:
    task = Task("r", "ndcg_at_10", Retrieval(("a",), ("d", "b", "c"), ({2: 1.0, 0: 2.0},)))
    # order b (0), c (1), d (2): gains 0 1 2 against 2 1 0
    found = 1 / np.log2(3) + 2 / np.log2(4)
    best = 2 / np.log2(2) + 1 / np.log2(3)
    assert evaluate_suite(table(ROWS), [task]).scores[0].score == pytest.approx(100 * found / best)


@pytest.mark.parametrize(("queries", "documents"), [(1, 4), (30, 10), (300, 40)])
def test_ndcg_agrees_with_scikit_learn(queries: int, documents: int) -> None:
    rng = np.random.default_rng(queries)
    left, right = rng.normal(size=(queries, 8)), rng.normal(size=(documents, 8))
    gains = np.where(rng.random((queries, documents)) < 0.2, rng.integers(1, 4, (queries, documents)), 0)
    gains[:, 0] = 1  # every query has an answer
    relevant = [{int(d): float(row[d]) for d in np.flatnonzero(row)} for row in gains]
    expected = ndcg_score(gains, left @ right.T, k=10)
    assert retrieval_scores(left, right, relevant)["ndcg_at_10"].mean() == pytest.approx(expected, abs=1e-12)


def test_probe_is_scikit_learns_with_the_protocols_settings() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 6))
    labels = rng.integers(0, 3, 200)
    vectors = (centres[labels] + rng.normal(size=(200, 6))).astype(np.float32)
    names = np.array(["x", "y", "z"])[labels]
    score, details, items = probe_macro_f1(vectors[:150], names[:150], vectors[150:], names[150:])
    probe = LogisticRegression(max_iter=200, random_state=42).fit(vectors[:150], names[:150])
    assert score == f1_score(names[150:], probe.predict(vectors[150:]), average="macro")
    assert details["iterations"] == probe.n_iter_.max()
    assert details["converged"] is True
    assert np.array_equal(np.array(["x", "y", "z"])[items["truth"]], names[150:])
    assert np.array_equal(np.array(["x", "y", "z"])[items["predicted"]], probe.predict(vectors[150:]))


def test_a_probe_that_stops_early_says_so_and_does_not_warn() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 40)).astype(np.float32) * np.geomspace(1, 1e4, 40, dtype=np.float32)
    labels = rng.integers(0, 8, 400).astype(str)
    _, details, _ = probe_macro_f1(vectors, labels, vectors[:20], labels[:20])
    assert details["converged"] is False
    assert details["iterations"] == 200


def test_protocol_decides_whether_scale_matters_to_the_probe(tiny_tasks: tuple[Task, ...]) -> None:
    def scores(scale: float, protocol: str) -> list[float]:
        task = dataclasses.replace(tiny_tasks[0], protocol=protocol)
        return [s.score for s in evaluate_suite(lambda texts: scale * bag_of_words(texts), [task]).scores]

    assert scores(1.0, "mini") == scores(1e-3, "mini")
    assert scores(1.0, "paper") != scores(1e-3, "paper")


def test_cosines_survive_tiny_and_huge_vectors() -> None:
    for scale in (1e-30, 1e30):
        vectors = Vectors(["a", "b"], (np.array([[3, 4], [4, 3]]) * scale).astype(np.float32))
        assert vectors.cosines(["a"], ["b"])[0] == pytest.approx(24 / 25)
        assert vectors.unit(["a"]).dtype == np.float32


# ---- the suite


def test_every_distinct_text_is_encoded_once_in_one_call() -> None:
    calls: list[list[str]] = []
    similar = Task("s", "spearman", Similarity(("a", "a"), ("b", "d"), (1.0, 0.0)))
    scores = evaluate_suite(table(ROWS, calls), [pair_task(), similar])
    assert calls == [["a", "b", "c", "d"]]
    assert (scores.texts, scores.dim) == (4, 2)


def test_a_better_encoder_scores_better_on_every_tiny_task(tiny_tasks: tuple[Task, ...]) -> None:
    good, bad = evaluate_suite(bag_of_words, tiny_tasks), evaluate_suite(noise, tiny_tasks)
    for a, b in zip(good.scores, bad.scores, strict=True):
        assert a.score > b.score + 20, a.task
    assert good.protocol == "tiny"


def test_tiny_scores_agree_with_the_libraries(tiny_tasks: tuple[Task, ...]) -> None:
    def cosines(left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        a, b = (bag_of_words(side).astype(np.float64) for side in (left, right))
        return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    scores = {score.kind: score.score for score in evaluate_suite(bag_of_words, tiny_tasks).scores}
    _, pairs, similar, _ = (task.data for task in tiny_tasks)
    assert isinstance(pairs, Pairs)
    assert isinstance(similar, Similarity)
    expected = average_precision_score(pairs.labels, cosines(pairs.left, pairs.right))
    assert scores["pair"] == pytest.approx(100 * expected, abs=0.1)
    expected = spearmanr(cosines(similar.left, similar.right), similar.scores).statistic
    assert scores["similarity"] == pytest.approx(100 * expected, abs=0.1)


def test_the_extra_kinds_on_tiny_texts() -> None:
    spec = load_suite("extra-tiny")
    tasks = load_tasks(spec, assets=lambda name: pytest.fail(name), data_dir=None)
    good, bad = evaluate_suite(bag_of_words, tasks), evaluate_suite(noise, tasks)
    assert [score.kind for score in good.scores] == ["clustering", "regression", "retrieval"]
    assert good.protocol == "extra"
    for a, b in zip(good.scores, bad.scores, strict=True):
        assert 0 <= b.score < a.score - 20 <= 80, a.task
    again = evaluate_suite(bag_of_words, tasks)
    assert [(s.score, s.details) for s in again.scores] == [(s.score, s.details) for s in good.scores]


@pytest.mark.parametrize("suite", ["tiny", "extra-tiny"])
def test_items_give_the_score_again(suite: str) -> None:
    tasks = load_tasks(load_suite(suite), assets=lambda name: pytest.fail(name), data_dir=None)
    for score in evaluate_suite(bag_of_words, tasks).scores:
        if score.kind == "clustering":  # belongs to all items at once
            assert not score.items
            continue
        assert all(len(array) == score.n for array in score.items.values())
        once = uncertainty.METRICS[score.metric](score.items, np.ones((1, score.n)))
        assert 100 * once[0] == pytest.approx(score.score, abs=1e-4), score.task


def test_pair_regression_sees_differences_and_products() -> None:
    rng = np.random.default_rng(0)
    texts = [f"text {i}" for i in range(240)]
    rows = {text: row / np.linalg.norm(row) for text, row in zip(texts, rng.normal(size=(240, 3)), strict=True)}
    left, right = texts[0::2], texts[1::2]
    # the sum of u * v, which is linear in the features though not in u and v
    scores = [float(rows[a] @ rows[b]) for a, b in zip(left, right, strict=True)]
    halves = [Similarity(tuple(left[s]), tuple(right[s]), tuple(scores[s])) for s in (slice(0, 60), slice(60, None))]
    task = Task("r", "r2", PairRegression(*halves), protocol="extra")
    [score] = evaluate_suite(table(rows), [task]).scores
    assert score.score > 99.9
    assert (score.n, score.details["spearman"]) == (60, pytest.approx(100, abs=0.1))


def test_geometry_is_that_of_the_vectors() -> None:
    scores = evaluate_suite(table(ROWS), [pair_task()])
    unit = np.array([np.array(row) / np.linalg.norm(row) for row in ROWS.values()])
    cosines = (unit @ unit.T)[~np.eye(4, dtype=bool)]
    assert scores.geometry["mean_cosine"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert scores.geometry["rows"] == 4


def test_averages_count_what_they_should() -> None:
    tasks = [
        pair_task(in_domain=True),
        dataclasses.replace(pair_task((0, 0, 1), in_domain=False), name="out"),
        dataclasses.replace(pair_task((0, 1, 1), in_domain=False, in_average=False), name="beside"),
    ]
    scores = evaluate_suite(table(ROWS), tasks)
    first, second, beside = (score.score for score in scores.scores)
    assert beside != second
    assert scores.averages() == {"avg_in": first, "avg_out": second, "avg": pytest.approx((first + second) / 2)}
    rows = scores.to_rows()
    assert [row["task"] for row in rows] == ["pairs", "out", "beside", "avg_in", "avg_out", "avg"]
    assert len({tuple(row) for row in rows}) == 1  # tidy: the same columns everywhere
    assert evaluate_suite(table(ROWS), [pair_task()]).averages() == {"avg": first}


def test_pairs_seen_in_training_are_also_left_out() -> None:
    score = evaluate_suite(table(ROWS), [pair_task()], training_texts=["C!"]).scores[0]
    assert score.score == pytest.approx(100 * (1 / 1 + 2 / 3) / 2)
    assert score.details == {"unseen_n": 2, "unseen_score": None}  # b and d are both positive: no ranking to speak of
    task = pair_task((1, 1, 0))
    assert evaluate_suite(table(ROWS), [task], training_texts=["c"]).scores[0].details == {
        "unseen_n": 2,
        "unseen_score": 100.0,
    }


def test_on_score_is_told_each_score(tiny_tasks: tuple[Task, ...]) -> None:
    told: list[str] = []
    evaluate_suite(bag_of_words, tiny_tasks, on_score=lambda score: told.append(score.task))
    assert told == [task.name for task in tiny_tasks]


def test_equal_similarities_have_no_rank_correlation() -> None:
    task = Task("s", "spearman", Similarity(("a", "a"), ("b", "c"), (1.0, 0.0)))
    score = evaluate_suite(lambda texts: np.ones((len(texts), 2)), [task]).scores[0]
    assert (score.score, score.details) == (0.0, {"constant": True})


# ---- refusals


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 0), r"gave the zero vector for 'c' \(1 of 4 texts are affected\)"),
        ((np.nan, 1), r"gave a vector with NaN or infinite values for 'c' \(1 of 4"),
        ((np.inf, 1), "NaN or infinite"),
    ],
)
def test_unusable_vectors_name_their_text(row: tuple[float, float], message: str) -> None:
    with pytest.raises(TalasError, match=message):
        evaluate_suite(table(ROWS | {"c": row}), [pair_task()])


def test_an_array_of_another_shape_is_refused() -> None:
    with pytest.raises(TalasError, match=r"shape \(4,\) for 4 texts, not \[4, dim\]"):
        evaluate_suite(lambda texts: np.ones(len(texts)), [pair_task()])
    with pytest.raises(TalasError, match=r"shape \(2, 3\) for 4 texts"):
        evaluate_suite(lambda texts: np.ones((2, 3)), [pair_task()])


def test_suites_of_two_protocols_are_not_scored_together() -> None:
    tasks = [pair_task(protocol="mini"), pair_task(protocol="paper")]
    with pytest.raises(TalasError, match="tasks of the protocols mini, paper cannot be scored together"):
        evaluate_suite(table(ROWS), tasks)
    with pytest.raises(TalasError, match="no protocol 'mteb'; there are extra, mini, paper, tiny"):
        evaluate_suite(table(ROWS), [pair_task()], protocol="mteb")
    with pytest.raises(TalasError, match="no task to average over"):
        evaluate_suite(table(ROWS), [])


def test_classification_predicts_labels_it_was_taught() -> None:
    rows = {"a": (1, 0), "b": (0, 1), "c": (0.9, 0.1), "d": (0.2, 0.8)}
    task = Task("c", "macro_f1", Classification(("a", "b"), ("x", "y"), ("c", "d"), ("x", "y")))
    score = evaluate_suite(table(rows), [task]).scores[0]
    assert score.score == 100.0
    assert score.details["accuracy"] == 100.0
