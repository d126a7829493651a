"""ms per training step: the library against the usual implementation, and against itself with less mathematics.

    python -m benchmarks.steps [--steps 24] [--student minilm-l3] [--corpus mini] [--teacher-dim 768] [--out results/bench]

Every variant runs the same batch before the next one does, so that a change of the machine's speed hits all alike; the table
gives medians, and ratios pair by pair. Three variants are not TALAS as it stands: with the embeddings frozen, without the
second view (SimCSE left out), and with batches of neighbours in length instead of random ones. The last see the same
sentences in other batches, so their ratio is over several batches at a time.

`model FLOP` are the additions and multiplications of the matrix products of one fp32 step, as torch counts them; divided by the
time and by what large products reach in the same precision they give the share of the machine's peak.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import OUT, default_corpus, matrix_peak, row, save
from benchmarks.reference import ReferenceTrainer
from benchmarks.workload import Trainer, Variant, Workload
from talas_lib import params, sources

TOGETHER = 8  # batches whose sentences are sorted by length and cut into batches again
COUNTED = 4  # batches whose operations are counted
OPTIMIZERS = ("adamw", "asam")
LIBRARY = {
    "fp32": Variant(),
    "bf16": Variant(precision="bf16"),
    "frozen embeddings": Variant(frozen_embeddings=True),
    "one view": Variant(changes=(("weight_simcse", 0.0),)),
}
OTHER_MATHEMATICS = ("frozen embeddings", "one view")
Key = tuple[str, str]  # optimizer, variant


def reference_step(work: Workload, optimizer: str) -> Callable[[np.ndarray], object]:
    """A function that trains the usual implementation on corpus rows, with the vectors the library's student gets."""
    spec = params.load_student(work.student)
    trainer = ReferenceTrainer(
        str(sources.model_folder(spec)),
        layers=spec.layers,
        teacher_dim=work.teacher_dim,
        pooling="cls",
        asam=optimizer == "asam",
    )
    vectors = np.random.default_rng(0).normal(size=(2048, work.teacher_dim)).astype(np.float32)
    return lambda rows: trainer.step(
        [work.tokens[i].tolist() for i in rows], torch.from_numpy(vectors[rows % len(vectors)])
    )


def by_length(work: Workload, batches: np.ndarray) -> np.ndarray:
    """The same sentences in batches of similar length."""
    rows = batches.ravel()
    return rows[np.argsort(work.tokens.lengths[rows], kind="stable")].reshape(batches.shape)


def timed(step: Callable[[np.ndarray], object], rows: np.ndarray) -> float:
    """Milliseconds of one step."""
    began = time.perf_counter()
    step(rows)
    return 1e3 * (time.perf_counter() - began)


def run(
    steps: dict[Key, Callable[[np.ndarray], object]], work: Workload, batches: np.ndarray, warmup: int
) -> tuple[dict[Key, list[float]], dict[str, list[float]]]:
    """ms of every variant on every batch; and by optimizer, what batches by length cost relative to the random ones."""
    for picked in batches[:warmup]:
        for step in steps.values():
            step(picked)
    times: dict[Key, list[float]] = {key: [] for key in steps}
    bucketed: dict[str, list[float]] = {optimizer: [] for optimizer in OPTIMIZERS}
    parts = range(warmup, len(batches), TOGETHER)
    for part in (batches[start : start + TOGETHER] for start in parts):
        for picked in part:
            for key, step in steps.items():
                times[key].append(timed(step, picked))
        for optimizer, ratios in bucketed.items():
            usual = sum(times[optimizer, "fp32"][-len(part) :])
            ratios.append(sum(timed(steps[optimizer, "fp32"], rows) for rows in by_length(work, part)) / usual)
    return times, bucketed


def operations(trainer: Trainer, batches: np.ndarray) -> list[float]:
    """GFLOP of a step on each of these batches."""
    found = []
    for rows in batches:
        with FlopCounterMode(display=False) as counter:
            trainer.step(rows)
        found.append(counter.get_total_flops() / 1e9)
    return found


def time_rows(times: dict[Key, list[float]], bucketed: dict[str, list[float]]) -> Iterator[dict[str, object]]:
    for (optimizer, variant), values in times.items():
        bench = f"step-{optimizer}"
        yield row(bench, variant, "time", "ms", values)
        base = times[optimizer, "reference"]
        yield row(bench, variant, "speedup", "x", [b / v for b, v in zip(base, values, strict=True)])
        if variant in OTHER_MATHEMATICS:
            exact = times[optimizer, "fp32"]
            yield row(bench, variant, "time, share of fp32", "x", [v / e for v, e in zip(values, exact, strict=True)])
    for optimizer, ratios in bucketed.items():
        yield row(f"step-{optimizer}", "batches by length", "time, share of fp32", "x", ratios)
    cost = [a / b for a, b in zip(times["asam", "fp32"], times["adamw", "fp32"], strict=True)]
    yield row("cost-of-asam", "fp32", "asam/adamw", "x", cost)


def peak_rows(
    times: dict[Key, list[float]], counted: dict[str, dict[int, float]], peaks: dict[str, list[float]]
) -> Iterator[dict[str, object]]:
    """Operations of a step, how fast they went, and the share of the peak; counted: GFLOP by number of the timed batch."""
    for precision, values in peaks.items():
        yield row("matrix-peak", precision, "throughput", "GFLOP/s", values)
    for optimizer, by_batch in counted.items():
        bench = f"step-{optimizer}"
        yield row(bench, "fp32", "model FLOP", "GFLOP", list(by_batch.values()))
        for precision, values in peaks.items():
            speed = [1e3 * flop / times[optimizer, precision][number] for number, flop in by_batch.items()]
            yield row(bench, precision, "throughput", "GFLOP/s", speed)
            yield row(bench, precision, "share of peak", "x", [s / float(np.median(values)) for s in speed])


def measure(work: Workload, steps: int, warmup: int, peak_size: int = 1536) -> list[dict[str, object]]:
    """Tidy rows of everything this benchmark measures."""
    before = matrix_peak(peak_size)
    trainers = {
        (optimizer, name): work.trainer(replace(variant, optimizer=optimizer))
        for optimizer in OPTIMIZERS
        for name, variant in LIBRARY.items()
    }
    steppers: dict[Key, Callable[[np.ndarray], object]] = {}
    for optimizer in OPTIMIZERS:
        steppers[optimizer, "reference"] = reference_step(work, optimizer)
        steppers |= {key: trainer.step for key, trainer in trainers.items() if key[0] == optimizer}
    batches = work.batches(steps + warmup)
    times, bucketed = run(steppers, work, batches, warmup)
    numbers = np.unique(np.linspace(0, steps - 1, COUNTED).astype(int))
    counted = {
        optimizer: dict(
            zip(numbers.tolist(), operations(trainers[optimizer, "fp32"], batches[warmup + numbers]), strict=True)
        )
        for optimizer in OPTIMIZERS
    }
    peaks = {name: before[name] + values for name, values in matrix_peak(peak_size).items()}
    return [*time_rows(times, bucketed), *peak_rows(times, counted, peaks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--student", default="minilm-l3")
    parser.add_argument("--teacher-dim", type=int, default=768)
    parser.add_argument("--corpus", default=None, help="default: talas15k where TALAS_DATA holds it, else mini")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    work = Workload(chosen.student, chosen.corpus or default_corpus(), chosen.teacher_dim)
    save(measure(work, chosen.steps, chosen.warmup), "steps", chosen.out, student=work.student, corpus=work.corpus)


if __name__ == "__main__":
    main()
