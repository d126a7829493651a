"""Methods that need cached sentence vectors only: Jasper and Stella, DistillCSE, the majority vote of several teachers.

First the losses on numbers worked by hand, then each method's own promises, then what every method must do.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from talas_lib import checkpoints, losses, params, relation_losses
from talas_lib.encoders import Encoder
from talas_lib.methods import distillcse, jasper_stella, majority_vote
from talas_lib.methods.base import Batch, Needs, Objective, Preparation, Stage, StudentStates
from talas_lib.methods.heads import linear
from talas_lib.packed import Layout
from talas_lib.schedule import Settings
from talas_lib.sharpness_aware import Perturbation
from talas_lib.train import train
from talas_lib.training_data import TrainingData


@pytest.fixture
def random64():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def double(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def rotation(dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]


def batch_of(*teachers: torch.Tensor) -> Batch:
    """A batch that knows its teacher vectors and nothing of tokens."""
    numbers = torch.arange(len(teachers[0]))
    lengths = torch.ones(len(numbers), dtype=torch.int64)
    return Batch(numbers, numbers, Layout.of(lengths), teachers, numbers, 0 * numbers)


def pooled(first: torch.Tensor, second: torch.Tensor | None = None) -> StudentStates:
    return StudentStates((first,), second)


def build(module, student_dim: int, teacher_dims: tuple[int, ...], **config):
    """A method in float64, its heads in training mode."""
    method = module.METHOD(
        module.Config(**config),
        student_dim=student_dim,
        teacher_dims=teacher_dims,
        num_layers=2,
        generator=torch.Generator().manual_seed(1),
    )
    method.heads.double()
    return method


def total(method, states: StudentStates, batch: Batch) -> torch.Tensor:
    return Objective(None, method).total(states, batch)[0]


# ---- losses


def test_off_diagonal_and_upper_triangle():
    matrix = torch.arange(9.0).view(3, 3)
    assert relation_losses.off_diagonal(matrix).tolist() == [[1, 2], [3, 5], [6, 7]]
    assert relation_losses.upper_triangle(matrix).tolist() == [1, 2, 5]
    assert relation_losses.off_diagonal(torch.ones(1, 1)).shape == (1, 0)
    assert relation_losses.upper_triangle(torch.ones(1, 1)).shape == (0,)


def test_ranking_by_hand():
    student, teacher = double(0.6, 0.7, 0.2), double(0.9, 0.5, 0.1)
    # only the pair (1st, 2nd) is in the wrong order: (0.7 - 0.6 + 0.015) / 3
    found = relation_losses.ranking_loss(student, teacher, 0.015).item()
    assert found == pytest.approx(0.115 / 3)
    assert found == pytest.approx(0.0383333, abs=1e-7)


def test_ranking_at_agreement_is_what_is_left_of_the_margin():
    student = double(0.9, 0.893, 0.5, 0.1)
    # one gap, 0.007, is below the margin; the other five are not
    assert relation_losses.ranking_loss(student, student, 0.015).item() == pytest.approx(0.008 / 6)
    assert relation_losses.ranking_loss(student, student, 0.005).item() == 0


@pytest.mark.parametrize("count", [0, 1])
def test_ranking_without_a_pair_of_similarities(count):
    student = torch.zeros(count, requires_grad=True)
    loss = relation_losses.ranking_loss(student, torch.zeros(count), 0.015)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize("count", [2, 3, 40, 120])
@pytest.mark.parametrize("cells", [1, 500, 1 << 22])
def test_ranking_in_blocks_equals_the_plain_double_loop(random64, count, cells):
    student, teacher = random64(count).requires_grad_(), random64(count).round(decimals=1)  # with ties
    a, b = torch.triu_indices(count, count, 1)
    y = torch.where(teacher[b] < teacher[a], 1.0, -1.0)
    plain = (y * (student[b] - student[a]) + 0.3).clamp_min(0).mean()
    loss = relation_losses.ranking_loss(student, teacher, 0.3, cells)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(plain, student))


def test_ranking_ties_of_the_teacher_count_as_rising():
    tied = double(0.5, 0.5)
    assert relation_losses.ranking_loss(double(0.2, 0.6), tied, 0.1).item() == 0
    assert relation_losses.ranking_loss(double(0.6, 0.2), tied, 0.1).item() == pytest.approx(0.5)


def test_similarity_mse_by_hand():
    def relations(a, b, c):
        return double([1, a, b], [a, 1, c], [b, c, 1])

    found = relation_losses.similarity_mse(relations(0.6, 0.7, 0.2), relations(0.9, 0.5, 0.1))
    assert found.item() == pytest.approx(2 * (0.09 + 0.04 + 0.01) / 9)
    assert found.item() == pytest.approx(0.0311111, abs=1e-7)


TEACHER, STUDENT = double([0.9, 0.85, 0.5]) / 0.0125, double([0.8, 0.6, 0.4]) / 0.025


def test_listwise_by_hand():
    q = TEACHER.softmax(1)
    torch.testing.assert_close(q, double([0.982014, 0.017986, 0.0]), atol=1e-6, rtol=0)
    ce = relation_losses.listwise_cross_entropy(STUDENT, TEACHER)
    assert ce.item() == pytest.approx(0.144225, abs=1e-6)
    assert (ce - relation_losses.listwise_entropy(TEACHER)).item() == pytest.approx(0.0541304, abs=1e-7)


def test_listwise_ignores_a_constant_in_a_row(random64):
    a, b = random64(4, 5), random64(4, 5)
    expected = relation_losses.listwise_cross_entropy(a, b)
    shifted = relation_losses.listwise_cross_entropy(a + random64(4, 1), b + random64(4, 1))
    torch.testing.assert_close(shifted, expected)


def test_mean_perplexity():
    assert relation_losses.mean_perplexity(torch.zeros(3, 7)).item() == pytest.approx(7)
    assert relation_losses.mean_perplexity(torch.eye(3) * 1e4).item() == pytest.approx(1)
    halves = torch.tensor([[0.0, 0.0, -1e4]])
    assert relation_losses.mean_perplexity(halves).item() == pytest.approx(2)
    assert relation_losses.mean_perplexity(torch.zeros(1, 0)).item() == 1


def test_probability_groups_by_hand():
    ranked = double([0.9, 0.85, 0.5]) / 0.2
    masses = ranked.softmax(1)
    torch.testing.assert_close(masses, double([0.522429, 0.406868, 0.070703]), atol=1e-6, rtol=0)
    assert masses.cumsum(1)[0, 1].item() == pytest.approx(0.929297, abs=1e-6)
    # the first entry is alone; the others share the last group
    assert relation_losses.probability_groups(ranked, 0.1).tolist() == [[5, 9, 9]]
    quarters = torch.zeros(1, 4, dtype=torch.float64)  # a mass that reaches a threshold belongs to the next group
    assert relation_losses.probability_groups(quarters, 0.25).tolist() == [[1, 2, 3, 3]]
    assert relation_losses.probability_groups(ranked, 1.0).tolist() == [[0, 0, 0]]
    assert relation_losses.probability_groups(double([100.0, 0.0, 0.0]), 0.1).tolist() == [[9, 9, 9]]
    for wrong in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"mass .* not in \(0, 1\]"):
            relation_losses.probability_groups(ranked, wrong)


def test_shuffling_stays_inside_the_groups(random64):
    teacher, mass = random64(64, 31), 0.1
    keys = torch.rand(64, 31, generator=torch.Generator().manual_seed(0))
    order, shuffled = relation_losses.group_shuffle(teacher, mass, keys)
    columns = torch.arange(31).expand(64, -1)
    assert torch.equal(order.sort(1)[0], columns)
    assert torch.equal(shuffled.sort(1)[0], columns)
    ranked = teacher.gather(1, order)
    assert (ranked.diff(dim=1) <= 0).all()
    group = relation_losses.probability_groups(ranked, mass)
    group_of_column = torch.empty_like(group).scatter(1, order, group)
    assert torch.equal(group_of_column.gather(1, shuffled), group)
    assert not torch.equal(shuffled, order)


def test_shuffling_is_uniform_within_a_group():
    teacher = torch.zeros(12000, 3)
    keys = torch.rand(12000, 3, generator=torch.Generator().manual_seed(0))
    _, shuffled = relation_losses.group_shuffle(teacher, 1.0, keys)
    drawn = [int((shuffled == torch.tensor(p)).all(1).sum()) for p in permutations(range(3))]
    assert sum(drawn) == 12000
    assert all(abs(n - 2000) < 200 for n in drawn)  # five standard deviations


def test_groups_of_one_entry_leave_the_order_alone(random64):
    teacher = random64(6, 9)
    order, shuffled = relation_losses.group_shuffle(teacher, 1e-6, torch.rand(6, 9))
    assert torch.equal(order, shuffled)


def test_gaussian_nll_by_hand():
    zero = torch.zeros(1, 1, dtype=torch.float64)
    assert relation_losses.gaussian_nll(zero + 1, zero, zero).item() == pytest.approx(1.418939, abs=1e-6)
    best = relation_losses.gaussian_nll(zero, zero, zero + 50)  # tanh(50) = 1: r = e
    assert best.item() == pytest.approx(0.5 * math.log(2 * math.pi) - 1)
    assert best.item() == pytest.approx(-0.081061, abs=1e-6)


def test_gaussian_nll_is_that_of_the_normal_distribution(random64):
    target, mean, raw = random64(5, 4), random64(5, 4), random64(5, 4)
    expected = -torch.distributions.Normal(mean, (-raw.tanh()).exp()).log_prob(target).sum(1)
    torch.testing.assert_close(relation_losses.gaussian_nll(target, mean, raw), expected)


@pytest.mark.parametrize("which", ["similarity_mse", "ranking_loss", "listwise_cross_entropy", "gaussian_nll"])
def test_gradients(random64, which):
    a, b, c = random64(4, 3).requires_grad_(), random64(4, 3), random64(4, 3)
    functions = {
        "similarity_mse": lambda x: relation_losses.similarity_mse(
            losses.relation_matrix(x), losses.relation_matrix(b)
        ),
        "ranking_loss": lambda x: relation_losses.ranking_loss(
            relation_losses.upper_triangle(losses.relation_matrix(x)),
            relation_losses.upper_triangle(losses.relation_matrix(b)),
            0.015,
        ),
        "listwise_cross_entropy": lambda x: relation_losses.listwise_cross_entropy(x, b),
        "gaussian_nll": lambda x: relation_losses.gaussian_nll(c, x, x * b),
    }
    assert torch.autograd.gradcheck(functions[which], (a,))
    assert torch.autograd.gradgradcheck(functions[which], (a,))


def test_linear_draws_from_its_generator_alone():
    def drawn(seed, **how):
        return linear(50, 40, generator=torch.Generator().manual_seed(seed), **how)

    before = torch.get_rng_state()
    one, same, other = drawn(0), drawn(0), drawn(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.weight, same.weight)
    assert torch.equal(one.bias, same.bias)
    assert not torch.equal(one.weight, other.weight)
    for values in (one.weight, one.bias):
        assert values.abs().max() <= 1 / math.sqrt(50)
        assert values.std().item() == pytest.approx(1 / math.sqrt(3 * 50), rel=0.3)
    normal = drawn(0, std=0.02)
    assert normal.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert normal.bias.abs().max() == 0
    assert drawn(0, bias=False).bias is None


# ---- Jasper and Stella


@pytest.fixture
def worked():
    """Three teacher and three student vectors in R^6: similarities 0.9, 0.5, 0.1 and 0.6, 0.7, 0.2; cosines 0.9, 0.8, 0.7."""
    teacher = double([1, 0.9, 0.5], [0.9, 1, 0.1], [0.5, 0.1, 1])
    student = double([1, 0.6, 0.7], [0.6, 1, 0.2], [0.7, 0.2, 1])
    across = double([0.9, 0.7, 0.6], [0.8, 0.8, 0.4], [0.5, 0.0, 0.7])
    gram = torch.cat([torch.cat([teacher, across], 1), torch.cat([across.T, student], 1)])
    vectors = torch.linalg.cholesky(gram)
    return vectors[:3], vectors[3:]


def be_identity(layer: torch.nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.eye(len(layer.weight)))
        layer.bias.zero_()


JASPER = {
    "weight_cosine": 10.0,
    "weight_similarity": 200.0,
    "weight_ranking": 20.0,
    "simcse_share": 0.0,
    "anchor_fc1": True,
}


def test_jasper_by_hand(worked):
    teacher, student = worked
    method = build(jasper_stella, 6, (6,), **JASPER)
    be_identity(method.heads[0])
    method.enter(0)
    states, batch = pooled(student), batch_of(3.0 * teacher)
    terms = method.terms(states, batch)
    assert terms["cosine"].item() == pytest.approx(0.2)
    assert terms["similarity"].item() == pytest.approx(0.0311111, abs=1e-7)
    assert terms["ranking"].item() == pytest.approx(0.0383333, abs=1e-7)
    assert total(method, states, batch).item() == pytest.approx(8.988889, abs=1e-6)
    torch.testing.assert_close(method.row_loss(states, batch), 10 * double(0.1, 0.2, 0.3))


def test_jasper_at_agreement_and_under_rotation(worked):
    teacher, student = worked
    method = build(jasper_stella, 6, (6,))
    be_identity(method.heads[0])
    at_best = method.terms(pooled(2 * teacher, teacher), batch_of(teacher))
    assert at_best["cosine"].item() == pytest.approx(0, abs=1e-12)
    assert at_best["similarity"].item() == pytest.approx(0, abs=1e-12)
    assert at_best["ranking"].item() == 0  # all gaps, 0.4 and 0.8, exceed the margin
    turned = method.terms(pooled(student @ rotation(6), student), batch_of(teacher))
    plain = method.terms(pooled(student, student), batch_of(teacher))
    for name in ("similarity", "ranking"):
        torch.testing.assert_close(turned[name], plain[name])
    assert abs(turned["cosine"] - plain["cosine"]) > 0.1


def test_jasper_stages_decide_terms_views_and_weights():
    method = build(jasper_stella, 4, (6,))
    assert method.stages == (Stage(2, "heads"), Stage())
    assert [head.out_features for head in method.heads] == [6, 512, 256, 128]
    everything = {"simcse": 0.5, "cosine": 0.25, "similarity": 1.0, "ranking": 0.25}
    assert method.weights == everything | {"reduced_similarity": 1.0, "reduced_ranking": 0.25}  # the last stage
    assert method.views == 2
    method.enter(0)
    assert method.weights == {"cosine": 0.5, "similarity": 2.0, "ranking": 0.5}
    assert method.views == 1
    method.enter(1)
    assert method.views == 2
    assert build(jasper_stella, 4, (6,), reduced_dims=()).weights == everything
    assert build(jasper_stella, 4, (6,), head_epochs=0).stages == (Stage(),)
    jasper = build(jasper_stella, 4, (6,), **JASPER)
    assert "simcse" not in jasper.weights
    assert jasper.views == 1
    with pytest.raises(ValueError, match="all 0"):
        build(jasper_stella, 4, (6,), weight_cosine=0.0, weight_similarity=0.0, weight_ranking=0.0)
    without = build(jasper_stella, 4, (6,), weight_cosine=0.0)
    with pytest.raises(NotImplementedError):
        without.row_loss(pooled(torch.ones(2, 4)), batch_of(torch.ones(2, 6)))


@pytest.mark.parametrize("anchor", [False, True])
def test_who_learns_from_whom_between_the_heads(random64, anchor):
    """Released: similarities move both sides, the order only fc1. Anchor: fc1 stands still, the narrow head learns both."""
    method = build(jasper_stella, 4, (6,), reduced_dims=(3,), anchor_fc1=anchor)
    states, batch = pooled(random64(5, 4), random64(5, 4)), batch_of(random64(5, 6))
    moved = {}
    for term in ("reduced_similarity", "reduced_ranking"):
        gradients = torch.autograd.grad(
            method.terms(states, batch)[term], [h.weight for h in method.heads], allow_unused=True
        )
        moved[term] = [g is not None and bool(g.abs().max() > 0) for g in gradients]
    if anchor:
        assert moved == {"reduced_similarity": [False, True], "reduced_ranking": [False, True]}
    else:
        assert moved == {"reduced_similarity": [True, True], "reduced_ranking": [True, False]}


def test_jasper_lays_several_teachers_side_by_side(random64):
    first, second, student = random64(4, 3), random64(4, 5), random64(4, 6)
    method = build(jasper_stella, 6, (3, 5), reduced_dims=())
    method.enter(0)
    target = torch.cat([losses.unit(first), losses.unit(second)], 1) / math.sqrt(2)
    found = method.terms(pooled(student), batch_of(7 * first, 0.1 * second))
    assert found["cosine"].item() == pytest.approx(losses.cosine_distance(method.heads[0](student), target).item())


def test_jasper_output():
    assert build(jasper_stella, 4, (6,)).output() is None
    method = build(jasper_stella, 4, (6,), output="fc1")
    assert method.output() is method.heads[0]


# ---- DistillCSE


def star(*cosines: float) -> torch.Tensor:
    """Vectors whose first has these cosines with the others."""
    vectors = torch.eye(len(cosines) + 1, dtype=torch.float64)
    for number, cosine in enumerate(cosines, start=1):
        vectors[number] *= math.sqrt(1 - cosine**2)
        vectors[number, 0] = cosine
    return vectors


@pytest.mark.parametrize(("divergence", "expected"), [("ce", 0.144225), ("kl", 0.0541304)])
def test_distillcse_by_hand(divergence, expected):
    method = build(distillcse, 4, (4,), divergence=divergence)
    method.heads.eval()
    rows = method.row_loss(pooled(star(0.8, 0.6, 0.4)), batch_of(star(0.9, 0.85, 0.5)))
    assert rows[0].item() == pytest.approx(expected, abs=1e-6)


def test_distillcse_student_equal_to_teacher(random64):
    vectors = random64(8, 5)
    method = build(distillcse, 5, (5,), divergence="kl", student_temperature=0.1, teacher_temperature=0.1)
    method.heads.eval()
    found = method.terms(pooled(vectors, vectors), batch_of(3 * vectors))["listwise"]
    assert found.item() == pytest.approx(0, abs=1e-12)
    assert method.terms(pooled(random64(8, 5), vectors), batch_of(vectors))["listwise"] > 0.1


def test_distillcse_shuffles_only_in_training_and_only_the_student(random64):
    student, batch = pooled(random64(16, 6), random64(16, 6)), batch_of(random64(16, 7))
    method = build(distillcse, 6, (7,))
    plain = build(distillcse, 6, (7,), group_mass=None)

    def listwise(m):
        return m.terms(student, batch)["listwise"]

    torch.manual_seed(0)
    first, second = listwise(method), listwise(method)
    assert first != second  # drawn anew at every step
    torch.manual_seed(0)
    assert listwise(method) == first  # from the run's random state
    method.heads.eval()
    state = torch.get_rng_state()
    torch.testing.assert_close(listwise(method), listwise(plain))
    assert torch.equal(torch.get_rng_state(), state)
    alone = build(distillcse, 6, (7,), group_mass=1e-6)  # groups of one sentence
    torch.testing.assert_close(listwise(alone), listwise(plain))


def test_distillcse_averages_the_cosines_of_its_teachers(random64):
    student, one, two = random64(6, 4), random64(6, 3), random64(6, 8)

    def logged(teachers, **config):
        method = build(distillcse, 4, tuple(t.shape[1] for t in teachers), group_mass=None, **config)
        return method.terms(pooled(student, student), batch_of(*teachers))["listwise"]

    mean = (losses.relation_matrix(one) + losses.relation_matrix(two)) / 2
    as_vectors = torch.linalg.cholesky(mean)  # one teacher whose cosines are the average
    torch.testing.assert_close(logged((one, two)), logged((as_vectors,)))
    torch.testing.assert_close(logged((one, two), teacher_weights=(3.0, 0.0)), logged((one,)))
    mixed = 0.33 * losses.relation_matrix(one) + 0.67 * losses.relation_matrix(two)
    weighted = logged((one, two), teacher_weights=(0.33, 0.67))
    torch.testing.assert_close(weighted, logged((torch.linalg.cholesky(mixed),)))
    with pytest.raises(ValueError, match=r"\[1\.0\].*each of the 2 teachers"):
        build(distillcse, 4, (3, 8), teacher_weights=(1.0,))
    with pytest.raises(ValueError, match="not all 0"):
        build(distillcse, 4, (3, 8), teacher_weights=(0.0, 0.0))


def test_distillcse_parts_can_be_left_out(random64):
    assert build(distillcse, 4, (3,), weight_simcse=0.0).views == 1
    assert set(build(distillcse, 4, (3,), weight_simcse=0.0).weights) == {"listwise"}
    assert list(build(distillcse, 4, (3,)).heads.parameters()) == []
    method = build(distillcse, 4, (3,), mlp_head=True, group_mass=None)
    student, second, teacher = random64(5, 4), random64(5, 4), random64(5, 3)
    raw = build(distillcse, 4, (3,), group_mass=None)
    through = [method.heads[0](x).tanh() for x in (student, second)]
    found = method.terms(pooled(student, second), batch_of(teacher))
    expected = raw.terms(pooled(*through), batch_of(teacher))
    for name in ("simcse", "listwise"):
        torch.testing.assert_close(found[name], expected[name])


def preparation(vectors: np.ndarray) -> Preparation:
    return Preparation(len(vectors), (lambda rows: vectors[rows],), student=lambda rows: vectors[rows])


def test_distillcse_warns_when_only_the_nearest_neighbour_counts():
    vectors = np.random.default_rng(0).normal(size=(100, 24)).astype(np.float32)
    with pytest.warns(UserWarning, match=r"teacher_temperature 0\.0125 .*perplexity of 1\.\d\d.* Raise") as caught:
        build(distillcse, 4, (24,)).prepare(preparation(vectors))
    advised = float(str(caught[0].message).split("Raise teacher_temperature: ")[1].split()[0])
    with pytest.warns(UserWarning, match=f"{advised:g} gives"):  # half of it is not enough
        build(distillcse, 4, (24,), teacher_temperature=advised / 2).prepare(preparation(vectors))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(distillcse, 4, (24,), teacher_temperature=advised).prepare(preparation(vectors))
        build(distillcse, 4, (24,)).prepare(preparation(vectors[:2]))  # one neighbour each: nothing to say


# ---- majority vote


def test_majority_vote_at_its_floor(random64):
    """A head that hits the mean and has the narrowest deviation: 1/2 log 2 pi - 1 a dimension and teacher."""
    method = build(majority_vote, 4, (4, 4), hidden_layers=0)
    student = losses.unit(random64(5, 4))
    with torch.no_grad():
        for head in method.heads:
            head[0].weight.copy_(torch.cat([2 * torch.eye(4), torch.zeros(4, 4)]))  # sqrt(d_T) = 2
            head[0].bias.copy_(torch.tensor([0.0] * 4 + [50.0] * 4))
    batch = batch_of(student, 9 * student)
    for name, term in method.terms(pooled(student), batch).items():
        assert term.item() == pytest.approx(-0.081061, abs=1e-6), name
    assert total(method, pooled(student), batch).item() == pytest.approx(math.log(2 * math.pi) - 2)


def test_majority_vote_heads_as_published():
    method = build(majority_vote, 6, (10, 20))
    shapes = [[tuple(p.weight.shape) for p in head if isinstance(p, torch.nn.Linear)] for head in method.heads]
    assert shapes[0] == [(14, 6), (14, 14), (14, 14), (20, 14)]
    assert shapes[1][-1] == (40, 28)
    assert majority_vote.MajorityVote.needs(majority_vote.Config()) == Needs(teachers=(2, None))


def test_majority_vote_leaves_out_what_a_teacher_has_not_seen(random64):
    student, one, two = random64(5, 4), random64(5, 3), random64(5, 6)
    method = build(majority_vote, 4, (3, 6))
    gap = two.clone()
    gap[1], gap[3, 2] = float("nan"), float("nan")
    found = method.terms(pooled(student), batch_of(one, gap))
    kept = [0, 2, 4]
    expected = method.terms(pooled(student[kept]), batch_of(one[kept], two[kept]))
    torch.testing.assert_close(found["teacher_2"], expected["teacher_2"])
    torch.testing.assert_close(found["teacher_1"], method.terms(pooled(student), batch_of(one, two))["teacher_1"])
    none = torch.full_like(two, float("nan"))
    student.requires_grad_()
    nothing = total(method, pooled(student), batch_of(torch.full_like(one, float("nan")), none))
    nothing.backward()
    assert nothing.item() == 0
    assert student.grad.abs().max() == 0


def test_majority_vote_counts_every_teacher(random64):
    student, one, two = random64(5, 4), random64(5, 3), random64(5, 6)
    once = build(majority_vote, 4, (3, 6), normalized=False)
    twice = build(majority_vote, 4, (3, 6, 3, 6), normalized=False)
    for number in range(4):
        twice.heads[number].load_state_dict(once.heads[number % 2].state_dict())
    loss = total(once, pooled(student), batch_of(one, two))
    torch.testing.assert_close(total(twice, pooled(student), batch_of(one, two, one, two)), 2 * loss)
    once.config = majority_vote.Config(normalized=True)
    terms = once.terms(pooled(student), batch_of(one, two))
    torch.testing.assert_close(3 * terms["teacher_1"] + 6 * terms["teacher_2"], loss)


def test_majority_vote_cannot_tell_linear_maps_of_the_student(random64):
    student, one, two, mixing = random64(5, 4), random64(5, 3), random64(5, 6), random64(4, 4)
    method = build(majority_vote, 4, (3, 6))
    expected = total(method, pooled(student), batch_of(one, two))
    with torch.no_grad():
        for head in method.heads:
            head[0].weight.copy_(head[0].weight @ torch.linalg.inv(mixing).T)
    torch.testing.assert_close(total(method, pooled(student @ mixing), batch_of(one, two)), expected)


def test_majority_vote_scales_unit_vectors_to_variance_one(random64):
    """A unit vector's deviation 1 / sqrt(d) is far below what the density can hold, so scaling changes the loss."""
    student, vectors = random64(200, 4), losses.unit(random64(200, 64))
    scaled = build(majority_vote, 4, (64, 64), hidden_layers=0)
    with torch.no_grad():
        for head in scaled.heads:
            head[0].weight.zero_()
            head[0].bias.zero_()
    # mean 0 and r = 1: 1/2 (t^2 + log 2 pi) a dimension, the mean of t^2 being 1 or 1/64
    constant = 0.5 * math.log(2 * math.pi)
    found = scaled.terms(pooled(student), batch_of(vectors, vectors))
    assert found["teacher_1"].item() == pytest.approx(constant + 0.5)
    scaled.config = majority_vote.Config(teacher_scaling="none")
    found = scaled.terms(pooled(student), batch_of(vectors, vectors))
    assert found["teacher_1"].item() == pytest.approx(constant + 0.5 / 64)


# ---- what every method must do

CASES = {
    "jasper_stella": (jasper_stella, (8,), {"reduced_dims": (6, 4)}),
    "jasper_stella as Jasper": (jasper_stella, (8,), {"reduced_dims": (6, 4), **JASPER}),
    "jasper_stella of two": (jasper_stella, (8, 5), {"reduced_dims": (6,)}),
    "distillcse": (distillcse, (8,), {}),
    "distillcse of two": (distillcse, (8, 5), {"mlp_head": True, "divergence": "kl"}),
    "majority_vote": (majority_vote, (8, 5), {}),
    "majority_vote unscaled": (majority_vote, (8, 5), {"teacher_scaling": "none", "normalized": False}),
}
EVERY = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def make(tiny_encoder_folder, tiny_texts):
    """A fresh (objective, data) for a case on every call, always the same; float64 unless asked otherwise."""
    texts = tiny_texts[:40]

    def build_objective(case, dropout=None, dtype=torch.float64, **config):
        module, dims, given = CASES[case]
        student = Encoder.load(tiny_encoder_folder("bert"), layers=[0, 2], pooling="mean").to(dtype)
        for part in student.modules():
            if dropout is not None and isinstance(part, torch.nn.Dropout):
                part.p = dropout
        method = build(module, student.dim, dims, **given | config)
        method.heads.to(dtype)
        rng = np.random.default_rng(0)
        vectors = [rng.normal(size=(len(texts), dim)).astype(np.float32) for dim in dims]
        teachers = tuple(lambda rows, v=v: v[rows] for v in vectors)
        numbers = np.arange(len(texts))
        data = TrainingData(student.tokenize(texts), teachers, numbers, numbers % 2)
        return Objective(student, method), data

    return build_objective


def as_double(batch: Batch) -> Batch:
    return replace(batch, teachers=tuple(t.double() for t in batch.teachers))


def gradients(objective: Objective) -> list[torch.Tensor]:
    modules = (objective.student, objective.method.heads)
    return [p.grad for module in modules for p in module.parameters() if p.grad is not None]


@EVERY
@pytest.mark.parametrize("rows", [[0], [3, 7], [0, 1, 2, 3], [5, 5, 5, 9]], ids=["one", "two", "four", "copies"])
def test_small_batches_and_copies(make, case, rows):
    objective, data = make(case, dtype=torch.float32)
    objective.student.train()
    objective.method.heads.train()
    batch = data.batch(np.array(rows))
    loss, terms = objective(batch)
    assert terms.keys() == objective.method.weights.keys()
    assert torch.isfinite(loss)
    loss.backward()
    assert all(torch.isfinite(g).all() for g in gradients(objective))
    assert not any(t.requires_grad for t in batch.teachers)
    if len(rows) == 4:
        assert max(p.grad.abs().max() for p in objective.student.parameters() if p.grad is not None) > 1e-6


@EVERY
def test_identical_sentences_and_vectors(make, case):
    """A batch of copies: all similarities 1, no vector apart from another."""
    objective, data = make(case, dropout=0.0)
    batch = as_double(data.batch(np.array([2, 2, 2, 2])))
    batch = replace(batch, teachers=tuple(t[:1].expand(4, -1) for t in batch.teachers))
    objective.student.train()
    loss, _ = objective(batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in gradients(objective))


@EVERY
@pytest.mark.parametrize("padded", [False, True])
def test_padding_changes_nothing(make, case, padded):
    objective, data = make(case)
    if padded:
        objective.student.states = objective.student.states_padded
    objective.student.eval()
    objective.method.heads.eval()
    batch = as_double(data.batch(np.arange(8)))
    wider = replace(batch, layout=Layout(batch.layout.lengths, batch.layout.longest + 7))
    plain, more = objective(batch)[0], objective(wider)[0]
    assert abs(plain - more) < 1e-6


@EVERY
def test_the_order_of_the_batch_does_not_matter(make, case):
    objective, data = make(case)
    objective.method.heads.eval()
    batch = as_double(data.batch(np.arange(9)))
    states = objective.states(batch)
    order = torch.tensor([4, 2, 8, 0, 1, 7, 6, 3, 5])
    shuffled = pooled(states.pooled[order], None if states.second is None else states.second[order])
    other = replace(batch, teachers=tuple(t[order] for t in batch.teachers))
    torch.testing.assert_close(objective.total(shuffled, other)[0], objective.total(states, batch)[0])
    rows = objective.method.row_loss(states, batch)
    torch.testing.assert_close(objective.method.row_loss(shuffled, other), rows[order])


@EVERY
def test_row_loss_has_the_mean_of_its_terms(make, case):
    objective, data = make(case)
    objective.method.heads.eval()
    batch = as_double(data.batch(np.arange(9)))
    states, method = objective.states(batch), objective.method
    terms = method.terms(states, batch)
    additive = {"jasper_stella": ["cosine"], "distillcse": ["listwise"]}.get(case.split()[0], list(terms))
    expected = sum(method.weights[name] * terms[name] for name in additive)
    torch.testing.assert_close(method.row_loss(states, batch).mean(), expected)


@EVERY
def test_twenty_steps_lower_the_loss(make, case):
    objective, data = make(case, dtype=torch.float32)
    batch = data.batch(np.arange(16))

    def measured():
        objective.student.eval()
        objective.method.heads.eval()
        with torch.no_grad():
            return objective(batch)[0].item()

    before = measured()
    objective.student.train()
    objective.method.heads.train()
    optimizer = torch.optim.Adam(objective.parameter_groups(2e-3, 0.0))
    for _ in range(20):
        optimizer.zero_grad()
        objective(batch)[0].backward()
        optimizer.step()
    assert measured() < 0.9 * before


@EVERY
def test_nothing_of_the_method_stays_in_the_student(make, case):
    objective, data = make(case)
    names = set(objective.student.state_dict())
    objective(as_double(data.batch(np.arange(4))))
    assert set(objective.student.state_dict()) == names
    assert objective.method.output() is None


@EVERY
def test_disam_trains(make, case):
    objective, data = make(case, dtype=torch.float32)
    start = copy.deepcopy(objective.student.state_dict())
    rows = []
    around = Perturbation("sam", 0.05, variance_weight=0.1)
    settings = Settings(epochs=1, batch_size=8, lr=1e-3, min_lr=1e-4, perturbation=around)
    train(objective, data, settings, on_log=rows.append, log_every=1)
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert any(not torch.equal(start[k], v) for k, v in objective.student.state_dict().items())


@EVERY
def test_seed_decides_everything(make, case):
    states = []
    for seed in (1, 1, 2):
        objective, data = make(case, dtype=torch.float32)
        train(objective, data, Settings(epochs=1, batch_size=8, lr=1e-3, min_lr=1e-4, seed=seed))
        states.append(weights(objective))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


@pytest.mark.parametrize("name", ["jasper_stella", "distillcse", "majority_vote"])
def test_the_file_of_values_holds_every_default(name):
    module = {"jasper_stella": jasper_stella, "distillcse": distillcse, "majority_vote": majority_vote}[name]
    assert params.load_method(name, {}) == module.Config()
    assert module.METHOD.needs(module.Config()).teachers == ((2, None) if name == "majority_vote" else (1, None))


def test_the_variants_of_the_files_are_accepted():
    changed = params.load_method("jasper_stella", JASPER | {"reduced_dims": [1024, 512, 256]})
    assert changed.reduced_dims == (1024, 512, 256)
    params.load_method("majority_vote", {"teacher_scaling": "none", "head_lr_mult": 1.0})
    assert params.load_method("distillcse", {"teacher_weights": [0.33, 0.67]}).teacher_weights == (0.33, 0.67)


# ---- the two stages of Jasper and Stella


def weights(objective) -> dict[str, torch.Tensor]:
    state = {f"student.{k}": v for k, v in objective.student.state_dict().items()}
    return {k: v.clone() for k, v in (state | objective.method.heads.state_dict()).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


TWO_STAGES = Settings(epochs=2, batch_size=8, lr=1e-3, min_lr=1e-4)  # 5 steps an epoch


@pytest.mark.parametrize("around", [None, Perturbation("asam", 0.5)])
def test_stage_one_trains_fc1_alone_and_stage_two_everything(make, around):
    objective, data = make("jasper_stella", dtype=torch.float32, head_epochs=1)
    start, rows, kept = weights(objective), [], {}
    _, used = data.renumbered()
    settings = replace(TWO_STAGES, perturbation=around)

    def keep(epoch):
        kept[epoch] = weights(objective)

    train(objective, data, settings, on_log=rows.append, on_epoch=keep, log_every=1)
    assert sorted(kept) == [1, 2, 3]
    table = next(name for name in start if name.endswith("word_embeddings.weight"))
    start[table] = start[table][used]  # while training, the table holds the words in use
    moved = {name for name, value in kept[1].items() if not torch.equal(value, start[name])}
    assert moved == {"0.weight", "0.bias"}
    still = {name for name, value in kept[3].items() if torch.equal(value, kept[1][name])}
    assert still <= {name for name in start if "token_type" in name or "position" in name}
    assert [set(row) & {"loss_simcse", "loss_reduced_ranking"} != set() for row in rows] == [False] * 5 + [True] * 10
    assert all(p.requires_grad for p in objective.student.parameters())


@pytest.mark.parametrize("killed_after", [4, 12], ids=["in stage one", "in stage two"])
def test_both_stages_resume_to_the_same_bits(make, tmp_path, killed_after):
    straight, data = make("jasper_stella", dtype=torch.float32, head_epochs=1)
    train(straight, data, TWO_STAGES)

    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] == killed_after:
            raise Killed

    file = tmp_path / "last.safetensors"
    broken, data = make("jasper_stella", dtype=torch.float32, head_epochs=1)
    with pytest.raises(Killed):
        train(broken, data, TWO_STAGES, checkpoint=file, checkpoint_every=3, log_every=1, on_log=kill)
    finished = checkpoints.finished_steps(file)
    assert finished == {4: 3, 12: 9}[killed_after]
    resumed, data = make("jasper_stella", dtype=torch.float32, head_epochs=1)
    result = train(resumed, data, TWO_STAGES, checkpoint=file, checkpoint_every=3)
    assert result.resumed_from == finished
    assert same(weights(straight), weights(resumed))
