"""Methods on cached sentence vectors, part B: closed forms, worked values, and what every method promises."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from talas_lib import methods, params, reduction, stages, teacher_cache
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.methods import cosine, embed_distill, leaf, mse, pca_target, procrustes_target, regression, rkd, talas
from talas_lib.methods.base import Objective, Preparation, StudentStates
from talas_lib.packed import Layout
from talas_lib.sharpness import stage
from talas_lib.tiny import build as build_tiny
from talas_lib.training_data import TrainingData

D = 32  # width of the tiny student
# module, settings, width of the teacher's vectors
EVERY = {
    "cosine": (cosine, {}, D),
    "mse": (mse, {}, D),
    "mse-vector": (mse, {"reduction": "vector"}, D),
    "embed_distill": (embed_distill, {}, 48),
    "embed_distill-l2": (embed_distill, {"distance": "l2"}, 48),
    "embed_distill-mse": (embed_distill, {"distance": "mse"}, 48),
    "embed_distill-direct": (embed_distill, {"projection": False}, D),
    "leaf": (leaf, {}, 48),
    "pca_target": (pca_target, {}, 48),
    "pca_target-vector": (pca_target, {"reduction": "vector"}, 48),
    "procrustes_target": (procrustes_target, {}, 48),
    "rkd": (rkd, {}, 48),
    "rkd-raw": (rkd, {"normalize": False}, 48),
}
every = pytest.mark.parametrize("name", EVERY)


def make(module, teacher_dim, student_dim=D, seed=1, **config):
    sizes = {"student_dim": student_dim, "teacher_dims": (teacher_dim,), "num_layers": 3}
    return module.METHOD(module.Config(**config), **sizes, generator=torch.Generator().manual_seed(seed))


def preparation(teacher, student=None):
    """What `prepare` gets, from two arrays."""
    return Preparation(len(teacher), (lambda rows: teacher[rows],), lambda rows: student[rows])


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rotation(dim, seed=3):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0].astype(np.float32)


def states(vectors):
    return StudentStates((torch.as_tensor(vectors),))


def given(vectors):
    """A batch of which a method reads the first teacher alone."""
    return SimpleNamespace(teacher=torch.as_tensor(vectors))


@pytest.fixture
def tiny(tiny_encoder_folder, tiny_texts):
    """A function from a name of EVERY to (objective, data): a tiny BERT of three blocks, the method prepared, always the same."""

    def build(name, texts=None, pooling="mean"):
        module, config, width = EVERY[name]
        texts = tiny_texts[:40] if texts is None else texts
        student = Encoder.load(tiny_encoder_folder("bert"), pooling=pooling).eval()
        method = make(module, width, **config)
        vectors = unit(normal(len(texts), width))
        vectors = vectors[[texts.index(text) for text in texts]]  # copies of a sentence have one vector
        method.prepare(preparation(vectors, student.encode(texts)))
        zeros = np.zeros(len(texts), np.int64)
        data = TrainingData(student.tokenize(texts), (lambda rows: vectors[rows],), np.arange(len(texts)), zeros)
        return Objective(student, method), data

    return build


# ---- distances


def test_distances_by_hand():
    student, target = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    found = {
        kind: regression.row_distances(kind, student, target).item() for kind in ("cosine", "l2", "squared", "mse")
    }
    assert found == pytest.approx({"cosine": 0.2, "l2": math.sqrt(13), "squared": 13.0, "mse": 6.5})


def test_mse_of_unit_vectors_is_the_cosine_over_the_width():
    """METHODS: 2 (1 - cos) / d, which makes the mean squared error of wide vectors small."""
    a, b = torch.as_tensor(unit(normal(5, 1024))), torch.as_tensor(unit(normal(5, 1024, seed=1)))
    cosines = regression.row_distances("cosine", a, b)
    torch.testing.assert_close(regression.row_distances("mse", a, b), 2 * cosines / 1024)
    torch.testing.assert_close(regression.row_distances("squared", a, b), 2 * cosines)


@pytest.mark.parametrize("distance", ["cosine", "l2", "squared", "mse"])
def test_gradients_of_the_distances(distance):
    a, b = (torch.as_tensor(normal(3, 4, seed=s).astype(np.float64)).requires_grad_() for s in (0, 1))
    assert torch.autograd.gradcheck(lambda x, y: regression.row_distances(distance, x, y), (a, b))
    met = b.detach().clone().requires_grad_()
    regression.row_distances(distance, met, b.detach()).sum().backward()
    assert met.grad is not None
    torch.testing.assert_close(met.grad, torch.zeros_like(met))


# ---- direct regression


@pytest.mark.parametrize(
    ("module", "config"),
    [(cosine, {}), (mse, {}), (embed_distill, {"projection": False})],
    ids=["cosine", "mse", "direct"],
)
def test_unequal_widths_are_refused_with_the_way_out(module, config):
    with pytest.raises(ValueError, match=r"student's have 32 dimensions, the teacher's 48") as error:
        make(module, 48, **config)
    for way_out in ("pca_target", "procrustes_target", "embed_distill"):
        assert way_out in str(error.value)


def test_direct_regression_reaches_zero_at_the_teacher():
    vectors = normal(6, D)
    for module in (cosine, mse):
        method = make(module, D)
        (term,) = method.terms(states(vectors), given(vectors)).values()
        assert term.item() == pytest.approx(0, abs=1e-6)
    scaled = make(cosine, D).terms(states(5 * vectors), given(vectors))["cosine"]
    assert scaled.item() == pytest.approx(0, abs=1e-6)


# ---- linear layers


def test_embed_distill_without_bias_is_talas_with_one_anchor_and_tamd_alone():
    settings = {"weight_simcse": 0.0, "weight_lasd": 0.0, "weight_tamd": 1.0, "num_anchor_layers": 1}
    theirs, own = make(talas, 48, **settings), make(embed_distill, 48, bias=False)
    theirs.heads.load_state_dict(own.heads.state_dict())
    layers = StudentStates(tuple(torch.as_tensor(normal(6, D, seed=s)).requires_grad_() for s in range(4)))
    teacher = given(normal(6, 48, seed=9))
    found, expected = own.terms(layers, teacher)["embed_distill"], theirs.terms(layers, teacher)["tamd"]
    assert found.item() == expected.item()
    gradients = (
        torch.autograd.grad(loss, [layers.pooled, *method.heads.parameters()])
        for loss, method in ((found, own), (expected, theirs))
    )
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(own.row_loss(layers, teacher), theirs.row_loss(layers, teacher))


def test_embed_distill_by_hand():
    """A layer that swaps two numbers and adds (1, 0): (3, 4) becomes (5, 3)."""
    expected = {"cosine": 1 - 5 / math.sqrt(34), "l2": 5.0, "mse": 12.5}
    for distance, value in expected.items():
        method = make(embed_distill, 2, student_dim=2, distance=distance)
        with torch.no_grad():
            method.heads[0].weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
            method.heads[0].bias.copy_(torch.tensor([1.0, 0.0]))
        teacher = {"cosine": [[2.0, 0.0]], "l2": [[1.0, 0.0]], "mse": [[1.0, 0.0]]}[distance]
        assert method.terms(states([[3.0, 4.0]]), given(teacher))["embed_distill"].item() == pytest.approx(value)


def test_leaf_keeps_its_layer_and_takes_the_plain_squared_distance(tiny, tiny_texts):
    objective, data = tiny("leaf")
    method, batch = objective.method, data.batch(np.arange(8))
    pooled = objective.states(batch).pooled
    expected = (method.output()(pooled) - batch.teacher).square().sum(1)
    torch.testing.assert_close(method.row_loss(objective.states(batch), batch), expected)
    objective.student.projection = method.output()
    found = objective.student.encode(tiny_texts[:5], normalize=False)
    assert found.shape == (5, 48)
    objective.student.projection = None
    raw = torch.as_tensor(objective.student.encode(tiny_texts[:5], normalize=False))
    np.testing.assert_allclose(found, method.output()(raw).detach(), atol=1e-5)


@every
def test_only_leaf_leaves_something_behind(name):
    module, config, width = EVERY[name]
    output = make(module, width, **config).output()
    assert (output is not None) == (name == "leaf")


@pytest.mark.parametrize("module", [embed_distill, leaf])
def test_heads_come_from_the_generator_alone(module):
    before = torch.get_rng_state()
    first, second, other = (make(module, 48, seed=s).heads.state_dict() for s in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert set(first) == {"0.weight", "0.bias"}
    assert all(torch.equal(first[k], second[k]) and not torch.equal(first[k], other[k]) for k in first)
    assert max(v.abs().max().item() for v in first.values()) <= D**-0.5  # torch's own bounds
    assert "0.bias" not in make(module, 48, bias=False).heads.state_dict()


# ---- reduction


def test_components_by_hand():
    cross = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    found = reduction.principal_components(cross, 1)
    np.testing.assert_allclose(np.abs(found.directions), [[1], [0]], atol=1e-12)
    assert found.variance == pytest.approx(0.9)
    assert reduction.retained_energy(cross, found.directions) == pytest.approx(18 / 20)
    # centred for the fit only: the direction follows the spread, and the mean across it is lost
    shifted = np.array([[10.0, 3], [10, -3]])
    found = reduction.principal_components(shifted, 1)
    np.testing.assert_allclose(np.abs(found.directions), [[0], [1]], atol=1e-12)
    assert reduction.retained_energy(shifted, found.directions) == pytest.approx(18 / 218)


@pytest.mark.parametrize("rows", [5, 400])
def test_components_are_orthonormal_and_as_many_as_the_data_has(rows):
    vectors = normal(rows, 20)
    found = reduction.principal_components(vectors, 12)
    kept = min(12, rows - 1)
    assert found.directions.shape == (20, kept)
    np.testing.assert_allclose(found.directions.T @ found.directions, np.eye(kept), atol=1e-10)
    scores = (vectors - found.mean) @ found.directions
    assert (np.diff(scores.var(0)) <= 1e-10).all()
    assert found.variance == pytest.approx(scores.var(0).sum() / vectors.var(0).sum(), rel=1e-5)


def test_rows_to_fit_on():
    assert reduction.fit_rows(5).tolist() == [0, 1, 2, 3, 4]
    drawn = reduction.fit_rows(1000, 10)
    assert len(np.unique(drawn)) == 10
    assert (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, reduction.fit_rows(1000, 10))


def test_rotation_is_recovered():
    source, turn = normal(50, 8), rotation(8).astype(np.float64)
    target = source @ turn * np.random.default_rng(1).uniform(0.5, 2, size=(50, 1))  # lengths have no say
    np.testing.assert_allclose(reduction.rotation_onto(source, target), turn, atol=1e-6)


def test_pca_target_by_hand():
    teacher = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]], dtype=np.float32)
    method = make(pca_target, 2, student_dim=1)
    method.prepare(preparation(teacher))
    sign = method.heads.matrix[0, 0].item()
    assert abs(sign) == pytest.approx(1)
    assert method.retained_energy == pytest.approx(0.9)
    np.testing.assert_allclose(method.target(given(teacher))[:, 0], sign * teacher[:, 0], atol=1e-6)
    student = states(np.full((4, 1), sign, dtype=np.float32))  # distances 2, 4, 1, 1 from 3, -3, 0, 0
    assert method.terms(student, given(teacher))["pca_target"].item() == pytest.approx((4 + 16 + 1 + 1) / 4)


def test_the_sum_is_the_mean_times_the_width():
    teacher = normal(60, 48)
    element, vector = make(pca_target, 48), make(pca_target, 48, reduction="vector")
    for method in (element, vector):
        method.prepare(preparation(teacher))
    student = states(normal(60, D, seed=4))
    ratio = vector.row_loss(student, given(teacher)) / element.row_loss(student, given(teacher))
    torch.testing.assert_close(ratio, torch.full((60,), float(D)))


def test_pca_of_vectors_in_few_dimensions_loses_nothing():
    teacher = normal(200, D) @ rotation(48)[:D]
    method = make(pca_target, 48)
    method.prepare(preparation(teacher))
    assert method.retained_energy == pytest.approx(1, abs=1e-6)
    target = method.target(given(teacher)).numpy()
    np.testing.assert_allclose(target @ target.T, teacher @ teacher.T, atol=1e-3)


@pytest.mark.parametrize("width", [D, 48])
def test_procrustes_target_is_the_student_when_the_teacher_is_a_rotated_student(width):
    student = normal(300, D) + 2
    teacher = student @ rotation(width)[:D]
    method = make(procrustes_target, width)
    method.prepare(preparation(teacher, student))
    np.testing.assert_allclose(method.target(given(teacher)), student, atol=1e-3)
    assert method.terms(states(student), given(teacher))["procrustes_target"].item() == pytest.approx(0, abs=1e-6)
    assert method.retained_energy == pytest.approx(1, abs=1e-6)


def test_no_other_rotation_starts_lower_and_cosines_stay():
    teacher, student = normal(200, 48) + 0.3, normal(200, D, seed=5) + 0.5
    plain, turned = make(pca_target, 48), make(procrustes_target, 48)
    for method in (plain, turned):
        method.prepare(preparation(teacher, student))
    batch = given(teacher)
    start = turned.terms(states(student), batch)["procrustes_target"].item()
    target = turned.target(batch)
    for seed in range(5):
        other = target @ torch.as_tensor(rotation(D, seed))
        assert start < regression.row_distances("cosine", torch.as_tensor(student), other).mean().item()
    cosines = [torch.as_tensor(unit(m.target(batch).numpy())) for m in (plain, turned)]
    torch.testing.assert_close(cosines[0] @ cosines[0].T, cosines[1] @ cosines[1].T, atol=1e-5, rtol=0)
    assert plain.retained_energy == pytest.approx(turned.retained_energy, rel=1e-6)


@pytest.mark.parametrize("module", [pca_target, procrustes_target])
def test_few_sentences_or_a_narrow_teacher_fill_the_rest_with_zeros(module):
    student = normal(10, D)
    for teacher in (normal(10, 48), normal(10, 8)):  # nine components at most; eight
        method = make(module, teacher.shape[1])
        method.prepare(preparation(teacher, student))
        assert torch.linalg.matrix_rank(method.heads.matrix) == min(9, teacher.shape[1])
        target = method.target(given(teacher))
        assert torch.isfinite(method.terms(states(student), given(teacher))[module.METHOD.term])
        if teacher.shape[1] == 8:  # nothing is lost
            np.testing.assert_allclose(target @ target.T, teacher @ teacher.T, atol=1e-4)
            assert method.retained_energy == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("module", [pca_target, procrustes_target])
@pytest.mark.parametrize("teacher", [np.ones((1, 48), np.float32), np.ones((9, 48), np.float32)], ids=["one", "equal"])
def test_a_corpus_that_cannot_be_fitted_is_refused(module, teacher):
    method = make(module, 48)
    with pytest.raises(TalasError, match=r"_target cannot be fitted to this corpus: .* at least two different vectors"):
        method.prepare(preparation(teacher, normal(len(teacher), D)))


def test_fitting_reads_a_bounded_sample_in_chunks():
    teacher, seen = normal(5000, 48), []

    def read(rows):
        seen.append(rows)
        return teacher[rows]

    method = make(procrustes_target, 48, fit_rows=3000)
    method.prepare(Preparation(5000, (read,), lambda rows: teacher[rows, :D]))
    rows = np.concatenate(seen)
    assert len(rows) == len(np.unique(rows)) == 3000
    assert max(map(len, seen)) <= 1024
    again = make(procrustes_target, 48, fit_rows=3000, seed=2)
    again.prepare(Preparation(5000, (lambda r: teacher[r],), lambda r: teacher[r, :D]))
    assert torch.equal(method.heads.matrix, again.heads.matrix)


@pytest.mark.parametrize("module", [pca_target, procrustes_target])
def test_an_unfitted_target_is_nan_and_saved_heads_bring_it_back(module):
    teacher, student = normal(60, 48), normal(60, D, seed=1)
    fitted, loaded = make(module, 48), make(module, 48)
    fitted.prepare(preparation(teacher, student))
    assert math.isnan(loaded.retained_energy)
    assert torch.isnan(loaded.terms(states(student), given(teacher))[module.METHOD.term])
    assert list(loaded.heads.parameters()) == []
    loaded.heads.load_state_dict(fitted.heads.state_dict())
    assert loaded.retained_energy == fitted.retained_energy
    assert torch.equal(loaded.target(given(teacher)), fitted.target(given(teacher)))


# ---- relational


def test_rkd_by_hand():
    """A triangle with sides 3, 4, 5 against an equilateral one."""
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    distances, angles = rkd.relations(student)
    torch.testing.assert_close(distances, torch.tensor([[0, 0.75, 1], [0.75, 0, 1.25], [1, 1.25, 0]]))
    assert [angles[0, 1, 2].item(), angles[1, 0, 2].item(), angles[2, 0, 1].item()] == pytest.approx([0, 0.6, 0.8])
    method = make(rkd, 2, student_dim=2, normalize=False)
    terms = method.terms(states(student), given(teacher))
    assert terms["distance"].item() == pytest.approx(0.125 / 9)
    assert terms["angle"].item() == pytest.approx(0.35 / 27)
    total = sum(method.weights[name] * term for name, term in terms.items())
    assert total.item() == pytest.approx(0.9953704)


def test_rkd_is_linear_for_large_differences():
    """Three points on a line, the other one in the middle: two angles turn by 180 degrees, the third from 0 to 180."""
    student, teacher = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [2.0], [1.0]])
    angle = make(rkd, 1, student_dim=1, normalize=False).terms(states(student), given(teacher))["angle"]
    assert angle.item() == pytest.approx(4 * (2 - 0.5) / 27)


def test_rkd_sees_shape_alone():
    points = normal(7, D)
    raw, scaled = make(rkd, 48, normalize=False), make(rkd, 48)
    wide = (3 * points + 6) @ rotation(48)[:D]
    assert sum(t.item() for t in raw.terms(states(points), given(wide)).values()) == pytest.approx(0, abs=1e-6)
    rescaled = points * np.random.default_rng(1).uniform(0.5, 2, size=(7, 1)).astype(np.float32)
    turned = points @ rotation(48)[:D]
    assert sum(t.item() for t in scaled.terms(states(rescaled), given(turned)).values()) == pytest.approx(0, abs=1e-6)
    assert sum(t.item() for t in scaled.terms(states(points), given(wide)).values()) > 1e-3  # a shift moves cosines


def test_rkd_has_derivatives_to_the_second_order_also_where_points_coincide():
    points = torch.as_tensor(normal(4, 3).astype(np.float64)).requires_grad_()
    teacher = torch.as_tensor(normal(4, 5, seed=1).astype(np.float64))
    method = make(rkd, 5, student_dim=3)

    def loss(x):
        terms = method.terms(StudentStates((x,)), given(teacher))
        return 25 * terms["distance"] + 50 * terms["angle"]

    assert torch.autograd.gradcheck(loss, points)
    assert torch.autograd.gradgradcheck(loss, points)
    same = points.detach()[[0, 0, 1, 1]].requires_grad_()
    (gradient,) = torch.autograd.grad(loss(same), same, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), same)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 1e3
    assert torch.isfinite(second).all()


def test_rkd_of_one_or_two_sentences_is_zero():
    for n in (1, 2):
        vectors = torch.as_tensor(normal(n, D)).requires_grad_()
        terms = make(rkd, 48).terms(StudentStates((vectors,)), given(normal(n, 48)))
        assert [t.item() for t in terms.values()] == pytest.approx([0, 0], abs=1e-7)
        sum(terms.values()).backward()
        assert torch.isfinite(vectors.grad).all()


def test_rkd_needs_a_weight():
    assert make(rkd, 48, weight_angle=0.0).weights == {"distance": 25.0, "angle": 0.0}
    with pytest.raises(ValueError, match="both weights of rkd are 0"):
        make(rkd, 48, weight_angle=0.0, weight_distance=0.0)


# ---- what every method promises


@every
def test_finite_loss_and_a_gradient_for_the_encoder(name, tiny):
    objective, data = tiny(name)
    objective.student.train()
    batch = data.batch(np.arange(4))
    total, terms = objective(batch)
    assert set(terms) == set(objective.method.weights)
    total.backward()
    norm = torch.stack([p.grad.norm() for p in objective.student.parameters() if p.grad is not None]).sum()
    assert torch.isfinite(total)
    assert torch.isfinite(norm)
    assert norm > 0
    assert not batch.teacher.requires_grad


@every
@pytest.mark.parametrize("copies", [1, 2, 5])
def test_one_sentence_two_and_copies_of_one(name, copies, tiny, tiny_texts):
    objective, data = tiny(name, [*tiny_texts[:38], *[tiny_texts[50]] * 5])
    for rows in (np.arange(copies), np.arange(38, 38 + copies)):
        objective.student.zero_grad()
        total, _ = objective(data.batch(rows))
        total.backward()
        assert torch.isfinite(total)
        assert all(torch.isfinite(p.grad).all() for p in objective.student.parameters() if p.grad is not None)


@every
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(name, pooling, tiny):
    objective, data = tiny(name, pooling=pooling)
    batch = data.batch(np.arange(8))
    expected = objective(batch)[0]
    wider = replace(batch, layout=Layout(batch.layout.lengths, batch.layout.longest + 9))
    torch.testing.assert_close(objective(wider)[0], expected, rtol=5e-6, atol=1e-6)
    objective.student.states = objective.student.states_padded
    objective.student._at_first_token = lambda pooling: False
    torch.testing.assert_close(objective(wider)[0], expected, rtol=1e-5, atol=1e-6)


@every
def test_the_order_of_the_batch_does_not_matter(name, tiny):
    objective, data = tiny(name)
    batch, order = data.batch(np.arange(9)), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    own = objective.states(batch)
    expected = objective.method.terms(own, batch)
    moved = replace(batch, teachers=(batch.teacher[order],))
    found = objective.method.terms(StudentStates(tuple(e[order] for e in own.layers)), moved)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@every
def test_row_loss_is_the_loss_before_the_mean(name, tiny):
    objective, data = tiny(name)
    batch = data.batch(np.arange(9))
    own = objective.states(batch)
    if name.startswith("rkd"):
        with pytest.raises(NotImplementedError):
            objective.method.row_loss(own, batch)
        return
    rows = objective.method.row_loss(own, batch)
    assert rows.shape == (9,)
    torch.testing.assert_close(rows.mean(), objective.total(own, batch)[0])


@every
def test_the_minimum_is_zero_and_is_reached_on_the_target(name):
    module, config, width = EVERY[name]
    method, teacher = make(module, width, **config), unit(normal(40, width))
    method.prepare(preparation(teacher, normal(40, D, seed=1)))
    batch = given(teacher)
    if module is rkd:
        student = teacher
    elif isinstance(method, (pca_target.PcaTarget, procrustes_target.ProcrustesTarget)):
        student = method.target(batch)
    elif len(method.heads):  # what the layer maps onto the teacher's vectors
        head = method.heads[0]
        teacher = teacher @ rotation(48) @ np.diag(np.arange(48) < D).astype(np.float32)  # within reach of the layer
        with torch.no_grad():
            head.weight.copy_(torch.eye(48)[:, :D])
            head.bias.zero_()
        student, batch = teacher[:, :D], given(teacher)
    else:
        student = teacher
    for term in method.terms(states(student), batch).values():
        assert term.item() == pytest.approx(0, abs=1e-6)


@every
def test_twenty_steps_of_adam_lower_the_loss(name, tiny):
    objective, data = tiny(name)
    batch = data.batch(np.arange(16))
    groups = objective.parameter_groups(1e-3, 0.0)
    optimizer = torch.optim.Adam(groups)
    first = objective(batch)[0].item()
    for _ in range(20):
        optimizer.zero_grad()
        objective(batch)[0].backward()
        optimizer.step()
    assert objective(batch)[0].item() < 0.9 * first


def test_cached_and_fresh_teacher_vectors_give_the_same_loss(tiny_encoder_folder, tiny_texts, tmp_path):
    texts = tiny_texts[:24]
    teacher = Encoder.load(tiny_encoder_folder("mpnet"), pooling="mean", normalize=True)
    student = Encoder.load(tiny_encoder_folder("bert"), pooling="mean").eval()
    cache = teacher_cache.build(tmp_path, {"teacher": "mpnet"}, texts, teacher.encode, shard_size=7)
    zeros = np.zeros(len(texts), np.int64)
    losses = {}
    for name in ("cosine", "pca_target", "procrustes_target", "leaf", "rkd"):
        for way, vectors in (
            ("cached", cache.vectors),
            ("fresh", lambda rows: teacher.encode([texts[r] for r in rows])),
        ):
            method = make(EVERY[name][0], teacher.dim)
            encoded = student.encode(texts)
            method.prepare(Preparation(len(texts), (vectors,), lambda rows, e=encoded: e[rows]))
            data = TrainingData(student.tokenize(texts), (vectors,), zeros, zeros)
            losses[name, way] = Objective(student, method)(data.batch(np.arange(8)))[0].item()
        assert losses[name, "cached"] == pytest.approx(losses[name, "fresh"], abs=1e-5)


def test_they_are_offered():
    names = {"cosine", "mse", "embed_distill", "leaf", "pca_target", "procrustes_target", "rkd", "static"}
    assert names <= set(methods.available())
    assert not {"regression", "heads", "base"} & set(methods.available())


# ---- through the stages

RUN = {"teacher": "tiny-mpnet", "student": "tiny", "corpus": "tiny", "max_sentences": 40, "device": "cpu", "epochs": 2}
RUN |= {"batch_size": 8, "lr": 1e-3, "pooling": "mean"}


@pytest.mark.parametrize("name", ["cosine", "mse", "embed_distill", "leaf", "pca_target", "procrustes_target", "rkd"])
def test_a_run_of_each_method(name, tmp_path, monkeypatch):
    """Trained with DISAM, which reads row_loss (RKD, which has none, with ASAM), saved and loaded."""
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    p = params.resolve("03_train", RUN | {"method": name, "optimizer": "asam" if name == "rkd" else "disam"})
    run = stages.train_run(p)
    rows, record = run.read_metrics(), run.read_record("train")
    assert all(np.isfinite(row["loss"]) for row in rows)
    kinds = [
        module["type"].split(".")[-1] for module in json.loads((run.folder / "model" / "modules.json").read_text())
    ]
    assert kinds == ["Transformer", "Pooling"] + ["Dense"] * (name == "leaf")
    assert record["output"] == ("projected" if name == "leaf" else "pooled")
    assert record["loaded_cosine"] > 0.99999
    assert stages.load_run_student(run).output_dim == 32
    if name in ("pca_target", "procrustes_target"):
        assert record["fitted"]["retained_energy"] == pytest.approx(1, abs=1e-5)  # 32 of 32 dimensions
    else:
        assert record["fitted"] == {}


def test_disam_says_that_rkd_has_no_loss_of_single_sentences(tmp_path, monkeypatch):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    with pytest.raises(TalasError, match="Rkd has no loss that is a mean over sentences"):
        stages.train_run(params.resolve("03_train", RUN | {"method": "rkd", "optimizer": "disam"}))


@pytest.mark.parametrize("name", ["procrustes_target", "rkd", "embed_distill"])
def test_sharpness_of_a_finished_run(name, tmp_path, monkeypatch):
    """Second derivatives exist, and a fitted target is found again: for the trained and for the untrained student."""
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path))
    run = stages.train_run(params.resolve("03_train", RUN | {"method": name, "optimizer": "adamw", "epochs": 1}))
    sharp = {"sharpness_batches": 1, "sharpness_batch_size": 8, "sharpness_max_iter": 6, "run": run.id}
    record = stage.sharpness_run(run, params.resolve("05_sharpness", sharp))
    assert np.isfinite([record["lambda_max"], record["untrained"]["lambda_max"]]).all()


def test_a_teacher_of_another_width_is_answered_with_the_methods_that_take_it(tmp_path, monkeypatch, tiny_texts):
    monkeypatch.setenv("TALAS_OUTPUTS", str(tmp_path / "out"))
    folder = build_tiny("mpnet", tmp_path / "wide", tiny_texts, dim=48)
    values = RUN | {"teacher": str(folder), "method": "cosine", "optimizer": "adamw"}
    with pytest.raises(TalasError, match=r"does not fit student tiny: cosine compares .* 32 .* 48\. Use pca_target"):
        stages.train_run(params.resolve("03_train", values))
    run = stages.train_run(params.resolve("03_train", values | {"method": "pca_target"}))
    assert 0.5 < run.read_record("train")["fitted"]["retained_energy"] < 1
    leaf_run = stages.train_run(params.resolve("03_train", values | {"method": "leaf"}))
    assert stages.load_run_student(leaf_run).output_dim == 48
