"""Loss landscapes: the loss along a line or over a plane through some weights.

The plane is that of Li et al. (2018): two random directions, each row of a weight matrix scaled to the length of that row of the
weights, so that the picture does not depend on how large the weights happen to be; biases and norms stay where they are. Losses
are closures as for `hessian.hvp_operator`; the weights are put back to the bit, also when one raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from talas_lib.hessian import Loss, mean_value


@dataclass(frozen=True)
class Line:
    """Mean loss over positions along a direction, both `[points]`; position 0 is the weights themselves."""

    positions: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class Plane:
    """Mean loss over positions along two directions: `first` and `second` `[points]`, losses `[second, first]`."""

    first: np.ndarray
    second: np.ndarray
    losses: np.ndarray

    @property
    def centre(self) -> float:
        """The loss at the weights themselves."""
        return float(self.losses[len(self.second) // 2, len(self.first) // 2])


def positions(radius: float, points: int) -> np.ndarray:
    """So many positions from -radius to radius, evenly spaced, with 0 in the middle.

    Raises:
        ValueError: an even number of points, which would leave the middle out, fewer than 3, or a radius that is not positive.
    """
    if points < 3 or points % 2 == 0 or not radius > 0:
        raise ValueError(
            f"{points} points to radius {radius}: an odd number from 3 on and a positive radius are wanted"
        )
    half = points // 2
    return radius * np.arange(-half, half + 1) / half


def random_direction(parameters: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Standard normal numbers in the parameters' shapes: a function of the shapes and the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in parameters]


@torch.no_grad()
def filter_normalized(direction: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """The direction with every row (filter) as long as that row of the weights (Li et al. 2018, section 4).

    Rows are those of the first axis, one for each output of a linear layer or each token of an embedding table. Parameters
    of fewer than two axes, biases and layer norms, get zeros.
    """
    scaled = []
    for d, w in zip(direction, parameters, strict=True):
        if w.ndim < 2:
            scaled.append(torch.zeros_like(w))
            continue
        rows, target = d.flatten(1), w.flatten(1)
        factor = target.norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True).clamp_min(1e-16)
        scaled.append((rows * factor).view_as(w))
    return scaled


def from_vector(vector: np.ndarray, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector, such as an eigenvector, in the parameters' shapes; its sign is set so that its largest number is positive.

    Raises:
        ValueError: another size than that of the parameters.
    """
    sizes = [p.numel() for p in parameters]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"a vector of shape {vector.shape} for {sum(sizes)} weights")
    vector = vector * (-1.0 if vector[np.abs(vector).argmax()] < 0 else 1.0)
    pieces = np.split(vector, np.cumsum(sizes)[:-1])
    return [
        torch.from_numpy(np.ascontiguousarray(piece)).to(p).view_as(p)
        for piece, p in zip(pieces, parameters, strict=True)
    ]


def along(losses: Sequence[Loss], parameters: Sequence[Tensor], direction: Sequence[Tensor], at: np.ndarray) -> Line:
    """Mean loss at w + c d for every position c."""
    found = [_loss_at(losses, parameters, [(float(c), direction)]) for c in at]
    return Line(np.asarray(at, dtype=np.float64), np.array(found))


def over(
    losses: Sequence[Loss],
    parameters: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    at: np.ndarray,
) -> Plane:
    """Mean loss at w + a d_1 + b d_2 for all pairs of positions."""
    found = [[_loss_at(losses, parameters, [(float(a), first), (float(b), second)]) for a in at] for b in at]
    at = np.asarray(at, dtype=np.float64)
    return Plane(at, at, np.array(found))


def between(losses: Sequence[Loss], parameters: Sequence[Tensor], other: Sequence[Tensor], at: np.ndarray) -> Line:
    """Mean loss at (1 - c) w + c w' for every position c: the weights at 0, the other ones at 1, both exactly.

    Raises:
        ValueError: other weights of other shapes.
    """
    shapes = [[tuple(t.shape) for t in side] for side in (parameters, other)]
    if shapes[0] != shapes[1]:
        raise ValueError("the two sets of weights have different shapes: there is no line between them")
    found = []
    for c in at:
        with torch.no_grad():
            there = [torch.lerp(p.detach(), q.detach().to(p), float(c)) for p, q in zip(parameters, other, strict=True)]
        with _standing_at(parameters, there):
            found.append(mean_value(losses))
    return Line(np.asarray(at, dtype=np.float64), np.array(found))


def _loss_at(
    losses: Sequence[Loss], parameters: Sequence[Tensor], moves: Sequence[tuple[float, Sequence[Tensor]]]
) -> float:
    there = [p.detach() for p in parameters]
    for length, direction in moves:
        if length:
            there = list(torch._foreach_add(there, list(direction), alpha=length))
    with _standing_at(parameters, there):
        return mean_value(losses)


@contextmanager
def _standing_at(parameters: Sequence[Tensor], there: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the parameters hold the numbers of `there`; afterwards their own again. Nothing is copied."""
    before = [p.data for p in parameters]
    for p, moved in zip(parameters, there, strict=True):
        p.data = moved
    try:
        yield
    finally:
        for p, own in zip(parameters, before, strict=True):
            p.data = own
