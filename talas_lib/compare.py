"""Finished runs side by side: tables, the paper's kind of figures, and a sentence that claims no more than the numbers do."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from talas_lib import params, paths, runs
from talas_lib.errors import TalasError

REFERENCE_LABELS = {
    "teacher": "teacher",
    "untrained_cls": "untrained student, CLS pooling",
    "untrained_mean": "untrained student, mean pooling",
}


@dataclass(frozen=True)
class Comparison:
    """Runs of one suite, with the parameters that determine them."""

    members: tuple[runs.Run, ...]
    resolved: tuple[Any, ...]

    @property
    def references(self) -> dict[str, Any]:
        """Scores of the teacher and of the untrained student; the same for every run."""
        record = self.record(self.members[0], "evaluate")
        return dict(record["references"])

    def record(self, run: runs.Run, stage: str) -> dict[str, Any]:
        """A stage's record of a run; TalasError with the notebook to run when it is missing."""
        record = run.read_record(stage)
        if record is None:
            notebook = {"train": "03_train", "evaluate": "04_evaluate", "sharpness": "05_sharpness"}[stage]
            raise TalasError(
                f"run {run.id} has no {stage} record; execute notebooks/{notebook}.ipynb with -p run {run.id}"
            )
        return record

    def label(self, index: int) -> str:
        """Method + optimizer, with whatever else differs between the runs."""
        p = self.resolved[index]
        parts = [f"{p.method} + {p.optimizer}"]
        for name in ("student", "teacher", "pooling", "lr", "epochs", "seed"):
            if len({str(getattr(q, name)) for q in self.resolved}) > 1:
                parts.append(f"{name} {getattr(p, name)}")
        if len({q.rho for q in self.resolved if q.optimizer == p.optimizer}) > 1:
            parts.append(f"rho {p.rho}")
        return ", ".join(parts)


def collect(p: Any) -> Comparison:
    """The runs that the parameters and their grid name. TalasError lists those that are missing or of another recipe."""
    resolved = tuple(params.resolve("03_train", values) for values in params.expand_grid(p.given_values()))
    found = tuple(runs.open_run(q, create=False) for q in resolved)
    missing = [run.id for run in found if run.read_record("train") is None]
    if missing:
        raise TalasError(
            f"not trained yet: {', '.join(missing)}. Execute notebooks/03_train.ipynb with the same parameters"
        )
    return Comparison(found, resolved)


def scores_table(c: Comparison) -> pd.DataFrame:
    """One row a model, one column a task and `avg`; 0 to 100."""
    rows = {}
    for name, label in REFERENCE_LABELS.items():
        rows[label] = _score_row(c.references[name])
    for i, run in enumerate(c.members):
        rows[c.label(i)] = _score_row(c.record(run, "evaluate"))
    return pd.DataFrame.from_dict(rows, orient="index")


def _score_row(record: Mapping[str, Any]) -> dict[str, float]:
    return {task: row["score"] for task, row in record["tasks"].items()} | {"avg": record["avg"]}


def sharpness_table(c: Comparison) -> pd.DataFrame:
    """One row a model and estimate: value, residual, iterations, converged."""
    rows = []
    first = c.record(c.members[0], "sharpness")
    for label, record in [("untrained student", first["untrained"])] + [
        (c.label(i), c.record(run, "sharpness")) for i, run in enumerate(c.members)
    ]:
        rows += [{"model": label, **row} for row in record["rows"]]
    return pd.DataFrame(rows)


def curves_table(c: Comparison) -> pd.DataFrame:
    """The logged training steps of every run, tidy, with a `model` column."""
    frames = [pd.DataFrame(run.read_metrics()).assign(model=c.label(i)) for i, run in enumerate(c.members)]
    return pd.concat(frames, ignore_index=True)


def verdict(c: Comparison) -> str:
    """What the numbers show and what they do not, in a few sentences built from the numbers alone."""
    references = c.references
    better = max(("untrained_cls", "untrained_mean"), key=lambda name: references[name]["avg"])
    base = references[better]
    parts = [f"The teacher averages {references['teacher']['avg']:.1f}"]
    for i, run in enumerate(c.members):
        own = c.record(run, "evaluate")
        wins = sum(row["score"] > base["tasks"][task]["score"] for task, row in own["tasks"].items())
        parts.append(
            f"{c.label(i)} {own['avg']:.1f}, {own['avg'] - base['avg']:+.1f} against the {REFERENCE_LABELS[better]}"
            f" (better on {wins} of {len(own['tasks'])} tasks)"
        )
    text = "; ".join(parts) + "."
    if len(c.members) > 1:
        text += " " + _apart(c)
    return text


def _apart(c: Comparison) -> str:
    """How far the runs lie apart, and how far that goes."""
    averages = [c.record(run, "evaluate")["avg"] for run in c.members]
    text = f"The trained students lie {max(averages) - min(averages):.2f} points apart"
    sharp = {c.label(i): run.read_record("sharpness") for i, run in enumerate(c.members)}
    if all(sharp.values()):
        values = ", ".join(f"{record['lambda_max']:.3g} ({label})" for label, record in sharp.items() if record)
        text += f"; their largest Hessian eigenvalues are {values}"
    seeds = {p.seed for p in c.resolved}
    if len(seeds) == 1:
        return (
            text
            + ". With one seed, a difference of this size may be chance: it does not say which optimizer is better."
        )
    return text + f", over {len(seeds)} seeds."


def summary(c: Comparison, *, name: str) -> dict[str, Any]:
    """The machine-readable result of a comparison (`outputs/<report>/summary.json`)."""
    references = c.references
    return {
        "report": name,
        "teacher_avg": references["teacher"]["avg"],
        "base_cls_avg": references["untrained_cls"]["avg"],
        "base_mean_avg": references["untrained_mean"]["avg"],
        "references": {k: {t: r["score"] for t, r in v["tasks"].items()} for k, v in references.items()},
        "runs": [_run_summary(c, i) for i in range(len(c.members))],
        "verdict": verdict(c),
        "versions": versions(),
    }


def _run_summary(c: Comparison, index: int) -> dict[str, Any]:
    run, p = c.members[index], c.resolved[index]
    trained, scored = c.record(run, "train"), c.record(run, "evaluate")
    sharp = run.read_record("sharpness") or {}
    return {
        "run": run.id,
        "method": p.method,
        "optimizer": p.optimizer,
        "seed": p.seed,
        "avg": scored["avg"],
        "tasks": {task: row["score"] for task, row in scored["tasks"].items()},
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
    return max(c.members, key=lambda run: c.record(run, "evaluate")["avg"])


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
    """`outputs/<name>/`: summary.json, scores.csv, sharpness.csv and the figures as PNG. Returns the folder."""
    from talas_lib import plots

    folder = paths.outputs() / name
    folder.mkdir(parents=True, exist_ok=True)
    scores, sharp = scores_table(c), sharpness_table(c)
    runs.atomic_write_text(folder / "scores.csv", scores.to_csv(float_format="%.4f", index_label="model"))
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
