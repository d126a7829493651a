"""A study's tables as numbers: every run tidy, each table by groups that differ in the seed alone, and what tuning chose."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from talas_lib import params, spread
from talas_lib.comparison import averages_of, unseen_scores
from talas_lib.study import cost, on_record
from talas_lib.study.blocks import Block, Study
from talas_lib.study.wanted import Cell
from talas_lib.uncertainty import mean_and_sd

TUNE = "tune"  # the table that chooses a method's learning rate and pooling
CRITERION = ("mini", "stsb-dev")  # suites whose mean it chooses by: no test split of the paper's tasks is among them
AVERAGES = ("avg_in", "avg_out", "avg")
UNSEEN = "avg unseen"
MINUTES = "train min"
_OF_RUN = ("run", "table", "teacher", "student", "method", "preset", "optimizer", "rho", "seed", "epochs", "sentences")
_OF_SCORE = ("recipe_version", "task", "metric", "split", "score", "n", "train_s")
RUN_COLUMNS = [*_OF_RUN, *_OF_SCORE, "suite", "pooling", "lr", "method_params"]
_OVER_SEEDS = {
    "difference": "difference",
    "low": "difference low",
    "high": "difference high",
    "n": "paired seeds",
    "better": "better seeds",
}
_OVER_ITEMS = {"low": "items low", "high": "items high", "p": "items p"}
DIFFERENCES = (*_OVER_SEEDS.values(), *_OVER_ITEMS.values())
REFERENCE, ENCODER, OWN = "reference", "encoder", "run"


# ---- every run, tidy


def runs_table(study: Study) -> pd.DataFrame:
    """A row a run, task and split: see RUN_COLUMNS. Scores 0 to 100 to four decimals, train_s seconds to one.

    split: `test`, `dev` for a development split, `test-unseen` for the pairs that share no sentence with the training corpus;
    avg_in, avg_out and avg of a suite are tasks with the metric `average` (in `test-unseen` with the score of the unseen pairs
    where there is one). table: all tables that the run stands in. References and encoders come last; `preset` is the report.
    """
    rows: list[dict[str, Any]] = []
    asking: dict[str, list[Cell]] = {}
    referred: dict[str, dict[str, None]] = {}
    for cell in study.cells:
        asking.setdefault(cell.run_id, []).append(cell)
    for run_id, cells in asking.items():
        record = study.records.get(run_id)
        if record is None:
            continue
        own = _own(study, cells, record)
        for suite in dict.fromkeys(suite for cell in cells for suite in cell.suites if cell.has(record, suite)):
            entry = record["suites"][suite]
            rows += [own | row for row in entry_rows(entry)]
            for name in entry["references"].values():
                referred.setdefault(name, {}).update(
                    dict.fromkeys(cell.table for cell in cells if suite in cell.suites)
                )
    for name, tables in sorted(referred.items()):
        reference = on_record.read_reference(study.report, name)
        rows += _reference_rows(study, name, list(tables), reference) if reference is not None else []
    for name, encoder, of_tables in _encoders(study):
        rows += _reference_rows(study, name, of_tables, encoder)
    return pd.DataFrame(rows, columns=RUN_COLUMNS, dtype=object)


def _own(study: Study, cells: Sequence[Cell], record: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows of a run share."""
    p = cells[0].resolved
    return {
        "run": cells[0].run_id,
        "table": " ".join(dict.fromkeys(cell.table for cell in cells)),
        "teacher": p.teacher_names,
        "student": p.student_spec.name,
        "method": p.method,
        "preset": study.report,
        "optimizer": p.optimizer,
        "rho": p.optimizer_spec.rho,
        "seed": p.seed,
        "epochs": p.epochs,
        "sentences": record["train"]["sentences"],
        "recipe_version": record["recipe_version"],
        "train_s": round(record["train"]["train_s"], 1),
        "pooling": p.pooling,
        "lr": p.lr,
        "method_params": json.dumps(p.method_params, sort_keys=True) if p.method_params else None,
    }


def _reference_rows(study: Study, name: str, tables: Sequence[str], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    side = "teacher" if record["reference"] == "teacher" else "student"
    shared = {
        "run": name,
        "table": " ".join(tables),
        side: record["model"],
        "method": record["reference"].replace("_", "-"),
        "preset": study.report,
    }
    return [shared | row for row in entry_rows(record)]


def _encoders(study: Study) -> Iterator[tuple[str, Mapping[str, Any], list[str]]]:
    """Encoders on record, by name, with the tables they stand in."""
    found: dict[str, tuple[Mapping[str, Any], dict[str, None]]] = {}
    for name, blocks in study.blocks.items():
        for block in blocks:
            for encoder, record in block.encoders.items():
                if record is not None:
                    found.setdefault(encoder, (record, {}))[1][name] = None
    for encoder, (record, tables) in found.items():
        yield encoder, record, list(tables)


def entry_rows(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Task, metric, split, score, n and suite of one suite's scores, averages last."""
    suite = entry["suite"]["name"]
    splits = {task.name: task.options.get("split", "test") for task in params.load_tasks(suite).tasks}
    unseen, rows = unseen_scores(entry), []

    def add(task: str, metric: str, split: str, score: float, n: int) -> None:
        shared = {"task": task, "metric": metric, "split": split}
        rows.append({**shared, "score": round(score, 4), "n": n, "suite": suite})

    for task, row in entry["tasks"].items():
        add(task, row["metric"], splits[task], row["score"], row["n"])
        if task in unseen:
            add(task, row["metric"], f"{splits[task]}-unseen", unseen[task], row["details"]["unseen_n"])
    if len(entry["tasks"]) > 1:
        split = next(iter(splits.values()))
        counts = _counted(entry)
        for name, value in averages_of(entry["suite"], entry).items():
            add(name, "average", split, value, counts[name])
        for name, value in averages_of(entry["suite"], entry, unseen).items() if unseen else ():
            add(name, "average", f"{split}-unseen", value, counts[name])
    return rows


def _counted(entry: Mapping[str, Any]) -> dict[str, int]:
    """How many tasks each average is of."""
    domains = [in_domain for _, _, counted, in_domain in entry["suite"]["tasks"] if counted]
    return {"avg_in": domains.count(True), "avg_out": domains.count(False), "avg": len(domains)}


# ---- a table by groups


def block_table(block: Block, resampled: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row a group of runs that differ in the seed alone, references and encoders first.

    Columns: row, kind, n, seeds, missing (seeds not on record); for each task, average, `avg unseen`, task of the suites beside
    and `train min` the mean, and `<name> sd` over the seeds (empty for one); DIFFERENCES of avg to the table's baseline: over
    paired seeds with Student's 95 % interval, and 95 % bounds and p over test items from `resampled` (see resampling).
    """
    beside = block.other_reference_scores()
    rows = [
        {"row": label, "kind": REFERENCE, **_values(block, record), **beside.get(label, {})}
        for label, record in _references(block).items()
    ]
    for name, record in block.encoders.items():
        rows.append({"row": name, "kind": ENCODER, **(_values(block, record) if record is not None else {})})
    groups, absent = block.groups(), block.absent()
    for label in block.asked_groups:
        indices = groups.get(label, [])
        seeds = " ".join(str(block.resolved[i].seed) for i in indices)
        gone = " ".join(str(seed) for seed in absent.get(label, []))
        row = {"row": label, "kind": OWN, "n": len(indices), "seeds": seeds, "missing": gone}
        rows.append(row | _over_seeds(block, indices))
    table = pd.DataFrame(rows)
    for name, values in _differences(block, resampled).items():
        table[name] = table["row"].map(values).where(table["kind"] == OWN)
    return table.reindex(columns=["row", "kind", "n", "seeds", "missing", *_columns(block, table), *DIFFERENCES])


def is_empty(value: Any) -> bool:
    """Whether a cell of a table holds no number."""
    return bool(pd.isna(value))


def tasks_of(block: Block) -> list[str]:
    """Names of the main suite's tasks, in order."""
    return [task.name for task in params.load_tasks(str(block.suite)).tasks]


def _columns(block: Block, table: pd.DataFrame) -> list[str]:
    names = [*tasks_of(block), *AVERAGES, UNSEEN, *block.other_tasks, MINUTES]
    both = [column for name in names for column in (name, f"{name} sd")]
    return [column for column in both if column in table.columns]


def _references(block: Block) -> dict[str, dict[str, Any]]:
    return block.reference_rows() if block.members else {}


def _values(block: Block, entry: Mapping[str, Any]) -> dict[str, float]:
    """Scores of one model on the main suite, with the averages."""
    suite = entry["suite"]
    unseen = unseen_scores(entry)
    scores = {task: row["score"] for task, row in entry["tasks"].items()} | averages_of(suite, entry)
    return scores | ({UNSEEN: averages_of(suite, entry, unseen)["avg"]} if unseen else {})


def _over_seeds(block: Block, indices: Sequence[int]) -> dict[str, float]:
    """Means and deviations; a column that only some runs have is the mean over those."""
    found: dict[str, list[float]] = {}
    for i in indices:
        values = _values(block, block.evaluation(i)) | block.other_scores(i) | {MINUTES: cost.minutes(block, i)}
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    rows: dict[str, float] = {}
    for name, values_of in found.items():
        rows[name], rows[f"{name} sd"] = mean_and_sd(values_of)
    return rows


def _differences(block: Block, resampled: pd.DataFrame | None) -> dict[str, dict[str, float]]:
    """DIFFERENCES by column and row; empty where the baseline is not on record."""
    found: dict[str, dict[str, float]] = {name: {} for name in DIFFERENCES}
    if block.baseline not in block.groups():
        return found
    parts = [(spread.differences_table(block, block.baseline), _OVER_SEEDS)]
    if resampled is not None:
        parts.append((resampled, _OVER_ITEMS))
    for table, names in parts:
        for row in table[table["task"] == spread.AVERAGE].to_dict("records"):
            for theirs, ours in names.items():
                found[ours][row["group"]] = row[theirs]
    return found


# ---- tuning


def choose(runs: pd.DataFrame, table: str = TUNE, criterion: Sequence[str] = CRITERION) -> pd.DataFrame:
    """The settings of a tuning table with their criterion, `chosen` where it is a method's best; of equal ones the first, which
    is the one with the smaller learning rate, then CLS pooling.

    runs: as runs_table gives it, or its CSV read back. The criterion is the mean over the suites of each one's average (or its
    only task), over the seeds; it is empty, and the setting is not chosen, where a suite is not on record.
    """
    own = runs[runs["table"].map(lambda names: table in str(names).split()) & runs["seed"].notna()]
    rows: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    keys = ("method", "optimizer", "teacher", "method_params", "lr", "pooling")
    for run in own["run"].unique():
        of_run = own[own["run"] == run]
        first = of_run.iloc[0]
        setting = tuple(None if pd.isna(first[key]) else first[key] for key in keys)
        found = rows.setdefault(setting, {suite: [] for suite in criterion})
        for suite in criterion:
            found[suite] += _of_suite(of_run[(of_run["suite"] == suite) & ~of_run["split"].str.endswith("unseen")])
    settings = pd.DataFrame([dict(zip(keys, setting, strict=True)) for setting in rows], columns=list(keys))
    for suite in criterion:
        settings[suite] = [mean_and_sd(found[suite])[0] if found[suite] else math.nan for found in rows.values()]
    settings["criterion"] = settings[list(criterion)].mean(axis=1, skipna=False)
    by_method = settings.groupby(list(keys[:4]), sort=False, dropna=False)
    settings = settings.assign(order=by_method.ngroup()).sort_values(["order", "lr", "pooling"], kind="stable")
    settings = settings.drop(columns="order").reset_index(drop=True)
    known = settings.dropna(subset=["criterion"])
    best = known.groupby(list(keys[:4]), sort=False, dropna=False)["criterion"].idxmax()
    return settings.assign(chosen=settings.index.isin(best))


def _of_suite(rows: pd.DataFrame) -> list[float]:
    """A run's score on a suite: its average, or its only task."""
    averages = rows[rows["task"] == "avg"]
    return [float(score) for score in (averages if len(averages) else rows)["score"]]
