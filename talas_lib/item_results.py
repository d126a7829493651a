"""What each test item came to, one compressed file a model and suite: what a paired bootstrap needs and the scores forget."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from talas_lib.errors import TalasError
from talas_lib.files import atomic_write_bytes

_SUITE = "suite"  # no task's array: those are named <task>/<array>

ByTask = dict[str, dict[str, np.ndarray]]


def save(file: Path, suite: Mapping[str, Any], items: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write the arrays of every task as .npz, whole or not at all, with what was scored (JSON)."""
    arrays = {f"{task}/{name}": array for task, of_task in items.items() for name, array in of_task.items()}
    stream = io.BytesIO()
    np.savez_compressed(stream, **{_SUITE: np.array(json.dumps(suite, sort_keys=True)), **arrays})  # type: ignore[arg-type]
    atomic_write_bytes(file, stream.getvalue())


def load(file: Path, suite: Mapping[str, Any] | None = None) -> ByTask:
    """Arrays by task and name. TalasError for a file that is not there, is damaged, or was scored on another suite."""
    again = "execute notebooks/04_evaluate.ipynb for its run again"
    if not file.is_file():
        raise TalasError(f"there are no results by item in {file}: {again}")
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        recorded = json.loads(str(arrays.pop(_SUITE)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TalasError(f"{file} is damaged ({error}); delete it and {again}") from None
    if suite is not None and recorded != json.loads(json.dumps(suite)):
        raise TalasError(f"{file} belongs to another evaluation than the record beside it; delete it and {again}")
    found: ByTask = {}
    for name, array in arrays.items():
        task, _, column = name.rpartition("/")
        found.setdefault(task, {})[column] = array
    return found
