"""The bootstrap over test items of a study's tables, kept beside its records with the runs it rests on.

Results by test item are large and stay in `outputs`; the intervals computed from them are small and are kept in
`results/<report>/bootstrap/<table>.csv`, where they survive without. A row is computed anew when its runs, those of the baseline
or the evaluation are no longer the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from talas_lib import spread
from talas_lib.errors import TalasError
from talas_lib.files import atomic_write_text
from talas_lib.study import on_record

if TYPE_CHECKING:
    from talas_lib.study.blocks import Block

RESAMPLES = 1000
_VALUES = ["difference", "low", "high", "p", "n", "seeds"]
_RESTS_ON = ["teacher", "student", "group", "runs", "baseline", "baseline_runs", "evaluation"]
COLUMNS = ["teacher", "student", "group", "task", *_VALUES, "runs", "baseline", "baseline_runs", "evaluation"]


def update(block: Block, baseline: str, *, progress: Any = None) -> pd.DataFrame:
    """Differences to the baseline group as spread.bootstrap_table gives them: kept ones, and those that can be computed here.

    Groups whose results by item are gone and of which nothing is kept have no row. Writes the file when something was computed.
    """
    groups = block.groups()
    if baseline not in groups:
        return pd.DataFrame(columns=["group", "task", *_VALUES])
    asked = [_key(block, label, baseline) for label in groups if label != baseline]
    kept = _read(_file(block))
    own = kept.merge(pd.DataFrame(asked, columns=_RESTS_ON), on=_RESTS_ON, how="inner") if asked else kept.iloc[:0]
    open_ = [
        key["group"] for key in asked if key["group"] not in set(own["group"]) and _items_there(block, key["group"])
    ]
    if open_ and _items_there(block, baseline):
        fresh = spread.bootstrap_table(block, baseline, groups=open_, resamples=RESAMPLES, progress=progress)
        keys = pd.DataFrame([key for key in asked if key["group"] in open_])
        fresh[["difference", "low", "high", "p"]] = fresh[["difference", "low", "high", "p"]].astype(float).round(4)
        own = pd.concat([own, fresh.merge(keys, on="group")[COLUMNS]], ignore_index=True)
        elsewhere = kept[(kept["teacher"] != block.teacher) | (kept["student"] != block.student)]
        _write(_file(block), pd.concat([elsewhere, own], ignore_index=True))
    order = {label: place for place, label in enumerate(groups)}
    own = own.sort_values("group", key=lambda column: column.map(order), kind="stable")
    return own[["group", "task", *_VALUES]].reset_index(drop=True)


def _key(block: Block, label: str, baseline: str) -> dict[str, str]:
    """What a row rests on."""
    ids = {name: " ".join(block.members[i].id for i in block.groups()[name]) for name in (label, baseline)}
    suite = block.evaluation(0)["suite"]
    evaluation = f"{suite['name']} {suite['data']} {suite['precision']} version {suite['version']}"
    values = (block.teacher, block.student, label, ids[label], baseline, ids[baseline], evaluation)
    return dict(zip(_RESTS_ON, values, strict=True))


def _items_there(block: Block, label: str) -> bool:
    try:
        for index in block.groups()[label]:
            block.items(index)
    except TalasError:
        return False
    return True


def _file(block: Block) -> Path:
    return on_record.folder(block.report) / "bootstrap" / f"{block.table.name}.csv"


def _read(file: Path) -> pd.DataFrame:
    """The kept rows; none for a file that is not there or is not of this form, which is then made again."""
    try:
        table = pd.read_csv(file, keep_default_na=False, na_values=[""])
    except (OSError, ValueError):
        return pd.DataFrame(columns=COLUMNS)
    return table if list(table.columns) == COLUMNS else pd.DataFrame(columns=COLUMNS)


def _write(file: Path, table: pd.DataFrame) -> None:
    atomic_write_text(file, table.to_csv(index=False, lineterminator="\n"))
