"""Finished runs side by side: which they are, what they are called, and their records, which have to fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from talas_lib import methods, params, runs
from talas_lib.errors import TalasError

REFERENCE_LABELS = {
    "teacher": "teacher",
    "untrained_cls": "untrained student, CLS pooling",
    "untrained_mean": "untrained student, mean pooling",
}
# parameters named in a label where they differ: between all runs, between those of one method, of one optimizer
_SHOWN = {
    "": ("student", "teacher_names", "pooling", "lr", "epochs", "batch_size", "corpus", "max_sentences", "precision"),
    "method": ("method_params",),
    "optimizer": ("rho", "eta", "same_dropout", "perturb_heads"),
}


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

    def trained(self, index: int) -> bool:
        """Whether a loss was trained; False for a method that computes its student, such as static."""
        return not methods.builds_student(self.resolved[index].method)

    def label(self, index: int) -> str:
        """Method + optimizer, with whatever else differs between the runs."""
        seeds = {q.seed for q in self.resolved}
        return self.group(index) + (f", seed {self.resolved[index].seed}" if len(seeds) > 1 else "")

    def group(self, index: int) -> str:
        """The label without the seed: the same for runs that differ in nothing else."""
        p = self.resolved[index]
        parts = [f"{p.method} + {p.optimizer}"]
        rivals = {"": self.resolved}
        rivals["optimizer"] = tuple(q for q in self.resolved if q.optimizer == p.optimizer)
        rivals["method"] = tuple(q for q in self.resolved if q.method == p.method)
        for among, names in _SHOWN.items():
            for name in names:
                if len({str(getattr(q, name)) for q in rivals[among]}) > 1:
                    parts.append(f"{name.removesuffix('_names')} {getattr(p, name)}")
        return ", ".join(parts)

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


def _evaluated(record: Mapping[str, Any]) -> str:
    suite = record["suite"]
    details = [f"{name} {suite[name]}" for name in ("precision", "version") if name in suite]
    return ", ".join([f"tasks {suite['name']}", *details])


def collect(p: Any) -> Comparison:
    """The runs that the parameters and their grid name. TalasError lists those that are missing or of another recipe."""
    resolved = tuple(params.resolve("03_train", values) for values in params.expand_grid(p.given_values()))
    found = tuple(runs.open_run(q, create=False) for q in resolved)
    missing = [run.id for run in found if run.read_record("train") is None]
    if missing:
        raise TalasError(
            f"not trained yet: {', '.join(missing)}. Execute notebooks/03_train.ipynb with the same parameters"
        )
    return Comparison(found, resolved, p.tasks_spec.name)
