"""Seconds to the largest Hessian eigenvalue: Lanczos here against PyHessian's power iteration, on the same objective and batches.

    python -m benchmarks.eigen [--batches 4] [--student minilm-l3]

The yardstick is a run of Lanczos to a residual of 1e-4; both are stated with their error against it.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.common import cpu_name, git_revision, row
from talas_lib import params, sources
from talas_lib.curvature import hvp_operator, lanczos
from talas_lib.curvature_estimate import top_eigenvalue
from talas_lib.fixed_objective import fixed_rows
from talas_lib.methods.base import Objective
from talas_lib.methods.talas import Config, Talas
from talas_lib.training_data import TrainingData


class AsModel(nn.Module):
    """The objective in the shape PyHessian wants: model(number of the batch) -> loss; parameters are the encoder's."""

    def __init__(self, encoder: nn.Module, losses: list[Callable[[], Tensor]]) -> None:
        super().__init__()
        self.encoder = encoder
        self.losses = losses

    def forward(self, number: Tensor) -> Tensor:
        return self.losses[int(number[0])]()


def problem(student_name: str, corpus: str, batches: int) -> tuple[nn.Module, list[Callable[[], Tensor]]]:
    """The full TALAS objective on fixed batches, dropout off, for an untrained student and random teacher vectors."""
    spec = params.load_student(student_name)
    texts = sources.load_corpus(params.load_corpus_spec(corpus)).texts
    student = sources.load_student(spec)
    student.eval()
    generator = torch.Generator().manual_seed(0)
    method = Talas(
        Config(), student_dim=student.dim, teacher_dims=(384,), num_layers=student.num_layers, generator=generator
    )
    vectors = np.random.default_rng(0).normal(size=(len(texts), 384)).astype(np.float32)
    zeros = np.zeros(len(texts), dtype=np.int64)
    rows = fixed_rows(len(texts), batches, 32, seed=0)
    data, used = TrainingData(student.tokenize(texts), (lambda r: vectors[r],), zeros, zeros).renumbered(rows.ravel())
    student.compact_vocabulary(used)
    objective = Objective(student, method)
    packed = [data.batch(r) for r in rows]
    return student, [lambda batch=batch: objective(batch)[0] for batch in packed]


Estimate = tuple[float, int | None]


def by_differences(
    student: nn.Module, losses: list[Callable[[], Tensor]], weights: list[Tensor], seed: int
) -> Estimate:
    result = top_eigenvalue(losses, weights, seed=seed, tol=1e-2)
    return result.value, result.hvps


def by_lanczos(student: nn.Module, losses: list[Callable[[], Tensor]], weights: list[Tensor], seed: int) -> Estimate:
    result = lanczos(hvp_operator(losses, weights, cache_graphs=True), seed=seed, tol=1e-2)[0]
    return result.value, result.hvps


def by_pyhessian(student: nn.Module, losses: list[Callable[[], Tensor]], weights: list[Tensor], seed: int) -> Estimate:
    """Power iteration as the package has it; it does not count its products."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pyhessian
    loader = [(torch.tensor([i]), torch.tensor([i])) for i in range(len(losses))]
    torch.manual_seed(seed)
    theirs = pyhessian.hessian(AsModel(student, losses), lambda out, _: out, dataloader=loader, cuda=False)
    (value,), _ = theirs.eigenvalues(maxIter=100, tol=1e-3)
    return value, None


ESTIMATORS = {"lanczos on differences": by_differences, "lanczos, graphs kept": by_lanczos, "pyhessian": by_pyhessian}


def measure(student_name: str, corpus: str, batches: int, repeats: int) -> pd.DataFrame:
    """Rows of value, seconds and relative error against the yardstick for each estimator, another start vector each time."""
    student, losses = problem(student_name, corpus, batches)
    weights = list(student.parameters())
    found: dict[str, list[tuple[float, float, int | None]]] = {}
    with sdpa_kernel(SDPBackend.MATH):
        exact = lanczos(hvp_operator(losses, weights, cache_graphs=True), seed=5, tol=1e-4)[0].value
        for repeat in range(repeats):
            for name, estimate in ESTIMATORS.items():
                began = time.perf_counter()
                value, products = estimate(student, losses, weights, repeat)
                found.setdefault(name, []).append((value, time.perf_counter() - began, products))
    base = [seconds for _, seconds, _ in found["pyhessian"]]
    rows = []
    for name, results in found.items():
        values, seconds, products = zip(*results, strict=True)
        shares = [own / theirs for own, theirs in zip(seconds, base, strict=True)]
        rows.append(row("eigenvalue", name, "time", "s", list(seconds)))
        rows.append(row("eigenvalue", name, "share of pyhessian's time", "x", shares))
        rows.append(row("eigenvalue", name, "lambda_max", "", list(values)))
        rows.append(row("eigenvalue", name, "relative error", "", [abs(v - exact) / abs(exact) for v in values]))
        if None not in products:
            rows.append(row("eigenvalue", name, "products", "", list(products)))
    return pd.DataFrame(rows).assign(batches=batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--student", default="minilm-l3")
    parser.add_argument("--corpus", default="mini")
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    chosen = parser.parse_args()
    table = measure(chosen.student, chosen.corpus, chosen.batches, chosen.repeats).assign(
        git=git_revision(), cpu=cpu_name()
    )
    chosen.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out / "eigen.csv", index=False, float_format="%.5g")
    print(table.drop(columns=["git", "cpu"]).to_string(index=False))


if __name__ == "__main__":
    main()
