"""A method and the models it is given: made for their widths and layers, or refused before any of them is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from talas_lib import methods, model_folders, sources
from talas_lib.errors import TalasError
from talas_lib.methods.base import Method

if TYPE_CHECKING:
    from talas_lib.params import ResolvedParams, TeacherSpec


def build_method(p: ResolvedParams, *, student_dim: int, num_layers: int, teacher_dims: tuple[int, ...]) -> Method:
    """The method object for a student of that width and number of blocks, its heads drawn from the run's seed.

    TalasError when it does not fit the student.
    """
    try:
        return methods.method_class(p.method)(  # type: ignore[call-arg]
            p.method_config,
            student_dim=student_dim,
            teacher_dims=teacher_dims,
            num_layers=num_layers,
            generator=torch.Generator().manual_seed(p.seed),
        )
    except ValueError as error:
        raise TalasError(f"method {p.method} does not fit student {p.student}: {error}") from error


def check(p: ResolvedParams) -> None:
    """TalasError when the method does not fit the models, as far as their configurations tell: so it costs no caching.

    The width behind a module of the teacher's own is known once its vectors are there; then `build_method` tells.
    """
    student_dim, num_layers = sources.shape(p.student_spec)
    teacher_dims = tuple(width for spec in p.teacher_specs if (width := _output_dim(spec)) is not None)
    if len(teacher_dims) == len(p.teacher_specs):
        build_method(p, student_dim=student_dim, num_layers=num_layers, teacher_dims=teacher_dims)


def _output_dim(spec: TeacherSpec) -> int | None:
    if spec.dim is not None:
        return spec.dim
    return None if model_folders.modules_after_pooling(sources.model_folder(spec)) else sources.shape(spec)[0]
