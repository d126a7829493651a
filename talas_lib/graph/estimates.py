"""How long a plan would take and how large its caches would be, from measured figures; estimates, not promises.

On a CPU: results/bench (methods.csv, steps.csv, encode.csv, evaluation.csv), measured with two threads. On a GPU: the paper's
Table 3 (results/paper/table3.csv), a T4. Both were measured with students of known size, and are scaled to others by the number
of parameters in their blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

    from talas_lib.params import ResolvedParams, TaskSuiteSpec

Machine = Literal["cpu", "gpu"]
MINILM_L3, BERT_BASE = "minilm-l3", "bert-base-shape"  # the students of methods.csv
MEASURED_BATCH = 32
TOKENS = 18  # of a sentence of the paper's corpus, special tokens included, in either kind of tokenizer
MEASURED = ("methods", "steps", "encode", "evaluation")  # tables of results/bench that are read
START_S = 10.0  # a notebook's kernel and imports: what the quickstart takes beyond its stages is of this order
VOCABULARY = 30_522  # BERT's; what a static student has its teacher encode
# (millions of parameters in the blocks, width of the vectors); any other encoder counts as BERT base
SIZES = {
    "tiny": (0.04, 32),
    "minilm-l3": (5.3, 384),
    "minilm-l6": (10.6, 384),
    "minilm-l6-h384": (10.6, 384),
    "minilm-l6-h768": (42.5, 768),
    "bert-base": (85.0, 768),
    "mpnet-base": (85.0, 768),
    "bge-m3": (302.0, 1024),
    "qwen3-0.6b": (440.0, 1024),
    "qwen3-4b": (3633.0, 2560),
}


def size_of(name: str) -> tuple[float, int]:
    """(millions of parameters in the blocks, width) of a student or teacher by name."""
    return SIZES["tiny"] if name.startswith("tiny") else SIZES.get(name, SIZES["bert-base"])


@dataclass(frozen=True, eq=False)
class Rates:
    """The measured tables. methods, steps, encode, evaluation: of results/bench; table3: of results/paper."""

    methods: pd.DataFrame
    steps: pd.DataFrame
    encode: pd.DataFrame
    evaluation: pd.DataFrame
    table3: pd.DataFrame

    @classmethod
    def read(cls) -> Rates:
        """From results/. TalasError where a table is not there."""
        from talas_lib import bench

        return cls(**{name: bench.table(name) for name in MEASURED}, table3=bench.paper_table3())

    # ---- training

    def step_ms(self, p: ResolvedParams, machine: Machine) -> float:
        """Milliseconds of a training step."""
        exact = self._cpu_step(p) if machine == "cpu" else self._gpu_step(p)
        return exact * self._shortcut(p, machine) * p.batch_size / MEASURED_BATCH

    def train_s(self, p: ResolvedParams, sentences: int, machine: Machine) -> float:
        """Seconds of training a run on so many sentences; of a computed student, of encoding its vocabulary."""
        if p.method == "static":
            return self.encode_s(VOCABULARY, p.teacher_spec.name, p.precision, machine)
        return run_steps(p, sentences) * self.step_ms(p, machine) / 1000

    def _cpu_step(self, p: ResolvedParams) -> float:
        """Between the two measured students, by size; a method that only the small one was measured with grows as TALAS does."""
        size, _ = size_of(p.student_spec.name)
        small, large = SIZES[MINILM_L3][0], SIZES["bert-base"][0]
        low = self._method_ms(p.method, MINILM_L3) or self._method_ms("talas", MINILM_L3)
        talas = [self._method_ms("talas", student) for student in (MINILM_L3, BERT_BASE)]
        high = self._method_ms(p.method, BERT_BASE) or low * talas[1] / talas[0]
        slope = (high - low) / (large - small)
        twice = self._twice(p, MINILM_L3 if size < (small + large) / 2 else BERT_BASE)
        return max(low + slope * (size - small), low * size / small if size < small else 0.0) * twice

    def _gpu_step(self, p: ResolvedParams) -> float:
        """The paper's for BERT base, in proportion to the size; a method that its table lacks stands to TALAS as on the CPU."""
        known = self._papers
        here = known.get(p.method)
        if here is None:
            ratio = self._method_ms(p.method, MINILM_L3) / self._method_ms("talas", MINILM_L3)
            here = known["talas"] * (ratio or 1.0)
        twice = 1.0 if p.optimizer_spec.kind == "adamw" else known["talas + asam"] / known["talas"]
        return here * twice * size_of(p.student_spec.name)[0] / SIZES["bert-base"][0]

    @cached_property
    def _papers(self) -> dict[str, float]:
        """Milliseconds of a step by method, as printed."""
        return dict(zip(self.table3["variant"], self.table3["time_ms"].astype(float), strict=True))

    def _twice(self, p: ResolvedParams, student: str) -> float:
        """What a sharpness-aware step costs in steps of AdamW."""
        if p.optimizer_spec.kind == "adamw":
            return 1.0
        return self._method_ms("talas + asam", student) / self._method_ms("talas", student)

    def _method_ms(self, variant: str, student: str) -> float:
        """The measured median, 0 where there is none."""
        return self._times.get((variant, student), 0.0)

    @cached_property
    def _times(self) -> dict[tuple[str, str], float]:
        return _medians(self.methods[self.methods["metric"] == "time"], "variant", "student")

    def _shortcut(self, p: ResolvedParams, machine: Machine) -> float:
        """The share of a step that is left with bf16 (the T4's times are fp16's already), and without SimCSE's second view."""
        bench = "step-adamw" if p.optimizer_spec.kind == "adamw" else "step-asam"
        share = 1.0
        if p.precision == "bf16" and machine == "cpu":
            share *= self._steps[bench, "bf16", "time"] / self._steps[bench, "fp32", "time"]
        if getattr(p.method_config, "weight_simcse", None) == 0:
            share *= self._steps[bench, "one view", "time, share of fp32"]
        return share

    @cached_property
    def _steps(self) -> dict[tuple[str, str, str], float]:
        return _medians(self.steps, "bench", "variant", "metric")

    # ---- encoding and scoring

    def encode_s(self, sentences: int, model: str, precision: str, machine: Machine) -> float:
        """Seconds of encoding sentences of the corpus's length."""
        size, _ = size_of(model)
        if machine == "gpu":
            return sentences * self._gpu_sentence_s * size / SIZES["bert-base"][0]
        return sentences / self._throughput[precision, "throughput"] * size / SIZES["minilm-l6"][0]

    @cached_property
    def _throughput(self) -> dict[tuple[str, str], float]:
        return _medians(self.encode, "variant", "metric")

    @property
    def _gpu_sentence_s(self) -> float:
        """BERT base, seconds a sentence: a SimCSE step is two views, each a forward pass and a backward one of twice its cost."""
        return self._papers["simcse"] / 1000 / MEASURED_BATCH / 6

    def suite_s(self, suite: TaskSuiteSpec, model: str, precision: str, machine: Machine) -> float:
        """Seconds of encoding and scoring a suite by one encoder; a task that was not measured counts as the median one."""
        size, width = size_of(model)
        total = 0.0
        for task in suite.tasks:
            texts, encoding, scoring = self._tasks.get((precision, task.name)) or self._tasks[precision, "median"]
            if machine == "gpu":
                total += texts * self._gpu_sentence_s * size / SIZES["bert-base"][0]
            else:
                total += encoding * size / SIZES[MINILM_L3][0]
            total += scoring * width / SIZES[MINILM_L3][1]
        return total

    @cached_property
    def _tasks(self) -> dict[tuple[str, str], tuple[float, float, float]]:
        """(texts, seconds of encoding, of scoring) by precision and task, and of the `median` task."""
        found = {}
        for precision, rows in self.evaluation[self.evaluation["task"] != "all"].groupby("variant"):
            wide = rows.pivot_table(index="task", columns="metric", values="median")[
                ["texts", "encoding", "scoring"]
            ].dropna()
            for task, row in [*wide.iterrows(), ("median", wide.median())]:
                found[str(precision), str(task)] = (float(row["texts"]), float(row["encoding"]), float(row["scoring"]))
        return found


def _medians(rows: pd.DataFrame, *by: str) -> dict[Any, float]:
    keys = rows[list(by)].itertuples(index=False, name=None)
    return dict(zip(keys, rows["median"].astype(float), strict=True))


def run_steps(p: ResolvedParams, sentences: int) -> int:
    """Steps of a run, those of a first stage with the heads alone included; 0 for a student that is computed."""
    if p.method == "static":
        return 0
    epochs = p.epochs + int(getattr(p.method_config, "head_epochs", 0))
    return epochs * -(-sentences // p.batch_size)


def vectors_gb(sentences: int, dims: list[int]) -> float:
    """Sentence vectors of some teachers, fp32."""
    return sentences * sum(dims) * 4 / 1e9


def tokens_gb(sentences: int, dim: int, needs: Any) -> float:
    """Token states and attention that a method reads (methods.base.Needs), fp16 and ragged."""
    states = len(needs.teacher_tokens) * dim
    return sentences * TOKENS * (states + len(needs.teacher_attention) * TOKENS) * 2 / 1e9
