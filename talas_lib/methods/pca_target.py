"""Mean squared error to the teacher's vectors brought to the student's width by PCA, the older recipe for smaller students.

    L = mean_i ||e_i - C t_i||^2 / d_S        (reduction: vector leaves out the division)

C holds the d_S principal components of the teacher's corpus vectors. They are centred for the fit only: C t_i keeps the mean.
A teacher narrower than the student, or a corpus of fewer sentences than d_S, gives fewer components; the rest of the target is
zero. Teacher signal: one cached sentence vector a sentence. No trained modules; C is a buffer of the heads.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from talas_lib.errors import TalasError
from talas_lib.methods.regression import Regression

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from torch import Tensor

    from talas_lib.methods.base import Batch, Preparation

log = logging.getLogger(__name__)
_CHUNK = 1024  # rows read at once: one shard of a teacher cache


class Config(BaseModel):
    """Settings of the PCA target."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reduction: Literal["element", "vector"] = Field(
        default="element", description="mean over the d_S numbers of a vector, or their sum"
    )
    fit_rows: int = Field(
        default=20_000, ge=2, description="sentences the components are fitted on at most, drawn once"
    )


def gather(vectors_of: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Vectors of many rows `[rows, d]`, fetched in chunks."""
    import numpy as np

    return np.concatenate([vectors_of(rows[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)])


class PcaTarget(Regression):
    """The method object (see methods.base.Method).

    heads.matrix: `[d_T, d_S]`, transposed components; heads.retained_energy: share of the teacher vectors' squared length that
    it keeps. Both are NaN until `prepare` or a checkpoint fills them, so that nothing trains on an unfitted target.
    """

    term = "pca_target"

    def __init__(
        self,
        config: Config,
        *,
        student_dim: int,
        teacher_dims: tuple[int, ...],
        num_layers: int,
        generator: torch.Generator,
    ) -> None:
        self.distance = "mse" if config.reduction == "element" else "squared"
        self._set_up(config.fit_rows, student_dim, teacher_dims[0])

    def _set_up(self, fit_rows: int, student_dim: int, teacher_dim: int) -> None:
        import torch

        self.fit_rows = fit_rows
        self.weights = {self.term: 1.0}
        self.heads = torch.nn.Module()
        self.heads.register_buffer("matrix", torch.full((teacher_dim, student_dim), float("nan")))
        self.heads.register_buffer("retained_energy", torch.tensor(float("nan")))

    @property
    def retained_energy(self) -> float:
        """Share of the teacher vectors' squared length that the target keeps, 0 to 1; NaN before `prepare`."""
        return float(self.heads.retained_energy)

    def prepare(self, preparation: Preparation) -> None:
        """Fit the components on the cached teacher vectors. TalasError when the corpus has too little to fit on."""
        from talas_lib import reduction

        rows = reduction.fit_rows(preparation.sentences, self.fit_rows)
        self._fit(gather(preparation.teachers[0], rows), rows, preparation)

    def _fit(self, teacher: np.ndarray, rows: np.ndarray, preparation: Preparation) -> None:
        """Fill the buffers. teacher: vectors `[rows, d_T]`."""
        self._keep(teacher, self._components(teacher))

    def _components(self, teacher: np.ndarray) -> np.ndarray:
        """Directions `[d_T, d_S]`; columns beyond what the data has are zero."""
        import numpy as np

        from talas_lib import reduction

        wanted = self.heads.matrix.shape[1]
        try:
            directions = reduction.principal_components(teacher, wanted).directions
        except ValueError as error:
            raise TalasError(f"{self.term} cannot be fitted to this corpus: {error}") from error
        if directions.shape[1] < wanted:
            log.info("%s: %d components, of %d dimensions", self.term, directions.shape[1], wanted)
        return np.pad(directions, ((0, 0), (0, wanted - directions.shape[1])))

    def _keep(self, teacher: np.ndarray, matrix: np.ndarray) -> None:
        import torch

        from talas_lib import reduction

        self.heads.matrix.copy_(torch.from_numpy(matrix))
        self.heads.retained_energy.fill_(reduction.retained_energy(teacher, matrix))
        log.info(
            "%s: %d of the teacher's %d dimensions keep %.1f %% of its energy (%d sentences)",
            self.term,
            matrix.shape[1],
            matrix.shape[0],
            100 * self.retained_energy,
            len(teacher),
        )

    def target(self, batch: Batch) -> Tensor:
        """The teacher's vectors in d_S dimensions, `[N, d_S]`."""
        reduced: Tensor = batch.teacher.to(self.heads.matrix.dtype) @ self.heads.matrix
        return reduced


METHOD = PcaTarget
