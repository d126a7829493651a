"""What a sharpness-aware step climbs, and how far, as its radius grows: the perturbation of a trained student on one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from talas_lib import runs
from talas_lib.errors import TalasError
from talas_lib.texts import hash_order

if TYPE_CHECKING:
    from talas_lib.methods.base import Batch, Objective
    from talas_lib.sharpness_aware import Perturbation

RHOS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Uphill:
    """The objective of a run at its trained weights, on one fixed batch, dropout off: what an ascent step climbs."""

    objective: Objective
    batch: Batch
    perturb_heads: bool = True

    def parameters(self) -> list[Any]:
        heads = self.objective.method.heads.parameters() if self.perturb_heads else ()
        return [p for p in (*self.objective.student.model.parameters(), *heads) if p.requires_grad]


def uphill(run: runs.Run, *, sentences: int = 32, device: str = "cpu") -> Uphill:
    """The run's objective on the first sentences of its corpus, in the order of their hashes.

    TalasError for a run without a loss.
    """
    from safetensors.torch import load_file

    from talas_lib import export, methods, stages
    from talas_lib.methods.base import Objective as Total

    p = run.params
    if methods.builds_student(p.method):
        raise TalasError(f"run {run.id} has no loss to climb: method {p.method} computes its student without training")
    student = stages.load_run_student(run).to(device).eval()
    corpus = stages.load_corpus(p)
    caches = stages.open_caches(p, corpus)
    method = stages.build_method(p, student=student, teacher_dims=caches.dims)
    heads: Path = run.folder / "model" / export.HEADS_FILE
    method.heads.load_state_dict(load_file(heads) if heads.is_file() else {})
    method.heads.to(device).eval()
    method.enter(len(method.stages) - 1)
    rows = np.array(sorted(hash_order(range(len(corpus)), "uphill", str)[:sentences]))
    batch = stages.training_data(p, student, corpus, caches).batch(rows, student.device)
    objective = Total(student, method, needs=p.needs)
    return Uphill(objective, batch, p.optimizer_spec.perturb_heads is not False)


def ascent_by_rho(hill: Uphill, how: Perturbation, rhos: Sequence[float] = RHOS) -> pd.DataFrame:
    """What the perturbation does at each radius; one row a rho.

    loss at w + eps; rise above the loss at w, and the rise to first order, rho ||T g||; relative, ||eps|| / ||w||; turn, the
    angle in degrees between the gradients there and at w; moved, 1 less the mean cosine of the sentence vectors before and
    after. The weights are as they were afterwards.
    """
    import torch

    from talas_lib.sharpness_aware import cosine_between, displaced, find_direction

    parameters = hill.parameters()

    def here() -> tuple[Any, Any, list[Any]]:
        states = hill.objective.states(hill.batch)
        loss = hill.objective.total(states, hill.batch)[0]
        return loss.detach(), states.pooled.detach(), list(torch.autograd.grad(loss, parameters, allow_unused=True))

    loss, vectors, grads = here()
    rows = []
    try:
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        for rho in rhos:
            with displaced(find_direction(parameters, replace(how, rho=rho))) as report:
                there, moved, turned = here()
            assert report is not None
            cosine = cosine_between(*([g for g in side if g is not None] for side in (turned, grads)))
            rows.append(
                {
                    "rho": rho,
                    "loss": float(there),
                    "rise": float(there - loss),
                    "first order": float(report.predicted_gain),
                    "relative": float(report.relative),
                    "turn": float(np.degrees(np.arccos(np.clip(float(cosine), -1, 1)))),
                    "moved": 1 - float(torch.cosine_similarity(vectors, moved).mean()),
                }
            )
    finally:
        for parameter in parameters:
            parameter.grad = None
    return pd.DataFrame(rows)
