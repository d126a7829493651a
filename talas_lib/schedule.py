"""How long, how fast and in what order a run trains: settings, learning-rate schedule, batches and stages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from talas_lib.methods.base import Stage
from talas_lib.sharpness_aware import Approximation, Perturbation


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
    ascent: Approximation = field(default_factory=Approximation)

    def steps_per_epoch(self, sentences: int) -> int:
        """Batches in an epoch, the last and partial one included."""
        return math.ceil(sentences / self.batch_size)

    def lr_factor(self, step: int, total: int) -> float:
        """Learning rate at a step (0-based) relative to its peak: linear warm-up, then cosine down to min_lr / lr."""
        warm = round(self.warmup * total)
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, total - warm)
        floor = self.min_lr / self.lr
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def epoch_order(sentences: int, seed: int, epoch: int) -> np.ndarray:
    """The shuffled rows of one epoch: a function of seed and epoch alone, the same for every method and optimizer."""
    return np.random.default_rng([seed, epoch]).permutation(sentences)


def batch_rows(
    sentences: int, settings: Settings, start: int = 0, *, epochs: int | None = None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(step, epoch, rows) of every batch from step `start` on; the last, partial batch of an epoch is kept.

    epochs: in all, when a method adds stages to those of the settings.
    """
    per_epoch = settings.steps_per_epoch(sentences)
    for epoch in range(start // per_epoch, epochs or settings.epochs):
        order = epoch_order(sentences, settings.seed, epoch)
        for i in range(per_epoch):
            step = epoch * per_epoch + i
            if step >= start:
                yield step, epoch, order[i * settings.batch_size : (i + 1) * settings.batch_size]


@dataclass(frozen=True)
class Span:
    """The steps of one stage, `[start, stop)`, and whether the student trains in it or the heads alone."""

    stage: int
    start: int
    stop: int
    student: bool


def spans(stages: Sequence[Stage], sentences: int, settings: Settings) -> list[Span]:
    """The stages of a method laid out over the steps of a run."""
    found, start = [], 0
    for number, stage in enumerate(stages):
        epochs = settings.epochs if stage.epochs is None else stage.epochs
        stop = start + epochs * settings.steps_per_epoch(sentences)
        found.append(Span(number, start, stop, stage.trains == "all"))
        start = stop
    return found
