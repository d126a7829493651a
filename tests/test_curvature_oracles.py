"""Curvature against other libraries: the same model, loss and batches give the same spectrum."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from talas_lib import losses
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
    closures = [lambda x=x, y=y: criterion(model(x), y) for x, y in data]
    return model, criterion, data, closures


def import_quietly(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


@pytest.mark.parametrize("batches", [1, 2])
def test_pyhessian(problem, batches):
    pyhessian = import_quietly("pyhessian")
    model, criterion, data, closures = problem
    given = {"data": data[0]} if batches == 1 else {"dataloader": data}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        theirs = pyhessian.hessian(model, criterion, cuda=False, **given)
        (value,), _ = theirs.eigenvalues(maxIter=500, tol=1e-6)
        trace = np.mean(theirs.trace(maxIter=200, tol=1e-9))
    model.zero_grad()
    operator = hvp_operator(closures[:batches], list(model.parameters()))
    assert power_iteration(operator, seed=0, tol=1e-6, max_iter=500).value == pytest.approx(value, rel=1e-3)
    assert lanczos(operator, seed=0, which="LM")[0].value == pytest.approx(value, rel=1e-3)
    ours = hutchinson_trace(operator, seed=0, max_draws=200)
    assert abs(ours.value - trace) < 6 * ours.standard_error


def test_curvlinops(problem):
    curvlinops = import_quietly("curvlinops")
    model, criterion, data, closures = problem
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = curvlinops.HessianLinearOperator(model, criterion, list(model.parameters()), data)
        matrix = theirs.to_scipy() @ np.eye(theirs.shape[0], dtype=np.float32)
    ours = hvp_operator(closures, list(model.parameters())) @ np.eye(theirs.shape[0])
    np.testing.assert_allclose(ours, matrix, atol=1e-6)


# ---- the distillation objective, through the same closures


@pytest.fixture(scope="module")
def distillation(tmp_path_factory):
    """TALAS's full objective of a tiny BERT on two fixed batches, dropout off: closures, the blocks' weights, the heads."""
    from talas_lib import tiny
    from talas_lib.encoders import Encoder
    from talas_lib.fixed_objective import fixed_objective, fixed_rows
    from talas_lib.methods.base import Objective
    from talas_lib.methods.talas import Config, Talas
    from talas_lib.tiny_texts import tiny_sentences
    from talas_lib.training_data import TrainingData

    texts = [sentence.text for sentence in tiny_sentences(40, seed=0)]
    student = Encoder.load(tiny.build("bert", tmp_path_factory.mktemp("bert"), texts), layers=[0], pooling="mean")
    method = Talas(
        Config(num_anchor_layers=1, head_init_std=0.3),
        student_dim=student.dim,
        teacher_dims=(6,),
        num_layers=1,
        generator=torch.Generator().manual_seed(0),
    )
    vectors = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    zeros = np.zeros(40, dtype=np.int64)
    data = TrainingData(student.tokenize(texts), (lambda rows: vectors[rows],), zeros, zeros)
    rows = fixed_rows(40, 2, 8, seed=0)
    with fixed_objective(Objective(student, method), data, rows) as fixed:
        yield fixed, method


@pytest.mark.parametrize("subset", ["encoder", "encoder+heads"])
def test_pyhessian_drives_the_same_objective(distillation, subset):
    """Its tolerance is 1e-3 on the change of the quotient; its own residual, which we measure, says how far that is off."""
    import_quietly("pyhessian")
    from talas_lib.pyhessian_adapter import pyhessian_eigenvalue

    fixed, method = distillation
    weights = fixed.parameters(subset)
    exact = lanczos(hvp_operator(fixed.losses, weights, cache_graphs=True), seed=0, which="LM", tol=1e-4)[0]
    theirs = pyhessian_eigenvalue(fixed.losses, weights, seed=0, max_iter=300)
    assert theirs.value == pytest.approx(exact.value, rel=2e-2)
    assert theirs.value == pytest.approx(exact.value, rel=max(2 * theirs.residual, 1e-5))
    closer = pyhessian_eigenvalue(fixed.losses, weights, seed=0, max_iter=300, tol=1e-5)
    assert closer.value == pytest.approx(exact.value, rel=2e-3)
    assert closer.hvps > theirs.hvps
    assert all(p.requires_grad and p.grad is None for p in (*fixed.parameters("encoder"), *method.heads.parameters()))


def test_pyhessian_keeps_gradients_that_were_there(distillation):
    import_quietly("pyhessian")
    from talas_lib.pyhessian_adapter import pyhessian_eigenvalue

    fixed, _ = distillation
    weights = fixed.parameters("layer-1")
    weights[0].grad = torch.ones_like(weights[0])
    state = torch.get_rng_state()
    first, again, other = (pyhessian_eigenvalue(fixed.losses, weights, seed=s, max_iter=3).value for s in (0, 0, 1))
    assert first == again != other
    assert torch.equal(weights[0].grad, torch.ones_like(weights[0]))
    assert torch.equal(state, torch.get_rng_state())
    weights[0].grad = None


class Student(torch.nn.Module):
    """A BERT with eager attention as curvlinops wants a model: ids in, everything the objective reads out, in one tensor."""

    def __init__(self):
        super().__init__()
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.BertConfig(vocab_size=30, max_position_embeddings=8, attn_implementation="eager", **sizes)
        self.bert = transformers.BertModel(config, add_pooling_layer=False).eval()
        self.head = torch.nn.Linear(8, 6, bias=False)

    def forward(self, ids):
        hidden = self.bert(input_ids=ids, output_hidden_states=True).hidden_states
        pooled = [states.mean(1) for states in hidden]
        return torch.cat([*pooled, self.head(pooled[-1])], dim=1)


class Distillation(torch.nn.MSELoss):
    """TALAS's objective on that tensor, dropout off; curvlinops looks at the reduction of a loss it knows."""

    def forward(self, found, teacher):
        *layers, projected = found.split([8, 8, 8, 6], dim=1)
        relations = [losses.relation_matrix(layer) for layer in layers]
        terms = losses.tamd([projected], teacher), losses.lasd(relations), losses.info_nce(layers[-1], layers[-1], 0.1)
        return 0.75 * terms[0] + terms[1] + 0.001 * terms[2]


def test_curvlinops_on_a_distillation_objective():
    """A loss between the sentences of a batch: the mean over batches of one size, in both."""
    curvlinops = import_quietly("curvlinops")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, criterion = Student(), Distillation()
        data = [(torch.randint(0, 30, (6, 5)), torch.randn(6, 6)) for _ in range(2)]
    closures = [lambda x=x, t=t: criterion(model(x), t) for x, t in data]
    # without the scales of layer norms, of which curvlinops (forward over reverse mode) has wrong products with torch 2.13:
    # they are off from finite differences of gradients, ours are not
    weights = [w for name, w in model.bert.encoder.named_parameters() if not name.endswith("LayerNorm.weight")]
    vectors = np.random.default_rng(0).standard_normal((sum(w.numel() for w in weights), 2)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = curvlinops.HessianLinearOperator(model, criterion, weights, data)
        products = theirs.to_scipy() @ vectors
    ours = hvp_operator(closures, weights) @ vectors.astype(np.float64)
    np.testing.assert_allclose(ours, products, atol=1e-4 * np.abs(ours).max())
