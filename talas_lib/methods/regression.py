"""What methods share that pull one student vector towards one target vector, sentence by sentence. No method by itself.

The loss is a mean of row distances, so it has a `row_loss`: DISAM can compare it between sources.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from talas_lib.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor

    from talas_lib.methods.base import Batch, StudentStates

Distance = Literal["cosine", "l2", "squared", "mse"]


def row_distances(distance: Distance, student: Tensor, target: Tensor) -> Tensor:
    """Distance of each row pair, both `[N, d]`, to `[N]`.

    cosine: 1 - cos, in [0, 2]; l2: ||s - t||; squared: ||s - t||^2; mse: ||s - t||^2 / d, the usual mean squared error.
    Between vectors of length one, squared is 2 (1 - cos). At s = t the gradient of l2 is taken as 0.
    """
    import torch

    from talas_lib import losses

    if distance == "cosine":
        return losses.tamd_rows([student], target)
    if distance == "l2":
        return torch.linalg.vector_norm(student - target, dim=-1)
    squares = (student - target).square()
    return squares.sum(-1) if distance == "squared" else squares.mean(-1)


class Regression(Method):
    """Mean over the batch of `distance` between `predicted` and `target`, under the name `term`.

    A subclass sets the two attributes and, where they differ from the plain vectors, the two functions.
    """

    term: str
    distance: Distance

    def predicted(self, student: StudentStates) -> Tensor:
        """The student's side, `[N, d]`."""
        return student.pooled

    def target(self, batch: Batch) -> Tensor:
        """The teacher's side, `[N, d]`."""
        return batch.teacher

    def terms(self, student: StudentStates, batch: Batch) -> dict[str, Tensor]:
        """The one term of the method."""
        return {self.term: self.row_loss(student, batch).mean()}

    def row_loss(self, student: StudentStates, batch: Batch) -> Tensor:
        """The distance of each sentence, `[N]`."""
        return row_distances(self.distance, self.predicted(student), self.target(batch))


def check_equal_widths(method: str, student_dim: int, teacher_dim: int) -> None:
    """ValueError when student and teacher vectors cannot be compared number by number."""
    if student_dim != teacher_dim:
        raise ValueError(
            f"{method} compares vectors number by number, and the student's have {student_dim} dimensions, the teacher's"
            f" {teacher_dim}. Use pca_target or procrustes_target, which bring the teacher's vectors to the student's width,"
            " or embed_distill, which projects the student's"
        )
