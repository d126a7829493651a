"""CDM, contextual dynamic mapping (Chen et al., 2025), as the TALAS baseline adapts it: aligned tokens are made alike.

    L = 0.5 L_SimCSE + 0.5 * 100 MSE(n(P H_S), n(H_T)) over aligned tokens + MSE(n(P e), n(t))

Tokens are aligned by dynamic time warping of their strings, once for the corpus. Teacher signal: sentence vector and last token
states. Extra module: one linear map d_S -> d_T without bias.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.base import Method, Needs, simcse_term, weighted_rows, weights_in_use

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from talas_lib.methods.base import Batch, StudentStates


class Config(BaseModel):
    """Settings of CDM; the defaults are the released baseline's."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weight_simcse: float = Field(default=0.5, ge=0, description="weight of SimCSE")
    weight_token: float = Field(default=50.0, ge=0, description="weight of the token term; 0 needs no token cache")
    weight_sentence: float = Field(default=1.0, ge=0, description="weight of the sentence term")
    temperature: float = Field(default=0.07, gt=0, description="tau of SimCSE")
    align: Literal["strict", "pool"] = Field(
        default="strict", description="equal tokens one to one, or the whole path with teacher states averaged"
    )
    reduction: Literal["mean_d", "vector"] = Field(default="mean_d", description="mean over dimensions, or their sum")
    head_lr_mult: float = Field(default=2.0, gt=0, description="learning rate of the head relative to the student's")


class CDM(Method):
    """The method object (see methods.base.Method). Terms: simcse, token, sentence. ValueError when all weights are 0."""

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
            "token": config.weight_token,
            "sentence": config.weight_sentence,
        }
        self.weights = weights_in_use(by_term, "CDM")
        self.views = 2 if "simcse" in self.weights else 1
        self.head_lr_mult = config.head_lr_mult
        distils = self.weights.keys() - {"simcse"}
        self.heads = nn.ModuleList(
            [linear(student_dim, teacher_dims[0], bias=False, generator=generator)] if distils else []
        )

    @staticmethod
    def needs(config: Config) -> Needs:
        """Last token states and the alignment, unless the token term has weight 0."""
        if config.weight_token == 0:
            return Needs()
        return Needs(
            teacher_tokens=(-1,), student_tokens=(-1,), alignment="strict" if config.align == "strict" else "dtw"
        )

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """The terms of one batch, leaving out those of weight 0."""
        terms = simcse_term(self, student, self.config.temperature)
        return terms | {name: rows.mean() for name, rows in self._rows(student, batch).items()}

    def row_loss(self, student: StudentStates, batch: Batch) -> Tensor:
        """The weighted distillation of each sentence, `[N]`; its token term is its share of the mean over tokens, times N."""
        return weighted_rows(self, self._rows(student, batch))

    def _rows(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        from talas_lib.token_losses import by_sentence, unit_error

        rows = {}
        if "token" in self.weights:
            states, target, sentence = self._aligned(student, batch)
            errors = unit_error(self.heads[0](states), target, self.config.reduction)
            rows["token"] = by_sentence(errors, sentence, len(batch.rows))
        if "sentence" in self.weights:
            rows["sentence"] = unit_error(self.heads[0](student.pooled), batch.teacher, self.config.reduction)
        return rows

    def _aligned(self, student: StudentStates, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Student states `[M, d_S]`, the teacher states they are compared with `[M, d_T]`, and their sentences `[M]`."""
        from talas_lib.token_losses import averaged_teacher

        assert batch.tokens is not None
        assert batch.pairs is not None
        own, teacher = student.tokens[-1], batch.tokens.states[-1]
        if self.config.align == "pool":
            place, target = averaged_teacher(batch.pairs, teacher, own.shape[1])
        else:
            place, target = batch.pairs[:, :2], teacher[batch.pairs[:, 0], batch.pairs[:, 2]]
        return own[place[:, 0], place[:, 1]], target, place[:, 0]


METHOD = CDM
