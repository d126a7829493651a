"""Every notebook executed once per content, on the smoke preset and in an outputs folder of its own.

The notebooks that make, read or show a run are one chain and share a key: a change of the library, of `params/` or of one of
them makes the whole chain anew, in an empty outputs folder, so that no page shows what another state of the code left behind.
A notebook that stands by itself has a key of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from talas_lib import params

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
# what changes the output of any notebook
SHARED = ("talas_lib/**/*.py", "params/**/*.yaml", "requirements.lock")
# what a notebook outside of the chain reads beside it
READS = {"07_efficiency": ("results/bench/*.csv", "results/paper/table3.csv")}
SMOKE = yaml.safe_load((ROOT / "params" / "presets" / "smoke.yaml").read_text(encoding="utf-8"))
# The page shows the run with ASAM; the other is there to be compared with.
FIRST, SHOWN = "adamw", "asam"


class NotebookFailed(RuntimeError):
    """A notebook that stopped with an error."""


@dataclass(frozen=True)
class Job:
    """One call of papermill. of: the optimizer whose run the notebook gets as `run`."""

    notebook: str
    values: tuple[tuple[str, Any], ...] = ()
    of: str | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """The executed file's name, without its ending."""
        return self.notebook + self.label


def _job(notebook: str, of: str | None = None, label: str = "", **changes: Any) -> Job:
    """A notebook on what it takes of the smoke preset."""
    taken = set(params.notebook_schema(notebook).names) if notebook in params.notebook_names() else set()
    values = {name: value for name, value in (SMOKE | changes).items() if name in taken}
    return Job(notebook, tuple(values.items()), of, label)


def chain() -> list[Job]:
    """The notebooks that build on one another, in order."""
    jobs = [_job("00_quickstart"), _job("01_data"), _job("02_cache_teacher")]
    for optimizer in (FIRST, SHOWN):
        label = "" if optimizer == SHOWN else f"-{optimizer}"
        jobs.append(_job("03_train", label=label, optimizer=optimizer))
        jobs += [_job(name, optimizer, label) for name in ("04_evaluate", "05_sharpness")]
    return [*jobs, _job("06_compare"), _job("08_explore", SHOWN), _job("09_export", SHOWN)]


def alone() -> list[Job]:
    """The notebooks that need none of the others."""
    linked = {job.notebook for job in chain()}
    return [_job(name) for name in sorted(file.stem for file in NOTEBOOKS.glob("*.ipynb")) if name not in linked]


def key(patterns: Iterable[str], values: Any) -> str:
    """Hash over the files (paths and content) and the values."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode())
    for file in sorted({file for pattern in patterns for file in ROOT.glob(pattern) if file.is_file()}):
        digest.update(f"\0{file.relative_to(ROOT).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _keyed() -> Iterator[tuple[str, list[Job]]]:
    jobs = chain()
    books = [f"notebooks/{name}.ipynb" for name in sorted({job.notebook for job in jobs})]
    yield key([*SHARED, *books], [(job.name, job.values) for job in jobs]), jobs
    for job in alone():
        yield key([*SHARED, f"notebooks/{job.notebook}.ipynb", *READS.get(job.notebook, ())], job.values), [job]


def execute_all(folder: Path) -> dict[str, Path]:
    """The executed notebook to show of each name, made where it is not there yet. Raises NotebookFailed.

    folder/<key>/ holds what belongs to one key: nb/ the executed notebooks, outputs/ what they wrote. Folders of other keys go.
    """
    keyed = list(_keyed())
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as lanes:  # the chain, and the others beside it
        doing = [lanes.submit(_lane, folder / keyed[0][0], keyed[0][1])]
        doing.append(lanes.submit(lambda: [_lane(folder / found, jobs) for found, jobs in keyed[1:]]))
    for lane in doing:
        lane.result()
    current = {found for found, _ in keyed}
    for other in folder.iterdir():
        if other.name not in current:
            shutil.rmtree(other)
    shown = {job.notebook: folder / found / "nb" / f"{job.name}.ipynb" for found, jobs in keyed for job in jobs}
    return dict(sorted(shown.items()))


def _lane(folder: Path, jobs: list[Job]) -> None:
    for job in jobs:
        done = folder / "nb" / f"{job.name}.ipynb"
        if not done.exists():
            started = time.monotonic()
            _papermill(job, folder)
            print(f"  executed {job.name} in {time.monotonic() - started:.0f} s", flush=True)


def _papermill(job: Job, folder: Path) -> None:
    """One notebook in a process of its own; its file takes its name only when all cells have run."""
    done, unfinished = (folder / "nb" / f"{job.name}{end}.ipynb" for end in ("", ".unfinished"))
    done.parent.mkdir(parents=True, exist_ok=True)
    values = dict(job.values)
    if job.of is not None:
        values["run"] = _run_id(job.of)
    given = folder / "nb" / f"{job.name}.yaml"
    given.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    source = NOTEBOOKS / f"{job.notebook}.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3", "--cwd", str(ROOT)]
    surroundings = os.environ | {
        "TALAS_OUTPUTS": str(folder / "outputs"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # tiny models gain nothing from more
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    surroundings.pop("MPLBACKEND", None)  # kernels draw inline
    call = [*command, str(source), str(unfinished), *(["-f", str(given)] if values else [])]
    ran = subprocess.run(call, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise NotebookFailed(f"notebooks/{job.notebook}.ipynb failed; as far as it came: {unfinished}\n{ran.stderr}")
    unfinished.replace(done)


def _run_id(optimizer: str) -> str:
    return params.resolve("03_train", dict(_job("03_train", optimizer=optimizer).values)).run_id
