"""What is fitted to frozen vectors to score them: a classifier, clusters, a ridge regression. Scores from 0 to 1."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from talas_lib.metrics import r_squared, spearman

MAX_ITER, SEED = 200, 42
CLUSTER_SEEDS = (0, 1, 2, 3, 4)
RIDGE_ALPHAS = tuple(10.0**power for power in range(-4, 5))


def probe_predictions(
    train: np.ndarray, train_labels: Sequence[str], test: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Labels predicted by sklearn's logistic regression (L2, C = 1, lbfgs, at most 200 iterations) on the vectors given.

    train `[n, dim]`, test `[m, dim]`. Whether it converged is returned, not warned about: on wide raw vectors 200
    iterations often do not suffice, and the limit is part of the protocol.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    probe = LogisticRegression(max_iter=MAX_ITER, random_state=SEED)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe.fit(train, np.array(train_labels))
    stopped = any(issubclass(w.category, ConvergenceWarning) for w in caught)
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn(warning.message, warning.category, stacklevel=2)
    return probe.predict(test), {"iterations": int(probe.n_iter_.max()), "converged": not stopped}


def probe_macro_f1(
    train: np.ndarray, train_labels: Sequence[str], test: np.ndarray, test_labels: Sequence[str]
) -> tuple[float, dict[str, Any], dict[str, np.ndarray]]:
    """Macro-F1 of `probe_predictions`, details with accuracy (0 to 100), and truth and prediction of each test row.

    The last two are int16 numbers `[m]` of the labels in sorted order, the same for every encoder.
    """
    from sklearn.metrics import accuracy_score, f1_score

    predicted, fitted = probe_predictions(train, train_labels, test)
    labels = np.array(test_labels)
    details = {"accuracy": 100 * float(accuracy_score(labels, predicted)), **fitted}
    known = np.unique(np.concatenate([np.array(train_labels), labels]))
    items = {"truth": np.searchsorted(known, labels), "predicted": np.searchsorted(known, predicted)}
    score = float(f1_score(labels, predicted, average="macro"))
    return score, details, {name: codes.astype(np.int16) for name, codes in items.items()}


def cluster_v_measure(
    vectors: np.ndarray, labels: Sequence[str], seeds: Sequence[int] = CLUSTER_SEEDS
) -> tuple[float, dict[str, Any]]:
    """Mean V-measure over the seeds of k-means (Lloyd, k-means++ starts, k = number of labels), `[n, dim]` vectors.

    The V-measure (Rosenberg and Hirschberg 2007) is the harmonic mean of homogeneity (a cluster holds one label) and
    completeness (a label lies in one cluster); names of clusters do not matter. details: its standard deviation over the
    seeds (0 to 100), and the smallest number of clusters found, fewer than k where vectors coincide.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import v_measure_score

    wide = vectors.astype(np.float64)  # so that the order in which threads add up decides nothing
    clusters = len(set(labels))
    values, found = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than clusters: `found` tells
        for seed in seeds:
            assigned = KMeans(clusters, n_init=1, random_state=seed).fit_predict(wide)
            values.append(float(v_measure_score(np.array(labels), assigned)))
            found.append(len(np.unique(assigned)))
    spread = 100 * float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), {"clusters": clusters, "found": min(found), "seeds": len(values), "sd": spread}


def pair_features(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`[n, dim]` twice to `[n, 2 dim]`: |u - v| and u * v, SentEval's features for relatedness (Conneau and Kiela 2018)."""
    return np.concatenate([np.abs(left - right), left * right], axis=1)


def ridge_r_squared(
    train: np.ndarray, train_scores: np.ndarray, test: np.ndarray, test_scores: np.ndarray
) -> tuple[float, dict[str, Any], dict[str, np.ndarray]]:
    """R^2 on the test rows of a ridge regression with intercept, not below 0 (the mean does as well); details; predictions.

    train `[n, features]`, test `[m, features]`. The penalty is the one of RIDGE_ALPHAS with the smallest leave-one-out error
    on the train rows. details: r2 as it is, the Spearman correlation, both times 100, and the penalty.
    """
    from sklearn.linear_model import RidgeCV

    ridge = RidgeCV(alphas=RIDGE_ALPHAS).fit(train.astype(np.float64), train_scores)
    predicted = ridge.predict(test.astype(np.float64))
    raw = r_squared(predicted, test_scores)
    correlation, constant = spearman(predicted, test_scores)
    details = {"r2": 100 * raw, "spearman": 100 * correlation, "alpha": float(ridge.alpha_), **constant}
    items = {"predicted": predicted.astype(np.float32), "score": np.asarray(test_scores, dtype=np.float32)}
    return max(raw, 0.0), details, items
