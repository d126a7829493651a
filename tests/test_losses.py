"""The losses on numbers worked by hand, and the properties their equations promise."""

from __future__ import annotations

import math

import pytest
import torch

from talas_lib import losses


def rotation(dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]


@pytest.fixture
def random64():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.442058), (0.1, 0.00924267), (0.05, 0.000167760)])
def test_info_nce_by_hand(temperature, expected):
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    other = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    assert losses.info_nce(z, other, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_ignores_row_scale_and_rotation(random64):
    a, b, q = random64(5, 7), random64(5, 7), rotation(7, 1)
    expected = losses.info_nce(a, b, 0.1)
    scaled = losses.info_nce(a * random64(5, 1).abs(), b * 3.0, 0.1)
    torch.testing.assert_close(scaled, expected)
    torch.testing.assert_close(losses.info_nce(a @ q, b @ q, 0.1), expected)


def test_info_nce_limits(random64):
    keys = random64(1, 7).expand(32, 7)
    assert losses.info_nce(random64(32, 7), keys, 0.1).item() == pytest.approx(math.log(32))
    assert losses.info_nce(random64(1, 7), random64(1, 7), 0.1).item() == 0


def test_info_nce_without_its_own_copies(random64):
    a, b = random64(3, 4), random64(3, 4)
    a[2], b[2] = a[0], b[0]
    same = torch.tensor([0, 1, 0])
    scores = losses.unit(a) @ losses.unit(b).T / 0.1
    # rows 0 and 2 see one negative each; row 1 sees both copies
    by_row = [torch.logsumexp(scores[0, :2], 0), torch.logsumexp(scores[1], 0), torch.logsumexp(scores[2, 1:], 0)]
    expected = (torch.stack(by_row) - scores.diagonal()).mean()
    torch.testing.assert_close(losses.info_nce(a, b, 0.1, same), expected)


def test_tamd_by_hand():
    teacher = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    lower = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    upper = torch.tensor([[0.8, 0.6]], dtype=torch.float64)
    assert losses.tamd([lower, upper], teacher).item() == pytest.approx(0.3)
    assert losses.tamd([5 * lower, 2 * upper], 7 * teacher).item() == pytest.approx(0.3)
    assert losses.tamd([teacher], teacher).item() == pytest.approx(0, abs=1e-12)


def relation(off: float) -> torch.Tensor:
    return torch.tensor([[1.0, off], [off, 1.0]], dtype=torch.float64)


def test_lasd_by_hand():
    layers = [relation(0.5), relation(0.9), relation(0.7)]
    assert losses.lasd(layers).item() == pytest.approx(0.05)
    assert losses.lasd([relation(1.0), *layers]).item() == pytest.approx(0.075)


def test_the_total_by_hand():
    total = 0.001 * math.log(2) + 0.75 * 0.3 + 0.05
    assert total == pytest.approx(0.275693, abs=1e-6)


def test_lasd_sees_geometry_only(random64):
    e = random64(6, 5)
    turned = (e @ rotation(5, 2)) * random64(6, 1).abs()
    assert losses.lasd([losses.relation_matrix(e), losses.relation_matrix(turned)]).item() == pytest.approx(
        0, abs=1e-24
    )
    one = losses.relation_matrix(random64(1, 5))
    assert losses.lasd([one, one]).item() == 0


@pytest.mark.parametrize("side", ["upper", "lower"])
def test_lasd_stop_gradient(random64, side):
    lower, upper = random64(4, 3).requires_grad_(), random64(4, 3).requires_grad_()
    losses.lasd([losses.relation_matrix(lower), losses.relation_matrix(upper)], side).backward()
    still, moving = (upper, lower) if side == "upper" else (lower, upper)
    assert still.grad is None
    assert moving.grad.abs().max() > 0


def test_lasd_refuses():
    with pytest.raises(ValueError, match="two relation matrices, got 1"):
        losses.lasd([relation(0.5)])
    with pytest.raises(ValueError, match="'both'"):
        losses.lasd([relation(0.5), relation(0.6)], "both")


@pytest.mark.parametrize("which", ["info_nce", "tamd", "lasd"])
def test_gradients(random64, which):
    a, b = random64(4, 3).requires_grad_(), random64(4, 3).requires_grad_()
    functions = {
        "info_nce": lambda x, y: losses.info_nce(x, y, 0.5),
        "tamd": lambda x, y: losses.tamd([x, y], torch.ones(4, 3, dtype=torch.float64)),
        "lasd": lambda x, y: losses.lasd([losses.relation_matrix(x), losses.relation_matrix(y)]),
    }
    assert torch.autograd.gradcheck(functions[which], (a, b))
    assert torch.autograd.gradgradcheck(functions[which], (a, b))


def test_batch_order_does_not_matter(random64):
    a, b, order = random64(6, 4), random64(6, 4), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(losses.info_nce(a[order], b[order], 0.1), losses.info_nce(a, b, 0.1))
    r, s = losses.relation_matrix(a), losses.relation_matrix(b)
    again = losses.lasd([losses.relation_matrix(a[order]), losses.relation_matrix(b[order])])
    torch.testing.assert_close(again, losses.lasd([r, s]))


def test_geometry_measures():
    assert losses.effective_rank(torch.eye(5)).item() == pytest.approx(5, rel=1e-4)
    collapsed = torch.ones(4, 3)
    assert losses.effective_rank(collapsed).item() == pytest.approx(1, rel=1e-3)
    assert losses.mean_off_diagonal_cosine(collapsed).item() == pytest.approx(1)
    assert losses.mean_off_diagonal_cosine(torch.eye(4)).item() == pytest.approx(0, abs=1e-7)
    assert losses.mean_off_diagonal_cosine(torch.ones(1, 3)).item() == 0
