"""DistillCSE (Xu, Shao, Chen and Liu, Findings of EMNLP 2023): SimCSE, and the teacher's ranking of the batch.

    L = L_SimCSE + w_d mean_i [ - sum_{j != i} q_ij log p_ij ]
    q_i = softmax_j( cos(t_i, t_j) / tau_T ),  p_i = softmax_j( cos(z_i, z_j) / tau_S )

Group-p shuffling exchanges, at every step, the student's p_ij between neighbours that the teacher finds about equally
likely, so that their exact order is not learnt. Teacher signal: cached sentence vectors of any width, of one teacher or
several (their cosines are averaged); nothing is projected.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.base import Method, Needs

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from talas_lib.methods.base import Batch, Preparation, StudentStates

LOW_PERPLEXITY = 1.5
SAMPLED_BATCHES = 8


class Config(BaseModel):
    """Settings of DistillCSE; the defaults are the official ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weight_simcse: float = Field(default=1.0, ge=0, description="weight of SimCSE; 0 leaves it and the second view out")
    weight_listwise: float = Field(default=1.0, gt=0, description="w_d, weight of the teacher's distribution")
    temperature: float = Field(default=0.05, gt=0, description="tau of SimCSE")
    student_temperature: float = Field(default=0.025, gt=0, description="tau_S")
    teacher_temperature: float = Field(default=0.0125, gt=0, description="tau_T")
    group_mass: float | None = Field(default=0.1, gt=0, le=1, description="p of group shuffling; null: no shuffling")
    divergence: Literal["ce", "kl"] = Field(default="ce", description="kl is ce less the teacher's entropy")
    teacher_weights: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)] | None = Field(
        default=None, description="mixture of several teachers, one number each, scaled to sum 1; null: equal"
    )
    mlp_head: bool = Field(default=False, description="linear + tanh on the pooled vector while training")
    head_lr_mult: float = Field(default=1.0, gt=0, description="learning rate of the head relative to the student's")


class DistillCSE(Method):
    """The method object (see methods.base.Method).

    ValueError when `teacher_weights` does not hold one number a teacher, or only zeros.
    """

    def __init__(
        self,
        config: Config,
        *,
        student_dim: int,
        teacher_dims: tuple[int, ...],
        num_layers: int,
        generator: torch.Generator,
    ) -> None:
        from torch import nn

        from talas_lib.methods.heads import linear

        self.config = config
        self.weights = {"listwise": config.weight_listwise}
        if config.weight_simcse > 0:
            self.weights = {"simcse": config.weight_simcse} | self.weights
        self.views = 2 if "simcse" in self.weights else 1
        self.head_lr_mult = config.head_lr_mult
        self.mixture = _mixture(config.teacher_weights, len(teacher_dims))
        heads = [linear(student_dim, student_dim, std=0.02, generator=generator)] if config.mlp_head else []
        self.heads = nn.ModuleList(heads)

    @staticmethod
    def needs(config: Config) -> Needs:
        """Sentence vectors of one teacher or more."""
        return Needs(teachers=(1, None))

    def prepare(self, preparation: Preparation) -> None:
        """Warn when the teacher's softmax over a batch weighs hardly more than the nearest neighbour."""
        size = min(preparation.batch_size, preparation.sentences)
        if size < 3:  # at most one neighbour: nothing to weigh
            return
        temperature = self.config.teacher_temperature
        found = self._perplexity(preparation, size, temperature)
        if not found < LOW_PERPLEXITY:
            return
        better = temperature
        while self._perplexity(preparation, size, better) < LOW_PERPLEXITY:
            better *= 2
        warnings.warn(
            f"DistillCSE: at teacher_temperature {temperature:g} the teacher's distribution over a batch has a mean"
            f" perplexity of {found:.2f}, so that hardly more than the nearest neighbour counts. Raise teacher_temperature:"
            f" {better:g} gives {self._perplexity(preparation, size, better):.2f}",
            stacklevel=2,
        )

    def _perplexity(self, preparation: Preparation, size: int, temperature: float) -> float:
        """Mean perplexity of the teacher's distribution over a few batches of `size` sentences, always the same ones."""
        import numpy as np
        import torch

        from talas_lib import relation_losses

        rng, found = np.random.default_rng(0), []
        for _ in range(SAMPLED_BATCHES):
            rows = rng.choice(preparation.sentences, size, replace=False)
            vectors = [torch.from_numpy(vectors_of(rows)) for vectors_of in preparation.teachers]
            found.append(relation_losses.mean_perplexity(self._teacher_similarities(vectors) / temperature))
        return float(torch.stack(found).mean())

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """simcse (unless its weight is 0) and listwise of one batch."""
        from talas_lib import losses

        terms = {}
        if "simcse" in self.weights:
            assert student.second is not None
            first, second = self._trained(student.pooled), self._trained(student.second)
            terms["simcse"] = losses.info_nce(first, second, self.config.temperature)
        terms["listwise"] = self._listwise(student, batch).mean()
        return terms

    def row_loss(self, student: StudentStates, batch: Batch) -> Tensor:
        """The weighted listwise loss of each sentence's row, `[N]`; in training the shuffle is drawn anew."""
        return self.config.weight_listwise * self._listwise(student, batch)

    def _listwise(self, student: StudentStates, batch: Batch) -> Tensor:
        import torch

        from talas_lib import losses, relation_losses

        teacher = self._teacher_similarities(batch.teachers)
        pupil = relation_losses.off_diagonal(losses.relation_matrix(self._trained(student.pooled)))
        if self.config.group_mass is not None and self.heads.training:
            keys = torch.rand(teacher.shape, device=teacher.device)
            order, shuffled = relation_losses.group_shuffle(teacher, self.config.group_mass, keys)
            teacher, pupil = teacher.gather(1, order), pupil.gather(1, shuffled)
        teacher, pupil = teacher / self.config.teacher_temperature, pupil / self.config.student_temperature
        rows = relation_losses.listwise_cross_entropy(pupil, teacher)
        return rows - relation_losses.listwise_entropy(teacher) if self.config.divergence == "kl" else rows

    def _teacher_similarities(self, teachers: Sequence[Tensor]) -> Tensor:
        """Cosines of every sentence with the others, `[N, N - 1]`, averaged over the teachers."""
        from talas_lib import losses, relation_losses

        matrices = [w * losses.relation_matrix(t) for w, t in zip(self.mixture, teachers, strict=True)]
        total = matrices[0]
        for matrix in matrices[1:]:
            total = total + matrix
        return relation_losses.off_diagonal(total)

    def _trained(self, pooled: Tensor) -> Tensor:
        for head in self.heads:
            pooled = head(pooled).tanh()
        return pooled


def _mixture(given: tuple[float, ...] | None, teachers: int) -> tuple[float, ...]:
    if given is None:
        return (1 / teachers,) * teachers
    if len(given) != teachers or sum(given) <= 0:
        raise ValueError(
            f"teacher_weights={list(given)}: give one number for each of the {teachers} teachers, not all 0, or null"
        )
    return tuple(weight / sum(given) for weight in given)


METHOD = DistillCSE
