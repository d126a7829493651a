"""Notebook parameters: what is refused, and whether the message says the value, what is accepted and the way out."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from talas_lib import params
from talas_lib.errors import TalasError
from talas_lib.params.resolved import _Vocabulary
from talas_lib.params.vocabulary import float_literal, literal, yaml_number, yaml_text


def refusal(**values: Any) -> str:
    """The message for values that 06_compare, which knows most names, cannot use."""
    with pytest.raises(TalasError) as caught:
        params.resolve("06_compare", values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "fragments"),
    [
        # text that looks like a number: the trap of YAML 1.1
        ("lr", "1e-4", ["'1e-4' (str)", "YAML 1.1", "write 1.0e-4"]),
        ("lr", "1E-4", ["write 1.0e-4"]),
        ("lr", "0.1", ["write 0.1"]),
        ("rho", "2e3", ["write 2.0e+3"]),
        ("epochs", "3", ["'3' (str)", "without quotes, 3"]),
        # wrong types
        ("epochs", "five", ["'five' (str)", "a whole number"]),
        ("epochs", 5.0, ["5.0 (float)", "write 5"]),
        ("epochs", True, ["True (bool)", "a whole number"]),
        ("epochs", None, ["None", "default, 5"]),
        ("lr", False, ["False (bool)", "a number"]),
        ("lr", [2.0e-5], ["(list)", "a number"]),
        ("teacher", 123, ["123 (int)", "0123 becomes 123", "-r teacher"]),
        ("teacher", 1.5, ["1.5 (float)", "-r teacher"]),
        ("teacher", False, ["False (bool)", "YAML reads yes, no"]),
        ("teacher", "  ", ["it is empty"]),
        ("same_dropout", "yes", ["'yes' (str)", "True or False"]),
        ("same_dropout", 1, ["1 (int)", "True or False"]),
        ("method_params", "{lasd_pairs: 2}", ["a mapping", "-f", "-y 'method_params"]),
        ("method_params", [1], ["(list)", "a mapping"]),
        ("teachers", "tiny", ["'tiny' (str)", "a list of names", "-y 'teachers"]),
        ("teachers", ["tiny", 1], ["the entry 1 (int)", "expected names", "quotes"]),
        ("teachers", ["tiny", " "], ["the entry ' ' (str)"]),
        ("teachers", ["tiny", "tinny"], ["unknown teacher 'tinny'", "Did you mean 'tiny'?"]),
        ("teacher", object(), ["a later cell has overwritten the name teacher", "run the parameters cell again"]),
        # out of range
        ("epochs", 0, ["0, out of range", "at least 1"]),
        ("lr", 5, ["5.0, out of range", "above 0, at most 1"]),
        ("lr", 0.0, ["above 0"]),
        ("lr", float("nan"), ["nan, out of range"]),
        ("lr", float("inf"), ["inf, out of range"]),
        ("rho", -1, ["-1.0, out of range", "at least 0"]),
        ("seed", -1, ["-1, out of range", "at least 0, at most 4294967295"]),
        ("seed", 2**32, ["out of range"]),
        ("warmup", 1.5, ["at most 1"]),
        ("max_length", 3, ["at least 4"]),
        ("batch_size", 0, ["at least 1"]),
        ("max_sentences", 1, ["at least 2"]),
        ("min_lr", 1.0e-3, ["above lr, 2e-05"]),
        # closed choices
        ("precision", "fp16", ["Accepted: fp32, bf16"]),
        ("precision", "BF16", ["Did you mean 'bf16'?"]),
        ("device", "gpu", ["Accepted: auto, cpu, cuda"]),
        ("pooling", "CLS", ["Did you mean 'cls'?", "or None"]),
        # names of files
        ("teacher", "qwen3-4B", ["Did you mean 'qwen3-4b'?", "minilm-l6", "copy params/teachers/"]),
        ("student", "minilm-3", ["Did you mean 'minilm-l3'?", "copy params/students/"]),
        ("corpus", "mimi", ["unknown corpus 'mimi'", "Did you mean 'mini'?", "copy params/corpora/"]),
        ("tasks", "papr", ["unknown task suite", "Did you mean 'paper'?", "copy params/tasks/"]),
        ("method", "tallas", ["Did you mean 'talas'?", "simcse", "params/methods/<name>.yaml"]),
        ("optimizer", "adam", ["Did you mean 'adamw'?", "asam-kwon", "copy params/optimizers/"]),
        ("student", "../students/tiny", ["unknown student"]),
        # nested settings
        ("method_params", {"lasd_pair": 3}, ["unknown key 'lasd_pair'", "Did you mean 'lasd_pairs'?", "weight_tamd"]),
        ("method_params", {"lasd_pairs": "most"}, ["'most' (str)", "integer or 'all'"]),
        ("method_params", {"temperature": "1e-1"}, ["write 1.0e-1"]),
        ("method_params", {"temperature": -1.0}, ["greater than 0"]),
        ("method_params", {"num_anchor_layers": True}, ["True (bool)"]),
        # sources
        ("teacher_source", "BAAI/bge-m3", ["none of package:<asset>", "hub:BAAI/bge-m3", "./BAAI/bge-m3"]),
        ("teacher_source", "tiny:gpt", ["Accepted: tiny:<architecture>", "qwen3-bidirectional"]),
        ("student_source", "hub:bert", ["student_source", "none of"]),
        ("corpus", "./table.parquet", ["cannot tell its format", ".jsonl"]),
    ],
)
def test_a_value_that_cannot_be_used(name: str, value: Any, fragments: list[str]) -> None:
    message = refusal(**{name: value})
    assert name in message or any(fragment in message for fragment in fragments)
    for fragment in fragments:
        assert fragment in message


def test_an_unknown_name_lists_the_accepted_ones() -> None:
    message = refusal(teecher="minilm-l6")
    assert "'teecher'" in message
    assert "Did you mean 'teacher'?" in message
    assert "probe_every" in message


def test_names_of_other_notebooks_are_accepted_checked_and_reported() -> None:
    p = params.resolve("03_train", {"grid": {"seed": [1]}, "sharpness_batches": 4})
    assert sorted(p.unused) == ["grid", "sharpness_batches"]
    assert p.unused["grid"] == "not a parameter of 03_train"
    assert "sharpness_batches" in p.summary()
    with pytest.raises(AttributeError, match="03_train has no parameter 'grid'"):
        _ = p.grid
    assert "expected a whole number" in refusal(sharpness_batches="4.5")


def test_a_setting_the_optimizer_does_not_have_is_reported_and_changes_nothing() -> None:
    plain = params.resolve("03_train", {"optimizer": "adamw"})
    given = params.resolve("03_train", {"optimizer": "adamw", "rho": 0.5})
    assert given.unused == {"rho": "optimizer adamw has no rho"}
    assert given.rho is None
    assert given.run_id == plain.run_id


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.0e-5, "2.0e-5"), (1e-4, "0.0001"), (1e20, "1.0e+20"), (0.06, "0.06"), (1.0, "1.0"), (-1.25e-7, "-1.25e-7")],
)
def test_floats_are_written_so_that_python_and_yaml_read_them(value: float, text: str) -> None:
    assert float_literal(value) == text
    assert yaml.safe_load(text) == value == float(text)


@pytest.mark.parametrize(
    "value",
    [{"lr": 2.0e-5, "grid": {"lr": [2e-05, 1e22, 0.5], "pair": [["a", {}], [None, True]]}}, "it's: {odd}", [], {}, 0],
)
def test_values_for_papermill_are_read_back_as_they_are(value: Any) -> None:
    text = yaml_text(value)
    assert "\n" not in text
    assert yaml.safe_load(text) == value


@pytest.mark.parametrize("text", ["1e-4", "1.5E6", "2e3", "7", "0.5", "1.0e-4", "+3e-2"])
def test_the_corrected_text_is_a_number_to_yaml(text: str) -> None:
    assert yaml.safe_load(yaml_number(text)) == float(text)


def test_literals_keep_their_type() -> None:
    assert literal(None) == "None"
    assert literal("a") == '"a"'
    assert literal({}) == "{}"
    assert literal(True) == "True"


def test_annotated_attributes_are_exactly_the_vocabulary() -> None:
    types = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}
    hints = _Vocabulary.__annotations__
    assert list(hints) == list(params.VOCABULARY)
    for name, parameter in params.VOCABULARY.items():
        assert str(hints[name]).startswith(types[parameter.type].__name__), name


def test_every_default_passes_its_own_check_and_every_help_survives_papermill() -> None:
    for parameter in params.VOCABULARY.values():
        assert parameter.check(parameter.default) == parameter.default
        assert not set("=|") & set(parameter.help)
        assert parameter.help
