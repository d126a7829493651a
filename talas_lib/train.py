"""The training loop: any method, any optimizer, from caches alone. The teacher is never loaded here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from talas_lib import checkpoints, distribution
from talas_lib.divergence import Diverged, Guard, Policy
from talas_lib.errors import TalasError
from talas_lib.methods.base import Objective
from talas_lib.schedule import Settings, Span, batch_rows, spans
from talas_lib.stepper import Stepper
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

    nonfinite: a step whose loss or gradients are not finite stops training (TalasError, see `_stop`) or is skipped and counted.
    On a GPU that is found at the next logged step or checkpoint.
    Several processes (see distribution) share each step's sentences; the first alone writes and calls back.
    """
    student, method = objective.student, objective.method
    method.heads.to(student.device)
    data, used = data.renumbered()
    student.compact_vocabulary(used.to(student.device), sparse_gradient=student.device.type == "cpu")
    modules = {"student": student, "heads": method.heads}
    ranks = distribution.current()
    objective.ranks = None if ranks is None else ranks.start(modules.values())
    first = ranks is None or ranks.number == 0
    guard = Guard(nonfinite, deferred=student.device.type == "cuda")
    identity = _identity(settings, data, modules)
    plan = spans(method.stages, len(data), settings)
    total, per_epoch = plan[-1].stop, settings.steps_per_epoch(len(data))
    start, final, began = 0, {}, time.perf_counter()
    if checkpoint is not None and checkpoint.is_file():
        start = checkpoints.finished_steps(checkpoint)
    cuda = [student.device] if student.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(settings.seed if ranks is None else ranks.seed(settings.seed))
        span = next(s for s in plan if start < s.stop)
        stepper = _begin(span, objective, settings, guard)
        if checkpoint is not None and checkpoint.is_file():
            start, state = checkpoints.load(checkpoint, modules=modules, optimizer=stepper.optimizer, settings=identity)
            stepper.load_state(state)
            if ranks is not None:
                ranks.load_state(state, settings.seed)
        for step, epoch, rows in batch_rows(len(data), settings, start, epochs=total // per_epoch):
            if step == span.stop:
                span = plan[span.stage + 1]
                stepper = _begin(span, objective, settings, guard)
            factor = settings.lr_factor(step - span.start, span.stop - span.start)
            last = step == span.stop - 1
            probing = stepper.sharpness_aware and probe_every > 0 and (step % probe_every == 0 or last)
            logging = probing or step % log_every == 0 or last
            batch = data.batch(rows, student.device)
            saving = checkpoint is not None and (step + 1) % checkpoint_every == 0 and not last
            try:
                report = stepper.step(batch, factor, probe=probing, measure=logging)
                if logging or saving:
                    guard.settle()
            except Diverged as found:
                raise _stop(found, stepper, span, total, checkpoint if first else None, modules, identity) from None
            if logging and first:
                final = {"step": step + 1, "epoch": (step + 1) / per_epoch, "lr": settings.lr * factor} | report.row()
                if on_log is not None:
                    on_log(final)
            finished = step + 1
            # before saving, so that a run interrupted in between calls it again
            if finished % per_epoch == 0 and on_epoch is not None and first:
                on_epoch(epoch + 1)
            if saving:
                assert checkpoint is not None
                extra = stepper.state() if ranks is None else stepper.state() | ranks.state()
                if first:
                    checkpoints.save(
                        checkpoint,
                        step=finished,
                        modules=modules,
                        optimizer=stepper.optimizer,
                        settings=identity,
                        extra=extra,
                    )
    student.requires_grad_(True)
    student.expand_vocabulary(decay_of_unused_rows(plan, settings))
    student.eval()
    method.heads.eval()
    seconds = time.perf_counter() - began
    return TrainingResult(total, seconds, start, final, guard.skipped, 1 if ranks is None else ranks.count)


def _begin(span: Span, objective: Objective, settings: Settings, guard: Guard) -> Stepper:
    """The stepper of a stage: its own optimizer, the student frozen or not."""
    objective.student.train()
    objective.method.heads.train()
    objective.student.requires_grad_(span.student)
    objective.method.enter(span.stage)
    groups = objective.parameter_groups(settings.lr, settings.weight_decay, student=span.student)
    return Stepper(objective, torch.optim.AdamW(groups, fused=True), settings, guard)


def _stop(
    found: Diverged,
    stepper: Stepper,
    span: Span,
    total: int,
    checkpoint: Path | None,
    modules: dict[str, torch.nn.Module],
    identity: dict[str, Any],
) -> TalasError:
    """The error of a step that is not finite: step, sentences and terms, and the file with all that the step began with.

    That file is a checkpoint of the moment before: in the checkpoint's place, the same command takes this very step first.
    """
    step = span.start + found.seen.number
    rows = found.seen.rows.tolist()
    message = (
        f"training diverged: {found}, step {step + 1} of {total}, corpus rows {rows}. The weights are those before it. "
        f"Lower lr (now {stepper.settings.lr:g}) or rho, look at those sentences, or leave such steps out, counted "
        "(`-p nonfinite skip`)"
    )
    if checkpoint is None:
        return TalasError(message)
    file = checkpoint.with_name(f"diverged-step-{step + 1}.safetensors")
    stepper.rewind(found.seen)
    checkpoints.save(
        file, step=step, modules=modules, optimizer=stepper.optimizer, settings=identity, extra=stepper.state()
    )
    return TalasError(f"{message}. To take the step again, put {file} in the place of {checkpoint.name}")


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
