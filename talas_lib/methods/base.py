"""What a distillation method is, and the objective that training and the sharpness analysis share.

Torch-free at import, so that a method's `Config` can be checked before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from talas_lib.distribution import Ranks
    from talas_lib.encoders import Encoder
    from talas_lib.packed import Layout

AlignmentKind = Literal["strict", "dtw", "mined"]


@dataclass(frozen=True)
class Needs:
    """What a method reads beside the student's sentence vectors. Known from its Config alone, before anything is loaded.

    Layers are counted from the top: -1 is the last block, -2 the one below. teachers: at least and at most (None: any number);
    (0, 0) for a method without a teacher. teacher_tokens, teacher_attention: hidden states and head-averaged attention in
    the token cache of the first teacher. student_tokens, student_attention: the same of the student, first view.
    alignment: which token alignment of student and teacher (see talas_lib.alignment). sources: distinct corpus sources
    at least.
    """

    teachers: tuple[int, int | None] = (1, 1)
    teacher_tokens: tuple[int, ...] = ()
    teacher_attention: tuple[int, ...] = ()
    student_tokens: tuple[int, ...] = ()
    student_attention: tuple[int, ...] = ()
    alignment: AlignmentKind | None = None
    sources: int = 1

    @property
    def token_cache(self) -> bool:
        """Whether more than the teacher's sentence vectors must be cached."""
        return bool(self.teacher_tokens or self.teacher_attention or self.alignment)


@dataclass(frozen=True)
class Stage:
    """A part of training with its own optimizer and learning-rate schedule. epochs: None for the run's own number.

    trains: the student with the heads, or the heads alone (the student frozen, its dropout left on).
    """

    epochs: int | None = None
    trains: Literal["all", "heads"] = "all"


@dataclass(frozen=True)
class TeacherTokens:
    """The first teacher's token states of a batch, padded on the right; L_t is the batch's longest teacher sequence.

    valid: bool `[N, L_t]`; special: bool `[N, L_t]`, true for special tokens (valid ones only); states: hidden states
    `[N, L_t, d_T]` fp32 by layer from the top (-1, -2, ...); attention: head-averaged weights `[N, L_t, L_t]` (rows: queries)
    by block from the top. Empty cells hold zeros.
    """

    valid: Tensor
    special: Tensor
    states: Mapping[int, Tensor] = field(default_factory=dict)
    attention: Mapping[int, Tensor] = field(default_factory=dict)

    def take(self, sentences: Tensor) -> TeacherTokens:
        """The token states of some sentences of the batch, int64 `[n]`."""
        states = {layer: h[sentences] for layer, h in self.states.items()}
        attention = {block: a[sentences] for block, a in self.attention.items()}
        return TeacherTokens(self.valid[sentences], self.special[sentences], states, attention)


@dataclass(frozen=True)
class Batch:
    """N training sentences with what the caches know of them.

    rows: corpus row numbers, int64 `[N]`; ids and layout: the packed tokens of the student (`layout.valid` is bool
    `[N, L_s]`); teachers: cached sentence vectors `[N, d_T]`, one tensor a teacher (a row of NaN: this teacher has no vector
    for it); text_ids: int64 `[N]`, equal for equal strings; sources: int64 `[N]`, number of the corpus source (domain);
    special: bool `[N, L_s]`, the student's special tokens; tokens: the teacher's token states; pairs: int64 `[P, 3]`, aligned
    tokens as (sentence in the batch, student position, teacher position). The last three are None unless asked for.
    """

    rows: Tensor
    ids: Tensor
    layout: Layout
    teachers: tuple[Tensor, ...]
    text_ids: Tensor
    sources: Tensor
    special: Tensor | None = None
    tokens: TeacherTokens | None = None
    pairs: Tensor | None = None

    @property
    def teacher(self) -> Tensor:
        """Vectors of the first teacher, `[N, d_T]`."""
        return self.teachers[0]

    def every(self, stride: int, offset: int = 0) -> Batch:
        """The part of the batch made of sentences offset, offset + stride, ...; of all lengths, since they are sorted by it."""
        import torch

        taken = torch.arange(offset % stride, len(self.rows), stride, device=self.rows.device)
        ids, layout = self.tokens_of_every(stride, offset)
        pairs = None
        if self.pairs is not None:
            here = self.pairs[self.pairs[:, 0] % stride == offset % stride]
            pairs = torch.cat([here[:, :1] // stride, here[:, 1:]], dim=1)
        return Batch(
            rows=self.rows[taken],
            ids=ids,
            layout=layout,
            teachers=tuple(t[taken] for t in self.teachers),
            text_ids=self.text_ids[taken],
            sources=self.sources[taken],
            special=None if self.special is None else self.special[taken],
            tokens=None if self.tokens is None else self.tokens.take(taken),
            pairs=pairs,
        )

    def tokens_of_every(self, stride: int, offset: int = 0) -> tuple[Tensor, Layout]:
        """Packed ids and layout of that part, as wide as the batch's own."""
        from talas_lib.packed import Layout

        lengths = self.layout.lengths[offset % stride :: stride]
        layout = Layout(lengths, self.layout.longest, self.layout.bidirectional)
        starts = self.layout.starts[offset % stride :: stride]
        return self.ids[starts[layout.sentence] + layout.position], layout


@dataclass(frozen=True)
class StudentStates:
    """The student's view of a batch. layers: pooled vectors `[N, d_S]` of hidden state 0 (embedding output) to L, first view;
    second: pooled last layer of the second view (other dropout masks), None when the method asks for one view.

    tokens: hidden states `[N, L_s, d_S]` of the first view, zeros in empty cells, by layer from the top (-1, ...); attention:
    head-averaged weights `[N, L_s, L_s]` by block from the top, before dropout. Both only where `Needs` asks for them.
    """

    layers: tuple[Tensor, ...]
    second: Tensor | None = None
    tokens: Mapping[int, Tensor] = field(default_factory=dict)
    attention: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def pooled(self) -> Tensor:
        """The sentence vectors, `[N, d_S]`."""
        return self.layers[-1]


@dataclass(frozen=True)
class Preparation:
    """What a method may look at once, before training: the caches and the untrained student.

    sentences: size of the corpus; teachers: functions of row numbers that give float32 `[rows, d_T]`; student: the same
    for the untrained student's sentence vectors, evaluation mode, `[rows, d_S]` (computed when called); batch_size:
    sentences a step.
    """

    sentences: int
    teachers: tuple[Callable[[np.ndarray], np.ndarray], ...]
    student: Callable[[np.ndarray], np.ndarray]
    batch_size: int = 32


class Method:
    """A distillation method: its extra modules and its loss terms. The training loop knows nothing else about it.

    A subclass sets `heads` (trained with the student, thrown away afterwards; may hold no parameter) and `weights` (of each
    term in the total), and defines `terms`. Its constructor takes the Config and, by keyword, student_dim, teacher_dims
    (one width a teacher), num_layers and generator (for initial values), and raises ValueError for a Config that
    does not fit them. Whatever is drawn at random in `terms` is drawn only while `heads.training`.
    """

    views: int = 1  # 2 for a method that compares two dropout views
    head_lr_mult: float = 1.0  # learning rate of the heads relative to the student's
    stages: tuple[Stage, ...] = (Stage(),)
    builds_student: bool = False  # True: the student is computed once, without training (see methods.static)
    heads: Any  # torch.nn.Module
    weights: Mapping[str, float]

    @staticmethod
    def needs(config: Any) -> Needs:
        """What this configuration reads; by default the sentence vectors of one teacher."""
        return Needs()

    @classmethod
    def stages_of(cls, config: Any) -> tuple[Stage, ...]:
        """The stages that this configuration trains in: `stages`, known before there is a student."""
        return cls.stages

    def prepare(self, preparation: Preparation) -> None:
        """Fit what has to be fitted before training (a PCA, a rotation), into buffers of `heads`."""

    def enter(self, stage: int) -> None:
        """Called when stage number `stage` begins; may change `weights`."""

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """Unweighted scalar terms, one for each key of `weights`."""
        raise NotImplementedError

    def row_loss(self, student: StudentStates, batch: Batch) -> Tensor:
        """The weighted part of the loss that is a mean over sentences, before the mean, `[N]`: what DISAM compares
        between sources. NotImplementedError for a method that has no such part."""
        raise NotImplementedError

    def output(self) -> torch.nn.Module | None:
        """A module `[n, d_S] -> [n, d]` that stays behind the pooling in the finished student; None for the pooled vector."""
        return None


def simcse_term(method: Method, student: StudentStates, temperature: float) -> dict[str, Tensor]:
    """SimCSE between the pooled vectors of the two views, by its name; nothing where the method gives it no weight."""
    from talas_lib import losses

    if "simcse" not in method.weights:
        return {}
    assert student.second is not None
    return {"simcse": losses.info_nce(student.pooled, student.second, temperature)}


def weighted_rows(method: Method, rows: Mapping[str, Tensor]) -> Tensor:
    """The sum of a method's terms by sentence `[N]`, each times its weight: a `row_loss`. NotImplementedError without a term."""
    if not rows:
        raise NotImplementedError
    return sum(
        (method.weights[name] * row for name, row in rows.items()), start=next(iter(rows.values())).new_zeros(())
    )


def weights_in_use(by_term: Mapping[str, float], method: str) -> dict[str, float]:
    """The terms of positive weight; a term of weight 0 is not computed. ValueError, with the method's name, when none is left."""
    kept = {name: weight for name, weight in by_term.items() if weight > 0}
    if not kept:
        raise ValueError(f"all weights of {method} are 0: there is nothing to train on")
    return kept


class Objective:
    """The full training objective: batch to (total, terms), total = sum of weight times term.

    Views run in one forward pass with every sentence laid down twice: same mathematics as two passes, dropout masks
    drawn independently, less overhead. Set `one_pass=False` for two separate passes.
    """

    def __init__(
        self,
        student: Encoder,
        method: Method,
        *,
        needs: Needs | None = None,
        precision: str = "fp32",
        one_pass: bool = True,
    ) -> None:
        self.student = student
        self.method = method
        self.needs = needs or Needs()
        self.precision = precision
        self.one_pass = one_pass
        self.ranks: Ranks | None = None  # the processes that share a batch (see distribution)

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.total(self.states(batch), batch)

    def total(self, states: StudentStates, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the method's terms, and the terms."""
        with self.together():
            terms = self.method.terms(states, batch)
        return sum(self.method.weights[name] * term for name, term in terms.items()), terms  # type: ignore[return-value]

    def together(self) -> AbstractContextManager[None]:
        """Around what a method computes on the whole batch: processes that share it draw the same random numbers."""
        return nullcontext() if self.ranks is None else self.ranks.common_randomness(self.student.device)

    def states(self, batch: Batch, *, one_view: bool = False) -> StudentStates:
        """Pooled vectors of every layer, and the token states the method needs, in fp32 (or the model's wider dtype).

        one_view: the second view is the first once more, as it is without dropout; half the work. Of several processes each
        computes its part, and all get the states of the whole batch.
        """
        if self.ranks is None:
            return self._states(batch.ids, batch.layout, one_view)
        return self.ranks.gather(self._states(*self.ranks.part(batch), one_view), len(batch.rows))

    def _states(self, ids: Tensor, layout: Layout, one_view: bool) -> StudentStates:
        if self.method.views == 1:
            return self._pass(ids, layout)
        if one_view or not self.student.training:  # without dropout the second view equals the first
            states = self._pass(ids, layout)
            return StudentStates(states.layers, states.pooled, states.tokens, states.attention)
        if not self.one_pass:
            states = self._pass(ids, layout)
            second = self._pass(ids, layout).pooled
            return StudentStates(states.layers, second, states.tokens, states.attention)
        both, origin = layout.twice()
        states = self._pass(ids[origin], both)
        first = tuple(e[0::2] for e in states.layers)
        tokens = {layer: h[0::2] for layer, h in states.tokens.items()}
        attention = {block: a[0::2] for block, a in states.attention.items()}
        return StudentStates(first, states.pooled[1::2], tokens, attention)

    def _pass(self, ids: Tensor, layout: Layout) -> StudentStates:
        from talas_lib.encoders import autocast

        with autocast(self.student.device, self.precision):
            layers, tokens, attention = self.student.pooled(
                ids, layout, self.needs.student_tokens, self.needs.student_attention
            )
        return StudentStates(layers, None, tokens, attention)

    def parameter_groups(self, lr: float, weight_decay: float, *, student: bool = True) -> list[dict[str, Any]]:
        """Optimizer groups: the student at `lr` (left out on request), the heads at `lr` times the method's factor; decay on
        every parameter."""
        groups = (
            [{"params": list(self.student.parameters()), "lr": lr, "weight_decay": weight_decay}] if student else []
        )
        heads = list(self.method.heads.parameters())
        if heads:
            groups.append({"params": heads, "lr": lr * self.method.head_lr_mult, "weight_decay": weight_decay})
        return groups
