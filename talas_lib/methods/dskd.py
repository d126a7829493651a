"""DSKD (Zhang et al., EMNLP 2024) as the TALAS baseline adapts it to encoders: distillation in both spaces, tokens by attention.

    L = L_SimCSE + MSE(n(P_st e), n(t)) + MSE(n(e), n(P_ts t)) + MSE(n(H_S), n(A_S)) + MSE(n(H_T), n(A_T))

A_S = softmax(q(H_S) k(H_T)^T / sqrt(a)) v(H_T) stands in the student's places, A_T the other way round, a = min(d_S, d_T).
Teacher signal: sentence vector and last token states. Extra modules: eight linear maps without bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.base import Method, Needs, simcse_term, weighted_rows, weights_in_use

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from talas_lib.methods.base import Batch, StudentStates


class Config(BaseModel):
    """Settings of DSKD; the defaults are the released baseline's."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weight_simcse: float = Field(default=1.0, ge=0, description="weight of SimCSE")
    weight_sentence: float = Field(default=1.0, ge=0, description="weight of both sentence terms")
    weight_token: float = Field(default=1.0, ge=0, description="weight of both token terms; 0 needs no token cache")
    temperature: float = Field(default=0.07, gt=0, description="tau of SimCSE")
    reduction: Literal["mean_d", "vector"] = Field(default="mean_d", description="mean over dimensions, or their sum")
    detach_projected_teacher: bool = Field(default=True, description="P_ts stays random; false trains it")
    head_lr_mult: float = Field(default=1.0, gt=0, description="learning rate of the heads relative to the student's")


class DSKD(Method):
    """The method object (see methods.base.Method). ValueError when all weights are 0.

    Terms: simcse; sentence_up and token_up in the teacher's space; sentence_down and token_down in the student's.
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
        by_term = {
            "simcse": config.weight_simcse,
            "sentence_up": config.weight_sentence,
            "sentence_down": config.weight_sentence,
            "token_up": config.weight_token,
            "token_down": config.weight_token,
        }
        self.weights = weights_in_use(by_term, "DSKD")
        self.views = 2 if "simcse" in self.weights else 1
        self.head_lr_mult = config.head_lr_mult
        s, t = student_dim, teacher_dims[0]
        inner = min(s, t)
        widths = {"up": (s, t), "down": (t, s)} if config.weight_sentence > 0 else {}
        if config.weight_token > 0:  # `up` asks from the teacher's places and answers with student states
            widths |= {"up_query": (t, inner), "up_key": (s, inner), "up_value": (s, t)}
            widths |= {"down_query": (s, inner), "down_key": (t, inner), "down_value": (t, s)}
        self.heads = nn.ModuleDict(
            {name: linear(*shape, bias=False, generator=generator) for name, shape in widths.items()}
        )
        for head in self.heads.values():
            nn.init.xavier_uniform_(cast(nn.Linear, head).weight, generator=generator)

    @staticmethod
    def needs(config: Config) -> Needs:
        """Last token states of both sides, unless the token terms have weight 0."""
        return Needs(teacher_tokens=(-1,), student_tokens=(-1,)) if config.weight_token > 0 else Needs()

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """The terms of one batch, leaving out those of weight 0."""
        terms = simcse_term(self, student, self.config.temperature)
        return terms | {name: rows.mean() for name, rows in self._rows(student, batch).items()}

    def row_loss(self, student: StudentStates, batch: Batch) -> Tensor:
        """The weighted distillation of each sentence, `[N]`; its token terms are its share of the mean over tokens, times N."""
        return weighted_rows(self, self._rows(student, batch))

    def _rows(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        rows = self._sentence_rows(student.pooled, batch.teacher) if self.config.weight_sentence > 0 else {}
        return rows | (self._token_rows(student, batch) if self.config.weight_token > 0 else {})

    def _sentence_rows(self, pooled: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        from talas_lib.token_losses import unit_error

        down = self.heads["down"](teacher)
        down = down.detach() if self.config.detach_projected_teacher else down
        return {
            "sentence_up": unit_error(self.heads["up"](pooled), teacher, self.config.reduction),
            "sentence_down": unit_error(pooled, down, self.config.reduction),
        }

    def _token_rows(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        from talas_lib.token_losses import cross_attention, errors_of_cells

        assert batch.tokens is not None
        assert batch.special is not None
        s, t = student.tokens[-1], batch.tokens.states[-1]
        s_valid, t_valid = batch.layout.valid, batch.tokens.valid
        head = self.heads
        down = cross_attention(head["down_query"](s), head["down_key"](t), head["down_value"](t), t_valid)
        up = cross_attention(head["up_query"](t), head["up_key"](s), head["up_value"](s), s_valid)
        rows = {}
        sides = {
            "token_up": (t, up, t_valid & ~batch.tokens.special),
            "token_down": (s, down, s_valid & ~batch.special),
        }
        for name, (states, aligned, words) in sides.items():
            rows[name] = errors_of_cells(states, aligned, words, self.config.reduction)
        return rows


METHOD = DSKD
