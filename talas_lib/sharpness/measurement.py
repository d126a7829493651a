"""What is measured of one set of weights under a method's full objective: eigenvalues, trace, loss rises, landscapes, the gap."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from talas_lib import landscape, stages
from talas_lib.errors import TalasError
from talas_lib.fixed_objective import FixedObjective, fixed_objective, fixed_rows
from talas_lib.hessian import hvp_operator, value_and_gradient
from talas_lib.loss_rise import asam_sharpness, random_rise
from talas_lib.methods.base import Objective
from talas_lib.sharpness import loss_gap
from talas_lib.sharpness.estimators import SharpnessResult, measure_sharpness, rise_rows

if TYPE_CHECKING:
    from torch import Tensor

    from talas_lib.encoders import Encoder
    from talas_lib.methods.base import Method
    from talas_lib.params import ResolvedParams

# Gradient graphs of this many batches are kept between products; more would want gigabytes.
GRAPHS_KEPT = 8
# Landscapes are hundreds of evaluations: they look at this many of the fixed batches, the first.
LANDSCAPE_BATCHES = 8
# How far landscapes reach: along the unit eigenvector, and in the plane in units of the filters' own lengths.
LINE_RADIUS, PLANE_RADIUS = 0.25, 0.5
_PLANE_SEEDS = (101, 102)


@dataclass(frozen=True)
class Measurement:
    """What is measured and how; every name is a parameter of notebook 05 and explained there."""

    sharpness_batches: int
    sharpness_batch_size: int
    sharpness_tol: float
    sharpness_max_iter: int
    seed: int
    estimator: str = "both"
    subsets: tuple[str, ...] = ("encoder",)
    top_eigenvalues: int = 1
    trace_draws: int = 0
    dropout_seed: int | None = None
    ball_rho: float = 0.0
    ball_steps: int = 1
    single_batches: bool = False
    held_out_batches: int = 0
    landscape: int = 0

    @classmethod
    def of(cls, p: ResolvedParams, **changes: Any) -> Measurement:
        """From the parameters of notebook 05. TalasError for values that do not go together."""
        given = {field.name: getattr(p, field.name) for field in fields(cls)}
        how = cls(**(given | {"subsets": tuple(given["subsets"])} | changes))
        if how.sharpness_batches < 1:
            raise TalasError("sharpness_batches is 0, so there is nothing to measure. Accepted: at least 1")
        if not how.subsets:
            raise TalasError("subsets is empty. Accepted: names such as encoder, of which the first is the headline")
        if how.top_eigenvalues > 1 and how.estimator not in ("both", "lanczos"):
            raise TalasError(
                f"top_eigenvalues is {how.top_eigenvalues} and estimator {how.estimator}, which gives the largest alone."
                " Accepted with several: both or lanczos"
            )
        if how.landscape and (how.landscape % 2 == 0 or how.landscape < 3):
            raise TalasError(
                f"landscape is {how.landscape}; the weights themselves are its middle. Accepted: 0, 3, 5, 7, ..."
            )
        return how

    @property
    def small(self) -> Measurement:
        """The same without what only the final weights of a run are asked for: landscapes and single batches."""
        return replace(self, landscape=0, single_batches=False)

    def settings(self) -> dict[str, Any]:
        """As recorded."""
        return asdict(self) | {"subsets": list(self.subsets)}


def measure(student: Encoder, method: Method, p: ResolvedParams, how: Measurement) -> dict[str, Any]:
    """Everything that is asked for at these weights, under the full objective of the run's parameters, JSON-ready.

    The headline, `lambda_max` with `lambda_max_residual` and `converged`, is that of the first subset; `rows` holds every
    estimate, `batches` the corpus rows of the fixed batches.
    """
    began = time.perf_counter()
    corpus = stages.load_corpus(p)
    data = stages.training_data(p, student, corpus, stages.open_caches(p, corpus))
    objective = Objective(student, method, needs=p.needs, precision="fp32")
    rows = fixed_rows(len(corpus), how.sharpness_batches, how.sharpness_batch_size, how.seed)
    with fixed_objective(objective, data, rows, dropout_seed=how.dropout_seed) as fixed:
        names = fixed.named(how.subsets)
        results = [_eigenvalues(fixed, name, how, headline=name == names[0]) for name in names]
        head, weights = results[0], fixed.parameters(names[0])
        estimates = [row for result in results for row in result.to_rows()]
        rises = _rises(fixed, weights, names[0], how)
        shapes = _landscapes(fixed, weights, head, how.landscape) if how.landscape else None
    gap = None
    if how.held_out_batches:
        size = {"batches": how.held_out_batches, "batch_size": how.sharpness_batch_size}
        gap = loss_gap.loss_gap(objective, p, data, **size, seed=how.seed)
    return {
        "lambda_max": head.lambda_max,
        "lambda_max_residual": head.largest.residual,
        "converged": head.largest.converged,
        "subset": head.subset,
        "parameters": head.parameters,
        "loss": head.loss,
        "batch_losses": list(head.batch_losses),
        "rows": estimates + rises.pop("rows", []),
        "rises": rises or None,
        "gap": gap,
        "landscape": shapes,
        "power_trace": list(head.power_trace),
        "corpus_sha256": corpus.sha256,
        "batches": rows.tolist(),
        "seconds": time.perf_counter() - began,
    }


def _eigenvalues(fixed: FixedObjective, subset: str, how: Measurement, *, headline: bool) -> SharpnessResult:
    """Estimates of one subset; single batches and the trace are the headline's."""
    return measure_sharpness(
        fixed.losses,
        fixed.parameters(subset),
        seed=how.seed,
        estimator=how.estimator,
        n=how.top_eigenvalues,
        tol=how.sharpness_tol,
        max_iter=how.sharpness_max_iter,
        per_batch=how.single_batches and headline,
        trace_draws=how.trace_draws if headline else 0,
        cache_graphs=len(fixed.losses) <= GRAPHS_KEPT,
        subset=subset,
    )


def _rises(fixed: FixedObjective, weights: tuple[Tensor, ...], subset: str, how: Measurement) -> dict[str, Any]:
    """Loss rises in ASAM's ball and in random directions as long as its first step; nothing without a radius."""
    if not how.ball_rho:
        return {}
    one = asam_sharpness(fixed.losses, weights, how.ball_rho)
    several = asam_sharpness(fixed.losses, weights, how.ball_rho, steps=how.ball_steps)
    drawn = random_rise(fixed.losses, weights, one.relative, seed=how.seed)
    return {
        "rows": rise_rows(one, several, drawn, subset=subset, batches=len(fixed.losses)),
        "rho": how.ball_rho,
        "relative": one.relative,
        "predicted": one.predicted_rise,
    }


def _landscapes(
    fixed: FixedObjective, weights: tuple[Tensor, ...], head: SharpnessResult, points: int
) -> dict[str, Any]:
    """The loss along the top eigenvector and over the plane of two filter-normalised random directions, on the first batches.

    `loss` is theirs, the middle of both pictures; `slope` and `curvature` are the derivatives of it along the eigenvector.
    """
    assert head.largest.vector is not None
    losses = fixed.losses[:LANDSCAPE_BATCHES]
    direction = landscape.from_vector(head.largest.vector, weights)
    flat = np.concatenate([part.detach().double().cpu().numpy().reshape(-1) for part in direction])
    _, gradient = value_and_gradient(losses, weights)
    slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    curvature = float(flat @ hvp_operator(losses, weights).matvec(flat))
    line = landscape.along(losses, weights, direction, landscape.positions(LINE_RADIUS, 2 * points - 1))
    axes = [landscape.filter_normalized(landscape.random_direction(weights, s), weights) for s in _PLANE_SEEDS]
    plane = landscape.over(losses, weights, axes[0], axes[1], landscape.positions(PLANE_RADIUS, points))
    return {
        "loss": sum(head.batch_losses[:LANDSCAPE_BATCHES]) / len(losses),
        "batches": len(losses),
        "line": {"positions": line.positions, "losses": line.losses, "slope": slope, "curvature": curvature},
        "plane": {"first": plane.first, "second": plane.second, "losses": plane.losses, "seeds": list(_PLANE_SEEDS)},
    }
