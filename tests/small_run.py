"""A run of seconds on a CSV of its own, for the tests of what people do with a finished run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from talas_lib import params, runs, stages

SETTINGS: dict[str, Any] = {
    "student": "tiny",
    "teacher": "tiny",
    "pooling": "mean",  # first tokens of an untrained tiny model are all alike
    "optimizer": "asam",
    "hold_out": 0.25,
    "epochs": 2,
    "batch_size": 16,
    "lr": 1e-3,
    "device": "cpu",
}


def write_csv(file: Path, texts: Sequence[str], column: str = "text") -> Path:
    """A table with the sentences and two made-up sources."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["number", column, "source"])
        table.writerows([i, text, ("mail", "chat")[i % 2]] for i, text in enumerate(texts))
    return file


def small_run(folder: Path, texts: Sequence[str], **changes: Any) -> runs.Run:
    """A finished run on a CSV in the folder. TALAS_OUTPUTS is the caller's."""
    file = write_csv(folder / "mine.csv", texts)
    values = SETTINGS | {"corpus": str(file)} | changes
    if "teachers" in values:
        del values["teacher"]
    return stages.train_run(params.resolve("03_train", values))
