"""What every method must do, asked of all alike: real tiny students, and tiny teachers through the real caches.

A method is in here from the moment it has a module and a file of values. What a method does beyond this is tested in a
file of its own (test_methods_*.py, test_static.py).
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from talas_lib import alignment, alignment_cache, checkpoints, export, methods, paths, teacher_cache, tiny, token_cache
from talas_lib.encoders import Encoder
from talas_lib.export import HEADS_FILE
from talas_lib.methods.base import Batch, Method, Needs, Objective, Preparation, StudentStates, TeacherTokens
from talas_lib.methods.regression import Regression
from talas_lib.packed import Layout
from talas_lib.schedule import Settings
from talas_lib.tokenization import TextTokenizer
from talas_lib.train import train
from talas_lib.training_data import TrainingData

COMPUTED = [name for name in methods.available() if methods.builds_student(name)]  # there is no loss to ask about
TRAINED = [name for name in methods.available() if name not in COMPUTED]
EVERY = pytest.mark.parametrize("name", TRAINED)

SMALLER: dict[str, dict[str, Any]] = {"jasper_stella": {"reduced_dims": (6, 4)}, "distill_moe": {"hidden": 16}}
SHORT = Settings(epochs=2, batch_size=8, lr=2e-3, min_lr=2e-4)
Vectors = Callable[[np.ndarray], np.ndarray]
SENTENCES = 24  # that are trained on; the one after them is long
LONG = SENTENCES


# ---- caches, students and batches


class Bench:
    """Sentences, a student, two teachers and their caches. `wide` (Qwen3, causal) has more dimensions than the student; `equal`
    (XLM-R) has as many."""

    def __init__(self, root: Path, student: Path, wide: Path, equal: Path, texts: list[str]) -> None:
        self.root, self.folder, self.texts = root, student, texts
        self.teachers = {"wide": Encoder.load(wide, pooling="last"), "equal": Encoder.load(equal, pooling="cls")}
        self.vectors = {
            name: teacher_cache.build(root, {"model": name}, texts, self.embed(name)) for name in self.teachers
        }

    def embed(self, name: str) -> Callable[..., np.ndarray]:
        return lambda texts: self.teachers[name].encode(texts, normalize=True)

    def case(self, name: str, *, pooling: str = "mean", dtype: torch.dtype = torch.float32, **changes: Any) -> Case:
        """A fresh method with the values of its file, on a fresh student: always the same."""
        values = yaml.safe_load((paths.params_dir() / "methods" / f"{name}.yaml").read_text(encoding="utf-8"))
        config = methods.config_class(name)(**values | SMALLER.get(name, {}) | changes)
        needs = methods.needs(name, config)
        student = Encoder.load(self.folder, layers=[0, 2], pooling=pooling)
        chosen = [("wide", "equal")[k % 2] for k in range(needs.teachers[0])]
        try:
            method = self._method(name, config, student, chosen)
        except ValueError:  # it compares vectors number by number
            chosen = ["equal"]
            method = self._method(name, config, student, chosen)
        caches = tuple(self.vectors[teacher].vectors for teacher in chosen)

        def encode(rows: np.ndarray) -> np.ndarray:
            return student.encode([self.texts[row] for row in rows], normalize=False)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on the settings for these teachers
            method.prepare(Preparation(SENTENCES, caches, encode, SHORT.batch_size))
        student.to(dtype)
        method.heads.to(dtype)
        data = self._data(student, needs, chosen, caches)
        return Case(self, Objective(student, method, needs=needs), data, chosen, dtype)

    def _method(self, name: str, config: Any, student: Encoder, teachers: list[str]) -> Method:
        dims = tuple(self.teachers[teacher].dim for teacher in teachers)
        generator = torch.Generator().manual_seed(1)
        sizes = {"student_dim": student.dim, "teacher_dims": dims, "num_layers": student.num_layers}
        return methods.method_class(name)(config, **sizes, generator=generator)  # type: ignore[call-arg]

    def _data(self, student: Encoder, needs: Needs, chosen: list[str], vectors: tuple[Vectors, ...]) -> TrainingData:
        tokens_of, pairs_of = None, None
        teacher = self.teachers[chosen[0]] if chosen else None
        if needs.token_cache:
            tokens_of = token_cache.build(self.root, {"model": chosen[0]}, self.texts, needs, lambda: teacher).tokens
        if needs.alignment:
            pairs_of = alignment_cache.build(self.root, needs.alignment, student, teacher, self.texts).pairs
        tokens, number = student.tokenize(self.texts), np.arange(len(self.texts))
        special = TextTokenizer.of(student).special(tokens)
        return TrainingData(tokens, vectors, number, number % 2, special, tokens_of, pairs_of)


@dataclass
class Case:
    """A method at work on a student, and the data."""

    bench: Bench
    objective: Objective
    data: TrainingData
    teachers: list[str]
    dtype: torch.dtype

    @property
    def student(self) -> Encoder:
        return self.objective.student

    @property
    def method(self) -> Method:
        return self.objective.method

    def train(self, mode: bool = True) -> Case:
        torch.manual_seed(0)
        self.student.train(mode)
        self.method.heads.train(mode)
        return self

    def eval(self) -> Case:
        return self.train(False)

    def batch(self, *rows: int) -> Batch:
        return as_dtype(self.data.batch(np.array(rows)), self.dtype)

    def gradients(self) -> dict[str, torch.Tensor]:
        named = [*self.student.parameters_by_name().items(), *self.method.heads.named_parameters(prefix="heads")]
        return {name: p.grad for name, p in named if p.grad is not None}

    def mean_loss(self) -> float:
        """Mean over the batches of the sentences in order, in evaluation mode."""
        self.eval()
        with torch.no_grad():
            batches = [self.batch(*rows) for rows in np.arange(SENTENCES).reshape(-1, SHORT.batch_size)]
            return float(np.mean([self.objective(batch)[0].item() for batch in batches]))

    def state(self) -> dict[str, torch.Tensor]:
        parts = {"student": self.student, "heads": self.method.heads}
        return {f"{name}.{k}": v.clone() for name, part in parts.items() for k, v in part.state_dict().items()}


def as_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with what comes from the teacher in this precision."""
    tokens = batch.tokens
    if tokens is not None:
        states = {k: h.to(dtype) for k, h in tokens.states.items()}
        tokens = replace(tokens, states=states, attention={k: a.to(dtype) for k, a in tokens.attention.items()})
    return replace(batch, teachers=tuple(t.to(dtype) for t in batch.teachers), tokens=tokens)


def reordered(batch: Batch, order: torch.Tensor) -> Batch:
    """The same sentences in another order."""
    layout = Layout(batch.layout.lengths[order], batch.layout.longest)
    pairs = batch.pairs
    if pairs is not None:
        pairs = torch.cat([torch.argsort(order)[pairs[:, :1]], pairs[:, 1:]], dim=1)
    return replace(
        batch,
        rows=batch.rows[order],
        ids=batch.ids[batch.layout.starts[order][layout.sentence] + layout.position],
        layout=layout,
        teachers=tuple(t[order] for t in batch.teachers),
        text_ids=batch.text_ids[order],
        sources=batch.sources[order],
        special=None if batch.special is None else batch.special[order],
        tokens=None if batch.tokens is None else batch.tokens.take(order),
        pairs=pairs,
    )


def from_the_teacher(batch: Batch) -> dict[str, torch.Tensor]:
    """Every tensor of a batch that a cache has given."""
    found = {f"vectors.{k}": t for k, t in enumerate(batch.teachers)}
    if batch.tokens is not None:
        found |= {f"states{k}": h for k, h in batch.tokens.states.items()}
        found |= {f"attention{k}": a for k, a in batch.tokens.attention.items()}
        found |= {"valid": batch.tokens.valid, "special": batch.tokens.special}
    return found if batch.pairs is None else found | {"pairs": batch.pairs}


@pytest.fixture(scope="module")
def bench(tiny_encoder_folder, tiny_texts, tmp_path_factory):
    root = tmp_path_factory.mktemp("caches")
    wide = tiny.build("qwen3", root / "wide", tiny_texts, dim=48)
    texts = [*tiny_texts[:SENTENCES], " ".join(tiny_texts[:6])]
    return Bench(root, tiny_encoder_folder("bert"), wide, tiny_encoder_folder("xlm-r"), texts)


@dataclass
class Trained:
    case: Case
    before: float
    after: float
    state: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(bench):
    """A function from a method to the one undisturbed run of it, that several tests look at."""
    runs: dict[str, Trained] = {}

    def run(name: str) -> Trained:
        if name not in runs:
            case = bench.case(name)
            before = case.mean_loss()
            train(case.objective, only(case.data, SENTENCES), SHORT)
            runs[name] = Trained(case, before, case.mean_loss(), case.state())
        return runs[name]

    return run


def only(data: TrainingData, count: int) -> TrainingData:
    """The first sentences of the data, tokens included."""
    tokens = type(data.tokens).from_lists([data.tokens[i].tolist() for i in range(count)])
    special = None if data.special is None else data.special[: data.tokens.offsets[count]]
    return replace(data, tokens=tokens, special=special)


# ---- the loss of a batch


@EVERY
def test_the_loss_is_finite_and_reaches_the_whole_encoder(name, bench):
    case = bench.case(name)
    for number, stage in enumerate(case.method.stages):
        case.method.enter(number)
        case.train()
        case.objective.student.zero_grad()
        loss, terms = case.objective(case.batch(0, 1, 2, 3))
        assert terms.keys() == case.method.weights.keys()
        assert all(term.shape == () for term in terms.values())
        assert torch.isfinite(loss)
        loss.backward()
        gradients = case.gradients()
        assert all(torch.isfinite(g).all() for g in gradients.values())
        reached = {k for k, g in gradients.items() if g.abs().max() > 0}
        if stage.trains == "heads":
            assert any(k.startswith("heads.") for k in reached)
        else:
            assert {k for k in case.student.parameters_by_name() if k.endswith("weight")} <= reached


@EVERY
@pytest.mark.parametrize("rows", [(3,), (3, 7), (5, 5, 5, 9), (5, 5, 5)], ids=["one", "two", "copies", "only copies"])
def test_few_sentences_and_copies_give_numbers(name, rows, bench):
    """With dropout and without, where copies coincide exactly."""
    case = bench.case(name)
    for training in (True, False):
        case.train(training)
        case.objective.student.zero_grad()
        loss, terms = case.objective(case.batch(*rows))
        loss.backward()
        assert all(torch.isfinite(term) for term in terms.values()), terms
        assert all(torch.isfinite(g).all() for g in case.gradients().values())


@EVERY
def test_a_teacher_vector_of_zeros_gives_numbers(name, bench):
    """The cache refuses such vectors; a method that gets one all the same has a finite loss and finite gradients."""
    case = bench.case(name).train()
    batch = case.batch(0, 1, 2, 3)
    batch = replace(batch, teachers=tuple(t.index_fill(0, torch.tensor([1]), 0.0) for t in batch.teachers))
    total, _ = case.objective(batch)
    total.backward()
    assert torch.isfinite(total)
    for parameter, grad in case.gradients().items():
        assert torch.isfinite(grad.to_dense()).all(), parameter


@EVERY
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_nothing(name, pooling, bench):
    """Sentences beside a much longer one, whose columns stay when it is gone; packed, and padded as transformers would."""
    case = bench.case(name, pooling=pooling, dtype=torch.float64).eval()
    batches = [case.batch(0, 1, 2, 3, 4, 5), as_dtype(beside_a_long_one(case.data, [0, 1, 2, 3, 4, 5]), case.dtype)]
    assert batches[1].layout.longest > 2 * batches[0].layout.longest
    assert batches[0].rows.tolist() == batches[1].rows.tolist()
    losses = []
    for packed in (True, False):
        case.student.packed = packed
        with torch.no_grad():
            losses += [case.objective(batch)[0].item() for batch in batches]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)


def beside_a_long_one(data: TrainingData, rows: list[int]) -> Batch:
    """The batch of these sentences as it is cut out of one that holds a much longer sentence."""
    ordered = sorted(rows, key=lambda row: data.tokens.lengths[row])
    doubled = [row for row in ordered for _ in range(2)]  # every second one is taken
    return data.batch(np.array([*doubled[:-1], LONG])).every(2)


@EVERY
def test_the_order_of_the_sentences_changes_nothing(name, bench):
    case = bench.case(name, dtype=torch.float64).eval()
    batch, order = case.batch(*range(9)), torch.tensor([4, 2, 8, 0, 1, 7, 6, 3, 5])
    other = reordered(batch, order)
    states, shuffled = case.objective.states(batch), case.objective.states(other)
    torch.testing.assert_close(shuffled.pooled, states.pooled[order])
    torch.testing.assert_close(case.objective.total(shuffled, other), case.objective.total(states, batch))
    try:
        rows = case.method.row_loss(states, batch)
    except NotImplementedError:
        return
    assert rows.shape == (9,)
    torch.testing.assert_close(case.method.row_loss(shuffled, other), rows[order])


@EVERY
def test_what_the_teacher_gave_is_read_and_never_written(name, bench):
    case = bench.case(name).train()
    batch = case.batch(*range(6))
    given = from_the_teacher(batch)
    before = {key: value.clone() for key, value in given.items()}
    optimizer = torch.optim.AdamW(case.objective.parameter_groups(1e-3, 0.01))
    case.objective(batch)[0].backward()
    optimizer.step()
    assert not any(value.requires_grad for value in given.values())
    assert all(torch.equal(given[key], value) for key, value in before.items())
    again = from_the_teacher(case.batch(*range(6)))
    assert all(torch.equal(again[key], value) for key, value in before.items())
    for cache in bench.vectors.values():  # opening checks every hash
        np.testing.assert_array_equal(
            teacher_cache.TeacherCache.open(cache.folder).vectors(range(9)), cache.vectors(range(9))
        )


# ---- cached and computed on the spot


def online_data(case: Case, rounded: bool) -> TrainingData:
    """The data with all signals from the teachers themselves, for the sentences asked for. rounded: token states to fp16."""
    bench, needs, student = case.bench, case.objective.needs, case.student
    teacher = bench.teachers[case.teachers[0]] if case.teachers else None

    def tokens_of(rows: np.ndarray) -> TeacherTokens:
        sequences = teacher.tokenize([bench.texts[row] for row in rows])
        ids, lengths = sequences.take(range(len(rows)))
        layout = Layout.of(lengths)
        with torch.no_grad():
            hidden, attention = teacher.eval().states(ids, layout, needs.teacher_attention)
        special = torch.from_numpy(TextTokenizer.of(teacher).special(sequences))
        states = {layer: layout.pad(hidden[layer]) for layer in needs.teacher_tokens}
        if rounded:
            states = {k: h.half().float() for k, h in states.items()}
            attention = {k: a.half().float() for k, a in attention.items()}
        return TeacherTokens(layout.valid, layout.pad(special), states, attention)

    def pairs_of(rows: np.ndarray) -> torch.Tensor:
        found = []
        for number, row in enumerate(rows):
            (own, own_at), (other, other_at) = (text_tokens(e, bench.texts[row]) for e in (student, teacher))
            assert needs.alignment is not None
            for _, t, s in alignment.align(needs.alignment, [other], [own]):
                found.append((number, own_at[s], other_at[t]))
        return torch.tensor(sorted(found), dtype=torch.int64).view(-1, 3)

    def vectors_of(name: str) -> Vectors:
        return lambda rows: bench.embed(name)([bench.texts[row] for row in rows])

    return replace(
        case.data,
        teachers=tuple(vectors_of(name) for name in case.teachers),
        tokens_of=tokens_of if needs.token_cache else None,
        pairs_of=pairs_of if needs.alignment else None,
    )


def text_tokens(encoder: Encoder, text: str) -> tuple[list[str], list[int]]:
    """The tokens of a sentence that are text, and their positions."""
    side = TextTokenizer.of(encoder)
    tokens = side.tokenize([text])
    kept = np.flatnonzero(~side.special(tokens)).tolist()
    pieces = side.pieces(tokens)
    return [pieces[i] for i in kept], kept


@EVERY
def test_cached_and_computed_signals_give_the_same_loss(name, bench):
    """To 1e-5; token states lie on disk as fp16, whose spacing is 1e-3 of a value, and are compared at that as well."""
    case = bench.case(name).eval()
    rows = np.arange(8)
    with torch.no_grad():
        cached = case.objective(case.data.batch(rows))[0].item()
        for rounded, tolerance in ((True, 1e-5), (False, 1e-3 if case.objective.needs.token_cache else 1e-5)):
            computed = case.objective(online_data(case, rounded).batch(rows))[0].item()
            assert computed == pytest.approx(cached, rel=tolerance)


# ---- training


@EVERY
def test_two_epochs_lower_the_loss(name, trained):
    assert trained(name).after < trained(name).before


@EVERY
def test_a_killed_run_resumes_to_the_same_bits(name, bench, trained, tmp_path):
    class Killed(Exception):
        pass

    def kill(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise Killed

    file = tmp_path / "last.safetensors"
    broken = bench.case(name)
    options: dict[str, Any] = {"checkpoint": file, "checkpoint_every": 2}
    with pytest.raises(Killed):
        train(broken.objective, only(broken.data, SENTENCES), SHORT, log_every=1, on_log=kill, **options)
    assert checkpoints.finished_steps(file) == 4
    resumed = bench.case(name)
    result = train(resumed.objective, only(resumed.data, SENTENCES), SHORT, **options)
    assert result.resumed_from == 4
    found, expected = resumed.state(), trained(name).state
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []


# ---- the finished student

# What a method leaves behind the pooling, as a module of a sentence-transformers folder; all others leave nothing.
OUTPUT = {"leaf": "Dense", "distill_moe": "Mixture", "jasper_stella with fc1": "Dense"}
VARIANTS = {
    "jasper_stella with fc1": ("jasper_stella", {"output": "fc1"}),
    "distill_moe without": ("distill_moe", {"output": "cls"}),
}


@pytest.mark.parametrize("which", [*TRAINED, *VARIANTS])
def test_nothing_of_the_method_stays_in_the_saved_student(which, bench, trained, tmp_path):
    if which in VARIANTS:
        name, changes = VARIANTS[which]
        case = bench.case(name, **changes).eval()
    else:
        case = trained(which).case
    student = copy.deepcopy(case.student)
    student.projection = case.method.output()
    folder = export.save_student(student, tmp_path / "student", heads=case.method.heads)
    untouched = export.save_student(Encoder.load(bench.folder, layers=[0, 2], pooling="mean"), tmp_path / "untouched")
    files = {str(file.relative_to(folder)) for file in folder.rglob("*.safetensors")}
    modules = [module["type"].rpartition(".")[2] for module in json.loads((folder / "modules.json").read_text())]
    after = [OUTPUT[which]] if which in OUTPUT else []
    assert modules == ["Transformer", "Pooling", *after]
    heads = {HEADS_FILE} if case.method.heads.state_dict() else set()  # beside the model, which does not read it
    assert files == {"model.safetensors", *heads, *(f"2_{kind}/model.safetensors" for kind in after)}
    assert keys_and_shapes(folder / "model.safetensors") == keys_and_shapes(untouched / "model.safetensors")


def keys_and_shapes(file: Path) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in load_file(file).items()}


# ---- the minimum

WIDTH = 4


@dataclass
class Perfect:
    """A student that says what its teacher says, and the least loss there is."""

    method: Method
    states: StudentStates
    batch: Batch
    least: float = 0.0

    def loss(self, states: StudentStates) -> float:
        terms = self.method.terms(states, self.batch)
        return sum(self.method.weights[name] * term.item() for name, term in terms.items())


def perfect(name: str, least: float = 0.0, vectors: torch.Tensor | None = None, **changes: Any) -> Perfect:
    """Linear layers are the identity; all layers and both views of the student are the teacher's vectors, or `vectors`."""
    torch.manual_seed(0)
    t = torch.nn.functional.normalize(torch.randn(6, WIDTH, dtype=torch.float64), dim=-1)
    config = methods.config_class(name)(**changes)
    sizes = {"student_dim": WIDTH, "teacher_dims": (WIDTH,), "num_layers": 3}
    method = methods.method_class(name)(config, **sizes, generator=torch.Generator().manual_seed(0))  # type: ignore[call-arg]
    method.heads.double()
    for layer in method.heads.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.eye_(layer.weight)
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)
    method.prepare(Preparation(6, (lambda rows: t[rows].numpy(),), lambda rows: t[rows].numpy()[:, ::-1]))
    e = t if vectors is None else vectors
    batch = Batch(
        rows=torch.arange(len(e)),
        ids=torch.zeros(len(e), dtype=torch.int64),
        layout=Layout.of(torch.ones(len(e), dtype=torch.int64)),
        teachers=(t[: len(e)],),
        text_ids=torch.arange(len(e)),
        sources=torch.zeros(len(e), dtype=torch.int64),
    )
    if isinstance(method, Regression) and vectors is None:
        e = method.target(batch)  # the teacher's vectors, reduced where the method reduces them
    method.heads.eval()
    return Perfect(method, StudentStates((e,) * 4, e), batch, least)


# The case of a method, or the test of its own file that covers it.
MINIMUM: dict[str, Callable[[], Perfect] | str] = {
    "cosine": lambda: perfect("cosine"),
    "mse": lambda: perfect("mse"),
    "embed_distill": lambda: perfect("embed_distill"),
    "leaf": lambda: perfect("leaf"),
    "rkd": lambda: perfect("rkd"),
    "pca_target": lambda: perfect("pca_target"),
    "procrustes_target": lambda: perfect("procrustes_target"),
    # of two sentences the views can be as far apart as opposite points: log(1 + e^-2) at temperature 1
    "simcse": lambda: perfect(
        "simcse",
        math.log1p(math.exp(-2)),
        torch.eye(WIDTH, dtype=torch.float64)[:1] * torch.tensor([[1.0], [-1.0]]),
        temperature=1.0,
    ),
    # SimCSE, which has another minimum, left out; TAMD is 0 at the teacher and LASD where all layers are equal
    "talas": lambda: perfect("talas", weight_simcse=0.0),
    "jasper_stella": "test_methods_vectors_a.py::test_jasper_at_agreement_and_under_rotation",
    "distillcse": "test_methods_vectors_a.py::test_distillcse_student_equal_to_teacher",
    "majority_vote": "test_methods_vectors_a.py::test_majority_vote_at_its_floor",
    "emo": "test_methods_tokens.py::test_emo_is_least_where_tokens_and_attention_agree",
    "dskd": "test_methods_tokens.py::test_dskd_is_zero_where_student_and_teacher_agree",
    "cdm": "test_methods_tokens.py::test_cdm_is_zero_where_student_and_teacher_agree",
    "distill_moe": "test_methods_tokens.py::test_distill_moe_is_least_where_student_and_teacher_agree",
}


@EVERY
def test_a_student_that_equals_its_teacher_attains_the_minimum(name):
    assert name in MINIMUM, f"add to MINIMUM the least loss of {name}, or the test of its own file that shows it"
    covered = MINIMUM[name]
    if isinstance(covered, str):
        file, _, test = covered.partition("::")
        assert f"def {test}(" in (Path(__file__).parent / file).read_text(encoding="utf-8")
        return
    case = covered()
    assert case.loss(case.states) == pytest.approx(case.least, abs=1e-7)
    for distance in (0.03, 0.3):
        moved = tuple(e + distance * torch.randn_like(e) for e in case.states.layers)
        assert case.loss(StudentStates(moved, moved[-1])) > case.least + 1e-6


# ---- methods without training


@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_student_is_that_of_the_cached_vectors_and_holds_a_table_alone(name, bench, tmp_path):
    """There is no step and no loss; of the list above remain the caches and the saved student."""
    values = yaml.safe_load((paths.params_dir() / "methods" / f"{name}.yaml").read_text(encoding="utf-8"))
    method: Any = methods.method_class(name)(methods.config_class(name)(**values))  # type: ignore[call-arg]
    assert dict(method.weights) == {}
    assert list(method.heads.parameters()) == []
    tokenizer = Encoder.load(bench.folder, pooling="mean").tokenizer
    vocabulary = method.vocabulary(tokenizer)
    cache = teacher_cache.build(tmp_path, {"model": "wide"}, vocabulary, bench.embed("wide"))
    cached, online = (
        method.build_student(tokenizer, bench.texts, vectors)
        for vectors in (cache.vectors(range(len(vocabulary))), bench.embed("wide")(vocabulary))
    )
    np.testing.assert_allclose(cached.encode(bench.texts), online.encode(bench.texts), atol=1e-5)
    texts = [*bench.texts[:2], bench.texts[0]]
    assert np.isfinite(cached.encode(texts)).all()
    np.testing.assert_array_equal(cached.encode(texts)[0], cached.encode(texts[:1])[0])
    folder = export.save_student(cached, tmp_path / "student", heads=method.heads)
    files = [file.relative_to(folder) for file in folder.rglob("*.safetensors")]
    assert len(files) == 1
    assert len(load_file(folder / files[0])) == 1
