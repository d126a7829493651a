"""From a name to a validated spec: finds the file, reads it strictly, and turns every complaint into one readable line."""

from __future__ import annotations

import copy
import re
import typing
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from talas_lib import methods, paths
from talas_lib.errors import TalasError, did_you_mean, listed
from talas_lib.params.grid import expand_tables
from talas_lib.params.sources import parse_source
from talas_lib.params.specs import CorpusSpec, OptimizerSpec, Spec, StudentSpec, TaskSuiteSpec, TeacherSpec
from talas_lib.params.strict_yaml import Document, Location, read_yaml
from talas_lib.params.vocabulary import NUMBER, VOCABULARY, YAML_FLOAT_HINT, yaml_number

KINDS = ("teachers", "students", "methods", "optimizers", "corpora", "tasks", "presets")
_SINGULAR = {"corpora": "corpus", "tasks": "task suite"}
_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_CORPUS_FILES = (".txt", ".csv", ".jsonl", ".txt.gz", ".csv.gz", ".jsonl.gz")
S = TypeVar("S", bound=Spec)


def available(kind: str) -> list[str]:
    """Names that `params/<kind>/` offers, sorted. kind: one of KINDS."""
    return sorted(path.stem for path in (paths.params_dir() / kind).glob("*.yaml") if _NAME.fullmatch(path.stem))


OWN_TEACHER_LENGTH = 256  # tokens kept of a sentence by a teacher that has no file, as with the paper's teachers


def load_teacher(name: str, source: str | None = None) -> TeacherSpec:
    """The teacher of `params/teachers/<name>.yaml`; `source` replaces its source (and then no revision is pinned).

    A value with a slash or a leading `~` or `.` is a model folder of the user's: it pools as it declares itself.
    """
    if "/" not in name and not name.startswith(("~", ".")):
        return _load("teachers", name, TeacherSpec, source)
    folder = paths.locate(name)
    return TeacherSpec(
        name=_slug(folder.name) or "folder", source=str(folder), pooling="auto", max_length=OWN_TEACHER_LENGTH
    )


def load_student(name: str, source: str | None = None) -> StudentSpec:
    """The student of `params/students/<name>.yaml`; `source` replaces its source (and then no revision is pinned)."""
    return _load("students", name, StudentSpec, source)


def load_optimizer(name: str) -> OptimizerSpec:
    """The optimizer of `params/optimizers/<name>.yaml`."""
    return _load("optimizers", name, OptimizerSpec)


def load_tasks(name: str) -> TaskSuiteSpec:
    """The task suite of `params/tasks/<name>.yaml`."""
    return _load("tasks", name, TaskSuiteSpec)


def load_corpus_spec(name_or_path: str) -> CorpusSpec:
    """The corpus of `params/corpora/<name>.yaml`, or a user's own file as a corpus of kind `file`.

    A value with a slash, a leading `~`, or the suffix of a text table is taken for a path; its corpus is
    named after the file.
    """
    if not looks_like_file(name_or_path):
        spec = _load("corpora", name_or_path, CorpusSpec)
        own = spec.kind == "file" and spec.path is not None
        return spec.model_copy(update={"path": str(paths.locate(str(spec.path)))}) if own else spec
    path = paths.locate(name_or_path)
    suffix = next((s for s in sorted(_CORPUS_FILES, key=len, reverse=True) if path.name.lower().endswith(s)), None)
    if suffix is None:
        raise TalasError(f"corpus {name_or_path!r}: cannot tell its format. Accepted endings: {listed(_CORPUS_FILES)}")
    name = _slug(path.name[: -len(suffix)]) or "file"
    return CorpusSpec(name=name, kind="file", path=str(path), description=f"your file {path.name}")


def _slug(text: str) -> str:
    """A name fit for a run id: small letters and digits, joined by hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))


def looks_like_file(corpus: str) -> bool:
    """Whether a corpus value means a file rather than a name of `params/corpora/`."""
    return "/" in corpus or "\\" in corpus or corpus.startswith("~") or corpus.lower().endswith(_CORPUS_FILES)


def load_method(name: str, overrides: dict[str, Any] | None = None) -> BaseModel:
    """The method's `Config`: its defaults, `params/methods/<name>.yaml` over them, `overrides` (method_params) on top."""
    document = _document("methods", name)
    model = methods.config_class(name)
    validate(model, document.values, document)
    if not overrides:
        return model.model_validate(document.values)
    given = Document(f"method_params of method {name}", overrides, {})
    return validate(model, {**document.values, **overrides}, given)


def load_preset(name: str) -> dict[str, Any]:
    """The notebook parameters of `params/presets/<name>.yaml`, grid and tables too, checked for name and type; none filled in."""
    document = _document("presets", name)
    for key, value in document.values.items():
        if key not in VOCABULARY:
            raise TalasError(
                f"{document.where((key,))}: no notebook has a parameter"
                f" {key!r}.{did_you_mean(key, VOCABULARY)}"
                f" Accepted: {listed(VOCABULARY)}"
            )
        try:
            VOCABULARY[key].check(value)
        except TalasError as error:
            raise TalasError(f"{document.where((key,))}: {error}") from None
    expand_tables(document.values, document.where)
    return copy.deepcopy(document.values)


def _load(kind: str, name: str, model: type[S], source: str | None = None) -> S:
    document = _document(kind, name)
    if "name" in document.values:
        raise TalasError(f"{document.where(('name',))}: the file's name is the name, {name!r}; remove the key `name`")
    spec = validate(model, {"name": name, **document.values}, document)
    if isinstance(spec, (TeacherSpec, StudentSpec)):
        where = f"{kind.rstrip('s')}_source" if source else document.where(("source",))
        parse_source(source or spec.source, where)
    return spec.model_copy(update={"source": source, "revision": None, "hub_id": None}) if source else spec


def _document(kind: str, name: str) -> Document:
    path = spec_path(kind, name)
    if not _NAME.fullmatch(name) or not path.is_file():
        names = available(kind)
        what = _SINGULAR.get(kind, kind.rstrip("s"))
        example = f"params/{kind}/{names[0]}.yaml" if names else f"params/{kind}/"
        guess = did_you_mean(name, names)
        if kind == "teachers" and any((place / name / "config.json").is_file() for place in (Path.cwd(), paths.root())):
            guess = f" For the folder of that name write ./{name}."
        raise TalasError(
            f"unknown {what} {name!r}.{guess} Accepted: {listed(names)}. To add your"
            f" own, copy {example} to"
            f" params/{kind}/<name>.yaml (small letters, digits, `.`, `_`, `-`): the file's name is the value"
        )
    return read_yaml(path)


M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], values: dict[str, Any], document: Document) -> M:
    """`model` from `values`. Raises TalasError with file and line of each fault, not pydantic's report."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults: dict[str, list[str]] = {}
        for fault in error.errors(include_url=False):
            subject, complaint = _fault(model, dict(fault), document)
            faults.setdefault(subject, []).append(complaint)
    # a union reports one fault a member: together they say what is accepted
    raise TalasError("; ".join(subject + " or ".join(complaints) for subject, complaints in faults.items()))


def _fault(model: type[BaseModel], fault: dict[str, Any], document: Document) -> tuple[str, str]:
    """(what is wrong with where it stands, what was expected) of one of pydantic's faults."""
    location: Location = fault["loc"]
    where, kind, value = document.where(location), fault["type"], fault["input"]
    if kind == "extra_forbidden":
        key = str(location[-1])
        keys = [name for name in _keys_at(model, location[:-1]) if name != "name" or len(location) > 1]
        return f"{where}: unknown key {key!r}.", f"{did_you_mean(key, keys)} Accepted: {listed(keys)}"
    if kind == "missing":
        return f"{where}: ", f"the key {location[-1]!r} is missing"
    if kind == "value_error":
        return f"{where}: ", str(fault["ctx"]["error"])
    # a union puts the tag of its member at the end of the location
    shown = ".".join(str(part) for part in location if part not in ("int", "float") and "[" not in str(part))
    expected = fault["msg"].removeprefix("Input should be ")
    if isinstance(value, str) and kind in ("float_type", "int_type") and NUMBER.fullmatch(value.strip()):
        way_out = YAML_FLOAT_HINT if "e" in value.lower() else "it is text; remove the quotes:"
        expected += f": {way_out} {yaml_number(value)}"
    return f"{where}: {shown} is {value!r} ({type(value).__name__}), expected ", expected


def _keys_at(model: Any, location: Location) -> list[str]:
    """Keys accepted at a nested location, found through the models' annotations."""
    for part in location:
        fields = getattr(model, "model_fields", {})
        if part in fields:
            model = fields[part].annotation
        models = [m for m in _members(model) if hasattr(m, "model_fields")]
        model = models[0] if models else model
    return list(getattr(model, "model_fields", {}))


def _members(annotation: Any) -> list[Any]:
    inner = typing.get_args(annotation)
    return [annotation, *(m for arg in inner for m in _members(arg))] if inner else [annotation]


def spec_path(kind: str, name: str) -> Path:
    """The file behind a name, for messages and provenance."""
    return paths.params_dir() / kind / f"{name}.yaml"
