"""ms per training step: the library against the usual implementation, in turn on the same batches, and where the time goes.

    python -m benchmarks.steps [--steps 30] [--teacher-dim 768] [--corpus talas15k] [--out results/bench]

Every variant runs the same batch before the next one does, so that a change of the machine's speed hits all alike; the
table gives medians and the ratio to the reference pair by pair.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.common import cpu_name, git_revision, matrix_peak, row
from benchmarks.reference import ReferenceTrainer
from talas_lib import params, sources
from talas_lib.methods.base import Objective
from talas_lib.methods.talas import Config, Talas
from talas_lib.schedule import Settings
from talas_lib.sharpness_aware import Perturbation
from talas_lib.stepper import Stepper
from talas_lib.training_data import TrainingData


def library_step(
    data: TrainingData, spec: params.StudentSpec, *, asam: bool, precision: str, teacher_dim: int
) -> Callable[[np.ndarray], object]:
    """A function that trains the library's student on given corpus rows."""
    student = sources.load_student(spec)
    generator = torch.Generator().manual_seed(0)
    method = Talas(
        Config(),
        student_dim=student.dim,
        teacher_dims=(teacher_dim,),
        num_layers=student.num_layers,
        generator=generator,
    )
    small, used = data.renumbered()
    student.compact_vocabulary(used)
    objective = Objective(student, method, precision=precision)
    settings = Settings(perturbation=Perturbation() if asam else None)
    optimizer = torch.optim.AdamW(objective.parameter_groups(2e-5, 0.01), fused=True)
    stepper = Stepper(objective, optimizer, settings)
    student.train()
    return lambda rows: stepper.step(small.batch(rows), 1.0, measure=False)  # logged every tenth step in training


def reference_step(
    data: TrainingData, folder: Path, spec: params.StudentSpec, *, asam: bool, teacher_dim: int
) -> Callable[[np.ndarray], object]:
    """The same for the usual implementation."""
    trainer = ReferenceTrainer(
        str(folder), layers=spec.layers or (), teacher_dim=teacher_dim, pooling=spec.pooling, asam=asam
    )
    (vectors,) = data.teachers
    return lambda rows: trainer.step([data.tokens[i].tolist() for i in rows], torch.from_numpy(vectors(rows)))


def measure(steps: int, warmup: int, corpus: str, teacher_dim: int) -> pd.DataFrame:
    """Tidy rows: bench, variant, metric, unit, median, min, max, n."""
    spec = params.load_student("minilm-l3").model_copy(update={"pooling": "cls"})
    texts = sources.load_corpus(params.load_corpus_spec(corpus)).texts
    student = sources.load_student(spec)
    tokens = student.tokenize(texts)
    vectors = np.random.default_rng(0).normal(size=(len(texts), teacher_dim)).astype(np.float32)
    data = TrainingData(
        tokens, (lambda rows: vectors[rows],), np.arange(len(texts)), np.zeros(len(texts), dtype=np.int64)
    )
    order = np.random.default_rng(1).permutation(len(texts))[: 32 * (steps + warmup)].reshape(-1, 32)
    folder = sources.model_folder(spec)
    variants: dict[tuple[str, str], Callable[[np.ndarray], object]] = {}
    for name, asam in (("adamw", False), ("asam", True)):
        variants[name, "reference"] = reference_step(data, folder, spec, asam=asam, teacher_dim=teacher_dim)
        variants[name, "fp32"] = library_step(data, spec, asam=asam, precision="fp32", teacher_dim=teacher_dim)
        variants[name, "bf16"] = library_step(data, spec, asam=asam, precision="bf16", teacher_dim=teacher_dim)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in variants}
    for number, picked in enumerate(order):
        for key, step in variants.items():
            began = time.perf_counter()
            step(picked)
            if number >= warmup:
                times[key].append(1e3 * (time.perf_counter() - began))
    rows_out = []
    for (optimizer, variant), values in times.items():
        rows_out.append(row(f"step-{optimizer}", variant, "time", "ms", values))
        base = times[optimizer, "reference"]
        rows_out.append(
            row(f"step-{optimizer}", variant, "speedup", "x", [b / v for b, v in zip(base, values, strict=True)])
        )
    cost = [a / b for a, b in zip(times["asam", "fp32"], times["adamw", "fp32"], strict=True)]
    rows_out.append(row("cost-of-asam", "fp32", "asam/adamw", "x", cost))
    return pd.DataFrame(rows_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--teacher-dim", type=int, default=768)
    parser.add_argument("--corpus", default="mini")
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    chosen = parser.parse_args()
    table = measure(chosen.steps, chosen.warmup, chosen.corpus, chosen.teacher_dim)
    peaks = pd.DataFrame(
        [row("matrix-peak", name, "throughput", "GFLOP/s", values) for name, values in matrix_peak().items()]
    )
    table = pd.concat([table, peaks], ignore_index=True).assign(
        corpus=chosen.corpus, git=git_revision(), cpu=cpu_name()
    )
    chosen.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out / "steps.csv", index=False, float_format="%.4g")
    print(table.drop(columns=["git", "cpu"]).to_string(index=False))


if __name__ == "__main__":
    main()
