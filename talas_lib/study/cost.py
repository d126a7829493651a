"""What training a run of a study costs.

Runs of a study share their machine with each other and with whatever else is going on, so the time one took by the clock says
little. Its steps are known, and what a step costs on an idle machine is measured (results/bench): the product is the cost.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from talas_lib import bench

if TYPE_CHECKING:
    from talas_lib.graph.estimates import Rates
    from talas_lib.study.blocks import Block

HOW = (
    "Training minutes are reckoned: the steps of a run times what a step took on two idle threads (results/bench, by method,"
    " optimizer and precision). By the clock, with other work beside them, the runs took what `train_s` in runs.csv says."
)
CLOCK = "Training minutes are those of the clock."


def minutes(block: Block, index: int) -> float:
    """Minutes of training a run: reckoned from the benchmarks; by the clock where they do not fit, or no step was taken."""
    train = block.record(block.members[index], "train")
    if not reckoned(block) or not train["steps"]:  # a computed student takes no step
        return float(train["train_s"]) / 60
    return _rates(bench.folder()).train_s(block.resolved[index], train["sentences"], "cpu") / 60


def reckoned(block: Block) -> bool:
    """Whether the benchmarks fit a block's runs: they are there, and those runs train on a CPU."""
    from talas_lib.graph.estimates import MEASURED

    there = all((bench.folder() / f"{name}.csv").is_file() for name in MEASURED)
    return there and block.base.device == "cpu"


@cache
def _rates(folder: Path) -> Rates:
    """The tables of `folder`, read once."""
    from talas_lib.graph.estimates import Rates

    return Rates.read()
