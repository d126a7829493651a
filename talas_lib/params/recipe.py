"""What determines a training run: the dict behind its id, and the version of the training mathematics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from talas_lib.params.fingerprints import corpus_identity, model_identity
from talas_lib.params.specs import Specs
from talas_lib.params.vocabulary import VOCABULARY

# Raised whenever training mathematics changes: runs and caches from before then never count as finished.
RECIPE_VERSION = 2

_SCHEDULE = ("seed", "epochs", "batch_size", "lr", "min_lr", "warmup", "weight_decay", "precision")
_TEACHER_READING = {"pooling", "padding_side", "prompt", "max_length", "attention", "normalize"}


def default_min_lr(lr: float) -> float:
    """A tenth of the peak, without the rounding noise that would make 0.1 * 2e-5 another number than 2e-6."""
    return float(f"{lr / 10:.12g}")


def run_config(specs: Specs, values: Mapping[str, Any], needs_teacher: bool) -> dict[str, Any]:
    """All that determines a training run, JSON-ready. values: resolved notebook parameters; a schedule name
    the notebook leaves out counts with the vocabulary's default. A method without teacher has None there: any
    teacher is the same run. Several teachers stand, in order, under `teachers` in place of `teacher`.

    Raises TalasError when a local model or corpus is not there.
    """
    assert specs.student is not None
    assert specs.corpus is not None
    assert specs.method is not None
    assert specs.optimizer is not None
    schedule = {name: values.get(name, VOCABULARY[name].default) for name in _SCHEDULE}
    if schedule["min_lr"] is None:
        schedule["min_lr"] = default_min_lr(schedule["lr"])
    teachers = [
        {"model": model_identity(spec), **spec.model_dump(mode="json", include=_TEACHER_READING)}
        for spec in (specs.teachers if needs_teacher else ())
    ]
    student = specs.student.model_dump(mode="json", include={"layers", "pooling", "max_length"})
    return {
        "recipe_version": RECIPE_VERSION,
        **({"teachers": teachers} if len(teachers) > 1 else {"teacher": teachers[0] if teachers else None}),
        "student": {"model": model_identity(specs.student), **student},
        "corpus": {
            **corpus_identity(specs.corpus),
            "max_sentences": values.get("max_sentences"),
            # not there without one, so that runs from before there was such a parameter are the same runs
            **({"hold_out": values["hold_out"]} if values.get("hold_out") else {}),
        },
        "method": {"name": values["method"], **specs.method.model_dump(mode="json")},
        "optimizer": {"kind": specs.optimizer.kind, **specs.optimizer.settings},
        **schedule,
    }


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of a JSON-ready mapping, whatever the order of its keys."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
