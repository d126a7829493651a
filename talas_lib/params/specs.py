"""What a file of `params/` may say: teachers, students, corpora, task suites and optimizers as frozen
pydantic models.

The file's name is the value's name, so `name` is never written inside. Types are strict; an int is taken for
a float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from talas_lib.texts import is_table

Pooling = Literal["cls", "mean", "last"]
ARCHITECTURES = ("bert", "xlm-r", "mpnet", "qwen3", "qwen3-bidirectional")


class Spec(BaseModel):
    """Base of all specs: immutable, no unknown keys, strict types, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str


class TeacherSpec(Spec):
    """A frozen sentence encoder to learn from.

    source: `package:<asset>`, `hub:<owner/name>`, `tiny:<arch>[@seed]`, or a local folder (absolute, or
    starting with `.` or `~`). revision: hub commit, also of the hub copy behind a package. pooling: `auto`
    reads the model's own 1_Pooling/config.json. padding_side: matters to `last` and to decoder models.
    prompt: put before every sentence. attention: `bidirectional` lifts the causal mask of a decoder
    (LLM2Vec). dim: width of its vectors, checked at load. normalize: unit length. hub_id: where a packaged
    model can also be had.
    """

    source: str
    revision: str | None = None
    pooling: Literal["cls", "mean", "last", "auto"]
    padding_side: Literal["left", "right"] = "right"
    prompt: str = ""
    max_length: int = Field(ge=4, le=131_072)
    attention: Literal["native", "bidirectional"] = "native"
    dim: int | None = Field(default=None, ge=1)
    normalize: bool = True
    licence: str | None = None
    hub_id: str | None = None


class StudentSpec(Spec):
    """The encoder to train. layers: block indices kept, from 0, None for all. The rest as in TeacherSpec."""

    source: str
    revision: str | None = None
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)] | None = None
    pooling: Pooling = "cls"
    max_length: int = Field(ge=4, le=131_072)
    licence: str | None = None
    hub_id: str | None = None

    @model_validator(mode="after")
    def _layers_ascend(self) -> StudentSpec:
        if self.layers is not None and list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers {list(self.layers)} must ascend without repeats")
        return self


class HubTable(BaseModel):
    """A data set on the hub. columns: ours (text, or text1 and text2) to its own, where those have other names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    config: str | None = None
    revision: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)


class CorpusPart(Spec):
    """A part of a built corpus: `count` texts or pairs of one split of a data set; its name becomes the source.

    The split is the file <folder>/<split>.jsonl.gz below TALAS_DATA, with `text`, or `text1` and `text2`, in
    every record, and where there is no such file the hub's data set. folder: None for the part's name.
    """

    kind: Literal["texts", "pairs"]
    count: int = Field(ge=1)
    folder: str | None = None
    split: str = "train"
    hub: HubTable | None = None

    @property
    def place(self) -> str:
        """The folder below TALAS_DATA."""
        return self.folder or self.name

    @model_validator(mode="after")
    def _columns_are_ours(self) -> CorpusPart:
        ours = {"texts": ["text"], "pairs": ["text1", "text2"]}[self.kind]
        unknown = [name for name in (self.hub.columns if self.hub else {}) if name not in ours]
        if unknown:
            raise ValueError(f"columns of a part of {self.kind} name {', '.join(ours)}, not {', '.join(unknown)}")
        return self


class CorpusSpec(Spec):
    """Unlabelled training sentences.

    kind: `packaged` (built from a package, no network at import), `built` (out of the parts, from local data or
    the hub), `local` (path below TALAS_DATA), `file` (a path of the user's), `tiny` (a few made-up sentences).
    sentences: how many to draw, None for all; seed: of every draw. held_out: task suite whose test texts are
    left out; a file is read as it is.
    """

    kind: Literal["packaged", "built", "local", "file", "tiny"]
    sentences: int | None = Field(default=None, ge=2)
    seed: int = Field(default=0, ge=0)
    path: str | None = None
    parts: Annotated[tuple[CorpusPart, ...], Field(strict=False)] = ()
    text_column: str = "text"
    source_column: str = "source"
    held_out: str | None = None
    min_words: int = Field(default=5, ge=1)
    max_words: int = Field(default=60, ge=1)
    description: str = ""

    @model_validator(mode="after")
    def _path_fits_kind(self) -> CorpusSpec:
        wants_path = self.kind in ("local", "file")
        if wants_path != (self.path is not None):
            raise ValueError(f"a corpus of kind {self.kind} {'needs' if wants_path else 'takes no'} path")
        if wants_path and self.held_out is not None:
            raise ValueError(f"a corpus of kind {self.kind} takes no held_out: its sentences are read as they are")
        return self

    @model_validator(mode="after")
    def _parts_fit_kind(self) -> CorpusSpec:
        built, names = self.kind == "built", [part.name for part in self.parts]
        if built != bool(names):
            raise ValueError(f"a corpus of kind {self.kind} {'needs' if built else 'takes no'} parts")
        if built and self.sentences is not None:
            raise ValueError("a corpus of kind built takes no sentences: each of its parts has a count")
        if len(set(names)) < len(names):
            raise ValueError(f"names of parts repeat: {', '.join(names)}")
        return self

    @property
    def has_columns(self) -> bool:
        """Whether it is read from a table, rather than built or read from one sentence a line."""
        return self.path is not None and is_table(self.path)


METRICS = {
    "classification": "macro_f1",
    "pair": "average_precision",
    "similarity": "spearman",
    "retrieval": "ndcg_at_10",
    "clustering": "v_measure",
    "regression": "r2",
}


class TaskSpec(Spec):
    """One evaluation task: the function that builds it from local, packaged or tiny data, its metric and
    provenance.

    in_domain: whether its texts come from the corpus's sources, None when the question has no answer.
    """

    kind: Literal["classification", "pair", "similarity", "retrieval", "clustering", "regression"]
    metric: Literal["macro_f1", "average_precision", "spearman", "ndcg_at_10", "v_measure", "r2"]
    builder: str
    options: dict[str, Any] = Field(default_factory=dict)
    in_domain: bool | None = None
    source: str
    licence: str | None = None

    @model_validator(mode="after")
    def _metric_fits_kind(self) -> TaskSpec:
        if self.metric != METRICS[self.kind]:
            raise ValueError(f"a {self.kind} task is scored by {METRICS[self.kind]}, not {self.metric}")
        return self


class TaskSuiteSpec(Spec):
    """Tasks that are reported together, and the protocol they are scored by. Suites of different protocol do not mix."""

    description: str = ""
    protocol: str
    tasks: Annotated[tuple[TaskSpec, ...], Field(strict=False, min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> TaskSuiteSpec:
        names = [task.name for task in self.tasks]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"task names repeat: {', '.join(repeated)}")
        return self


# settings each kind needs; any other of them has no meaning for it
OPTIMIZER_SETTINGS: dict[str, tuple[str, ...]] = {
    "adamw": (),
    "sam": ("rho", "same_dropout", "perturb_heads"),
    "asam": ("rho", "eta", "bias_mode", "same_dropout", "perturb_heads"),
    "disam": ("rho", "variance_weight", "same_dropout", "perturb_heads"),
}


class OptimizerSpec(Spec):
    """AdamW, or AdamW inside a sharpness-aware step.

    rho: radius of the perturbation. eta: floor under |w| in ASAM's scaling. bias_mode: ASAM scales biases by
    |w| (`abs`) or not at all (`identity`). perturb_heads: heads are perturbed with the student. same_dropout:
    the second pass repeats the masks of the first. variance_weight: DISAM's lambda. None where the kind has
    no such setting. ascent_stride, ascent_one_view, ascent_every: a cheaper direction, from every so many-th
    sentence, from one dropout view, found anew only every so many steps (sharpness_aware.Approximation); the
    defaults are exact.
    """

    kind: Literal["adamw", "sam", "asam", "disam"]
    rho: float | None = Field(default=None, ge=0)
    eta: float | None = Field(default=None, ge=0)
    bias_mode: Literal["abs", "identity"] | None = None
    perturb_heads: bool | None = None
    same_dropout: bool | None = None
    variance_weight: float | None = Field(default=None, ge=0)
    ascent_stride: int = Field(default=1, ge=1)
    ascent_one_view: bool = False
    ascent_every: int = Field(default=1, ge=1)
    notes: str = ""

    @property
    def approximation(self) -> dict[str, Any]:
        """What makes the ascent cheaper than the exact one; empty for the exact one."""
        fields = type(self).model_fields
        names = [name for name in fields if name.startswith("ascent_")]
        return {name: getattr(self, name) for name in names if getattr(self, name) != fields[name].default}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that mean something for this kind; those of an approximate ascent where there is one."""
        return {name: getattr(self, name) for name in OPTIMIZER_SETTINGS[self.kind]} | self.approximation

    @model_validator(mode="after")
    def _settings_fit_kind(self) -> OptimizerSpec:
        every = OPTIMIZER_SETTINGS["asam"] + OPTIMIZER_SETTINGS["disam"]
        missing = [name for name, value in self.settings.items() if value is None]
        foreign = [
            name for name in dict.fromkeys(every) if name not in self.settings and getattr(self, name) is not None
        ]
        if missing:
            raise ValueError(f"optimizer kind {self.kind} needs {', '.join(missing)}")
        if self.kind == "adamw":
            foreign += list(self.approximation)
        if foreign:
            raise ValueError(f"optimizer kind {self.kind} has no {', '.join(foreign)}")
        if self.same_dropout and self.approximation:
            raise ValueError(
                f"same_dropout has no meaning with {', '.join(self.approximation)}: the passes run on other batches"
            )
        return self


@dataclass(frozen=True)
class Specs:
    """What the names stand for; None, and no teachers, where the notebook has no such parameter."""

    teachers: tuple[TeacherSpec, ...] = ()
    student: StudentSpec | None = None
    corpus: CorpusSpec | None = None
    tasks: TaskSuiteSpec | None = None
    method: BaseModel | None = None
    optimizer: OptimizerSpec | None = None

    def named(self) -> list[tuple[str, BaseModel]]:
        """(name of the parameter, spec) of all that is there; several teachers all bear the name `teacher`."""
        others = ((name, getattr(self, name)) for name in ("student", "corpus", "tasks", "method", "optimizer"))
        return [*(("teacher", spec) for spec in self.teachers), *((n, spec) for n, spec in others if spec is not None)]
