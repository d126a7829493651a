"""Embedding matching through a linear layer that is thrown away, as sentence-transformers' EmbedDistillLoss does it.

    L = mean_i D(W e_i + b, t_i),    D = 1 - cos (default), ||.||, or ||.||^2 / d_T

With D = 1 - cos and no bias it is TALAS's TAMD with one anchor layer. Teacher signal: one cached sentence vector a sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.heads import linear
from talas_lib.methods.regression import Regression, check_equal_widths

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from talas_lib.methods.base import StudentStates


class Config(BaseModel):
    """Settings of embedding matching."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    distance: Literal["cosine", "l2", "mse"] = Field(default="cosine", description="how two vectors are compared")
    projection: bool = Field(default=True, description="a linear layer d_S -> d_T before the comparison")
    bias: bool = Field(default=True, description="bias in that layer")
    head_lr_mult: float = Field(default=1.0, gt=0, description="learning rate of that layer relative to the student's")


class EmbedDistill(Regression):
    """The method object (see methods.base.Method). ValueError without projection when the widths differ."""

    term = "embed_distill"

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

        if not config.projection:
            check_equal_widths("embed_distill with projection: false", student_dim, teacher_dims[0])
        self.distance = config.distance
        self.weights = {"embed_distill": 1.0}
        self.head_lr_mult = config.head_lr_mult
        self.heads = nn.ModuleList()
        if config.projection:
            self.heads.append(linear(student_dim, teacher_dims[0], bias=config.bias, generator=generator))

    def predicted(self, student: StudentStates) -> Tensor:
        """The pooled vectors in the teacher's space, `[N, d_T]`."""
        vectors = student.pooled
        for head in self.heads:
            vectors = head(vectors)
        return vectors


METHOD = EmbedDistill
