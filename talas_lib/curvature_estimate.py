"""The top Hessian eigenvalue to about one percent in a fraction of the time: Lanczos on cheap products, one exact check."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from talas_lib.curvature import EigenResult
from talas_lib.hessian import Loss, difference_operator, hvp_operator


def top_eigenvalue(
    losses: Sequence[Loss],
    parameters: Sequence[Tensor],
    *,
    seed: int,
    tol: float = 1e-2,
    max_iter: int = 40,
    step: float = 1e-3,
) -> EigenResult:
    """Estimate the algebraic largest eigenvalue of the Hessian of the mean of `losses`.

    Lanczos with full reorthogonalisation on products by differences of gradients, stopped as soon as the Ritz value is settled:
    it has risen by less than tol / 2 in the last step, and min(r, r^2 / gap), a bound of its error by the residual r
    as far as the gap to the next Ritz value is the true one, is below tol / 2. The value returned is the
    Rayleigh quotient of the vector under the exact Hessian (one product by double backward), so that errors of the differences
    enter it in second order only, and the residual is exact too.

    Like any Krylov method from one start vector it can settle on the second eigenvalue when that lies close and the start vector
    holds little of the first; the value is then low by their distance. `curvature.lanczos` at a small `tol` is the safer road.

    Args:
        tol: relative error of the value that is aimed at. A residual of about its square root is then enough, so `residual`
            may well exceed `tol`; `converged` says whether the stopping rule was met within `max_iter` steps.
        step: see `hessian.difference_operator`.

    Returns:
        quantity `lambda_max`, method `lanczos_differences`; hvps counts the exact product as well.

    Raises:
        ValueError: `max_iter` below 2 or `tol` not positive; see also `hvp_operator`.
    """
    if max_iter < 2 or not tol > 0:
        raise ValueError(f"max_iter={max_iter}, tol={tol}: at least 2 steps and a positive tolerance are needed")
    started = time.perf_counter()
    cheap = difference_operator(losses, parameters, step=step)
    kept = np.dtype(np.float64 if cheap.parameters[0].dtype == torch.float64 else np.float32)
    vector, converged, steps = _lanczos(cheap.matvec, cheap.shape[0], seed=seed, tol=tol, max_iter=max_iter, dtype=kept)
    product = hvp_operator(losses, parameters).matvec(vector)
    value = float(vector @ product)
    residual = float(np.linalg.norm(product - value * vector)) / abs(value) if value else math.inf
    return EigenResult(
        quantity="lambda_max",
        method="lanczos_differences",
        value=value,
        vector=vector,
        residual=residual,
        converged=converged,
        iterations=steps,
        hvps=cheap.hvps + 1,
        seconds=time.perf_counter() - started,
    )


def _lanczos(
    matvec: Callable[[np.ndarray], np.ndarray], size: int, *, seed: int, tol: float, max_iter: int, dtype: np.dtype
) -> tuple[np.ndarray, bool, int]:
    """(unit Ritz vector of the largest value, float64; whether its value is settled; steps). The basis is kept in `dtype`."""
    basis = np.empty((min(max_iter, size), size), dtype=dtype)
    start = np.random.default_rng(seed).standard_normal(size)
    basis[0] = start / np.linalg.norm(start)
    diagonal: list[float] = []
    off: list[float] = []
    tops: list[float] = []
    settled = False
    while True:
        known = basis[: len(diagonal) + 1]
        product = np.asarray(matvec(known[-1]), dtype=dtype)
        diagonal.append(float(known[-1] @ product))
        for _ in range(2):  # twice is enough
            product -= (known @ product) @ known
        beta = float(np.linalg.norm(product))
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))
        top, weights = values[-1], vectors[:, -1]
        tops.append(top)
        if len(tops) > 3:
            residual = beta * abs(weights[-1])
            gap = top - values[-2]
            error = min(residual, residual**2 / gap) if gap > 0 else residual
            settled = bool(error <= tol / 2 * abs(top) and top - tops[-2] <= tol / 2 * abs(top))
        exhausted = beta <= 10 * np.finfo(dtype).eps * max(map(abs, diagonal))
        if settled or exhausted or len(diagonal) == len(basis):
            found = weights @ known.astype(np.float64)
            return found / np.linalg.norm(found), settled or exhausted, len(diagonal)
        off.append(beta)
        basis[len(diagonal)] = product / beta
