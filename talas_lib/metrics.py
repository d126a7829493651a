"""Metrics of frozen vectors that need nothing fitted: rankings of documents, of pairs, and rank correlation. From 0 to 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

NDCG_DEPTH = 10
RECALL_DEPTHS = (1, 10, 100)
_CELLS = 1 << 25  # similarities held at a time


def nearest(queries: np.ndarray, documents: np.ndarray, depth: int) -> np.ndarray:
    """Positions of the `depth` documents with the largest dot product, best first, int `[q, depth]`; equal ones in order.

    queries `[q, dim]`, documents `[d, dim]`; depth is at most d.
    """
    rows = max(1, min(256, _CELLS // len(documents)))
    found = np.empty((len(queries), depth), dtype=np.int64)
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ documents.T
        if depth * 8 > len(documents):
            found[start : start + rows] = np.argsort(-similarity, axis=1, kind="stable")[:, :depth]
            continue
        floor = np.partition(similarity, -depth, axis=1)[:, -depth]  # the last value that is in
        for i, (row, least) in enumerate(zip(similarity, floor, strict=True), start):
            near = np.flatnonzero(row >= least)
            found[i] = near[np.argsort(-row[near], kind="stable")[:depth]]
    return found


def retrieval_scores(
    queries: np.ndarray, documents: np.ndarray, relevant: Sequence[Mapping[int, float]]
) -> dict[str, np.ndarray]:
    """Scores of each query, `[q]` in [0, 1] each: ndcg_at_10, mrr_at_10 and recall_at_k.

    ndcg_at_10 discounts the gain at rank k by log2(k + 1) and divides by the best order's sum. mrr_at_10 is 1 / rank of the
    first relevant document, 0 below rank 10. recall_at_k is the share of the relevant documents among the first k, for the
    k of RECALL_DEPTHS that are smaller than the number of documents. Any gain > 0 is relevant.
    queries `[q, dim]` and documents `[d, dim]` of unit length; relevant: for each query {document: gain}, at least one.
    """
    depths = [k for k in RECALL_DEPTHS if k < len(documents)]
    order = nearest(queries, documents, min(max([NDCG_DEPTH, *depths]), len(documents)))
    gains = [np.array([row.get(int(i), 0.0) for i in found]) for row, found in zip(relevant, order, strict=True)]
    scores = {"ndcg_at_10": np.array([_ndcg(g, row) for g, row in zip(gains, relevant, strict=True)])}
    scores["mrr_at_10"] = np.array([_reciprocal_rank(g[:NDCG_DEPTH]) for g in gains])
    for k in depths:
        hits = [np.count_nonzero(g[:k]) / len(row) for g, row in zip(gains, relevant, strict=True)]
        scores[f"recall_at_{k}"] = np.array(hits)
    return scores


def _ndcg(gains: np.ndarray, relevant: Mapping[int, float]) -> float:
    depth = min(NDCG_DEPTH, len(gains))
    discount = 1 / np.log2(np.arange(2, depth + 2))
    best = np.sort(np.array(list(relevant.values())))[::-1][:depth]
    return float(gains[:depth] @ discount) / float(best @ discount[: len(best)])


def _reciprocal_rank(gains: np.ndarray) -> float:
    found = np.flatnonzero(gains)
    return 1 / (found[0] + 1) if len(found) else 0.0


def average_precision(cosines: np.ndarray, labels: np.ndarray) -> tuple[float, dict[str, Any]]:
    """Average precision of pairs ranked by cosine, both `[n]`; labels 0 or 1."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, cosines)), {}


def spearman(values: np.ndarray, scores: np.ndarray) -> tuple[float, dict[str, Any]]:
    """Spearman correlation, in [-1, 1]; 0 where it is undefined because all values are equal, as `constant` tells."""
    from scipy.stats import spearmanr

    if np.ptp(values) == 0:
        return 0.0, {"constant": True}
    return float(spearmanr(values, scores).statistic), {}


def r_squared(predicted: np.ndarray, scores: np.ndarray) -> float:
    """1 less the squared errors relative to those of the mean score, at most 1; negative where the mean does better."""
    spread = float(np.square(scores - scores.mean()).sum())
    return 1 - float(np.square(scores - predicted).sum()) / spread if spread > 0 else 0.0
