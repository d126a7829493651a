"""LEAF (Vujanic and Rueckstiess 2025, arXiv 2509.12539): the student moves into the teacher's space and stays there.

    L = mean_i || W e_i + b - t_i ||^2

The linear layer is kept: the finished student gives vectors of the teacher's width that can be compared with the teacher's own
(a large teacher for the documents, the student for the queries). Teacher signal: one cached sentence vector a sentence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.heads import linear
from talas_lib.methods.regression import Regression

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from talas_lib.methods.base import StudentStates


class Config(BaseModel):
    """Settings of LEAF."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    bias: bool = Field(default=True, description="bias in the linear layer")
    head_lr_mult: float = Field(default=1.0, gt=0, description="learning rate of that layer relative to the student's")


class Leaf(Regression):
    """The method object (see methods.base.Method)."""

    term = "leaf"
    distance = "squared"

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

        self.weights = {"leaf": 1.0}
        self.head_lr_mult = config.head_lr_mult
        self.heads = nn.ModuleList([linear(student_dim, teacher_dims[0], bias=config.bias, generator=generator)])

    def predicted(self, student: StudentStates) -> Tensor:
        """The student's vectors in the teacher's space, `[N, d_T]`."""
        projected: Tensor = self.heads[0](student.pooled)
        return projected

    def output(self) -> nn.Module:
        """The linear layer, d_S -> d_T."""
        layer: nn.Module = self.heads[0]
        return layer


METHOD = Leaf
