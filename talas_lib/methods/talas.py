"""TALAS: teacher-anchored multi-layer distillation, layer-aligned self-distillation and a little SimCSE (paper, section 3).

    L = 0.001 L_SimCSE + 0.75 L_TAMD + 1 L_LASD

Teacher signal: one cached sentence vector a sentence. Extra modules: one linear head d_S -> d_T per anchor layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.base import Method, weights_in_use

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from talas_lib.methods.base import Batch, StudentStates


class Config(BaseModel):
    """Every switch of TALAS. Where paper and released code differ, the default follows the code and the field says so."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weight_simcse: float = Field(default=0.001, ge=0, description="weight of SimCSE")
    weight_tamd: float = Field(default=0.75, ge=0, description="weight of TAMD")
    weight_lasd: float = Field(default=1.0, ge=0, description="weight of LASD")
    num_anchor_layers: int = Field(default=2, ge=1, description="top layers pulled to the teacher (the paper's k + 1)")
    lasd_pairs: int | Literal["all"] = Field(default="all", description="adjacent pairs counted from the top, or all")
    lasd_include_embedding: bool = Field(
        default=True, description="count the pair (embedding output, block 1): code yes, eq. 5 no"
    )
    lasd_stop_grad: Literal["upper", "lower"] | None = Field(default=None, description="side of each pair held fixed")
    head_init_std: float = Field(default=1e-3, gt=0, description="heads start as N(0, std^2)")
    head_bias: bool = Field(default=False, description="bias in the heads")
    head_lr_mult: float = Field(default=5.0, gt=0, description="learning rate of the heads relative to the student's")
    temperature: float = Field(default=0.1, gt=0, description="tau of SimCSE")


class Talas(Method):
    """The method object that the training loop works with (see methods.base.Method).

    student_dim, teacher_dims: widths d_S, (d_T,); num_layers: student blocks L. ValueError when the configuration asks for
    more anchor layers or pairs than the student has.
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

        self.config = config
        by_term = {"simcse": config.weight_simcse, "tamd": config.weight_tamd, "lasd": config.weight_lasd}
        self.weights = weights_in_use(by_term, "TALAS")
        if config.num_anchor_layers > num_layers:
            raise ValueError(f"num_anchor_layers={config.num_anchor_layers}, but the student has {num_layers} blocks")
        self.views = 2 if "simcse" in self.weights else 1
        self.head_lr_mult = config.head_lr_mult
        self.first_anchor = num_layers + 1 - config.num_anchor_layers
        self.first_relation = self._first_relation(num_layers)
        anchors = config.num_anchor_layers if "tamd" in self.weights else 0
        self.heads = nn.ModuleList(
            nn.Linear(student_dim, teacher_dims[0], bias=config.head_bias) for _ in range(anchors)
        )
        for head in self.heads:
            nn.init.normal_(cast(nn.Linear, head).weight, std=config.head_init_std, generator=generator)
            if config.head_bias:
                nn.init.zeros_(cast(nn.Linear, head).bias)

    def _first_relation(self, num_layers: int) -> int:
        lowest = 0 if self.config.lasd_include_embedding else 1
        available = num_layers - lowest
        pairs = available if self.config.lasd_pairs == "all" else self.config.lasd_pairs
        if "lasd" in self.weights and not 1 <= pairs <= available:
            raise ValueError(
                f"lasd_pairs={self.config.lasd_pairs}: this student has {available} adjacent pairs, give 1 to {available} or all"
            )
        return num_layers - pairs

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """simcse, tamd and lasd of one batch, leaving out those of weight 0."""
        from talas_lib import losses

        terms = {}
        if "simcse" in self.weights:
            assert student.second is not None
            terms["simcse"] = losses.info_nce(student.layers[-1], student.second, self.config.temperature)
        if "tamd" in self.weights:
            anchored = student.layers[self.first_anchor :]
            terms["tamd"] = losses.tamd([head(e) for head, e in zip(self.heads, anchored, strict=True)], batch.teacher)
        if "lasd" in self.weights:
            relations = [losses.relation_matrix(e) for e in student.layers[self.first_relation :]]
            terms["lasd"] = losses.lasd(relations, self.config.lasd_stop_grad)
        return terms

    def row_loss(self, student: StudentStates, batch: Batch) -> Tensor:
        """The weighted TAMD of each sentence, `[N]`: the only one of the three terms that adds up over sentences."""
        from talas_lib import losses

        if "tamd" not in self.weights:
            raise NotImplementedError
        anchored = student.layers[self.first_anchor :]
        projected = [head(e) for head, e in zip(self.heads, anchored, strict=True)]
        return self.config.weight_tamd * losses.tamd_rows(projected, batch.teacher)


METHOD = Talas
