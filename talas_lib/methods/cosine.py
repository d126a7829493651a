"""Cosine regression: the student's vector is turned towards the teacher's, nothing in between.

    L = mean_i [ 1 - cos(e_i, t_i) ]

For teachers of the student's width. Teacher signal: one cached sentence vector a sentence. No extra modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from talas_lib.methods.regression import Regression, check_equal_widths

if TYPE_CHECKING:
    import torch


class Config(BaseModel):
    """Cosine regression has no settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Cosine(Regression):
    """The method object (see methods.base.Method). ValueError when the widths differ."""

    term = "cosine"
    distance = "cosine"

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

        check_equal_widths("cosine", student_dim, teacher_dims[0])
        self.weights = {"cosine": 1.0}
        self.heads = nn.ModuleList()


METHOD = Cosine
