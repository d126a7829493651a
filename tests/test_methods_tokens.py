"""The methods that compare tokens (EMO, DSKD, CDM, DistillMoE): numbers worked by hand, limits, and what all must keep."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
import yaml

from talas_lib import experts, losses, methods, paths, token_losses
from talas_lib.alignment import align, cka_loss, sinkhorn
from talas_lib.encoders import Encoder
from talas_lib.methods.base import Batch, Needs, Objective, StudentStates, TeacherTokens
from talas_lib.packed import Layout

# every method as released, its strong variant, and each branch that changes what is computed
VARIANTS = {
    "emo": ("emo", {}),
    "emo-strong": ("emo", {"cka_reduction": "mean", "weight_cka": 1.0, "importance": "received-no-first"}),
    "emo-uniform": ("emo", {"importance": "uniform", "teacher_block": -2}),
    "dskd": ("dskd", {}),
    "dskd-strong": ("dskd", {"reduction": "vector", "detach_projected_teacher": False}),
    "cdm": ("cdm", {}),
    "cdm-strong": ("cdm", {"align": "pool", "reduction": "vector", "weight_token": 0.5}),
    "moe": ("distill_moe", {"hidden": 16}),
    "moe-cache-only": ("distill_moe", {"hidden": 16, "token_weight": 0.0}),
    "moe-cls": ("distill_moe", {"hidden": 16, "output": "cls"}),
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)

S, T = 12, 16  # widths of student and teacher


def method_of(variant, seed=0, student_dim=S, teacher_dim=T, **changes):
    name, given = VARIANTS[variant]
    config = methods.config_class(name)(**{**given, **changes})
    generator = torch.Generator().manual_seed(seed)
    return methods.method_class(name)(
        config, student_dim=student_dim, teacher_dims=(teacher_dim,), num_layers=3, generator=generator
    )


# ---- batches by hand


@dataclass(frozen=True)
class Case:
    """A batch with the student's states, as an Objective would hand them to a method."""

    student: StudentStates
    batch: Batch

    def loss(self, method):
        terms = method.terms(self.student, self.batch)
        return sum(method.weights[name] * term for name, term in terms.items())


def make_case(sentences=5, *, seed=0, lengths=(8, 14), copies=False, pairs="diagonal", special="ends"):
    """Random states of sentences of random lengths. copies: all sentences equal; pairs: diagonal, path (every token of both
    sides in one) or none; special: the two ends of a sentence, or all of it."""
    generator = torch.Generator().manual_seed(seed)
    own, other = (torch.randint(*lengths, (sentences,), generator=generator) for _ in range(2))
    if copies:
        own, other = own[:1].expand(sentences).clone(), other[:1].expand(sentences).clone()

    def random(*shape):
        x = torch.randn(*shape, generator=generator)
        return x[:1].expand(shape).clone() if copies else x

    sides = []
    for lens, dim in ((own, S), (other, T)):
        longest = int(lens.max())
        valid = torch.arange(longest)[None] < lens[:, None]
        states = {layer: random(sentences, longest, dim) * valid[..., None] for layer in (-1, -2)}
        scores = {block: 3 * random(sentences, longest, longest) for block in (-1, -2)}
        attention = {b: token_losses.masked_softmax(x, valid[:, None]) * valid[..., None] for b, x in scores.items()}
        ends = (torch.arange(longest)[None] == 0) | (torch.arange(longest)[None] == lens[:, None] - 1)
        sides.append((valid, valid & (ends | (special == "all")), states, attention))
    (_, own_special, own_states, own_attention), (valid, marks, states, attention) = sides
    pooled = random(sentences, S)
    student = StudentStates((pooled,), pooled + 0.3 * random(sentences, S), own_states, own_attention)
    ids = torch.cat([torch.randint(5, 40, (int(own[0]),), generator=generator)] * sentences)
    if not copies:
        ids = torch.randint(5, 40, (int(own.sum()),), generator=generator)
    batch = Batch(
        rows=torch.arange(sentences),
        ids=ids,
        layout=Layout.of(own),
        teachers=(F.normalize(random(sentences, T), dim=-1),),
        text_ids=torch.zeros(sentences, dtype=torch.int64) if copies else torch.arange(sentences),
        sources=torch.arange(sentences) % 2,
        special=own_special,
        tokens=TeacherTokens(valid, marks, states, attention),
        pairs=_pairs(own.tolist(), other.tolist(), pairs),
    )
    return Case(student, batch)


def _pairs(own, other, kind):
    found = []
    for n, (a, b) in enumerate(zip(own, other, strict=True)):
        words = min(a, b) - 2
        found += [(n, 1 + i, 1 + i) for i in range(words)]
        if kind == "path":
            found += [(n, i, words) for i in range(words + 1, a - 1)] + [(n, words, j) for j in range(words + 1, b - 1)]
    return torch.tensor([] if kind == "none" else found, dtype=torch.int64).view(-1, 3)


def with_pads(case, student=0, teacher=0):
    """The same batch, padded further on the right."""
    layout = replace(case.batch.layout, longest=case.batch.layout.longest + student)

    def wide(x, by, dims):
        return F.pad(x, (*(0, 0) * (x.dim() - 1 - dims), *(0, by) * dims))

    tokens = case.batch.tokens
    own = StudentStates(
        case.student.layers,
        case.student.second,
        {k: wide(x, student, 1) for k, x in case.student.tokens.items()},
        {k: wide(x, student, 2) for k, x in case.student.attention.items()},
    )
    other = TeacherTokens(
        wide(tokens.valid, teacher, 1),
        wide(tokens.special, teacher, 1),
        {k: wide(x, teacher, 1) for k, x in tokens.states.items()},
        {k: wide(x, teacher, 2) for k, x in tokens.attention.items()},
    )
    return Case(own, replace(case.batch, layout=layout, special=wide(case.batch.special, student, 1), tokens=other))


def permuted(case, order):
    """The same sentences in another order."""
    batch, own, tokens = case.batch, case.student, case.batch.tokens
    where = torch.argsort(order)
    pairs = batch.pairs.clone()
    pairs[:, 0] = where[pairs[:, 0]]
    layout = Layout.of(batch.layout.lengths[order])
    changed = replace(
        batch,
        rows=batch.rows[order],
        ids=layout.unpad(batch.layout.pad(batch.ids)[order]),
        layout=layout,
        teachers=(batch.teacher[order],),
        text_ids=batch.text_ids[order],
        sources=batch.sources[order],
        special=batch.special[order],
        tokens=TeacherTokens(
            tokens.valid[order],
            tokens.special[order],
            {k: x[order] for k, x in tokens.states.items()},
            {k: x[order] for k, x in tokens.attention.items()},
        ),
        pairs=pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(3))],
    )
    states = StudentStates(
        tuple(e[order] for e in own.layers),
        own.second[order],
        {k: x[order] for k, x in own.tokens.items()},
        {k: x[order] for k, x in own.attention.items()},
    )
    return Case(states, changed)


def leaves(case):
    """The student's tensors that a gradient can reach, by name."""
    own = case.student
    named = {"pooled": own.pooled, "second": own.second}
    named |= {f"tokens{k}": x for k, x in own.tokens.items()} | {f"attention{k}": x for k, x in own.attention.items()}
    return {name: x.requires_grad_() for name, x in named.items()}


# ---- what every method must keep


def reads(variant):
    """Names of the student's tensors that the method declares to read, `leaves`' names."""
    name, given = VARIANTS[variant]
    needs = methods.needs(name, methods.config_class(name)(**given))
    named = {"pooled", "second"} | {f"tokens{k}" for k in needs.student_tokens}
    return named | {f"attention{k}" for k in needs.student_attention}


@each_variant
def test_finite_loss_and_gradients_into_all_that_is_read(variant):
    case, method = make_case(4), method_of(variant)
    own = leaves(case)
    loss = case.loss(method)
    loss.backward()
    assert torch.isfinite(loss)
    assert method.terms(case.student, case.batch).keys() == method.weights.keys()
    reached = {name for name, x in own.items() if x.grad is not None and x.grad.abs().max() > 0}
    assert reached == reads(variant)
    assert all(torch.isfinite(x.grad).all() for x in own.values() if x.grad is not None)
    heads = {name for name, p in method.heads.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    assert heads == ({"down.weight"} if variant == "dskd" else set())  # the released P_ts stays random


@each_variant
def test_teacher_tensors_never_require_a_gradient(variant):
    case, method = make_case(4), method_of(variant)
    leaves(case)
    case.loss(method).backward()
    tokens = case.batch.tokens
    held = [*case.batch.teachers, *tokens.states.values(), *tokens.attention.values()]
    assert not any(x.requires_grad or x.grad is not None for x in held)


EDGES = {
    "one sentence": {"sentences": 1},
    "two sentences": {"sentences": 2},
    "short sentences": {"sentences": 3, "lengths": (3, 5)},
    "single tokens": {"sentences": 2, "lengths": (1, 2), "pairs": "none"},
    "duplicates": {"sentences": 4, "copies": True},
    "nothing aligned": {"pairs": "none"},
    "all special": {"special": "all", "pairs": "none"},
    "one sentence of specials": {"sentences": 1, "special": "all", "pairs": "none"},
}


@each_variant
@pytest.mark.parametrize("edge", EDGES)
def test_no_nan_in_loss_gradient_or_second_derivative(variant, edge):
    case, method = make_case(**EDGES[edge]), method_of(variant)
    own = leaves(case)
    loss = case.loss(method)
    assert torch.isfinite(loss)
    inputs = [*own.values(), *method.heads.parameters()]
    gradients = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True)
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)
    slope = sum(g.square().sum() for g in gradients if g is not None)
    second = torch.autograd.grad(slope, inputs, allow_unused=True)
    assert all(torch.isfinite(g).all() for g in second if g is not None)


@pytest.mark.parametrize(
    ("variant", "terms"), [("emo", {"cka"}), ("cdm", {"token"}), ("cdm-strong", {"token"}), ("dskd", set())]
)
def test_terms_without_any_token_are_zero_on_the_graph(variant, terms):
    case, method = make_case(pairs="none", special="all"), method_of(variant)
    own = leaves(case)
    values = method.terms(case.student, case.batch)
    terms = terms or {"token_up", "token_down"}
    for name in terms:
        assert values[name].item() == 0
        assert values[name].grad_fn is not None
    sum(values[name] for name in terms).backward()
    assert all(x.grad is None or x.grad.abs().max() == 0 for x in own.values())


@each_variant
@pytest.mark.parametrize(("student", "teacher"), [(3, 0), (0, 4), (2, 5)])
def test_padding_changes_nothing(variant, student, teacher):
    case, method = make_case(pairs="path"), method_of(variant)
    method.heads.eval()
    assert case.loss(method).item() == pytest.approx(with_pads(case, student, teacher).loss(method).item(), abs=1e-6)


@each_variant
def test_the_order_of_sentences_changes_nothing(variant):
    case, method = make_case(6, pairs="path"), method_of(variant)
    method.heads.eval()
    order = torch.tensor([4, 2, 5, 0, 3, 1])
    other = permuted(case, order)
    assert case.loss(method).item() == pytest.approx(other.loss(method).item(), rel=1e-5)
    torch.testing.assert_close(
        method.row_loss(other.student, other.batch), method.row_loss(case.student, case.batch)[order]
    )


@each_variant
def test_row_loss_has_the_mean_of_the_additive_terms(variant):
    case, method = make_case(pairs="path"), method_of(variant)
    method.heads.eval()
    terms = method.terms(case.student, case.batch)
    additive = [name for name in terms if name not in ("simcse", "cka")]
    expected = sum(method.weights[name] * terms[name] for name in additive)
    rows = method.row_loss(case.student, case.batch)
    assert rows.shape == (5,)
    torch.testing.assert_close(rows.mean(), expected)


@pytest.mark.parametrize("name", ["emo", "dskd", "cdm", "distill_moe"])
def test_the_file_of_values_is_the_default_and_its_variants_are_accepted(name):
    text = (paths.params_dir() / "methods" / f"{name}.yaml").read_text()
    config = methods.config_class(name)
    assert config(**yaml.safe_load(text)) == config()
    variants = re.findall(r"-y '(method_params: .*)'", text)
    assert variants
    for given in variants:
        config(**yaml.safe_load(given)["method_params"])


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("emo", {}, Needs((1, 1), (-1,), (-1,), (-1,), (-1,), "mined")),
        ("emo", {"weight_cka": 0.0}, Needs((1, 1), (-1,), (-1,), (-1,), (), "mined")),
        ("emo", {"weight_ot": 0.0, "importance": "uniform"}, Needs((1, 1), (), (-1,), (), (-1,), "mined")),
        ("emo", {"teacher_block": -5}, Needs((1, 1), (-1,), (-1, -5), (-1,), (-1,), "mined")),
        ("emo", {"kd_rate": 0.0}, Needs()),
        ("dskd", {}, Needs((1, 1), (-1,), (), (-1,))),
        ("dskd", {"weight_token": 0.0}, Needs()),
        ("cdm", {}, Needs((1, 1), (-1,), (), (-1,), (), "strict")),
        ("cdm", {"align": "pool"}, Needs((1, 1), (-1,), (), (-1,), (), "dtw")),
        ("cdm", {"weight_token": 0.0}, Needs()),
        ("distill_moe", {}, Needs((1, 1), (-1, -2), (), (-1, -2))),
        ("distill_moe", {"token_weight": 0.0}, Needs()),
    ],
)
def test_needs_follow_the_configuration(name, given, expected):
    assert methods.needs(name, methods.config_class(name)(**given)) == expected


def test_terms_of_weight_zero_are_left_out():
    case = make_case()
    for variant, changes, left in [
        ("emo", {"weight_cka": 0.0}, {"simcse", "ot"}),
        ("emo", {"kd_rate": 1.0, "weight_ot": 0.0}, {"cka"}),
        ("dskd", {"weight_token": 0.0, "weight_simcse": 0.0}, {"sentence_up", "sentence_down"}),
        ("cdm", {"weight_token": 0.0}, {"simcse", "sentence"}),
        ("moe", {"moe_weight": 0.0}, {"simcse", "cka"}),
    ]:
        method = method_of(variant, **changes)
        assert set(method.weights) == set(method.terms(case.student, case.batch)) == left
        assert method.views == (2 if "simcse" in left else 1)
    for variant, changes in [
        ("emo", {"weight_ot": 0.0}),
        ("moe", {"moe_weight": 0.0}),
        ("dskd", {"weight_token": 0.0, "weight_sentence": 0.0}),
        ("cdm", {"weight_token": 0.0, "weight_sentence": 0.0}),
    ]:
        with pytest.raises(NotImplementedError):
            method_of(variant, **changes).row_loss(case.student, case.batch)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("emo", {"simcse": 0.5, "cka": 0.05, "ot": 0.5}),
        ("dskd", {"simcse": 1, "sentence_up": 1, "sentence_down": 1, "token_up": 1, "token_down": 1}),
        ("cdm", {"simcse": 0.5, "token": 50, "sentence": 1}),
        ("moe", {"simcse": 0.5, "experts": 0.35, "min": 1.75, "div": 0.35, "cka": 0.15}),
    ],
)
def test_released_weights(variant, expected):
    assert method_of(variant).weights == pytest.approx(expected)


def test_impossible_configurations_are_refused():
    with pytest.raises(ValueError, match="all weights of EMO"):
        method_of("emo", kd_rate=1.0, weight_cka=0.0, weight_ot=0.0)
    for variant in ("dskd", "cdm"):
        with pytest.raises(ValueError, match="all weights"):
            method_of(variant, weight_simcse=0.0, weight_token=0.0, weight_sentence=0.0)
    with pytest.raises(ValueError, match="all weights of DistillMoE"):
        method_of("moe", kd_rate=1.0, moe_weight=0.0, token_weight=0.0)
    config = methods.config_class("distill_moe")()
    sizes = {"student_dim": S, "teacher_dims": (T,), "num_layers": 1, "generator": torch.Generator()}
    with pytest.raises(ValueError, match=r"last 2 blocks, and the student has 1"):
        methods.method_class("distill_moe")(config, **sizes)


@each_variant
def test_initial_values_come_from_the_generator_alone(variant):
    before = torch.get_rng_state()
    first, again, other = (method_of(variant, seed=seed).heads.state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not any(torch.equal(first[k], other[k]) for k in first)


@each_variant
def test_nothing_is_random_in_evaluation_mode(variant):
    case, method = make_case(), method_of(variant)
    method.heads.eval()
    before = torch.get_rng_state()
    assert case.loss(method).item() == case.loss(method).item()
    assert torch.equal(before, torch.get_rng_state())


# ---- EMO


def test_cka_by_hand_and_its_invariances():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [0.0], [-1.0]], dtype=torch.float64)
    assert cka_loss(x, y).item() == pytest.approx(0.110860, abs=1e-6)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    assert cka_loss(x, 3 * x @ turn).item() == pytest.approx(0, abs=1e-7)


def test_attention_cka_by_hand():
    """One sentence with nine pairs: three rows are compared, here those of the worked example."""
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    student, teacher = torch.zeros(1, 9, 9), torch.zeros(1, 9, 9)
    student[0, [2, 5, 7], :2] = x
    teacher[0, [3, 6, 8], 0] = torch.tensor([1.0, 0.0, -1.0])
    important = torch.full((1, 9), 0.01)
    important[0, [3, 6, 8]] = torch.tensor([0.3, 0.4, 0.2])
    own, other = [2, 5, 7, 0, 1, 3, 4, 6, 8], [3, 6, 8, 0, 1, 2, 4, 5, 7]
    pairs = torch.tensor([(0, i, j) for i, j in zip(own, other, strict=True)])
    assert token_losses.attention_cka(student, teacher, pairs, important).item() == pytest.approx(0.110860, abs=1e-6)


def test_the_most_important_third_of_the_pairs():
    importance = torch.tensor([[0.1, 0.5, 0.2, 0.15, 0.05, 0.0, 0.0], [1 / 7] * 7, [1 / 7] * 7])
    pairs = torch.tensor(
        [(1, j, j) for j in range(5)] + [(0, 6 - j, j) for j in range(7)] + [(2, j, j) for j in range(6)]
    )
    sentences, own, other, mask = token_losses.top_third(pairs, importance)
    assert sentences.tolist() == [0, 2]  # five pairs would give one row
    assert other.tolist() == [[1, 2], [0, 1]]  # equal importance: the first
    assert own.tolist() == [[5, 4], [0, 1]]
    assert mask.all()
    longer = torch.cat([pairs, torch.tensor([(2, 6, j) for j in (6, 6, 6)])])
    sentences, own, other, mask = token_losses.top_third(longer, importance)
    assert mask.tolist() == [[True, True, False], [True, True, True]]


def test_sums_and_means_of_cka():
    case = make_case(5)
    by_sentence = token_losses.attention_cka(
        case.student.attention[-1],
        case.batch.tokens.attention[-1],
        case.batch.pairs,
        token_losses.token_importance(case.batch.tokens.attention[-1], case.batch.tokens.valid),
    )
    assert by_sentence.shape == (5,)
    values = {
        how: method_of("emo", cka_reduction=how).terms(case.student, case.batch)["cka"] for how in ("sum", "mean")
    }
    torch.testing.assert_close(values["sum"], by_sentence.sum())
    torch.testing.assert_close(values["mean"], by_sentence.mean())


def test_cka_of_a_sentence_does_not_depend_on_its_batch():
    case = make_case(5, lengths=(8, 24))
    tokens, own = case.batch.tokens, case.student.attention[-1]
    importance = token_losses.token_importance(tokens.attention[-1], tokens.valid)
    together = token_losses.attention_cka(own, tokens.attention[-1], case.batch.pairs, importance)
    sizes = set()
    for n in range(5):
        pairs = case.batch.pairs[case.batch.pairs[:, 0] == n]
        pairs = pairs[importance[n, pairs[:, 2]].argsort(descending=True)][: len(pairs) // 3]
        alone = cka_loss(own[n, pairs[:, 1]].double(), tokens.attention[-1][n, pairs[:, 2]].double())
        assert together[n].item() == pytest.approx(alone.item(), abs=1e-6)
        sizes.add(len(pairs))
    assert len(sizes) > 1


def test_importance_by_hand():
    attention = torch.tensor([[[0.5, 0.5, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 0.0]]])
    valid = torch.tensor([[True, True, False]])
    received = token_losses.token_importance(attention, valid)
    assert received[0].tolist() == pytest.approx([1 / (1 + math.exp(-0.8)), 1 / (1 + math.exp(0.8)), 0])
    assert token_losses.token_importance(None, valid, "uniform").tolist() == [[0.5, 0.5, 0]]
    assert token_losses.token_importance(attention, valid, "received-no-first").tolist() == [[0, 1, 0]]
    alone = torch.tensor([[True, False, False]])
    assert token_losses.token_importance(attention, alone, "received-no-first").tolist() == [[1, 0, 0]]
    with pytest.raises(ValueError, match="'entropy' is not one of received"):
        token_losses.token_importance(attention, valid, "entropy")


def test_student_masses_by_hand():
    """Token 1 is paired with the teacher's token 2, and occurs again at 3; token 2 is unpaired, 4 is padding."""
    importance = torch.tensor([[0.2, 0.1, 0.7, 0.0]])
    valid = torch.tensor([[True, True, True, True, False]])
    ids = torch.tensor([[9, 4, 6, 4, 0]])
    masses = token_losses.student_masses(importance, torch.tensor([[0, 1, 2], [0, 0, 0]]), valid, ids)
    scores = torch.tensor([[0.2, 0.7, 0.1, 0.7]])
    torch.testing.assert_close(masses[:, :4], scores.softmax(-1))
    assert masses[0, 4] == 0
    nothing = token_losses.student_masses(importance, torch.zeros(0, 3, dtype=torch.int64), valid, ids)
    assert nothing[0].tolist() == pytest.approx([0.25, 0.25, 0.25, 0.25, 0])


def test_transport_cost_by_hand():
    """s . t / sqrt(4) is 2 and 0 for two teacher tokens; the third is padding."""
    student = torch.tensor([[[2.0, 0.0, 0.0, 0.0]]])
    teacher = torch.tensor([[[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0]]])
    cost = token_losses.transport_cost(student, teacher, torch.tensor([[True, True, False]]))
    assert cost[0, 0].tolist() == pytest.approx([1 - 1 / (1 + math.exp(-2)), 1 - 1 / (1 + math.exp(2)), 1])


@pytest.mark.parametrize(
    ("a", "b", "cost", "expected"),
    [
        ((0.5, 0.5), (0.5, 0.5), [[0.0, 1.0], [1.0, 0.0]], 4.53979e-5),
        ((0.7, 0.3), (0.5, 0.5), [[0.0, 1.0], [1.0, 0.0]], 0.2),
        ((0.7, 0.3), (0.1, 0.9), [[0.75, 0.75], [0.75, 0.75]], 0.75),
    ],
)
def test_transport_by_hand(a, b, cost, expected):
    a, b, cost = (torch.tensor([x], dtype=torch.float64) for x in (a, b, cost))
    assert token_losses.transport_loss(cost, a, b).item() == pytest.approx(expected, rel=1e-4)


def test_transport_marginals_order_of_tokens_and_padding():
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(3, n, 6, generator=generator, dtype=torch.float64) for n in (5, 7)]
    masses = [torch.rand(3, n, generator=generator, dtype=torch.float64).softmax(-1) for n in (5, 7)]
    cost = token_losses.transport_cost(*states, torch.ones(3, 7, dtype=torch.bool))
    torch.testing.assert_close(cost.sum(2), torch.full((3, 5), 6.0, dtype=torch.float64))
    plan = sinkhorn(cost, *masses)
    torch.testing.assert_close(plan.sum(2), masses[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(plan.sum(1), masses[1], atol=1e-6, rtol=0)
    loss = token_losses.transport_loss(cost, *masses)
    turn = torch.randperm(7, generator=generator)
    moved = token_losses.transport_loss(cost[:, :, turn], masses[0], masses[1][:, turn])
    torch.testing.assert_close(moved, loss)
    wide = F.pad(cost, (0, 2, 0, 1), value=5.0)
    torch.testing.assert_close(
        token_losses.transport_loss(wide, F.pad(masses[0], (0, 1)), F.pad(masses[1], (0, 2))), loss
    )


def test_emo_is_least_where_tokens_and_attention_agree():
    case = make_case(3, lengths=(9, 10))
    method = method_of("emo", importance="uniform", teacher_dim=S)
    with torch.no_grad():
        method.heads[0].weight.copy_(torch.eye(S))
    states = 40 * torch.eye(9, S).expand(3, 9, S)
    tokens = replace(
        case.batch.tokens,
        states={-1: states},
        attention={-1: case.student.attention[-1]},
        valid=case.batch.layout.valid,
    )
    agreeing = replace(case.student, tokens={-1: states})
    pairs = torch.tensor([(n, i, i) for n in range(3) for i in range(9)])
    terms = method.terms(agreeing, replace(case.batch, tokens=tokens, pairs=pairs))
    assert terms["cka"].item() == pytest.approx(0, abs=1e-6)
    assert 0 <= terms["ot"].item() < 1e-3  # every token goes to its own, but for the entropy
    assert method.terms(case.student, replace(case.batch, tokens=tokens, pairs=pairs))["ot"] > 0.1


# ---- DSKD


def test_the_mean_over_dimensions_is_one_minus_cosine_twice_over_d():
    generator = torch.Generator().manual_seed(0)
    x, y = (F.normalize(torch.randn(6, 1024, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2))
    cosine = (x * y).sum(-1)
    torch.testing.assert_close(token_losses.unit_error(x, y), 2 * (1 - cosine) / 1024)
    torch.testing.assert_close(token_losses.unit_error(x, y, "vector"), 2 * (1 - cosine))
    torch.testing.assert_close(token_losses.unit_error(2 * x, 0.3 * y), token_losses.unit_error(x, y))
    assert token_losses.unit_error(x, -x, "vector").amax().item() == pytest.approx(4)
    with pytest.raises(ValueError, match="'sum' is not one of mean_d, vector"):
        token_losses.unit_error(x, y, "sum")


def test_errors_of_cells_are_those_of_the_cells_cut_out():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    cells = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    rows = token_losses.errors_of_cells(x, y, cells)
    cut = token_losses.by_sentence(token_losses.unit_error(x[cells], y[cells]), cells.nonzero()[:, 0], 3)
    torch.testing.assert_close(rows, cut)
    weights = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(r @ weights, (x, y), retain_graph=True) for r in (rows, cut))
    torch.testing.assert_close(ours, theirs)
    assert (ours[0][~cells] == 0).all()
    none = token_losses.errors_of_cells(x, y, torch.zeros_like(cells))
    assert (none == 0).all()
    assert all((g == 0).all() for g in torch.autograd.grad(none.sum(), (x, y)))


def test_cross_attention_with_one_key_and_in_any_order():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, *shape, generator=generator) for shape in ((4, 3), (5, 3), (5, 6)))
    one = torch.tensor([[True] + [False] * 4] * 2)
    out = token_losses.cross_attention(q, k, v, one)
    torch.testing.assert_close(out, v[:, :1].expand(2, 4, 6))
    valid = torch.tensor([[True] * 5, [True, True, False, True, False]])
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(
        token_losses.cross_attention(q, k[:, order], v[:, order], valid[:, order]),
        token_losses.cross_attention(q, k, v, valid),
    )


def test_cross_attention_by_hand():
    """q . k / sqrt(4) is 2 and 0."""
    query, key = torch.tensor([[[2.0, 0.0, 0.0, 0.0]]]), torch.tensor([[[2.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]])
    value = torch.tensor([[[1.0], [0.0]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    assert token_losses.cross_attention(query, key, value, valid).item() == pytest.approx(1 / (1 + math.exp(-2)))


def test_dskd_sentence_terms_by_hand():
    """e = (1, 0), t = (0.6, 0.8), identity maps: cosine 0.6, MSE 2 * 0.4 / 2 = 0.4, vector 0.8."""
    case = make_case(1)
    states = replace(case.student, layers=(torch.tensor([[1.0, 0.0]]),))
    batch = replace(case.batch, teachers=(torch.tensor([[0.6, 0.8]]),))
    for reduction, expected in (("mean_d", 0.4), ("vector", 0.8)):
        method = method_of(
            "dskd", student_dim=2, teacher_dim=2, weight_token=0.0, weight_simcse=0.0, reduction=reduction
        )
        with torch.no_grad():
            for head in method.heads.values():
                head.weight.copy_(torch.eye(2))
        terms = method.terms(states, batch)
        assert [terms["sentence_up"].item(), terms["sentence_down"].item()] == pytest.approx([expected] * 2)


def dskd_of_equal_widths(**changes):
    """Identity maps, and attention so sharp that each token finds its own among orthogonal ones."""
    method = method_of("dskd", teacher_dim=S, **changes)
    with torch.no_grad():
        for name, head in method.heads.items():
            head.weight.copy_(torch.eye(S) * (100 if "query" in name else 1))
    return method


def test_dskd_is_zero_where_student_and_teacher_agree():
    case = make_case(4, lengths=(9, 10))
    states = torch.eye(9, S).expand(4, 9, S)
    tokens = replace(case.batch.tokens, states={-1: states}, valid=case.batch.layout.valid)
    batch = replace(case.batch, teachers=(case.student.pooled,), tokens=tokens)
    terms = dskd_of_equal_widths().terms(replace(case.student, tokens={-1: states}), batch)
    assert terms.keys() == {"simcse", "sentence_up", "sentence_down", "token_up", "token_down"}
    for name in terms.keys() - {"simcse"}:
        assert terms[name].item() == pytest.approx(0, abs=1e-12)


def test_dskd_sees_directions_only_and_words_only():
    case = make_case(4)
    method = method_of("dskd-strong")
    with torch.no_grad():  # attention that does not look at the states: only the compared sides change
        method.heads["down_query"].weight.zero_()
        method.heads["up_key"].weight.zero_()
    before = method.terms(case.student, case.batch)
    doubled = replace(case.student, tokens={-1: 2 * case.student.tokens[-1]})
    after = method.terms(doubled, case.batch)
    for name in before:
        torch.testing.assert_close(after[name], before[name])
    moved = case.student.tokens[-1].clone()
    moved[:, 0] += torch.randn(4, S, generator=torch.Generator().manual_seed(1))  # a special token
    after = method.terms(replace(case.student, tokens={-1: moved}), case.batch)
    torch.testing.assert_close(after["token_down"], before["token_down"])
    assert after["token_up"] != before["token_up"]  # as a key it counts


def test_only_the_strong_dskd_trains_the_projection_of_the_teacher():
    case = make_case(4)
    leaves(case)
    for detach in (True, False):
        method = method_of("dskd", detach_projected_teacher=detach)
        method.terms(case.student, case.batch)["sentence_down"].backward()
        assert (method.heads["down"].weight.grad is None) == detach


# ---- CDM


def test_pooled_teacher_states_by_hand():
    """Student (playing, chess), teacher (play, ing, chess): playing gets the mean of play and ing."""
    states = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]])
    path = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 2]])
    place, target = token_losses.averaged_teacher(path, states, 2)
    assert place.tolist() == [[0, 0], [0, 1]]
    assert target.tolist() == [[0.5, 0.5], [3, 4]]
    ones = torch.ones(3, 7, 1)  # the weights of a mean of ones sum to 1
    case = make_case(3, lengths=(6, 8), pairs="path")
    assert (token_losses.averaged_teacher(case.batch.pairs, ones, 8)[1] == 1).all()


def test_cdm_by_hand():
    """Two aligned tokens with cosines 0.6 and 1 in two dimensions: mean of 0.4 and 0, whatever sentence they are in."""
    method = method_of("cdm", student_dim=2, teacher_dim=2, weight_simcse=0.0)
    with torch.no_grad():
        method.heads[0].weight.copy_(torch.eye(2))
    case = make_case(2, lengths=(3, 4))
    own, other = torch.zeros(2, 3, 2), torch.zeros(2, 3, 2)
    own[0, 1], own[0, 2] = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 3.0])
    other[0, 1], other[0, 2] = torch.tensor([0.6, 0.8]), torch.tensor([0.0, 0.5])
    batch = replace(
        case.batch,
        teachers=(torch.tensor([[1.0, 0.0], [0.0, 1.0]]),),
        tokens=replace(case.batch.tokens, states={-1: other}),
        pairs=torch.tensor([[0, 1, 1], [0, 2, 2]]),
    )
    pooled = torch.tensor([[5.0, 0.0], [1.0, 0.0]])  # cosines 1 and 0: mean of 0 and 2 / 2
    states = StudentStates((pooled,), pooled, {-1: own})
    terms = method.terms(states, batch)
    assert terms["token"].item() == pytest.approx(0.2)
    assert terms["sentence"].item() == pytest.approx(0.5)
    assert method.row_loss(states, batch).tolist() == pytest.approx([50 * 0.4, 1.0])


def test_pooled_cdm_compares_with_the_mean_of_the_teacher_states():
    method = method_of("cdm", student_dim=2, teacher_dim=2, align="pool", reduction="vector")
    with torch.no_grad():
        method.heads[0].weight.copy_(torch.eye(2))
    case = make_case(1, lengths=(3, 4))
    own = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]])
    other = torch.tensor([[[4.0, 0.0], [0.0, 4.0], [0.6, 0.8]]])
    tokens = replace(case.batch.tokens, states={-1: other})
    path = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 2]])
    batch = replace(case.batch, teachers=(torch.ones(1, 2),), tokens=tokens, pairs=path)
    pooled = torch.ones(1, 2)
    token = method.terms(StudentStates((pooled,), pooled, {-1: own}), batch)["token"]
    assert token.item() == pytest.approx((0 + 2 * 0.4) / 2)  # (1, 1) against (2, 2), (1, 0) against (0.6, 0.8)


@pytest.mark.parametrize("how", ["strict", "pool"])
def test_cdm_is_zero_where_student_and_teacher_agree(how):
    case = make_case(4, lengths=(7, 8))
    method = method_of("cdm", teacher_dim=S, align=how)
    with torch.no_grad():
        method.heads[0].weight.copy_(torch.eye(S))
    tokens = replace(case.batch.tokens, states={-1: case.student.tokens[-1]})
    terms = method.terms(case.student, replace(case.batch, teachers=(case.student.pooled,), tokens=tokens))
    assert [terms["token"].item(), terms["sentence"].item()] == pytest.approx([0, 0], abs=1e-12)


def test_strict_and_pooled_cdm_agree_on_one_to_one_pairs():
    case = make_case(4)
    strict, pool = (method_of("cdm", align=how).terms(case.student, case.batch)["token"] for how in ("strict", "pool"))
    torch.testing.assert_close(strict, pool)


# ---- DistillMoE


def test_router_losses_by_hand():
    shares = torch.tensor([[0.6, 0.3, 0.1], [0.34, 0.33, 0.33]])
    assert experts.load_rows(shares, 0.25).mean().item() == pytest.approx(0.01125)
    assert experts.load_rows(shares, 0.1).abs().max() == 0
    assert (shares[0] * torch.tensor([0.2, 1.0, 0.05])).sum().item() == pytest.approx(0.425)


def test_pairwise_loss_by_hand():
    """Three sentences; the first has cosines 0.9 and 0.5 at the teacher, 0.6 and 0.45 at the student."""

    def from_cosines(a, b):
        matrix = torch.tensor([[1.0, a, b], [a, 1.0, 0.5], [b, 0.5, 1.0]], dtype=torch.float64)
        return torch.linalg.cholesky(matrix)

    teacher, student = from_cosines(0.9, 0.5), from_cosines(0.6, 0.45)
    rows = experts.pairwise_rows(student, teacher, 0.1)
    assert rows[0].item() == pytest.approx(0.1)
    assert rows[1].item() == pytest.approx(0.1)
    assert rows[2].item() == pytest.approx(0)
    assert experts.pairwise_rows(student, teacher, 0.31).abs().max() == 0
    assert experts.pairwise_rows(student[:1], teacher[:1], 0.1).tolist() == [0]


def test_experts_that_say_the_same_are_not_diverse():
    h = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(experts.diversity_rows(torch.stack([h, 2 * h, h])), torch.ones(4))
    assert experts.diversity_rows(torch.stack([h, -h])).abs().max() == 0
    apart = torch.eye(3)[:, None].expand(3, 4, 3)
    assert experts.diversity_rows(apart).abs().max() == 0
    assert experts.diversity_rows(h[None]).tolist() == [0] * 4


def test_contrastive_rows_average_to_info_nce():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 7, generator=generator) for _ in range(2))
    torch.testing.assert_close(experts.contrastive_rows(a, b, 0.1).mean(), losses.info_nce(a, b, 0.1))


def test_the_mixture_is_the_weighted_sum():
    method = method_of("moe")
    moe = method.heads["moe"].eval()
    x = torch.randn(4, S, generator=torch.Generator().manual_seed(0))
    said, shares = moe.parts(x)
    assert said.shape == (3, 4, S)
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    torch.testing.assert_close(moe(x), sum(shares[:, m, None] * said[m] for m in range(3)))
    torch.testing.assert_close(moe.experts[0](x), said[0])


def test_the_sentence_vector_drops_out_before_the_experts():
    moe = method_of("moe").heads["moe"].train()
    for network in (*moe.experts, moe.router):
        network[2].p = 0.0
    x = torch.ones(64, S)
    said, shares = moe.parts(x)
    assert said[0].std(0).min() > 0
    assert shares.std(0).min() > 0


def cosines_to_alignment(cosines, valid=None, **options):
    """Alignment of one student token (1, 0, ...) with teacher tokens of the given cosines."""
    cosines = torch.tensor(cosines, dtype=torch.float64)
    teacher = torch.zeros(1, len(cosines), 1 + len(cosines), dtype=torch.float64)
    teacher[0, :, 0] = cosines
    teacher[0, range(len(cosines)), range(1, 1 + len(cosines))] = (1 - cosines.square()).sqrt()
    student = torch.zeros(1, 1, 1 + len(cosines), dtype=torch.float64)
    student[..., 0] = 1
    valid = torch.tensor([valid or [True] * len(cosines)])
    return token_losses.alignment_weights(student, teacher, valid, **options)[0, 0]


@pytest.mark.parametrize(("mass", "tokens"), [(0.8, 2), (0.95, 3)])
def test_the_smallest_prefix_that_holds_the_mass(mass, tokens):
    masses = torch.tensor([0.15, 0.5, 0.05, 0.3], dtype=torch.float64)
    cosines = (1 + 0.1 * (masses / 0.5).log()).tolist()  # at temperature 0.1 their softmax is `masses`
    weights = cosines_to_alignment(cosines, mass=mass, most=4, temperature=0.1)
    expected = masses * (masses >= masses.sort(descending=True)[0][tokens - 1])
    torch.testing.assert_close(weights, expected / expected.sum())


def test_alignment_keeps_at_most_three_near_tokens_and_always_one():
    assert (cosines_to_alignment([0.9, 0.8, 0.7, 0.6]) > 0).tolist() == [True, True, True, False]
    assert (cosines_to_alignment([0.9, 0.8, 0.7], most=1) > 0).tolist() == [True, False, False]
    assert (cosines_to_alignment([0.9, 0.2, 0.35]) > 0).tolist() == [True, False, True]
    assert cosines_to_alignment([-0.5, 0.2, 0.1]).tolist() == [0, 1, 0]
    assert cosines_to_alignment([0.9, 0.95, 0.8], valid=[True, False, False]).tolist() == [1, 0, 0]


def test_alignment_weights_sum_to_one_over_valid_teacher_tokens():
    case = make_case(4)
    own = F.pad(case.student.tokens[-1], (0, T - S))
    valid = case.batch.tokens.valid
    weights = token_losses.alignment_weights(own, case.batch.tokens.states[-1], valid)
    torch.testing.assert_close(weights.sum(-1), torch.ones(own.shape[:2]))
    assert weights.masked_select(~valid[:, None].expand_as(weights)).abs().sum() == 0
    one = torch.arange(valid.shape[1])[None].expand(4, -1) == 0
    aligned = token_losses.alignment_weights(own, case.batch.tokens.states[-1], one) @ case.batch.tokens.states[-1]
    torch.testing.assert_close(aligned, case.batch.tokens.states[-1][:, :1].expand_as(aligned))


def test_distill_moe_is_least_where_student_and_teacher_agree():
    """Experts that repeat their input and an identity map: no pointwise, pairwise or token loss."""
    case = make_case(4, lengths=(9, 10))
    method = method_of("moe", teacher_dim=S, dropout=0.0)
    with torch.no_grad():
        method.heads["projection"].weight.copy_(torch.eye(S))
    states = {layer: torch.eye(9, S).roll(layer, 1).expand(4, 9, S) for layer in (-1, -2)}
    tokens = replace(case.batch.tokens, states=states, valid=case.batch.layout.valid)
    batch = replace(case.batch, teachers=(case.student.pooled,), tokens=tokens)
    terms = method.terms(replace(case.student, tokens=states), batch)
    assert terms["cka"].item() == pytest.approx(0, abs=1e-5)
    said = case.student.pooled.expand(3, 4, S)
    pointwise, _, pairwise = method._expert_losses(said, case.student.pooled).unbind(1)
    assert pointwise.abs().max().item() == pytest.approx(0, abs=1e-6)
    assert pairwise.abs().max().item() == pytest.approx(0, abs=1e-6)


def test_what_stays_in_the_student():
    kept = method_of("moe").output()
    assert isinstance(kept, experts.MixtureOfExperts)
    assert method_of("moe-cls").output() is None
    x = torch.randn(3, S, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kept.eval()(x), kept(x))
    again = experts.MixtureOfExperts(S, hidden=16, experts=3, dropout=0.1)
    again.load_state_dict(kept.state_dict())
    assert torch.equal(again.eval()(x), kept(x))
    for variant in ("emo", "dskd", "cdm"):
        assert method_of(variant).output() is None


# ---- gradients in float64


def test_gradients():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    valid = torch.tensor([[True] * 4, [True, True, True, False]])
    teacher, masses = random(2, 4, 3), [random(2, n).softmax(-1) for n in (3, 4)]
    pairs = torch.tensor([(n, i % 3, j) for n in range(2) for i, j in enumerate([0, 1, 2, 0, 1, 2])])
    scores, received = random(2, 4, 4), random(2, 4).softmax(-1)
    functions = {
        "unit_error": lambda x: token_losses.unit_error(x, teacher[:, :3]),
        "cross_attention": lambda x: token_losses.cross_attention(x, teacher, teacher, valid),
        "transport": lambda x: token_losses.transport_loss(
            token_losses.transport_cost(x, teacher, valid), masses[0], masses[1] * valid, iterations=5
        ),
        "attention_cka": lambda x: token_losses.attention_cka(x, scores, pairs, received),
        "alignment": lambda x: token_losses.alignment_weights(x, teacher, valid, least_cosine=-1.0, most=2),
        "diversity": lambda x: experts.diversity_rows(x),
        "pairwise": lambda x: experts.pairwise_rows(x.flatten(1), teacher.flatten(1), 0.01),
        "load": lambda x: experts.load_rows(x.softmax(-1), 0.3),
        "contrastive": lambda x: experts.contrastive_rows(x.flatten(1), teacher.flatten(1)[:, :9], 0.5),
    }
    for name, function in functions.items():
        assert torch.autograd.gradcheck(function, (random(2, 3, 3).requires_grad_(),)), name


# ---- with a real student


@pytest.fixture(scope="module")
def models(tiny_encoder_folder):
    student = tiny_encoder_folder("bert")
    teacher = Encoder.load(tiny_encoder_folder("qwen3"), pooling="last").eval()
    return student, teacher


def pieces(encoder, sequences):
    marks = str.maketrans("", "", "Ġ▁#")
    rows = [encoder.tokenizer.convert_ids_to_tokens(row.tolist()) for row in sequences]
    return [[piece.translate(marks).lower() for piece in row] for row in rows]


def real_batch(student, teacher, texts, needs):
    """The batch that training would build from caches, computed on the spot."""
    own, other = student.tokenize(texts), teacher.tokenize(texts)
    ids, lengths = own.take(range(len(texts)))
    other_ids, other_lengths = other.take(range(len(texts)))
    layout, other_layout = Layout.of(lengths), Layout.of(other_lengths)
    with torch.no_grad():
        hidden, attention = teacher.states(other_ids, other_layout, needs.teacher_attention)
    special = [torch.isin(lay.pad(x), torch.tensor(enc.tokenizer.all_special_ids)) & lay.valid
               for enc, x, lay in ((student, ids, layout), (teacher, other_ids, other_layout))]  # fmt: skip
    pairs = None
    if needs.alignment:
        pairs = torch.from_numpy(align(needs.alignment, pieces(student, own), pieces(teacher, other)))
    return Batch(
        rows=torch.arange(len(texts)),
        ids=ids,
        layout=layout,
        teachers=(F.normalize(hidden[-1][other_layout.starts + other_lengths - 1], dim=-1),),
        text_ids=torch.arange(len(texts)),
        sources=torch.zeros(len(texts), dtype=torch.int64),
        special=special[0],
        tokens=TeacherTokens(
            other_layout.valid,
            special[1],
            {layer: other_layout.pad(hidden[layer]) for layer in needs.teacher_tokens},
            attention,
        ),
        pairs=pairs,
    )


FALLING = {"emo-strong": "ot", "dskd-strong": "sentence_up", "cdm": "token", "cdm-strong": "token", "moe": "experts"}


@pytest.mark.parametrize("variant", ["emo", "emo-strong", "dskd", "dskd-strong", "cdm", "cdm-strong", "moe", "moe-cls"])
def test_twenty_steps_of_a_real_student_lower_the_loss(variant, models, tiny_texts):
    folder, teacher = models
    student = Encoder.load(folder, pooling="mean").train()
    name, given = VARIANTS[variant]
    config = methods.config_class(name)(**given)
    needs = methods.needs(name, config)
    sizes = {"student_dim": student.dim, "teacher_dims": (teacher.dim,), "num_layers": student.num_layers}
    torch.manual_seed(0)  # dropout
    method = methods.method_class(name)(config, **sizes, generator=torch.Generator().manual_seed(0))
    batch = real_batch(student, teacher, tiny_texts[:8], needs)
    objective = Objective(student, method, needs=needs)
    optimizer = torch.optim.Adam(objective.parameter_groups(1e-3, 0.0))
    totals, terms = [], []
    for _ in range(20):
        total, parts = objective(batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
        terms.append({k: v.item() for k, v in parts.items()})
    assert sum(totals[-5:]) < 0.95 * sum(totals[:5])
    if variant in FALLING:
        falling = [row[FALLING[variant]] for row in terms]
        assert sum(falling[-5:]) < sum(falling[:5])
    assert method.views == 2
