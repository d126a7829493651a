"""Rankings against numbers worked by hand and against a full sort; fits on vectors whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from talas_lib import metrics, probes


def unit(*rows):
    x = np.array(rows, dtype=np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# ---- retrieval


def test_retrieval_by_hand():
    documents = unit(*((np.cos(a), np.sin(a)) for a in np.linspace(0, 1.5, 12)))
    queries = documents[[0, 11]]
    # ranks of the relevant documents: query 0 sees them in order, 11 in reverse
    scores = metrics.retrieval_scores(queries, documents, [{1: 1.0, 4: 2.0}, {0: 1.0}])
    found = 1 / np.log2(3) + 2 / np.log2(6)  # gains 1 at rank 2, 2 at rank 5
    best = 2 / np.log2(2) + 1 / np.log2(3)
    assert scores["ndcg_at_10"] == pytest.approx([found / best, 0.0])
    assert scores["mrr_at_10"] == pytest.approx([1 / 2, 0.0])  # rank 12 is too low to count
    assert scores["recall_at_1"] == pytest.approx([0, 0])
    assert scores["recall_at_10"] == pytest.approx([1, 0])
    assert "recall_at_100" not in scores  # of twelve documents it would be 1


def test_recall_counts_shares_of_several_relevant_documents():
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(5, 8)), rng.normal(size=(300, 8))
    order = np.argsort(-(queries @ documents.T), axis=1)
    relevant = [{int(i): 1.0 for i in row[[0, 20, 150, 299]]} for row in order]
    scores = metrics.retrieval_scores(queries, documents, relevant)
    for k, share in ((1, 0.25), (10, 0.25), (100, 0.5)):
        assert scores[f"recall_at_{k}"] == pytest.approx([share] * 5)
    assert scores["mrr_at_10"] == pytest.approx([1] * 5)


@pytest.mark.parametrize("depth", [1, 10, 60])
def test_nearest_is_the_head_of_a_full_stable_sort(depth):
    rng = np.random.default_rng(depth)
    documents = rng.integers(-2, 3, size=(900, 4)).astype(np.float32)  # few values: ties everywhere
    queries = rng.integers(-2, 3, size=(300, 4)).astype(np.float32)
    expected = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :depth]
    assert np.array_equal(metrics.nearest(queries, documents, depth), expected)


def test_fewer_documents_than_ranks():
    scores = metrics.retrieval_scores(unit((1, 0)), unit((1, 0), (0, 1)), [{1: 3.0}])
    assert scores["ndcg_at_10"] == pytest.approx([1 / np.log2(3)])
    assert scores["mrr_at_10"] == pytest.approx([0.5])
    assert scores["recall_at_1"] == pytest.approx([0])


# ---- clusters


def blobs(spread, per_label=20):
    rng = np.random.default_rng(1)
    centres = 10 * np.eye(3)
    labels = np.repeat(["x", "y", "z"], per_label)
    vectors = centres[np.repeat(np.arange(3), per_label)] + spread * rng.normal(size=(3 * per_label, 3))
    return vectors.astype(np.float32), labels


def test_clusters_that_lie_apart_have_v_measure_one():
    score, details = probes.cluster_v_measure(*blobs(0.1), seeds=(0,))
    assert score == 1.0
    assert details == {"clusters": 3, "found": 3, "seeds": 1, "sd": None}


def test_labels_that_say_nothing_about_place_have_v_measure_near_zero():
    vectors, _ = blobs(0.1)
    labels = np.tile(["x", "y", "z", "w"], 15)  # each label equally often in each of the three places
    score, details = probes.cluster_v_measure(vectors, labels)
    assert score < 0.05
    assert details["clusters"] == 4


def test_equal_vectors_are_one_cluster_and_v_measure_zero():
    score, details = probes.cluster_v_measure(np.ones((9, 4), np.float32), list("xyzxyzxyz"))
    assert score == 0.0
    assert details["found"] == 1


def test_v_measure_by_hand():
    # three texts in one place, one in another: homogeneity 1 - H(C|K) / H(C), completeness 1 - H(K|C) / H(K)
    vectors, labels = np.array([[0, 0], [0, 0], [0, 0], [1, 1]], np.float32), ["a", "a", "b", "b"]
    mixed = -(2 / 4) * np.log(2 / 3) - (1 / 4) * np.log(1 / 3)  # H(C|K)
    homogeneity = 1 - mixed / np.log(2)
    over = -(1 / 4) * np.log(1 / 2) * 2  # H(K|C)
    completeness = 1 - over / -(3 / 4 * np.log(3 / 4) + 1 / 4 * np.log(1 / 4))
    expected = 2 * homogeneity * completeness / (homogeneity + completeness)
    assert probes.cluster_v_measure(vectors, labels)[0] == pytest.approx(expected)


def test_clusters_are_a_function_of_vectors_and_seeds():
    vectors, labels = blobs(6.0)
    first = probes.cluster_v_measure(vectors, labels)
    assert probes.cluster_v_measure(vectors, labels) == first
    assert first[1]["seeds"] == 5
    one, _ = probes.cluster_v_measure(vectors, labels, seeds=(0,))
    two, _ = probes.cluster_v_measure(vectors, labels, seeds=(1,))
    both, details = probes.cluster_v_measure(vectors, labels, seeds=(0, 1))
    assert both == pytest.approx((one + two) / 2)
    assert details["sd"] == pytest.approx(100 * abs(one - two) / np.sqrt(2))


# ---- ridge regression


def test_ridge_finds_an_exact_linear_rule():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(200, 5)).astype(np.float32)
    scores = vectors @ np.array([1.0, -2.0, 0.5, 0.0, 3.0]) + 7
    score, details, items = probes.ridge_r_squared(vectors[:100], scores[:100], vectors[100:], scores[100:])
    assert score == pytest.approx(1, abs=1e-9)
    assert details["spearman"] == pytest.approx(100)
    assert details["alpha"] == min(probes.RIDGE_ALPHAS)
    np.testing.assert_allclose(items["predicted"], scores[100:], rtol=1e-4)


def test_ridge_is_scikit_learns_at_the_penalty_it_chose():
    rng = np.random.default_rng(3)
    x, noise = rng.normal(size=(80, 30)), rng.normal(size=80)
    y = x[:, 0] + 2 * noise
    score, details, _ = probes.ridge_r_squared(x[:40], y[:40], x[40:], y[40:])
    expected = Ridge(alpha=details["alpha"]).fit(x[:40], y[:40]).predict(x[40:])
    assert details["r2"] == pytest.approx(100 * r2_score(y[40:], expected))
    assert details["alpha"] > 1  # forty noisy rows of thirty columns want a strong one
    assert score == max(details["r2"] / 100, 0)


def test_a_rule_that_is_worse_than_the_mean_scores_zero_and_says_how_bad():
    x = np.arange(20.0)[:, None]
    y = np.arange(20.0)
    score, details, _ = probes.ridge_r_squared(x[:10], -y[:10], x[10:], y[10:])
    assert score == 0.0
    assert details["r2"] < -100
    assert details["spearman"] == pytest.approx(-100)


def test_pair_features_by_hand_and_symmetric():
    left, right = np.array([[1.0, 2.0]]), np.array([[3.0, -1.0]])
    assert probes.pair_features(left, right).tolist() == [[2.0, 3.0, 3.0, -2.0]]
    assert np.array_equal(probes.pair_features(left, right), probes.pair_features(right, left))


def test_r_squared_by_hand():
    scores = np.array([1.0, 2.0, 3.0])
    assert metrics.r_squared(scores, scores) == 1
    assert metrics.r_squared(np.full(3, 2.0), scores) == 0
    assert metrics.r_squared(np.array([1.0, 2.0, 2.0]), scores) == pytest.approx(1 - 1 / 2)
    assert metrics.r_squared(np.ones(3), np.full(3, 5.0)) == 0.0  # nothing to explain


# ---- the probe's items


def test_labels_have_the_same_numbers_whatever_is_predicted():
    rng = np.random.default_rng(4)
    names = np.array(["a", "b", "c", "d"])
    train = rng.normal(size=(40, 3))
    labels = names[rng.integers(0, 4, 40)]
    test, truth = rng.normal(size=(10, 3)), np.array(["b", "d"] * 5)
    for scale in (1.0, 100.0):  # the predictions differ, and some name labels that no test row has
        _, _, items = probes.probe_macro_f1(scale * train, labels, test, truth)
        assert np.array_equal(names[items["truth"]], truth)
        assert items["truth"].dtype == items["predicted"].dtype == np.int16
