"""Scores of an encoder on evaluation tasks, from frozen sentence vectors in fp32.

Classification is the macro-F1 of a logistic regression, pairs the average precision of the cosine, similarity the Spearman
correlation of the cosine with people's scores, retrieval the nDCG@10 of the cosine; all times 100.

The probe's L2 penalty weighs more on shorter vectors. Protocol `paper` gives it the vectors as they come, as the released
evaluation does: compare only encoders that are all normalised or all not. The other protocols give it vectors of length 1, so
that no score depends on their scale.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from talas_lib.errors import TalasError, listed
from talas_lib.tasks import Classification, Pairs, Retrieval, Task
from talas_lib.texts import comparison_key

Encode = Callable[[Sequence[str]], np.ndarray]
PROTOCOLS = {"mini": "unit", "paper": "raw", "tiny": "unit"}  # which vectors the probe sees
_MAX_ITER, _SEED, _DEPTH = 200, 42, 10


@dataclass(frozen=True)
class TaskScore:
    """One task's score, 0 to 100 (Spearman may be negative); n: scored rows; seconds: without the encoding.

    details: what the metric has to say beyond the number, such as `converged` and `iterations` of the probe, or, with
    training texts given, `unseen_score` over the `unseen_n` pairs that share no sentence with them.
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


@dataclass(frozen=True)
class SuiteScores:
    """All tasks of a suite. texts: distinct ones encoded, in `encode_seconds`; dim: width of the vectors."""

    protocol: str
    scores: tuple[TaskScore, ...]
    texts: int
    dim: int
    encode_seconds: float

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
        score, details = _score(task, vectors, features, seen)
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
            )
        )
        if on_score is not None:
            on_score(scores[-1])
    return SuiteScores(protocol, tuple(scores), len(vectors.row), vectors.raw.shape[1], encoded)


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


def _score(task: Task, vectors: Vectors, features: Encode, seen: Collection[str]) -> tuple[float, dict[str, Any]]:
    data = task.data
    if isinstance(data, Classification):
        return probe_macro_f1(
            features(data.train_texts), data.train_labels, features(data.test_texts), data.test_labels
        )
    if isinstance(data, Retrieval):
        return ndcg_at_10(vectors.unit(data.queries), vectors.unit(data.documents), data.relevant), {}
    cosines = vectors.cosines(data.left, data.right)
    target = np.array(data.labels if isinstance(data, Pairs) else data.scores)
    metric = _average_precision if isinstance(data, Pairs) else _spearman
    score, details = metric(cosines, target)
    if seen:
        rows = data.unseen_rows(seen)
        enough = len(rows) > 1 and len(np.unique(target[rows])) > 1
        details |= {
            "unseen_n": len(rows),
            "unseen_score": 100 * metric(cosines[rows], target[rows])[0] if enough else None,
        }
    return score, details


def probe_macro_f1(
    train: np.ndarray, train_labels: Sequence[str], test: np.ndarray, test_labels: Sequence[str]
) -> tuple[float, dict[str, Any]]:
    """Macro-F1 of sklearn's logistic regression (L2, C = 1, lbfgs, at most 200 iterations) on the vectors given.

    train `[n, dim]`, test `[m, dim]`. Whether it converged is returned, not warned about: on wide raw vectors 200
    iterations often do not suffice, and the limit is part of the protocol.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    probe = LogisticRegression(max_iter=_MAX_ITER, random_state=_SEED)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe.fit(train, np.array(train_labels))
    stopped = any(issubclass(w.category, ConvergenceWarning) for w in caught)
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn(warning.message, warning.category, stacklevel=2)
    predicted, labels = probe.predict(test), np.array(test_labels)
    details = {
        "accuracy": 100 * float(accuracy_score(labels, predicted)),
        "iterations": int(probe.n_iter_.max()),
        "converged": not stopped,
    }
    return float(f1_score(labels, predicted, average="macro")), details


def ndcg_at_10(queries: np.ndarray, documents: np.ndarray, relevant: Sequence[Any]) -> float:
    """Mean normalised discounted cumulative gain over the ten nearest documents; equal similarities in document order.

    queries `[q, dim]`, documents `[d, dim]`, both of unit length; relevant: for each query {document: gain > 0}.
    """
    depth = min(_DEPTH, len(documents))
    discount = 1 / np.log2(np.arange(2, depth + 2))
    total = 0.0
    for start in range(0, len(queries), 256):
        similarity = queries[start : start + 256] @ documents.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :depth]
        for gains, row in zip(relevant[start : start + 256], nearest, strict=True):
            found = np.array([gains.get(int(i), 0.0) for i in row])
            best = np.sort(np.array(list(gains.values())))[::-1][:depth]
            total += float(found @ discount) / float(best @ discount[: len(best)])
    return total / len(queries)


def _average_precision(cosines: np.ndarray, labels: np.ndarray) -> tuple[float, dict[str, Any]]:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, cosines)), {}


def _spearman(cosines: np.ndarray, scores: np.ndarray) -> tuple[float, dict[str, Any]]:
    """Spearman correlation; 0 where it is undefined because all similarities are equal, as `constant` tells."""
    from scipy.stats import spearmanr

    if np.ptp(cosines) == 0:
        return 0.0, {"constant": True}
    return float(spearmanr(cosines, scores).statistic), {}
