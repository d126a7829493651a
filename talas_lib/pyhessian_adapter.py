"""PyHessian's power iteration on the losses and weights that `hvp_operator` takes, beside our own estimators.

PyHessian (Yao et al. 2020) wants a model, a criterion and batches of tensors; here the model is asked for the number of a batch
and answers with its loss. The package is imported when it is asked for and only called. It stops by the change of the
Rayleigh quotient alone; the residual of the vector it returns is measured here, with one product of our own.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from talas_lib.curvature import EigenResult
from talas_lib.hessian import Loss, hvp_operator


def pyhessian_eigenvalue(
    losses: Sequence[Loss],
    parameters: Sequence[Tensor],
    *,
    seed: int,
    tol: float = 1e-3,
    max_iter: int = 100,
    residual_tol: float = 1e-2,
    shift: float = 0.0,
) -> EigenResult:
    """The eigenvalue of largest magnitude of the Hessian of the mean of `losses`, by PyHessian.

    Args:
        tol: PyHessian's own, on the relative change of the Rayleigh quotient.
        residual_tol: residual below which the result counts as converged.
        shift: work on H + shift I; the value returned is that of H. See `curvature.power_iteration`.

    Returns:
        quantity `lambda_abs_max`, with a shift `lambda_max` or `lambda_min`; method `pyhessian`. hvps counts PyHessian's products
        and the one of the check.

    Raises:
        ImportError: PyHessian is not installed.
        ValueError: see `hvp_operator`.
    """
    pyhessian = _package()
    began = time.perf_counter()
    operator = hvp_operator(losses, parameters)
    model = _AsModel(losses, operator.parameters, shift)
    numbers = torch.arange(len(losses))
    device = operator.parameters[0].device
    with _only_these_learn(losses, operator.parameters), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it differentiates a backward pass, of which torch warns
        torch.manual_seed(seed)
        theirs = pyhessian.hessian(
            model,
            lambda value, _: value,
            dataloader=[(number, number) for number in numbers.split(1)],
            cuda=device.type == "cuda",
        )
        (shifted,), (pieces,) = theirs.eigenvalues(maxIter=max_iter, tol=tol, top_n=1)
    value = float(shifted) - shift
    vector = np.concatenate([piece.detach().double().cpu().numpy().reshape(-1) for piece in pieces])
    vector /= np.linalg.norm(vector)
    distance = float(np.linalg.norm(operator.matvec(vector) - value * vector))
    residual = distance / abs(value) if value else distance
    end = "lambda_max" if value + shift > 0 else "lambda_min"
    products = model.calls // len(losses)
    return EigenResult(
        quantity=end if shift else "lambda_abs_max",
        method="pyhessian",
        value=value,
        vector=vector,
        residual=residual,
        converged=residual < residual_tol,
        iterations=products,
        hvps=products + 1,
        seconds=time.perf_counter() - began,
    )


def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import pyhessian
        except ImportError as error:
            raise ImportError(
                "estimator pyhessian needs the package pyhessian: pip install pyhessian, or choose lanczos or power"
            ) from error
    return pyhessian


class _AsModel(nn.Module):
    """The number of a loss in, that loss out, plus shift / 2 ||p - w||^2 at p = w.

    The added term has no value and no slope, and shift I as its Hessian. It also makes every loss depend on every
    parameter twice differentiably (if with the factor 0), without which PyHessian stops.
    """

    def __init__(self, losses: Sequence[Loss], parameters: Sequence[Tensor], shift: float) -> None:
        super().__init__()
        self.losses, self.shift, self.calls = tuple(losses), shift, 0
        self._weights = tuple(parameters)  # a tuple: plain tensors will do, and nothing is registered

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        return iter(self._weights)

    def forward(self, number: Tensor) -> Tensor:
        self.calls += 1
        around = sum((p - p.detach()).square().sum() for p in self._weights)
        return self.losses[int(number[0])]() + self.shift / 2 * around


@contextmanager
def _only_these_learn(losses: Sequence[Loss], parameters: Sequence[Tensor]) -> Iterator[None]:
    """While inside, no other leaf that the losses depend on takes part: PyHessian's backward would fill its `.grad` with graphs.

    `.grad` of all of them is afterwards what it was.
    """
    own = {id(parameter) for parameter in parameters}
    leaves = {id(leaf): leaf for loss in losses for leaf in _leaves(loss)}
    others = [leaf for key, leaf in leaves.items() if key not in own]
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    for leaf in others:
        leaf.requires_grad_(False)
    try:
        yield
    finally:
        for leaf in others:
            leaf.requires_grad_(True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def _leaves(loss: Loss) -> Iterator[Tensor]:
    """The tensors at the ends of a loss's graph that collect gradients."""
    with torch.enable_grad():
        value = loss()
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]
