"""The runs that a study's tables ask for, by id, and whether a record still has what they ask.

Torch-free, as on_record is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from talas_lib import params, records
from talas_lib.errors import TalasError

if TYPE_CHECKING:
    from talas_lib.params import ResolvedParams

# notebook parameters that decide on a run; the others say where and how it is made
_DECIDE = tuple(
    name
    for name in params.notebook_schema("03_train").names
    if name not in ("teacher_source", "student_source", "device", "checkpoint_every", "probe_every", "keep_epochs")
)
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Cell:
    """A run that a table of a study asks for: its id, the cell's values, and those as training resolves them."""

    run_id: str
    table: str
    values: Mapping[str, Any]
    resolved: ResolvedParams

    @property
    def suites(self) -> tuple[str, ...]:
        """The suites the table wants it scored on, the main one first."""
        return params.cell_suites(self.values)

    @property
    def precision(self) -> str:
        """What its vectors are scored in, fp32 or bf16."""
        return str(self.values.get("eval_precision", params.VOCABULARY["eval_precision"].default))

    def has(self, record: Mapping[str, Any] | None, suite: str) -> bool:
        """Whether a record holds a suite as it is scored today."""
        if record is None or record["recipe_version"] != params.RECIPE_VERSION:
            return False
        return is_current(record["suites"].get(suite), suite, self.precision)


def cells(values: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]] | None = None) -> list[Cell]:
    """The cells of a study's tables, in order; a run that several tables share has one in each.

    values: a preset's. known: records by run id. Without them TalasError where an id cannot be told, because the corpus or a
    local model is not there; with them such a run is found by its parameters, or gets a name with `unknown` in it.
    """
    found: dict[tuple[str, str, str], Cell] = {}
    by_values: dict[str, str] = {}
    for table in params.expand_tables(values):
        for cell in table.cells:
            p = resolve(cell)
            run_id = _run_id(p, known, by_values)
            main, *beside = params.cell_suites(cell)
            before = found.get((table.name, run_id, main))
            if before is not None:  # the same run by other words, perhaps with other suites beside
                cell = {**before.values, "beside": list(dict.fromkeys([*before.suites[1:], *beside]))}
            found[table.name, run_id, main] = Cell(run_id, table.name, cell, p)
    return list(found.values())


def resolve(values: Mapping[str, Any]) -> ResolvedParams:
    """The training parameters of a cell."""
    return params.resolve("03_train", values)


def _run_id(p: ResolvedParams, known: Mapping[str, Mapping[str, Any]] | None, by_values: dict[str, str]) -> str:
    try:
        return p.run_id
    except TalasError:
        if known is None:
            raise
    if known and not by_values:
        by_values |= {_decided(q): run_id for run_id, q in _resolvable(known)}
    text = _decided(p)
    if text not in by_values:
        names = (p.student_spec.name, p.teacher_names, p.method, p.optimizer_spec.name, f"s{p.seed}")
        return "--".join((*names, f"{_UNKNOWN}-{params.config_hash({'values': text})[:8]}"))
    return by_values[text]


def _resolvable(known: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ResolvedParams]]:
    for run_id, record in known.items():
        try:
            yield run_id, resolve(record["params"]["given"])
        except TalasError:  # made with something that is not there today
            continue


def _decided(p: ResolvedParams) -> str:
    return json.dumps({name: p.values[name] for name in _DECIDE}, sort_keys=True)


def is_current(entry: Mapping[str, Any] | None, suite: str, precision: str) -> bool:
    """Whether a suite was scored by today's evaluation: version, precision, protocol, and the tasks of its file."""
    if entry is None:
        return False
    spec, of = params.load_tasks(suite), entry["suite"]
    if (of["version"], of["precision"], of["protocol"]) != (records.EVALUATION_VERSION, precision, spec.protocol):
        return False
    tasks = [[task.name, task.metric, task.in_domain] for task in spec.tasks]
    return [[name, metric, in_domain] for name, metric, _, in_domain in of["tasks"]] == tasks
