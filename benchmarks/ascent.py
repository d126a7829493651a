"""How well cheap ascent directions imitate ASAM's exact one, at the same rho, and what a step costs.

    python -m benchmarks.ascent [--corpus mini] [--teacher minilm-l6] [--rho 0.05 0.5] [--batches 12] [--train 100]

Two figures say how far a direction gets: the loss rise, and the turn of the gradient, 1 - cos(g', g).
At two points of a training run (untrained student; after `--train` exact ASAM steps) every approximation finds its direction on
the same batches, with dropout as in training. The rise L(w + eps) - L(w) and the cosine are then taken on the whole batch without
dropout, the same function for all. The cost is measured in turn on the same batches, as a multiple of an AdamW step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from benchmarks.common import cpu_name, default_corpus, git_revision, row
from talas_lib import params, sources, stages
from talas_lib.caching import open_caches
from talas_lib.methods.base import Batch, Objective
from talas_lib.schedule import Settings, batch_rows
from talas_lib.sharpness_aware import Approximation, Direction, Perturbation, cosine_between, displaced
from talas_lib.stepper import Stepper

VARIANTS = {
    "exact": Approximation(),
    "quarter, one view": Approximation(stride=4, one_view=True),
    "eighth, one view": Approximation(stride=8, one_view=True),
    "every 5th, one view, reused": Approximation(every=5, one_view=True),
}


def stepper(objective: Objective, rho: float | None, how: Approximation) -> Stepper:
    """A stepper over fresh AdamW state; rho None: AdamW alone."""
    around = None if rho is None else Perturbation("asam", rho)
    optimizer = torch.optim.AdamW(objective.parameter_groups(2e-5, 0.01), fused=True)
    return Stepper(objective, optimizer, Settings(perturbation=around, ascent=how))


def measured(objective: Objective, batch: Batch, direction: Direction) -> tuple[float, float]:
    """Loss rise and 1 - cos(g', g) of a direction on the whole batch, dropout off."""
    parameters = [*objective.student.parameters(), *objective.method.heads.parameters()]

    def gradient() -> tuple[float, list[torch.Tensor]]:
        loss = objective(batch)[0]
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        found = [g.coalesce().values() if g.is_sparse else g for g in grads if g is not None]
        return loss.item(), [g.double() for g in found]

    objective.student.eval()
    loss, first = gradient()
    with displaced(direction):
        risen, second = gradient()
    objective.student.train()
    return risen - loss, 1 - cosine_between(first, second).item()


def imitation(objective: Objective, batches: list[Batch], rho: float) -> Iterator[tuple[str, float, float]]:
    """(variant, loss rise, turn) of every variant on every batch; weights are left as they were."""
    for name, how in VARIANTS.items():
        finder = stepper(objective, rho, how)
        for batch in batches:
            torch.manual_seed(int(batch.rows[0]))
            # the exact direction is the approximation without any saving; what is reused was found on an earlier batch
            direction = finder._approximate_direction(batch, measure=False)
            finder.steps += 1
            if how.every > 1 and finder.steps % how.every == 1:
                continue
            yield name, *measured(objective, batch, direction)
        finder.optimizer.zero_grad(set_to_none=True)


def cost(objective: Objective, batches: list[Batch], rho: float) -> dict[str, list[float]]:
    """Time of a step as a multiple of AdamW's on the same batch, every variant in turn."""
    steppers = {"adamw": stepper(objective, None, Approximation())}
    steppers |= {name: stepper(objective, rho, how) for name, how in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for number, batch in enumerate(batches):
        for name, one in steppers.items():
            began = time.perf_counter()
            one.step(batch, 1.0, measure=False)
            if number >= 2:
                times[name].append(time.perf_counter() - began)
    base = times.pop("adamw")
    # a reused direction costs little on most steps and much on some: the mean over its period counts
    means = {
        name: [sum(t) / sum(base)] if VARIANTS[name].every > 1 else [a / b for a, b in zip(t, base, strict=True)]
        for name, t in times.items()
    }
    return means


def measure(corpus: str, teacher: str, rho: float, count: int, train_steps: int, *, timed: bool = True) -> pd.DataFrame:
    """Tidy rows: bench, variant, metric, unit, median, min, max, n, after (training steps). timed: the cost of a step as well."""
    p = params.resolve("03_train", {"teacher": teacher, "corpus": corpus, "pooling": "cls", "optimizer": "asam"})
    texts = stages.load_corpus(p)
    student = sources.load_student(p.student_spec)
    caches = open_caches(p, texts)
    method = stages.build_method(p, student=student, teacher_dims=caches.dims)
    data, used = stages.training_data(p, student, texts, caches).renumbered()
    student.compact_vocabulary(used, sparse_gradient=True)
    objective = Objective(student, method)
    student.train()
    order = [rows for _, _, rows in batch_rows(len(data), Settings(epochs=50))]
    probes = [data.batch(rows) for rows in order[-count:]]
    found = []
    trainer = stepper(objective, rho, Approximation())
    for after in (0, train_steps):
        for rows in order[:after]:
            trainer.step(data.batch(rows), 1.0, measure=False)
        values = pd.DataFrame(imitation(objective, probes, rho), columns=["variant", "rise", "turn"])
        exact = values[values.variant == "exact"]
        for name, part in values.groupby("variant", sort=False):
            for metric in ("rise", "turn"):
                found.append(row("ascent", str(name), metric, "", list(part[metric])) | {"after": after})
            share = part.rise.mean() / exact.rise.mean()
            found.append(row("ascent", str(name), "rise, share of exact", "x", [share]) | {"after": after})
            turned = part.turn.mean() / exact.turn.mean()
            found.append(row("ascent", str(name), "turn, share of exact", "x", [turned]) | {"after": after})
    for name, values in cost(objective, probes, rho).items() if timed else ():
        found.append(row("ascent", name, "cost of a step", "adamw steps", values) | {"after": train_steps})
    return pd.DataFrame(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default=None, help="default: talas15k where TALAS_DATA holds it, else mini")
    parser.add_argument("--teacher", default="minilm-l6")
    parser.add_argument("--rho", type=float, nargs="+", default=[0.05, 0.5])
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    chosen = parser.parse_args()
    corpus = chosen.corpus or default_corpus()
    first, *others = chosen.rho
    tables = [measure(corpus, chosen.teacher, first, chosen.batches, chosen.train).assign(rho=first)]
    costs = tables[0][tables[0].metric == "cost of a step"]  # which the radius does not change
    for rho in others:
        rises = measure(corpus, chosen.teacher, rho, chosen.batches, chosen.train, timed=False)
        tables.append(pd.concat([rises, costs]).assign(rho=rho))
    table = pd.concat(tables, ignore_index=True).assign(corpus=corpus, git=git_revision(), cpu=cpu_name())
    chosen.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(chosen.out / "ascent.csv", index=False, float_format="%.4g")
    print(table.drop(columns=["git", "cpu", "bench"]).to_string(index=False))


if __name__ == "__main__":
    main()
