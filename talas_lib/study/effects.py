"""What each part of the objective adds, and ASAM: a table with every subset of the parts read as a factorial experiment.

Each row of such a table is one subset with one optimizer. Two rows that differ in one part alone are a contrast; their mean over
everything else rests on all of them, so that it tells smaller differences apart than any two rows do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from talas_lib.study.blocks import Block
from talas_lib.study.wording import signed
from talas_lib.uncertainty import t_interval

PARTS = {"tamd": "TAMD", "lasd": "LASD", "simcse": "SimCSE"}
ANCHOR, ASAM = "TAMD", "ASAM"  # without the first nothing ties the student to the teacher
MEAN = "mean of the rows with TAMD"
COLUMNS = ["part", "beside", "difference", "low", "high", "contrasts", "seeds"]

Design = tuple[frozenset[str], str]  # parts, optimizer


@dataclass(frozen=True)
class _Contrast:
    """One part's difference of Avg by seed. rest: the other parts; beside: they and the optimizer in words."""

    rest: frozenset[str]
    beside: str
    by_seed: Mapping[int, float]


def effects(block: Block) -> pd.DataFrame:
    """COLUMNS: what each part adds to Avg, and ASAM to AdamW, points, paired by seed with Student's 95 % interval.

    A row a contrast, and one with `beside` MEAN over those with TAMD on both sides: seed by seed the mean of the contrasts, over
    the seeds that all of them have. Empty unless the block's rows are subsets of the parts and differ in these and the
    optimizer alone.
    """
    scores = _scores(block)
    rows: list[dict[str, Any]] = []
    for part in (*PARTS.values(), ASAM):
        found = list(_contrasts(part, scores))
        rows += [_row(part, contrast.beside, [contrast]) for contrast in found]
        anchored = [contrast for contrast in found if ANCHOR in contrast.rest]
        if len(anchored) > 1:
            rows.append(_row(part, MEAN, anchored))
    return pd.DataFrame([row for row in rows if row["seeds"]], columns=COLUMNS)


def in_words(table: pd.DataFrame) -> str:
    """The mean effects in a sentence, and the range of TAMD's; empty for an empty table."""
    means = table[table["beside"] == MEAN].to_dict("records")
    if not means:
        return ""
    said = [f"{row['part']} {signed(row['difference'])}{_interval(row)}" for row in means]
    seeds = min(row["seeds"] for row in means)
    text = (
        f"Beside TAMD, mean over all else that varies, paired over {seeds} seed{'s' if seeds > 1 else ''}:"
        f" {', '.join(said)}."
    )
    anchor = table.loc[table["part"] == ANCHOR, "difference"]
    return text + (f" TAMD itself adds {anchor.min():.2f} to {anchor.max():.2f}." if len(anchor) else "")


def _interval(row: Mapping[Any, Any]) -> str:
    return "" if pd.isna(row["low"]) else f" ({signed(row['low'])} to {signed(row['high'])})"


def _scores(block: Block) -> dict[Design, dict[int, float]]:
    """Avg by seed of each design; empty where the block is no table of subsets."""
    found: dict[Design, dict[int, float]] = {}
    for indices in block.groups().values():
        p = block.resolved[indices[0]]
        parts = _parts(p)
        if parts is None or (parts, p.optimizer) in found:
            return {}
        found[parts, p.optimizer] = {block.resolved[i].seed: float(block.evaluation(i)["avg"]) for i in indices}
    return found if len({parts for parts, _ in found}) > 1 else {}


def _parts(p: Any) -> frozenset[str] | None:
    """The parts with a weight, None for a method that is not made of them."""
    if p.method == "simcse":
        return frozenset({PARTS["simcse"]})
    if p.method != "talas":
        return None
    return frozenset(words for name, words in PARTS.items() if getattr(p.method_config, f"weight_{name}") != 0)


def _contrasts(part: str, scores: Mapping[Design, Mapping[int, float]]) -> Iterator[_Contrast]:
    for (parts, optimizer), own in scores.items():
        if part == ASAM:
            without: Design = (parts, "adamw")
            rest, there = parts, optimizer == "asam"
        else:
            rest, there = parts - {part}, part in parts
            without = (rest, optimizer)
        if there and without in scores:
            theirs = scores[without]
            named = " + ".join(words for words in PARTS.values() if words in rest)
            beside = named if part == ASAM else f"{named}, {optimizer}"
            yield _Contrast(rest, beside, {seed: own[seed] - theirs[seed] for seed in own if seed in theirs})


def _row(part: str, beside: str, contrasts: list[_Contrast]) -> dict[str, Any]:
    seeds = [seed for seed in contrasts[0].by_seed if all(seed in c.by_seed for c in contrasts)]
    row: dict[str, Any] = {"part": part, "beside": beside, "contrasts": len(contrasts), "seeds": len(seeds)}
    if seeds:
        interval = t_interval([float(np.mean([c.by_seed[seed] for c in contrasts])) for seed in seeds])
        row |= {"difference": interval.value, "low": interval.low, "high": interval.high}
    return row
