"""How much a loss rises around its weights: at the worst point of ASAM's ball, and in random directions as long.

Unlike eigenvalues these do not change when weights are rescaled without changing the function, since every weight may move in
proportion to its own size; and they look as far as the ball reaches, not only at the second derivative.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from talas_lib.hessian import Loss, check_deterministic, mean_value, value_and_gradient
from talas_lib.sharpness_aware import Direction, Perturbation, ascent_direction, displaced, global_norm

_ROUNDING = 1e-7


@dataclass(frozen=True)
class AsamSharpness:
    """Loss rise at the worst point found in ASAM's ball ||T^-1 eps|| <= rho, T = |w| + eta.

    Attributes:
        loss: mean loss at w.
        perturbed_loss: mean loss at w + eps.
        rise: their difference.
        predicted_rise: g . eps = rho ||T g|| of the first step, the rise to first order.
        residual: how far eps is from where its own gradient points, ||T^-1 (eps' - eps)|| / rho with eps' the next step from
            there: 0 at a maximum on the surface of the ball, at most 2.
        converged: the residual is below the tolerance that was asked for.
        steps: ascent steps taken; eps is the best of them.
        relative: ||eps|| / ||w||.
        gradients: gradients of the mean loss that were computed.
        seconds: duration of the call.
    """

    loss: float
    perturbed_loss: float
    rise: float
    predicted_rise: float
    residual: float = math.nan
    converged: bool = False
    steps: int = 1
    relative: float = math.nan
    gradients: int = 0
    seconds: float = math.nan


def asam_sharpness(
    batch_losses: Sequence[Loss],
    parameters: Sequence[Tensor],
    rho: float,
    eta: float = 0.0,
    *,
    steps: int = 1,
    tol: float = 1e-2,
) -> AsamSharpness:
    """Loss rise at eps = rho T^2 g / ||T g||, T = |w| + eta, g the mean loss's gradient at w (Kwon et al. 2021, eq. 5).

    With more steps, g is taken again at w + eps and eps drawn from it, the whole way back to the surface of the ball each time;
    that stops early once eps stays where it is to within `tol`. The highest point counts. With eta = 0 the result does not
    change when weights are rescaled without changing the function; eigenvalues do. The weights are restored to the bit, also
    when a loss raises.

    Raises:
        ValueError: negative `rho` or `eta`, `steps` below 1, a loss that changes between two calls; see also `hvp_operator`.
    """
    how = Perturbation(kind="asam", rho=rho, eta=eta, bias_mode="abs")
    if steps < 1:
        raise ValueError(f"steps={steps}; at least one step uphill is needed")
    began = time.perf_counter()
    parameters = list(parameters)
    check_deterministic(batch_losses)
    weights = [parameter.detach() for parameter in parameters]
    scale = torch._foreach_add([weight.abs() for weight in weights], eta)
    loss, gradient = value_and_gradient(batch_losses, parameters)
    eps, scaled_norm = ascent_direction(weights, gradient, how)
    predicted = rho * float(scaled_norm)
    best, best_eps, residual, taken = -math.inf, eps, math.inf, 0
    while taken < steps:
        with displaced(Direction(parameters, [None] * len(parameters), eps)):
            there, gradient = value_and_gradient(batch_losses, parameters)
        taken += 1
        onward, _ = ascent_direction(weights, gradient, how)
        change = _scaled_distance(onward, eps, scale) / rho if rho > 0 else 0.0
        # of points equally high the later one, which is nearer to where this ends
        if there >= best - _ROUNDING * abs(best):
            best, best_eps, residual = there, eps, change
        if change < tol:
            break
        eps = onward
    length = global_norm(weights).clamp_min(1e-16)
    return AsamSharpness(
        loss=loss,
        perturbed_loss=best,
        rise=best - loss,
        predicted_rise=predicted,
        residual=residual,
        converged=residual < tol,
        steps=taken,
        relative=float(global_norm(best_eps) / length),
        gradients=1 + taken,
        seconds=time.perf_counter() - began,
    )


def _scaled_distance(first: Sequence[Tensor], second: Sequence[Tensor], scale: Sequence[Tensor]) -> float:
    """||T^-1 (first - second)||; where T is 0, neither moves."""
    apart = torch._foreach_sub(list(first), list(second))
    return float(global_norm([torch.where(t > 0, d / t, 0.0) for d, t in zip(apart, scale, strict=True)]))


@dataclass(frozen=True)
class RandomRise:
    """Mean loss rise in random directions.

    Attributes:
        value: mean of `samples`.
        standard_error: of that mean, sample standard deviation / sqrt(draws).
        residual: standard_error / |value|.
        converged: the residual is below the tolerance that was asked for.
        samples: rise of each direction, the mean of its two ends.
        evaluations: evaluations of the mean loss.
        seconds: duration of the call.
    """

    value: float
    standard_error: float
    residual: float
    converged: bool
    samples: tuple[float, ...]
    evaluations: int
    seconds: float


def random_rise(
    batch_losses: Sequence[Loss],
    parameters: Sequence[Tensor],
    relative: float,
    *,
    seed: int,
    draws: int = 5,
    tol: float = 0.2,
) -> RandomRise:
    """Mean rise of the loss at w + eps and w - eps, eps = |w| z of length relative * ||w||, z standard normal numbers.

    `relative` matched to that of `asam_sharpness` says how special its direction is. Both ends together cancel the slope, so
    that the value is the curvature's, 1/2 eps' H eps to second order. The weights are restored to the bit.

    Raises:
        ValueError: negative `relative`, fewer than two draws, a loss that changes between two calls.
    """
    if relative < 0 or draws < 2:
        raise ValueError(f"relative={relative}, draws={draws}: a length of at least 0 and at least 2 draws are needed")
    began = time.perf_counter()
    parameters = list(parameters)
    loss = sum(check_deterministic(batch_losses)) / len(batch_losses)
    generator = torch.Generator().manual_seed(seed)
    length = relative * float(global_norm([parameter.detach() for parameter in parameters]))
    samples = []
    for _ in range(draws):
        eps = [weight.detach().abs() * _normal(weight, generator) for weight in parameters]
        eps = list(torch._foreach_mul(eps, length / max(float(global_norm(eps)), 1e-16)))
        ends = []
        for sign in (1.0, -1.0):
            there = list(torch._foreach_mul(eps, sign))
            with displaced(Direction(parameters, [None] * len(parameters), there)):
                ends.append(mean_value(batch_losses))
        samples.append(sum(ends) / 2 - loss)
    value, error = float(np.mean(samples)), float(np.std(samples, ddof=1) / math.sqrt(draws))
    residual = error / abs(value) if value else 0.0 if error == 0 else math.inf
    return RandomRise(
        value=value,
        standard_error=error,
        residual=residual,
        converged=residual < tol,
        samples=tuple(samples),
        evaluations=2 * draws,
        seconds=time.perf_counter() - began,
    )


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that a GPU sees the same directions."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
