"""Finished runs side by side: which they are, what they are called, and their records, which have to fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib import item_results, methods, params, runs
from talas_lib.errors import TalasError

if TYPE_CHECKING:
    import pandas as pd

REFERENCE_LABELS = {
    "teacher": "teacher",
    "untrained_cls": "untrained student, CLS pooling",
    "untrained_mean": "untrained student, mean pooling",
}
# parameters named in a label where they differ: between all runs, and between those of one optimizer
_SHOWN = (
    "student",
    "teacher_names",
    "pooling",
    "lr",
    "epochs",
    "batch_size",
    "corpus",
    "max_sentences",
    "hold_out",
    "precision",
    "warmup",
    "weight_decay",
    "max_length",
)
OF_OPTIMIZER = ("rho", "eta", "same_dropout", "perturb_heads")
_WEIGHT = "weight_"  # settings of a method that weigh a term of its loss; one of 0 leaves the term out


@dataclass(frozen=True)
class Comparison:
    """Runs of one suite, with the parameters that determine them. suite: its name, None for the one last evaluated."""

    members: tuple[runs.Run, ...]
    resolved: tuple[Any, ...]
    suite: str | None = None

    @property
    def references(self) -> dict[str, Any]:
        """Records of the first run's teacher and untrained student; those of all runs where all have the same models."""
        return dict(self.evaluation(0)["references"])

    def evaluation(self, index: int) -> dict[str, Any]:
        """The evaluate record of a run. TalasError when it is not there, or not of the same tasks as that of the first run."""
        record, first = (self._evaluation(self.members[i]) for i in (index, 0))
        if record["suite"] != first["suite"]:
            raise TalasError(
                f"runs {self.members[0].id} and {self.members[index].id} were evaluated differently "
                f"({_evaluated(first)}; {_evaluated(record)}); execute notebooks/04_evaluate.ipynb for both with equal parameters"
            )
        return record

    def record(self, run: runs.Run, stage: str) -> dict[str, Any]:
        """The record of `train` or `sharpness` of a run; TalasError with the notebook to run when it is missing."""
        record = run.read_record(stage)
        if record is None:
            notebook = {"train": "03_train", "sharpness": "05_sharpness"}[stage]
            raise TalasError(
                f"run {run.id} has no {stage} record; execute notebooks/{notebook}.ipynb with -p run {run.id}"
            )
        return record

    def _evaluation(self, run: runs.Run) -> dict[str, Any]:
        record = run.evaluation(self.suite)
        if record is None:
            wanted = "" if self.suite is None else f" -p tasks {self.suite}"
            raise TalasError(
                f"run {run.id} has no record of tasks {self.suite or 'of any suite'}; execute notebooks/04_evaluate.ipynb"
                f" with -p run {run.id}{wanted}"
            )
        return record

    def sharpness(self, index: int) -> dict[str, Any] | None:
        """The sharpness record of a run, None when it has not been measured."""
        return self.members[index].read_record("sharpness")

    def logged(self, index: int) -> list[dict[str, Any]]:
        """The logged training steps of a run."""
        return self.members[index].read_metrics()

    def items(self, index: int) -> item_results.ByTask:
        """What each test item came to for a run. TalasError where that is missing or belongs to another evaluation."""
        suite = self.evaluation(index)["suite"]
        return item_results.load(self.members[index].items_file(suite["name"]), suite)

    def item_differences(self, baseline: str | None = None, *, progress: Any = None) -> pd.DataFrame:
        """Differences over resampled test items (see spread.bootstrap_table)."""
        from talas_lib import spread

        return spread.bootstrap_table(self, baseline, progress=progress)

    def trained(self, index: int) -> bool:
        """Whether a loss was trained; False for a method that computes its student, such as static."""
        return not methods.builds_student(self.resolved[index].method)

    def label(self, index: int) -> str:
        """Method + optimizer, with whatever else differs between the runs."""
        seeds = {q.seed for q in self.resolved}
        return self.group(index) + (f", seed {self.resolved[index].seed}" if len(seeds) > 1 else "")

    def group(self, index: int) -> str:
        """The label without the seed: the same for runs that differ in nothing else."""
        return self.name_of(self.resolved[index])

    def name_of(self, p: Any) -> str:
        """What distinguishes these parameters from those of the other runs, the seed left out."""
        parts = [f"{p.method} + {p.optimizer}"]
        parts += [f"{n.removesuffix('_names')} {getattr(p, n)}" for n in _SHOWN if len(self.values_of(p, n)) > 1]
        parts += self._changes(p)
        differing = [n for n in OF_OPTIMIZER if len(self.values_of(p, n)) > 1 and getattr(p, n) is not False]
        parts += [n if getattr(p, n) is True else f"{n} {getattr(p, n)}" for n in differing]
        return ", ".join(parts)

    def values_of(self, p: Any, name: str) -> set[str]:
        """The values that a parameter has among the runs which a label has to tell apart by it."""
        rivals = self.resolved
        if name in OF_OPTIMIZER:
            rivals = tuple(q for q in rivals if q.optimizer == p.optimizer)
        return {str(getattr(q, name)) for q in rivals}

    def method_values(self, p: Any) -> dict[str, list[Any]]:
        """The settings that `method_params` name among the runs of a method, each with the values it has there."""
        rivals = [q for q in self.resolved if q.method == p.method]
        names = dict.fromkeys(name for q in rivals for name in q.method_params)
        return {name: [getattr(q.method_config, name) for q in rivals] for name in names}

    def _changes(self, p: Any) -> list[str]:
        """The settings of the method that differ; weights of 0 as `without <term>`."""
        changed = {}
        for name, values in self.method_values(p).items():
            own = getattr(p.method_config, name)
            rivals = {str(value) for value in values if not _is_off(name, value)}
            if _is_off(name, own) or len(rivals) > 1:
                changed[name] = own
        return settings_in_words(changed)

    def groups(self) -> dict[str, list[int]]:
        """Numbers of the runs of each group, in order of first appearance."""
        found: dict[str, list[int]] = {}
        for i in range(len(self.members)):
            found.setdefault(self.group(i), []).append(i)
        return found

    def reference_rows(self) -> dict[str, dict[str, Any]]:
        """Records of teachers and untrained students by label, those of equal models once."""
        one_student = len({q.student for q in self.resolved}) == 1
        one_teacher = len({q.teacher_spec.name for q in self.resolved}) == 1  # the first of several is the one scored
        found: dict[str, dict[str, Any]] = {}
        for name, label in REFERENCE_LABELS.items():
            for i, p in enumerate(self.resolved):
                own = label
                if name == "teacher":
                    own = label if one_teacher else f"{label} {p.teacher_spec.name}"
                elif not one_student:
                    own = label.replace("student", f"student {p.student}")
                if own not in found:
                    found[own] = self.evaluation(i)["references"][name]
        return found


def settings_in_words(changed: Mapping[str, Any]) -> list[str]:
    """Settings of a method by name and value; weights of 0 together as `without <term>`, last."""
    parts = [f"{name} {value}" for name, value in changed.items() if not _is_off(name, value)]
    off = [name.removeprefix(_WEIGHT) for name, value in changed.items() if _is_off(name, value)]
    return [*parts, *([f"without {' and '.join(off)}"] if off else [])]


def _is_off(name: str, value: Any) -> bool:
    return name.startswith(_WEIGHT) and value == 0


def _evaluated(record: Mapping[str, Any]) -> str:
    suite = record["suite"]
    details = [f"{name} {suite[name]}" for name in ("precision", "version") if name in suite]
    return ", ".join([f"tasks {suite['name']}", *details])


def unseen_scores(record: Mapping[str, Any]) -> dict[str, float]:
    """The decontaminated scores of the tasks of which some but not all pairs are left, by task."""
    found = {}
    for task, row in record["tasks"].items():
        left, score = (row["details"].get(name) for name in ("unseen_n", "unseen_score"))
        if left is not None and left < row["n"] and score is not None:
            found[task] = score
    return found


def averages_of(
    suite: Mapping[str, Any], record: Mapping[str, Any], instead: Mapping[str, float] | None = None
) -> dict[str, float]:
    """avg_in and avg_out (where there are such tasks) and avg of a model's scores on a suite, as recorded.

    instead: scores that replace a task's own, such as `unseen_scores`.
    """
    domains = {name: in_domain for name, _, counted, in_domain in suite["tasks"] if counted}
    scores = {task: row["score"] for task, row in record["tasks"].items()} | dict(instead or {})
    chosen = {
        "avg_in": [scores[task] for task, in_domain in domains.items() if in_domain is True],
        "avg_out": [scores[task] for task, in_domain in domains.items() if in_domain is False],
        "avg": [scores[task] for task in domains],
    }
    return {name: float(np.mean(values)) for name, values in chosen.items() if values}


def collect(p: Any) -> Comparison:
    """The runs that the parameters and their grid name. TalasError lists those that are missing or of another recipe.

    With `tables`, the runs on record of the study's first table that has any (see overview.open_study).
    """
    if p.tables:
        from talas_lib.study import overview

        return overview.first_block(p.given_values())
    resolved = tuple(params.resolve("03_train", values) for values in params.expand_grid(p.given_values()))
    found = tuple(runs.open_run(q, create=False) for q in resolved)
    missing = [run.id for run in found if run.read_record("train") is None]
    if missing:
        raise TalasError(
            f"not trained yet: {', '.join(missing)}. Execute notebooks/03_train.ipynb with the same parameters{_finished()}"
        )
    return Comparison(found, resolved, p.tasks_spec.name)


def _finished() -> str:
    """For a message: how to name the runs of the presets that are all trained, in a terminal and in a cell of parameters."""
    ways = []
    for preset in params.available("presets"):
        values = params.load_preset(preset)
        try:
            cells = [] if values.get("tables") else params.expand_grid(values)
            trained = [runs.open_run(params.resolve("03_train", cell), create=False) for cell in cells]
        except TalasError:  # a preset that does not resolve here, such as one on local data
            continue
        if trained and all(run.read_record("train") is not None for run in trained):
            defaults = {name: default for name, _, default, *_ in params.notebook_parameters("06_compare")}
            given = {name: value for name, value in values.items() if value != defaults.get(name, value)}
            cell = "; ".join(f"{name} = {value!r}" for name, value in given.items() if name not in ("device", "report"))
            ways.append(f"`-f params/presets/{preset}.yaml`, or in the cell of parameters {cell}")
    return f". Finished are the runs of {' and of '.join(ways)}" if ways else ""
