"""The paper's tables (results/paper, arXiv 2606.21851v1): corrected where they are known to be wrong, matched with our rows.

A file has a line a number: the pair, the paper's name of the row, the column, what is printed, what is used here, the id of a
known error in errors.md where there is one, and what a row of ours must have to be its counterpart (method, optimizer, layers).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from talas_lib import params, paths
from talas_lib.comparison import REFERENCE_LABELS
from talas_lib.errors import TalasError, did_you_mean, listed

if TYPE_CHECKING:
    from talas_lib.study.blocks import Block

_SETTINGS = ("num_anchor_layers", "lasd_pairs")
_NUMBER = ("teacher", "student", "row", "column", "printed", "corrected", "error")
COLUMNS = [*_NUMBER, "method", "optimizer", *_SETTINGS, "epochs", "encoder", "source"]
_ERROR = re.compile(r"^\| ([\w-]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """A row of the paper's: numbers by column as corrected, ids of errors by column, and what its counterpart has."""

    name: str
    teacher: str
    student: str
    numbers: dict[str, float]
    errors: dict[str, str]
    match: dict[str, str]


def table(name: str) -> pd.DataFrame:
    """`results/paper/<name>.csv`, all but the numbers as text. TalasError for one that is not there or of another form."""
    folder = paths.root() / "results" / "paper"
    file = folder / f"{name}.csv"
    names = sorted(path.stem for path in folder.glob("*.csv"))
    if not file.is_file():
        raise TalasError(
            f"the paper's table {name!r} is not there.{did_you_mean(name, names)} Accepted: {listed(names)}"
        )
    found = pd.read_csv(file, dtype=str, keep_default_na=False)
    if list(found.columns) != COLUMNS:
        raise TalasError(f"{file} has the columns {listed(found.columns)}, expected {listed(COLUMNS)}")
    return found.astype({"printed": float, "corrected": float})


def errors() -> dict[str, str]:
    """What is known not to add up, by id: the table of `results/paper/errors.md`."""
    text = (paths.root() / "results" / "paper" / "errors.md").read_text(encoding="utf-8")
    found = {name: what.strip() for name, _, _, what in _ERROR.findall(text)}
    return {name: what for name, what in found.items() if name not in ("id", "---")}


def rows(name: str) -> list[Row]:
    """The rows of a table in the paper's order."""
    found = []
    for (teacher, student, row), lines in table(name).groupby(["teacher", "student", "row"], sort=False):
        first = lines.iloc[0]
        match = {key: first[key] for key in ("method", "optimizer", *_SETTINGS, "encoder") if first[key]}
        numbers = dict(zip(lines["column"], lines["corrected"], strict=True))
        known = {column: error for column, error in zip(lines["column"], lines["error"], strict=True) if error}
        found.append(Row(str(row), str(teacher), str(student), numbers, known, match))
    return found


def pairs(name: str) -> dict[tuple[str, str], list[Row]]:
    """The rows of a table by pair of teacher and student."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows(name):
        found.setdefault((row.teacher, row.student), []).append(row)
    return found


def counterpart(row: Row, block: Block) -> str | None:
    """The label of our row of the paper's method and optimizer, as near to the released settings as there is; None for none."""
    method = row.match.get("method")
    if method in REFERENCE_LABELS:
        return REFERENCE_LABELS[method]
    if method == "encoder":
        name = row.match["encoder"]
        return name if name in block.encoders else None
    fitting = [label for label, cells in block.asked_groups.items() if method and _fits(row, cells[0].resolved)]
    return max(fitting, key=block.nearness, default=None)


def _fits(row: Row, p: Any) -> bool:
    if (p.method, p.optimizer) != (row.match["method"], row.match.get("optimizer", p.optimizer)):
        return False
    for name in _SETTINGS:
        if name in row.match and str(getattr(p.method_config, name, None)) != row.match[name]:
            return False
    return bool(set(_SETTINGS) & set(row.match)) or p.method_config == params.load_method(p.method)


def curves(name: str, setting: str) -> Iterator[tuple[str, list[str], dict[str, list[float]]]]:
    """Each pair's averages over a setting: (pair in words, values of the setting, averages by name). For figures."""
    for (teacher, student), of_pair in pairs(name).items():
        along = [row for row in of_pair if setting in row.match]
        if along:
            numbers = {column: [row.numbers[column] for row in along] for column in ("avg_in", "avg_out", "avg")}
            yield f"{teacher} to {student}", [row.match[setting] for row in along], numbers
