"""How sure a comparison is: means and deviations over seeds, paired differences, and a bootstrap over test items."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib.errors import TalasError, did_you_mean, listed
from talas_lib.uncertainty import (
    METRICS,
    Interval,
    difference,
    mean_and_sd,
    resampled,
    shared_items,
    summarize,
    t_interval,
)

if TYPE_CHECKING:
    import pandas as pd

    from talas_lib.comparison import Comparison

AVERAGE = "avg"
_RESAMPLED = ["group", "task", "difference", "low", "high", "p", "n", "seeds"]


def seeds_table(c: Comparison) -> pd.DataFrame:
    """One row a group of runs that differ in the seed alone: `n`, and for each task and `avg` the mean, or `mean ± sd`.

    sd is the sample standard deviation over the seeds (n - 1); scores are 0 to 100.
    """
    import pandas as pd

    rows = {}
    for group in group_rows(c):
        cells = {task: _cell(group["mean"][task], group["sd"][task]) for task in group["mean"]}
        rows[group["group"]] = {"n": group["n"], **cells}
    return pd.DataFrame.from_dict(rows, orient="index")


def _cell(mean: float, sd: float | None) -> str:
    return f"{mean:.2f}" if sd is None else f"{mean:.2f} ± {sd:.2f}"


def group_rows(c: Comparison) -> list[dict[str, Any]]:
    """Each group with its seeds, their number n, and by task and `avg` the mean and the standard deviation (None for n = 1)."""
    found = []
    for label, indices in c.groups().items():
        scores = [_scores(c, i) for i in indices]
        both = {task: mean_and_sd([row[task] for row in scores]) for task in scores[0]}
        found.append(
            {
                "group": label,
                "n": len(indices),
                "seeds": [c.resolved[i].seed for i in indices],
                "mean": {task: mean for task, (mean, _) in both.items()},
                "sd": {task: None if math.isnan(sd) else sd for task, (_, sd) in both.items()},
            }
        )
    return found


def _scores(c: Comparison, index: int) -> dict[str, float]:
    record = c.evaluation(index)
    return {task: row["score"] for task, row in record["tasks"].items()} | {AVERAGE: record["avg"]}


# ---- differences by seed


def differences_table(c: Comparison, baseline: str | None = None) -> pd.DataFrame:
    """Differences to the baseline group, paired by seed: group, task, difference, low, high (95 %, Student's t), n, better.

    baseline: a label of `c.groups()`, None for the first. Seeds that only one side has are left out; groups that share none
    have no row. n: shared seeds, with one of which there is no interval (NaN). better: seeds with a higher score.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    theirs = _by_seed(c, _group(c, baseline))
    for label, indices in c.groups().items():
        ours = _by_seed(c, indices)
        shared = [seed for seed in ours if seed in theirs]
        if ours is theirs or label == _label(c, baseline) or not shared:
            continue
        for task in ours[shared[0]]:
            apart = [ours[seed][task] - theirs[seed][task] for seed in shared]
            better = sum(difference > 0 for difference in apart)
            rows.append({"group": label, "task": task, **_row(t_interval(apart)), "better": better})
    return pd.DataFrame(rows, columns=["group", "task", "difference", "low", "high", "n", "better"])


def _by_seed(c: Comparison, indices: Sequence[int]) -> dict[int, dict[str, float]]:
    return {c.resolved[i].seed: _scores(c, i) for i in indices}


def _row(interval: Interval) -> dict[str, Any]:
    return {"difference": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}


def in_words(c: Comparison) -> str:
    """What the paired differences of the average say, in a sentence a group; empty where no seed is shared."""
    table = differences_table(c)
    first = next(iter(c.groups()))
    return " ".join(_sentence(row, first) for row in table[table["task"] == AVERAGE].to_dict("records"))


def _sentence(row: Mapping[Any, Any], first: str) -> str:
    begin = f"{row['group']} lies {row['difference']:+.2f} from {first}, paired over {row['n']} seed"
    if row["n"] == 1:
        return f"{begin}: with one, a difference of this size may be chance."
    verdict = "the seeds do not tell them apart" if row["low"] <= 0 <= row["high"] else "more than the seeds explain"
    return f"{begin}s (95 % interval {row['low']:+.2f} to {row['high']:+.2f}): {verdict}."


# ---- bootstrap over test items


def bootstrap_table(
    c: Comparison,
    baseline: str | None = None,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    progress: Any = None,
) -> pd.DataFrame:
    """Differences to the baseline group over resampled test items: group, task, difference, low, high (95 %), p, n items, seeds.

    groups: those to compare, None for all. Each group's score is the mean over its seeds, both groups see the same resamples.
    `avg` resamples every task by itself. Tasks without a score by item (clusters) are left out, and then `avg` too. Items are
    drawn as if independent; pairs that share a text are not quite, so their intervals are somewhat narrow. TalasError where
    results by item are missing or damaged. progress: told (group and task done, all).
    """
    import pandas as pd

    own = _label(c, baseline)
    labels = [label for label in (c.groups() if groups is None else groups) if label != own]
    if not labels:
        return pd.DataFrame(columns=_RESAMPLED)
    drawn = _Drawn(c, resamples, seed)
    tasks = c.evaluation(0)["tasks"]
    theirs = _group(c, baseline)
    chosen = [task for task, row in tasks.items() if row["metric"] in METRICS and task in drawn.items(theirs[0])]
    counted = [task for task, row in tasks.items() if row["in_average"]]
    rows: list[dict[str, Any]] = []
    for label in labels:
        ours = c.groups()[label]
        found: dict[str, tuple[float, np.ndarray, int]] = {}
        for task in chosen:
            found[task] = drawn.difference(task, ours, theirs)
            if progress is not None:
                progress(len(found) + len(chosen) * labels.index(label), len(chosen) * len(labels))
        if set(counted) <= found.keys():
            found[AVERAGE] = _averaged([found[task] for task in counted])
        for task, (value, values, n) in found.items():
            interval = summarize(value, values, n)
            rows.append({"group": label, "task": task, **_row(interval), "p": interval.p, "seeds": len(ours)})
    return pd.DataFrame(rows, columns=_RESAMPLED)


class _Drawn:
    """Scores of runs on the resamples of each task, every run once; tasks of equal size are drawn independently."""

    def __init__(self, c: Comparison, resamples: int, seed: int) -> None:
        self._c, self._resamples, self._seed = c, resamples, seed
        self._items: dict[int, Any] = {}
        self._scores: dict[tuple[int, str], np.ndarray] = {}

    def items(self, index: int) -> Any:
        if index not in self._items:
            self._items[index] = self._c.items(index)
        return self._items[index]

    def difference(self, task: str, ours: Sequence[int], theirs: Sequence[int]) -> tuple[float, np.ndarray, int]:
        n = shared_items([self.items(i)[task] for i in (*ours, *theirs)])
        sides = [[self._score(i, task) for i in side] for side in (ours, theirs)]
        return *difference(*sides), n

    def _score(self, index: int, task: str) -> np.ndarray:
        if (index, task) not in self._scores:
            metric = self._c.evaluation(index)["tasks"][task]["metric"]
            seed = (self._seed, zlib.crc32(task.encode()))
            found = resampled(metric, self.items(index)[task], resamples=self._resamples, seed=seed)
            self._scores[index, task] = found
        return self._scores[index, task]


def _averaged(of_tasks: Sequence[tuple[float, np.ndarray, int]]) -> tuple[float, np.ndarray, int]:
    values, drawn, sizes = zip(*of_tasks, strict=True)
    return float(np.mean(values)), np.mean(drawn, axis=0), sum(sizes)


def _label(c: Comparison, baseline: str | None) -> str:
    groups = c.groups()
    label = next(iter(groups)) if baseline is None else baseline
    if label not in groups:
        raise TalasError(
            f"no group {label!r} to compare with.{did_you_mean(label, groups)} There are: {listed(groups)}"
        )
    return label


def _group(c: Comparison, baseline: str | None) -> list[int]:
    return c.groups()[_label(c, baseline)]
