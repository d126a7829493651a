"""A preset's grid as a list of configurations: what the Snakefile runs and what 06 compares."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

from talas_lib.errors import TalasError, did_you_mean, listed
from talas_lib.params.vocabulary import VOCABULARY


def expand_grid(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The configurations of a preset: the product of its `grid`, the last key varying fastest; one without a
    grid.

    A key may name several parameters that vary together: `{"teacher, student": [[minilm-l6, minilm-l3],
    ...]}`. Raises TalasError for an unknown name or a value that is not a list.
    """
    base = {name: copy.deepcopy(value) for name, value in values.items() if name != "grid"}
    axes = [_axis(key, choices) for key, choices in (VOCABULARY["grid"].check(values.get("grid") or {})).items()]
    cells = []
    for choice in itertools.product(*axes):
        cell = copy.deepcopy(base)
        for part in choice:
            cell.update(copy.deepcopy(part))
        cells.append(cell)
    return cells


def _axis(key: Any, choices: Any) -> list[dict[str, Any]]:
    names = [name.strip() for name in str(key).split(",")]
    allowed = [name for name in VOCABULARY if name not in ("grid", "run", "report")]
    for name in names:
        if name not in allowed:
            raise TalasError(
                f"grid: no parameter {name!r} to vary.{did_you_mean(name, allowed)} Accepted: {listed(allowed)}"
            )
    if len(names) == 1 and VOCABULARY[names[0]].type == "list" and _flat(choices):
        raise TalasError(f"grid: {key} is {choices!r}, expected a list of lists, such as {key}: [[one, two], [one]]")
    if not isinstance(choices, list) or not choices:
        raise TalasError(
            f"grid: {key} is {choices!r}, expected a list of values, such as {key}: [{VOCABULARY[names[0]].default!r}]"
        )
    rows = [choice if len(names) > 1 else [choice] for choice in choices]
    for row in rows:
        if not isinstance(row, list) or len(row) != len(names):
            raise TalasError(f"grid: {key} has the entry {row!r}, expected a list of {len(names)} values")
    return [{name: VOCABULARY[name].check(value) for name, value in zip(names, row, strict=True)} for row in rows]


def _flat(choices: Any) -> bool:
    return not isinstance(choices, list) or not choices or any(not isinstance(choice, list) for choice in choices)
