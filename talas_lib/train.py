"""The training loop: any method, any optimizer, from caches alone. The teacher is never loaded here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from talas_lib import checkpoints, distribution
from talas_lib.divergence import Diverged, Guard, Policy
from talas_lib.errors import TalasError
from talas_lib.methods.base import Objective
from talas_lib.schedule import Settings, Span, batch_rows, spans
from talas_lib.stepper import Stepper, StepReport
from talas_lib.training_data import TrainingData


@dataclass
class TrainingResult:
    """What training did. seconds: wall time of the steps of this process; steps: finished steps in all; skipped: those of them
    that were left out because loss or gradients were not finite; processes: that trained together.
    """

    steps: int
    seconds: float
    resumed_from: int
    final: dict[str, float]
    skipped: int = 0
    processes: int = 1


def train(
    objective: Objective,
    data: TrainingData,
    settings: Settings,
    *,
    checkpoint: Path | None = None,
    checkpoint_every: int = 200,
    log_every: int = 10,
    probe_every: int = 25,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    on_epoch: Callable[[int], None] | None = None,
    nonfinite: Policy = "stop",
) -> TrainingResult:
    """Train the student in place and return what happened; goes on from `checkpoint` when that file exists.

    on_log gets one flat row every `log_every` steps; with a perturbation, every `probe_every` steps (0: never) the row also
    holds the ascent gain and cos(g', g) at equal dropout masks. on_epoch is called after each epoch with its number, and
    again where a run was interrupted before its next checkpoint.
    A method with several stages gets a new optimizer and schedule for each.

    nonfinite: a step whose loss or gradients are not finite stops training with a TalasError that names step, corpus rows and
    terms, and leaves beside `checkpoint` one of the moment before; or it is skipped and counted. On a GPU that is found at the
    next logged step or checkpoint.
    Several processes (see distribution) share each step's sentences; the first alone writes and calls back.
    """
    student, method = objective.student, objective.method
    data, used = data.renumbered()
    method.heads.to(student.device)
    student.compact_vocabulary(used.to(student.device), sparse_gradient=student.device.type == "cpu")
    ranks = distribution.current()
    objective.ranks = None if ranks is None else ranks.start((student, method.heads))
    first = ranks is None or ranks.number == 0
    loop = _Loop(objective, data, settings, Guard(nonfinite, deferred=student.device.type == "cuda"), checkpoint)
    final: dict[str, float] = {}
    began = time.perf_counter()
    with torch.random.fork_rng(devices=[student.device] if student.device.type == "cuda" else []):
        torch.manual_seed(settings.seed if ranks is None else ranks.seed(settings.seed))
        start = loop.begin()
        for step, epoch, rows in batch_rows(len(data), settings, start, epochs=loop.epochs):
            due = loop.due(step, log_every=log_every, probe_every=probe_every, checkpoint_every=checkpoint_every)
            report = loop.step(step, rows, due)
            if due.log and first:
                final = loop.row(step, report)
                if on_log is not None:
                    on_log(final)
            # before saving, so that a run interrupted in between calls it again
            if (step + 1) % loop.per_epoch == 0 and on_epoch is not None and first:
                on_epoch(epoch + 1)
            if due.save:
                loop.save(step + 1)
    student.requires_grad_(True)
    student.expand_vocabulary(decay_of_unused_rows(loop.plan, settings))
    student.eval()
    method.heads.eval()
    seconds = time.perf_counter() - began
    return TrainingResult(loop.total, seconds, start, final, loop.guard.skipped, 1 if ranks is None else ranks.count)


class _Due(NamedTuple):
    """What a step is asked for beside moving the weights."""

    log: bool
    probe: bool
    save: bool


class _Loop:
    """What the steps of a training have in common: the stages with the stepper of the present one, and the checkpoint."""

    span: Span
    stepper: Stepper

    def __init__(
        self, objective: Objective, data: TrainingData, settings: Settings, guard: Guard, checkpoint: Path | None
    ) -> None:
        self.objective, self.data, self.settings, self.guard = objective, data, settings, guard
        self.checkpoint = checkpoint
        self.modules: dict[str, torch.nn.Module] = {"student": objective.student, "heads": objective.method.heads}
        self.plan = spans(objective.method.stages, len(data), settings)
        self.per_epoch = settings.steps_per_epoch(len(data))
        self.total = self.plan[-1].stop
        self.epochs = self.total // self.per_epoch
        self.identity = _identity(settings, data, self.modules)

    def begin(self) -> int:
        """Stand before the first step, or behind the last one of the checkpoint; returns the finished steps."""
        file, ranks = self.checkpoint, self.objective.ranks
        if file is None or not file.is_file():
            self._enter(self.plan[0])
            return 0
        at = checkpoints.finished_steps(file)
        self._enter(next(span for span in self.plan if at < span.stop))
        start, state = checkpoints.load(
            file, modules=self.modules, optimizer=self.stepper.optimizer, settings=self.identity
        )
        self.stepper.load_state(state)
        if ranks is not None:
            ranks.load_state(state, self.settings.seed)
        return start

    def _enter(self, span: Span) -> None:
        """Begin a stage: the student frozen or not, an optimizer of its own."""
        student, method = self.objective.student, self.objective.method
        student.train()
        method.heads.train()
        student.requires_grad_(span.student)
        method.enter(span.stage)
        groups = self.objective.parameter_groups(self.settings.lr, self.settings.weight_decay, student=span.student)
        self.span = span
        self.stepper = Stepper(self.objective, torch.optim.AdamW(groups, fused=True), self.settings, self.guard)

    def due(self, step: int, *, log_every: int, probe_every: int, checkpoint_every: int) -> _Due:
        """What this step is asked for; enters the next stage where it is that one's first."""
        if step == self.span.stop:
            self._enter(self.plan[self.span.stage + 1])
        last = step == self.span.stop - 1
        probe = self.stepper.sharpness_aware and probe_every > 0 and (step % probe_every == 0 or last)
        save = self.checkpoint is not None and (step + 1) % checkpoint_every == 0 and not last
        return _Due(probe or step % log_every == 0 or last, probe, save)

    def _lr_factor(self, step: int) -> float:
        return self.settings.lr_factor(step - self.span.start, self.span.stop - self.span.start)

    def step(self, step: int, rows: np.ndarray, due: _Due) -> StepReport:
        """Train on these corpus rows; judged before anything is logged or saved. TalasError when it is not finite."""
        batch = self.data.batch(rows, self.objective.student.device)
        try:
            report = self.stepper.step(batch, self._lr_factor(step), probe=due.probe, measure=due.log)
            if due.log or due.save:
                self.guard.settle()
        except Diverged as found:
            raise self._stopped(found) from None
        return report

    def row(self, step: int, report: StepReport) -> dict[str, float]:
        """The logged row of a step."""
        at = {"step": step + 1, "epoch": (step + 1) / self.per_epoch, "lr": self.settings.lr * self._lr_factor(step)}
        return at | report.row()

    def save(self, finished: int) -> None:
        """The checkpoint after so many steps; all processes call it, the first writes."""
        assert self.checkpoint is not None
        ranks = self.objective.ranks
        extra = self.stepper.state() if ranks is None else self.stepper.state() | ranks.state()
        if ranks is None or ranks.number == 0:
            self._write(self.checkpoint, finished, extra)

    def _write(self, file: Path, finished: int, extra: dict[str, torch.Tensor]) -> None:
        optimizer = self.stepper.optimizer
        checkpoints.save(
            file, step=finished, modules=self.modules, optimizer=optimizer, settings=self.identity, extra=extra
        )

    def _stopped(self, found: Diverged) -> TalasError:
        """The error of a step that is not finite: step, sentences and terms, and the file with all that the step began with.

        That file is a checkpoint of the moment before: in the checkpoint's place, the same command takes this very step first.
        """
        step, ranks = self.span.start + found.seen.number, self.objective.ranks
        message = (
            f"training diverged: {found}, step {step + 1} of {self.total}, corpus rows {found.seen.rows.tolist()}. The weights"
            f" are those before it. Lower lr (now {self.settings.lr:g}) or rho, look at those sentences, or leave such steps"
            " out, counted (`-p nonfinite skip`)"
        )
        if self.checkpoint is None or not (ranks is None or ranks.number == 0):
            return TalasError(message)
        file = self.checkpoint.with_name(f"diverged-step-{step + 1}.safetensors")
        self.stepper.rewind(found.seen)
        self._write(file, step, self.stepper.state())
        return TalasError(f"{message}. To take the step again, put {file} in the place of {self.checkpoint.name}")


def decay_of_unused_rows(plan: list[Span], settings: Settings, finished: int | None = None) -> float:
    """What AdamW's decay alone has made of an embedding row that no sentence uses, after so many steps (None: all)."""
    factor = 1.0
    for span in plan:
        steps = span.stop - span.start
        made = steps if finished is None else min(max(finished - span.start, 0), steps)
        if span.student:
            factor *= math.prod(
                1 - settings.lr * settings.lr_factor(s, steps) * settings.weight_decay for s in range(made)
            )
    return factor


def _identity(settings: Settings, data: TrainingData, modules: dict[str, torch.nn.Module]) -> dict[str, Any]:
    """What a checkpoint must agree on to be continued: settings, data size and the shapes of all parameters."""
    shapes = {f"{n}.{k}": list(v.shape) for n, m in modules.items() for k, v in m.state_dict().items()}
    return {"settings": asdict(settings), "sentences": len(data), "tokens": len(data.tokens.ids), "shapes": shapes}
