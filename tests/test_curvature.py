"""Curvature: closed forms, then dense autograd, then finite differences, then a transformer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from talas_lib.curvature import (
    check_deterministic,
    fixed_dropout,
    hutchinson_trace,
    hvp_operator,
    lanczos,
    mean_gradient,
    power_iteration,
    spectrum_ends,
)
from talas_lib.curvature_estimate import top_eigenvalue
from talas_lib.hessian import difference_operator
from talas_lib.sharpness.estimators import ESTIMATORS, measure_sharpness

DIAGONAL = np.diag([3.0, 1.0, -5.0])


def quadratic(matrix, weights):
    matrix = torch.as_tensor(matrix, dtype=weights.dtype)
    return lambda: 0.5 * weights @ matrix @ weights


def leaf(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def random_symmetric(size, seed=0):
    matrix = np.random.default_rng(seed).standard_normal((size, size))
    return matrix + matrix.T


@pytest.fixture
def mlp():
    """A float64 MLP and three cross-entropy losses: 31 weights."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    inputs = torch.randn(3, 8, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (3, 8), generator=generator)
    losses = [lambda x=x, y=y: cross_entropy(model(x), y) for x, y in zip(inputs, labels, strict=True)]
    return model, losses


def dense(model, losses):
    """Hessian of the mean loss by torch.func, from the flat weights."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])

    def mean_loss(flat):
        pieces = flat.split([parameter.numel() for parameter in parameters])
        values = {n: v.view_as(p) for n, v, p in zip(names, pieces, parameters, strict=True)}
        total = 0.0
        for loss in losses:
            inputs, labels = loss.__defaults__
            total = total + cross_entropy(torch.func.functional_call(model, values, inputs), labels)
        return total / len(losses)

    return torch.autograd.functional.hessian(mean_loss, flat).numpy()


# ---------------------------------------------------------------------- closed forms


def test_power_iteration_finds_the_largest_magnitude_and_lanczos_the_largest():
    by_power = power_iteration(DIAGONAL, seed=0, residual_tol=1e-6, tol=1e-9, max_iter=200)
    assert by_power.value == pytest.approx(-5)
    assert by_power.quantity == "lambda_abs_max"
    assert by_power.converged
    assert by_power.residual < 1e-6
    assert by_power.hvps == by_power.iterations == len(by_power.trace) == len(by_power.residuals)
    assert by_power.trace[-1] == by_power.value

    (by_lanczos,) = lanczos(DIAGONAL, seed=0)
    assert by_lanczos.value == pytest.approx(3)
    assert by_lanczos.quantity == "lambda_max"
    np.testing.assert_allclose(np.abs(by_lanczos.vector), [1, 0, 0], atol=1e-6)

    (by_magnitude,) = lanczos(DIAGONAL, seed=0, which="LM")
    assert (by_magnitude.value, by_magnitude.quantity) == (pytest.approx(-5), "lambda_abs_max")


@pytest.mark.parametrize(
    ("shift", "value", "quantity"),
    [
        (5.0, 3.0, "lambda_max"),
        (-3.0, -5.0, "lambda_min"),
        (0.5, -5.0, "lambda_min"),  # too small to bring the positive end to the front, and says so
    ],
)
def test_shifted_power_iteration(shift, value, quantity):
    result = power_iteration(DIAGONAL, seed=1, shift=shift, residual_tol=1e-6, max_iter=200)
    assert result.value == pytest.approx(value)
    assert (result.quantity, result.method) == (quantity, "power_shifted")
    assert result.converged


def test_residual_is_that_of_the_definition_and_bounds_the_error():
    matrix = random_symmetric(30)
    spectrum = np.linalg.eigvalsh(matrix)
    result = power_iteration(matrix, seed=3, max_iter=15)
    expected = np.linalg.norm(matrix @ result.vector - result.value * result.vector) / abs(result.value)
    assert result.residual == pytest.approx(expected)
    assert np.abs(spectrum - result.value).min() <= result.residual * abs(result.value)
    assert result.converged == (expected < 1e-2)


def test_small_change_alone_is_not_convergence():
    """Two eigenvalues half a percent apart: the quotient settles long before the vector does."""
    matrix = np.diag([1.0, 0.995, 0.3, 0.1])
    result = power_iteration(matrix, seed=0, residual_tol=1e-4, max_iter=40)
    assert result.relative_change < 1e-3
    assert result.residual > 1e-4
    assert not result.converged


def test_hutchinson_is_exact_on_a_diagonal():
    result = hutchinson_trace(DIAGONAL, seed=0)
    assert set(result.samples) == {-1.0}
    assert (result.value, result.standard_error, result.converged) == (-1.0, 0.0, True)
    assert result.hvps == result.draws == 10


def test_hutchinson_error_covers_the_trace():
    matrix = random_symmetric(20) + 20 * np.eye(20)
    result = hutchinson_trace(matrix, seed=0, max_draws=400, tol=1e-6)
    assert not result.converged
    assert result.draws == 400
    assert abs(result.value - np.trace(matrix)) < 4 * result.standard_error
    assert result.standard_error == pytest.approx(np.std(result.samples, ddof=1) / 20)
    with pytest.raises(ValueError, match="at least 2"):
        hutchinson_trace(matrix, seed=0, max_draws=1)


def test_hutchinson_does_not_stop_on_two_equal_draws():
    swap = np.array([[0.0, 1.0], [1.0, 0.0]])  # every draw is 2 or -2, the trace 0
    for seed in range(20):
        assert not hutchinson_trace(swap, seed=seed, max_draws=30).converged


def test_quadratic_returns_the_matrix_and_its_spectrum():
    matrix = random_symmetric(12)
    weights = leaf(*np.random.default_rng(1).standard_normal(12))
    operator = hvp_operator([quadratic(matrix, weights)], [weights])
    np.testing.assert_allclose(operator @ np.eye(12), matrix, atol=1e-12)
    values = [result.value for result in lanczos(operator, seed=0, n=11, tol=1e-10)]
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[:0:-1], atol=1e-8)
    ends = spectrum_ends(operator, seed=0, tol=1e-8)
    assert ends.largest.value == pytest.approx(np.linalg.eigvalsh(matrix)[-1])
    assert ends.smallest.value == pytest.approx(np.linalg.eigvalsh(matrix)[0])
    assert (ends.largest.quantity, ends.smallest.quantity) == ("lambda_max", "lambda_min")


@pytest.mark.parametrize("smallest", [0.0, -1e-5, -0.002, -0.05, -1.0, 0.0004, 0.3])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_smallest_eigenvalue_converges_wherever_it_lies(smallest, noise):
    """Near zero it is judged on the scale of the operator, also with float32 noise in the products."""
    bulk = np.linspace(smallest + 0.02, 0.5, 200)
    spectrum = np.concatenate([[smallest], bulk, [0.8, 1.0]])
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((203, 203)))[0]
    matrix = (basis * spectrum) @ basis.T + noise * random_symmetric(203)
    ends = spectrum_ends(matrix, seed=0)
    assert [end.converged for end in ends] == [True, True]
    assert ends.largest.value == pytest.approx(1.0, rel=1e-3)
    assert ends.smallest.value == pytest.approx(smallest, rel=1e-3, abs=1e-5)


def test_zero_eigenvalue_has_a_finite_residual():
    matrix = np.diag([2.0, 1.0, 0.0])
    ends = spectrum_ends(matrix, seed=0)
    assert ends.smallest.converged
    assert ends.smallest.value == pytest.approx(0, abs=1e-12)
    rounding = power_iteration(np.diag([1e-30, 0.0]), seed=0)
    assert rounding.converged
    assert rounding.value == pytest.approx(1e-30, rel=1e-6, abs=0)


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_multiples_of_the_identity(factor):
    matrix = factor * np.eye(5)
    assert power_iteration(matrix, seed=0).value == pytest.approx(factor)
    assert power_iteration(matrix, seed=0).residual == pytest.approx(0, abs=1e-12)
    ends = spectrum_ends(matrix, seed=0)
    assert [end.value for end in ends] == pytest.approx([factor, factor])
    assert all(end.converged for end in ends)


def test_top_vectors_are_orthonormal_eigenvectors():
    matrix = random_symmetric(60)
    results = lanczos(matrix, seed=0, n=4, tol=1e-8, max_iter=500)
    vectors = np.stack([result.vector for result in results])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-10)
    np.testing.assert_allclose([r.value for r in results], np.linalg.eigvalsh(matrix)[:-5:-1], rtol=1e-8)
    assert all(result.converged and result.residual < 1e-8 for result in results)


# ---------------------------------------------------------------------- budget


@pytest.mark.parametrize("n", [1, 3])
def test_running_out_of_iterations_is_reported(n):
    matrix = random_symmetric(200)
    by_power = power_iteration(matrix, seed=0, max_iter=1)
    assert not by_power.converged
    assert by_power.hvps == 1
    assert by_power.relative_change == math.inf
    by_lanczos = lanczos(matrix, seed=0, n=n, max_iter=1, tol=1e-6)
    assert len(by_lanczos) == n
    for result in by_lanczos:
        assert not result.converged
        assert math.isfinite(result.value)
        assert result.residual > 1e-6
    values = [result.value for result in by_lanczos]
    assert values == sorted(values, reverse=True)


def test_what_converged_is_kept_when_the_rest_does_not():
    spectrum = np.concatenate([[1.5, 1.4], np.linspace(0.0, 1.0, 400)])
    results = lanczos(np.diag(spectrum), seed=0, n=4, tol=5e-9, max_iter=60)
    assert [result.converged for result in results] == [True, True, False, False]
    assert [result.value for result in results[:2]] == pytest.approx([1.5, 1.4])


@pytest.mark.parametrize("max_iter", [1, 10, 20, 40, 100])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_lanczos_keeps_to_its_budget(n, max_iter):
    """At most max_iter steps, one final estimate from the Lanczos basis, and n checks."""
    matrix = random_symmetric(400)
    results = lanczos(matrix, seed=0, n=n, tol=1e-13, max_iter=max_iter)
    assert results[0].iterations <= max(max_iter, 2 * n + 4) + max(2 * n + 1, 20) + 1
    assert results[0].hvps == results[0].iterations + n


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lanczos(DIAGONAL, seed=0, which="BE"), "LA, SA, LM"),
        (lambda: lanczos(DIAGONAL, seed=0, n=3), r"1\.\.size-1"),
        (lambda: lanczos(DIAGONAL, seed=0, tol=0), "not a positive number"),
        (lambda: power_iteration(DIAGONAL, seed=0, max_iter=0), "at least 1"),
        (lambda: power_iteration(DIAGONAL, seed=0, residual_tol=-1), "not a positive number"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_seed_decides_the_result():
    matrix = random_symmetric(50)
    first, again, other = (power_iteration(matrix, seed=seed, max_iter=5).value for seed in (0, 0, 1))
    assert first == again != other
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    lanczos(matrix, seed=0)
    hutchinson_trace(matrix, seed=0)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


# ---------------------------------------------------------------------- dense autograd, finite differences


@pytest.mark.parametrize("cache_graphs", [False, True])
def test_operator_is_the_dense_hessian_of_the_mean(mlp, cache_graphs):
    model, losses = mlp
    operator = hvp_operator(losses, list(model.parameters()), cache_graphs=cache_graphs)
    matrix = dense(model, losses)
    np.testing.assert_allclose(operator @ np.eye(len(matrix)), matrix, atol=1e-12)
    assert operator.hvps == len(matrix)
    assert operator.seconds > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    top = spectrum_ends(operator, seed=0, tol=1e-8)
    spectrum = np.linalg.eigvalsh(matrix)
    assert (top.smallest.value, top.largest.value) == pytest.approx((spectrum[0], spectrum[-1]), rel=1e-7)


def test_cached_graphs_follow_the_weights(mlp):
    model, losses = mlp
    operator = hvp_operator(losses, list(model.parameters()), cache_graphs=True)
    direction = np.ones(operator.shape[0])
    before = operator @ direction
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    after = operator @ direction
    assert not np.allclose(before, after)
    np.testing.assert_allclose(after, dense(model, losses) @ direction, atol=1e-12)


def test_product_is_a_finite_difference_of_gradients_and_symmetric(mlp):
    model, losses = mlp
    parameters = list(model.parameters())
    operator = hvp_operator(losses, parameters)
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((2, operator.shape[0]))
    assert v @ (operator @ u) == pytest.approx(u @ (operator @ v), rel=1e-12)
    np.testing.assert_array_equal(operator.T @ u, operator @ u)

    def gradient(step):
        pieces = torch.as_tensor(v).split([parameter.numel() for parameter in parameters])
        with torch.no_grad():
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.add_(piece.view_as(parameter), alpha=step)
        flat = torch.cat([part.reshape(-1) for part in mean_gradient(losses, parameters)]).numpy()
        with torch.no_grad():
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.sub_(piece.view_as(parameter), alpha=step)
        return flat

    step = 1e-4
    difference = (gradient(step) - gradient(-step)) / (2 * step)
    np.testing.assert_allclose(operator @ v, difference, rtol=1e-4, atol=1e-6)


def test_constants_and_factors(mlp):
    model, losses = mlp
    parameters = list(model.parameters())
    plain = lanczos(hvp_operator(losses, parameters), seed=0)[0].value
    shifted = [lambda loss=loss: loss() + 7 for loss in losses]
    doubled = [lambda loss=loss: 2 * loss() for loss in losses]
    assert lanczos(hvp_operator(shifted, parameters), seed=0)[0].value == pytest.approx(plain, rel=1e-10)
    assert lanczos(hvp_operator(doubled, parameters), seed=0)[0].value == pytest.approx(2 * plain, rel=1e-10)


def test_curvature_of_a_cosine_falls_with_the_square_of_the_head():
    head = leaf([0.9, -0.4], [0.3, 0.7])
    inputs = torch.tensor([[1.0, 2.0], [-0.5, 1.5], [2.0, 0.3]], dtype=torch.float64)
    targets = torch.tensor([[0.2, 1.0], [1.0, -0.3], [0.5, 0.5]], dtype=torch.float64)

    def spectrum():
        loss = [lambda: 1 - cosine_similarity(inputs @ head.T, targets).mean()]
        return np.linalg.eigvalsh(hvp_operator(loss, [head]) @ np.eye(4))

    at_w = spectrum()
    with torch.no_grad():
        head.mul_(10)
    at_10w = spectrum()
    assert at_w[-1] / at_10w[-1] == pytest.approx(100, rel=1e-9)
    np.testing.assert_allclose(at_w, 100 * at_10w, atol=1e-12)


def test_float32_parameters_take_and_give_float64_vectors():
    weights = leaf(1.0, -2.0, 0.5, dtype=torch.float32)
    operator = hvp_operator([quadratic(DIAGONAL, weights)], [weights])
    product = operator @ np.ones(3)
    assert product.dtype == np.float64
    np.testing.assert_allclose(product, [3, 1, -5])
    assert lanczos(operator, seed=0)[0].value == pytest.approx(3, rel=1e-5)


# ---------------------------------------------------------------------- losses and parameters


def test_unused_parameters_count_as_zero():
    used, unused = leaf(1.0, 2.0), leaf(4.0)
    other = leaf(1.0)
    losses = [lambda: (used**2).sum(), lambda: 3 * (other**2).sum()]
    matrix = hvp_operator(losses, [used, unused, other]) @ np.eye(4)
    np.testing.assert_allclose(matrix, np.diag([1, 1, 0, 3]))
    gradient = mean_gradient(losses, [used, unused, other])
    assert [part.tolist() for part in gradient] == [[1, 2], [0], [3]]
    with pytest.raises(ValueError, match="loss 1 depends on none of the 2 parameters"):
        hvp_operator(losses, [used, unused]) @ np.ones(3)


def test_linear_loss_has_no_curvature():
    weights = leaf(1.0, 2.0)
    operator = hvp_operator([lambda: 3 * weights.sum()], [weights])
    np.testing.assert_array_equal(operator @ np.ones(2), [0, 0])
    assert power_iteration(operator, seed=0).value == 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (lambda w: [], "at least one of each"),
        (lambda w: [w, w], "listed twice"),
        (lambda w: [w.detach()], "does not require gradients"),
        (lambda w: [w.detach().bfloat16().requires_grad_()], "float32 or float64"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    weights = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=message):
        hvp_operator([lambda: weights.sum()], parameters(weights))


def test_bad_losses_are_refused():
    weights = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"loss 0 has shape \(2,\)"):
        hvp_operator([lambda: weights**2], [weights]) @ np.ones(2)
    with pytest.raises(ValueError, match="depends on none"):
        hvp_operator([lambda: torch.tensor(1.0)], [weights]) @ np.ones(2)
    with pytest.raises(ValueError, match="at least one of each"):
        hvp_operator([], [weights])
    with pytest.raises(ValueError, match="loss 0 is nan"):
        check_deterministic([lambda: weights.sum() * math.nan])
    zero = leaf(0.0)
    with pytest.raises(FloatingPointError, match="not finite"):
        power_iteration(hvp_operator([lambda: zero.pow(1.5).sum()], [zero]), seed=0)


def test_dropout_is_refused_and_can_be_fixed():
    weights = leaf(*(2.0**k for k in range(40)))  # every mask has a sum of its own

    def noisy():
        return torch.nn.functional.dropout(weights, 0.5, training=True).sum()

    with pytest.raises(ValueError, match=r"loss 1 changes between two calls .*fixed_dropout"):
        check_deterministic([lambda: weights.sum(), noisy])
    with pytest.raises(ValueError, match="changes between two calls"):
        measure_sharpness([noisy], [weights], seed=0, smallest=True)
    state = torch.get_rng_state()
    fixed = fixed_dropout(noisy, seed=5)
    assert check_deterministic([fixed]) == (fixed().item(),)
    assert torch.equal(state, torch.get_rng_state())
    assert fixed_dropout(noisy, seed=6)().item() != fixed().item()


# ---------------------------------------------------------------------- sharpness


def test_measure_sharpness_reports_both_estimators(mlp):
    model, losses = mlp
    spectrum = np.linalg.eigvalsh(dense(model, losses))
    result = measure_sharpness(
        losses, list(model.parameters()), seed=0, max_iter=300, smallest=True, per_batch=True, trace_draws=50
    )
    by_power, abs_max, smallest = result.beside
    assert result.lambda_max == result.largest.value == pytest.approx(spectrum[-1], rel=1e-5)
    assert by_power.value == pytest.approx(spectrum[-1], rel=1e-3)
    assert smallest.value == pytest.approx(spectrum[0], rel=1e-3)
    assert result.power_trace == abs_max.trace
    assert abs(result.trace.value - spectrum.sum()) < 4 * result.trace.standard_error
    assert result.loss == pytest.approx(sum(loss().item() for loss in losses) / 3)
    assert result.parameters == len(spectrum)
    assert np.mean([single.value for single in result.per_batch]) >= result.lambda_max

    rows = result.to_rows()
    assert [(row["quantity"], row["estimator"], row["batches"], row["batch"]) for row in rows] == [
        ("lambda_max", "lanczos", 3, None),
        ("lambda_max", "power", 3, None),
        ("lambda_abs_max", "power", 3, None),
        ("lambda_min", "lanczos", 3, None),
        ("lambda_max", "lanczos", 1, 0),
        ("lambda_max", "lanczos", 1, 1),
        ("lambda_max", "lanczos", 1, 2),
        ("trace", "hutchinson", 3, None),
    ]
    assert all(row["subset"] == "encoder" and row["hvps"] > 0 for row in rows)
    assert all(row["converged"] for row in rows if row["quantity"] != "trace")
    keys = "quantity estimator subset value residual iterations converged hvps seconds batches batch"
    assert list(rows[0]) == keys.split()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_finds_the_largest_and_states_its_error(mlp, estimator):
    model, losses = mlp
    spectrum = np.linalg.eigvalsh(dense(model, losses))
    result = measure_sharpness(losses, list(model.parameters()), seed=0, estimator=estimator, max_iter=300)
    assert result.lambda_max == pytest.approx(spectrum[-1], rel=1e-2)
    assert result.largest.quantity == "lambda_max"
    assert np.abs(spectrum - result.lambda_max).min() <= result.largest.residual * result.lambda_max
    # PyHessian stops when the quotient changes little, which is too early for our bound on the residual, and that is said
    assert result.largest.converged == (estimator != "pyhessian")
    assert result.largest.hvps > 0
    assert bool(result.power_trace) == (estimator in ("both", "power"))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_sharpness_where_the_negative_end_dominates(estimator):
    weights = leaf(0.1, 0.2, 0.3)
    result = measure_sharpness([quadratic(DIAGONAL, weights)], [weights], seed=0, estimator=estimator)
    assert result.lambda_max == pytest.approx(3, rel=1e-2 if estimator == "pyhessian" else 1e-3)
    rows = {row["quantity"]: row["value"] for row in result.to_rows() if row["estimator"] != "lanczos"}
    if estimator in ("both", "power", "pyhessian"):  # what power iteration finds by itself stands beside it
        assert rows["lambda_abs_max"] == pytest.approx(-5, rel=1e-3)


def test_several_eigenvalues_are_named_by_rank(mlp):
    model, losses = mlp
    parameters = list(model.parameters())
    spectrum = np.linalg.eigvalsh(dense(model, losses))[::-1]
    result = measure_sharpness(losses, parameters, seed=0, estimator="lanczos", n=3, tol=1e-8, max_iter=300)
    rows = result.to_rows()
    assert [row["quantity"] for row in rows] == ["lambda_max", "lambda_2", "lambda_3"]
    np.testing.assert_allclose([row["value"] for row in rows], spectrum[:3], rtol=1e-6)
    vectors = np.stack([result.largest.vector, *(r.vector for r in result.beside)])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-8)
    with pytest.raises(ValueError, match="power, which gives the largest alone"):
        measure_sharpness(losses, parameters, seed=0, estimator="power", n=2)
    with pytest.raises(ValueError, match="'magic' is not one of both, lanczos"):
        measure_sharpness(losses, parameters, seed=0, estimator="magic")


def test_sharpness_does_not_depend_on_cached_graphs(mlp):
    model, losses = mlp
    plain, cached = (
        measure_sharpness(losses, list(model.parameters()), seed=0, smallest=True, cache_graphs=cache)
        for cache in (False, True)
    )
    for first, second in zip((plain.largest, *plain.beside), (cached.largest, *cached.beside), strict=True):
        assert first.value == pytest.approx(second.value, rel=1e-12)
        assert first.iterations == second.iterations


# ---------------------------------------------------------------------- a transformer


def tiny_bert(attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        attn_implementation=attention,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertModel(config, add_pooling_layer=False).eval()
        tokens = torch.randint(0, 50, (2, 4, 7))
        targets = torch.randn(2, 4, 16)

    def loss(batch):
        states = model(input_ids=tokens[batch], attention_mask=torch.ones(4, 7)).last_hidden_state
        return 1 - cosine_similarity(states.mean(1), targets[batch]).mean()

    return model, [lambda: loss(0), lambda: loss(1)]


def test_bert_with_eager_attention():
    model, losses = tiny_bert("eager")
    parameters = list(model.parameters())
    result = measure_sharpness(losses, parameters, seed=0, max_iter=150, cache_graphs=True)
    assert result.largest.converged
    assert result.lambda_max > 0
    assert result.beside[0].value == pytest.approx(result.lambda_max, rel=2e-2)
    # In float64 the loss has the same curvature along the vector found in float32.
    model.double()
    operator = hvp_operator(losses, parameters)
    vector = result.largest.vector
    assert vector @ (operator @ vector) == pytest.approx(result.lambda_max, rel=1e-4)


def test_fused_attention_names_the_remedy():
    model, losses = tiny_bert("sdpa")
    operator = hvp_operator(losses, list(model.parameters()))
    with pytest.raises(RuntimeError, match="attn_implementation='eager'"):
        operator @ np.ones(operator.shape[0])


# ---- products by differences, and the quick estimate


def small_loss():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    x, y = torch.randn(40, 6), torch.randn(40, 3)
    parts = [(x[i::4], y[i::4]) for i in range(4)]
    return [lambda a=a, b=b: (net(a) - b).square().mean() for a, b in parts], list(net.parameters())


def test_differences_of_gradients_give_the_product_and_leave_the_weights_alone():
    losses, parameters = small_loss()
    before = [p.detach().clone() for p in parameters]
    exact, cheap = hvp_operator(losses, parameters), difference_operator(losses, parameters)
    vector = np.random.default_rng(1).standard_normal(exact.shape[0])
    product = exact.matvec(vector)
    assert np.linalg.norm(cheap.matvec(vector) - product) < 0.02 * np.linalg.norm(product)
    assert np.linalg.norm(cheap.matvec(3 * vector) - 3 * product) < 0.02 * 3 * np.linalg.norm(product)
    assert not cheap.matvec(np.zeros_like(vector)).any()
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


def test_differences_follow_the_weights():
    losses, parameters = small_loss()
    cheap = difference_operator(losses, parameters)
    vector = np.random.default_rng(1).standard_normal(cheap.shape[0])
    cheap.matvec(vector)
    with torch.no_grad():
        for p in parameters:
            p.mul_(1.5)
    product = hvp_operator(losses, parameters).matvec(vector)
    assert np.linalg.norm(cheap.matvec(vector) - product) < 0.02 * np.linalg.norm(product)


@pytest.mark.parametrize("seed", range(5))
def test_the_quick_estimate_is_within_a_percent_and_cheaper(seed):
    """A spectrum like a network's: a few eigenvalues stand out of a bulk around zero."""
    spectrum = np.concatenate([[4.0, 2.5, 1.5, -1.0], 0.3 * np.random.default_rng(7).standard_normal(60)])
    basis = np.linalg.qr(np.random.default_rng(8).standard_normal((64, 64)))[0]
    w = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).requires_grad_()
    losses = [quadratic(basis * spectrum @ basis.T, w)]
    found = top_eigenvalue(losses, [w], seed=seed)
    assert found.converged
    assert found.value == pytest.approx(4.0, rel=0.01)
    assert found.hvps < lanczos(hvp_operator(losses, [w]), seed=seed, tol=1e-4)[0].hvps


def test_the_quick_estimate_states_the_exact_residual():
    losses, parameters = small_loss()
    found = top_eigenvalue(losses, parameters, seed=0)
    product = hvp_operator(losses, parameters).matvec(found.vector)
    assert found.value == pytest.approx(found.vector @ product, rel=1e-6)
    assert found.residual == pytest.approx(np.linalg.norm(product - found.value * found.vector) / found.value, rel=1e-6)


def test_the_quick_estimate_says_when_it_ran_out_of_steps():
    losses, parameters = small_loss()
    found = top_eigenvalue(losses, parameters, seed=0, tol=1e-9, max_iter=3)
    assert not found.converged
    assert found.iterations == 3
    with pytest.raises(ValueError, match="max_iter=1"):
        top_eigenvalue(losses, parameters, seed=0, max_iter=1)


def test_the_quick_estimate_finds_the_algebraic_largest():
    """diag(3, 1, -5) as the Hessian of a quadratic: 3, not -5."""
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([3.0, 1.0, -5.0], dtype=torch.float64)
    found = top_eigenvalue([lambda: 0.5 * (scale * w.square()).sum()], [w], seed=0, tol=1e-6, step=1e-3)
    assert found.value == pytest.approx(3.0, rel=1e-6)
