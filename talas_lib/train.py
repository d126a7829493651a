"""The training loop: any method, any optimizer, from a cache alone. The teacher is never loaded here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talas_lib import checkpoints, losses
from talas_lib.errors import TalasError
from talas_lib.methods.base import Batch, Objective
from talas_lib.packed import Layout, TokenSequences
from talas_lib.sharpness_aware import Ascent, Perturbation, cosine_between, mark_biases, perturbed


@dataclass(frozen=True)
class Settings:
    """How to train. lr and min_lr are the student's; the heads' follow in proportion. warmup is a fraction of all steps."""

    epochs: int = 5
    batch_size: int = 32
    lr: float = 2e-5
    min_lr: float = 2e-6
    warmup: float = 0.06
    weight_decay: float = 0.01
    seed: int = 42
    perturbation: Perturbation | None = None
    perturb_heads: bool = True
    same_dropout: bool = False

    def lr_factor(self, step: int, total: int) -> float:
        """Learning rate at a step (0-based) relative to its peak: linear warm-up, then cosine down to min_lr / lr."""
        warm = round(self.warmup * total)
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, total - warm)
        floor = self.min_lr / self.lr
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class TrainingData:
    """Tokenised corpus, teacher vectors (a function of row numbers, or None), and what the batch carries beside them.

    text_ids and sources: int64 `[sentences]`. Row numbers index the corpus.
    """

    tokens: TokenSequences
    teacher: Callable[[np.ndarray], np.ndarray] | None
    text_ids: np.ndarray
    sources: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def renumbered(self, rows: np.ndarray | None = None) -> tuple[TrainingData, Tensor]:
        """The same data with token ids numbered by the vocabulary in use, and that vocabulary (int64, ascending).

        rows: only these sentences count as use, and only they may be batched afterwards; None for all.
        """
        taken = self.tokens.ids if rows is None else np.concatenate([self.tokens[i] for i in rows])
        used = np.unique(taken)
        ids = np.searchsorted(used, self.tokens.ids).astype(np.int32)
        tokens = TokenSequences(ids, self.tokens.offsets)
        return TrainingData(tokens, self.teacher, self.text_ids, self.sources), torch.from_numpy(used.astype(np.int64))

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """The packed batch of these corpus rows, on the device; shortest first, which no loss can tell."""
        rows = rows[np.argsort(self.tokens.lengths[rows], kind="stable")]
        ids, lengths = self.tokens.take(rows)
        vectors = None if self.teacher is None else torch.from_numpy(self.teacher(rows))
        return Batch(
            rows=_move(torch.from_numpy(rows), device),
            ids=_move(ids, device),
            layout=Layout.of(lengths).to(device),
            teacher=None if vectors is None else _move(vectors, device),
            text_ids=_move(torch.from_numpy(self.text_ids[rows]), device),
            sources=_move(torch.from_numpy(self.sources[rows]), device),
        )


@dataclass
class TrainingResult:
    """What training did. seconds: wall time of the steps of this process; steps: finished steps in all."""

    steps: int
    seconds: float
    resumed_from: int
    final: dict[str, float]


def epoch_order(sentences: int, seed: int, epoch: int) -> np.ndarray:
    """The shuffled rows of one epoch: a function of seed and epoch alone, the same for every method and optimizer."""
    return np.random.default_rng([seed, epoch]).permutation(sentences)


def batch_rows(sentences: int, settings: Settings, start: int = 0) -> Iterator[tuple[int, int, np.ndarray]]:
    """(step, epoch, rows) of every batch from step `start` on; the last, partial batch of an epoch is kept."""
    per_epoch = math.ceil(sentences / settings.batch_size)
    for epoch in range(start // per_epoch, settings.epochs):
        order = epoch_order(sentences, settings.seed, epoch)
        for i in range(per_epoch):
            step = epoch * per_epoch + i
            if step >= start:
                yield step, epoch, order[i * settings.batch_size : (i + 1) * settings.batch_size]


def total_steps(sentences: int, settings: Settings) -> int:
    """Steps of a whole run."""
    return settings.epochs * math.ceil(sentences / settings.batch_size)


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

    on_log gets one flat row every `log_every` steps; with a perturbation, every `probe_every` steps the row also holds
    the ascent gain and cos(g', g) at equal dropout masks. on_epoch is called after each epoch with its number.
    Raises TalasError when loss or gradients stop being finite.
    """
    student, heads = objective.student, objective.method.heads
    heads.to(student.device)
    data, used = data.renumbered()
    student.compact_vocabulary(used.to(student.device))
    optimizer = torch.optim.AdamW(objective.parameter_groups(settings.lr, settings.weight_decay), fused=True)
    modules = {"student": student, "heads": heads}
    identity = _identity(settings, data, modules)
    total = total_steps(len(data), settings)
    start, final, began = 0, {}, time.perf_counter()
    cuda = [student.device] if student.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(settings.seed)
        if checkpoint is not None and checkpoint.is_file():
            start = checkpoints.load(checkpoint, modules=modules, optimizer=optimizer, settings=identity)
        stepper = Stepper(objective, optimizer, settings)
        student.train()
        per_epoch = total // settings.epochs
        for step, epoch, rows in batch_rows(len(data), settings, start):
            factor = settings.lr_factor(step, total)
            batch = data.batch(rows, student.device)
            probing = settings.perturbation is not None and (step % probe_every == 0 or step == total - 1)
            logging = probing or step % log_every == 0 or step == total - 1
            report = stepper.step(batch, factor, probe=probing, measure=logging)
            if logging:
                final = {"step": step + 1, "epoch": (step + 1) / per_epoch, "lr": settings.lr * factor} | report.row()
                if on_log is not None:
                    on_log(final)
            finished = step + 1
            if checkpoint is not None and finished % checkpoint_every == 0 and finished < total:
                checkpoints.save(checkpoint, step=finished, modules=modules, optimizer=optimizer, settings=identity)
            if finished % per_epoch == 0 and on_epoch is not None:
                on_epoch(epoch + 1)
    decay = math.prod(1 - settings.lr * settings.lr_factor(s, total) * settings.weight_decay for s in range(total))
    student.expand_vocabulary(decay)
    student.eval()
    return TrainingResult(total, time.perf_counter() - began, start, final)


@dataclass(frozen=True)
class StepReport:
    """Tensors of one step; `row` fetches them, so that steps which nobody logs need no synchronisation."""

    total: Tensor
    terms: dict[str, Tensor]
    embeddings: Tensor
    ascent: Ascent | None
    probe: dict[str, Tensor]

    def row(self) -> dict[str, float]:
        """Plain numbers: loss and its unweighted terms, the geometry of the student's vectors, the perturbation."""
        row = {"loss": float(self.total)} | {f"loss_{k}": float(v) for k, v in self.terms.items()}
        row["mean_cosine"] = float(losses.mean_off_diagonal_cosine(self.embeddings))
        row["effective_rank"] = float(losses.effective_rank(self.embeddings))
        if self.ascent is not None:
            row |= {k: float(v) for k, v in vars(self.ascent).items()}
        return row | {k: float(v) for k, v in self.probe.items()}


class Stepper:
    """One optimizer step, plain or sharpness-aware: gradients at w, move to w + eps, gradients there, back to w, step."""

    def __init__(self, objective: Objective, optimizer: torch.optim.Optimizer, settings: Settings) -> None:
        self.objective, self.optimizer, self.settings = objective, optimizer, settings
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        student, heads = objective.student, objective.method.heads
        mark_biases(student)
        mark_biases(heads)
        self.parameters = list(student.parameters()) + list(heads.parameters())
        self.perturbable = self.parameters if settings.perturb_heads else list(student.parameters())

    def step(self, batch: Batch, lr_factor: float, *, probe: bool = False, measure: bool = True) -> StepReport:
        """Train on one batch at `lr_factor` times the peak learning rates; `measure` the perturbation for the log or not."""
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * lr_factor
        masks = _rng_state(batch.ids.device) if self.settings.perturbation is not None else None
        states = self.objective.states(batch)
        total, terms = self.objective.total(states, batch)
        total.backward()
        ascent, measured = None, {}
        if self.settings.perturbation is not None:
            first = [p.grad for p in self.parameters if p.grad is not None]
            with perturbed(self.perturbable, self.settings.perturbation, measure=measure) as ascent:
                if probe:
                    measured = self._probe(batch, masks, total.detach(), first)
                if self.settings.same_dropout:
                    _set_rng_state(batch.ids.device, masks)
                self.optimizer.zero_grad(set_to_none=True)
                self.objective(batch)[0].backward()
        if not batch.ids.is_cuda:
            self._check_finite(total, terms, batch)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        kept = {k: v.detach() for k, v in terms.items()}
        return StepReport(total.detach(), kept, states.layers[-1].detach(), ascent, measured)

    def _probe(self, batch: Batch, masks: Any, loss: Tensor, first: list[Tensor]) -> dict[str, Tensor]:
        """Loss rise and cos(g', g) at w + eps under the dropout masks of the first pass; leaves the random state alone."""
        now = _rng_state(batch.ids.device)
        _set_rng_state(batch.ids.device, masks)
        risen = self.objective(batch)[0]
        with_grad = [p for p in self.parameters if p.grad is not None]
        second = torch.autograd.grad(risen, with_grad)
        _set_rng_state(batch.ids.device, now)
        return {"ascent_gain": risen.detach() - loss, "ascent_cosine": cosine_between(first, list(second))}

    def _check_finite(self, total: Tensor, terms: dict[str, Tensor], batch: Batch) -> None:
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.stack(torch._foreach_norm(grads)).sum()
        if bool(torch.isfinite(total + norm)):
            return
        values = ", ".join(f"{k}={v.item():.4g}" for k, v in terms.items())
        rows = batch.rows.tolist()
        raise TalasError(
            f"training diverged: loss {total.item():.4g} ({values}), gradient norm {norm.item():.4g}, corpus rows {rows}. "
            f"Lower lr (now {self.settings.lr:g}) or rho, or look at those sentences"
        )


def _identity(settings: Settings, data: TrainingData, modules: dict[str, torch.nn.Module]) -> dict[str, Any]:
    """What a checkpoint must agree on to be continued: settings, data size and the shapes of all parameters."""
    shapes = {f"{n}.{k}": list(v.shape) for n, m in modules.items() for k, v in m.state_dict().items()}
    return {"settings": asdict(settings), "sentences": len(data), "tokens": len(data.tokens.ids), "shapes": shapes}


def _move(tensor: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _rng_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_rng_state(device: torch.device, state: Any) -> None:
    cpu, cuda = state
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
