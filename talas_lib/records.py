"""Where the small record of each finished stage lies: what the Snakefile waits for and the notebooks write last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talas_lib import paths

if TYPE_CHECKING:
    from talas_lib.params import ResolvedParams


def run_file(run_id: str, stage: str) -> Path:
    """Record of a run's stage: train, evaluate or sharpness."""
    return paths.outputs() / run_id / "records" / f"{stage}.json"


def data_file(p: ResolvedParams) -> Path:
    """Record of notebook 01 for this corpus and suite."""
    return _shared("data", p.corpus_spec.name, _corpus(p) | {"tasks": p.tasks_spec.model_dump(mode="json")})


def cache_file(p: ResolvedParams) -> Path:
    """Record of notebook 02 for this teacher and corpus."""
    from talas_lib.params import model_identity

    content = _corpus(p) | {"teacher": p.teacher_spec.model_dump(mode="json"), "precision": p.precision}
    content["model"] = model_identity(p.teacher_spec)  # a local folder by its content
    return _shared("cache", f"{p.teacher_spec.name}-{p.corpus_spec.name}", content)


def _corpus(p: ResolvedParams) -> dict[str, Any]:
    from talas_lib.params import corpus_identity

    return {"corpus": corpus_identity(p.corpus_spec), "max_sentences": p.max_sentences}


def _shared(stage: str, label: str, content: dict[str, Any]) -> Path:
    text = json.dumps(content, sort_keys=True, default=str)
    return paths.outputs() / "records" / f"{stage}-{label}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.json"
