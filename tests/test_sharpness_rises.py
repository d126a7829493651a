"""Loss rises in ASAM's ball and in random directions: worked numbers, closed forms, invariance, and weights put back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from talas_lib.curvature import hvp_operator, lanczos
from talas_lib.loss_rise import asam_sharpness, random_rise


def leaf(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def test_asam_sharpness_worked_numbers():
    """w = (2, -1), g = (0.3, 0.4): eps = (0.083205, 0.027735), g . eps = 0.0360555; linear loss, so exact."""
    weights, slope = leaf(2.0, -1.0), torch.tensor([0.3, 0.4], dtype=torch.float64)
    result = asam_sharpness([lambda: weights @ slope], [weights], rho=0.05)
    assert result.predicted_rise == pytest.approx(0.0360555, abs=1e-7)
    assert result.rise == pytest.approx(0.0360555, abs=1e-7)
    assert result.loss == pytest.approx(0.2)
    assert result.perturbed_loss == pytest.approx(result.loss + result.rise)
    with_eta = asam_sharpness([lambda: weights @ slope], [weights], rho=0.05, eta=0.01)
    assert with_eta.rise == pytest.approx(0.083493 * 0.3 + 0.028109 * 0.4, abs=1e-6)
    assert asam_sharpness([lambda: weights @ slope], [weights], rho=0.0).rise == 0.0


def test_asam_sharpness_does_not_see_a_rescaling():
    a, b = leaf(1.5), leaf(0.7)
    x = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64)

    def loss():  # depends on the product a * b only
        return (a * b * x - x.cos()).square().mean()

    before = asam_sharpness([loss], [a, b], rho=0.1)
    curvature = lanczos(hvp_operator([loss], [a, b]), seed=0)[0].value
    with torch.no_grad():
        a.mul_(8)
        b.div_(8)
    assert asam_sharpness([loss], [a, b], rho=0.1).rise == pytest.approx(before.rise, rel=1e-12)
    assert lanczos(hvp_operator([loss], [a, b]), seed=0)[0].value > 2 * curvature


def loss_that_fails(weights):
    """A loss that gives up at its fourth call, and the weights at each call."""
    calls = []

    def loss():
        calls.append(weights.detach().clone())
        if len(calls) == 4:
            raise RuntimeError("out of memory")
        return weights.exp().sum()

    return loss, calls


def test_asam_sharpness_restores_the_weights():
    weights = leaf(0.1, 0.7, 1e-9, -3.3, dtype=torch.float32)
    original = weights.detach().clone()
    loss, calls = loss_that_fails(weights)
    with pytest.raises(RuntimeError, match="out of memory"):
        asam_sharpness([loss], [weights], rho=0.3)
    assert not torch.equal(calls[-1], original)  # it failed at the perturbed weights
    assert torch.equal(weights, original)
    asam_sharpness([lambda: weights.exp().sum()], [weights], rho=0.3)
    assert torch.equal(weights, original)
    assert weights.grad is None
    with pytest.raises(ValueError, match="negative"):
        asam_sharpness([lambda: weights.exp().sum()], [weights], rho=-1.0)


# ---- several steps


def bowl(weights, curvature):
    """1/2 sum of c w^2, whose worst point on the ball is known."""
    scale = torch.tensor(curvature, dtype=torch.float64)
    return lambda: 0.5 * (scale * weights.square()).sum()


def test_several_steps_find_the_worst_point_of_the_ball():
    """Curvatures 8 and 4 at w = (1, 1): one step leans on the second weight too much; the rise is compared with that of all u."""
    weights = leaf(1.0, 1.0)
    loss = bowl(weights, [8.0, 4.0])
    rho = 0.5
    one, many = (asam_sharpness([loss], [weights], rho, steps=steps, tol=1e-9) for steps in (1, 200))
    # the rise over all directions u of the unit circle, eps = rho |w| u = rho u
    angles = np.linspace(0, 2 * np.pi, 200_001)
    u = np.stack([np.cos(angles), np.sin(angles)])
    rises = (np.array([8.0, 4.0]) @ ((1 + rho * u) ** 2 - 1)) / 2
    assert many.rise == pytest.approx(rises.max(), rel=1e-6)
    assert one.rise < many.rise
    assert many.converged
    assert many.residual < 1e-9 < one.residual
    assert not one.converged
    assert (one.steps, one.gradients) == (1, 2)
    assert many.steps < 200  # it stopped when eps stayed where it was
    assert many.gradients == many.steps + 1


def test_more_steps_never_lower_the_rise():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    parameters = list(net.parameters())
    found = [
        asam_sharpness([lambda: (net(x) - y).square().mean()], parameters, rho=1.0, steps=steps).rise
        for steps in (1, 2, 5, 20)
    ]
    assert found == sorted(found)
    assert found[-1] > found[0]


def test_one_step_is_the_step_of_training():
    from talas_lib.sharpness_aware import Perturbation, perturbed

    torch.manual_seed(1)
    net = torch.nn.Linear(4, 2).double()
    x = torch.randn(10, 4, dtype=torch.float64)
    parameters = list(net.parameters())

    def loss():
        return net(x).square().mean()

    found = asam_sharpness([loss], parameters, rho=0.3)
    loss().backward()
    with perturbed(parameters, Perturbation("asam", 0.3)) as ascent:
        assert found.perturbed_loss == pytest.approx(loss().item(), rel=1e-12)
    assert found.relative == pytest.approx(ascent.relative.item(), rel=1e-12)
    assert found.predicted_rise == pytest.approx(ascent.predicted_gain.item(), rel=1e-12)


def test_a_weight_at_zero_stays_where_it_is():
    weights = leaf(2.0, 0.0)
    result = asam_sharpness([bowl(weights, [1.0, 100.0])], [weights], rho=0.1, steps=3)
    assert result.rise == pytest.approx((2.2**2 - 2.0**2) / 2)
    assert math.isfinite(result.residual)
    with pytest.raises(ValueError, match="at least one step"):
        asam_sharpness([bowl(weights, [1.0, 1.0])], [weights], rho=0.1, steps=0)


# ---- random directions


def test_random_rise_of_a_bowl_is_half_its_mean_curvature():
    """For H = c I every direction of length l rises by c l^2 / 2, and both ends together leave the slope out."""
    weights = leaf(3.0, -4.0)  # of length 5
    result = random_rise([bowl(weights, [2.0, 2.0])], [weights], 0.1, seed=0, draws=4)
    assert result.samples == pytest.approx([0.25] * 4)
    assert result.value == pytest.approx(2.0 * 0.5**2 / 2)
    assert result.standard_error == pytest.approx(0, abs=1e-12)
    assert result.converged
    assert result.evaluations == 8


def test_random_directions_are_fixed_by_the_seed_and_seldom_the_worst():
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(400, dtype=torch.float64, generator=generator).requires_grad_()
    curvature = [100.0] + [0.01] * 399
    first, again, other = (random_rise([bowl(weights, curvature)], [weights], 0.05, seed=s).value for s in (0, 0, 1))
    assert first == again != other
    worst = asam_sharpness([bowl(weights, curvature)], [weights], rho=0.05)
    matched = random_rise([bowl(weights, curvature)], [weights], worst.relative, seed=0)
    assert 0 < matched.value < 0.2 * worst.rise
    assert matched.residual == pytest.approx(matched.standard_error / matched.value)


def test_random_rise_restores_the_weights_and_refuses_nonsense():
    weights = leaf(0.1, 0.7, -3.3, dtype=torch.float32)
    original = weights.detach().clone()
    loss, calls = loss_that_fails(weights)
    with pytest.raises(RuntimeError, match="out of memory"):
        random_rise([loss], [weights], 0.5, seed=0)
    assert not torch.equal(calls[-1], original)
    assert torch.equal(weights, original)
    assert random_rise([lambda: weights.exp().sum()], [weights], 0.0, seed=0).value == 0
    for relative, draws in ((-0.1, 5), (0.1, 1)):
        with pytest.raises(ValueError, match="at least 2 draws"):
            random_rise([lambda: weights.exp().sum()], [weights], relative, seed=0, draws=draws)
