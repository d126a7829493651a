"""Where the time of a training step goes: ms of each phase, for every method that trains, and for TALAS with ASAM.

    python -m benchmarks.phases [--rounds 2] [--steps 4] [--student minilm-l3] [--corpus mini] [--methods talas simcse ...]

data: picking and packing the batch, with the cached vectors and token states. forward: the student. loss: the method's terms.
backward: all gradients. perturbation: finding ASAM's direction, going there and coming back. optimizer: AdamW. other: what is
left of the step, such as the test for finite gradients. Both passes of ASAM count towards forward, loss and backward.

The methods take turns, a few steps each, for several rounds, so that none has a quiet machine for itself. Times are taken around
the functions of the library as it is; the clock costs a few microseconds a step.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.common import OUT, default_corpus, row, save
from benchmarks.workload import Trainer, Variant, Workload, trained_methods
from talas_lib import sharpness_aware, stepper
from talas_lib.methods.base import Batch, Objective
from talas_lib.stepper import Stepper, StepReport

PHASES = ("data", "forward", "loss", "backward", "perturbation", "optimizer", "other")


class Clock:
    """Milliseconds by phase. A phase within another one stops the outer one's clock."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = defaultdict(float)
        self.running: list[str] = []
        self.since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._turn()
        self.running.append(name)
        try:
            yield
        finally:
            self._turn()
            self.running.pop()

    def _turn(self) -> None:
        """Give the time since the last turn to the innermost phase."""
        now = time.perf_counter()
        if self.running:
            self.ms[self.running[-1]] += 1e3 * (now - self.since)
        self.since = now

    def timed(self, name: str, function: Any) -> Any:
        """The function, its time counted towards a phase."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return call


class TimedObjective(Objective):
    """Tells forward from loss. `clock` is set before it is used."""

    clock: Clock

    def states(self, batch: Batch, *, one_view: bool = False) -> Any:
        with self.clock.phase("forward"):
            return super().states(batch, one_view=one_view)

    def total(self, states: Any, batch: Batch) -> Any:
        with self.clock.phase("loss"):
            return super().total(states, batch)


class TimedStepper(Stepper):
    """Tells the optimizer's step from the rest."""

    objective: TimedObjective

    def step(self, batch: Batch, lr_factor: float, *, probe: bool = False, measure: bool = True) -> StepReport:
        with self.objective.clock.phase("other"):
            return super().step(batch, lr_factor, probe=probe, measure=measure)

    @contextmanager
    def _dense_gradients(self) -> Iterator[None]:
        with self.objective.clock.phase("optimizer"), super()._dense_gradients():
            yield


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Inside, the clock counts backward passes and perturbations, wherever they are called from."""

    plain = sharpness_aware.displaced

    @contextmanager
    def displaced(direction: Any) -> Iterator[Any]:
        there = plain(direction)
        with clock.phase("perturbation"):
            report = there.__enter__()
        try:
            yield report
        finally:
            with clock.phase("perturbation"):
                there.__exit__(None, None, None)

    with ExitStack() as patches:
        for module in (sharpness_aware, stepper):
            found = clock.timed("perturbation", sharpness_aware.find_direction)
            patches.enter_context(mock.patch.object(module, "find_direction", found))
            patches.enter_context(mock.patch.object(module, "displaced", displaced))
        backward = clock.timed("backward", torch.Tensor.backward)
        patches.enter_context(mock.patch.object(torch.Tensor, "backward", backward))
        yield


def step_times(trainer: Trainer, batches: np.ndarray, warmup: int) -> list[dict[str, float]]:
    """ms of each phase, step by step."""
    found = []
    for rows in batches:
        clock, optimizer = Clock(), trainer.stepper.optimizer
        trainer.stepper.objective.clock = clock  # type: ignore[attr-defined]
        zero_grad = clock.timed("optimizer", optimizer.zero_grad)
        with watched(clock), mock.patch.object(optimizer, "zero_grad", zero_grad):
            with clock.phase("data"):
                batch = trainer.data.batch(rows)
            trainer.train(batch)
        found.append({phase: clock.ms[phase] for phase in PHASES})
    return found[warmup:]


def variants(names: list[str]) -> dict[str, Variant]:
    """The methods by name with AdamW, and TALAS with ASAM."""
    found = {name: Variant(method=name) for name in names}
    if "talas" in found:
        found["talas + asam"] = Variant(optimizer="asam")
    return found


def measure(work: Workload, names: list[str], rounds: int, steps: int, warmup: int = 1) -> list[dict[str, object]]:
    """Tidy rows: for each variant the ms of every phase and of the whole step."""
    times: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number in range(rounds):
        batches = work.batches(steps + warmup, seed=number)
        for name, variant in variants(names).items():
            trainer = work.trainer(variant, objective=TimedObjective, stepper=TimedStepper)
            times[name] += step_times(trainer, batches, warmup)
    rows = []
    for name, found in times.items():
        rows += [row("phases", name, phase, "ms", [ms[phase] for ms in found]) for phase in PHASES]
        rows.append(row("phases", name, "step", "ms", [sum(ms.values()) for ms in found]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--student", default="minilm-l3")
    parser.add_argument("--teacher-dim", type=int, default=768)
    parser.add_argument("--corpus", default=None, help="default: talas15k where TALAS_DATA holds it, else mini")
    parser.add_argument("--methods", nargs="+", default=None, help="default: all that train")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    work = Workload(chosen.student, chosen.corpus or default_corpus(), chosen.teacher_dim)
    rows = measure(work, chosen.methods or trained_methods(), chosen.rounds, chosen.steps)
    save(rows, "phases", chosen.out, student=work.student, corpus=work.corpus)


if __name__ == "__main__":
    main()
