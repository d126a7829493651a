"""A preset's grid or tables as lists of configurations: what the Snakefile runs and what 06 compares."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from talas_lib.errors import TalasError, did_you_mean, listed
from talas_lib.params.strict_yaml import Location
from talas_lib.params.vocabulary import VOCABULARY, Parameter

Where = Callable[[Location], str]  # a place in the preset's file in words, such as `params/presets/x.yaml, line 3`
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_NOT_VARIED = ("grid", "tables", "run", "report")
_TEXTS = {
    "title": Parameter("title", "str", None, "what the table shows, for its heading"),
    "paper": Parameter("paper", "str", None, "the paper's numbers to set beside, results/paper/<name>.csv"),
}
_ENCODERS = Parameter("encoders", "list", [], "files of params/teachers that are scored as they are")
_TABLE_KEYS = (*_TEXTS, "encoders", "grid", *(name for name in VOCABULARY if name not in _NOT_VARIED))


@dataclass(frozen=True)
class Table:
    """A table of a study. cells: the values of its runs, in the order of its grid; encoders: ready-made ones beside them."""

    name: str
    title: str
    paper: str | None
    cells: tuple[dict[str, Any], ...]
    encoders: tuple[str, ...] = ()


def expand_grid(values: Mapping[str, Any], where: Where | None = None) -> list[dict[str, Any]]:
    """The configurations of a preset: the product of its `grid`, the last key varying fastest; one without a
    grid; with `tables` the cells of all of them, in order, shared ones repeated.

    A key may name several parameters that vary together: `{"teacher, student": [[minilm-l6, minilm-l3],
    ...]}`. Raises TalasError, with the place in the file where `where` is given, for an unknown name or a value that
    is not a list.
    """
    return [cell for table in expand_tables(values, where) for cell in table.cells]


def expand_tables(values: Mapping[str, Any], where: Where | None = None) -> tuple[Table, ...]:
    """The tables of a preset, each with its cells; for a preset without `tables`, one named "" with the cells of its grid.

    A table's values lie over the preset's. Raises TalasError as `expand_grid` does.
    """
    given = VOCABULARY["tables"].check(values.get("tables") or {})
    base = {name: value for name, value in values.items() if name not in ("grid", "tables")}
    if not given:
        return (Table("", "", None, tuple(_cells(base, values.get("grid") or {}, ("grid",), where))),)
    if values.get("grid"):
        raise _wrong(where, ("grid",), "a preset has `grid` or `tables`, not both; put this grid into a table")
    return tuple(_table(name, content, base, where) for name, content in given.items())


def select_tables(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The preset with some of its tables only, in its own order; all of them for no names. TalasError for an unknown one."""
    wanted, given = list(names), dict(values.get("tables") or {})
    for name in wanted:
        if name not in given:
            there = f"Accepted: {listed(given)}" if given else "This preset has no tables; leave the names out"
            raise TalasError(f"tables: no table {name!r}.{did_you_mean(name, given)} {there}")
    return {**values, "tables": {name: given[name] for name in given if name in wanted}} if wanted else dict(values)


def cell_suites(cell: Mapping[str, Any]) -> tuple[str, ...]:
    """The suites a run of this cell is scored on: `tasks`, then those `beside`."""
    return tuple(dict.fromkeys([cell.get("tasks", VOCABULARY["tasks"].default), *cell.get("beside", [])]))


# ---- one table


def _table(name: Any, content: Any, base: Mapping[str, Any], where: Where | None) -> Table:
    place: Location = ("tables", name)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _wrong(
            where, place, f"{name!r} names no table; take small letters, digits, `.`, `_`, `-`, such as table1"
        )
    if not isinstance(content, dict):
        raise _wrong(where, place, f"table {name} is {content!r}, expected a mapping such as {{title: ..., grid: ...}}")
    over = {key: _value(name, key, value, where) for key, value in content.items() if key != "grid"}
    if over.get("title") is None:
        raise _wrong(where, place, f"table {name} has no title; write one line on what it shows, title: ...")
    texts = {key: over.pop(key, None) for key in _TEXTS}
    encoders = tuple(over.pop("encoders", []))
    cells = tuple(_table_cells({**base, **over}, content.get("grid", {}), (*place, "grid"), where))
    for number, cell in enumerate(cells):
        if cell in cells[:number]:
            raise _wrong(where, (*place, "grid"), f"table {name} has this cell twice: {_shown(cell, base)}")
    return Table(name, texts["title"], texts["paper"], cells, encoders)


def _value(table: str, key: Any, value: Any, where: Where | None) -> Any:
    """A value of a table other than its grid, checked."""
    place: Location = ("tables", table, key)
    if key not in _TABLE_KEYS:
        guess = did_you_mean(key, _TABLE_KEYS)
        raise _wrong(where, place, f"table {table} has no {key!r}.{guess} Accepted: {listed(_TABLE_KEYS)}")
    parameter = _TEXTS.get(key) or (_ENCODERS if key == "encoders" else VOCABULARY[key])
    try:
        return parameter.check(value)
    except TalasError as error:
        raise _wrong(where, place, f"table {table}: {error}") from None


def _table_cells(base: Mapping[str, Any], grid: Any, place: Location, where: Where | None) -> Iterator[dict[str, Any]]:
    """Cells of a table's grid, or of several grids one after another."""
    if not isinstance(grid, list):
        yield from _cells(base, grid, place, where)
        return
    if not grid:
        raise _wrong(where, place, "grid is an empty list, expected a mapping, or a list of mappings")
    for number, part in enumerate(grid):
        yield from _cells(base, part, (*place, number), where)


def _shown(cell: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in cell.items() if name not in base or base[name] != value}


# ---- one grid


def _cells(base: Mapping[str, Any], grid: Any, place: Location, where: Where | None) -> Iterator[dict[str, Any]]:
    try:
        checked = VOCABULARY["grid"].check(grid)
    except TalasError as error:
        raise _wrong(where, place, str(error)) from None
    axes = [_axis(key, choices, (*place, key), where) for key, choices in checked.items()]
    for choice in itertools.product(*axes):
        cell = copy.deepcopy(dict(base))
        for part in choice:
            cell.update(copy.deepcopy(part))
        yield cell


def _axis(key: Any, choices: Any, place: Location, where: Where | None) -> list[dict[str, Any]]:
    names = [name.strip() for name in str(key).split(",")]
    allowed = [name for name in VOCABULARY if name not in _NOT_VARIED]
    for name in names:
        if name not in allowed:
            guess = did_you_mean(name, allowed)
            raise _wrong(where, place, f"grid: no parameter {name!r} to vary.{guess} Accepted: {listed(allowed)}")
    if len(names) == 1 and VOCABULARY[names[0]].type == "list" and _flat(choices):
        wanted = f"expected a list of lists, such as {key}: [[one, two], [one]]"
        raise _wrong(where, place, f"grid: {key} is {choices!r}, {wanted}")
    if not isinstance(choices, list) or not choices:
        wanted = f"expected a list of values, such as {key}: [{VOCABULARY[names[0]].default!r}]"
        raise _wrong(where, place, f"grid: {key} is {choices!r}, {wanted}")
    rows = [choice if len(names) > 1 else [choice] for choice in choices]
    found = []
    for number, row in enumerate(rows):
        here: Location = (*place, number)
        if not isinstance(row, list) or len(row) != len(names):
            raise _wrong(where, here, f"grid: {key} has the entry {row!r}, expected a list of {len(names)} values")
        try:
            found.append({name: VOCABULARY[name].check(value) for name, value in zip(names, row, strict=True)})
        except TalasError as error:
            raise _wrong(where, here, str(error)) from None
    return found


def _flat(choices: Any) -> bool:
    return not isinstance(choices, list) or not choices or any(not isinstance(choice, list) for choice in choices)


def _wrong(where: Where | None, place: Location, message: str) -> TalasError:
    return TalasError(f"{where(place)}: {message}" if where else message)
