"""Sharpness of a loss at some weights: the largest eigenvalue of its Hessian by a chosen estimator, and what goes with it.

The caller fixes the objective (loss weights, dropout) and the batches, the same for all models compared, and passes one closure
per batch (see `fixed_objective`). Eigenvalues are those of the mean loss. Single batches overestimate the largest (that of a
mean is at most the mean of theirs), which `per_batch=True` shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from talas_lib.curvature import (
    EigenResult,
    TraceResult,
    hutchinson_trace,
    lanczos,
    power_iteration,
    smallest_eigenvalue,
)
from talas_lib.curvature_estimate import top_eigenvalue
from talas_lib.hessian import HessianOperator, Loss, check_deterministic, hvp_operator
from talas_lib.loss_rise import AsamSharpness, RandomRise

# how the largest eigenvalue is found; `both` is Lanczos for the headline with power iteration beside it
ESTIMATORS = ("both", "lanczos", "quick", "power", "pyhessian")
_ESTIMATOR_OF = {"lanczos_differences": "quick", "power_shifted": "power"}
# residual at which power iteration, ours and PyHessian's, counts as converged
POWER_RESIDUAL = 1e-2


@dataclass(frozen=True)
class SharpnessResult:
    """The largest eigenvalue of the Hessian at one point, and the estimates beside it.

    Attributes:
        subset: which parameters the Hessian is taken of (a label, "encoder").
        parameters: number of weights.
        batch_losses: loss of every batch.
        largest: the largest algebraic eigenvalue: the headline.
        beside: all other estimates on the mean loss: the one of largest magnitude, other estimators, further eigenvalues.
        per_batch: largest eigenvalue of each batch, without vectors (empty unless asked for).
        trace: sum of all eigenvalues by Hutchinson (None unless asked for).
    """

    subset: str
    parameters: int
    batch_losses: tuple[float, ...]
    largest: EigenResult
    beside: tuple[EigenResult, ...] = ()
    per_batch: tuple[EigenResult, ...] = ()
    trace: TraceResult | None = None

    @property
    def loss(self) -> float:
        """Mean of `batch_losses`."""
        return sum(self.batch_losses) / len(self.batch_losses)

    @property
    def lambda_max(self) -> float:
        """Largest algebraic eigenvalue of the mean loss."""
        return self.largest.value

    @property
    def power_trace(self) -> tuple[float, ...]:
        """Rayleigh quotients of power iteration without a shift, empty where it was not asked for."""
        return next((result.trace for result in self.beside if result.quantity == "lambda_abs_max"), ())

    def to_rows(self) -> list[dict[str, Any]]:
        """One plain dict per estimate; `batch` is None for the mean loss, else the index of the batch.

        quantity: `lambda_max`, `lambda_min`, `lambda_abs_max`, `lambda_2` and so on for further eigenvalues, `trace`.
        """
        row = partial(_row, subset=self.subset)
        rows = [_eigen_row(result, row, len(self.batch_losses), None) for result in (self.largest, *self.beside)]
        rows += [_eigen_row(result, row, 1, index) for index, result in enumerate(self.per_batch)]
        if self.trace is not None:
            rows.append(_trace_row(self.trace, row, len(self.batch_losses)))
        return rows


def measure_sharpness(
    batch_losses: Sequence[Loss],
    parameters: Sequence[Tensor],
    *,
    seed: int,
    estimator: str = "both",
    n: int = 1,
    tol: float = 1e-3,
    max_iter: int = 100,
    residual_tol: float = POWER_RESIDUAL,
    smallest: bool = False,
    per_batch: bool = False,
    trace_draws: int = 0,
    cache_graphs: bool = False,
    subset: str = "encoder",
) -> SharpnessResult:
    """Largest eigenvalue of the Hessian of the mean of `batch_losses`.

    Args:
        batch_losses: one closure per fixed batch, as for `hvp_operator`.
        parameters: the weights the Hessian is taken of. For a headline leave projection heads out: the cosine does not
            depend on their scale, so their curvature follows their norm, H(cW) = H(W) / c^2.
        seed: of the starting vectors.
        estimator: `lanczos`; `power` iteration, which finds the largest by a shift where the negative end dominates; `both`;
            `pyhessian`, its power iteration, shifted likewise; `quick`, Lanczos on differences of gradients, where `tol`, raised
            to at least 0.01, is the error aimed at.
        n: so many of the largest eigenvalues, with `lanczos` and `both`.
        tol: relative change of power iteration; residual of Lanczos.
        max_iter: products for each of the estimates (a product runs through all batches).
        residual_tol: residual below which power iteration counts as converged.
        smallest: also the smallest eigenvalue by Lanczos, for as many products again.
        per_batch: also each batch on its own, by the same estimator.
        trace_draws: random vectors at most for the trace, 0 for none.
        cache_graphs: see `hvp_operator`; memory for speed.

    Raises:
        ValueError: an unknown estimator, several eigenvalues from one that gives the largest alone, a loss that changes between
            two calls or is not finite; see also `hvp_operator`.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator {estimator!r} is not one of {', '.join(ESTIMATORS)}")
    if n > 1 and estimator not in ("both", "lanczos"):
        raise ValueError(f"n={n} eigenvalues by {estimator}, which gives the largest alone: use lanczos or both")
    losses = check_deterministic(batch_losses)
    operator = hvp_operator(batch_losses, parameters, cache_graphs=cache_graphs)
    find = partial(_found, estimator=estimator, seed=seed, tol=tol, max_iter=max_iter, residual_tol=residual_tol)
    largest, *beside = find(operator, n=n)
    if smallest:
        beside.append(smallest_eigenvalue(operator, largest, seed=seed, tol=tol, max_iter=max_iter))
    trace = hutchinson_trace(operator, seed=seed, max_draws=max(trace_draws, 2)) if trace_draws else None
    single = []
    alone = "lanczos" if estimator == "both" else estimator
    for loss in batch_losses if per_batch else ():
        own = hvp_operator([loss], parameters, cache_graphs=cache_graphs)
        single.append(replace(find(own, n=1, estimator=alone)[0], vector=None))
    return SharpnessResult(subset, operator.shape[0], losses, largest, tuple(beside), tuple(single), trace)


def _found(
    operator: HessianOperator, *, estimator: str, n: int, seed: int, tol: float, max_iter: int, residual_tol: float
) -> list[EigenResult]:
    """The largest eigenvalue first, then whatever else the estimator gives."""
    if estimator == "quick":
        return [top_eigenvalue(operator.losses, operator.parameters, seed=seed, tol=max(tol, 1e-2), max_iter=max_iter)]
    how: dict[str, Any] = {"seed": seed, "tol": tol, "max_iter": max_iter, "residual_tol": residual_tol}
    if estimator == "pyhessian":
        from talas_lib.pyhessian_adapter import pyhessian_eigenvalue

        return _by_power(partial(pyhessian_eigenvalue, operator.losses, operator.parameters, **how))
    found: list[EigenResult] = []
    if estimator in ("both", "lanczos"):
        found += lanczos(operator, seed=seed, tol=tol, max_iter=max_iter, n=n)
    if estimator in ("both", "power"):
        largest, *rest = _by_power(partial(power_iteration, operator, **how))
        found += [largest, *rest]
    return found


def _by_power(run: Callable[..., EigenResult]) -> list[EigenResult]:
    """The largest eigenvalue, and the one of largest magnitude, which is the same if positive; else the former takes a shift."""
    abs_max = run()
    largest = replace(abs_max, quantity="lambda_max") if abs_max.value >= 0 else run(shift=-abs_max.value)
    return [largest, abs_max]


# ---- plain rows


_COLUMNS = (
    "estimator",
    "subset",
    "value",
    "residual",
    "iterations",
    "converged",
    "hvps",
    "seconds",
    "batches",
    "batch",
)


def _row(quantity: str, value: float, **rest: Any) -> dict[str, Any]:
    return {"quantity": quantity} | {name: (rest | {"value": value})[name] for name in _COLUMNS}


def _eigen_row(
    result: EigenResult, row: Callable[..., dict[str, Any]], batches: int, batch: int | None
) -> dict[str, Any]:
    return row(
        result.quantity if result.rank == 1 else f"lambda_{result.rank}",
        result.value,
        estimator=_ESTIMATOR_OF.get(result.method, result.method),
        residual=result.residual,
        iterations=result.iterations,
        converged=result.converged,
        hvps=result.hvps,
        seconds=result.seconds,
        batches=batches,
        batch=batch,
    )


def _trace_row(trace: TraceResult, row: Callable[..., dict[str, Any]], batches: int) -> dict[str, Any]:
    """The residual is the relative standard error."""
    return row(
        "trace",
        trace.value,
        estimator="hutchinson",
        residual=trace.standard_error / abs(trace.value) if trace.value else math.nan,
        iterations=trace.draws,
        converged=trace.converged,
        hvps=trace.hvps,
        seconds=trace.seconds,
        batches=batches,
        batch=None,
    )


def rise_rows(
    one: AsamSharpness, several: AsamSharpness, random: RandomRise, *, subset: str, batches: int
) -> list[dict[str, Any]]:
    """The loss rises in the columns of `SharpnessResult.to_rows`: `asam_rise` (one step), `asam_rise_steps`, `random_rise`.

    hvps, of which there are none here, counts what takes their place: gradients, and for `random_rise` evaluations of the loss.
    """
    row = partial(_row, subset=subset, batches=batches, batch=None)
    rows = [
        row(
            quantity,
            rise.rise,
            estimator="ascent",
            residual=rise.residual,
            iterations=rise.steps,
            converged=rise.converged,
            hvps=rise.gradients,
            seconds=rise.seconds,
        )
        for quantity, rise in (("asam_rise", one), ("asam_rise_steps", several))
    ]
    drawn = row(
        "random_rise",
        random.value,
        estimator="draws",
        residual=random.residual,
        iterations=len(random.samples),
        converged=random.converged,
        hvps=random.evaluations,
        seconds=random.seconds,
    )
    return [*rows, drawn]
