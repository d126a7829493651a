"""The small committed records of a study's runs, so that a lost machine loses at most the run in progress.

    results/<report>/runs/<run id>.json        parameters, training in a few numbers, and the scores of every suite
    results/<report>/references/<name>.json    teacher or untrained student on one suite, once for all runs that share them
    results/<report>/encoders/<name>.json      an encoder that is only evaluated, in the form of a reference

A study is a preset with `tables`. `missing` says what is not on record yet, `keep` records a finished run. Torch-free:
`python -m talas_lib.study.on_record keep PRESET RUN_ID` is ready in about a second.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from talas_lib import params, paths, runs
from talas_lib.errors import TalasError, exit_code
from talas_lib.files import atomic_write_json
from talas_lib.study.wanted import cells, is_current

__all__ = [
    "cells",
    "folder",
    "is_current",
    "keep",
    "keep_encoder",
    "missing",
    "read_reference",
    "read_run",
    "read_runs",
    "report_of",
    "scores_entry",
    "shortened",
]

REFERENCES = ("teacher", "untrained_cls", "untrained_mean")
_AVERAGES = ("avg_in", "avg_out", "avg")
_TRAIN = (
    "steps",
    "sentences",
    "corpus_sha256",
    "teacher_dims",
    "cache_s",
    "train_s",
    "resumed_from",
    "pooling",
    "output",
)
_DETAILS = ("accuracy", "converged", "unseen_n", "unseen_score")
_GEOMETRY = ("mean_cosine", "effective_rank")
_COST = ("parameters", "parameters_without_embeddings", "ms_per_sentence", "threads", "device", "precision")


def missing(values: Mapping[str, Any]) -> list[tuple[str, dict[str, Any], list[str]]]:
    """What is not on record: (run id, cell, suites), in order of first appearance. A run that several tables share comes once,
    with the suites of all; a record of another recipe or evaluation does not count.

    values: a preset's, with `report` and `tables`. Raises TalasError for a damaged record.
    """
    report = report_of(values)
    first: dict[str, dict[str, Any]] = {}
    suites: dict[str, list[str]] = {}
    on_record: dict[str, dict[str, Any] | None] = {}
    for cell in cells(values):
        if cell.run_id not in first:
            on_record[cell.run_id] = read_run(report, cell.run_id)
            first[cell.run_id], suites[cell.run_id] = dict(cell.values), []
        for suite in cell.suites:
            if not cell.has(on_record[cell.run_id], suite) and suite not in suites[cell.run_id]:
                suites[cell.run_id].append(suite)
    return [(run_id, first[run_id], lacking) for run_id, lacking in suites.items() if lacking]


def report_of(values: Mapping[str, Any]) -> str:
    """The study's folder below results. TalasError when the preset names none."""
    report = values.get("report")
    if not report:
        raise TalasError("a study wants a `report`: the name of its folder below results, such as report: my-study")
    return str(report)


def folder(report: str) -> Path:
    """`results/<report>`, which need not exist yet."""
    return paths.results() / report


# ---- what a score rests on


def shortened(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation's identity in short (see scoring.Evaluation.identity): the tasks' data as one hash, `data`."""
    return {
        "name": identity["name"],
        "protocol": identity["protocol"],
        "precision": identity["precision"],
        "version": identity["version"],
        "data": params.config_hash({"sha256": list(identity["sha256"])})[:16],
        "tasks": [list(task) for task in identity["tasks"]],
    }


def scores_entry(record: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """A record of scores (see scoring.scores_record) with what the tables need of it, numbers to six decimals."""
    tasks = {
        task: {
            **{name: row[name] for name in ("metric", "score", "n", "in_average")},
            "details": {name: row["details"][name] for name in _DETAILS if name in row["details"]},
        }
        for task, row in record["tasks"].items()
    }
    cost = record.get("efficiency") or {}
    entry = {
        **{name: record[name] for name in _AVERAGES if name in record},
        "tasks": tasks,
        "dim": record["dim"],
        "geometry": {name: value for name, value in record["geometry"].items() if name in _GEOMETRY},
        "collapse": record.get("collapse"),
        "efficiency": {name: cost[name] for name in _COST if name in cost},
        "seconds": record["seconds"],
    }
    return {"suite": shortened(identity), **_rounded(entry)}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return round(value, 6) if isinstance(value, float) else value


# ---- writing


def keep(values: Mapping[str, Any], run_id: str) -> Path:
    """Record a finished run under `results/<report>`, with every suite it was scored on; returns the file.

    Suites that only an earlier record of the same recipe holds stay in it. Raises TalasError for a run that is not finished,
    was scored on no suite, or is of another recipe, and for a damaged record in its place.
    """
    report, run = report_of(values), runs.find_run(run_id)
    trained, evaluations = run.read_record("train"), run.evaluations()
    if trained is None or not evaluations:
        stage = "03_train" if trained is None else "04_evaluate"
        raise TalasError(f"run {run.id} has nothing to keep yet: execute notebooks/{stage}.ipynb for it")
    manifest = run.manifest
    if manifest["recipe_version"] != params.RECIPE_VERSION:
        raise TalasError(
            f"run {run.id} is of recipe version {manifest['recipe_version']}, today's is {params.RECIPE_VERSION}: train it anew"
        )
    before = read_run(report, run.id)
    suites = dict(before["suites"]) if before and before["recipe_version"] == params.RECIPE_VERSION else {}
    for suite, record in evaluations.items():
        entry = scores_entry(record, record["suite"])
        suites[suite] = entry | {"references": _keep_references(report, run, trained, record)}
    file = folder(report) / "runs" / f"{run.id}.json"
    atomic_write_json(file, _run_record(run, manifest, trained, suites))
    return file


def _run_record(
    run: runs.Run, manifest: Mapping[str, Any], trained: Mapping[str, Any], suites: Mapping[str, Any]
) -> dict[str, Any]:
    rows = run.read_metrics()
    train = {name: trained[name] for name in _TRAIN if name in trained}
    train["collapse"] = trained.get("collapse")
    for name, row in (("first", rows[0] if rows else {}), ("last", trained["final"])):
        train[name] = {key: row[key] for key in row if key in ("step", "mean_cosine") or key.startswith("loss")}
    return {
        "run": run.id,
        "created": manifest["created"],
        "recipe_version": manifest["recipe_version"],
        "versions": manifest["versions"],
        "params": {"given": run.params.given_values(), "run_config": manifest["run_config"]},
        "train": _rounded(train),
        "suites": dict(sorted(suites.items())),
    }


def _keep_references(
    report: str, run: runs.Run, trained: Mapping[str, Any], record: Mapping[str, Any]
) -> dict[str, str]:
    """The names of a run's references on a suite; each is written unless it is on record as it is scored today."""
    p, found = run.params, {}
    for kind in REFERENCES:
        spec = p.teacher_spec if kind == "teacher" else p.student_spec
        own = spec.model_dump(mode="json", exclude=set() if kind == "teacher" else {"pooling"})
        reading = {"model": own, "corpus": trained["corpus_sha256"]}  # the corpus decides which pairs are unseen
        key = params.config_hash(reading)[:8]
        name = f"{record['suite']['name']}--{kind.replace('_', '-')}--{spec.name}--{key}"
        entry = scores_entry(record["references"][kind], record["suite"])
        before = read_reference(report, name)
        if before is None or before["suite"] != entry["suite"]:
            write_reference(folder(report) / "references" / f"{name}.json", kind, spec.name, entry)
        found[kind] = name
    return found


def write_reference(file: Path, kind: str, model: str, entry: Mapping[str, Any]) -> None:
    """Write a reference, or an encoder (kind `encoder`) that is only evaluated; entry: see scores_entry."""
    atomic_write_json(file, {"reference": kind, "model": model, **entry})


def keep_encoder(values: Mapping[str, Any], name: str, record: Mapping[str, Any], identity: Mapping[str, Any]) -> Path:
    """Record an encoder that is only evaluated, as `results/<report>/encoders/<name>.json`; returns the file.

    record: its scores (scoring.Scored.record); identity: of the evaluation (scoring.Evaluation.identity).
    """
    file = folder(report_of(values)) / "encoders" / f"{name}.json"
    write_reference(file, "encoder", name, scores_entry(record, identity))
    return file


# ---- reading


def read_run(report: str, run_id: str) -> dict[str, Any] | None:
    """A run's record, None when there is none. Raises TalasError for a damaged file or the record of another run."""
    file = folder(report) / "runs" / f"{run_id}.json"
    if not file.is_file():
        return None
    record = _read(file, ("recipe_version", "params", "train", "suites"))
    if record.get("run") != run_id:
        raise _refused(file, f"it is of run {record.get('run')!r}")
    if not isinstance(record["suites"], dict) or "given" not in record["params"]:
        raise _refused(file, "its suites or parameters are no mapping")
    for entry in record["suites"].values():
        _check_entry(file, entry)
    return record


def read_runs(report: str) -> dict[str, dict[str, Any]]:
    """Every run's record of a study by run id, sorted. Raises TalasError for a damaged or foreign file among them."""
    found = {file.stem: read_run(report, file.stem) for file in sorted((folder(report) / "runs").glob("*.json"))}
    return {run_id: record for run_id, record in found.items() if record is not None}


def read_reference(report: str, name: str, kind: str = "references") -> dict[str, Any] | None:
    """The record of a reference by name, None when there is none; kind: references or encoders. TalasError for damage."""
    file = folder(report) / kind / f"{name}.json"
    if not file.is_file():
        return None
    record = _read(file, ("reference", "model"))
    _check_entry(file, record)
    return record


def _check_entry(file: Path, entry: Any) -> None:
    """TalasError unless this is what `scores_entry` gives."""
    try:
        numbers = [entry["avg"], *(row["score"] for row in entry["tasks"].values())]
        tasks = [task for task, *_ in entry["suite"]["tasks"]]
        whole = all(isinstance(number, (int, float)) for number in numbers) and {
            *("name", "protocol", "precision", "version", "data")
        } <= set(entry["suite"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _refused(file, f"its scores lack {error}") from None
    if not whole or tasks != list(entry["tasks"]):
        raise _refused(file, "its scores are not those of its suite")


def _read(file: Path, keys: Iterable[str]) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(file, str(error)) from None
    lacks = [key for key in keys if not isinstance(value, dict) or key not in value]
    if lacks:
        raise _refused(file, f"it lacks {', '.join(lacks)}")
    return dict(value)


def _refused(file: Path, why: str) -> TalasError:
    return TalasError(
        f"{file} is damaged or no record of a study ({why}): restore it from the repository, or delete it and make it again"
        " with `python -m talas_lib PRESET`"
    )


# ---- the door for the Snakefile


def main(arguments: list[str] | None = None) -> int:
    """`keep PRESET RUN_ID`; the exit code is 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m talas_lib.study.on_record",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=["keep"], help="record a finished run among the study's results")
    parser.add_argument("preset", help="a file of params/presets with `tables`")
    parser.add_argument("run_id", help="the run to keep")
    chosen = parser.parse_args(arguments)
    return exit_code(lambda: sys.stdout.write(f"{keep(params.load_preset(chosen.preset), chosen.run_id)}\n"))


if __name__ == "__main__":
    sys.exit(main())
