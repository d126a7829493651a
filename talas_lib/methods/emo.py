"""EMO (Truong et al., EMNLP 2025) as the TALAS baseline adapts it: attention made alike by CKA, states by optimal transport.

    L = (1 - r) L_SimCSE + r (0.1 L_CKA + 1 L_OT),  r = 0.5

Tokens are paired by least edit distance, once for the corpus. Teacher signal: last token states, last attention weights.
Extra module: one linear map d_T -> d_S without bias. The student's attention weights are compared before dropout; in the code,
which takes them from transformers, after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.base import Method, Needs, simcse_term, weights_in_use

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from talas_lib.methods.base import Batch, StudentStates


class Config(BaseModel):
    """Settings of EMO; the defaults are the released baseline's."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kd_rate: float = Field(default=0.5, ge=0, le=1, description="r: share of distillation, the rest is SimCSE")
    weight_cka: float = Field(default=0.1, ge=0, description="weight of the attention CKA within r")
    weight_ot: float = Field(default=1.0, ge=0, description="weight of the transport within r")
    temperature: float = Field(default=0.05, gt=0, description="tau of SimCSE")
    importance: Literal["received", "received-no-first", "uniform"] = Field(
        default="received", description="what makes a teacher token important"
    )
    cka_reduction: Literal["sum", "mean"] = Field(default="sum", description="over the sentences of the batch")
    teacher_block: int = Field(
        default=-1, le=-1, description="teacher block compared with the student's last, from the top"
    )
    ot_temperature: float = Field(default=0.1, gt=0, description="entropic regularisation of the transport")
    ot_iterations: int = Field(default=100, ge=1, description="Sinkhorn iterations at most")
    head_lr_mult: float = Field(default=1.0, gt=0, description="learning rate of the head relative to the student's")


class EMO(Method):
    """The method object (see methods.base.Method). Terms: simcse, cka, ot. ValueError when all weights are 0."""

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
        by_term = {
            "simcse": 1 - config.kd_rate,
            "cka": config.kd_rate * config.weight_cka,
            "ot": config.kd_rate * config.weight_ot,
        }
        self.weights = weights_in_use(by_term, "EMO")
        self.views = 2 if "simcse" in self.weights else 1
        self.head_lr_mult = config.head_lr_mult
        self.heads = nn.ModuleList(
            [linear(teacher_dims[0], student_dim, bias=False, generator=generator)] if "ot" in self.weights else []
        )

    @staticmethod
    def needs(config: Config) -> Needs:
        """Attention for the importance and for CKA, states for the transport, pairs for both; nothing for a term of weight 0."""
        cka = config.kd_rate > 0 and config.weight_cka > 0
        ot = config.kd_rate > 0 and config.weight_ot > 0
        blocks = {config.teacher_block} if cka else set()
        if (cka or ot) and config.importance != "uniform":
            blocks.add(-1)
        return Needs(
            teacher_tokens=(-1,) if ot else (),
            teacher_attention=tuple(sorted(blocks, reverse=True)),
            student_tokens=(-1,) if ot else (),
            student_attention=(-1,) if cka else (),
            alignment="mined" if cka or ot else None,
        )

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """The terms of one batch, leaving out those of weight 0."""
        from talas_lib.token_losses import attention_cka

        terms = simcse_term(self, student, self.config.temperature)
        if "cka" in self.weights:
            assert batch.tokens is not None
            assert batch.pairs is not None
            teacher = batch.tokens.attention[self.config.teacher_block]
            rows = attention_cka(student.attention[-1], teacher, batch.pairs, self._importance(batch))
            terms["cka"] = rows.sum() / (max(len(rows), 1) if self.config.cka_reduction == "mean" else 1)
        if "ot" in self.weights:
            terms["ot"] = self._transport(student, batch).mean()
        return terms

    def row_loss(self, student: StudentStates, batch: Batch) -> Tensor:
        """The weighted transport of each sentence, `[N]`: the one term that is a mean over sentences."""
        if "ot" not in self.weights:
            raise NotImplementedError
        return self.weights["ot"] * self._transport(student, batch)

    def _importance(self, batch: Batch) -> Tensor:
        from talas_lib.token_losses import token_importance

        assert batch.tokens is not None
        return token_importance(batch.tokens.attention.get(-1), batch.tokens.valid, self.config.importance)

    def _transport(self, student: StudentStates, batch: Batch) -> Tensor:
        from talas_lib.token_losses import student_masses, transport_cost, transport_loss

        assert batch.tokens is not None
        assert batch.pairs is not None
        importance = self._importance(batch)
        cost = transport_cost(student.tokens[-1], self.heads[0](batch.tokens.states[-1]), batch.tokens.valid)
        return transport_loss(
            cost,
            student_masses(importance, batch.pairs, batch.layout.valid, batch.layout.pad(batch.ids)),
            importance,
            temperature=self.config.ot_temperature,
            iterations=self.config.ot_iterations,
        )


METHOD = EMO
