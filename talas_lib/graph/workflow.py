"""The experiment graph as a program: Snakemake's command and surroundings, one experiment at a time, and why a job failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from talas_lib import paths
from talas_lib.errors import TalasError
from talas_lib.graph import plan


def run(of: plan.Plan, tables: Iterable[str], cores: int, *, keep_going: bool) -> int:
    """Do what is left of a preset; Snakemake's exit code. keep_going: after a failure go on with what does not depend on it."""
    with only_one() as lock:
        call = command(of, tables, cores, keep_going=keep_going)
        return subprocess.run(
            call, cwd=paths.root(), check=False, env=environment(), pass_fds=descriptors(lock)
        ).returncode


def command(of: plan.Plan, tables: Iterable[str], cores: int, *, keep_going: bool = False) -> list[str]:
    """Snakemake's arguments. Its greedy scheduler takes jobs by priority, which is the order of the tables.

    A study's job that fails is tried once more: of Jupyter kernels that start at the same moment one may find its port taken.
    """
    call = [sys.executable, "-m", "snakemake", "--snakefile", str(paths.root() / "Snakefile"), "--cores", str(cores)]
    call += ["--rerun-incomplete", "--rerun-triggers", "mtime", "--scheduler", "greedy", "--quiet", "rules"]
    call += ["--keep-going", "--retries", "1"] if keep_going else []
    names = ",".join(tables)
    call += ["--config", f"preset={of.preset}", *([f"tables={names}"] if names else [])]
    again = outdated(of)
    return call + (["--forcerun", *again] if again else [])


def outdated(of: plan.Plan) -> list[str]:
    """Rules whose output is there and yet not what is wanted, which file times do not tell: of a study scores of an earlier
    evaluation, and records that lack a suite; the comparison, when something that it is made from is not there. (To Snakemake
    a file that is newer than what there is of its inputs is up to date, and it makes no others.)
    """
    rules = []
    left = of.left() if of.is_study else {}
    if of.summary_file.is_file() and _lacks_input(of, left):
        rules.append("compare")
    for run in of.runs if left else ():
        for suite in left.get(run.run_id, ()):
            if _is_old(plan.scored_file(run.run_id, suite), suite, plan.precision_of(run.cell)):
                rules.append(f"evaluate_{run.run_id}_{suite}")
        if run.run_id in left and of.record_file(run.run_id).is_file():
            rules.append(f"keep_{run.run_id}")
    return rules


def _lacks_input(of: plan.Plan, left: Mapping[str, Iterable[str]]) -> bool:
    """Whether a run or an encoder is still to be made. left: suites to be scored, by run id, of a study."""
    from talas_lib.study import ready_made

    if not of.is_study:
        return not all(file.is_file() for run in of.runs for file in plan.result_files(run, run.suites))
    return bool(left) or not all(ready_made.is_kept(of, encoder) for encoder in of.encoders)


def _is_old(file: Path, suite: str, precision: str) -> bool:
    """Whether scores are there that are not those of today's evaluation."""
    from talas_lib.study import wanted

    if not file.is_file():
        return False  # Snakemake sees that
    try:
        return not wanted.is_current(json.loads(file.read_text(encoding="utf-8")), suite, precision)
    except (ValueError, KeyError, TypeError):
        return True


def environment() -> dict[str, str]:
    """The interpreter's own programs (papermill, jupyter) come first on the path. Threads of a job are set by Snakemake."""
    programs = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": programs + os.pathsep + os.environ.get("PATH", ""),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


@contextmanager
def only_one() -> Iterator[BaseFileLock]:
    """One experiment at a time on this clone; the operating system frees the lock when all who hold it are dead."""
    folder = paths.root() / ".snakemake"
    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / "talas.lock", timeout=0) as lock:
            _clear_dead_lock()
            yield lock
    except Timeout:
        raise TalasError(
            "another `make quickstart`, `make study` or `python -m talas_lib` is running on this clone; wait for it or stop it"
        ) from None


def descriptors(lock: BaseFileLock) -> tuple[int, ...]:
    """What a child has to inherit to hold the lock as well: Snakemake works on when `python -m talas_lib` alone is killed."""
    number = getattr(getattr(lock, "_context", None), "lock_file_fd", None)
    return () if number is None or os.name != "posix" else (number,)


def _clear_dead_lock() -> None:
    """Remove the lock that a killed Snakemake left behind. The caller holds `.snakemake/talas.lock`, so none is at work."""
    for lock in (paths.root() / ".snakemake" / "locks").glob("*"):
        lock.unlink()


# ---- what failed


def failures(since: float) -> list[tuple[str, str]]:
    """(what, why) of the jobs that failed after `since` (seconds since the epoch), the earliest first.

    An executed notebook holds the error it stopped at, a command's log what it complained of.
    """
    found = []
    for file in (paths.outputs() / "nb").glob("*/*"):
        if file.stat().st_mtime >= since:
            why = _notebook_error(file) if file.suffix == ".ipynb" else _complaint(file)
            if why is not None:
                found.append((file.stat().st_mtime, f"{file.parent.name}, {file.stem}", why))
    return [(what, why) for _, what, why in sorted(found)]


def _notebook_error(file: Path) -> str | None:
    try:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return None
    errors = [output for cell in cells for output in cell.get("outputs", ()) if output.get("output_type") == "error"]
    return f"{errors[0]['ename']}: {errors[0]['evalue']}" if errors else None


def _complaint(file: Path) -> str | None:
    """The last line of a log that ends in an error."""
    if file.suffix != ".log":
        return None
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return last if "error" in last.lower() else None
