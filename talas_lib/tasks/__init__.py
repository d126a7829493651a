"""Evaluation tasks: what they hold and how they are built. `talas_lib.evaluate` scores them."""

from talas_lib.tasks.data import (
    Classification,
    Clustering,
    PairRegression,
    Pairs,
    Regression,
    Retrieval,
    Similarity,
    Sources,
    Task,
    TaskData,
    held_out_texts,
)
from talas_lib.tasks.suite import BUILDERS, load_tasks, needed_assets

__all__ = [
    "BUILDERS",
    "Classification",
    "Clustering",
    "PairRegression",
    "Pairs",
    "Regression",
    "Retrieval",
    "Similarity",
    "Sources",
    "Task",
    "TaskData",
    "held_out_texts",
    "load_tasks",
    "needed_assets",
]
