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
    weights: Sequence[Tensor], grads: Sequence[Tensor], how: Perturbation
) -> tuple[list[Tensor], Tensor]:
    """eps for each weight, and ||T g||: eps = rho T^2 g / ||T g|| (SAM: T = 1). One norm over all parameters.

    Where the gradient is zero everywhere, eps is zero.
    """
    weights, grads = list(weights), list(grads)
    if how.kind == "sam":
        norm = global_norm(grads)
        eps = torch._foreach_mul(grads, how.rho / norm.clamp_min(1e-16))
        return list(eps), norm
    scale = list(torch._foreach_abs(weights))
    if how.eta:
        torch._foreach_add_(scale, how.eta)
    if how.bias_mode == "identity":
        scale = [torch.ones_like(t) if t.ndim < 2 and _is_bias(w) else t for t, w in zip(scale, weights, strict=True)]
    scaled = torch._foreach_mul(scale, grads)
    norm = global_norm(scaled)
    torch._foreach_mul_(scaled, scale)
    torch._foreach_mul_(scaled, how.rho / norm.clamp_min(1e-16))
    return list(scaled), norm


def mark_biases(module: torch.nn.Module) -> None:
    """Tell `ascent_direction` which parameters are biases: everything a module calls `bias` (layer norms' included)."""
    for name, parameter in module.named_parameters():
        parameter.is_bias = name.rsplit(".", 1)[-1] == "bias"  # type: ignore[attr-defined]


def _is_bias(weight: Tensor) -> bool:
    return getattr(weight, "is_bias", False)


@contextmanager
def perturbed(parameters: Sequence[Tensor], how: Perturbation, *, measure: bool = True) -> Iterator[Ascent | None]:
    """Inside the block the parameters that have a gradient stand at w + eps; afterwards at w, to the bit.

    Reads `.grad` and leaves it alone. The weights come back also when the block raises. Without `measure` the norms of
    the report, several passes over all weights, are not computed and the block gets None.
    """
    moved = [p for p in parameters if p.grad is not None]
    grads = [p.grad for p in moved if p.grad is not None]
    if not moved:
        raise ValueError("no parameter has a gradient: call backward() before perturbed()")
    saved = [p.detach().clone() for p in moved]
    eps, scaled_norm = ascent_direction(saved, grads, how)
    report = None
    if measure:
        eps_norm = global_norm(eps)
        report = Ascent(
            grad_norm=global_norm(grads),
            scaled_norm=scaled_norm,
            eps_norm=eps_norm,
            relative=eps_norm / global_norm(saved).clamp_min(1e-16),
            predicted_gain=how.rho * scaled_norm,
        )
    with torch.no_grad():
        torch._foreach_add_(moved, eps)
    try:
        yield report
    finally:
        with torch.no_grad():
            torch._foreach_copy_(moved, saved)


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
    dot = torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True)]).sum()
    return dot / (global_norm(first) * global_norm(second)).clamp_min(1e-16)
