"""Mean squared error to the teacher's vectors, the oldest recipe (sentence-transformers' MSELoss).

    L = mean_i ||e_i - t_i||^2 / d        (reduction: vector leaves out the division)

For teachers of the student's width. Teacher signal: one cached sentence vector a sentence. No extra modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.regression import Regression, check_equal_widths

if TYPE_CHECKING:
    import torch


class Config(BaseModel):
    """Settings of the mean squared error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reduction: Literal["element", "vector"] = Field(
        default="element", description="mean over the d numbers of a vector, or their sum"
    )


class Mse(Regression):
    """The method object (see methods.base.Method). ValueError when the widths differ."""

    term = "mse"

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

        check_equal_widths("mse", student_dim, teacher_dims[0])
        self.distance = "mse" if config.reduction == "element" else "squared"
        self.weights = {"mse": 1.0}
        self.heads = nn.ModuleList()


METHOD = Mse
