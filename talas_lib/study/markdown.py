"""A study's tables as Markdown: ours, what is missing, what it says, and the paper's numbers in blocks of their own below."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from talas_lib.spread import AVERAGE
from talas_lib.study import cost, effects, paper_tables, wording
from talas_lib.study.blocks import Block
from talas_lib.study.tabulation import AVERAGES, MINUTES, UNSEEN, is_empty, tasks_of
from talas_lib.study.wording import signed

NAMES = {
    "banking77": "Banking77",
    "tweet": "Tweet",
    "emotion": "Emotion",
    "mrpc": "MRPC",
    "scitail": "SciTail",
    "wic": "WiC",
    "sick": "SICK",
    "sts12": "STS12",
    "stsb": "STS-B",
    "tweet_eval": "TweetEval",
    "avg_in": "Avg-In",
    "avg_out": "Avg-Out",
    "avg": "Avg",
    UNSEEN: "Avg, unseen pairs",
    MINUTES: "training, min",
    "lambda_max": "largest eigenvalue",
}
_NOTHING = "–"
_MARKS = "¹²³⁴⁵⁶⁷⁸⁹"
_HOW = (
    "Scores are 0 to 100, mean ± standard deviation over n seeds (runs that differ in nothing else). Differences of Avg are to"
    " {baseline}, paired by seed, with Student's 95 % interval over the seeds and the 95 % interval of 1,000 resamples of the"
    " test items; neither is corrected for the number of rows. Unseen pairs: Avg without the test pairs that share a sentence"
    " with the training corpus."
)


def page(
    name: str, title: str, blocks: Sequence[tuple[Block, pd.DataFrame, str, pd.DataFrame]], paper: str | None
) -> str:
    """The page of a table. blocks: each with its table (tabulation.block_table), what it says in words, and effects.effects."""
    parts = [f"# {name}: {title}"]
    for block, table, words, added in blocks:
        parts += [f"## {block.teacher} to {block.student}", setting(block), own_table(block, table), missing(block)]
        how = cost.HOW if cost.reckoned(block) else cost.CLOCK
        parts += [words, f"{_HOW.format(baseline=block.baseline)} {how}", parts_table(added)]
    if paper is not None:
        parts += list(paper_blocks(paper, [block for block, *_ in blocks]))
    return "\n\n".join(part for part in parts if part) + "\n"


def setting(block: Block) -> str:
    """What all runs of a block share, in a sentence."""
    p = block.base
    asked = block.cells[0].resolved
    sentences = "all" if p.max_sentences is None else f"{p.max_sentences:,}"
    return (
        f"{sentences} sentences of {asked.corpus_spec.name}, {p.epochs} epochs, batches of {p.batch_size}, learning rate"
        f" {p.lr:g}, {p.pooling} pooling, trained in {p.precision}, scored in {block.precision} on `{block.suite}`, where a row"
        " does not say otherwise."
    )


def own_table(block: Block, table: pd.DataFrame) -> str:
    """Our rows."""
    names = [*tasks_of(block), *AVERAGES, UNSEEN, *block.other_tasks]
    shown = [name for name in names if name in table.columns and table[name].notna().any()]
    heads = [
        "",
        "n",
        *(NAMES.get(name, name) for name in shown),
        "difference of Avg",
        "over seeds",
        "over items",
        NAMES[MINUTES],
    ]
    return _table(heads, (_own_row(row, shown) for row in table.to_dict("records")))


def _own_row(row: Mapping[Any, Any], shown: Sequence[str]) -> list[str]:
    cells = [str(row["row"]), _NOTHING if is_empty(row["n"]) else f"{row['n']:.0f}"]
    cells += [mean_sd(row, name) for name in shown]
    cells.append(_NOTHING if is_empty(row["difference"]) else signed(row["difference"]))
    cells += [_interval(row[f"{name} low"], row[f"{name} high"]) for name in ("difference", "items")]
    return [*cells, mean_sd(row, MINUTES, digits=1)]


def mean_sd(row: Mapping[Any, Any], name: str, digits: int = 2) -> str:
    """`mean ± sd`, the mean alone without a deviation, a dash for neither."""
    mean, sd = (row.get(column, math.nan) for column in (name, f"{name} sd"))
    if is_empty(mean):
        return _NOTHING
    return f"{mean:.{digits}f}" + ("" if is_empty(sd) else f" ± {sd:.{digits}f}")


def _interval(low: float, high: float) -> str:
    return _NOTHING if is_empty(low) or is_empty(high) else f"{signed(low)} to {signed(high)}"


def parts_table(table: pd.DataFrame) -> str:
    """What each part of the objective adds, and by task; empty for an empty table. table: effects.effects of a block."""
    if table.empty:
        return ""
    ours = table[table["task"] == AVERAGE]
    rows = [
        [
            row["part"],
            row["beside"],
            signed(row["difference"]),
            _interval(row["low"], row["high"]),
            str(row["contrasts"]),
            str(row["seeds"]),
        ]
        for row in ours.to_dict("records")
    ]
    heads = ["part", "beside", "adds to Avg", "over seeds", "contrasts", "seeds"]
    parts = ["### What each part adds", _table(heads, rows, left=2)]
    means = table[(table["beside"] == effects.MEAN) & (table["task"] != AVERAGE)]
    if len(means):
        found = {(row["task"], row["part"]): row for row in means.to_dict("records")}
        names = list(dict.fromkeys(means["part"]))
        by_task = [
            [NAMES.get(task, task), *(_effect(found[task, name]) for name in names)]
            for task in dict.fromkeys(means["task"])
        ]
        parts += ["The means by task:", _table(["", *names], by_task)]
    parts.append(
        "Rows that differ in one part alone, paired by seed, with Student's 95 % interval over the seeds; a mean rests on"
        " several such contrasts, and its interval on the residual variance of all rows in them, seeds as blocks. No interval"
        " is corrected for their number, and none is over test items. SimCSE as a method has another temperature than the"
        " part."
    )
    return "\n\n".join(parts)


def _effect(row: Mapping[Any, Any]) -> str:
    return signed(row["difference"]) + ("" if is_empty(row["low"]) else f" ({_interval(row['low'], row['high'])})")


def missing(block: Block) -> str:
    """The rows and seeds that are not on record; empty when all are."""
    gone = [f"{label} (seeds {', '.join(map(str, seeds))})" for label, seeds in block.absent().items()]
    gone += [f"encoder {name}" for name, record in block.encoders.items() if record is None]
    return f"Not on record yet: {'; '.join(gone)}." if gone else ""


# ---- the paper


def paper_blocks(name: str, blocks: Sequence[Block]) -> Iterable[str]:
    """The paper's table, a block a pair, with footnotes on what is known to be wrong in it.

    blocks: ours; a pair of the paper's is matched with the same pair of ours, or with the first.
    """
    yield "## The paper's numbers"
    yield (
        f"arXiv 2606.21851v1, {name.replace('table', 'Table ')}: one run a number, mostly of other models. They stand beside ours"
        " to compare the order of rows and the size of differences, not their level; `ours` names the row above of the same"
        " method, where several fit the one nearest to the paper's settings."
    )
    pairs = paper_tables.pairs(name)
    ids = dict.fromkeys(error for rows in pairs.values() for row in rows for error in row.errors.values())
    marks = {error: _MARKS[place] for place, error in enumerate(ids)}
    for (teacher, student), rows in pairs.items():
        block = next((b for b in blocks if (b.teacher, b.student) == (teacher, student)), next(iter(blocks), None))
        if teacher:
            yield f"### {teacher} to {student}"
        columns = [column for column in NAMES if any(column in row.numbers for row in rows)]
        heads = ["paper", "ours", *(NAMES[column] for column in columns)]
        yield _table(heads, (_paper_row(row, columns, marks, block) for row in rows), left=2)
    known = paper_tables.errors()
    yield "\n\n".join(f"{mark} {error}: {known[error]}." for error, mark in marks.items())


def _paper_row(
    row: paper_tables.Row, columns: Sequence[str], marks: Mapping[str, str], block: Block | None
) -> list[str]:
    ours = paper_tables.counterpart(row, block) if block is not None else None
    cells = [row.name, ours or _NOTHING]
    for column in columns:
        number = row.numbers.get(column)
        mark = marks[row.errors[column]] if column in row.errors else ""
        cells.append(_NOTHING if number is None else f"{number:.2f}{mark}")
    return cells


# ---- tuning, and Markdown itself


def tuning_page(title: str, settings: pd.DataFrame, blocks: Iterable[Block]) -> str:
    """The page of the tuning table: every setting with its criterion, the chosen ones marked, and what is not on record."""
    suites = [column for column in settings.columns if column not in _TUNED]
    heads = ["method", "learning rate", "pooling", *suites, "criterion", "chosen"]
    rows = []
    for row in settings.to_dict("records"):
        numbers = [_NOTHING if is_empty(row[name]) else f"{row[name]:.2f}" for name in (*suites, "criterion")]
        method = f"{row['method']} + {row['optimizer']}" + (f", {row['method_params']}" if row["method_params"] else "")
        rows.append([method, f"{row['lr']:g}", row["pooling"], *numbers, "yes" if row["chosen"] else ""])
    how = f"The criterion is the mean of {' and '.join(suites)}; no test split of the paper's tasks enters it."
    parts = [f"# {title}", how, _table(heads, rows, left=3), *map(missing, blocks), wording.tuning(settings, blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


_TUNED = ("method", "optimizer", "teacher", "method_params", "lr", "pooling", "criterion", "chosen")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """left: so many columns are of text."""
    lines = [heads, ["---" if place < left else "---:" for place in range(len(heads))], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
