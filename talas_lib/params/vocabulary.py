"""The notebook parameters: one flat vocabulary, each name with its type, default, range and meaning.

Values arrive from papermill (`-p`, `-f`) or from an edited parameters cell, so a wrong type is the rule, not
the exception: every check here names the value, what is accepted, and what to write instead.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from talas_lib.errors import TalasError, did_you_mean, listed

YAML_FLOAT_HINT = "it is text, since YAML 1.1 reads an exponent only after a dot and with a sign; write"
NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?")
_CONTAINERS: dict[str, type[Any]] = {"dict": dict, "list": list}
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TAKEN = ("cache", "nb", "records")  # folders of the outputs that are there for something else
# papermill adds these itself when called with --inject-paths
_FROM_PAPERMILL = ("PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH")


@dataclass(frozen=True)
class Parameter:
    """One notebook parameter.

    type: `str`, `int`, `float`, `bool`, `list` (of names, or of whole numbers where `entries` says so) or `dict`. low and
    high: inclusive bounds for numbers; above: an exclusive lower bound. choices: the accepted texts. optional:
    None is accepted, as it is wherever the default is None; the value then comes from a params file or from another parameter
    (see help).
    """

    name: str
    type: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False
    entries: str = "str"
    folder: bool = False  # the value names a folder of the outputs

    def __post_init__(self) -> None:
        if self.default is None:
            object.__setattr__(self, "optional", True)

    def check(self, value: Any) -> Any:
        """The value in its declared type (an int becomes a float where a float is wanted).

        Raises TalasError for another type or a value out of range.
        """
        if value is None:
            if self.optional:
                return None
            raise self._wrong(value, f"leave it out for the default, {self.default!r}")
        value = _CHECKS[self.type](self, value)
        if self.type in ("int", "float"):
            self._check_range(value)
        if self.choices and value not in self.choices:
            accepted = listed(self.choices) + (", or None" if self.optional else "")
            raise TalasError(f"{self.name} is {value!r}.{did_you_mean(value, self.choices)} Accepted: {accepted}")
        if self.folder and (not _FOLDER.fullmatch(value) or value in _TAKEN):
            raise TalasError(
                f"{self.name} is {value!r}, which is no name for a folder of the outputs. Accepted: letters, digits, `.`, `_` and"
                f" `-`, the first a letter or digit, and none of {listed(_TAKEN)}"
            )
        return value

    def _check_range(self, value: float) -> None:
        too_low = (self.low is not None and value < self.low) or (self.above is not None and value <= self.above)
        if not math.isfinite(value) or too_low or (self.high is not None and value > self.high):
            raise TalasError(f"{self.name} is {value!r}, out of range. Accepted: {self.range_text}. {self.help}")

    @property
    def range_text(self) -> str:
        """The accepted range in words, such as `above 0, at most 1`."""
        bounds = {"above": self.above, "at least": self.low, "at most": self.high}
        parts = [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]
        return ", ".join(parts) or "any finite number"

    @property
    def type_text(self) -> str:
        """The accepted type in words."""
        words = {
            "str": "text",
            "int": "a whole number",
            "float": "a number",
            "bool": "True or False",
            "list": "a list of names" if self.entries == "str" else "a list of whole numbers",
            "dict": "a mapping",
        }
        return words[self.type] + (" or None" if self.optional else "")

    def _wrong(self, value: Any, way_out: str) -> TalasError:
        kind = "None" if value is None else type(value).__name__
        return TalasError(f"{self.name} is {value!r} ({kind}), expected {self.type_text}: {way_out}")


def _check_str(parameter: Parameter, value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, str):
        raise parameter._wrong(value, "it is empty")
    if isinstance(value, bool):
        raise parameter._wrong(value, "YAML reads yes, no, on and off as True or False; put the word in quotes")
    if isinstance(value, (int, float)):
        raise parameter._wrong(
            value,
            f"papermill -p turns digits into a number (0123 becomes 123); use `-r {parameter.name} ...`,"
            " which keeps text",
        )
    raise parameter._wrong(value, _not_a_literal(parameter, value))


def _check_int(parameter: Parameter, value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        raise parameter._wrong(value, f"write {int(value)}")
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        raise parameter._wrong(value, f"it is text: write the number without quotes, {value.strip()}")
    raise parameter._wrong(value, _not_a_literal(parameter, value))


def _check_float(parameter: Parameter, value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        raise parameter._wrong(value, f"{YAML_FLOAT_HINT} {yaml_number(value)}")
    raise parameter._wrong(value, _not_a_literal(parameter, value))


def _check_bool(parameter: Parameter, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise parameter._wrong(value, "write True or False (papermill -p: capital letter; YAML: true or false, no quotes)")


def _check_container(parameter: Parameter, value: Any) -> Any:
    if isinstance(value, _CONTAINERS[parameter.type]):
        return value
    if isinstance(value, str):
        raise parameter._wrong(
            value,
            "papermill -p passes text only; write it in a YAML file and pass that with -f, or use -y"
            f" '{parameter.name}: ...'",
        )
    raise parameter._wrong(value, _not_a_literal(parameter, value))


def _check_entries(parameter: Parameter, value: Any) -> list[Any]:
    return (_check_names if parameter.entries == "str" else _check_numbers)(parameter, value)


def _check_numbers(parameter: Parameter, value: Any) -> list[int]:
    for item in _check_container(parameter, value):
        if not isinstance(item, int) or isinstance(item, bool) or (parameter.low is not None and item < parameter.low):
            raise TalasError(
                f"{parameter.name} has the entry {item!r}, expected whole numbers {parameter.range_text}, such as"
                f" {parameter.name}: [1, 3]"
            )
    return list(value)


def _check_names(parameter: Parameter, value: Any) -> list[str]:
    for item in _check_container(parameter, value):
        if not isinstance(item, str) or not item.strip():
            kind = type(item).__name__
            raise TalasError(
                f"{parameter.name} has the entry {item!r} ({kind}), expected names, such as {parameter.name}: [one, two];"
                " put digits in quotes"
            )
    return [item.strip() for item in value]


def _not_a_literal(parameter: Parameter, value: Any) -> str:
    if isinstance(value, (str, int, float, bool, list, dict, tuple)):
        return (
            f"for example {literal(parameter.default)}" if parameter.default not in (None, {}, []) else parameter.help
        )
    return f"a later cell has overwritten the name {parameter.name}; run the parameters cell again"


_CHECKS: dict[str, Callable[[Parameter, Any], Any]] = {
    "str": _check_str,
    "int": _check_int,
    "float": _check_float,
    "bool": _check_bool,
    "list": _check_entries,
    "dict": _check_container,
}


def float_literal(value: float) -> str:
    """A float as Python and YAML 1.1 both read it: `2.0e-5`, never `2e-5`."""
    text = repr(float(value))
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    sign = "-" if exponent.startswith("-") else "+"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{sign}{int(exponent.lstrip('+-'))}"


def yaml_number(text: str) -> str:
    """A number's text as YAML 1.1 reads it: `1e-4` becomes `1.0e-4`, `1E6` becomes `1.0e+6`."""
    mantissa, e, exponent = text.strip().lower().partition("e")
    if not e:
        return mantissa
    sign = "" if exponent[0] in "+-" else "+"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{sign}{exponent}"


def literal(value: Any) -> str:
    """A default as it is written in a parameters cell."""
    return float_literal(value) if isinstance(value, float) else repr(value).replace("'", '"')


def yaml_text(value: Any) -> str:
    """A value in one line that YAML 1.1 reads back as itself, for papermill's `-y`: JSON, but for numbers such as 2e-05, which
    would be text.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)}: {yaml_text(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(yaml_text, value)) + "]"
    return float_literal(value) if isinstance(value, float) else json.dumps(value)


def reject_unknown(names: Iterable[str], notebook: str, used_here: Iterable[str]) -> None:
    """Raises TalasError when a name is in no notebook's vocabulary; papermill itself would log it and go on."""
    for name in names:
        if name not in VOCABULARY and name not in _FROM_PAPERMILL:
            used = tuple(used_here)
            guess = did_you_mean(name, used) or did_you_mean(name, VOCABULARY)
            raise TalasError(
                f"notebook {notebook} has no parameter {name!r}.{guess} Accepted: {listed(used)}"
                f" (`papermill --help-notebook notebooks/{notebook}.ipynb` explains them)"
            )


def from_papermill(name: str) -> bool:
    """Whether papermill itself injects this name (`--inject-paths`)."""
    return name in _FROM_PAPERMILL


# the help text becomes a comment in the parameters cell: no `=`, no `|`, which papermill's parser does not
# survive
_PARAMETERS = (
    Parameter(
        "teacher", "str", "minilm-l6", "a file of params/teachers, or a model folder of yours such as ./my_teacher"
    ),
    Parameter("teacher_source", "str", None, "a local folder with the teacher, instead of its file's source"),
    Parameter("teachers", "list", [], "several teachers, such as [mpnet-base, minilm-l6], instead of the one"),
    Parameter("student", "str", "minilm-l3", "a file of params/students"),
    Parameter("student_source", "str", None, "a local folder with the student, instead of its file's source"),
    Parameter("corpus", "str", "mini", "a file of params/corpora, or a .txt, .csv or .jsonl file of yours"),
    Parameter("text_column", "str", None, "column of that file with the sentences, None for text"),
    Parameter("source_column", "str", None, "column of that file that says where a sentence is from, None for source"),
    Parameter("max_sentences", "int", None, "train on a seeded sample of so many sentences, None for all", low=2),
    Parameter(
        "hold_out",
        "float",
        0.0,
        "share of these sentences kept out of training, to measure agreement on",
        low=0,
        high=0.5,
    ),
    Parameter("tasks", "str", "mini", "a file of params/tasks"),
    Parameter("beside", "list", [], "further suites that every run is scored on, such as [tweet-eval]"),
    Parameter("method", "str", "talas", "a file of params/methods"),
    Parameter("method_params", "dict", {}, "changes to the method's file, such as {num_anchor_layers: 1}"),
    Parameter("optimizer", "str", "asam", "a file of params/optimizers"),
    Parameter("rho", "float", None, "radius of the perturbation, None for the optimizer's file", low=0, high=10),
    Parameter("eta", "float", None, "ASAM's floor under the weights, None for the optimizer's file", low=0, high=1),
    Parameter(
        "same_dropout",
        "bool",
        None,
        "the second pass repeats the dropout masks, None for the optimizer's file",
    ),
    Parameter("perturb_heads", "bool", None, "the perturbation covers the heads, None for the optimizer's file"),
    Parameter(
        "pooling",
        "str",
        None,
        "cls, mean or last for the student, None for its file",
        choices=("cls", "mean", "last"),
    ),
    Parameter("seed", "int", 42, "seed of data order, heads and dropout", low=0, high=2**32 - 1),
    Parameter("epochs", "int", 5, "passes over the corpus", low=1, high=10_000),
    Parameter("batch_size", "int", 32, "sentences a step, never split", low=1, high=65_536),
    Parameter("lr", "float", 2.0e-5, "peak learning rate of the student", above=0, high=1),
    Parameter("min_lr", "float", None, "learning rate at the end, None for a tenth of the peak", low=0, high=1),
    Parameter("warmup", "float", 0.06, "share of the steps with rising learning rate", low=0, high=1),
    Parameter("weight_decay", "float", 0.01, "decoupled, on every parameter", low=0, high=1),
    Parameter(
        "max_length",
        "int",
        None,
        "tokens kept of a sentence, teacher and student, None for each one's file",
        low=4,
        high=8192,
    ),
    Parameter("precision", "str", "fp32", "fp32 or bf16 (autocast, weights stay fp32)", choices=("fp32", "bf16")),
    Parameter("eval_precision", "str", "fp32", "precision of the vectors that are scored", choices=("fp32", "bf16")),
    Parameter("device", "str", "auto", "auto, cpu or cuda", choices=("auto", "cpu", "cuda")),
    Parameter("checkpoint_every", "int", 200, "steps between resumable checkpoints", low=1),
    Parameter("probe_every", "int", 25, "steps between sharpness-aware probes, 0 for none", low=0),
    Parameter(
        "nonfinite",
        "str",
        "stop",
        "a loss or gradient that is no number: stop, or skip the step",
        choices=("stop", "skip"),
    ),
    Parameter(
        "keep_epochs",
        "list",
        [],
        "epochs whose weights are kept too, such as [1, 3], for 05_sharpness",
        low=1,
        entries="int",
    ),
    Parameter("run", "str", "latest", "run id, or latest"),
    Parameter(
        "sharpness_batches", "int", 8, "fixed batches whose mean loss is analysed, 0 in a preset for no analysis", low=0
    ),
    Parameter("sharpness_batch_size", "int", 32, "sentences in each of them", low=2),
    Parameter("sharpness_tol", "float", 1.0e-3, "relative change at which the iteration stops", above=0, high=0.5),
    Parameter("sharpness_max_iter", "int", 100, "Hessian-vector products at most", low=1),
    Parameter(
        "estimator",
        "str",
        "both",
        "lanczos, power, both, quick (differences of gradients) or pyhessian",
        choices=("both", "lanczos", "quick", "power", "pyhessian"),
    ),
    Parameter(
        "subsets",
        "list",
        ["encoder"],
        "weights of the Hessian: encoder, heads, encoder+heads, layers; first is headline",
    ),
    Parameter("top_eigenvalues", "int", 1, "so many of the largest eigenvalues, by Lanczos", low=1, high=100),
    Parameter("trace_draws", "int", 0, "random vectors at most for the trace, 0 for no trace", low=0),
    Parameter("dropout_seed", "int", None, "dropout on, its masks fixed by this seed, None for dropout off", low=0),
    Parameter(
        "ball_rho",
        "float",
        0.5,
        "radius of the ball of ASAM in which the loss rise is measured, 0 for none",
        low=0,
        high=10,
    ),
    Parameter("ball_steps", "int", 5, "ascent steps at most to the worst point of that ball", low=1, high=1000),
    Parameter("single_batches", "bool", False, "also the largest eigenvalue of each batch by itself"),
    Parameter("held_out_batches", "int", 0, "batches of sentences not trained on, for the loss gap, 0 for none", low=0),
    Parameter("sharpness_epochs", "list", [], "kept epochs to measure beside the final weights", low=1, entries="int"),
    Parameter("final_batches", "int", None, "fixed batches for the final weights, None for sharpness_batches", low=1),
    Parameter(
        "landscape", "int", 0, "points a side of the loss landscapes, an odd number, 0 for none", low=0, high=401
    ),
    Parameter("other_run", "str", None, "id of a second run, for the loss on the line between the two"),
    Parameter("report", "str", None, "name of the report folder, None to write none", folder=True),
    Parameter("query", "str", None, "the sentence whose neighbours are shown first, None for one of the corpus"),
    Parameter("shown", "int", 400, "sentences of the corpus to look at", low=20, high=5000),
    Parameter("unseen", "str", None, "a file of sentences not trained on, None for what the corpus left out"),
    Parameter("dim", "int", None, "numbers of the exported vector, None for the student's own", low=2, high=8192),
    Parameter("run_benchmarks", "bool", False, "measure everything anew first, about 15 minutes of an idle machine"),
    Parameter("grid", "dict", {}, "lists to vary, such as {optimizer: [asam, adamw], seed: [42, 43]}"),
    Parameter("tables", "dict", {}, "tables of a study by name, each {title: ..., grid: {...}} over the values above"),
)
VOCABULARY: dict[str, Parameter] = {parameter.name: parameter for parameter in _PARAMETERS}
