"""Where things lie on this machine: the project's folders and those named by environment variables.

`TALAS_OUTPUTS` moves `outputs/` (it may lie outside the work tree), `TALAS_RESULTS` moves `results/` but for `results/bench`,
which estimates of any study are reckoned from (the benchmarks have `--out`). `TALAS_DATA` and `TALAS_ASSETS` name folders of
local data sets and local models. All functions read the environment at the call, so that tests and notebooks can change it.
"""

from __future__ import annotations

import os
from pathlib import Path

from talas_lib.errors import TalasError


def root() -> Path:
    """The project folder: the nearest one, from the current folder upwards, that holds `params/` beside
    `notebooks/` or `talas_lib/`; otherwise the one this package was installed from (`pip install -e .`).

    A notebook runs in `notebooks/` under JupyterLab and wherever papermill was called; both find the same
    folder. Raises TalasError when neither search finds one.
    """
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            if _is_project(folder):
                return folder
    raise TalasError(
        f"no project folder at or above {Path.cwd()}: expected a folder with params/ and notebooks/."
        " Run from inside a clone of the repository, or install it with `pip install -e .`"
    )


def _is_project(folder: Path) -> bool:
    return (folder / "params").is_dir() and any((folder / name).is_dir() for name in ("notebooks", "talas_lib"))


def params_dir() -> Path:
    """`params/`: teachers, students, methods, optimizers, corpora, tasks and presets."""
    return root() / "params"


def outputs() -> Path:
    """`TALAS_OUTPUTS`, or `outputs/` of the project; need not exist yet. A relative value counts from the
    project folder.
    """
    given = os.environ.get("TALAS_OUTPUTS", "").strip()
    return (root() / Path(given).expanduser()).resolve() if given else root() / "outputs"


def results() -> Path:
    """`TALAS_RESULTS`, or `results/` of the project: small tables and records that are committed. A relative value counts
    from the project folder.
    """
    given = os.environ.get("TALAS_RESULTS", "").strip()
    return (root() / Path(given).expanduser()).resolve() if given else root() / "results"


def cache_dir() -> Path:
    """`cache/` of the outputs folder: extracted packages, teacher embeddings. Safe to delete: all of it can
    be made again.
    """
    return outputs() / "cache"


def data_dir() -> Path | None:
    """The folder named by `TALAS_DATA`, or None. Raises TalasError when it is named and not there."""
    return _named_folder("TALAS_DATA", "<task>/<split>.jsonl.gz")


def assets_dir() -> Path | None:
    """The folder named by `TALAS_ASSETS`, or None. Raises TalasError when it is named and not there."""
    return _named_folder("TALAS_ASSETS", "<model name>/config.json")


def _named_folder(variable: str, layout: str) -> Path | None:
    given = os.environ.get(variable, "").strip()
    if not given:
        return None
    folder = locate(given)
    if not folder.is_dir():
        raise TalasError(
            f"{variable} names {given!r}, which is not a folder. It should hold {layout};"
            f" correct the path, or unset {variable} to do without local files"
        )
    return folder


def locate(text: str) -> Path:
    """A path the user wrote, made absolute: `~` is the home folder; a relative one counts from the current
    folder if it exists there, else from the project folder (the same text then works in JupyterLab and under
    papermill).
    """
    path = Path(text).expanduser()
    if path.is_absolute():
        return path
    here = Path.cwd() / path
    return here.resolve() if here.exists() else (root() / path).resolve()
