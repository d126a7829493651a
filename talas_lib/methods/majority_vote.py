"""Majority vote of several teachers (Formont, Darrin et al., NeurIPS 2025, arXiv 2510.18680).

    L = sum_k mean_i [ - log q_k( t_k,i | e_i ) ]

A student from whose vector every teacher's vector can be guessed decides like most teachers on any task; q_k, a Gaussian whose
mean and scale a small network reads off the student's vector, does the guessing. Teacher signal: cached sentence vectors of
two teachers or more, of any widths; a row of NaN is a sentence that this teacher has not seen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.base import Method, Needs

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from talas_lib.methods.base import Batch, StudentStates


class Config(BaseModel):
    """Settings of the majority vote."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    teacher_scaling: Literal["sqrt_d", "none"] = Field(
        default="sqrt_d", description="teacher vectors at length sqrt(d_T), so of variance 1 a dimension, or as cached"
    )
    normalized: bool = Field(default=True, description="each teacher's loss divided by its width d_T")
    hidden_layers: int = Field(default=3, ge=0, description="layers with ReLU in each head")
    hidden_ratio: float = Field(default=1.4, gt=0, description="their width relative to d_T")
    head_lr_mult: float = Field(default=5.0, gt=0, description="learning rate of the heads relative to the student's")


class MajorityVote(Method):
    """The method object (see methods.base.Method). One head a teacher: `[N, d_S]` to mean and raw scale, `[N, 2 d_T]`."""

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

        self.config = config
        self.weights = {f"teacher_{k}": 1.0 for k in range(1, len(teacher_dims) + 1)}
        self.head_lr_mult = config.head_lr_mult
        self.heads = nn.ModuleList(_head(config, student_dim, dim, generator) for dim in teacher_dims)

    @staticmethod
    def needs(config: Config) -> Needs:
        """Sentence vectors of two teachers or more."""
        return Needs(teachers=(2, None))

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """teacher_1, teacher_2, ...: the negative log-likelihood of each teacher's vectors; 0 where it has none."""
        rows = self._rows(student, batch)
        return {name: row.mean() for name, row in zip(self.weights, rows, strict=True)}

    def row_loss(self, student: StudentStates, batch: Batch) -> Tensor:
        """The loss of each sentence, summed over the teachers, `[N]`; its mean is the total."""
        import torch

        return torch.stack(self._rows(student, batch)).sum(0)

    def _rows(self, student: StudentStates, batch: Batch) -> list[Tensor]:
        """`[N]` a teacher, with the mean over available sentences as its mean: others are 0, these scaled up by N / n."""
        from talas_lib import losses, relation_losses

        found = []
        for head, vectors in zip(self.heads, batch.teachers, strict=True):
            available = ~vectors.isnan().any(1)
            target = vectors.masked_fill(~available[:, None], 0.0)
            dim = target.shape[1]
            if self.config.teacher_scaling == "sqrt_d":
                target = math.sqrt(dim) * losses.unit(target)
            mean, raw_scale = head(student.pooled).chunk(2, dim=1)
            nll = relation_losses.gaussian_nll(target, mean, raw_scale) / (dim if self.config.normalized else 1)
            found.append(nll * available * len(nll) / available.sum().clamp_min(1))
        return found


def _head(config: Config, student_dim: int, teacher_dim: int, generator: torch.Generator) -> nn.Sequential:
    from torch import nn

    from talas_lib.methods.heads import linear

    width, inputs = max(1, int(config.hidden_ratio * teacher_dim)), student_dim
    layers: list[nn.Module] = []
    for _ in range(config.hidden_layers):
        layers += [linear(inputs, width, generator=generator), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, linear(inputs, 2 * teacher_dim, generator=generator))


METHOD = MajorityVote
