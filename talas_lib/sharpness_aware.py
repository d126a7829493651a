"""Sharpness-aware optimisation: SAM (Foret et al. 2021), ASAM (Kwon et al. 2021) and DISAM (Zhang et al. 2024) around any
torch optimizer.

One step: gradients g at w; move to w + eps, the worst point of a small ball as far as g can tell; gradients g' there;
return to w exactly; let the base optimizer step with g'. The first and last lines are the caller's; `perturbed` is
the middle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Perturbation:
    """Which ball. kind "sam": ||eps|| <= rho; "asam": ||T^-1 eps|| <= rho with T = |w| + eta, elementwise.

    bias_mode "abs" treats biases like every other parameter (the released TALAS code, with eta 0); "identity" sets
    T = 1 for them (Kwon et al., with eta 0.01). rho = 0 keeps both passes and moves nothing: the control.
    variance_weight is DISAM's lambda: the ascent climbs the loss less lambda times the variance of the sources' losses.
    """

    kind: str = "asam"
    rho: float = 0.05
    eta: float = 0.0
    bias_mode: str = "abs"
    variance_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("sam", "asam"):
            raise ValueError(f"kind {self.kind!r} is not one of 'sam', 'asam'")
        if self.bias_mode not in ("abs", "identity"):
            raise ValueError(f"bias_mode {self.bias_mode!r} is not one of 'abs', 'identity'")
        for name in ("rho", "eta", "variance_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class Approximation:
    """A cheaper ascent direction; the defaults are the exact one.

    stride: from every stride-th sentence of the batch; one_view: from a single dropout view; every: a new direction only every
    so many steps, used again in between (without the embedding table, whose rows belong to the sentences of a batch).
    """

    stride: int = 1
    one_view: bool = False
    every: int = 1

    def __post_init__(self) -> None:
        if self.stride < 1 or self.every < 1:
            raise ValueError(f"stride and every must be at least 1, got stride={self.stride}, every={self.every}")

    @property
    def exact(self) -> bool:
        return self == Approximation()


@dataclass(frozen=True)
class Ascent:
    """What the perturbation was: scalars as tensors, so that reading them is the only synchronisation.

    grad_norm ||g||; scaled_norm ||T g|| (= ||g|| for SAM); eps_norm ||eps||; relative ||eps|| / ||w||;
    predicted_gain g . eps = rho ||T g||, the loss rise to first order.
    """

    grad_norm: Tensor
    scaled_norm: Tensor
    eps_norm: Tensor
    relative: Tensor
    predicted_gain: Tensor


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm over all tensors together, a scalar tensor."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


@torch.no_grad()
def ascent_direction(
    weights: Sequence[Tensor], grads: Sequence[Tensor], how: Perturbation, biases: Sequence[bool] = ()
) -> tuple[list[Tensor], Tensor]:
    """eps for each weight, and ||T g||: eps = rho T^2 g / ||T g|| (SAM: T = 1). One norm over all parameters.

    biases: which of the weights are biases, for bias_mode "identity". Where the gradient is zero everywhere, eps is zero.
    """
    weights, grads = list(weights), list(grads)
    if how.kind == "sam":
        norm = global_norm(grads)
        return list(torch._foreach_mul(grads, how.rho / norm.clamp_min(1e-16))), norm
    scale = _scale(weights, how, biases)
    scaled = torch._foreach_mul(scale, grads)
    norm = global_norm(scaled)
    torch._foreach_mul_(scaled, scale)
    torch._foreach_mul_(scaled, how.rho / norm.clamp_min(1e-16))
    return list(scaled), norm


def _scale(weights: list[Tensor], how: Perturbation, biases: Sequence[bool]) -> list[Tensor]:
    """T, up to signs where these do not matter: T = |w| enters as T^2 and through a norm, so w does as well."""
    if how.eta == 0 and how.bias_mode == "abs":
        return weights
    scale = list(torch._foreach_abs(weights))
    torch._foreach_add_(scale, how.eta)
    if how.bias_mode == "identity":
        scale = [torch.ones_like(t) if bias else t for t, bias in zip(scale, biases, strict=True)]
    return scale


def mark_biases(module: torch.nn.Module) -> None:
    """Tell `perturbed` which parameters are biases: everything a module calls `bias` (layer norms' included)."""
    for name, parameter in module.named_parameters():
        parameter.is_bias = name.rsplit(".", 1)[-1] == "bias"  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Direction:
    """Where to move: eps for each of the parameters, of a table with a sparse gradient only for `rows` of it (else None)."""

    parameters: list[Tensor]
    rows: list[Tensor | None]
    eps: list[Tensor]
    report: Ascent | None = None

    def without_tables(self) -> Direction:
        """The part that means something for another batch: rows of a table belong to the sentences of this one."""
        kept = [i for i, rows in enumerate(self.rows) if rows is None]
        return Direction([self.parameters[i] for i in kept], [None] * len(kept), [self.eps[i] for i in kept])


def find_direction(parameters: Sequence[Tensor], how: Perturbation, *, measure: bool = True) -> Direction:
    """The perturbation of the parameters that have a gradient. Reads `.grad` and leaves it alone.

    Without `measure` the norms of the report, several passes over all weights, are not computed.
    """
    moved = [p for p in parameters if p.grad is not None]
    if not moved:
        raise ValueError("no parameter has a gradient: call backward() first")
    found = [g.coalesce() if g.is_sparse else g for g in (p.grad for p in moved) if g is not None]
    grads = [g.values() if g.is_sparse else g for g in found]
    rows = [g.indices()[0] if g.is_sparse else None for g in found]
    weights = [p.detach() if r is None else p.detach()[r] for p, r in zip(moved, rows, strict=True)]
    eps, scaled_norm = ascent_direction(weights, grads, how, [getattr(p, "is_bias", False) for p in moved])
    report = None
    if measure:
        eps_norm = global_norm(eps)
        report = Ascent(
            grad_norm=global_norm(grads),
            scaled_norm=scaled_norm,
            eps_norm=eps_norm,
            relative=eps_norm / global_norm([p.detach() for p in moved]).clamp_min(1e-16),
            predicted_gain=how.rho * scaled_norm,
        )
    return Direction(moved, rows, eps, report)


@contextmanager
def displaced(direction: Direction) -> Iterator[Ascent | None]:
    """Inside the block the parameters stand at w + eps; afterwards at w, to the bit, also when the block raises.

    Whole parameters are swapped for w + eps and back, one pass over the weights instead of saving, adding and copying back.
    """
    each = list(zip(direction.parameters, direction.rows, direction.eps, strict=True))
    whole = [(p, e) for p, rows, e in each if rows is None]
    tables = [(p, rows, e) for p, rows, e in each if rows is not None]
    with torch.no_grad():
        at_w = [p.data for p, _ in whole]
        rows_at_w = [p.detach()[rows] for p, rows, _ in tables]
        moved = torch._foreach_add(at_w, [e for _, e in whole]) if whole else []
        for (p, _), there in zip(whole, moved, strict=True):
            p.data = there
        for p, rows, e in tables:
            p.index_add_(0, rows, e)
    try:
        yield direction.report
    finally:
        with torch.no_grad():
            for (p, _), back in zip(whole, at_w, strict=True):
                p.data = back
            for (p, rows, _), back in zip(tables, rows_at_w, strict=True):
                p.index_copy_(0, rows, back)


@contextmanager
def perturbed(parameters: Sequence[Tensor], how: Perturbation, *, measure: bool = True) -> Iterator[Ascent | None]:
    """`find_direction` and `displaced` in one: the parameters that have a gradient stand at w + eps inside the block."""
    with displaced(find_direction(parameters, how, measure=measure)) as report:
        yield report


def gradient_values(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of those parameters that have one; of a sparse gradient its coalesced values, `[rows, dim]`."""
    grads = [p.grad for p in parameters if p.grad is not None]
    return [g.coalesce().values() if g.is_sparse else g for g in grads]


def variance_between_sources(row_losses: Tensor, sources: Tensor) -> Tensor:
    """Population variance of the sources' mean losses in a batch (DISAM, Zhang et al. 2024): `[N]` and int64 `[N]` to a scalar.

    Sources that the batch lacks do not count; 0 for one source.
    """
    present, number = torch.unique(sources, return_inverse=True)
    total = row_losses.new_zeros(len(present)).index_add(0, number, row_losses)
    count = row_losses.new_zeros(len(present)).index_add(0, number, torch.ones_like(row_losses))
    return (total / count).var(unbiased=False)


def cosine_between(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """cos of two lists of tensors seen as single long vectors, a scalar tensor in [-1, 1]."""
    first, second = ([g.coalesce().values() if g.is_sparse else g for g in grads] for grads in (first, second))
    dot = torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()
    return dot / (global_norm(first) * global_norm(second)).clamp_min(1e-16)
