"""What a study's table shows and what it does not, in sentences built from its numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from talas_lib.study.blocks import Block
from talas_lib.study.tabulation import ENCODER, OWN, REFERENCE, is_empty, tasks_of
from talas_lib.uncertainty import mean_and_sd

_KINDS = {
    ("both", 1): "Above {base} by more than seeds and test items explain",
    ("both", -1): "Below {base} by more than seeds and test items explain",
    ("seeds", 1): "Above {base} by more than the seeds explain, while the test items {items}",
    ("seeds", -1): "Below {base} by more than the seeds explain, while the test items {items}",
    ("items", 1): "Above {base} by more than the test items explain, while the seeds {seeds}",
    ("items", -1): "Below {base} by more than the test items explain, while the seeds {seeds}",
    ("neither", 0): "Not told apart from {base}",
    ("unknown", 0): "Beside {base}, with one seed and no results by item to judge by",
}
_EQUAL = 0.005  # points that two digits do not show
_APART, TOGETHER, _OPEN = "tell them apart", "do not tell them apart", "say nothing"


Row = Mapping[Any, Any]  # a row of tabulation.block_table


def signed(value: float) -> str:
    """Two digits with their sign, +0.00 for what rounds to nothing from either side."""
    return f"{round(value, 2) + 0.0:+.2f}"


def finding(block: Block, table: pd.DataFrame) -> str:
    """Who is first and by how much, and which differences to the baseline the seeds and the test items do not tell apart:
    Markdown, a paragraph and a list.

    table: of this block (tabulation.block_table).
    """
    rows = table.to_dict("records")
    own = [row for row in rows if row["kind"] == OWN and row["n"] > 0]
    if not own:
        return "Nothing of this table is on record yet."
    ranked = sorted(own, key=lambda row: -row["avg"])
    references = [row for row in rows if row["kind"] == REFERENCE]
    lead = " ".join([*_levels(references), *_ready_made(rows), _order(ranked, block.baseline)])
    points = _no_gain(references, ranked)
    if len(ranked) > 1 and any(row["row"] == block.baseline for row in ranked):
        points += [*_against(ranked, block.baseline), *_by_task(block, own)]
    return "\n\n".join(part for part in (lead, "\n".join(f"- {point}" for point in points)) if part)


def _levels(references: Sequence[Row]) -> list[str]:
    """Averages of the references."""
    teachers = [row for row in references if str(row["row"]).startswith("teacher")]
    untrained = [row for row in references if row not in teachers]
    if not teachers or not untrained:
        return []
    better = max(untrained, key=lambda row: row["avg"])
    return [f"The teacher averages {teachers[0]['avg']:.2f}, the {better['row']} {better['avg']:.2f}."]


def _ready_made(rows: Sequence[Row]) -> list[str]:
    """Averages of the encoders that are only evaluated."""
    found = sorted(
        (row for row in rows if row["kind"] == ENCODER and not is_empty(row["avg"])), key=lambda row: -row["avg"]
    )
    names = [f"{row['row']} {row['avg']:.2f}" for row in found]
    return [f"Ready-made: {', '.join(names)}."] if names else []


def _order(ranked: Sequence[Row], baseline: str) -> str:
    first = ranked[0]
    if len(ranked) == 1:
        return f"{_score(first)} stands alone."
    text = f"{_score(first)} is first of {len(ranked)}"
    if first["row"] == baseline:
        return f"{text}, {first['avg'] - ranked[1]['avg']:.2f} above the next, {ranked[1]['row']}."
    for place, row in enumerate(ranked, start=1):
        if row["row"] == baseline:
            return f"{text}; {_score(row)} is number {place}, {first['avg'] - row['avg']:.2f} below."
    return f"{text}."


def _no_gain(references: Sequence[Row], ranked: Sequence[Row]) -> list[str]:
    """The rows that training has not brought above the better untrained student."""
    untrained = [row for row in references if not str(row["row"]).startswith("teacher")]
    if not untrained:
        return []
    better = max(untrained, key=lambda row: row["avg"])
    below = [f"{row['row']} ({signed(row['avg'] - better['avg'])})" for row in ranked if row["avg"] <= better["avg"]]
    if len(below) == len(ranked) > 1:
        return [f"No row is above the {better['row']}: {', '.join(below)}."]
    return [f"Not above the {better['row']}: {', '.join(below)}."] if below else []


def _score(row: Row) -> str:
    spread = f" (sd {row['avg sd']:.2f} over {row['n']:.0f} seeds)" if row["n"] > 1 else " (one seed)"
    return f"{row['row']} with {row['avg']:.2f}{spread}"


def _against(ranked: Sequence[Row], baseline: str) -> list[str]:
    """A sentence for each kind of difference to the baseline."""
    found: dict[str, list[str]] = {}
    for row in ranked:
        if row["row"] == baseline:
            continue
        if is_empty(row["difference"]):
            found.setdefault("With no seed in common", []).append(str(row["row"]))
        else:
            found.setdefault(_kind(row, baseline), []).append(f"{row['row']} ({signed(row['difference'])})")
    return [f"{kind}: {', '.join(names)}." for kind, names in found.items()]


def _kind(row: Row, baseline: str) -> str:
    said = verdicts(row)
    telling = [name for name, verdict in said.items() if verdict == _APART]
    key = "both" if len(telling) == 2 else telling[0] if telling else "neither"
    if set(said.values()) == {_OPEN}:
        key = "unknown"
    side = 0 if key in ("neither", "unknown") else 1 if row["difference"] > 0 else -1
    return _KINDS[key, side].format(base=baseline, **said)


_COLUMNS = {"seeds": "difference", "items": "items"}


def verdicts(row: Row) -> dict[str, str]:
    """What the `seeds` and the test `items` say of a row and the baseline: TOGETHER where they do not tell the two apart."""
    return {name: _says(row[f"{column} low"], row[f"{column} high"]) for name, column in _COLUMNS.items()}


def _says(low: float, high: float) -> str:
    if is_empty(low) or is_empty(high):
        return _OPEN
    return TOGETHER if low <= 0 <= high else _APART


def _by_task(block: Block, own: Sequence[Row]) -> Iterable[str]:
    """On which tasks the baseline is first, and who is on the others: row by row, those of most tasks first."""
    tasks = [task for task in tasks_of(block) if task in own[0]]
    best = {task: max(own, key=lambda row: row[task]) for task in tasks}
    (theirs,) = (row for row in own if row["row"] == block.baseline)
    won = [task for task in tasks if best[task][task] - theirs[task] < _EQUAL]
    yield f"By task {block.baseline} is first on {len(won)} of {len(tasks)}{_named(won)}."
    elsewhere: dict[str, list[str]] = {}
    for task in tasks:
        if task not in won:
            lead = best[task][task] - theirs[task]
            elsewhere.setdefault(str(best[task]["row"]), []).append(f"{task} {signed(lead)}")
    if elsewhere:
        winners = sorted(elsewhere.items(), key=lambda item: -len(item[1]))
        yield "First elsewhere: " + "; ".join(f"{row} ({', '.join(where)})" for row, where in winners) + "."


def _named(tasks: Sequence[str]) -> str:
    return f" ({', '.join(tasks)})" if tasks else ""


def seeds_elsewhere(block: Block, others: Iterable[Block]) -> str:
    """How much seeds change the baseline, from another table, for a block whose rows have one seed each; else empty."""
    baseline = block.groups().get(block.baseline, [])
    if not baseline or any(len(indices) > 1 for indices in block.groups().values()):
        return ""
    run_id = block.members[baseline[0]].id
    for other in others:
        for label, indices in other.groups().items():
            ids = [other.members[i].id for i in indices]
            if run_id in ids and len(ids) > 1 and other.suite == block.suite:
                _, sd = mean_and_sd([other.evaluation(i)["avg"] for i in indices])
                return (
                    f"One seed a row: in {other.table.name} Avg of {label} has a standard deviation of {sd:.2f} over {len(ids)}"
                    " seeds, and differences of that size may be chance."
                )
    return "One seed a row: differences of a few tenths may be chance."


def tuning(settings: pd.DataFrame, blocks: Iterable[Block]) -> str:
    """What was chosen for each method, or, while settings lack a score, what is best of those that have one, which is no choice
    yet; a list in Markdown.

    settings: see tabulation.choose; blocks: those of the tuning table.
    """
    parts = [
        f"{row['method']} + {row['optimizer']}: lr {row['lr']:g}, {row['pooling']} pooling ({row['criterion']:.2f})"
        for row in settings[settings["chosen"]].to_dict("records")
    ]
    waiting = sum(len(seeds) for block in blocks for seeds in block.absent().values())
    listed = "\n".join(f"- {part}" for part in parts)
    if not waiting:
        return f"Chosen:\n\n{listed}"
    lacking = f"Nothing is chosen yet: {'1 run lacks' if waiting == 1 else f'{waiting} runs lack'} a score."
    return f"{lacking} Best of what is on record:\n\n{listed}" if parts else lacking
