"""The Hessian of a loss as an operator: products with a vector by double backward; no matrix is formed.

A loss is a closure without arguments that returns a scalar tensor, usually one per fixed batch. It has to be
differentiable twice: run encoders with eager attention (fused attention kernels have no second derivative),
without autocast, gradient checkpointing or compilation, and on a GPU with TF32 off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

Loss = Callable[[], Tensor]


def check_deterministic(losses: Sequence[Loss]) -> tuple[float, ...]:
    """Evaluate every loss twice, without gradients; return the values, refuse losses that change.

    A Hessian belongs to one function. With dropout on, every product would see another one and no
    iteration settles.

    Raises:
        ValueError: a loss is not finite, or its two values are not equal to the last bit.
    """
    values = []
    for index, loss in enumerate(losses):
        with torch.no_grad():
            first, second = float(loss()), float(loss())
        if not math.isfinite(first):
            raise ValueError(f"loss {index} is {first}; a finite loss is needed: check the batch and the weights")
        if first != second:
            raise ValueError(
                f"loss {index} changes between two calls at the same weights ({first!r}, then {second!r}); a"
                " deterministic loss is needed: switch dropout off with model.eval(), or wrap the loss in"
                " fixed_dropout(loss, seed)"
            )
        values.append(first)
    return tuple(values)


def fixed_dropout(loss: Loss, seed: int) -> Loss:
    """Return `loss` with the random numbers of every call drawn from `seed`: always the same dropout masks.

    The state of torch's generators is put back after each call.
    """

    def seeded() -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return loss()

    return seeded


def mean_gradient(losses: Sequence[Loss], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradient of the mean of the losses: one tensor per parameter, zeros where a parameter takes no part.

    `.grad` is left alone. One loss is in memory at a time.

    Raises:
        ValueError: see `hvp_operator`.
    """
    return value_and_gradient(losses, parameters)[1]


def value_and_gradient(losses: Sequence[Loss], parameters: Sequence[Tensor]) -> tuple[float, tuple[Tensor, ...]]:
    """The mean of the losses with its gradient, as `mean_gradient` gives it."""
    parameters = _checked_parameters(losses, parameters)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    values = []
    for index, loss in enumerate(losses):
        value, gradient = _gradient(loss, index, parameters, create_graph=False)
        values.append(value)
        for accumulated, part in zip(total, gradient, strict=True):
            if part is not None:
                accumulated.add_(part, alpha=1 / len(losses))
    return sum(values) / len(losses), tuple(total)


def mean_value(losses: Sequence[Loss]) -> float:
    """The mean of the losses, without gradients."""
    with torch.no_grad():
        return sum(float(loss()) for loss in losses) / len(losses)


def _checked_parameters(losses: Sequence[Loss], parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    parameters = tuple(parameters)
    if not losses or not parameters:
        raise ValueError(f"got {len(losses)} losses and {len(parameters)} parameters; at least one of each is needed")
    if len({id(parameter) for parameter in parameters}) < len(parameters):
        raise ValueError("a parameter is listed twice; list tied weights once (model.parameters() does)")
    for index, parameter in enumerate(parameters):
        where = f"parameter {index} of shape {tuple(parameter.shape)}"
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{where} is {parameter.dtype}; float32 or float64 is needed: call model.float()")
        if not parameter.requires_grad:
            raise ValueError(f"{where} does not require gradients; leave frozen parameters out or unfreeze them")
    return parameters


def _gradient(
    loss: Loss, index: int, parameters: tuple[Tensor, ...], *, create_graph: bool
) -> tuple[float, tuple[Tensor | None, ...]]:
    """Value and gradient of one loss."""
    with torch.enable_grad():
        value = loss()
        if value.numel() != 1:
            raise ValueError(f"loss {index} has shape {tuple(value.shape)}; a single number is needed: reduce it")
        gradient: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if value.requires_grad:
            # Not loss.backward(create_graph=True): that leaves reference cycles in .grad.
            gradient = torch.autograd.grad(value.reshape(()), parameters, create_graph=create_graph, allow_unused=True)
    if all(part is None for part in gradient):
        raise ValueError(
            f"loss {index} depends on none of the {len(parameters)} parameters; pass the parameters of the"
            " model the loss runs, and compute the loss with gradients enabled"
        )
    return float(value.detach()), gradient


class HessianOperator(LinearOperator):
    """Hessian of the mean of several losses: a symmetric scipy operator `[n, n]`, n the number of weights.

    Vectors are flat float64 arrays in the order of `parameters`; products are computed in the parameters' own
    precision and averaged in float64. See `hvp_operator`.

    Attributes:
        hvps: products with the mean Hessian so far (each runs through all losses).
        seconds: time spent in them.
    """

    def __init__(self, losses: Sequence[Loss], parameters: Sequence[Tensor], *, cache_graphs: bool = False) -> None:
        self.parameters = _checked_parameters(losses, parameters)
        self.losses = tuple(losses)
        self.cache_graphs = cache_graphs
        self.hvps = 0
        self.seconds = 0.0
        self._sizes = [parameter.numel() for parameter in self.parameters]
        self._graphs: dict[int, tuple[list[int], tuple[Tensor | None, ...]]] = {}
        super().__init__(dtype=np.float64, shape=(sum(self._sizes), sum(self._sizes)))

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        pieces = np.split(np.asarray(x, dtype=np.float64).reshape(-1), np.cumsum(self._sizes)[:-1])
        direction = [
            torch.from_numpy(np.ascontiguousarray(piece)).to(parameter).view_as(parameter)
            for piece, parameter in zip(pieces, self.parameters, strict=True)
        ]
        total = np.zeros(self.shape[0])
        for index in range(len(self.losses)):
            total += self._product(index, direction)
        self.hvps += 1
        self.seconds += time.perf_counter() - started
        return total / len(self.losses)

    def _adjoint(self) -> HessianOperator:
        return self

    def _product(self, index: int, direction: list[Tensor]) -> np.ndarray:
        """Hessian of loss `index` times `direction`: the gradient of <gradient, direction>, float64 `[n]`."""
        terms = [
            (part, vector)
            for part, vector in zip(self._gradient_graph(index), direction, strict=True)
            if part is not None and part.requires_grad  # a constant gradient (linear loss) has no curvature
        ]
        if not terms:
            return np.zeros(self.shape[0])
        gradient, vectors = zip(*terms, strict=True)
        try:
            product = torch.autograd.grad(
                gradient, self.parameters, vectors, retain_graph=self.cache_graphs, allow_unused=True
            )
        except RuntimeError as error:
            if "derivative for" not in str(error):
                raise
            raise RuntimeError(
                f"loss {index} uses a kernel without a second derivative; load the encoder with"
                f" attn_implementation='eager' (torch says: {error})"
            ) from error
        return np.concatenate(
            [
                np.zeros(size) if part is None else part.detach().double().cpu().numpy().reshape(-1)
                for part, size in zip(product, self._sizes, strict=True)
            ]
        )

    def _gradient_graph(self, index: int) -> tuple[Tensor | None, ...]:
        versions = [parameter._version for parameter in self.parameters]
        if index in self._graphs and self._graphs[index][0] == versions:
            return self._graphs[index][1]
        _, gradient = _gradient(self.losses[index], index, self.parameters, create_graph=True)
        if self.cache_graphs:
            self._graphs[index] = (versions, gradient)
        return gradient


def hvp_operator(
    losses: Sequence[Loss], parameters: Sequence[Tensor], *, cache_graphs: bool = False
) -> HessianOperator:
    """Make the Hessian of the mean of `losses` with respect to `parameters` (products by double backward).

    Args:
        losses: closures without arguments that return a scalar, one per fixed batch, and the same value each
            time they are called at the same weights (`check_deterministic`).
        parameters: float32 or float64 leaf tensors that require gradients. Parameters a loss does not use
            count as zero.
        cache_graphs: keep the gradient graph of every loss, so that a product costs one backward pass instead
            of a forward and two backward passes. The graphs hold the activations of all batches at once,
            forward and backward: for one or a few batches, or small models. They are rebuilt when an in-place
            operation changes the weights (an optimizer step does), but not after writing through `.data`.

    Raises:
        ValueError: no losses or parameters, a parameter listed twice, frozen or of another precision; on the
            first product, a loss that is not a single number or depends on none of the parameters.
        RuntimeError: on the first product, a loss that has no second derivative.
    """
    return HessianOperator(losses, parameters, cache_graphs=cache_graphs)


class DifferenceOperator(HessianOperator):
    """The same Hessian by differences of gradients, (grad L(w + h v) - grad L(w)) / h: one gradient a product instead of a
    double backward pass, no graph kept, and any kernel will do. See `difference_operator`."""

    def __init__(self, losses: Sequence[Loss], parameters: Sequence[Tensor], *, step: float = 1e-3) -> None:
        super().__init__(losses, parameters)
        if not step > 0:
            raise ValueError(f"step is {step}; a positive distance along a unit vector is needed, such as 1e-3")
        self.step = step
        self._base: tuple[list[int], np.ndarray] | None = None

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        vector = np.asarray(x).reshape(-1)
        length = float(np.linalg.norm(vector))
        if length == 0.0:
            return np.zeros(self.shape[0])
        here = self._gradient_here()
        pieces = np.split(vector, np.cumsum(self._sizes)[:-1])
        saved = [parameter.detach().clone() for parameter in self.parameters]
        try:
            with torch.no_grad():
                for parameter, piece in zip(self.parameters, pieces, strict=True):
                    along = torch.from_numpy(np.ascontiguousarray(piece)).to(parameter).view_as(parameter)
                    parameter.add_(along, alpha=self.step / length)
            there = self._mean_gradient()
        finally:
            with torch.no_grad():
                for parameter, before in zip(self.parameters, saved, strict=True):
                    parameter.copy_(before)
            self._base = ([parameter._version for parameter in self.parameters], here)
        self.hvps += 1
        self.seconds += time.perf_counter() - started
        return (there - here) * (length / self.step)

    def _gradient_here(self) -> np.ndarray:
        versions = [parameter._version for parameter in self.parameters]
        if self._base is None or self._base[0] != versions:
            self._base = (versions, self._mean_gradient())
        return self._base[1]

    def _mean_gradient(self) -> np.ndarray:
        """Flat, in the parameters' own precision."""
        parts = mean_gradient(self.losses, self.parameters)
        return np.concatenate([part.cpu().numpy().reshape(-1) for part in parts])


def difference_operator(
    losses: Sequence[Loss], parameters: Sequence[Tensor], *, step: float = 1e-3
) -> DifferenceOperator:
    """The Hessian of the mean of `losses` by one-sided differences of gradients, for estimates to about a percent.

    Two errors pull at the step h, the distance moved along the unit vector: rounding of the gradients, which grows as 1 / h, and
    the third derivative, which grows as h. Check what comes out with one product of `hvp_operator`, as
    `curvature_estimate.top_eigenvalue` does. The weights are put back to the bit after each product.

    Raises:
        ValueError: see `hvp_operator`; a step that is not positive.
    """
    return DifferenceOperator(losses, parameters, step=step)
