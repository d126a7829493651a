"""From given values to one frozen, validated object that says all a notebook needs.

Precedence: schema default < teacher, student, method, optimizer file < preset (-f) < -p. A notebook default
of None means "from the file", so the file's value is filled in here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel

from talas_lib import methods
from talas_lib.errors import TalasError
from talas_lib.params import loading, teachers
from talas_lib.params.cells import read_given
from talas_lib.params.notebooks import NotebookSchema, notebook_schema
from talas_lib.params.recipe import default_min_lr
from talas_lib.params.resolved import ResolvedParams
from talas_lib.params.specs import (
    OPTIMIZER_SETTINGS,
    CorpusSpec,
    OptimizerSpec,
    Specs,
    StudentSpec,
    TaskSuiteSpec,
    TeacherSpec,
)
from talas_lib.params.vocabulary import VOCABULARY, from_papermill, reject_unknown


def from_notebook(
    notebook: str, namespace: Mapping[str, Any], cells: Sequence[str] | None = None, *, check: bool = True
) -> ResolvedParams:
    """The parameters of a running notebook: `p = params.from_notebook("03_train", globals(), In)`.

    Checks the names papermill passed and those in the parameters cell, types, ranges, files, and (unless
    `check` is False) that models and corpus can be had. Raises TalasError before torch or transformers are
    imported.
    """
    schema = notebook_schema(notebook)
    given = read_given(schema, namespace, cells)
    resolved = resolve(notebook, given.values, passed=given.injected)
    if check:
        resolved.check_available()
    return resolved


def resolve(notebook: str, values: Mapping[str, Any], *, passed: frozenset[str] | None = None) -> ResolvedParams:
    """The parameters of `notebook` from plain values; what is left out takes the notebook's default.

    passed: names given from outside, for `origins`; None means all of `values`. A name that only another
    notebook has is checked, then listed in `unused`. Raises TalasError for anything that cannot be used.
    """
    schema = notebook_schema(notebook)
    reject_unknown(values, notebook, schema.names)
    elsewhere = {name: value for name, value in values.items() if name not in schema.names and not from_papermill(name)}
    for name, value in elsewhere.items():
        VOCABULARY[name].check(value)
    given = {p.name: copy.deepcopy(p.check(values.get(p.name, p.default))) for p in schema.parameters}
    _check_together(given)
    unused = dict.fromkeys(sorted(elsewhere), f"not a parameter of {notebook}")
    explicit = _explicit(schema, given, frozenset(values) if passed is None else passed)
    filled, specs, files = _fill_in(given, explicit, unused)
    if specs.teachers and specs.method is not None and (specs.student is not None or "method" in explicit):
        teachers.check_count(given["method"], specs.method, specs.teachers)
    origins = {name: "given" if name in explicit else files.get(name, "default") for name in schema.names}
    if given.get("teachers"):
        del given["teacher"]  # the list has taken its place
    return _frozen(notebook, filled, given, origins, unused, specs)


def from_dict(saved: Mapping[str, Any], run_config: Mapping[str, Any] | None = None) -> ResolvedParams:
    """`to_dict` read back, without looking at the params files again; run_config: as recorded beside it.

    A parameter that the notebook has got since then counts with its default.
    """
    specs = dict(saved["specs"])
    several = specs.pop("teachers", None) or [specs[name] for name in ("teacher",) if name in specs]
    specs.pop("teacher", None)
    readers: dict[str, type[BaseModel]] = {
        "student": StudentSpec,
        "corpus": CorpusSpec,
        "tasks": TaskSuiteSpec,
        "optimizer": OptimizerSpec,
    }
    if "method" in specs:
        readers["method"] = methods.config_class(saved["values"]["method"])
    read: dict[str, Any] = {name: readers[name].model_validate(spec) for name, spec in specs.items()}
    read["teachers"] = tuple(TeacherSpec.model_validate(spec) for spec in several)
    values, given, origins, unused = (dict(saved[name]) for name in ("values", "given", "origins", "unused"))
    for parameter in notebook_schema(saved["notebook"]).parameters:
        if parameter.name not in values:
            values[parameter.name] = given[parameter.name] = copy.deepcopy(parameter.default)
            origins[parameter.name] = "default"
    return _frozen(saved["notebook"], values, given, origins, unused, Specs(**read), run_config)


def _frozen(
    notebook: str,
    values: Mapping[str, Any],
    given: Mapping[str, Any],
    origins: Mapping[str, str],
    unused: Mapping[str, str],
    specs: Specs,
    run_config: Mapping[str, Any] | None = None,
) -> ResolvedParams:
    return ResolvedParams(
        notebook=notebook,
        values=MappingProxyType(values),
        given=MappingProxyType(given),
        origins=MappingProxyType(origins),
        unused=MappingProxyType(unused),
        specs=specs,
        recorded_config=run_config,
    )


def _check_together(given: Mapping[str, Any]) -> None:
    lr, min_lr = given.get("lr"), given.get("min_lr")
    if lr is not None and min_lr is not None and min_lr > lr:
        raise TalasError(f"min_lr is {min_lr}, above lr, {lr}: it is where the schedule ends. Accepted: 0 to lr")


def _fill_in(
    given: Mapping[str, Any], explicit: frozenset[str], unused: dict[str, str]
) -> tuple[dict[str, Any], Specs, dict[str, str]]:
    """Values with every None from a file replaced, the specs, and the file behind each value filled in."""
    values, files = dict(given), dict[str, str]()
    taught: tuple[TeacherSpec, ...] = ()
    student = corpus = tasks = method = optimizer = None
    if "teacher" in given:
        taught = teachers.teacher_specs(given, explicit)
    if given.get("teachers"):
        values["teacher"], files["teacher"] = given["teachers"][0], "teachers"
    if "student" in given:
        student = loading.load_student(given["student"], given.get("student_source"))
        student = _with(student, pooling=given.get("pooling"), max_length=given.get("max_length"))
    if "corpus" in given:
        corpus = _corpus(given, unused)
    if given.get("tasks") is not None:
        tasks = loading.load_tasks(given["tasks"])
        for suite in given.get("beside", ()):
            loading.load_tasks(suite)  # an unknown one is answered now
    if "method" in given:
        method = loading.load_method(given["method"], given["method_params"])
    if "optimizer" in given:
        optimizer = _optimizer(given, unused)
    sources: dict[str, StudentSpec | OptimizerSpec | None] = {
        "pooling": student,
        **dict.fromkeys(OPTIMIZER_SETTINGS["asam"], optimizer),
    }
    for name, spec in sources.items():
        if name in values and spec is not None:
            values[name] = getattr(spec, name)
            files[name] = f"{_folder(spec)}/{spec.name}"
    if "min_lr" in values and values["min_lr"] is None:
        values["min_lr"], files["min_lr"] = default_min_lr(values["lr"]), "lr"
    return values, Specs(taught, student, corpus, tasks, method, optimizer), files


def _corpus(given: Mapping[str, Any], unused: dict[str, str]) -> CorpusSpec:
    spec = loading.load_corpus_spec(given["corpus"])
    changes = {name: given[name] for name in ("text_column", "source_column") if given.get(name) is not None}
    if changes and not spec.has_columns:
        unused |= dict.fromkeys(changes, f"corpus {spec.name} is not read from columns")
        return spec
    return _with(spec, **changes)


def _optimizer(given: Mapping[str, Any], unused: dict[str, str]) -> OptimizerSpec:
    spec = loading.load_optimizer(given["optimizer"])
    changes = {}
    for name in ("rho", "eta", "same_dropout", "perturb_heads"):
        if given.get(name) is None:
            continue
        if name in OPTIMIZER_SETTINGS[spec.kind]:
            changes[name] = given[name]
        else:
            unused[name] = f"optimizer {spec.name} has no {name}"
    return _with(spec, **changes)


C = TypeVar("C", StudentSpec, CorpusSpec, OptimizerSpec)


def _with(spec: C, **changes: Any) -> C:
    """The spec with the changes that are not None, which the vocabulary has validated."""
    return spec.model_copy(update={name: value for name, value in changes.items() if value is not None})


def _folder(spec: BaseModel) -> str:
    return {StudentSpec: "students", OptimizerSpec: "optimizers"}[type(spec)]


def _explicit(schema: NotebookSchema, given: Mapping[str, Any], passed: frozenset[str]) -> frozenset[str]:
    """Names that were passed or differ from the notebook's default."""
    defaults = {p.name: p.default for p in schema.parameters}
    return frozenset(
        name for name in schema.names if given[name] is not None and (name in passed or given[name] != defaults[name])
    )
