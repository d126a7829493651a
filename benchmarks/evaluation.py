"""Evaluating a student, fp32 beside bf16: seconds by task for encoding and scoring, and how far the scores differ.

    python -m benchmarks.evaluation [--student minilm-l3] [--tasks mini]

By default the paper's nine tasks where TALAS_DATA holds them (81,388 distinct sentences, three large logistic regressions), else
the mini suite. The student is the untrained one with its file's pooling. A sentence that several
tasks share is encoded once and counts for the first. `total` is what `evaluate_suite` took as a whole.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import OUT, default_corpus, row, save
from talas_lib import params, sources
from talas_lib.encoders import Encoder
from talas_lib.evaluate import SuiteScores, evaluate_suite
from talas_lib.tasks import Task

PRECISIONS = ("fp32", "bf16")
BENCH = "evaluation"


class ByTask:
    """Encodes the texts of a suite task by task, and remembers the seconds and the number of texts of each."""

    def __init__(self, encoder: Encoder, tasks: Sequence[Task], precision: str) -> None:
        self.encoder, self.precision = encoder, precision
        self.seconds: dict[str, float] = {}
        self.texts: dict[str, int] = {}
        first: dict[str, str] = {}
        for task in tasks:
            for text in task.data.all_texts:
                first.setdefault(text, task.name)
        self.first = first

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors `[texts, dim]`, not normalised, as every evaluation sees them."""
        out = np.empty((len(texts), self.encoder.output_dim), dtype=np.float32)
        names = np.array([self.first[text] for text in texts])
        for name in dict.fromkeys(names.tolist()):
            rows = np.flatnonzero(names == name)
            began = time.perf_counter()
            out[rows] = self.encoder.encode([texts[i] for i in rows], normalize=False, precision=self.precision)
            self.seconds[name] = time.perf_counter() - began
            self.texts[name] = len(rows)
        return out


def one(encoder: Encoder, tasks: Sequence[Task], precision: str) -> tuple[SuiteScores, list[dict[str, object]]]:
    """Scores and rows of one precision."""
    encode = ByTask(encoder, tasks, precision)
    encoder.encode(list(encode.first)[:256], precision=precision)
    began = time.perf_counter()
    scores = evaluate_suite(encode, tasks)
    total = time.perf_counter() - began
    rows = []
    for score in scores.scores:
        values = {
            "texts": ("", encode.texts.get(score.task, 0)),
            "encoding": ("s", encode.seconds.get(score.task, 0.0)),
            "scoring": ("s", score.seconds),
            "score": ("points", score.score),
        }
        rows += [row(BENCH, precision, name, unit, [v], task=score.task) for name, (unit, v) in values.items()]
    whole = {
        "texts": ("", scores.texts),
        "encoding": ("s", sum(encode.seconds.values())),
        "scoring": ("s", sum(score.seconds for score in scores.scores)),
        "total": ("s", total),
        "score": ("points", scores.avg),
    }
    rows += [row(BENCH, precision, name, unit, [v], task="all") for name, (unit, v) in whole.items()]
    return scores, rows


def measure(student: str, suite: str) -> list[dict[str, object]]:
    """Tidy rows with a column `task`: every precision, and the differences of the others' scores from fp32's."""
    import sklearn.cluster
    import sklearn.linear_model
    import sklearn.metrics  # noqa: F401 (loaded before the clock runs)

    tasks = sources.load_tasks(params.load_tasks(suite))
    encoder = sources.load_student(params.load_student(student)).eval()
    found, rows = {}, []
    for precision in PRECISIONS:
        found[precision], more = one(encoder, tasks, precision)
        rows += more
    exact = {score.task: score.score for score in found["fp32"].scores}
    for precision in PRECISIONS[1:]:
        gaps = {score.task: abs(score.score - exact[score.task]) for score in found[precision].scores}
        for task, gap in gaps.items():
            rows.append(row(BENCH, precision, "difference from fp32", "points", [gap], task=task))
        largest = row(BENCH, precision, "largest difference from fp32", "points", [max(gaps.values())], task="all")
        rows.append(largest)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="minilm-l3")
    parser.add_argument("--tasks", default=None, help="default: paper where TALAS_DATA holds it, else mini")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    suite = chosen.tasks or ("paper" if default_corpus() == "talas15k" else "mini")
    save(measure(chosen.student, suite), "evaluation", chosen.out, student=chosen.student, suite=suite)


if __name__ == "__main__":
    main()
