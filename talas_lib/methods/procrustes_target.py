"""Cosine regression to the PCA target, after a rotation that brings it as near as possible to the untrained student.

    L = mean_i [ 1 - cos(e_i, R^T C t_i) ],    R = argmin over orthogonal R of sum_i || R^T n(C t_i) - n(e_i at the start) ||^2

C as in pca_target, n scales to length one, R is an orthogonal Procrustes solution: of all rotations of the target it gives the
smallest loss at the start. Cosines between targets do not depend on R; it saves the student from turning its whole space first.
Teacher signal: one cached sentence vector a sentence. No trained modules; the product of C and R is a buffer of the heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.methods.pca_target import PcaTarget, gather

if TYPE_CHECKING:
    import numpy as np
    import torch

    from talas_lib.methods.base import Preparation


class Config(BaseModel):
    """Settings of the Procrustes target."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    fit_rows: int = Field(default=20_000, ge=2, description="sentences both maps are fitted on at most, drawn once")


class ProcrustesTarget(PcaTarget):
    """The method object (see methods.base.Method). heads as in PcaTarget, the matrix being C^T R."""

    term = "procrustes_target"
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
        self._set_up(config.fit_rows, student_dim, teacher_dims[0])

    def _fit(self, teacher: np.ndarray, rows: np.ndarray, preparation: Preparation) -> None:
        from talas_lib import reduction

        components = self._components(teacher)
        rotation = reduction.rotation_onto(teacher @ components, gather(preparation.student, rows))
        self._keep(teacher, components @ rotation)


METHOD = ProcrustesTarget
