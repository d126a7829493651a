"""`python -m talas_lib PRESET`: run a preset's experiment through Snakemake and print what came out.

Call it again and it does nothing again; after an interruption it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from talas_lib import display, params, paths, records, runs
from talas_lib.errors import TalasError


def main(arguments: list[str] | None = None) -> int:
    """Run a preset; the exit code is Snakemake's, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m talas_lib", description=__doc__)
    parser.add_argument("preset", help=f"a file of params/presets: {', '.join(params.available('presets'))}")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="processor cores to use (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="list the jobs and do nothing")
    chosen = parser.parse_args(arguments)
    try:
        return _run(chosen.preset, chosen.cores, chosen.dry_run)
    except TalasError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def _run(preset: str, cores: int, dry_run: bool) -> int:
    values = params.load_preset(preset)
    cells = [params.resolve("03_train", cell) for cell in params.expand_grid(values)]
    for p in cells:
        p.check_available()
    resumed = any(records.run_file(p.run_id, "train").is_file() for p in cells)
    folder = paths.outputs() / (values.get("report") or preset)
    summary_file = folder / "summary.json"
    if summary_file.is_file() and not dry_run:
        before: float | None = summary_file.stat().st_mtime
    else:
        before = None
    if not dry_run:
        fetched = _fetch(values)
        display.say(f"assets ready ({fetched:.0f} s)")
    began = time.monotonic()
    with _only_one():
        code = subprocess.run(
            _snakemake(preset, cores, dry_run), cwd=paths.root(), check=False, env=_environment()
        ).returncode
    if code or dry_run:
        return code
    if before is not None and summary_file.stat().st_mtime == before:
        sys.stdout.write(f"\n{preset}: nothing to do, every result is there already.\n")
    else:
        _complete_summary(summary_file, time.monotonic() - began, resumed)
    sys.stdout.write(report_text(json.loads(summary_file.read_text()), folder))
    return 0


def _fetch(values: dict[str, Any]) -> float:
    """Download and verify what the preset needs, before the clock of the job starts."""
    from talas_lib import sources

    began = time.monotonic()
    for cell in params.expand_grid(values):
        p = params.resolve("03_train", cell)
        sources.prefetch(
            [*p.teacher_specs, p.student_spec], p.corpus_spec, params.load_tasks(values.get("tasks", "mini"))
        )
    return time.monotonic() - began


def _snakemake(preset: str, cores: int, dry_run: bool) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(paths.root() / "Snakefile"), "--cores", str(cores)]
    command += ["--rerun-incomplete", "--rerun-triggers", "mtime", "--quiet", "rules", "--config", f"preset={preset}"]
    return command + (["--dry-run"] if dry_run else [])


def _environment() -> dict[str, str]:
    """The interpreter's own programs (papermill, jupyter) come first on the path."""
    programs = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": programs + os.pathsep + os.environ.get("PATH", ""),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


@contextmanager
def _only_one() -> Iterator[None]:
    """One experiment at a time on this clone; the operating system frees the lock when its holder dies."""
    folder = paths.root() / ".snakemake"
    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / "talas.lock", timeout=0):
            _clear_dead_lock()
            yield
    except Timeout:
        raise TalasError(
            "another `make quickstart` or `python -m talas_lib` is running on this clone; wait for it or stop it"
        ) from None


def _clear_dead_lock() -> None:
    """Remove the lock that a killed Snakemake left behind. The caller holds `.snakemake/talas.lock`, so none is at work."""
    for lock in (paths.root() / ".snakemake" / "locks").glob("*"):
        lock.unlink()


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
