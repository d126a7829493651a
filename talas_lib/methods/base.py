"""What a distillation method is, and the objective that training and the sharpness analysis share.

Torch-free at import, so that a method's `Config` can be checked before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from talas_lib.encoders import Encoder
    from talas_lib.packed import Layout


@dataclass(frozen=True)
class Batch:
    """N training sentences with what the cache knows of them.

    rows: corpus row numbers, int64 `[N]`; ids and layout: the packed tokens; teacher: cached sentence vectors
    `[N, d_T]` of the first teacher, None for a method that needs none; text_ids: int64 `[N]`, equal for equal
    strings; sources: int64 `[N]`, number of the corpus source (domain).
    """

    rows: Tensor
    ids: Tensor
    layout: Layout
    teacher: Tensor | None
    text_ids: Tensor
    sources: Tensor


@dataclass(frozen=True)
class StudentStates:
    """The student's view of a batch. layers: pooled vectors `[N, d_S]` of hidden state 0 (embedding output) to L, first view;
    second: pooled last layer of the second view (other dropout masks), None when the method asks for one view."""

    layers: tuple[Tensor, ...]
    second: Tensor | None


class Method(Protocol):
    """A distillation method: its extra modules and its loss terms. The training loop knows nothing else about it."""

    @property
    def needs_teacher(self) -> bool:
        """Whether it reads the teacher's vectors."""
        ...

    @property
    def views(self) -> int:
        """1, or 2 for a method that compares two dropout views."""
        ...

    @property
    def heads(self) -> torch.nn.Module:
        """Trained with the student, thrown away afterwards; may hold no parameter."""
        ...

    @property
    def head_lr_mult(self) -> float:
        """Learning rate of the heads relative to the student's."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """Weight of each term in the total."""
        ...

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """Unweighted scalar terms, one for each key of `weights`."""
        ...


class Objective:
    """The full training objective: batch to (total, terms), total = sum of weight times term.

    Views run in one forward pass with every sentence laid down twice: same mathematics as two passes, dropout masks
    drawn independently, less overhead. Set `one_pass=False` for two separate passes.
    """

    def __init__(self, student: Encoder, method: Method, *, precision: str = "fp32", one_pass: bool = True) -> None:
        self.student = student
        self.method = method
        self.precision = precision
        self.one_pass = one_pass

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.total(self.states(batch), batch)

    def total(self, states: StudentStates, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the method's terms, and the terms."""
        terms = self.method.terms(states, batch)
        return sum(self.method.weights[name] * term for name, term in terms.items()), terms  # type: ignore[return-value]

    def states(self, batch: Batch) -> StudentStates:
        """Pooled vectors of every layer, in fp32 (or the model's wider dtype)."""
        if self.method.views == 1:
            return StudentStates(self._pooled(batch.ids, batch.layout), None)
        if not self.student.training:  # no dropout: the second view equals the first
            layers = self._pooled(batch.ids, batch.layout)
            return StudentStates(layers, layers[-1])
        if not self.one_pass:
            first = self._pooled(batch.ids, batch.layout)
            return StudentStates(first, self._pooled(batch.ids, batch.layout)[-1])
        both, origin = batch.layout.twice()
        layers = self._pooled(batch.ids[origin], both)
        return StudentStates(tuple(e[0::2] for e in layers), layers[-1][1::2])

    def _pooled(self, ids: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        from talas_lib.encoders import autocast
        from talas_lib.pooling import pool

        with autocast(self.student.device, self.precision):
            hidden = self.student(ids, layout)
        return tuple(pool(_at_least_fp32(h), layout, self.student.pooling) for h in hidden)

    def parameter_groups(self, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups: the student at `lr`, the heads at `lr` times the method's factor; decay on every parameter."""
        groups = [{"params": list(self.student.parameters()), "lr": lr, "weight_decay": weight_decay}]
        heads = list(self.method.heads.parameters())
        if heads:
            groups.append({"params": heads, "lr": lr * self.method.head_lr_mult, "weight_decay": weight_decay})
        return groups


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x
