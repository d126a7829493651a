"""Curvature against other libraries: the same model, loss and batches give the same spectrum."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from talas_lib.curvature import hutchinson_trace, hvp_operator, lanczos, power_iteration

pytestmark = pytest.mark.oracle


@pytest.fixture
def problem():
    """A float32 MLP with 87 weights, cross-entropy, two batches of equal size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).eval()
        data = [(torch.randn(16, 6), torch.randint(0, 3, (16,))) for _ in range(2)]
    criterion = torch.nn.CrossEntropyLoss()
    losses = [lambda x=x, y=y: criterion(model(x), y) for x, y in data]
    return model, criterion, data, losses


def import_quietly(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


@pytest.mark.parametrize("batches", [1, 2])
def test_pyhessian(problem, batches):
    pyhessian = import_quietly("pyhessian")
    model, criterion, data, losses = problem
    given = {"data": data[0]} if batches == 1 else {"dataloader": data}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        theirs = pyhessian.hessian(model, criterion, cuda=False, **given)
        (value,), _ = theirs.eigenvalues(maxIter=500, tol=1e-6)
        trace = np.mean(theirs.trace(maxIter=200, tol=1e-9))
    model.zero_grad()
    operator = hvp_operator(losses[:batches], list(model.parameters()))
    assert power_iteration(operator, seed=0, tol=1e-6, max_iter=500).value == pytest.approx(value, rel=1e-3)
    assert lanczos(operator, seed=0, which="LM")[0].value == pytest.approx(value, rel=1e-3)
    ours = hutchinson_trace(operator, seed=0, max_draws=200)
    assert abs(ours.value - trace) < 6 * ours.standard_error


def test_curvlinops(problem):
    curvlinops = import_quietly("curvlinops")
    model, criterion, data, losses = problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = curvlinops.HessianLinearOperator(model, criterion, list(model.parameters()), data)
        matrix = theirs.to_scipy() @ np.eye(theirs.shape[0], dtype=np.float32)
    ours = hvp_operator(losses, list(model.parameters())) @ np.eye(theirs.shape[0])
    np.testing.assert_allclose(ours, matrix, atol=1e-6)
