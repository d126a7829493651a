"""What a preset amounts to: its distinct runs, the suites each is scored on, the teacher caches they read, the encoders that are
only scored; and what of a study is on record already. The Snakefile makes rules of it, the dry run prints it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from talas_lib import methods, params, paths, records, runs
from talas_lib.errors import TalasError
from talas_lib.params import CorpusSpec, ResolvedParams

_ANY_CORPUS = CorpusSpec(
    name="any", kind="tiny"
)  # stands for one that is not on this machine, which the key names instead


@dataclass(frozen=True)
class PlannedRun:
    """A run that one cell or several ask for. key: its id, or what stands for it where the corpus is not on this machine;
    cell: the values of the first cell; p: the same, resolved for notebook 03; tables: names of all tables it is in; suites: all
    that it is scored on; sharpness: whether its Hessian is asked for.
    """

    key: str
    cell: dict[str, Any]
    p: ResolvedParams
    tables: tuple[str, ...]
    suites: tuple[str, ...]
    sharpness: bool

    @property
    def run_id(self) -> str:
        """Raises TalasError when a local model or corpus is not there."""
        return self.p.run_id

    @property
    def trains(self) -> bool:
        """False for a method that computes its student: it has no loss, and so no Hessian."""
        return not methods.builds_student(self.p.method)

    @property
    def reads(self) -> bool:
        """Whether a teacher cache has to be there before it begins."""
        return self.trains and self.p.needs_teacher


@dataclass(frozen=True)
class PlannedCache:
    """Teacher signals that runs wait for. values: parameters of notebook 02; p: the same, resolved; readers: keys of runs."""

    values: dict[str, Any]
    p: ResolvedParams
    readers: tuple[str, ...]

    @property
    def record(self) -> Path:
        """The record that notebook 02 writes last. Raises TalasError when a local model or corpus is not there."""
        return records.cache_file(self.p)


@dataclass(frozen=True)
class PlannedEncoder:
    """An encoder of params/teachers that a table scores as it is. cell: values of the table's first cell."""

    name: str
    suite: str
    cell: dict[str, Any]

    @property
    def precision(self) -> str:
        """That of its vectors, as for the runs beside it."""
        return precision_of(self.cell)


@dataclass(frozen=True)
class Plan:
    """A preset with all that it asks for, in the order of its tables."""

    preset: str
    values: dict[str, Any]
    tables: tuple[params.Table, ...]
    runs: tuple[PlannedRun, ...]
    caches: tuple[PlannedCache, ...]
    encoders: tuple[PlannedEncoder, ...]

    @property
    def report(self) -> str:
        """Name of the folders with its tables and figures."""
        return str(self.values.get("report") or self.preset)

    @property
    def is_study(self) -> bool:
        """Whether it has tables; its runs then leave committed records, and what is on record is not run again."""
        return bool(self.values.get("tables"))

    def cache_of(self, run: PlannedRun) -> PlannedCache | None:
        """What the run waits for; None for one that reads no teacher cache."""
        return next((cache for cache in self.caches if run.key in cache.readers), None)

    def left(self) -> dict[str, tuple[str, ...]]:
        """The suites that each run has still to be scored on, by run id, in order; a run on record with all of them is not in it.

        Of a preset without tables all: what of it is done, Snakemake sees by the files. Raises TalasError when a local
        model or corpus is not there, without which no run has an id.
        """
        if not self.is_study:
            return {run.run_id: run.suites for run in self.runs}
        from talas_lib.study import on_record

        missing = {run_id: tuple(suites) for run_id, _, suites in on_record.missing(self.values)}
        return {run.run_id: missing[run.run_id] for run in self.runs if run.run_id in missing}

    def record_file(self, run_id: str) -> Path:
        """Where the committed record of a study's run lies."""
        return paths.results() / self.report / "runs" / f"{run_id}.json"

    @property
    def summary_file(self) -> Path:
        """What notebook 06 writes last."""
        return paths.outputs() / self.report / "summary.json"


def make(preset: str, tables: Iterable[str] = ()) -> Plan:
    """The plan of a preset, of some of its tables only where they are named. Raises TalasError for whatever does not resolve."""
    values = params.select_tables(params.load_preset(preset), tables)
    expanded = params.expand_tables(values)
    found: dict[str, PlannedRun] = {}
    for table in expanded:
        for cell in table.cells:
            run = _run(cell, table.name)
            found[run.key] = _joined(found[run.key], run) if run.key in found else run
    everything = tuple(found.values())
    for suite in dict.fromkeys(suite for run in everything for suite in run.suites):
        params.load_tasks(suite)  # an unknown one is answered now
    return Plan(preset, values, expanded, everything, _caches(everything), _encoders(expanded))


def precision_of(cell: Mapping[str, Any]) -> str:
    """The precision of the vectors that a cell's run is scored by."""
    return str(cell.get("eval_precision", params.VOCABULARY["eval_precision"].default))


def on_gpu(values: Mapping[str, Any]) -> bool:
    """Whether the preset's runs go to a GPU here: then one at a time."""
    device = values.get("device", "auto")
    return device == "cuda" or (device == "auto" and shutil.which("nvidia-smi") is not None)


def _run(cell: dict[str, Any], table: str) -> PlannedRun:
    p = params.resolve("03_train", cell)
    asked = cell.get("sharpness_batches") != 0
    return PlannedRun(_key(p), cell, p, (table,), params.cell_suites(cell), asked)


def _joined(run: PlannedRun, again: PlannedRun) -> PlannedRun:
    """A run with what another table asks of it as well."""
    return replace(
        run,
        tables=tuple(dict.fromkeys((*run.tables, *again.tables))),
        suites=tuple(dict.fromkeys((*run.suites, *again.suites))),
        sharpness=run.sharpness or again.sharpness,
    )


def _key(p: ResolvedParams) -> str:
    try:
        return p.run_id
    except TalasError:
        elsewhere = replace(p, specs=replace(p.specs, corpus=_ANY_CORPUS))
        return f"{elsewhere.run_id} {p.corpus_spec.model_dump_json()}"


def _caches(everything: Iterable[PlannedRun]) -> tuple[PlannedCache, ...]:
    names = params.notebook_schema("02_cache_teacher").names
    values: dict[str, dict[str, Any]] = {}
    readers: dict[str, list[str]] = {}
    for run in everything:
        if run.reads:
            given = {name: value for name, value in run.cell.items() if name in names}
            given_key = json.dumps(given, sort_keys=True)
            values[given_key] = given
            readers.setdefault(given_key, []).append(run.key)
    return _merged((params.resolve("02_cache_teacher", values[k]), values[k], readers[k]) for k in readers)


def _merged(found: Iterable[tuple[ResolvedParams, dict[str, Any], list[str]]]) -> tuple[PlannedCache, ...]:
    """One cache for all that ask for the same."""
    caches: dict[str, PlannedCache] = {}
    for p, values, readers in found:
        key = _cache_key(p)
        earlier = caches.get(key)
        if earlier is None:
            caches[key] = PlannedCache(values, p, tuple(readers))
        else:
            caches[key] = replace(earlier, readers=(*earlier.readers, *readers))
    return tuple(caches.values())


def _cache_key(p: ResolvedParams) -> str:
    try:
        return str(records.cache_file(p))
    except TalasError:  # the corpus is not on this machine
        return _signals(p)


def _signals(p: ResolvedParams) -> str:
    """What stands for a cache's record where its corpus is not on this machine."""
    teachers = [spec.model_dump(mode="json") for spec in p.teacher_specs]
    tokens = [sorted(p.needs.teacher_tokens), sorted(p.needs.teacher_attention)] if p.needs.token_cache else None
    corpus = [p.corpus_spec.model_dump(mode="json"), p.max_sentences]
    return json.dumps([teachers, tokens, corpus, p.precision], sort_keys=True, default=str)


def _encoders(tables: Iterable[params.Table]) -> tuple[PlannedEncoder, ...]:
    found: dict[str, PlannedEncoder] = {}
    for table in tables:
        cell = table.cells[0]
        for name in table.encoders:
            params.load_teacher(name)  # an unknown one is answered now
            encoder = PlannedEncoder(name, params.cell_suites(cell)[0], cell)
            if found.setdefault(name, encoder).suite != encoder.suite:
                raise TalasError(
                    f"encoder {name} is asked for on {found[name].suite} and, in table {table.name}, on {encoder.suite};"
                    " one suite a study: give its tables the same `tasks`"
                )
    return tuple(found.values())


# ---- paths that rules and messages share


def executed(label: str, notebook: str) -> Path:
    """Where papermill leaves an executed notebook, or a command its complaints."""
    return paths.outputs() / "nb" / label / notebook


def scored_file(run_id: str, suite: str) -> Path:
    """The record of a run's scores on a suite."""
    return records.run_file(run_id, runs.evaluation_stage(suite))


def result_files(run: PlannedRun, suites: Iterable[str]) -> list[Path]:
    """The records that a run is to leave: of these suites, and of its Hessian where that is asked for."""
    sharpness = [records.run_file(run.run_id, "sharpness")] if run.trains and run.sharpness else []
    return [*(scored_file(run.run_id, suite) for suite in suites), *sharpness]
