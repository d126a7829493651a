"""Finished runs side by side: tables, the paper's kind of figures, and a sentence that claims no more than the numbers do."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from talas_lib import paths, runs
from talas_lib.comparison import REFERENCE_LABELS, Comparison, averages_of, collect, unseen_scores
from talas_lib.uncertainty import mean_and_sd

__all__ = [
    "REFERENCE_LABELS",
    "Comparison",
    "alarms",
    "best_run",
    "collect",
    "curves_table",
    "display_path",
    "efficiency_table",
    "means_table",
    "scores_table",
    "sharpness_table",
    "summary",
    "unseen_table",
    "verdict",
    "versions",
    "write_report",
]
_MILLIONS = {"M parameters": "parameters", "M without embeddings": "parameters_without_embeddings"}
_COSTS = {
    "ms a sentence": "ms_per_sentence",
    "threads": "threads",
    "device": "device",
    "precision": "precision",
    "avg / M parameters": "score_per_million_parameters",
    "avg / ms": "score_per_ms",
}
_SHARPNESS_COLUMNS = ("model", "quantity", "estimator", "value", "residual", "iterations", "converged", "batch")


def scores_table(c: Comparison) -> pd.DataFrame:
    """One row a model, one column a task and `avg`; 0 to 100."""
    return pd.DataFrame.from_dict({label: _score_row(record) for label, record in _models(c).items()}, orient="index")


def means_table(c: Comparison) -> pd.DataFrame:
    """`scores_table` with one row a group of runs that differ in the seed alone: the means over its seeds."""
    references = {label: _score_row(record) for label, record in c.reference_rows().items()}
    rows = {label: [_score_row(c.evaluation(i)) for i in indices] for label, indices in c.groups().items()}
    means = {label: pd.DataFrame(of_seeds).mean().to_dict() for label, of_seeds in rows.items()}
    return pd.DataFrame.from_dict({**references, **means}, orient="index")


def _models(c: Comparison) -> dict[str, dict[str, Any]]:
    """Evaluate records by label: references, then runs."""
    return {**c.reference_rows(), **{c.label(i): c.evaluation(i) for i in range(len(c.members))}}


def _score_row(record: Mapping[str, Any]) -> dict[str, float]:
    return {task: row["score"] for task, row in record["tasks"].items()} | {"avg": record["avg"]}


def unseen_table(c: Comparison) -> pd.DataFrame:
    """Scores without the pairs that share a sentence with the training corpus: one row a model, a column for each such task
    and `avg`, in which the other tasks keep their score. Empty where the corpus shares no sentence with a task.
    """
    rows, suite = {}, c.evaluation(0)["suite"]
    for label, record in _models(c).items():
        unseen = unseen_scores(record)
        if not unseen:
            return pd.DataFrame()
        rows[label] = {f"{task}, unseen": score for task, score in unseen.items()}
        rows[label]["avg"] = averages_of(suite, record, unseen)["avg"]
    return pd.DataFrame.from_dict(rows, orient="index")


def efficiency_table(c: Comparison) -> pd.DataFrame:
    """What each model costs and what the average score is worth: one row a model.

    Parameters in millions (all; without the table of token vectors), wall milliseconds a sentence with the threads, device and
    precision they were measured with, and the average for each million parameters and for each millisecond.
    """
    return pd.DataFrame.from_dict({label: _cost_row(r) for label, r in _models(c).items()}, orient="index")


def _cost_row(record: Mapping[str, Any]) -> dict[str, Any]:
    cost = record.get("efficiency") or {}
    millions = {name: cost[key] / 1e6 if key in cost else None for name, key in _MILLIONS.items()}
    rest = {name: cost.get(key) for name, key in _COSTS.items()}
    return {"avg": record["avg"], **millions, **rest}


def alarms(c: Comparison) -> dict[str, str]:
    """What `collapse` has to say of the runs, by label: during training, and of the finished student's vectors."""
    found = {}
    for i, run in enumerate(c.members):
        during, after = (record.get("collapse") for record in (c.record(run, "train"), c.evaluation(i)))
        text = "; ".join(filter(None, (during and f"in training, {during}", after and f"after training, {after}")))
        if text:
            found[c.label(i)] = text
    return found


def sharpness_table(c: Comparison) -> pd.DataFrame:
    """One row a model and estimate: value, residual, iterations, converged. A student that no loss has made is left out.

    Empty when no run has been measured, as with a preset of `sharpness_batches: 0`; TalasError when only some have.
    """
    trained = [(i, run) for i, run in enumerate(c.members) if c.trained(i)]
    if not any(c.sharpness(i) for i, _ in trained):
        return pd.DataFrame(columns=_SHARPNESS_COLUMNS)
    records = [(c.label(i), c.record(run, "sharpness")) for i, run in trained]
    records.insert(0, ("untrained student", records[0][1]["untrained"]))
    return pd.DataFrame([{"model": label, **row} for label, record in records for row in record["rows"]])


def curves_table(c: Comparison) -> pd.DataFrame:
    """The logged training steps of every run, tidy, with a `model` column."""
    frames = [pd.DataFrame(rows).assign(model=c.label(i)) for i in range(len(c.members)) if (rows := c.logged(i))]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["step", "epoch", "loss", "model"])


def verdict(c: Comparison) -> str:
    """What the numbers show and what they do not, in a few sentences built from the numbers alone."""
    teachers = {label: row["avg"] for label, row in c.reference_rows().items() if label.startswith("teacher")}
    if len(teachers) == 1:
        parts = [f"The teacher averages {next(iter(teachers.values())):.1f}"]
    else:
        parts = [", ".join(f"{label} averages {avg:.1f}" for label, avg in teachers.items())]
    parts += [_standing(c, label, indices) for label, indices in c.groups().items()]
    text = "; ".join(parts) + "."
    if len(c.members) > 1:
        text += " " + _apart(c)
    return text


def _standing(c: Comparison, label: str, indices: Sequence[int]) -> str:
    """A group's average and its gain over the better untrained student, over its seeds."""
    records = [c.evaluation(i) for i in indices]
    references = records[0]["references"]
    better = max(("untrained_cls", "untrained_mean"), key=lambda name: references[name]["avg"])
    base = references[better]
    mean, sd = mean_and_sd([record["avg"] for record in records])
    task_means = {task: mean_and_sd([r["tasks"][task]["score"] for r in records])[0] for task in records[0]["tasks"]}
    wins = sum(score > base["tasks"][task]["score"] for task, score in task_means.items())
    seeds = f" (sd {sd:.2f} over {len(records)} seeds)" if len(records) > 1 else ""
    return (
        f"{label} {mean:.1f}{seeds}, {mean - base['avg']:+.1f} against the {REFERENCE_LABELS[better]}"
        f" (better on {wins} of {len(task_means)} tasks)"
    )


def _apart(c: Comparison) -> str:
    """How far the runs lie apart, and how far that goes."""
    from talas_lib import spread

    averages = [c.evaluation(i)["avg"] for i in range(len(c.members))]
    text = f"The trained students lie {max(averages) - min(averages):.2f} points apart"
    sharp = {c.label(i): c.sharpness(i) for i in range(len(c.members)) if c.trained(i)}
    if sharp and all(sharp.values()):
        values = ", ".join(f"{record['lambda_max']:.3g} ({label})" for label, record in sharp.items() if record)
        text += f"; their largest Hessian eigenvalues are {values}"
    if len({p.seed for p in c.resolved}) == 1:
        return (
            text
            + ". With one seed, a difference of this size may be chance: it does not say which optimizer is better."
        )
    return f"{text}. {spread.in_words(c)}".rstrip()


def summary(c: Comparison, *, name: str) -> dict[str, Any]:
    """The machine-readable result of a comparison (`outputs/<report>/summary.json`)."""
    from talas_lib import spread

    references = c.references
    return {
        "report": name,
        "teacher_avg": references["teacher"]["avg"],
        "base_cls_avg": references["untrained_cls"]["avg"],
        "base_mean_avg": references["untrained_mean"]["avg"],
        "references": {k: {t: r["score"] for t, r in v["tasks"].items()} for k, v in references.items()},
        "runs": [_run_summary(c, i) for i in range(len(c.members))],
        "groups": spread.group_rows(c),
        "verdict": verdict(c),
        "versions": versions(),
    }


def _run_summary(c: Comparison, index: int) -> dict[str, Any]:
    run, p = c.members[index], c.resolved[index]
    trained, scored = c.record(run, "train"), c.evaluation(index)
    sharp = c.sharpness(index) or {}
    return {
        "run": run.id,
        "method": p.method,
        "optimizer": p.optimizer,
        "seed": p.seed,
        "avg": scored["avg"],
        "tasks": {task: row["score"] for task, row in scored["tasks"].items()},
        "unseen": unseen_scores(scored),
        "efficiency": scored.get("efficiency"),
        "collapse": {"train": trained.get("collapse"), "evaluate": scored.get("collapse")},
        "lambda_max": sharp.get("lambda_max"),
        "lambda_max_residual": sharp.get("lambda_max_residual"),
        "seconds": {
            "cache": trained["cache_s"],
            "train": trained["train_s"],
            "evaluate": scored["seconds"],
            "sharpness": sharp.get("seconds"),
        },
        "model_dir": display_path(run.folder / "model"),
    }


def best_run(c: Comparison) -> runs.Run:
    """The run with the highest average."""
    return c.members[max(range(len(c.members)), key=lambda i: c.evaluation(i)["avg"])]


def display_path(path: Path) -> str:
    """A path below the project root as a relative one, any other as it is."""
    try:
        return str(path.relative_to(paths.root()))
    except ValueError:
        return str(path)


def versions(
    packages: Sequence[str] = ("torch", "transformers", "sentence-transformers", "scikit-learn", "numpy"),
) -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    from talas_lib import __version__

    return {"talas": __version__, "python": platform.python_version()} | {
        n: importlib.metadata.version(n) for n in packages
    }


def write_report(c: Comparison, *, name: str) -> Path:
    """`outputs/<name>/`: summary.json, tables (scores, unseen, efficiency, seeds, sharpness) as CSV, figures as PNG.

    The table of unseen pairs is left out where the corpus shares no sentence with the tasks. Returns the folder.
    """
    from talas_lib import plots, spread

    folder = paths.outputs() / name
    folder.mkdir(parents=True, exist_ok=True)
    scores, sharp = scores_table(c), sharpness_table(c)
    tables = {"scores": scores, "unseen": unseen_table(c), "efficiency": efficiency_table(c)}
    for table_name, table in tables.items():
        if not table.empty:
            text = table.to_csv(float_format="%.4f", index_label="model")
            runs.atomic_write_text(folder / f"{table_name}.csv", text)
    runs.atomic_write_text(folder / "seeds.csv", spread.seeds_table(c).to_csv(index_label="group"))
    runs.atomic_write_text(folder / "sharpness.csv", sharp.to_csv(index=False))
    for figure_name, figure in (
        ("scores", plots.scores(scores)),
        ("eigenvalues", plots.eigenvalues(sharp)),
        ("training", plots.training_curves(curves_table(c))),
    ):
        plots.save(figure, folder / f"{figure_name}.png")
    file = folder / "summary.json"
    runs.atomic_write_json(file, summary(c, name=name))
    return folder
