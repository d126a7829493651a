"""SimCSE without labels (Gao, Yao and Chen, EMNLP 2021): two dropout views of a sentence attract, the rest of the batch repels.

No teacher. The paper's SimCSE row trains the raw pooled vector; `mlp_head` adds the original's tanh layer, used in training only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.base import Method, Needs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from talas_lib.methods.base import Batch, StudentStates


class Config(BaseModel):
    """Settings of SimCSE."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    temperature: float = Field(default=0.05, gt=0, description="tau")
    mlp_head: bool = Field(default=False, description="linear + tanh on the pooled vector while training")
    mask_duplicates: bool = Field(default=False, description="copies of a sentence are not its negatives")
    head_lr_mult: float = Field(default=1.0, gt=0, description="learning rate of the head relative to the student's")


class SimCSE(Method):
    """The method object (see methods.base.Method)."""

    views = 2

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
        self.weights = {"simcse": 1.0}
        self.head_lr_mult = config.head_lr_mult
        self.heads = nn.ModuleList([nn.Linear(student_dim, student_dim)] if config.mlp_head else [])
        for head in self.heads:
            nn.init.normal_(cast(nn.Linear, head).weight, std=0.02, generator=generator)
            nn.init.zeros_(cast(nn.Linear, head).bias)

    @staticmethod
    def needs(config: Config) -> Needs:
        """No teacher."""
        return Needs(teachers=(0, 0))

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """simcse of one batch."""
        from talas_lib import losses

        first, second = student.layers[-1], student.second
        assert second is not None
        for head in self.heads:
            first, second = head(first).tanh(), head(second).tanh()
        same = batch.text_ids if self.config.mask_duplicates else None
        return {"simcse": losses.info_nce(first, second, self.config.temperature, same)}


METHOD = SimCSE
