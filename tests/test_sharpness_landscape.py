"""Landscapes: directions and their normalisation, closed forms along them, and a middle that is the loss itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from talas_lib import landscape


def leaf(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


@pytest.fixture
def net():
    """A float32 network and a loss that cosines make scale-free in its last layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6), torch.nn.Linear(6, 3))
        x, y = torch.randn(12, 4), torch.randn(12, 3)
    return model, [lambda: 1 - torch.cosine_similarity(model(x), y).mean()]


def test_positions_hold_the_middle():
    np.testing.assert_array_equal(landscape.positions(0.5, 5), [-0.5, -0.25, 0, 0.25, 0.5])
    assert landscape.positions(0.3, 21)[10] == 0
    for radius, points in ((1.0, 4), (1.0, 1), (0.0, 5)):
        with pytest.raises(ValueError, match="odd number"):
            landscape.positions(radius, points)


def test_rows_of_a_direction_get_the_lengths_of_the_weights(net):
    model, _ = net
    parameters = list(model.parameters())
    direction = landscape.filter_normalized(landscape.random_direction(parameters, 0), parameters)
    for d, w in zip(direction, parameters, strict=True):
        if w.ndim < 2:  # biases and the norm
            assert not d.any()
        else:
            torch.testing.assert_close(d.norm(dim=1), w.norm(dim=1))


def test_worked_row():
    weights, direction = [leaf([3.0, 4.0], [0.0, 0.0])], [torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)]
    torch.testing.assert_close(
        landscape.filter_normalized(direction, weights)[0], torch.tensor([[5.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    )


def test_directions_depend_on_shapes_and_seed_alone(net):
    model, _ = net
    parameters = list(model.parameters())
    first = landscape.random_direction(parameters, 5)
    with torch.no_grad():
        model[0].weight.mul_(3)
    again, other = landscape.random_direction(parameters, 5), landscape.random_direction(parameters, 6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_scaling_a_layer_that_a_norm_follows_leaves_the_plane_alone(net):
    """What filter normalisation is for: the same function with other weights has the same picture."""
    model, losses = net

    def plane():
        parameters = list(model.parameters())
        axes = [landscape.filter_normalized(landscape.random_direction(parameters, s), parameters) for s in (1, 2)]
        return landscape.over(losses, parameters, *axes, landscape.positions(0.5, 5))

    before = plane()
    with torch.no_grad():
        model[2].weight.mul_(10)
        model[2].bias.mul_(10)
    after = plane()
    np.testing.assert_allclose(after.losses, before.losses, atol=1e-5)
    assert np.ptp(before.losses) > 0.05


def test_the_middle_is_the_loss_to_the_bit(net):
    model, losses = net
    parameters = list(model.parameters())
    with torch.no_grad():
        here = losses[0]().item()
    axes = [landscape.random_direction(parameters, s) for s in (1, 2)]
    plane = landscape.over(losses, parameters, *axes, landscape.positions(0.2, 3))
    line = landscape.along(losses, parameters, axes[0], landscape.positions(0.2, 3))
    assert plane.centre == line.losses[1] == here
    np.testing.assert_array_equal(plane.losses[1], line.losses)  # the middle row is the line along the first direction
    other = landscape.along(losses, parameters, axes[1], landscape.positions(0.2, 3))
    np.testing.assert_array_equal(plane.losses[:, 1], other.losses)


def test_along_an_eigenvector_a_quadratic_is_its_parabola():
    matrix = torch.diag(torch.tensor([3.0, 1.0, -5.0], dtype=torch.float64))
    weights = leaf(0.0, 0.0, 0.0)
    at = landscape.positions(0.5, 7)
    direction = landscape.from_vector(np.array([-1.0, 0.0, 0.0]), [weights])
    assert direction[0].tolist() == [1, 0, 0]  # its sign is fixed
    line = landscape.along([lambda: 0.5 * weights @ matrix @ weights], [weights], direction, at)
    np.testing.assert_allclose(line.losses, 1.5 * at**2, atol=1e-15)
    with pytest.raises(ValueError, match=r"shape \(2,\) for 3 weights"):
        landscape.from_vector(np.ones(2), [weights])


def test_between_begins_and_ends_exactly():
    w, other = leaf(0.1, 0.2, 0.3, dtype=torch.float32), torch.tensor([0.7, -0.3, 1e-9])

    def loss():
        return (w.exp().sum()).sqrt()

    at = np.arange(-2, 7) / 4
    line = landscape.between([loss], [w], [other], at)
    with torch.no_grad():
        start = loss().item()
        w_before = w.detach().clone()
        w.copy_(other)
        end = loss().item()
        w.copy_(w_before)
    assert line.losses[at == 0] == start
    assert line.losses[at == 1] == end
    with pytest.raises(ValueError, match="different shapes"):
        landscape.between([loss], [w], [torch.zeros(4)], at)


def test_weights_are_put_back_also_when_a_loss_raises(net):
    model, _ = net
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    pointers = [p.data_ptr() for p in parameters]

    def broken():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        landscape.along([broken], parameters, landscape.random_direction(parameters, 0), np.array([0.5]))
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    assert [p.data_ptr() for p in parameters] == pointers
