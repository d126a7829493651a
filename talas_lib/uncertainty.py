"""How sure a difference of scores is: over seeds by Student's t, over test items by a paired bootstrap.

Items are what `evaluate.TaskScore.items` holds. A resample of n items with replacement is a row of weights, how often each item
was drawn; every metric here takes many such rows at once and gives what it would give on the resampled items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Items = Mapping[str, np.ndarray]
_ROWS = 100  # resamples computed at a time


@dataclass(frozen=True)
class Interval:
    """A mean difference with its interval. n: seeds or items it rests on; bounds are NaN where n is 1.

    p: two-sided share of resamples on the other side of 0, None for seeds.
    """

    value: float
    low: float
    high: float
    n: int
    p: float | None = None


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); NaN for the latter with one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def t_interval(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of paired differences with Student's interval, mean -+ t sd / sqrt(n), n - 1 degrees of freedom."""
    from scipy.stats import t

    mean, sd = mean_and_sd(differences)
    n = len(differences)
    half = float(t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n) if n > 1 else math.nan
    return Interval(mean, mean - half, mean + half, n)


# ---- metrics of resampled items: weights `[resamples, n]` to values `[resamples]`, 0 to 1


def accuracy(items: Items, weights: np.ndarray) -> np.ndarray:
    """Share of right predictions. items: truth and predicted, numbers of labels `[n]`."""
    return weights @ (items["truth"] == items["predicted"]) / weights.sum(1)


def macro_f1(items: Items, weights: np.ndarray) -> np.ndarray:
    """Mean over labels of F1 = 2 tp / (true + predicted); a label that a resample neither holds nor predicts does not count."""
    truth, predicted = items["truth"].astype(np.int64), items["predicted"].astype(np.int64)
    labels = np.arange(max(truth.max(), predicted.max()) + 1)
    is_true, is_predicted = truth[:, None] == labels, predicted[:, None] == labels
    both = weights @ (is_true & is_predicted)
    either = weights @ is_true + weights @ is_predicted
    present = either > 0
    return np.where(present, 2 * both / np.where(present, either, 1), 0).sum(1) / present.sum(1)


def average_precision(items: Items, weights: np.ndarray) -> np.ndarray:
    """Sum over thresholds of (R_k - R_{k-1}) P_k; equal cosines share a threshold. items: cosine, and target 0 or 1."""
    order = np.argsort(-items["cosine"], kind="stable")
    ends = _ends(items["cosine"][order])
    drawn = weights[:, order]
    counted = np.cumsum(drawn, axis=1)[:, ends]
    positive = np.cumsum(drawn * items["target"][order], axis=1)[:, ends]
    precision = positive / np.maximum(counted, 1)
    steps = np.diff(positive, axis=1, prepend=0)
    return (steps * precision).sum(1) / np.maximum(positive[:, -1], 1)


def spearman(items: Items, weights: np.ndarray) -> np.ndarray:
    """Rank correlation with mean ranks of ties; 0 where one side has a single value. items: cosine and target."""
    left, right = _ranks(items["cosine"], weights), _ranks(items["target"], weights)
    total = weights.sum(1, keepdims=True)
    left = left - (weights * left).sum(1, keepdims=True) / total
    right = right - (weights * right).sum(1, keepdims=True) / total
    covariance = (weights * left * right).sum(1)
    product = (weights * left**2).sum(1) * (weights * right**2).sum(1)
    return np.where(product > 0, covariance / np.sqrt(np.where(product > 0, product, 1)), 0.0)


def r_squared(items: Items, weights: np.ndarray) -> np.ndarray:
    """Share of the spread explained, not below 0. items: predicted and score."""
    score, predicted = (items[name].astype(np.float64) for name in ("score", "predicted"))
    mean = weights @ score / weights.sum(1)
    spread = (weights * (score - mean[:, None]) ** 2).sum(1)
    wrong = weights @ (score - predicted) ** 2
    return np.maximum(np.where(spread > 0, 1 - wrong / np.where(spread > 0, spread, 1), 0.0), 0.0)


def ndcg_at_10(items: Items, weights: np.ndarray) -> np.ndarray:
    """Mean over queries. items: ndcg_at_10 of each query."""
    return weights @ items["ndcg_at_10"].astype(np.float64) / weights.sum(1)


Metric = Callable[[Items, np.ndarray], np.ndarray]
METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "average_precision": average_precision,
    "spearman": spearman,
    "r2": r_squared,
    "ndcg_at_10": ndcg_at_10,
}
_FIXED = ("truth", "target", "score")  # arrays that belong to the task, not to the model


def _ends(ordered: np.ndarray) -> np.ndarray:
    """Position of the last of each run of equal values."""
    return np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean rank of each item among the drawn ones, `[resamples, n]`."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    upto = np.cumsum(weights[:, order], axis=1)[:, _ends(group[order])]
    below = np.concatenate([np.zeros((len(weights), 1)), upto[:, :-1]], axis=1)
    return ((below + upto + 1) / 2)[:, group]


# ---- the bootstrap


def paired_bootstrap(
    metric: str,
    ours: Sequence[Items],
    theirs: Sequence[Items],
    *,
    resamples: int = 1000,
    seed: int | Sequence[int] = 0,
    level: float = 0.95,
) -> Interval:
    """Difference of a task's score (0 to 100) with its percentile interval over test items (Efron and Tibshirani 1993).

    ours and theirs: items of one task, one mapping a seed; with several seeds the score is the mean over them. Both sides see
    the same resamples. metric: one of METRICS. ValueError where the two were not scored on the same items.
    """
    return summarize(*bootstrap_differences(metric, ours, theirs, resamples=resamples, seed=seed), level=level)


def bootstrap_differences(
    metric: str, ours: Sequence[Items], theirs: Sequence[Items], *, resamples: int = 1000, seed: int | Sequence[int] = 0
) -> tuple[float, np.ndarray, int]:
    """The difference on all items, on each resample `[resamples]` (0 to 100), and the number of items."""
    n = shared_items([*ours, *theirs])
    sides = [[resampled(metric, items, resamples=resamples, seed=seed) for items in side] for side in (ours, theirs)]
    return *difference(*sides), n


def resampled(metric: str, items: Items, *, resamples: int = 1000, seed: int | Sequence[int] = 0) -> np.ndarray:
    """A score (0 to 1) on all items, then on each resample, `[1 + resamples]`; which items are drawn depends on n and seed.

    ValueError for a metric that is not one of METRICS.
    """
    if metric not in METRICS:
        raise ValueError(f"no resampled metric {metric!r}; there are {', '.join(METRICS)}")
    n = len(next(iter(items.values())))
    rng = np.random.default_rng(seed)
    found = np.empty(1 + resamples)
    found[:1] = METRICS[metric](items, np.ones((1, n)))
    for start in range(0, resamples, _ROWS):
        size = min(_ROWS, resamples - start)
        weights = rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        found[1 + start : 1 + start + size] = METRICS[metric](items, weights)
    return found


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> tuple[float, np.ndarray]:
    """Mean over our seeds less mean over theirs, 0 to 100: on all items, and on each resample; both as `resampled` gives."""
    apart = 100 * (np.mean(ours, axis=0) - np.mean(theirs, axis=0))
    return float(apart[0]), apart[1:]


def summarize(value: float, drawn: np.ndarray, n: int, *, level: float = 0.95) -> Interval:
    """A difference and its resampled values as an interval."""
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    share = (1 + min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))) / (1 + len(drawn))
    return Interval(value, float(low), float(high), n, min(1.0, 2 * float(share)))


def shared_items(sides: Sequence[Items]) -> int:
    """How many items all sides have. ValueError when they are not the same items."""
    sizes = {len(array) for items in sides for array in items.values()}
    if len(sizes) != 1:
        raise ValueError(f"the models were scored on different numbers of items: {sorted(sizes)}")
    for name in _FIXED:
        if name not in sides[0]:
            continue
        if any(not np.array_equal(items[name], sides[0][name]) for items in sides):
            raise ValueError(f"the models were scored on different items: {name} is not the same")
    return sizes.pop()
