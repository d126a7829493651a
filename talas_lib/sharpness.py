"""Sharpness of a trained model: the largest eigenvalue of the loss's Hessian, and the rise of one ASAM step.

The caller fixes the objective (loss weights, dropout off) and the batches, the same for all models compared,
and passes one closure per batch. Eigenvalues are those of the mean loss. Single batches overestimate the
largest (that of a mean is at most the mean of theirs), which `per_batch=True` shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from talas_lib.curvature import EigenResult, lanczos, power_iteration, smallest_eigenvalue
from talas_lib.hessian import HessianOperator, Loss, check_deterministic, hvp_operator, mean_gradient
from talas_lib.sharpness_aware import Perturbation, ascent_direction


@dataclass(frozen=True)
class SharpnessResult:
    """The largest eigenvalue of the Hessian at one point, by two estimators.

    Attributes:
        subset: which parameters the Hessian is taken of (a label, "encoder").
        parameters: number of weights.
        loss: mean of `batch_losses`.
        batch_losses: loss of every batch.
        power_abs_max: eigenvalue of largest magnitude by power iteration: the number PyHessian reports.
        power_max: largest eigenvalue by power iteration: the same run if positive, else one on H + cI.
        lanczos_max: largest eigenvalue by Lanczos: the headline.
        lanczos_min: smallest eigenvalue by Lanczos, None unless asked for.
        per_batch: largest eigenvalue of each batch by Lanczos, without vectors (empty unless asked for).
    """

    subset: str
    parameters: int
    loss: float
    batch_losses: tuple[float, ...]
    power_abs_max: EigenResult
    power_max: EigenResult
    lanczos_max: EigenResult
    lanczos_min: EigenResult | None = None
    per_batch: tuple[EigenResult, ...] = ()

    @property
    def lambda_max(self) -> float:
        """Largest algebraic eigenvalue of the mean loss, by Lanczos."""
        return self.lanczos_max.value

    def to_rows(self) -> list[dict[str, Any]]:
        """One plain dict per estimate; `batch` is None for the mean loss, else the index of the batch."""
        batches = len(self.batch_losses)
        mean = (self.power_abs_max, self.power_max, self.lanczos_max, self.lanczos_min)
        rows = [self._row(result, batches, None) for result in mean if result is not None]
        return rows + [self._row(result, 1, index) for index, result in enumerate(self.per_batch)]

    def _row(self, result: EigenResult, batches: int, batch: int | None) -> dict[str, Any]:
        return {
            "quantity": result.quantity,
            "estimator": "lanczos" if result.method == "lanczos" else "power",
            "subset": self.subset,
            "value": result.value,
            "residual": result.residual,
            "iterations": result.iterations,
            "converged": result.converged,
            "hvps": result.hvps,
            "seconds": result.seconds,
            "batches": batches,
            "batch": batch,
        }


def measure_sharpness(
    batch_losses: Sequence[Loss],
    encoder_parameters: Sequence[Tensor],
    *,
    seed: int,
    tol: float = 1e-3,
    max_iter: int = 100,
    residual_tol: float = 1e-2,
    smallest: bool = False,
    per_batch: bool = False,
    cache_graphs: bool = False,
    subset: str = "encoder",
) -> SharpnessResult:
    """Largest eigenvalue of the Hessian of the mean of `batch_losses`, by power iteration and by Lanczos.

    Args:
        batch_losses: one closure per fixed batch, as for `hvp_operator`.
        encoder_parameters: the weights the Hessian is taken of. Leave projection heads out: the cosine does
            not depend on their scale, so their curvature follows their norm, H(cW) = H(W) / c^2.
        seed: of the starting vectors.
        tol: relative change of power iteration; residual of Lanczos.
        max_iter: products for each of the estimates (a product runs through all batches).
        residual_tol: residual below which power iteration counts as converged.
        smallest: also the smallest eigenvalue, for as many products again.
        per_batch: also each batch on its own, by Lanczos.
        cache_graphs: see `hvp_operator`; memory for speed.

    Raises:
        ValueError: a loss changes between two calls or is not finite; see also `hvp_operator`.
    """
    losses = check_deterministic(batch_losses)
    operator = hvp_operator(batch_losses, encoder_parameters, cache_graphs=cache_graphs)
    abs_max, power_max = _by_power(operator, seed, tol, max_iter, residual_tol)
    largest = lanczos(operator, seed=seed, tol=tol, max_iter=max_iter)[0]
    lowest = smallest_eigenvalue(operator, largest, seed=seed, tol=tol, max_iter=max_iter) if smallest else None
    single = []
    for loss in batch_losses if per_batch else ():
        alone = hvp_operator([loss], encoder_parameters, cache_graphs=cache_graphs)
        single.append(replace(lanczos(alone, seed=seed, tol=tol, max_iter=max_iter)[0], vector=None))
    return SharpnessResult(
        subset=subset,
        parameters=operator.shape[0],
        loss=sum(losses) / len(losses),
        batch_losses=losses,
        power_abs_max=abs_max,
        power_max=power_max,
        lanczos_max=largest,
        lanczos_min=lowest,
        per_batch=tuple(single),
    )


def _by_power(
    operator: HessianOperator, seed: int, tol: float, max_iter: int, residual_tol: float
) -> tuple[EigenResult, EigenResult]:
    """Eigenvalue of largest magnitude, and the largest: the former if positive, else found by a shift."""
    run = partial(power_iteration, operator, seed=seed, tol=tol, max_iter=max_iter, residual_tol=residual_tol)
    abs_max = run()
    if abs_max.value >= 0:
        return abs_max, replace(abs_max, quantity="lambda_max")
    return abs_max, run(shift=-abs_max.value)


@dataclass(frozen=True)
class AsamSharpness:
    """Loss rise for one ASAM step uphill.

    Attributes:
        loss: mean loss at w.
        perturbed_loss: mean loss at w + eps.
        rise: their difference.
        predicted_rise: g . eps = rho ||T g||, the rise to first order.
    """

    loss: float
    perturbed_loss: float
    rise: float
    predicted_rise: float


def asam_sharpness(
    batch_losses: Sequence[Loss], parameters: Sequence[Tensor], rho: float, eta: float = 0.0
) -> AsamSharpness:
    """Loss rise at eps = rho T^2 g / ||T g||, T = |w| + eta, g the mean loss's gradient (Kwon et al. 2021).

    With eta = 0 it does not change when weights are rescaled without changing the function; eigenvalues do.
    The weights are restored to the bit, also when a loss raises.

    Raises:
        ValueError: negative `rho` or `eta`, a loss that changes between two calls; see also `hvp_operator`.
    """
    how = Perturbation(kind="asam", rho=rho, eta=eta, bias_mode="abs")
    parameters = tuple(parameters)
    losses = check_deterministic(batch_losses)
    gradient = mean_gradient(batch_losses, parameters)
    saved = [parameter.detach().clone() for parameter in parameters]
    eps, scaled_norm = ascent_direction(saved, gradient, how)
    with torch.no_grad():
        try:
            for parameter, step in zip(parameters, eps, strict=True):
                parameter.add_(step)
            moved = [float(loss()) for loss in batch_losses]
        finally:
            for parameter, original in zip(parameters, saved, strict=True):
                parameter.copy_(original)
    loss, perturbed_loss = sum(losses) / len(losses), sum(moved) / len(moved)
    return AsamSharpness(loss, perturbed_loss, perturbed_loss - loss, rho * float(scaled_norm))
