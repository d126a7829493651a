"""DistillMoE (ICLR 2026 submission 10860; details from the authors' code), adapted to sentence embeddings.

    L = (1 - r) L_SimCSE(o, o') + r [ a (mean_i sum_m pi_im l_mi + c L_min + L_div) + (1 - a) L_CKA ]

Three experts on the sentence vector learn by three losses, weighed by a router: o = sum_m pi_m h_m. Token states of the last two
layers are aligned softly and compared by CKA. Teacher signal: sentence vector and, unless token_weight is 0, token
states. Extra modules: the mixture of experts, which stays in the finished student by default, and one linear map d_S -> d_T.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.base import Method, Needs, weighted_rows, weights_in_use

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from talas_lib.methods.base import Batch, StudentStates

EXPERTS = 3  # one a loss: pointwise, contrastive, pairwise
LAYERS = (-1, -2)


class Config(BaseModel):
    """Settings of DistillMoE; where the source's values depend on the data set, those for sentence pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kd_rate: float = Field(default=0.5, ge=0, le=1, description="r: share of distillation, the rest is SimCSE")
    moe_weight: float = Field(default=0.7, ge=0, description="a: weight of the experts' part within r")
    token_weight: float = Field(
        default=0.3, ge=0, description="1 - a: weight of the token part; 0 needs no token cache"
    )
    weight_min: float = Field(default=5.0, ge=0, description="c: weight of L_min, which keeps every expert in use")
    weight_div: float = Field(default=1.0, ge=0, description="weight of L_div, which keeps experts different")
    least_share: float = Field(default=0.25, ge=0, le=1 / EXPERTS, description="l: router weight that L_min asks for")
    temperature: float = Field(default=0.05, gt=0, description="tau of SimCSE")
    contrastive_temperature: float = Field(default=0.1, gt=0, description="tau of the second expert")
    pairwise_margin: float = Field(default=0.1, ge=0, description="delta of the third expert")
    hidden: int = Field(default=1024, ge=1, description="width inside experts and router")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout in experts and router")
    align_mass: float = Field(default=0.95, gt=0, le=1, description="softmax mass a token's alignment holds")
    align_most: int = Field(default=3, ge=1, description="teacher tokens a student token is aligned with, at most")
    align_least_cosine: float = Field(default=0.3, ge=-1, le=1, description="below it only the nearest token counts")
    align_temperature: float = Field(default=1.0, gt=0, description="of the softmax over cosines")
    output: Literal["moe", "cls"] = Field(default="moe", description="the finished vector: o, or the pooled vector")
    head_lr_mult: float = Field(default=5.0, gt=0, description="learning rate of the heads relative to the student's")


class DistillMoE(Method):
    """The method object (see methods.base.Method). Terms: simcse, experts, min, div, cka.

    ValueError when all weights are 0, and when the token part meets a student of a single block.
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

        from talas_lib.experts import MixtureOfExperts
        from talas_lib.methods.heads import linear

        self.config = config
        within = config.kd_rate * config.moe_weight
        by_term = {
            "simcse": 1 - config.kd_rate,
            "experts": within,
            "min": within * config.weight_min,
            "div": within * config.weight_div,
            "cka": config.kd_rate * config.token_weight,
        }
        self.weights = weights_in_use(by_term, "DistillMoE")
        if "cka" in self.weights and num_layers < len(LAYERS):
            raise ValueError(f"the token part compares the last {len(LAYERS)} blocks, and the student has {num_layers}")
        self.views = 2 if "simcse" in self.weights else 1
        self.head_lr_mult = config.head_lr_mult
        moe = MixtureOfExperts(
            student_dim,
            hidden=config.hidden,
            experts=EXPERTS,
            dropout=config.dropout,
            linear=partial(linear, generator=generator),
        )
        self.heads = nn.ModuleDict({"moe": moe})
        if {"experts", "cka"} & self.weights.keys():
            projection = linear(student_dim, teacher_dims[0], bias=False, generator=generator)
            nn.init.xavier_uniform_(projection.weight, generator=generator)
            self.heads["projection"] = projection

    @staticmethod
    def needs(config: Config) -> Needs:
        """Token states of the last two layers of both sides, unless token_weight is 0."""
        token = config.kd_rate > 0 and config.token_weight > 0
        return Needs(teacher_tokens=LAYERS, student_tokens=LAYERS) if token else Needs()

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """The terms of one batch, leaving out those of weight 0."""
        from talas_lib import losses
        from talas_lib.experts import combined

        said, shares = self.heads["moe"].parts(student.pooled)
        terms = {}
        if "simcse" in self.weights:
            assert student.second is not None
            second = self.heads["moe"](student.second)
            terms["simcse"] = losses.info_nce(combined(said, shares), second, self.config.temperature)
        terms |= {name: rows.mean() for name, rows in self._rows(said, shares, batch.teacher).items()}
        if "cka" in self.weights:
            terms["cka"] = self._token_cka(student, batch)
        return terms

    def row_loss(self, student: StudentStates, batch: Batch) -> Tensor:
        """The weighted experts' part of each sentence, `[N]`, under its own dropout masks; CKA does not add up over sentences."""
        said, shares = self.heads["moe"].parts(student.pooled)
        return weighted_rows(self, self._rows(said, shares, batch.teacher))

    def output(self) -> torch.nn.Module | None:
        """The mixture of experts behind the pooling, or None for `output: cls`."""
        return self.heads["moe"] if self.config.output == "moe" else None

    def _rows(self, said: Tensor, shares: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        from talas_lib import experts

        rows = {}
        if "experts" in self.weights:
            rows["experts"] = (shares * self._expert_losses(said, teacher)).sum(1)
        if "min" in self.weights:
            rows["min"] = experts.load_rows(shares, self.config.least_share)
        if "div" in self.weights:
            rows["div"] = experts.diversity_rows(said)
        return rows

    def _expert_losses(self, said: Tensor, teacher: Tensor) -> Tensor:
        """l_1, l_2 and l_3 of each sentence, `[N, 3]`."""
        import torch

        from talas_lib import experts, losses

        config, project = self.config, self.heads["projection"]
        pointwise = losses.tamd_rows([project(said[0])], teacher)
        contrastive = experts.contrastive_rows(project(said[1]), teacher, config.contrastive_temperature)
        pairwise = experts.pairwise_rows(said[2], teacher, config.pairwise_margin)
        return torch.stack([pointwise, contrastive, pairwise], dim=1)

    def _token_cka(self, student: StudentStates, batch: Batch) -> Tensor:
        """CKA loss over all tokens of the batch, mean over layers."""
        import torch

        from talas_lib.alignment import cka_loss
        from talas_lib.token_losses import alignment_weights

        assert batch.tokens is not None
        config, layout, per_layer = self.config, batch.layout, []
        for layer in LAYERS:
            own, teacher = self.heads["projection"](student.tokens[layer]), batch.tokens.states[layer]
            weights = alignment_weights(
                own,
                teacher,
                batch.tokens.valid,
                mass=config.align_mass,
                most=config.align_most,
                least_cosine=config.align_least_cosine,
                temperature=config.align_temperature,
            )
            per_layer.append(cka_loss(layout.unpad(own), layout.unpad(weights @ teacher)))
        return torch.stack(per_layer).mean()


METHOD = DistillMoE
