"""Relational knowledge distillation (Park, Kim, Lu and Cho, CVPR 2019): distances and angles between the sentences of a batch.

    L = 25 mean_ij h(psi_D(e_i, e_j), psi_D(t_i, t_j)) + 50 mean_ijk h(psi_A(e_i, e_j, e_k), psi_A(t_i, t_j, t_k))

psi_D is the distance of two vectors over the mean distance in the batch (eq. 4), psi_A the cosine of the angle at i between j
and k (eq. 7), h the Huber loss with threshold 1. Widths of student and teacher may differ. Teacher signal: one cached sentence
vector a sentence. No extra modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.base import Method

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from talas_lib.methods.base import Batch, StudentStates

_SAME = 1e-12  # squared distance from which on two vectors count as one: no direction, no gradient


class Config(BaseModel):
    """Settings of RKD."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weight_distance: float = Field(default=25.0, ge=0, description="weight of the distances")
    weight_angle: float = Field(default=50.0, ge=0, description="weight of the angles")
    normalize: bool = Field(default=True, description="vectors of both sides are scaled to length one first")


def relations(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """psi_D `[N, N]` and psi_A `[N, N, N]` (vertex first) of vectors `[N, d]`; zero wherever two of the points coincide.

    The mean distance is over pairs that do not coincide, as in the authors' code. Memory goes with N^2 d + N^3.
    """
    import torch

    differences = vectors[None] - vectors[:, None]  # [i, j] = e_j - e_i
    squared = differences.square().sum(-1)
    apart = squared > _SAME
    inverse = torch.where(apart, squared.clamp_min(_SAME).rsqrt(), 0.0)
    distances = squared * inverse
    mean = distances.sum() / apart.sum().clamp_min(1)
    directions = differences * inverse[..., None]
    return distances / mean.clamp_min(_SAME), directions @ directions.transpose(1, 2)


class Rkd(Method):
    """The method object (see methods.base.Method). A batch of one or two sentences has no relations to match: its loss is 0."""

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

        if config.weight_distance == config.weight_angle == 0:
            raise ValueError("both weights of rkd are 0: there is nothing to train on")
        self.config = config
        self.weights = {"distance": config.weight_distance, "angle": config.weight_angle}
        self.heads = nn.ModuleList()

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """distance and angle of one batch: means over all N^2 pairs and N^3 triples."""
        import torch
        from torch.nn.functional import smooth_l1_loss

        from talas_lib import losses

        own, theirs = student.pooled, batch.teacher
        if self.config.normalize:
            own, theirs = losses.unit(own), losses.unit(theirs)
        with torch.no_grad():
            wanted = relations(theirs)
        distance, angle = (smooth_l1_loss(a, b.to(a.dtype)) for a, b in zip(relations(own), wanted, strict=True))
        return {"distance": distance, "angle": angle}


METHOD = Rkd
