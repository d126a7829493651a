"""The table `tuned` of a study, each method at the learning rate and pooling that its table `tune` chose, as text for the preset:

    python -m talas_lib.study.tuning cpu-study >> params/presets/cpu-study.yaml

What was chosen is then written where a reader looks for it, and does not change when a record does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from talas_lib import params
from talas_lib.errors import TalasError, exit_code

if TYPE_CHECKING:
    import pandas as pd

SEEDS = (42, 43, 44)


def of(values: Mapping[str, Any]) -> str:
    """The table of a preset's values. TalasError where there is one already, no table `tune`, or a run of that is not on record:
    a choice out of some settings is no choice.
    """
    from talas_lib.study.blocks import Study
    from talas_lib.study.tabulation import TUNE, choose, runs_table

    tables = values.get("tables") or {}
    if "tuned" in tables:
        raise TalasError("the preset has a table `tuned` already; delete it there to choose anew")
    study = Study.open(values)
    if TUNE not in tables:
        raise TalasError(f"the preset has no table `{TUNE}`, so nothing was chosen: see params/presets/cpu-study.yaml")
    asked = {cell.run_id for cell in study.cells if cell.table == TUNE}
    lacking = asked & study.lacking.keys()
    if lacking:
        raise TalasError(
            f"{len(lacking)} of the {len(asked)} runs of table `{TUNE}` are not on record; make them first, with --tables {TUNE}"
        )
    return as_yaml(choose(runs_table(study)))


def as_yaml(settings: pd.DataFrame) -> str:
    """The table, to stand last in a preset. settings: of `tune`, see tabulation.choose."""
    rows = []
    for row in settings[settings["chosen"]].to_dict("records"):
        teachers = ", ".join(str(row["teacher"]).split("+"))
        changes = row["method_params"] or "{}"
        rows.append(
            f"          - [{row['method']}, {changes}, {row['optimizer']}, [{teachers}], {row['lr']:.1e}, {row['pooling']}]"
        )
    head = [
        "",
        "  tuned:                       # chosen by `tune`, written by talas_lib.study.tuning",
        "    title: Each method at its own learning rate and pooling",
        "    paper: table1",
        "    min_lr: null               # a tenth of each peak",
        "    grid:",
        "      - method, method_params, optimizer, teachers, lr, pooling:",
    ]
    return "\n".join([*head, *rows, f"        seed: [{', '.join(map(str, SEEDS))}]"]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Print the table of a preset; the exit code is 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m talas_lib.study.tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", help="a file of params/presets with a table `tune`")
    chosen = parser.parse_args(arguments)
    return exit_code(lambda: sys.stdout.write(of(params.load_preset(chosen.preset))))


if __name__ == "__main__":
    sys.exit(main())
