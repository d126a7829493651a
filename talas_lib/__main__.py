"""`python -m talas_lib PRESET`: run a preset's experiment through Snakemake and print what came out.

Call it again and it does nothing again; after an interruption it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from talas_lib import display, params, paths, records, runs
from talas_lib.errors import TalasError
from talas_lib.graph import plan, workflow
from talas_lib.params import CorpusSpec, ResolvedParams, StudentSpec, TeacherSpec


def main(arguments: list[str] | None = None) -> int:
    """Run a preset; the exit code is Snakemake's, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m talas_lib", description=__doc__, allow_abbrev=False)
    parser.add_argument("preset", help=f"a file of params/presets: {', '.join(params.available('presets'))}")
    parser.add_argument("--tables", nargs="+", default=[], help="some tables of a study only, by name (default: all)")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="processor cores to use (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="print jobs, caches and estimated hours, and do nothing")
    chosen = parser.parse_args(arguments)
    try:
        of = plan.make(chosen.preset, chosen.tables)
        if chosen.dry_run:
            from talas_lib.graph import dry_run

            sys.stdout.write(dry_run.text(of))
            return 0
        return _study(of, chosen.tables, chosen.cores) if of.is_study else _run(of, chosen.cores)
    except TalasError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _run(of: plan.Plan, cores: int) -> int:
    """A preset without tables: nothing of it goes on after a failure, and it ends with its table and its best student."""
    _check(of.runs)
    resumed = any(records.run_file(run.run_id, "train").is_file() for run in of.runs)
    folder = paths.outputs() / of.report
    summary_file = of.summary_file
    before = summary_file.stat().st_mtime if summary_file.is_file() else None
    display.say(f"assets ready ({_fetch(of.runs, of.encoders):.0f} s)")
    began = time.monotonic()
    code = workflow.run(of, (), cores, keep_going=False)
    if code:
        return code
    if before is not None and summary_file.stat().st_mtime == before:
        sys.stdout.write(f"\n{of.preset}: nothing to do, every result is there already.\n")
    else:
        _complete_summary(summary_file, time.monotonic() - began, resumed)
    sys.stdout.write(report_text(json.loads(summary_file.read_text()), folder))
    return 0


def _study(of: plan.Plan, tables: list[str], cores: int) -> int:
    """A preset with tables: what is on record is not made again, a failure stops only what depends on it, and it ends with a
    list of what failed, or the folder of the tables.
    """
    from talas_lib.study import ready_made

    left = of.left()
    waiting = [run for run in of.runs if run.run_id in left]
    encoders = [encoder for encoder in of.encoders if not ready_made.is_kept(of, encoder)]
    _check(waiting)
    display.say(f"{of.preset}: {len(of.runs) - len(waiting)} of {len(of.runs)} runs on record, {len(waiting)} to make")
    if waiting or encoders:
        display.say(f"assets ready ({_fetch(waiting, encoders):.0f} s)")
    began = time.time()
    code = workflow.run(of, tables, cores, keep_going=True)
    if code:
        failed = workflow.failures(began)
        count = "1 job" if len(failed) == 1 else f"{len(failed)} jobs"
        lines = [f"\n{of.preset}: {count} failed; what does not depend on that is done.", ""]
        lines += [f"- {what}: {why}" for what, why in failed]
        lines += ["", f"Executed notebooks and logs: {paths.outputs() / 'nb'}. The same call tries again.", ""]
        sys.stderr.write("\n".join(lines))
        return code
    if missing := of.left():
        raise TalasError(
            f"{of.preset}: {len(missing)} of {len(of.runs)} runs are not on record although no job failed, such as"
            f" {next(iter(missing))}. The same call goes on"
        )
    display.say(
        f"\n{of.preset}: all {len(of.runs)} runs are on record.\nTables and figures: {paths.results() / of.report}"
    )
    return 0


def _check(wanted: tuple[plan.PlannedRun, ...] | list[plan.PlannedRun]) -> None:
    """Raises TalasError when a model or corpus of these runs cannot be had here; each is looked at once."""
    seen: list[object] = []
    for run in wanted:
        specs = _specs(run.p)
        if specs not in seen:
            seen.append(specs)
            run.p.check_available()


def _specs(p: ResolvedParams) -> tuple[tuple[TeacherSpec, ...], StudentSpec, CorpusSpec]:
    """What a run loads."""
    return p.teacher_specs if p.needs_teacher else (), p.student_spec, p.corpus_spec


def _fetch(
    wanted: tuple[plan.PlannedRun, ...] | list[plan.PlannedRun],
    encoders: tuple[plan.PlannedEncoder, ...] | list[plan.PlannedEncoder],
) -> float:
    """Download and verify what the jobs need, before their clock starts; seconds."""
    from talas_lib import sources

    began = time.monotonic()
    done: list[object] = []
    for run in wanted:
        for suite in run.suites:
            specs = (run.p.teacher_specs, run.p.student_spec, run.p.corpus_spec, suite)
            if specs not in done:
                done.append(specs)
                models: list[TeacherSpec | StudentSpec] = [*run.p.teacher_specs, run.p.student_spec]
                sources.prefetch(models, run.p.corpus_spec, params.load_tasks(suite))
    for encoder in encoders:
        p = params.resolve("03_train", encoder.cell)
        sources.prefetch([params.load_teacher(encoder.name)], p.corpus_spec, params.load_tasks(encoder.suite))
    return time.monotonic() - began


def _complete_summary(file: Path, wall_s: float, resumed: bool) -> None:
    """Add what only the whole job knows: its wall time and the largest memory of any process in it.

    `resumed` says that an earlier call had finished a part, which the wall time then does not cover.
    """
    result = json.loads(file.read_text())
    result["wall_s"], result["resumed"] = wall_s, resumed
    result["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    runs.atomic_write_json(file, result)


def report_text(result: dict[str, Any], folder: Path) -> str:
    """The closing page: the table, the verdict, the best student's folder and how to load it."""
    import pandas as pd

    table = pd.read_csv(folder / "scores.csv", index_col="model").round(1)
    lines = ["", table.to_string(), "", result["verdict"], ""]
    best = max(result["runs"], key=lambda run: run["avg"])
    for run in result["runs"]:
        if run["lambda_max"] is not None:
            value = f"lambda_max {run['lambda_max']:.3g} (residual {run['lambda_max_residual']:.1e})"
            lines.append(f"{value}  {run['method']} + {run['optimizer']}")
    lines += ["", f"Figures and tables: {folder}", f"Best student:       {best['model_dir']}"]
    if "wall_s" in result:
        part = ", what earlier calls had done not counted," if result["resumed"] else ""
        took = f"The job took {result['wall_s']:.0f} s{part}"
        lines.append(f"{took} and at most {result['peak_memory_gb']:.1f} GB in one process.")
    lines += ["", "Load it and rank sentences (in .venv/bin/python):", "", display.snippet(best["model_dir"]), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
