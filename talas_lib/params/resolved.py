"""The frozen object a notebook works with: every value filled in, the specs behind the names, and the run's identity."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

from talas_lib import methods
from talas_lib.errors import TalasError, did_you_mean, listed
from talas_lib.methods.base import Needs
from talas_lib.params.notebooks import notebook_schema
from talas_lib.params.recipe import config_hash, run_config
from talas_lib.params.sources import check_available
from talas_lib.params.specs import CorpusSpec, OptimizerSpec, Specs, StudentSpec, TaskSuiteSpec, TeacherSpec
from talas_lib.params.summary import summary_table
from talas_lib.params.vocabulary import VOCABULARY

_RUN_NAMES = ("teacher", "student", "corpus", "method", "optimizer", "seed")
T = TypeVar("T")


class _Vocabulary:
    """Types of the attributes that ResolvedParams serves from its values, for readers and type checkers."""

    teacher: str
    teacher_source: str | None
    teachers: list[str]
    student: str
    student_source: str | None
    corpus: str
    text_column: str | None  # as given, as the next; the corpus's spec says which columns are read
    source_column: str | None
    max_sentences: int | None
    hold_out: float
    tasks: str
    beside: list[str]
    method: str
    method_params: dict[str, Any]
    optimizer: str
    rho: float | None
    eta: float | None
    same_dropout: bool | None
    perturb_heads: bool | None
    pooling: str
    seed: int
    epochs: int
    batch_size: int
    lr: float
    min_lr: float
    warmup: float
    weight_decay: float
    max_length: int | None  # as given; the specs say what each model keeps
    precision: str
    eval_precision: str
    device: str
    checkpoint_every: int
    probe_every: int
    nonfinite: str
    keep_epochs: list[int]
    run: str
    sharpness_batches: int
    sharpness_batch_size: int
    sharpness_tol: float
    sharpness_max_iter: int
    estimator: str
    subsets: list[str]
    top_eigenvalues: int
    trace_draws: int
    dropout_seed: int | None
    ball_rho: float
    ball_steps: int
    single_batches: bool
    held_out_batches: int
    sharpness_epochs: list[int]
    final_batches: int | None
    landscape: int
    other_run: str | None
    report: str | None
    query: str | None
    shown: int
    unseen: str | None
    dim: int | None
    run_benchmarks: bool
    grid: dict[str, list[Any]]
    tables: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ResolvedParams(_Vocabulary):
    """The parameters of one notebook, complete and checked; `p.lr`, `p.teacher_spec` and so on.

    values: every parameter of the notebook, filled in from the files. given: the same before filling in.
    origins: where each value comes from (`given`, `default`, or a file). unused: names that were given but
    have no effect here, with the reason. A parameter of another notebook is no attribute: AttributeError says
    so.
    """

    notebook: str
    values: Mapping[str, Any]
    given: Mapping[str, Any]
    origins: Mapping[str, str]
    unused: Mapping[str, str]
    specs: Specs
    recorded_config: Mapping[str, Any] | None = field(default=None, repr=False)

    def __getattr__(self, name: str) -> Any:
        if name in VOCABULARY:
            values = self.__dict__.get("values", {})
            if name in values:
                return copy.deepcopy(values[name])
            raise AttributeError(
                f"notebook {self.__dict__.get('notebook')} has no parameter {name!r}; it has {listed(values)}"
            )
        raise AttributeError(f"ResolvedParams has no attribute {name!r}.{did_you_mean(name, VOCABULARY)}")

    @property
    def teacher_spec(self) -> TeacherSpec:
        """The teacher, the first of several, with `teacher_source` and `max_length` applied."""
        return self.teacher_specs[0]

    @property
    def teacher_specs(self) -> tuple[TeacherSpec, ...]:
        """All teachers in order, at least one. A method without teacher trains without them (see `needs_teacher`)."""
        return self._spec("teacher", self.specs.teachers or None)

    @property
    def teacher_names(self) -> str:
        """The teachers' names in one word, such as `minilm-l6` or `mpnet-base+minilm-l6`."""
        return "+".join(spec.name for spec in self.teacher_specs)

    @property
    def student_spec(self) -> StudentSpec:
        """The student, with `student_source`, `pooling` and `max_length` applied."""
        return self._spec("student", self.specs.student)

    @property
    def corpus_spec(self) -> CorpusSpec:
        """The corpus, with `text_column` and `source_column` applied; `max_sentences` is separate."""
        return self._spec("corpus", self.specs.corpus)

    @property
    def tasks_spec(self) -> TaskSuiteSpec:
        """The evaluation suite."""
        return self._spec("tasks", self.specs.tasks)

    @property
    def method_config(self) -> BaseModel:
        """The method's Config, with `method_params` applied."""
        return self._spec("method", self.specs.method)

    @property
    def optimizer_spec(self) -> OptimizerSpec:
        """The optimizer, with `rho`, `eta`, `same_dropout` and `perturb_heads` applied."""
        return self._spec("optimizer", self.specs.optimizer)

    def _spec(self, name: str, spec: T | None) -> T:
        if spec is None:
            raise TalasError(f"notebook {self.notebook} has no parameter {name!r}; it has {listed(self.values)}")
        return spec

    @property
    def needs(self) -> Needs:
        """What the method reads (see methods.base.Needs); for a notebook without a method, one teacher's vectors."""
        return methods.needs(self.method, self.method_config) if "method" in self.values else Needs()

    @property
    def needs_teacher(self) -> bool:
        """Whether the method reads teacher vectors; True for a notebook without a method."""
        return self.needs.teachers != (0, 0)

    def check_available(self) -> None:
        """Raises TalasError when a model or corpus that this notebook loads cannot be had here. Downloads nothing."""
        loads = notebook_schema(self.notebook).loads
        if "corpus" in loads:
            check_available(self.corpus_spec)
        caches = "teacher" in loads and "student" not in loads  # then the teacher is loaded whatever trains
        if "teacher" in loads and (self.needs_teacher or caches):
            for teacher in self.teacher_specs:
                check_available(teacher)
        if "student" in loads:
            check_available(self.student_spec)

    def run_config(self) -> dict[str, Any]:
        """All that determines a training run, and nothing else: no paths, no device, no logging intervals.

        A local model or corpus stands in it by content. Raises TalasError for a notebook that trains nothing,
        or a local file that is not there.
        """
        if self.recorded_config is not None:
            return copy.deepcopy(dict(self.recorded_config))
        missing = [name for name in _RUN_NAMES if name not in self.values]
        if missing:
            raise TalasError(
                f"notebook {self.notebook} trains nothing: it has no {listed(missing)}, so it has no run of its own"
            )
        memo = self.__dict__.setdefault("_memo", {})
        if "config" not in memo:
            memo["config"] = run_config(self.specs, self.values, self.needs_teacher)
        return copy.deepcopy(memo["config"])

    @property
    def run_id(self) -> str:
        """`<student>--<teacher>--<method>--<optimizer>--s<seed>--<hash8 of run_config>`; two teachers: `<one>+<two>`."""
        config = self.run_config()
        names = (self.student_spec.name, self.teacher_names, self.method, self.optimizer_spec.name)
        return "--".join((*names, f"s{self.seed}", config_hash(config)[:8]))

    def given_values(self) -> dict[str, Any]:
        """What was given, without defaults and without what the files filled in: for `expand_grid` and `resolve`."""
        named = {name for name, origin in self.origins.items() if origin == "given"}
        return {name: copy.deepcopy(value) for name, value in self.given.items() if name in named}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: notebook, values, given, origins, unused and specs; `from_dict` reads it back."""
        specs: dict[str, Any] = {}
        for name, spec in self.specs.named():
            specs.setdefault(name, spec.model_dump(mode="json"))
        if len(self.specs.teachers) > 1:
            specs["teachers"] = [spec.model_dump(mode="json") for spec in self.specs.teachers]
        plain = {name: copy.deepcopy(dict(getattr(self, name))) for name in ("values", "given", "origins", "unused")}
        return {"notebook": self.notebook, **plain, "specs": specs}

    def summary(self) -> str:
        """A table of the values with their origins, for the notebook's first output."""
        return summary_table(self.values, self.origins, self.unused, self.specs.named())
