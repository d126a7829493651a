"""SAM and ASAM: worked numbers, exact restoring, limits, and agreement with an independent implementation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from talas_lib.sharpness_aware import (
    Perturbation,
    ascent_direction,
    cosine_between,
    mark_biases,
    perturbed,
    variance_between_sources,
)

W, G = torch.tensor([2.0, -1.0], dtype=torch.float64), torch.tensor([0.3, 0.4], dtype=torch.float64)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Perturbation("sam", 0.05), (0.03, 0.04)),
        (Perturbation("asam", 0.05), (0.083205, 0.027735)),
        (Perturbation("asam", 0.05, eta=0.01), (0.083493, 0.028109)),
        (Perturbation("asam", 0.0), (0.0, 0.0)),
    ],
)
def test_epsilon_by_hand(how, expected):
    (eps,), _ = ascent_direction([W], [G], how)
    assert eps.tolist() == pytest.approx(expected, abs=1e-6)


def test_asam_scales_with_the_weights_and_sam_does_not():
    scale = torch.tensor([10.0, 0.1], dtype=torch.float64)
    (eps,), _ = ascent_direction([W * scale], [G / scale], Perturbation("asam", 0.05))
    assert eps.tolist() == pytest.approx((0.832050, 0.0027735), abs=1e-6)
    (plain,), _ = ascent_direction([W], [G], Perturbation("sam", 0.05))
    (other,), _ = ascent_direction([W * scale], [G / scale], Perturbation("sam", 0.05))
    assert not torch.allclose(other, plain * scale)


def test_first_order_gain():
    (eps,), norm = ascent_direction([W], [G], Perturbation("asam", 0.05))
    assert (eps @ G).item() == pytest.approx(0.0360555, abs=1e-6)
    assert 0.05 * norm.item() == pytest.approx(0.0360555, abs=1e-6)
    assert torch.linalg.norm(eps / W.abs()).item() == pytest.approx(0.05)


def test_bias_mode_identity_leaves_biases_unscaled():
    layer = nn.Linear(2, 2)
    mark_biases(layer)
    before = layer.bias.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.ones(2, 2), torch.ones(2)
    how = Perturbation("asam", 0.5, eta=0.01, bias_mode="identity")
    _, norm = ascent_direction([layer.weight, layer.bias], [layer.weight.grad, layer.bias.grad], how, [False, True])
    with perturbed(list(layer.parameters()), how):
        torch.testing.assert_close(layer.bias.detach() - before, torch.full((2,), 0.5) / norm)


@pytest.mark.parametrize(
    "how", [Perturbation("sam", 0.5), Perturbation("asam", 2.0), Perturbation("asam", 0.5, 0.01, "identity")]
)
def test_a_sparse_gradient_perturbs_as_the_dense_one(how):
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table, head = nn.Embedding(9, 4, sparse=sparse), nn.Linear(4, 1)
        mark_biases(head)
        parameters = [*table.parameters(), *head.parameters()]
        before = [p.detach().clone() for p in parameters]
        head(table(torch.tensor([1, 5, 5, 7]))).square().sum().backward()
        with perturbed(parameters, how) as report:
            inside = [p.detach().clone() for p in parameters]
        assert all(torch.equal(p.detach(), b) for p, b in zip(parameters, before, strict=True))
        found.append([*inside, *vars(report).values()])
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(dense, sparse)


def test_variance_between_sources_by_hand():
    rows, sources = torch.tensor([0.5, 1.5, 2.0, 3.0]), torch.tensor([0, 0, 4, 2])  # means 1, 2, 3
    assert variance_between_sources(rows, sources).item() == pytest.approx(2 / 3)
    assert variance_between_sources(rows, torch.zeros(4, dtype=torch.int64)).item() == 0


def test_disam_damps_the_sources_above_the_mean():
    """The worked coefficients: L = (1, 2, 3), lambda = 0.1, equal shares: 0.4, 1/3, 0.266667, which sum to 1."""
    losses = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (losses.mean() - 0.1 * variance_between_sources(losses, torch.arange(3))).backward()
    torch.testing.assert_close(losses.grad, torch.tensor([0.4, 1 / 3, 0.8 / 3]))


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    "how", [Perturbation("sam", 0.5), Perturbation("asam", 2.0), Perturbation("asam", 0.5, 0.01, "identity")]
)
def test_weights_come_back_to_the_bit(how):
    model, x = small_model(), torch.randn(5, 4)
    before = [p.detach().clone() for p in model.parameters()]
    model(x).square().sum().backward()
    with perturbed(list(model.parameters()), how) as ascent:
        moved = [p.detach().clone() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, moved, strict=True))
    assert ascent.eps_norm > 0


def test_without_measuring_the_step_is_the_same():
    model, x = small_model(), torch.randn(5, 4)
    model(x).square().sum().backward()
    moved = []
    for measure in (True, False):
        with perturbed(list(model.parameters()), Perturbation("asam", 1.0), measure=measure) as ascent:
            moved.append([p.detach().clone() for p in model.parameters()])
        assert (ascent is not None) == measure
    assert all(torch.equal(a, b) for a, b in zip(*moved, strict=True))


def test_weights_come_back_when_the_block_raises():
    model, x = small_model(), torch.randn(5, 4)
    before = [p.detach().clone() for p in model.parameters()]
    model(x).square().sum().backward()
    with pytest.raises(ZeroDivisionError), perturbed(list(model.parameters()), Perturbation("sam", 1.0)):
        raise ZeroDivisionError
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_parameters_without_gradient_are_left_alone():
    model, unused = small_model(), nn.Parameter(torch.ones(3))
    model(torch.randn(5, 4)).square().sum().backward()
    with perturbed([*model.parameters(), unused], Perturbation("sam", 1.0)):
        assert torch.equal(unused, torch.ones(3))
    with pytest.raises(ValueError, match="backward"), perturbed([unused], Perturbation()):
        pass


def test_quadratic_sam_gradient():
    h = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    (0.5 * w @ h @ w).backward()
    g = h @ w.detach()
    with perturbed([w], Perturbation("sam", 0.3)):
        w.grad = None
        (0.5 * w @ h @ w).backward()
    torch.testing.assert_close(w.grad, h @ (w.detach() + 0.3 * g / g.norm()))


def test_a_linear_loss_gives_the_plain_gradient():
    w, slope = nn.Parameter(torch.randn(3)), torch.tensor([1.0, -2.0, 0.5])
    (w @ slope).backward()
    with perturbed([w], Perturbation("asam", 0.5)):
        w.grad = None
        (w @ slope).backward()
    torch.testing.assert_close(w.grad, slope)


@pytest.mark.parametrize("bad", [{"kind": "SAM"}, {"rho": -1.0}, {"eta": -0.1}, {"bias_mode": "none"}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=r"not one of|negative"):
        Perturbation(**bad)


def test_cosine_between():
    a = [torch.tensor([1.0, 0.0]), torch.tensor([[2.0]])]
    assert cosine_between(a, [3 * t for t in a]).item() == pytest.approx(1)
    assert cosine_between(a, [-t for t in a]).item() == pytest.approx(-1)


@pytest.mark.oracle
@pytest.mark.parametrize("adaptive", [False, True])
def test_agrees_with_pytorch_optimizer(adaptive):
    """Ten whole steps against pytorch_optimizer's SAM, which the released TALAS code uses."""
    oracle = pytest.importorskip("pytorch_optimizer")
    x, y = torch.randn(16, 4), torch.randn(16, 2)
    theirs, ours = small_model(), small_model()
    sam = oracle.SAM(theirs.parameters(), torch.optim.AdamW, rho=0.5, adaptive=adaptive, lr=1e-2, weight_decay=0.01)
    base = torch.optim.AdamW(ours.parameters(), lr=1e-2, weight_decay=0.01)
    how = Perturbation("asam" if adaptive else "sam", 0.5)
    for _ in range(10):
        (theirs(x) - y).square().mean().backward()
        sam.first_step(zero_grad=True)
        (theirs(x) - y).square().mean().backward()
        sam.second_step(zero_grad=True)
        (ours(x) - y).square().mean().backward()
        with perturbed(list(ours.parameters()), how):
            base.zero_grad()
            (ours(x) - y).square().mean().backward()
        base.step()
        base.zero_grad()
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
