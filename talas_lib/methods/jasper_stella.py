"""Jasper and Stella (Zhang, Li, Zeng and Wang, arXiv 2412.19048): the teacher's vectors, similarities and their order.

    D(s, t) = a mean_i [1 - cos(s_i, t_i)] + b mean_ij (R^s_ij - R^t_ij)^2 + c L_resim(R^s, R^t)
    L = w L_SimCSE + (1 - w) [ D(f_1, t) + sum_{k >= 2} b L_sim(f_1, f_k) + c L_resim(f_1, f_k) ],  f_k = fc_k(e)

Stage 1 trains fc_1 alone with D(f_1, t), the student frozen and its dropout on; stage 2 trains everything. Teacher signal: one
cached sentence vector; those of several teachers are normalised, laid side by side and normalised again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.base import Method, Needs, Stage, simcse_term

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from talas_lib.methods.base import Batch, StudentStates


class Config(BaseModel):
    """Settings of Jasper and Stella; the defaults are the values released with TALAS."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weight_cosine: float = Field(default=0.5, ge=0, description="a, weight of the distance to the teacher's vectors")
    weight_similarity: float = Field(default=2.0, ge=0, description="b, weight of the distance of similarities")
    weight_ranking: float = Field(default=0.5, ge=0, description="c, weight of the order of similarities")
    simcse_share: float = Field(default=0.5, ge=0, lt=1, description="w in stage 2; 0 leaves SimCSE out")
    temperature: float = Field(default=0.1, gt=0, description="tau of SimCSE")
    margin: float = Field(default=0.015, ge=0, description="margin of the ranking loss")
    reduced_dims: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = Field(
        default=(512, 256, 128), description="widths of fc2, fc3, ...; fc1 has the teacher's"
    )
    anchor_fc1: bool = Field(
        default=False, description="fc1 teaches the narrower heads and is held fixed there; else the two move together"
    )
    head_epochs: int = Field(default=2, ge=0, description="epochs of stage 1; 0 starts with stage 2")
    output: Literal["pooled", "fc1"] = Field(default="pooled", description="vector of the finished student")
    head_lr_mult: float = Field(default=1.0, gt=0, description="learning rate of the heads relative to the student's")


class JasperStella(Method):
    """The method object (see methods.base.Method). It stands in its last stage until training enters the first.

    ValueError when the weights of cosine, similarity and ranking are all 0.
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

        if config.weight_cosine == config.weight_similarity == config.weight_ranking == 0:
            raise ValueError(
                "weight_cosine, weight_similarity and weight_ranking are all 0: nothing comes from the teacher"
            )
        self.config = config
        self.head_lr_mult = config.head_lr_mult
        self.stages = self.stages_of(config)
        widths = (sum(teacher_dims), *config.reduced_dims)
        self.heads = nn.ModuleList(linear(student_dim, width, generator=generator) for width in widths)
        self.enter(len(self.stages) - 1)

    @classmethod
    def stages_of(cls, config: Config) -> tuple[Stage, ...]:
        """The heads alone first, unless `head_epochs` is 0."""
        return (Stage(config.head_epochs, "heads"), Stage()) if config.head_epochs else (Stage(),)

    @staticmethod
    def needs(config: Config) -> Needs:
        """Sentence vectors of one teacher or more."""
        return Needs(teachers=(1, None))

    def enter(self, stage: int) -> None:
        """Stage 1: fc1 against the teacher, one view. Stage 2: SimCSE and the narrower heads beside it."""
        c = self.config
        full = self.stages[stage].trains == "all"
        simcse = c.simcse_share if full else 0.0
        weights = {
            "simcse": simcse,
            "cosine": (1 - simcse) * c.weight_cosine,
            "similarity": (1 - simcse) * c.weight_similarity,
            "ranking": (1 - simcse) * c.weight_ranking,
        }
        if full and c.reduced_dims:
            weights["reduced_similarity"] = weights["similarity"]
            weights["reduced_ranking"] = weights["ranking"]
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.views = 2 if "simcse" in self.weights else 1

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """The terms of the present stage that have a weight; reduced_similarity and reduced_ranking are sums over heads."""
        import torch

        from talas_lib import losses

        target = _together(batch.teachers)
        f1 = self.heads[0](student.pooled)
        terms = self._relations(f1, target) | {"cosine": losses.cosine_distance(f1, target)}
        terms |= simcse_term(self, student, self.config.temperature)
        if self.weights.keys() & {"reduced_similarity", "reduced_ranking"}:
            pairs = [self._reduced(f1, head(student.pooled)) for head in list(self.heads)[1:]]
            terms |= {f"reduced_{name}": torch.stack([pair[name] for pair in pairs]).sum() for name in pairs[0]}
        return {name: terms[name] for name in self.weights}

    def row_loss(self, student: StudentStates, batch: Batch) -> Tensor:
        """The weighted cosine distance of each sentence to its teacher vector, `[N]`; the other terms are relations."""
        from talas_lib import losses

        if "cosine" not in self.weights:
            raise NotImplementedError
        return self.weights["cosine"] * losses.tamd_rows([self.heads[0](student.pooled)], _together(batch.teachers))

    def output(self) -> torch.nn.Module | None:
        """fc1 when the finished student is to end in the teacher's space."""
        return self.heads[0] if self.config.output == "fc1" else None

    def _reduced(self, f1: Tensor, reduced: Tensor) -> dict[str, Tensor]:
        """fc1 and a narrower head: either teaches the other."""
        if self.config.anchor_fc1:
            return self._relations(reduced, f1.detach())
        return self._relations(f1, reduced)  # released code: the order is the narrow head's, and fc1 follows it

    def _relations(self, pupil: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        from talas_lib import losses, relation_losses

        of_pupil, of_teacher = losses.relation_matrix(pupil), losses.relation_matrix(teacher)
        terms = {}
        if self.config.weight_similarity > 0:
            terms["similarity"] = relation_losses.similarity_mse(of_pupil, of_teacher)
        if self.config.weight_ranking > 0:
            above = relation_losses.upper_triangle(of_pupil), relation_losses.upper_triangle(of_teacher)
            terms["ranking"] = relation_losses.ranking_loss(*above, self.config.margin)
        return terms


def _together(teachers: Sequence[Tensor]) -> Tensor:
    """Vectors of all teachers, each scaled to length one, side by side and scaled again: `[N, sum of d_T]`."""
    import torch

    from talas_lib import losses

    return losses.unit(torch.cat([losses.unit(t) for t in teachers], dim=1))


METHOD = JasperStella
