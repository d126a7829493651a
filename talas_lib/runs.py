"""Runs on disk: `outputs/<run>/` with a manifest, one small record a finished stage, and the logged steps.

    manifest.json   what the run is: parameters, what determines it, versions, stages done
    records/<stage>.json   written last by a stage; its presence is what makes the stage finished
    metrics.jsonl   one logged step a line, appended
    model/  checkpoints/  figures/

Every file but metrics.jsonl appears at once and whole. Folders of other origin in `outputs/` are left alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from talas_lib import __version__, params, paths
from talas_lib.errors import TalasError, did_you_mean, listed
from talas_lib.files import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    drop_torn_line,
    plain,
    whole_rows,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Run",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_text",
    "check_run_id",
    "earlier_seconds",
    "evaluation_stage",
    "find_run",
    "latest_run",
    "list_runs",
    "open_run",
]

Status = Literal["new", "partial", "finished"]
_NAME = r"[a-z0-9]+(?:[._-][a-z0-9]+)*"
RUN_ID = re.compile(rf"{_NAME}--{_NAME}(?:\+{_NAME})*--{_NAME}--{_NAME}--s\d+--[0-9a-f]{{8}}")
_EVALUATE = "evaluate-"
_STAGE = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*")
_PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers", "numpy")
_COLUMNS = [
    "run",
    "student",
    "teacher",
    "method",
    "optimizer",
    "seed",
    "status",
    "avg",
    "suite",
    "stages",
    "corpus",
    "recipe_version",
    "created",
]


class Run:
    """A run's folder. id: see `params.ResolvedParams.run_id`; folder: `outputs/<id>`, which need not exist yet."""

    def __init__(self, run_id: str) -> None:
        self.id = check_run_id(run_id)
        self.folder = paths.outputs() / self.id
        self._earlier_s = 0.0
        self._began = time.monotonic()

    def __repr__(self) -> str:
        return f"Run({self.id!r}, {self.status})"

    @property
    def status(self) -> Status:
        """`finished` once training is, `partial` when anything is there, else `new`."""
        if (self.folder / "records" / "train.json").is_file():
            return "finished"
        return "partial" if self.folder.is_dir() and any(self.folder.iterdir()) else "new"

    @property
    def stages(self) -> tuple[str, ...]:
        """Finished stages, by their records."""
        return tuple(sorted(p.stem for p in self.folder.glob("records/*.json") if _STAGE.fullmatch(p.stem)))

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest. Raises TalasError when there is none or it cannot be read."""
        return _read_json(self.folder / "manifest.json", f"run {self.id} has no usable manifest")

    @property
    def params(self) -> params.ResolvedParams:
        """The parameters the run was made with, as recorded; params files may have changed since."""
        manifest = self.manifest
        return params.from_dict(manifest["params"], manifest["run_config"])

    def write_record(self, stage: str, record: Mapping[str, Any]) -> Path:
        """Write `records/<stage>.json`, which finishes the stage; returns the file.

        The record of another stage may be replaced (other tasks, other batches), that of training never:
        TalasError.
        """
        file = self._record_file(stage)
        if stage == "train" and file.is_file():
            raise TalasError(
                f"run {self.id} is finished and is not overwritten; to train it anew, move {self.folder} away"
            )
        atomic_write_json(file, record)
        self._note_stages()
        return file

    def read_record(self, stage: str) -> dict[str, Any] | None:
        """A stage's record, None when the stage is not finished. Raises TalasError for a damaged file."""
        file = self._record_file(stage)
        return _read_json(file, f"the {stage} record of run {self.id} is damaged") if file.is_file() else None

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """The records of the suites the run was scored on, by suite, the one scored last at the end."""
        files = [self._record_file(stage) for stage in self.stages if stage.startswith(_EVALUATE)]
        files.sort(key=lambda file: (file.stat().st_mtime_ns, file.name))
        found = [self.read_record(file.stem) or {} for file in files]
        return {record["suite"]["name"]: record for record in found}

    def evaluation(self, suite: str | None = None) -> dict[str, Any] | None:
        """The record of a suite, None for the one scored last; None when there is none."""
        if suite is not None:
            return self.read_record(evaluation_stage(suite))
        return next(reversed(self.evaluations().values()), None)

    def items_file(self, suite: str) -> Path:
        """Where the results by test item of a suite lie (see item_results)."""
        return self.folder / "items" / f"{suite}.npz"

    def finish(self, stage: str, **record: Any) -> Path:
        """`write_record` with keywords."""
        return self.write_record(stage, record)

    def _record_file(self, stage: str) -> Path:
        if not _STAGE.fullmatch(stage):
            raise TalasError(f"{stage!r} is no stage name. Accepted: small letters, digits, - and _, such as train")
        return self.folder / "records" / f"{stage}.json"

    def _note_stages(self) -> None:
        file = self.folder / "manifest.json"
        if file.is_file():
            atomic_write_json(file, self.manifest | {"status": dict.fromkeys(self.stages, "finished")})

    @property
    def _metrics_file(self) -> Path:
        return self.folder / "metrics.jsonl"

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one logged step; `step` is required, `elapsed_s` (seconds of training, all sessions) is
        added.

        Raises TalasError on a finished run.
        """
        if self.status == "finished":
            raise TalasError(f"run {self.id} is finished; its metrics take no more rows")
        if not isinstance(row.get("step"), int):
            raise TalasError(f"a metrics row needs a whole `step`, got {row.get('step')!r}")
        elapsed = round(self._earlier_s + time.monotonic() - self._began, 3)
        line = json.dumps(plain({**row, "elapsed_s": elapsed}), allow_nan=False) + "\n"
        self.folder.mkdir(parents=True, exist_ok=True)
        drop_torn_line(self._metrics_file)
        with self._metrics_file.open("ab") as stream:
            stream.write(line.encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged steps in order; a last line that was not written to its end is left out."""
        return list(whole_rows(self._metrics_file))

    def truncate_metrics(self, after_step: int) -> None:
        """Keep the rows up to `after_step`, the step training goes on from; 0 keeps none. Restarts the clock.

        Raises TalasError on a finished run.
        """
        if self.status == "finished":
            raise TalasError(f"run {self.id} is finished; its metrics stay as they are")
        rows = [row for row in self.read_metrics() if row["step"] <= after_step]
        self._earlier_s = float(rows[-1].get("elapsed_s") or 0.0) if rows else 0.0
        self._began = time.monotonic()
        if self._metrics_file.is_file():
            atomic_write_text(self._metrics_file, "".join(json.dumps(row) + "\n" for row in rows))

    @property
    def earlier_s(self) -> float:
        """Seconds of training before the last `truncate_metrics`, up to the step that was kept."""
        return self._earlier_s


def evaluation_stage(suite: str) -> str:
    """The name of a suite's record: `evaluate-<suite>`."""
    return _EVALUATE + suite.replace(".", "-")


def earlier_seconds(run: Run) -> float:
    """Seconds of training in earlier sessions of this run that were kept when it was resumed."""
    return run.earlier_s


def _read_json(file: Path, problem: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TalasError(
            f"{problem} ({file}: {error}); delete the file or move its folder away to make it again"
        ) from None
    if not isinstance(value, dict):
        raise TalasError(
            f"{problem} ({file} holds no mapping); delete the file or move its folder away to make it again"
        )
    return value


# ---- finding runs


def check_run_id(run_id: str) -> str:
    """The id itself. Raises TalasError for anything that is not of a run id's form, such as a path."""
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id):
        raise TalasError(
            f"{run_id!r} is no run id. Accepted: <student>--<teacher>--<method>--<optimizer>--s<seed>--<8"
            " hex digits>"
            " in small letters, digits, `.`, `_` and `-` (several teachers with `+` between them), or latest"
        )
    return run_id


def open_run(p: params.ResolvedParams, *, create: bool = True) -> Run:
    """The run these parameters determine, made if it is not there (unless `create` is False).

    Raises TalasError when its folder belongs to other parameters.
    """
    run, config = Run(p.run_id), p.run_config()
    file = run.folder / "manifest.json"
    if file.is_file():
        if run.manifest.get("run_config") != config:
            raise TalasError(f"{run.folder} was made with other parameters under the same id; move that folder away")
    elif create:
        atomic_write_json(file, _new_manifest(p, config))
    return run


def _new_manifest(p: params.ResolvedParams, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": p.run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe_version": config["recipe_version"],
        "status": {},
        "versions": _versions(),
        "params": p.to_dict(),
        "run_config": dict(config),
    }


def _versions() -> dict[str, str | None]:
    """Versions from the installed packages' metadata; nothing is imported."""
    found: dict[str, str | None] = {"talas": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def find_run(run_id: str) -> Run:
    """An existing run by id, or the latest finished one for `latest`. Raises TalasError when there is none."""
    if run_id == "latest":
        return latest_run()
    run = Run(run_id)
    if run.status == "new":
        ids = [folder.name for folder in _run_folders()]
        raise TalasError(f"no run {run_id!r} in {paths.outputs()}.{did_you_mean(run_id, ids)} There are: {listed(ids)}")
    return run


def latest_run() -> Run:
    """The run whose training finished last. Raises TalasError when none has."""
    finished = [folder / "records" / "train.json" for folder in _run_folders()]
    finished = [file for file in finished if file.is_file()]
    if not finished:
        raise TalasError(
            f"no finished run in {paths.outputs()}: execute notebooks/03_train.ipynb, or point TALAS_OUTPUTS"
            " at the folder with runs"
        )
    newest = max(finished, key=lambda file: (file.stat().st_mtime_ns, file.parts))
    return Run(newest.parent.parent.name)


def _run_folders() -> list[Path]:
    """Folders named like runs, sorted; caches, reports and foreign folders are passed over."""
    outputs = paths.outputs()
    found = outputs.iterdir() if outputs.is_dir() else ()
    return sorted(folder for folder in found if RUN_ID.fullmatch(folder.name) and folder.is_dir())


def list_runs() -> pd.DataFrame:
    """One row a run: run, student, teacher, method, optimizer, seed, status, avg (0 to 100, NaN before evaluation)
    and suite of the last evaluation, stages, corpus, recipe_version, created. A folder without a usable manifest is
    listed as partial.
    """
    import pandas as pd

    table = pd.DataFrame([_row(Run(folder.name)) for folder in _run_folders()], columns=_COLUMNS)
    return table.astype({"avg": "float64", "seed": "int64"})


def _row(run: Run) -> dict[str, Any]:
    student, teacher, method, optimizer, seed, _ = run.id.split("--")
    row: dict[str, Any] = {"run": run.id, "student": student, "teacher": teacher, "method": method}
    row |= {
        "optimizer": optimizer,
        "seed": int(seed[1:]),
        "status": run.status,
        "stages": ", ".join(run.stages),
    }
    try:
        manifest = run.manifest
        row |= {key: manifest[key] for key in ("recipe_version", "created")}
        row["corpus"] = manifest["params"]["values"]["corpus"]
    except (TalasError, KeyError, TypeError):
        row["status"] = "partial"
    with contextlib.suppress(TalasError, KeyError, TypeError, ValueError):
        scored = run.evaluation() or {}
        row |= {"avg": float(scored.get("avg", math.nan)), "suite": scored["suite"]["name"] if scored else ""}
    return row
