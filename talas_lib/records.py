"""Where the small record of each finished stage lies: what the Snakefile waits for and the notebooks write last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talas_lib import paths

if TYPE_CHECKING:
    from talas_lib.params import ResolvedParams

EVALUATION_VERSION = 2  # raise it when a score or the content of a record changes: older ones are then computed anew


def run_file(run_id: str, stage: str) -> Path:
    """Record of a run's stage: train, sharpness, or evaluate-<suite>."""
    return paths.outputs() / run_id / "records" / f"{stage}.json"


def data_file(p: ResolvedParams) -> Path:
    """Record of notebook 01 for this corpus and suite."""
    return _shared("data", p.corpus_spec.name, _corpus(p) | {"tasks": p.tasks_spec.model_dump(mode="json")})


def cache_file(p: ResolvedParams) -> Path:
    """Record of notebook 02 for these teachers and this corpus; another one where the method reads token states as well."""
    from talas_lib.params import model_identity

    teachers = [spec.model_dump(mode="json") for spec in p.teacher_specs]
    models = [model_identity(spec) for spec in p.teacher_specs]  # a local folder by its content
    content = _corpus(p) | {"teacher": teachers[0], "model": models[0], "precision": p.precision}
    if len(teachers) > 1:
        content["others"] = [[spec, model] for spec, model in zip(teachers[1:], models[1:], strict=True)]
    label = f"{p.teacher_names}-{p.corpus_spec.name}"
    if p.needs.token_cache:
        content["tokens"] = {"states": sorted(p.needs.teacher_tokens), "attention": sorted(p.needs.teacher_attention)}
        label += "-tokens"
    return _shared("cache", label, content)


def _corpus(p: ResolvedParams) -> dict[str, Any]:
    from talas_lib.params import corpus_identity

    held = {"hold_out": p.hold_out} if p.hold_out else {}
    return {"corpus": corpus_identity(p.corpus_spec), "max_sentences": p.max_sentences} | held


def _shared(stage: str, label: str, content: dict[str, Any]) -> Path:
    text = json.dumps(content, sort_keys=True, default=str)
    return paths.outputs() / "records" / f"{stage}-{label}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
