"""Scores of an encoder on evaluation tasks, from frozen sentence vectors in fp32.

Classification is the macro-F1 of a logistic regression, pairs the average precision of the cosine, similarity the Spearman
correlation of the cosine with people's scores, retrieval the nDCG@10 of the cosine, clustering the V-measure of k-means,
regression the R^2 of a ridge regression on the vector of a rated text, or on |u - v| and u * v of a rated pair (not below 0);
all times 100.

The probes' L2 penalties weigh more on shorter vectors, and k-means sees lengths. Protocol `paper` gives them the vectors as
they come, as the released evaluation does: compare only encoders that are all normalised or all not. The other protocols
give them vectors of length 1, so that no score depends on their scale.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from talas_lib import collapse, metrics, probes
from talas_lib.errors import TalasError, listed
from talas_lib.tasks import (
    Classification,
    Clustering,
    PairRegression,
    Pairs,
    Regression,
    Retrieval,
    Similarity,
    Task,
)
from talas_lib.texts import comparison_key

Encode = Callable[[Sequence[str]], np.ndarray]
PROTOCOLS = {"extra": "unit", "mini": "unit", "paper": "raw", "tiny": "unit"}  # which vectors the probes see
_GEOMETRY_ROWS = 512  # texts whose vectors tell the geometry


@dataclass(frozen=True)
class TaskScore:
    """One task's score, 0 to 100 (Spearman may be negative); n: scored rows; seconds: without the encoding.

    details: what the metric has to say beyond the number, such as `converged` and `iterations` of the probe, or, with
    training texts given, `unseen_score` over the `unseen_n` pairs that share no sentence with them. items: what the score
    is made of, an array `[n]` each, for resampling: truth and predicted (int16) of a classification, cosine and target of pairs,
    predicted and score of a regression, the scores of each query; nothing for clusters, whose score belongs to all at once.
    """

    task: str
    kind: str
    metric: str
    score: float
    n: int
    in_domain: bool | None = None
    in_average: bool = True
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    items: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class SuiteScores:
    """All tasks of a suite. texts: distinct ones encoded, in `encode_seconds`; dim: width of the vectors.

    geometry: `collapse.geometry` of the vectors of some of the texts, the same ones for every encoder.
    """

    protocol: str
    scores: tuple[TaskScore, ...]
    texts: int
    dim: int
    encode_seconds: float
    geometry: Mapping[str, float] = field(default_factory=dict)

    @property
    def avg(self) -> float:
        """Mean over the tasks that count in averages."""
        return float(np.mean([s.score for s in self.scores if s.in_average]))

    @property
    def avg_in(self) -> float | None:
        """Mean over the counted tasks whose texts come from the corpus's sources; None when there are none."""
        return self._mean_where(True)

    @property
    def avg_out(self) -> float | None:
        """Mean over the counted tasks from other sources; None when there are none."""
        return self._mean_where(False)

    def _mean_where(self, in_domain: bool) -> float | None:
        chosen = [s.score for s in self.scores if s.in_average and s.in_domain is in_domain]
        return float(np.mean(chosen)) if chosen else None

    def averages(self) -> dict[str, float]:
        """avg, and avg_in and avg_out where there are such tasks."""
        named = {"avg_in": self.avg_in, "avg_out": self.avg_out, "avg": self.avg}
        return {name: value for name, value in named.items() if value is not None}

    def to_rows(self) -> list[dict[str, Any]]:
        """Tidy rows, one a task and one an average (kind `average`), with the same columns."""
        shared = {"protocol": self.protocol}
        rows = [
            shared
            | {
                "task": s.task,
                "kind": s.kind,
                "metric": s.metric,
                "score": s.score,
                "n": s.n,
                "in_average": s.in_average,
            }
            for s in self.scores
        ]
        counted = sum(s.in_average for s in self.scores)
        return rows + [
            shared
            | {"task": name, "kind": "average", "metric": "mean", "score": value, "n": counted, "in_average": False}
            for name, value in self.averages().items()
        ]


def evaluate_suite(
    encode: Encode,
    tasks: Sequence[Task],
    *,
    protocol: str | None = None,
    training_texts: Collection[str] = (),
    on_score: Callable[[TaskScore], None] | None = None,
) -> SuiteScores:
    """Score an encoder on tasks; every distinct text is encoded once, in one call.

    encode: texts to vectors `[n, dim]`. protocol: one of PROTOCOLS, None for the one of the tasks' suite; it decides on the
    probe's vectors, and tasks of different protocols are not scored together.
    training_texts: texts seen in training; pair and similarity tasks are then also scored without them. on_score: called
    after each task. TalasError for vectors of another shape, or a vector that is zero or not finite, by its text.
    """
    if not any(task.in_average for task in tasks):
        raise TalasError("there is no task to average over; give at least one that counts in averages")
    protocol = _protocol_of(tasks) if protocol is None else protocol
    if protocol not in PROTOCOLS:
        raise TalasError(f"no protocol {protocol!r}; there are {listed(PROTOCOLS)}")
    began = time.perf_counter()
    vectors = Vectors.of(encode, tasks)
    features = vectors if PROTOCOLS[protocol] == "raw" else vectors.unit
    encoded = time.perf_counter() - began
    seen = {comparison_key(text) for text in training_texts}
    scores = []
    for task in tasks:
        began = time.perf_counter()
        score, details, items = _score(task, vectors, features, seen)
        scores.append(
            TaskScore(
                task=task.name,
                kind=task.kind,
                metric=task.metric,
                score=100 * score,
                n=len(task.data),
                in_domain=task.in_domain,
                in_average=task.in_average,
                details=details,
                seconds=time.perf_counter() - began,
                items=items,
            )
        )
        if on_score is not None:
            on_score(scores[-1])
    count, dim = vectors.raw.shape
    sample = np.linspace(0, count - 1, min(count, _GEOMETRY_ROWS)).astype(np.int64)
    return SuiteScores(protocol, tuple(scores), count, dim, encoded, collapse.geometry(vectors.raw[sample]))


def _protocol_of(tasks: Sequence[Task]) -> str:
    found = sorted({task.protocol for task in tasks})
    if len(found) > 1:
        raise TalasError(
            f"tasks of the protocols {listed(found)} cannot be scored together; score each suite by itself"
        )
    return found[0]


class Vectors:
    """Raw fp32 vectors `[n, dim]` of distinct texts, looked up by text."""

    def __init__(self, texts: Sequence[str], raw: np.ndarray) -> None:
        self.row = {text: i for i, text in enumerate(texts)}
        self.raw = raw

    @classmethod
    def of(cls, encode: Encode, tasks: Sequence[Task]) -> Vectors:
        """Encode the distinct texts of the tasks, in order of first appearance."""
        texts = list(dict.fromkeys(text for task in tasks for text in task.data.all_texts))
        raw = np.ascontiguousarray(encode(texts), dtype=np.float32)
        if raw.ndim != 2 or len(raw) != len(texts):
            raise TalasError(
                f"the encoder gave an array of shape {raw.shape} for {len(texts)} texts, not [{len(texts)}, dim]"
            )
        finite = np.asarray(np.isfinite(raw).all(axis=1))
        usable = np.asarray(finite & (np.abs(raw).max(axis=1) > 0))
        if not usable.all():
            first = int(np.argmin(usable))
            what = "the zero vector" if finite[first] else "a vector with NaN or infinite values"
            raise TalasError(
                f"the encoder gave {what} for {texts[first][:80]!r} ({int((~usable).sum())} of {len(texts)} texts are "
                "affected): training has diverged or the model is not loaded as it was saved; lower lr or use precision fp32"
            )
        return cls(texts, raw)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Raw vectors `[len(texts), dim]`."""
        return self.raw[[self.row[text] for text in texts]]

    def unit(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of length 1."""
        raw = self(texts)
        raw = raw / np.abs(raw).max(axis=1, keepdims=True)  # keeps the squares of very small and large values in range
        return raw / np.linalg.norm(raw, axis=1, keepdims=True)

    def cosines(self, left: Sequence[str], right: Sequence[str]) -> np.ndarray:
        """Row-wise cosine, in [-1, 1]."""
        return np.einsum("nd,nd->n", self.unit(left), self.unit(right))


def _score(
    task: Task, vectors: Vectors, features: Encode, seen: Collection[str]
) -> tuple[float, dict[str, Any], dict[str, np.ndarray]]:
    """Score from 0 to 1, details, and what each test item came to (see TaskScore)."""
    data = task.data
    if isinstance(data, Classification):
        return probes.probe_macro_f1(
            features(data.train_texts), data.train_labels, features(data.test_texts), data.test_labels
        )
    if isinstance(data, Retrieval):
        by_query = metrics.retrieval_scores(vectors.unit(data.queries), vectors.unit(data.documents), data.relevant)
        beside = {name: 100 * float(values.mean()) for name, values in by_query.items() if name != task.metric}
        return float(by_query[task.metric].mean()), beside, {k: v.astype(np.float32) for k, v in by_query.items()}
    if isinstance(data, Clustering):
        return *probes.cluster_v_measure(features(data.texts), data.labels), {}
    if isinstance(data, Regression):
        train, test = features(data.train_texts), features(data.test_texts)
        return probes.ridge_r_squared(train, np.array(data.train_scores), test, np.array(data.test_scores))
    if isinstance(data, PairRegression):
        train, test = (probes.pair_features(features(s.left), features(s.right)) for s in (data.train, data.test))
        return probes.ridge_r_squared(train, np.array(data.train.scores), test, np.array(data.test.scores))
    cosines = vectors.cosines(data.left, data.right)
    score, details = pair_score(data, cosines)
    target = np.array(data.labels, np.int8) if isinstance(data, Pairs) else np.array(data.scores, np.float32)
    details |= unseen_details(data, cosines, seen)
    return score, details, {"cosine": cosines.astype(np.float32), "target": target}


def pair_score(
    data: Pairs | Similarity, cosines: np.ndarray, rows: Sequence[int] | None = None
) -> tuple[float, dict[str, Any]]:
    """Average precision or Spearman correlation of the cosines of all pairs, or of these rows, and details."""
    chosen = np.arange(len(data)) if rows is None else np.array(rows, dtype=np.int64)
    if isinstance(data, Pairs):
        return metrics.average_precision(cosines[chosen], np.array(data.labels)[chosen])
    return metrics.spearman(cosines[chosen], np.array(data.scores)[chosen])


def unseen_details(data: Pairs | Similarity, cosines: np.ndarray, seen: Collection[str]) -> dict[str, Any]:
    """`unseen_n` pairs that share no text with the comparison keys `seen`, and `unseen_score` over them, 0 to 100.

    The score is None where too few are left to rank; nothing is returned when nothing was seen.
    """
    if not seen:
        return {}
    rows = data.unseen_rows(seen)
    target = np.array(data.labels if isinstance(data, Pairs) else data.scores)[rows]
    enough = len(rows) > 1 and len(np.unique(target)) > 1
    return {"unseen_n": len(rows), "unseen_score": 100 * pair_score(data, cosines, rows)[0] if enough else None}
