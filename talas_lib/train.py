"""The training loop: any method, any optimizer, from caches alone. The teacher is never loaded here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from talas_lib import checkpoints
from talas_lib.methods.base import Objective
from talas_lib.schedule import Settings, Span, batch_rows, spans
from talas_lib.stepper import Stepper
from talas_lib.training_data import TrainingData


@dataclass
class TrainingResult:
    """What training did. seconds: wall time of the steps of this process; steps: finished steps in all."""

    steps: int
    seconds: float
    resumed_from: int
    final: dict[str, float]


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
) -> TrainingResult:
    """Train the student in place and return what happened; goes on from `checkpoint` when that file exists.

    on_log gets one flat row every `log_every` steps; with a perturbation, every `probe_every` steps (0: never) the row also
    holds the ascent gain and cos(g', g) at equal dropout masks. on_epoch is called after each epoch with its number.
    A method with several stages gets a new optimizer and schedule for each.
    Raises TalasError when loss or gradients stop being finite.
    """
    student, method = objective.student, objective.method
    method.heads.to(student.device)
    data, used = data.renumbered()
    student.compact_vocabulary(used.to(student.device), sparse_gradient=student.device.type == "cpu")
    modules = {"student": student, "heads": method.heads}
    identity = _identity(settings, data, modules)
    plan = spans(method.stages, len(data), settings)
    total, per_epoch = plan[-1].stop, settings.steps_per_epoch(len(data))
    start, final, began = 0, {}, time.perf_counter()
    if checkpoint is not None and checkpoint.is_file():
        start = checkpoints.finished_steps(checkpoint)
    cuda = [student.device] if student.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(settings.seed)
        span = next(s for s in plan if start < s.stop)
        stepper = _begin(span, objective, settings)
        if checkpoint is not None and checkpoint.is_file():
            start, state = checkpoints.load(checkpoint, modules=modules, optimizer=stepper.optimizer, settings=identity)
            stepper.load_state(state)
        for step, epoch, rows in batch_rows(len(data), settings, start, epochs=total // per_epoch):
            if step == span.stop:
                span = plan[span.stage + 1]
                stepper = _begin(span, objective, settings)
            factor = settings.lr_factor(step - span.start, span.stop - span.start)
            last = step == span.stop - 1
            probing = stepper.sharpness_aware and probe_every > 0 and (step % probe_every == 0 or last)
            logging = probing or step % log_every == 0 or last
            batch = data.batch(rows, student.device)
            report = stepper.step(batch, factor, probe=probing, measure=logging)
            if logging:
                final = {"step": step + 1, "epoch": (step + 1) / per_epoch, "lr": settings.lr * factor} | report.row()
                if on_log is not None:
                    on_log(final)
            finished = step + 1
            if checkpoint is not None and finished % checkpoint_every == 0 and not last:
                checkpoints.save(
                    checkpoint,
                    step=finished,
                    modules=modules,
                    optimizer=stepper.optimizer,
                    settings=identity,
                    extra=stepper.state(),
                )
            if finished % per_epoch == 0 and on_epoch is not None:
                on_epoch(epoch + 1)
    student.requires_grad_(True)
    student.expand_vocabulary(_decay_of_unused_rows(plan, settings))
    student.eval()
    method.heads.eval()
    return TrainingResult(total, time.perf_counter() - began, start, final)


def _begin(span: Span, objective: Objective, settings: Settings) -> Stepper:
    """The stepper of a stage: its own optimizer, the student frozen or not."""
    objective.student.train()
    objective.method.heads.train()
    objective.student.requires_grad_(span.student)
    objective.method.enter(span.stage)
    groups = objective.parameter_groups(settings.lr, settings.weight_decay, student=span.student)
    return Stepper(objective, torch.optim.AdamW(groups, fused=True), settings)


def _decay_of_unused_rows(plan: list[Span], settings: Settings) -> float:
    """What AdamW's decay alone has made of an embedding row that no sentence uses."""
    factor = 1.0
    for span in plan:
        steps = span.stop - span.start
        if span.student:
            factor *= math.prod(
                1 - settings.lr * settings.lr_factor(s, steps) * settings.weight_decay for s in range(steps)
            )
    return factor


def _identity(settings: Settings, data: TrainingData, modules: dict[str, torch.nn.Module]) -> dict[str, Any]:
    """What a checkpoint must agree on to be continued: settings, data size and the shapes of all parameters."""
    shapes = {f"{n}.{k}": list(v.shape) for n, m in modules.items() for k, v in m.state_dict().items()}
    return {"settings": asdict(settings), "sentences": len(data), "tokens": len(data.tokens.ids), "shapes": shapes}
