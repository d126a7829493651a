"""The work that is timed: any method's training steps on a real corpus, with random numbers where a teacher's would be.

Random vectors and token states cost what real ones cost. They are read through the library's own code from a few rows that
are handed out again and again, so that no teacher has to run first.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talas_lib import methods, params, sources
from talas_lib.encoders import Encoder
from talas_lib.methods.base import Batch, Method, Needs, Objective, Preparation
from talas_lib.packed import TokenSequences
from talas_lib.schedule import Settings
from talas_lib.sharpness_aware import Perturbation
from talas_lib.stepper import Stepper, StepReport
from talas_lib.token_cache import TokenCache, signals
from talas_lib.tokenization import TextTokenizer
from talas_lib.training_data import TrainingData

BERT_BASE = "bert-base-shape"  # the paper's largest student, with random weights: as fast as the trained one
_POOL, _FIT_ROWS = 2048, 1024


def trained_methods() -> list[str]:
    """Every method that trains its student, in alphabetic order."""
    return [name for name in methods.available() if not methods.builds_student(name)]


def load_student(name: str, pooling: str = "cls") -> Encoder:
    """The student of `params/students/<name>.yaml`, or BERT_BASE with the tokenizer of minilm-l3."""
    if name != BERT_BASE:
        return sources.load_student(params.load_student(name).model_copy(update={"pooling": pooling}))
    from transformers import BertConfig, BertModel

    reader = load_tokenizer(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=len(reader.tokenizer)))
    return Encoder(model, reader.tokenizer, pooling=pooling, max_length=reader.max_length)


def load_tokenizer(name: str) -> TextTokenizer:
    """How that student reads texts."""
    return sources.load_tokenizer(params.load_student("minilm-l3" if name == BERT_BASE else name))


class Recycled:
    """A few rows that stand for endlessly many: reads like a cache's array."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __getitem__(self, at: np.ndarray) -> np.ndarray:
        return self.rows[np.asarray(at) % len(self.rows)]


@dataclass(frozen=True)
class Variant:
    """What one of the timed trainers does. changes: settings of the method other than its file's."""

    method: str = "talas"
    optimizer: str = "adamw"
    precision: str = "fp32"
    changes: tuple[tuple[str, Any], ...] = ()
    frozen_embeddings: bool = False

    @property
    def settings(self) -> Settings:
        return Settings(perturbation=None if self.optimizer == "adamw" else Perturbation(self.optimizer))


@dataclass(frozen=True)
class Trainer:
    """A student in training. `step` makes the batch of some corpus rows and trains on it."""

    stepper: Stepper
    data: TrainingData
    teacher_dim: int

    def step(self, rows: np.ndarray) -> StepReport:
        return self.train(self.data.batch(rows))

    def train(self, batch: Batch) -> StepReport:
        return self.stepper.step(batch, 1.0, measure=False)  # measured every tenth step in training


@dataclass(frozen=True)
class Workload:
    """A student's name, a corpus's name, and how wide the teacher's vectors are."""

    student: str
    corpus: str
    teacher_dim: int = 768
    batch_size: int = 32

    @cached_property
    def texts(self) -> tuple[str, ...]:
        return sources.load_corpus(params.load_corpus_spec(self.corpus)).texts

    @cached_property
    def _read(self) -> tuple[TokenSequences, np.ndarray]:
        reader = load_tokenizer(self.student)
        tokens = reader.tokenize(self.texts)
        return tokens, reader.special(tokens)

    @property
    def tokens(self) -> TokenSequences:
        """The corpus as token ids."""
        return self._read[0]

    def batches(self, count: int, seed: int = 1) -> np.ndarray:
        """Corpus rows of batches, `[count, batch_size]`, each sentence once before any comes again."""
        order = np.random.default_rng(seed).permutation(len(self.texts))
        return np.resize(order, (count, self.batch_size))

    def trainer(
        self, variant: Variant, *, objective: type[Objective] = Objective, stepper: type[Stepper] = Stepper
    ) -> Trainer:
        """A student at its beginning, ready for the last stage of the method. objective, stepper: classes that take times."""
        student = load_student(self.student)
        config = params.load_method(variant.method, dict(variant.changes))
        needs = methods.needs(variant.method, config)
        method, dim = self._method(variant.method, config, student, needs)
        data, used = self._data(needs, dim).renumbered()
        _prepare(method, data, student)
        student.compact_vocabulary(used, sparse_gradient=True)
        if variant.frozen_embeddings:
            student.model.embeddings.requires_grad_(False)
        student.train()
        trained = objective(student, method, needs=needs, precision=variant.precision)
        optimizer = torch.optim.AdamW(trained.parameter_groups(2e-5, 0.01), fused=True)
        return Trainer(stepper(trained, optimizer, variant.settings), data, dim)

    def _method(self, name: str, config: Any, student: Encoder, needs: Needs) -> tuple[Method, int]:
        """The method, and the width of its teachers: that of the student where the method asks for it."""
        count = needs.teachers[0]
        for dim in (self.teacher_dim, student.dim):
            try:
                made = methods.method_class(name)(  # type: ignore[call-arg]
                    _fewer_rows(config),
                    student_dim=student.dim,
                    teacher_dims=(dim,) * count,
                    num_layers=student.num_layers,
                    generator=torch.Generator().manual_seed(0),
                )
            except ValueError:
                if dim == student.dim:
                    raise
            else:
                made.enter(len(made.stages) - 1)
                return made, dim if count else 0
        raise AssertionError

    def _data(self, needs: Needs, dim: int) -> TrainingData:
        tokens, special = self._read
        rng = np.random.default_rng(0)
        vectors = [Recycled(rng.normal(size=(_POOL, dim)).astype(np.float32)) for _ in range(needs.teachers[0])]
        reads_tokens = needs.token_cache or needs.student_tokens or needs.student_attention
        return TrainingData(
            tokens,
            tuple(v.__getitem__ for v in vectors),
            np.arange(len(tokens)),
            np.zeros(len(tokens), dtype=np.int64),
            special=special if reads_tokens else None,
            tokens_of=token_states(tokens, special, dim, needs).tokens if needs.token_cache else None,
            pairs_of=(lambda rows: same_tokens(tokens, special, rows)) if needs.alignment else None,
        )


def _fewer_rows(config: Any) -> Any:
    """The settings, with what is fitted before training fitted on fewer sentences: no step is cheaper for it."""
    return config.model_copy(update={"fit_rows": _FIT_ROWS}) if hasattr(config, "fit_rows") else config


def _prepare(method: Method, data: TrainingData, student: Encoder) -> None:
    def untrained(rows: np.ndarray) -> np.ndarray:
        return np.random.default_rng(2).normal(size=(len(rows), student.dim)).astype(np.float32)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what random vectors are like
        method.prepare(Preparation(len(data), data.teachers, untrained))


def token_states(tokens: TokenSequences, special: np.ndarray, dim: int, needs: Needs) -> TokenCache:
    """A token cache over random states, of a teacher that cuts texts into the same tokens as the student."""
    rng, lengths = np.random.default_rng(3), tokens.lengths
    shapes = {"hidden": (_POOL, dim), "attention": (_POOL,)}
    arrays = {s: Recycled(rng.random(shapes[s.kind], dtype=np.float32).astype(np.float16)) for s in signals(needs)}
    cells = np.concatenate([[0], np.cumsum(lengths**2)])[:-1]
    rows = np.arange(len(lengths))
    return TokenCache(Path(), {"dim": dim}, lengths, special, rows, tokens.offsets[:-1], cells, arrays, 0.0)  # type: ignore[arg-type]


def same_tokens(tokens: TokenSequences, special: np.ndarray, rows: Sequence[int] | np.ndarray) -> Tensor:
    """Every token that is not special paired with itself, int64 `[P, 3]`, as an alignment gives it."""
    found = []
    for number, text in enumerate(rows):
        place = np.flatnonzero(~special[tokens.offsets[text] : tokens.offsets[text + 1]])
        found.append(np.stack([np.full_like(place, number), place, place], axis=1))
    return torch.from_numpy(np.concatenate(found))
