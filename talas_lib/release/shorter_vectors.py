"""What is left of a student when its vectors are cut to fewer numbers: agreement with the teacher, and scores, at every width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib import agreement

if TYPE_CHECKING:
    import pandas as pd

    from talas_lib.params import TaskSuiteSpec
    from talas_lib.release.publish import Export

NARROWEST = 16
Shorten = Callable[[np.ndarray], np.ndarray]


def widths(dim: int) -> list[int]:
    """The whole width and its halves down to NARROWEST."""
    found = [dim]
    while found[-1] // 2 >= NARROWEST:
        found.append(found[-1] // 2)
    return found


def width_curve(e: Export, suite: TaskSuiteSpec | None = None) -> list[dict[str, Any]]:
    """What is left of the student at each width, by two ways of shortening; one row a width and way.

    how `first`: the first k numbers, as `truncate_dim` of sentence-transformers takes them. how `principal`: centred, then the
    first k principal directions of the training sentences' vectors. pair_spearman and overlap_at_10: agreement with the
    whole vectors of the first teacher on the export's texts (see agreement), 0 to 100; avg: the average score on the
    suite, if one is given.
    """
    from talas_lib import caching
    from talas_lib.corpora import Corpus

    texts = Corpus("compared", e.texts, ("",) * len(e.texts))
    teacher = caching.cache_teacher(e.run.params, texts).vectors(np.arange(len(texts)))
    score = None if suite is None else _scorer(e, suite)
    few, rows = slice(agreement.PAIR_TEXTS), []
    for width in widths(e.whole.shape[1]):
        ways = {"first": partial(_first, width=width), "principal": partial(e.shorten, width=width)}
        for how, shorten in ways.items():
            vectors = shorten(e.whole)
            row: dict[str, Any] = {"width": width, "how": how}
            row["pair_spearman"] = 100 * agreement.pair_spearman(teacher[few], vectors[few])[0]
            row["overlap_at_10"] = 100 * float(agreement.neighbour_overlap(teacher, vectors).mean())
            if score is not None:
                row["avg"] = score(shorten)
            rows.append(row)
    return rows


def _first(vectors: np.ndarray, width: int) -> np.ndarray:
    return np.ascontiguousarray(vectors[:, :width])


def _scorer(e: Export, suite: TaskSuiteSpec) -> Callable[[Shorten], float]:
    """From a way of shortening to the suite's average; every text is encoded once for all of them."""
    from talas_lib import scoring
    from talas_lib.evaluate import evaluate_suite

    what = scoring.Evaluation.of(suite)
    texts = what.texts
    row, whole = {text: i for i, text in enumerate(texts)}, e.student.encode(texts, normalize=False)

    def score(shorten: Shorten) -> float:
        vectors = shorten(whole)
        return evaluate_suite(
            lambda wanted: vectors[[row[text] for text in wanted]], what.tasks, protocol=what.protocol
        ).avg

    return score


def curve_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows of `width_curve`, a line a width, columns (measure, way)."""
    import pandas as pd

    return pd.DataFrame(rows).pivot(index="width", columns="how").sort_index(ascending=False)
