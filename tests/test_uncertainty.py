"""Resampled metrics against the libraries on the drawn rows, and intervals whose ends are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr, ttest_rel
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, r2_score

from talas_lib import uncertainty

N = 60


def classified(seed, share=0.7):
    """Predictions right in about `share` of the cases, of the same truth for every seed."""
    truth = np.random.default_rng(99).integers(0, 4, N)
    rng = np.random.default_rng(seed)
    return {"truth": truth, "predicted": np.where(rng.random(N) < share, truth, rng.integers(0, 5, N))}


def paired(seed, levels, noise=0.5):
    target = np.random.default_rng(98).integers(0, levels, N)
    cosine = np.random.default_rng(seed).normal(size=N) * noise + target
    return {"target": target, "cosine": np.round(cosine, 1).astype(np.float32)}  # rounded: with ties


def on_rows(metric, items, rows):
    drawn = {name: array[rows] for name, array in items.items()}
    if metric == "accuracy":
        return accuracy_score(drawn["truth"], drawn["predicted"])
    if metric == "macro_f1":
        return f1_score(drawn["truth"], drawn["predicted"], average="macro")
    if metric == "average_precision":
        return average_precision_score(drawn["target"], drawn["cosine"])
    if metric == "spearman":
        return spearmanr(drawn["target"], drawn["cosine"]).statistic
    if metric == "r2":
        return max(0.0, r2_score(drawn["score"], drawn["predicted"]))
    return drawn["ndcg_at_10"].mean()


ITEMS = {
    "accuracy": classified(1),
    "macro_f1": classified(2),
    "average_precision": paired(3, 2),
    "spearman": paired(4, 5),
    "r2": {"score": paired(5, 5)["target"].astype(np.float32), "predicted": paired(5, 5)["cosine"]},
    "ndcg_at_10": {"ndcg_at_10": np.random.default_rng(6).random(N).astype(np.float32)},
}


@pytest.mark.parametrize("metric", uncertainty.METRICS)
def test_weights_are_rows_drawn_so_often(metric):
    rng = np.random.default_rng(0)
    rows = [np.arange(N), rng.integers(0, N, N), rng.integers(0, N, N), np.repeat(np.arange(0, N, 3), 3)]
    weights = np.stack([np.bincount(r, minlength=N) for r in rows]).astype(float)
    found = uncertainty.METRICS[metric](ITEMS[metric], weights)
    assert found == pytest.approx([on_rows(metric, ITEMS[metric], r) for r in rows], abs=1e-6)


def test_a_label_that_a_resample_lacks_does_not_count_for_macro_f1():
    items = {"truth": np.array([0, 0, 1]), "predicted": np.array([0, 0, 0])}
    weights = np.array([[1.0, 1, 1], [2, 1, 0]])
    # with the third row: F1 of label 0 is 2 * 2 / (2 + 3), of label 1 zero; without it label 1 is not there
    assert uncertainty.macro_f1(items, weights) == pytest.approx([(4 / 5 + 0) / 2, 1.0])


def test_equal_cosines_have_no_rank_correlation():
    items = {"cosine": np.ones(4, np.float32), "target": np.arange(4)}
    assert uncertainty.spearman(items, np.ones((1, 4)))[0] == 0.0


# ---- over seeds


def test_mean_and_deviation_by_hand():
    assert uncertainty.mean_and_sd([1.0, 2.0, 3.0]) == (2.0, 1.0)
    mean, sd = uncertainty.mean_and_sd([5.0])
    assert mean == 5.0
    assert math.isnan(sd)


def test_t_interval_by_hand():
    interval = uncertainty.t_interval([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # t with two degrees of freedom, sd 1
    assert (interval.value, interval.n) == (2.0, 3)
    assert (interval.low, interval.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)


def test_t_interval_excludes_zero_when_the_paired_t_test_does():
    rng = np.random.default_rng(0)
    excluded = set()
    for _ in range(30):
        a, b = rng.normal(size=4), rng.normal(size=4) + 1
        interval = uncertainty.t_interval(list(a - b))
        assert (interval.low > 0 or interval.high < 0) == (ttest_rel(a, b).pvalue < 0.05)
        excluded.add(interval.high < 0)
    assert excluded == {True, False}


def test_one_seed_has_no_interval():
    interval = uncertainty.t_interval([0.3])
    assert interval.value == 0.3
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


# ---- the bootstrap


def test_a_model_does_not_differ_from_itself():
    interval = uncertainty.paired_bootstrap("macro_f1", [ITEMS["macro_f1"]], [ITEMS["macro_f1"]], resamples=50)
    assert (interval.value, interval.low, interval.high, interval.p, interval.n) == (0, 0, 0, 1, N)


def test_a_clear_difference_is_one_and_a_small_one_is_not():
    better, worse = paired(1, 5, noise=0.2), paired(2, 5, noise=4.0)
    interval = uncertainty.paired_bootstrap("spearman", [better], [worse], resamples=400)
    assert 0 < interval.low < interval.value < interval.high
    assert interval.p == pytest.approx(2 / 401)  # no resample on the other side
    close = uncertainty.paired_bootstrap("accuracy", [classified(1)], [classified(7)], resamples=400)
    assert close.low < 0 < close.high
    assert close.p > 0.05


def test_accuracy_interval_agrees_with_the_normal_one():
    """The bootstrap's standard error of a paired difference is that of the mean of the differences of correctness."""
    rng = np.random.default_rng(0)
    truth = np.zeros(2000, int)
    ours, theirs = (rng.random(2000) < 0.3).astype(int), (rng.random(2000) < 0.35).astype(int)
    items = [{"truth": truth, "predicted": predicted} for predicted in (ours, theirs)]
    interval = uncertainty.paired_bootstrap("accuracy", items[:1], items[1:], resamples=2000)
    apart = 100 * ((ours == 0).astype(float) - (theirs == 0))
    half = 1.96 * apart.std() / math.sqrt(2000)
    assert interval.value == pytest.approx(apart.mean())
    assert (interval.low, interval.high) == pytest.approx((apart.mean() - half, apart.mean() + half), rel=0.12)


def test_several_seeds_are_averaged_before_they_are_compared():
    ours, theirs = [classified(1), classified(2)], [classified(3, 0.5)]
    value, drawn, n = uncertainty.bootstrap_differences("macro_f1", ours, theirs, resamples=20)
    parts = [uncertainty.bootstrap_differences("macro_f1", [one], theirs, resamples=20) for one in ours]
    assert value == pytest.approx(np.mean([part[0] for part in parts]))
    np.testing.assert_allclose(drawn, np.mean([part[1] for part in parts], axis=0))
    assert n == N


def test_the_seed_decides_the_resamples():
    sides = [classified(1)], [classified(2)]
    first = uncertainty.paired_bootstrap("accuracy", *sides, resamples=120)
    assert uncertainty.paired_bootstrap("accuracy", *sides, resamples=120) == first
    assert uncertainty.paired_bootstrap("accuracy", *sides, resamples=120, seed=1) != first


def test_other_items_are_refused():
    changed = classified(2) | {"truth": np.roll(classified(2)["truth"], 1)}
    with pytest.raises(ValueError, match="different items: truth is not the same"):
        uncertainty.paired_bootstrap("accuracy", [classified(1)], [changed])
    shorter = {name: array[:-1] for name, array in classified(2).items()}
    with pytest.raises(ValueError, match=r"different numbers of items: \[59, 60\]"):
        uncertainty.paired_bootstrap("accuracy", [classified(1)], [shorter])
    with pytest.raises(ValueError, match="no resampled metric 'v_measure'; there are accuracy, macro_f1"):
        uncertainty.paired_bootstrap("v_measure", [classified(1)], [classified(2)])
