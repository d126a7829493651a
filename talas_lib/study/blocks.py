"""The tables of a study as comparisons: runs on record under their labels, a block for each pair of teacher and student."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from talas_lib import item_results, params, runs
from talas_lib.comparison import OF_OPTIMIZER, REFERENCE_LABELS, Comparison
from talas_lib.errors import TalasError
from talas_lib.study import on_record, wanted

if TYPE_CHECKING:
    import pandas as pd

    from talas_lib.params import ResolvedParams, Table
    from talas_lib.study.wanted import Cell

_OF_PAIR = ("student", "teacher_names")  # named above a block, not in its labels


@dataclass(frozen=True)
class Block(Comparison):
    """The runs of one table and one pair of models that are on record, as a Comparison; nothing of `outputs` is needed.

    cells: all runs the table asks for, on record or not, in its order; base: the study's own parameters, which labels leave
    out; encoders: records of those that are only evaluated, by name, None where there is none yet.
    """

    report: str = ""
    table: Any = None
    cells: tuple[Cell, ...] = ()
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    base: Any = None
    encoders: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict, repr=False)

    @property
    def teacher(self) -> str:
        """The teacher that is scored, the first of several."""
        return str(self.cells[0].resolved.teacher_spec.name)

    @property
    def student(self) -> str:
        """The student that is trained."""
        return str(self.cells[0].resolved.student_spec.name)

    @property
    def precision(self) -> str:
        """What the vectors are scored in."""
        return self.cells[0].precision

    @property
    def heading(self) -> str:
        """Table and pair in a few words."""
        return f"{self.table.name}, {self.teacher} to {self.student}"

    # ---- what a Comparison asks for

    def evaluation(self, index: int) -> dict[str, Any]:
        """The scores on record of a run on the main suite, with its references. TalasError where runs were scored differently."""
        record, first = (self._entry(self.members[i].id) for i in (index, 0))
        if record["suite"] != first["suite"]:
            raise TalasError(
                f"runs {self.members[0].id} and {self.members[index].id} are on record with other data or another evaluation of"
                f" {self.suite}: delete the older record below {on_record.folder(self.report)} and make it again"
            )
        return record

    def _entry(self, run_id: str) -> dict[str, Any]:
        if run_id not in self._entries:
            entry = dict(self.records[run_id]["suites"][self.suite])
            names: Mapping[str, str] = entry["references"]
            entry["references"] = {kind: self._reference(name) for kind, name in names.items()}
            self._entries[run_id] = entry
        return self._entries[run_id]

    @cached_property
    def _entries(self) -> dict[str, dict[str, Any]]:
        return {}

    def _reference(self, name: str) -> dict[str, Any]:
        found = on_record.read_reference(self.report, name)
        if found is None:
            file = on_record.folder(self.report) / "references" / f"{name}.json"
            raise TalasError(f"{file} is not there, which a record names: restore it from the repository")
        return found

    def record(self, run: runs.Run, stage: str) -> dict[str, Any]:
        """The record of training, in short."""
        return dict(self.records[run.id][stage])

    def sharpness(self, index: int) -> None:
        """Records of a study hold no eigenvalues."""

    def logged(self, index: int) -> list[dict[str, Any]]:
        """Records of a study hold no single steps."""
        return []

    def items(self, index: int) -> item_results.ByTask:
        """Results by test item, where the run's own folder still holds those of the recorded evaluation; else TalasError."""
        run, suite = self.members[index], self.evaluation(index)["suite"]
        recorded = run.evaluation(suite["name"])
        if recorded is None or on_record.shortened(recorded["suite"]) != suite:
            raise TalasError(
                f"the results by item of run {run.id} are gone or belong to another evaluation than its record"
            )
        return item_results.load(run.items_file(suite["name"]), recorded["suite"])

    def item_differences(self, baseline: str | None = None, *, progress: Any = None) -> pd.DataFrame:
        """The kept bootstrap (see resampling)."""
        from talas_lib.study import resampling

        return resampling.update(self, baseline or self.baseline, progress=progress)

    # ---- labels

    def group(self, index: int) -> str:
        """The label of a run without its seed."""
        return self._labels[self.members[index].id]

    @cached_property
    def _labels(self) -> dict[str, str]:
        return {cell.run_id: self.name_of(cell.resolved) for cell in self.cells}

    def values_of(self, p: Any, name: str) -> set[str]:
        """Values among the table's runs of the same method and optimizer, and the value of the study or the optimizer's file."""
        if name in _OF_PAIR:
            return {p.teacher_names, p.teacher_spec.name} if name == "teacher_names" else {""}
        rivals = [q for q in self._asked if (q.method, q.optimizer) == (p.method, p.optimizer)]
        usual = self._usual(params.load_optimizer, p.optimizer) if name in OF_OPTIMIZER else self.base
        return {str(getattr(q, name)) for q in (*rivals, usual)}

    def method_values(self, p: Any) -> dict[str, list[Any]]:
        """Settings changed in the table's runs of a method, with the values there and in the method's file."""
        rivals = [q for q in self._asked if q.method == p.method]
        names = dict.fromkeys(name for q in rivals for name in q.method_params)
        usual = self._usual(params.load_method, p.method)
        return {name: [getattr(q, name) for q in (*(r.method_config for r in rivals), usual)] for name in names}

    def _usual(self, load: Callable[[str], Any], name: str) -> Any:
        """What a file of params says, read once."""
        kept = self._files
        if (load, name) not in kept:
            kept[load, name] = load(name)
        return kept[load, name]

    @cached_property
    def _files(self) -> dict[Any, Any]:
        return {}

    @cached_property
    def _asked(self) -> tuple[ResolvedParams, ...]:
        return tuple(cell.resolved for cell in self.cells)

    # ---- the table

    @cached_property
    def asked_groups(self) -> dict[str, list[Cell]]:
        """The cells of each group, on record or not, in order of first appearance."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(self._labels[cell.run_id], []).append(cell)
        return found

    def absent(self) -> dict[str, list[int]]:
        """Seeds that are not on record, by group."""
        there = {run.id for run in self.members}
        gone = {
            label: [cell.resolved.seed for cell in cells if cell.run_id not in there]
            for label, cells in self.asked_groups.items()
        }
        return {label: seeds for label, seeds in gone.items() if seeds}

    @cached_property
    def baseline(self) -> str:
        """The group that differences are taken from: TALAS with ASAM and CLS pooling as its files say, else the first."""
        best = max(self.asked_groups, key=self.nearness)
        return best if self.nearness(best)[0] else next(iter(self.asked_groups))

    def nearness(self, label: str) -> tuple[bool, ...]:
        """How near a group is to TALAS as released, for comparing: the method first, then its settings, pooling, schedule."""
        p = self.asked_groups[label][0].resolved
        method, optimizer = self._usual(params.load_method, p.method), self._usual(params.load_optimizer, p.optimizer)
        return (
            (p.method, p.optimizer) == ("talas", "asam"),
            p.method_config == method and p.optimizer_spec == optimizer,
            p.pooling == "cls",
            p.lr == self.base.lr and p.epochs == self.base.epochs,
        )

    def other_scores(self, index: int) -> dict[str, float]:
        """Scores on the suites beside the main one, as far as they are on record, by task."""
        return {task: row["score"] for entry in self._beside(index) for task, row in entry["tasks"].items()}

    def other_reference_scores(self) -> dict[str, dict[str, float]]:
        """The same of teacher and untrained student, by label, where some run is on record beside them."""
        found: dict[str, dict[str, float]] = {}
        for i in range(len(self.members)):
            for entry in self._beside(i):
                for kind, name in entry["references"].items():
                    of_model = found.setdefault(REFERENCE_LABELS[kind], {})
                    if not entry["tasks"].keys() <= of_model.keys():
                        of_model |= {task: row["score"] for task, row in self._reference(name)["tasks"].items()}
        return found

    def _beside(self, index: int) -> list[Mapping[str, Any]]:
        """Entries of a run's record on the suites beside the main one, as far as they are there."""
        run_id = self.members[index].id
        cell = next(cell for cell in self.cells if cell.run_id == run_id)
        record = self.records[run_id]
        return [record["suites"][suite] for suite in cell.suites[1:] if cell.has(record, suite)]

    @property
    def other_tasks(self) -> list[str]:
        """Tasks of the suites beside the main one, in order."""
        suites = dict.fromkeys(suite for cell in self.cells for suite in cell.suites[1:])
        return [task.name for suite in suites for task in params.load_tasks(suite).tasks]


@dataclass(frozen=True)
class Study:
    """A study as far as it is on record. values: its preset's; cells: all it asks for; records: those there, by run id."""

    report: str
    values: Mapping[str, Any]
    cells: tuple[Cell, ...]
    records: Mapping[str, Mapping[str, Any]]
    tables: tuple[Table, ...]

    @classmethod
    def open(cls, values: Mapping[str, Any]) -> Study:
        """Of a preset's values. Raises TalasError for a preset without tables or report, and for a damaged record."""
        if not values.get("tables"):
            raise TalasError(
                "these parameters have no `tables`, so they are no study: see params/presets/cpu-study.yaml"
            )
        report = on_record.report_of(values)
        known = on_record.read_runs(report)
        return cls(report, values, tuple(wanted.cells(values, known)), known, params.expand_tables(values))

    @property
    def lacking(self) -> dict[str, list[str]]:
        """Suites that are not on record yet, by run id."""
        found: dict[str, list[str]] = {}
        for cell in self.cells:
            for suite in cell.suites:
                if not cell.has(self.records.get(cell.run_id), suite):
                    found.setdefault(cell.run_id, []).append(suite)
        return {run_id: list(dict.fromkeys(suites)) for run_id, suites in found.items()}

    @cached_property
    def blocks(self) -> dict[str, tuple[Block, ...]]:
        """The blocks of each table, in the order of its cells."""
        base = wanted.resolve({name: value for name, value in self.values.items() if name != "tables"})
        return {table.name: tuple(self._blocks(table, base)) for table in self.tables}

    def _blocks(self, table: Table, base: ResolvedParams) -> Iterator[Block]:
        pairs: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            if cell.table == table.name:
                p = cell.resolved
                pairs.setdefault((p.teacher_spec.name, p.student_spec.name), []).append(cell)
        for cells in pairs.values():
            suites = {cell.suites[0] for cell in cells}
            if len(suites) > 1:
                raise TalasError(
                    f"table {table.name} scores its runs on {', '.join(sorted(suites))}: one suite a table"
                )
            (suite,) = suites
            there = [cell for cell in cells if cell.has(self.records.get(cell.run_id), suite)]
            yield Block(
                members=tuple(runs.Run(cell.run_id) for cell in there),
                resolved=tuple(cell.resolved for cell in there),
                suite=suite,
                report=self.report,
                table=table,
                cells=tuple(cells),
                records={cell.run_id: self.records[cell.run_id] for cell in there},
                base=base,
                encoders={name: self._encoder(name, cells[0]) for name in table.encoders},
            )

    def _encoder(self, name: str, cell: Cell) -> dict[str, Any] | None:
        """An encoder's record, None where there is none as the table's runs are scored today."""
        record = on_record.read_reference(self.report, name, "encoders")
        return record if wanted.is_current(record, cell.suites[0], cell.precision) else None
