"""What each part of the objective adds, and ASAM: a table with every subset of the parts read as a factorial experiment.

Each row of such a table is one subset with one optimizer. Two rows that differ in one part alone are a contrast; their mean over
everything else rests on all of them, so that it tells smaller differences apart than any two rows do.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from talas_lib.spread import AVERAGE
from talas_lib.study.blocks import Block
from talas_lib.study.tabulation import tasks_of
from talas_lib.study.wording import signed
from talas_lib.uncertainty import t_interval

PARTS = {"tamd": "TAMD", "lasd": "LASD", "simcse": "SimCSE"}
ANCHOR, ASAM = "TAMD", "ASAM"  # without the first nothing ties the student to the teacher
ALONE = (
    "SimCSE as a method"  # another temperature than the part: no subset of TALAS, yet ASAM's effect on it can be told
)
MEAN = "mean of the rows with TAMD"
COLUMNS = ["task", "part", "beside", "difference", "low", "high", "contrasts", "seeds"]

Design = tuple[frozenset[str], str]  # parts, optimizer
Scores = Mapping[Design, Mapping[int, float]]  # by seed


@dataclass(frozen=True)
class _Contrast:
    """Two designs that differ in one part. rest: the other parts; beside: they and the optimizer in words."""

    rest: frozenset[str]
    beside: str
    designs: tuple[Design, Design]


def effects(block: Block) -> pd.DataFrame:
    """COLUMNS: what each part adds to Avg, and ASAM to AdamW, in points, with 95 % intervals over seeds.

    A row a contrast, paired by seed with Student's interval, and one with `beside` MEAN over those with TAMD on both sides: the
    mean of the contrasts over the seeds that all of them have. Its interval is of the residual variance of all rows in it, seeds
    as blocks, with (rows - 1)(seeds - 1) degrees of freedom: the means of two or three seeds may agree by chance. The means also
    by task. Empty unless the block's rows are subsets of the parts and differ in these and the optimizer alone.
    """
    rows: list[dict[str, Any]] = []
    for task in (AVERAGE, *tasks_of(block)):
        scores = _scores(block, task)
        for part in (*PARTS.values(), ASAM):
            found = list(_contrasts(part, scores))
            if task == AVERAGE:
                rows += [_single(contrast, scores) | {"part": part} for contrast in found]
            anchored = [contrast for contrast in found if ANCHOR in contrast.rest]
            if len(anchored) > 1:
                rows.append(_mean(anchored, scores) | {"task": task, "part": part})
    return pd.DataFrame([row for row in rows if row["seeds"]], columns=COLUMNS)


def in_words(table: pd.DataFrame) -> str:
    """The mean effects on Avg in a sentence, and the range of TAMD's; empty for an empty table."""
    ours = table[table["task"] == AVERAGE]
    means = ours[ours["beside"] == MEAN].to_dict("records")
    if not means:
        return ""
    said = [f"{row['part']} {signed(row['difference'])}{_interval(row)}" for row in means]
    seeds = min(row["seeds"] for row in means)
    text = f"Beside TAMD, mean over all else that varies, {seeds} seed{'s' if seeds > 1 else ''}: {', '.join(said)}."
    anchor = ours.loc[ours["part"] == ANCHOR, "difference"]
    return text + (f" TAMD itself adds {anchor.min():.2f} to {anchor.max():.2f}." if len(anchor) else "")


def _interval(row: Mapping[Any, Any]) -> str:
    return "" if pd.isna(row["low"]) else f" ({signed(row['low'])} to {signed(row['high'])})"


def _scores(block: Block, task: str) -> dict[Design, dict[int, float]]:
    """A task's score by seed, of each design; empty where the block is no table of subsets."""
    found: dict[Design, dict[int, float]] = {}
    for indices in block.groups().values():
        p = block.resolved[indices[0]]
        parts = _parts(p)
        if parts is None or (parts, p.optimizer) in found:
            return {}
        found[parts, p.optimizer] = {block.resolved[i].seed: _score(block.evaluation(i), task) for i in indices}
    return found if len({parts for parts, _ in found}) > 1 else {}


def _score(record: Mapping[str, Any], task: str) -> float:
    return float(record["avg"] if task == AVERAGE else record["tasks"][task]["score"])


def _parts(p: Any) -> frozenset[str] | None:
    """The parts with a weight, None for a method that is not made of them."""
    if p.method == "simcse":
        return frozenset({ALONE})
    if p.method != "talas":
        return None
    return frozenset(words for name, words in PARTS.items() if getattr(p.method_config, f"weight_{name}") != 0)


def _contrasts(part: str, scores: Scores) -> Iterator[_Contrast]:
    for parts, optimizer in scores:
        if part == ASAM:
            without: Design = (parts, "adamw")
            rest, there = parts, optimizer == "asam"
        else:
            rest, there = parts - {part}, part in parts
            without = (rest, optimizer)
        if there and without in scores:
            named = " + ".join(words for words in (*PARTS.values(), ALONE) if words in rest)
            beside = named if part == ASAM else f"{named}, {optimizer}"
            yield _Contrast(rest, beside, ((parts, optimizer), without))


def _single(contrast: _Contrast, scores: Scores) -> dict[str, Any]:
    own, theirs = (scores[design] for design in contrast.designs)
    apart = [own[seed] - theirs[seed] for seed in own if seed in theirs]
    row: dict[str, Any] = {"task": AVERAGE, "beside": contrast.beside, "contrasts": 1, "seeds": len(apart)}
    if apart:
        interval = t_interval(apart)
        row |= {"difference": interval.value, "low": interval.low, "high": interval.high}
    return row


def _mean(contrasts: Sequence[_Contrast], scores: Scores) -> dict[str, Any]:
    designs = list(dict.fromkeys(design for contrast in contrasts for design in contrast.designs))
    seeds = [seed for seed in scores[designs[0]] if all(seed in scores[design] for design in designs)]
    row: dict[str, Any] = {"beside": MEAN, "contrasts": len(contrasts), "seeds": len(seeds)}
    if not seeds:
        return row
    cells = np.array([[scores[design][seed] for seed in seeds] for design in designs])
    of = dict(zip(designs, cells.mean(axis=1), strict=True))
    value = float(np.mean([of[own] - of[theirs] for own, theirs in (c.designs for c in contrasts)]))
    reach = _reach(cells, len(contrasts))
    return row | {"difference": value, "low": value - reach, "high": value + reach}


def _reach(cells: np.ndarray, contrasts: int) -> float:
    """Half the interval of a mean over contrasts of distinct rows; cells `[rows, seeds]`. NaN for one seed."""
    from scipy import stats

    rows, seeds = cells.shape
    freedom = (rows - 1) * (seeds - 1)
    if not freedom:
        return math.nan
    residuals = cells - cells.mean(axis=1, keepdims=True) - cells.mean(axis=0, keepdims=True) + cells.mean()
    variance = float((residuals**2).sum()) / freedom
    return float(stats.t.ppf(0.975, freedom)) * math.sqrt(variance * 2 / (contrasts * seeds))
