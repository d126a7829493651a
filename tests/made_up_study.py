"""Studies without training: runs whose records are made up, in folders of the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from talas_lib import item_results, params, paths, records, runs

Score = Callable[[Any, str], float]  # of resolved parameters and a task, 0 to 100
BASE: dict[str, Any] = {
    "teacher": "tiny",
    "student": "tiny",
    "corpus": "tiny",
    "max_sentences": 32,
    "tasks": "paper",
    "method": "talas",
    "optimizer": "adamw",
    "pooling": "cls",
    "seed": 42,
    "epochs": 3,
    "batch_size": 8,
    "lr": 2.0e-5,
    "precision": "bf16",
    "eval_precision": "bf16",
    "device": "cpu",
    "report": "made-up",
}
METHODS = {
    "method, optimizer, pooling": [["talas", "asam", "cls"], ["talas", "asam", "mean"], ["simcse", "adamw", "cls"]]
}
TABLES: dict[str, Any] = {
    "table1": {"title": "Methods", "paper": "table1", "grid": METHODS | {"seed": [42, 43, 44]}},
    "table9": {"title": "Optimizers", "paper": "table9", "grid": {"optimizer": ["sam", "asam"]}},
}


def study(tables: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Values of a preset with tables."""
    return {**BASE, "tables": dict(TABLES if tables is None else tables), **changes}


def resolved(cell: Mapping[str, Any]) -> params.ResolvedParams:
    return params.resolve("03_train", cell)


def identity(suite: str, precision: str = "bf16") -> dict[str, Any]:
    """What scoring.Evaluation.identity gives, with made-up data."""
    spec = params.load_tasks(suite)
    return {
        "name": suite,
        "protocol": spec.protocol,
        "tasks": [[task.name, task.metric, True, task.in_domain] for task in spec.tasks],
        "sha256": [params.config_hash({"data": task.name}) for task in spec.tasks],
        "precision": precision,
        "version": records.EVALUATION_VERSION,
    }


def scores(
    suite: str, score: Callable[[str], float], unseen: Mapping[str, tuple[int, float]] | None = None
) -> dict[str, Any]:
    """What scoring.scores_record gives, with efficiency; unseen: pairs left and their score by task. 200 items a task."""
    of = identity(suite)
    tasks: dict[str, dict[str, Any]] = {
        name: {
            "kind": "any",
            "in_average": True,
            "metric": metric,
            "score": score(name),
            "n": 200,
            "details": {},
            "seconds": 0.1,
        }
        for name, metric, _, _ in of["tasks"]
    }
    for task, (left, value) in (unseen or {}).items():
        tasks[task]["details"] = {"unseen_n": left, "unseen_score": value}
    domains = {name: in_domain for name, _, _, in_domain in of["tasks"]}
    groups = {"avg_in": [True], "avg_out": [False], "avg": [True, False, None]}
    averages = {
        name: float(np.mean(values))
        for name, which in groups.items()
        if (values := [tasks[task]["score"] for task, domain in domains.items() if domain in which])
    }
    return {
        **averages,
        "tasks": tasks,
        "texts": 400,
        "dim": 32,
        "geometry": {"mean_cosine": 0.25, "effective_rank": 20.5, "rows": 512},
        "encode_seconds": 1.0,
        "seconds": 2.0,
        "efficiency": {"parameters": 1000, "ms_per_sentence": 1.5, "threads": 1, "device": "cpu", "score_per_ms": 1.0},
    }


def made_up_run(
    cell: Mapping[str, Any],
    score: Score,
    *,
    unseen: Mapping[str, tuple[int, float]] | None = None,
    items: bool = False,
    train_s: float = 90.0,
) -> runs.Run:
    """A finished run in the outputs folder, scored on the suites of its cell."""
    p = resolved(cell)
    run = runs.open_run(p)
    if run.read_record("train") is None:
        first, last = ({"step": step, "epoch": 1.0, "lr": 1e-5, "loss": 1.0 / step} for step in (1, 12))
        run.append_metrics(first)
        run.append_metrics(last)
        run.write_record("train", trained(p, last, train_s))
    for suite in params.cell_suites(cell):
        of = identity(suite, cell.get("eval_precision", "fp32"))
        own = scores(suite, lambda task: score(p, task), unseen if suite == "paper" else None)
        references = {
            kind: scores(suite, lambda _, level=level: level, unseen if suite == "paper" else None)
            for kind, level in (("teacher", 90.0), ("untrained_cls", 20.0), ("untrained_mean", 30.0))
        }
        run.write_record(runs.evaluation_stage(suite), {"suite": of, **own, "collapse": None, "references": references})
        if items:
            item_results.save(run.items_file(suite), of, made_up_items(p, suite))
    return run


def trained(p: Any, last: Mapping[str, Any], train_s: float) -> dict[str, Any]:
    return {
        "steps": 12,
        "sentences": 32,
        "corpus_sha256": "0" * 64,
        "teacher_dims": [32],
        "cache_key": "teacher-0",
        "cache_s": 0.5,
        "train_s": train_s,
        "save_s": 0.1,
        "resumed_from": 0,
        "pooling": p.pooling,
        "output": "pooled",
        "dim": 32,
        "final": dict(last),
        "collapse": None,
    }


def made_up_items(p: Any, suite: str) -> dict[str, dict[str, np.ndarray]]:
    """Results by item: targets of the task, predictions of the run."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for number, task in enumerate(params.load_tasks(suite).tasks):
        truth = np.random.default_rng(number).integers(0, 2, 200)
        right = np.random.default_rng([number, p.seed, len(p.optimizer)]).random(200) < (
            0.9 if p.optimizer == "asam" else 0.6
        )
        guess = np.where(right, truth, 1 - truth)
        if task.metric == "macro_f1":
            found[task.name] = {"truth": truth.astype(np.int16), "predicted": guess.astype(np.int16)}
        else:
            cosine = (guess + np.linspace(0, 0.5, 200)).astype(np.float32)
            found[task.name] = {"cosine": cosine, "target": truth.astype(np.float32)}
    return found


def cells(values: Mapping[str, Any], table: str | None = None) -> list[dict[str, Any]]:
    """The cells of a study, or of one of its tables."""
    return [cell for of in params.expand_tables(values) for cell in of.cells if table in (None, of.name)]


def result(*names: str) -> Any:
    """A file below the study's results."""
    return paths.results() / "made-up" / "/".join(names)
