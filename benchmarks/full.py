"""Minutes of whole training runs at the paper's settings: its corpus, five epochs, batches of 32, CLS pooling, AdamW and ASAM.

    TALAS_DATA=... python -m benchmarks.full [--teacher mpnet-base] [--precision fp32] [--out results/bench]

Not part of `make bench`: it takes about twenty minutes and needs the paper's corpus. The runs are ordinary ones below outputs/:
one that is finished is not trained again, and its recorded time is taken. The teacher is cached before the clock starts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import OUT, row, save
from talas_lib import params, stages


def trained(teacher: str, optimizer: str, precision: str) -> dict[str, object]:
    """The train record of the run, trained now unless it is finished."""
    values = {
        "teacher": teacher,
        "corpus": "talas15k",
        "pooling": "cls",
        "optimizer": optimizer,
        "precision": precision,
    }
    run = stages.train_run(params.resolve("03_train", values | {"device": "cpu"}))
    record = run.read_record("train")
    assert record is not None
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="mpnet-base")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    rows = []
    for optimizer in ("adamw", "asam"):
        record = trained(chosen.teacher, optimizer, chosen.precision)
        minutes = [float(str(record["train_s"])) / 60]
        rows.append(row("full-run", f"talas + {optimizer}", "training", "min", minutes, steps=record["steps"]))
    save(rows, "full", chosen.out, teacher=chosen.teacher, precision=chosen.precision)


if __name__ == "__main__":
    main()
