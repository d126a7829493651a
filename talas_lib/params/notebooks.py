"""Which notebook takes which parameters, with which defaults, and the parameters cell written from that."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from talas_lib.errors import TalasError, did_you_mean, listed
from talas_lib.params.vocabulary import VOCABULARY, Parameter, literal

_TEACHERS = ("teacher", "teacher_source", "teachers")
_MODELS = (*_TEACHERS, "student", "student_source")
_DATA = ("corpus", "text_column", "source_column", "max_sentences", "hold_out")
_METHOD = ("method", "method_params", "optimizer", "rho", "eta", "same_dropout", "perturb_heads")
_TRAINING = (
    "seed",
    "epochs",
    "batch_size",
    "lr",
    "min_lr",
    "warmup",
    "weight_decay",
    "max_length",
    "precision",
    "device",
)
_TRAIN = (*_MODELS, *_DATA, *_METHOD, "pooling", *_TRAINING, "checkpoint_every", "probe_every", "nonfinite")
_SHARPNESS = (
    "sharpness_batches",
    "sharpness_batch_size",
    "sharpness_tol",
    "sharpness_max_iter",
    "estimator",
    "subsets",
    "top_eigenvalues",
    "trace_draws",
    "dropout_seed",
    "ball_rho",
    "ball_steps",
    "single_batches",
    "held_out_batches",
    "sharpness_epochs",
    "final_batches",
    "landscape",
    "other_run",
)


@dataclass(frozen=True)
class NotebookSchema:
    """The parameters of one notebook, in the order of its cell.

    defaults: where this notebook differs from the vocabulary. loads: what it must be able to load (teacher,
    student, corpus), which is checked before anything heavy starts.
    """

    name: str
    names: tuple[str, ...]
    loads: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters with this notebook's defaults."""
        return tuple(
            replace(VOCABULARY[name], default=self.defaults[name]) if name in self.defaults else VOCABULARY[name]
            for name in self.names
        )


_NOTEBOOKS = (
    NotebookSchema(
        "00_quickstart",
        (
            "teacher",
            "teachers",
            "student",
            *_DATA,
            "method",
            "method_params",
            "optimizer",
            "pooling",
            "seed",
            "epochs",
            "batch_size",
            "lr",
            "device",
        ),
        loads=("teacher", "student", "corpus"),
        # one page in about a minute on two cores; a short schedule wants a higher rate than the paper's five
        # epochs
        defaults={"epochs": 2, "lr": 1.0e-4, "max_sentences": 2000},
    ),
    NotebookSchema("01_data", (*_DATA, "tasks"), loads=("corpus",)),
    NotebookSchema(
        "02_cache_teacher",
        (*_TEACHERS, *_DATA, "method", "method_params", "max_length", "precision", "device"),
        loads=("teacher", "corpus"),
    ),
    NotebookSchema("03_train", (*_TRAIN, "keep_epochs"), loads=("teacher", "student", "corpus")),
    NotebookSchema("04_evaluate", ("run", "tasks", "eval_precision", "device")),
    NotebookSchema("05_sharpness", ("run", *_SHARPNESS, "seed", "device")),
    NotebookSchema("06_compare", (*_TRAIN, "grid", "tables", "tasks", "beside", "eval_precision", "report")),
    NotebookSchema("07_efficiency", ("run_benchmarks",)),
    NotebookSchema("08_explore", ("run", "query", "shown", "device")),
    # the suite is for scores at shorter widths, which most exports can do without
    NotebookSchema("09_export", ("run", "unseen", "dim", "tasks"), defaults={"tasks": None}),
)
_BY_NAME = {schema.name: schema for schema in _NOTEBOOKS}


def notebook_names() -> list[str]:
    """Notebooks that take parameters, in reading order."""
    return list(_BY_NAME)


def notebook_schema(notebook: str) -> NotebookSchema:
    """The schema of a notebook by name (`03_train`). Raises TalasError for an unknown one."""
    if notebook not in _BY_NAME:
        raise TalasError(
            f"unknown notebook {notebook!r}.{did_you_mean(notebook, _BY_NAME)} Accepted: {listed(_BY_NAME)}"
        )
    return _BY_NAME[notebook]


def notebook_parameters(notebook: str) -> list[tuple[str, str, Any, str]]:
    """(name, type, default, help) of a notebook's parameters, in order; types are `str int float bool list dict`."""
    return [(p.name, p.type, p.default, p.help) for p in notebook_schema(notebook).parameters]


def parameters_cell(notebook: str) -> str:
    """Source of the cell tagged `parameters`: one `name: type = literal # help` a line, no trailing newline.

    Papermill's parser wants exactly this shape: no union types, one equals sign a line, the comment as help
    text.
    """
    lines = [(f"{p.name}: {p.type} = {literal(p.default)}", p.help) for p in notebook_schema(notebook).parameters]
    return "\n".join(f"{code}  # {comment}" for code, comment in lines)
