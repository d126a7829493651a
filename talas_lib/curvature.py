"""Extreme eigenvalues and trace of a Hessian, each with its residual, its cost and whether it converged.

Everything works on a symmetric `scipy.sparse.linalg.LinearOperator`: the one `hvp_operator` makes of losses
and parameters, or a matrix whose spectrum is known.

Two numbers are called "largest eigenvalue", and differ when the negative end dominates, as in diag(3, 1, -5):

- `lambda_max`, the algebraic largest (3): what sharpness means. `lanczos`, or power iteration on H + cI.
- `lambda_abs_max`, the one of largest magnitude (-5): what power iteration, hence PyHessian, converges to.
"""

from __future__ import annotations

import inspect
import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, aslinearoperator, eigsh

from talas_lib.hessian import HessianOperator, check_deterministic, fixed_dropout, hvp_operator, mean_gradient

__all__ = [
    "EigenResult",
    "HessianOperator",
    "SpectrumEnds",
    "TraceResult",
    "check_deterministic",
    "fixed_dropout",
    "hutchinson_trace",
    "hvp_operator",
    "lanczos",
    "mean_gradient",
    "power_iteration",
    "spectrum_ends",
]

# An eigenvalue below this fraction of the operator's norm counts as zero: its residual is relative to that.
NEAR_ZERO = 1e-3
# Lanczos vectors ARPACK keeps (float64, as long as the parameters): 20 are 2.7 GB for 17 M parameters.
LANCZOS_VECTORS = 20
# Fewer draws can agree by chance and would make a standard error of zero.
MIN_TRACE_DRAWS = 10

_QUANTITY = {"LA": "lambda_max", "SA": "lambda_min", "LM": "lambda_abs_max"}
_ARPACK_TAKES_RNG = "rng" in inspect.signature(eigsh).parameters


class _Counted(LinearOperator):
    """`op + shift I` with the products counted and the largest stretch seen, a lower bound of ||op||."""

    def __init__(self, op: LinearOperator, shift: float) -> None:
        self.op, self.shift = op, shift
        self.products, self.scale = 0, 0.0
        self.started = time.perf_counter()
        super().__init__(dtype=np.float64, shape=op.shape)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        x = np.asarray(x, dtype=np.float64).reshape(-1)
        product = np.asarray(self.op.matvec(x), dtype=np.float64)
        self.products += 1
        stretch = float(np.linalg.norm(product) / np.linalg.norm(x))
        if not math.isfinite(stretch):
            raise FloatingPointError(
                f"product {self.products} with the Hessian is not finite; look for a zero-length embedding, a"
                " root or a logarithm at zero in the loss, or measure in float64"
            )
        self.scale = max(self.scale, stretch)
        return product + self.shift * x

    def _adjoint(self) -> _Counted:
        return self

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def residual(self, vector: np.ndarray, product: np.ndarray) -> tuple[float, float]:
        """Rayleigh quotient of `op` at a unit vector and the relative residual, from the shifted product."""
        shifted = float(vector @ product)
        value = shifted - self.shift
        norm = float(np.linalg.norm(product - shifted * vector))
        floor = max(abs(value), NEAR_ZERO * self.scale)
        return value, norm / floor if floor > 0 else 0.0  # floor 0: the operator is zero


@dataclass(frozen=True)
class EigenResult:
    """One eigenpair of a symmetric operator H and what it took.

    Attributes:
        quantity: `lambda_max` (largest), `lambda_min` (smallest), `lambda_abs_max` (by magnitude, signed).
        method: `power`, `power_shifted`, `lanczos`, `lanczos_differences` (`curvature_estimate`) or `pyhessian`
            (`pyhessian_adapter`).
        value: Rayleigh quotient of `vector`. Some eigenvalue of H lies within residual * |value| of it.
        vector: unit vector, float64 `[n]`; None where it was dropped to save memory.
        residual: ||Hv - value v|| / |value|, or / a thousandth of the norm of H where |value| is below that.
        converged: the residual is below the tolerance that was asked for.
        iterations: power iterations or Lanczos steps.
        hvps: products with H in the call, checks included.
        seconds: duration of the call.
        relative_change: last relative change of `value`, PyHessian's stopping rule (nan for Lanczos).
        trace: Rayleigh quotient of every power iteration (empty for Lanczos).
        residuals: residual of every power iteration (empty for Lanczos).
        rank: 1 for the most extreme eigenvalue, 2 for the next, and so on.
    """

    quantity: str
    method: str
    value: float
    vector: np.ndarray | None
    residual: float
    converged: bool
    iterations: int
    hvps: int
    seconds: float
    relative_change: float = math.nan
    trace: tuple[float, ...] = ()
    residuals: tuple[float, ...] = ()
    rank: int = 1


class SpectrumEnds(NamedTuple):
    """Both ends of a spectrum."""

    largest: EigenResult
    smallest: EigenResult


def power_iteration(
    op: LinearOperator,
    *,
    seed: int,
    max_iter: int = 100,
    tol: float = 1e-3,
    residual_tol: float = 1e-2,
    shift: float = 0.0,
) -> EigenResult:
    """Find the eigenvalue of largest magnitude of `op + shift I`; the value returned is that of `op`.

    Without a shift this is `lambda_abs_max`, which may be negative. With shift c >= |smallest eigenvalue| it
    is `lambda_max`, with c <= -|largest| it is `lambda_min`; a shift larger than needed costs iterations.

    Stops when the Rayleigh quotient of the shifted operator changes by less than `tol` (relative) and the
    residual is below `residual_tol`. The first condition alone is PyHessian's, and slow convergence meets it
    too early: `converged` is judged by the residual.

    Raises:
        ValueError: `max_iter` below 1 or a tolerance that is not positive.
        FloatingPointError: a product is not finite.
    """
    _check_budget(max_iter, tol, residual_tol)
    counted = _Counted(aslinearoperator(op), shift)
    vector = _unit(np.random.default_rng(seed).standard_normal(counted.shape[0]))
    trace: list[float] = []
    residuals: list[float] = []
    change = math.inf
    while True:
        product = counted.matvec(vector)
        value, residual = counted.residual(vector, product)
        if trace:
            before = trace[-1] + shift
            change = abs(value - trace[-1]) / abs(before) if before else math.inf
        trace.append(value)
        residuals.append(residual)
        if residual == 0.0 or (residual < residual_tol and change < tol) or len(trace) == max_iter:
            break
        vector = _unit(product)
    end = "lambda_max" if value + shift > 0 else "lambda_min"  # the end that dominates once shifted
    return EigenResult(
        quantity=end if shift else "lambda_abs_max",
        method="power" if shift == 0 else "power_shifted",
        value=value,
        vector=vector,
        residual=residual,
        converged=residual < residual_tol,
        iterations=len(trace),
        hvps=counted.products,
        seconds=counted.seconds,
        relative_change=change,
        trace=tuple(trace),
        residuals=tuple(residuals),
    )


def lanczos(
    op: LinearOperator,
    *,
    seed: int,
    n: int = 1,
    which: str = "LA",
    tol: float = 1e-3,
    max_iter: int = 100,
    shift: float = 0.0,
) -> tuple[EigenResult, ...]:
    """Find `n` extreme eigenpairs, most extreme first, by restarted Lanczos (ARPACK, scipy's `eigsh`).

    Args:
        which: "LA" largest, "SA" smallest, "LM" largest magnitude.
        tol: bound on the residual.
        max_iter: Lanczos steps, that is products (about 2n + 4 are the least possible). When they do
            not suffice, up to max(2n + 1, 20) more make an estimate, whose residuals say how good it is.
        shift: work on `op + shift I`; values are those of `op`. ARPACK stops by an error relative to the
            shifted value: a small shift helps with an eigenvalue near zero, a large one stops it too early.

    Returns:
        `n` results with orthonormal vectors. `iterations`, `hvps` and `seconds` are those of the whole call.

    Raises:
        ValueError: unknown `which`, `n` not in 1..size-1, `max_iter` below 1, or a tolerance that is not
            positive.
        FloatingPointError: a product is not finite.
    """
    _check_budget(max_iter, tol)
    counted = _Counted(aslinearoperator(op), shift)
    if which not in _QUANTITY:
        raise ValueError(f"which={which!r} is not known; use one of {', '.join(_QUANTITY)}")
    if not 1 <= n < counted.shape[0]:
        raise ValueError(f"n={n} eigenvalues of an operator of size {counted.shape[0]}; n has to be in 1..size-1")
    vectors = _ritz_vectors(counted, np.random.default_rng(seed), n, which, tol, max_iter)
    steps = counted.products
    pairs = []
    for vector in vectors.T:
        product = counted.matvec(vector)
        pairs.append((*counted.residual(vector, product), np.ascontiguousarray(vector)))
    sort_key = {"LA": lambda pair: -pair[0], "SA": lambda pair: pair[0], "LM": lambda pair: -abs(pair[0])}
    return tuple(
        EigenResult(
            quantity=_QUANTITY[which],
            method="lanczos",
            value=value,
            vector=vector,
            residual=residual,
            converged=residual < tol,
            iterations=steps,
            hvps=counted.products,
            seconds=counted.seconds,
            rank=rank,
        )
        for rank, (value, residual, vector) in enumerate(sorted(pairs, key=sort_key[which]), start=1)
    )


def _ritz_vectors(
    counted: _Counted, rng: np.random.Generator, n: int, which: str, tol: float, max_iter: int
) -> np.ndarray:
    """Orthonormal Ritz vectors `[size, n]`; estimates when `max_iter` steps are not enough."""
    size = counted.shape[0]
    start = _unit(rng.standard_normal(size))
    # ARPACK takes basis + 1 steps, then basis - kept after every restart, and does at least one restart.
    basis = min(size, max(2 * n + 1, min(LANCZOS_VECTORS, 5 + 5 * n)), max(n + 1, (max_iter + n - 1) // 2))
    kept = max(1, basis // 2) if n == 1 else n
    restarts = max(1, (max_iter - basis - 1) // max(1, basis - kept))
    extra = {"rng": rng} if _ARPACK_TAKES_RNG else {}
    try:
        # Half the tolerance: the residual measured afterwards differs from ARPACK's estimate by rounding.
        return eigsh(counted, n, which=which, v0=start, ncv=basis, maxiter=restarts, tol=tol / 2, **extra)[1]
    except ArpackNoConvergence as stopped:
        # ARPACK hands out converged pairs only. A run from them that accepts any error estimates all.
        start = start + stopped.eigenvectors.sum(axis=1)
        return eigsh(counted, n, which=which, v0=start, ncv=basis, maxiter=1, tol=1e30, **extra)[1]
    except ArpackError:
        if counted.matvec(start).any():
            raise
        # op + shift I is zero: any vectors will do.
        return np.linalg.qr(rng.standard_normal((size, n)))[0]


def spectrum_ends(op: LinearOperator, *, seed: int, tol: float = 1e-3, max_iter: int = 100) -> SpectrumEnds:
    """Largest and smallest algebraic eigenvalue by Lanczos, `max_iter` steps for each."""
    largest = lanczos(op, seed=seed, tol=tol, max_iter=max_iter)[0]
    return SpectrumEnds(largest, smallest_eigenvalue(op, largest, seed=seed, tol=tol, max_iter=max_iter))


def smallest_eigenvalue(
    op: LinearOperator, largest: EigenResult, *, seed: int, tol: float = 1e-3, max_iter: int = 100
) -> EigenResult:
    """Smallest algebraic eigenvalue by Lanczos.

    At a minimum it is close to zero, so it is searched on H - cI, c a thousandth of the largest.
    """
    shift = -NEAR_ZERO * abs(largest.value)
    return lanczos(op, seed=seed, which="SA", tol=tol, max_iter=max_iter, shift=shift)[0]


@dataclass(frozen=True)
class TraceResult:
    """Hutchinson's estimate of a trace: mean of v^T H v over random sign vectors v.

    Attributes:
        value: mean of `samples`.
        standard_error: sample standard deviation / sqrt(draws), in the units of `value`.
        converged: standard error within the tolerance that was asked for.
    """

    value: float
    standard_error: float
    converged: bool
    draws: int
    hvps: int
    seconds: float
    samples: tuple[float, ...]


def hutchinson_trace(op: LinearOperator, *, seed: int, max_draws: int = 100, tol: float = 1e-2) -> TraceResult:
    """Estimate the trace; stops, from the tenth draw on, once the standard error is at most tol * |mean|.

    A diagonal matrix gives its exact trace with every draw; else the error falls with the root of the draws.

    Raises:
        ValueError: `max_draws` below 2 (one draw has no standard error), or a tolerance that is not positive.
        FloatingPointError: a product is not finite.
    """
    if max_draws < 2:
        raise ValueError(f"max_draws={max_draws}; at least 2 are needed for a standard error")
    _check_budget(max_draws, tol)
    counted = _Counted(aslinearoperator(op), 0.0)
    rng = np.random.default_rng(seed)
    samples: list[float] = []
    converged = False
    while len(samples) < max_draws and not converged:
        signs = rng.integers(0, 2, counted.shape[0]) * 2.0 - 1.0
        samples.append(float(signs @ counted.matvec(signs)))
        mean = float(np.mean(samples))
        error = float(np.std(samples, ddof=1) / math.sqrt(len(samples))) if len(samples) > 1 else math.inf
        converged = len(samples) >= MIN_TRACE_DRAWS and error <= tol * abs(mean)
    return TraceResult(
        value=mean,
        standard_error=error,
        converged=converged,
        draws=len(samples),
        hvps=counted.products,
        seconds=counted.seconds,
        samples=tuple(samples),
    )


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _check_budget(max_iter: int, *tolerances: float) -> None:
    if max_iter < 1:
        raise ValueError(f"the budget is {max_iter} products; at least 1 is needed")
    for tolerance in tolerances:
        if not tolerance > 0:
            raise ValueError(f"tolerance {tolerance} is not a positive number; 1e-3 is usual")
