"""What notebooks 04 and 05 do: score a run on its tasks and measure its sharpness, next to reference models.

References (teacher, untrained student) depend on no run; their results are kept under `outputs/cache` by content and shared.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from talas_lib import export, paths, runs, sources, stages
from talas_lib.encoders import Encoder
from talas_lib.evaluate import SuiteScores, evaluate_suite
from talas_lib.methods.base import Objective
from talas_lib.sharpness import SharpnessResult, measure_sharpness

if TYPE_CHECKING:
    from talas_lib.params import ResolvedParams, TaskSuiteSpec
    from talas_lib.tasks import Task

REFERENCES = ("teacher", "untrained_cls", "untrained_mean")


def scores_record(scores: SuiteScores, seconds: float) -> dict[str, Any]:
    """A JSON-ready record of a suite's scores, 0 to 100."""
    tasks = {
        s.task: {
            "kind": s.kind,
            "in_average": s.in_average,
            "metric": s.metric,
            "score": s.score,
            "n": s.n,
            "details": dict(s.details),
            "seconds": s.seconds,
        }
        for s in scores.scores
    }
    return {**scores.averages(), "tasks": tasks, "texts": scores.texts, "seconds": seconds}


def score_encoder(
    encoder: Encoder,
    tasks: tuple[Task, ...],
    protocol: str,
    *,
    pooling: str | None = None,
    precision: str = "fp32",
    training_texts: Sequence[str] = (),
) -> dict[str, Any]:
    """Scores of one encoder on the tasks, from fp32 vectors that are not normalised.

    training_texts: pair and similarity tasks are then also scored without the pairs that share a sentence with them.
    """
    began = time.perf_counter()

    def encode(texts: Sequence[str]) -> np.ndarray:
        return encoder.encode(texts, normalize=False, pooling=pooling, precision=precision)

    scores = evaluate_suite(encode, tasks, protocol=protocol, training_texts=training_texts)
    return scores_record(scores, time.perf_counter() - began)


def reference_scores(
    p: ResolvedParams, tasks: tuple[Task, ...], protocol: str, device: str = "cpu"
) -> dict[str, dict[str, Any]]:
    """Scores of the teacher and of the untrained student with CLS and with mean pooling; computed once and kept."""
    found = {}
    for name in REFERENCES:
        if name == "teacher":
            identity = sources.teacher_identity(p.teacher_spec)
        else:
            identity = _student_identity(p) | {"pooling": name.removeprefix("untrained_")}
        content = {"reference": identity, "tasks": [task.sha256 for task in tasks]}
        found[name] = _kept("scores", content, partial(_score_reference, p, name, tasks, protocol, device))
    return found


def _score_reference(
    p: ResolvedParams, name: str, tasks: tuple[Task, ...], protocol: str, device: str
) -> dict[str, Any]:
    if name == "teacher":
        return score_encoder(sources.load_teacher(p.teacher_spec, device=device), tasks, protocol)
    student = sources.load_student(p.student_spec, device=device)
    return score_encoder(student, tasks, protocol, pooling=name.removeprefix("untrained_"))


def _student_identity(p: ResolvedParams) -> dict[str, Any]:
    from talas_lib.model_folders import folder_fingerprint

    folder = sources.model_folder(p.student_spec)
    layers = None if p.student_spec.layers is None else list(p.student_spec.layers)
    return {**folder_fingerprint(folder), "layers": layers, "max_length": p.student_spec.max_length}


def evaluate_run(run: runs.Run, suite: TaskSuiteSpec, *, device: str = "cpu") -> dict[str, Any]:
    """Score a finished run on a suite, with the references; recorded as `evaluate`, and not repeated."""
    tasks = sources.load_tasks(suite)
    asked = {"name": suite.name, "protocol": suite.protocol, "sha256": [task.sha256 for task in tasks]}
    record = run.read_record("evaluate")
    if record is not None and record["suite"] == asked:
        return record
    student = stages.load_run_student(run).to(device)
    own = score_encoder(student, tasks, suite.protocol, training_texts=stages.load_corpus(run.params).texts)
    record = {"suite": asked, **own, "references": reference_scores(run.params, tasks, suite.protocol, device)}
    run.write_record("evaluate", record)
    _refresh_card(run, run.params, record)
    return record


def _refresh_card(run: runs.Run, p: ResolvedParams, record: Mapping[str, Any]) -> None:
    """The model card again, now with scores."""
    references = record["references"]
    better = max(("untrained_cls", "untrained_mean"), key=lambda n: references[n]["avg"])
    scores = {
        task: {
            "metric": row["metric"],
            "student": row["score"],
            "teacher": references["teacher"]["tasks"][task]["score"],
            "untrained": references[better]["tasks"][task]["score"],
        }
        for task, row in record["tasks"].items()
    }
    trained = run.read_record("train") or {}
    card = export.model_card(
        name=run.id,
        teacher=p.teacher,
        student=p.student,
        method=f"{p.method} with {p.optimizer}",
        corpus=p.corpus,
        pooling=trained["pooling"],
        scores=scores,
    )
    runs.atomic_write_text(run.folder / "model" / "README.md", card)


# ---- sharpness


def fixed_rows(sentences: int, batches: int, batch_size: int, seed: int) -> np.ndarray:
    """Corpus rows of the fixed batches, `[batches, batch_size]`: a function of its arguments alone."""
    size = min(batch_size, sentences)
    rows = np.random.default_rng([seed, 7]).permutation(sentences)
    return (
        np.resize(rows, (batches, size))
        if sentences < batches * size
        else rows[: batches * size].reshape(batches, size)
    )


def student_sharpness(student: Encoder, method: Any, p: ResolvedParams, settings: ResolvedParams) -> SharpnessResult:
    """Largest Hessian eigenvalue of the method's full objective at these weights.

    Encoder parameters only (the projection heads' curvature measures their norm), fixed batches, dropout off, fp32,
    attention by plain matrix products (the fused kernels have no second derivative). Embedding rows that no fixed
    batch uses have zero curvature and are left out: the nonzero spectrum is the same.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    corpus = stages.load_corpus(p)
    cache = stages.cache_teacher(p, corpus) if p.needs_teacher else None
    rows = fixed_rows(len(corpus.texts), settings.sharpness_batches, settings.sharpness_batch_size, settings.seed)
    data, used = stages.training_data(student, corpus, cache).renumbered(rows.ravel())
    objective = Objective(student, method, precision="fp32")
    method.heads.to(student.device)
    student.eval()
    student.compact_vocabulary(used.to(student.device))
    batches = [data.batch(r, student.device) for r in rows]

    def loss_on(batch: Any) -> Callable[[], torch.Tensor]:
        return lambda: objective(batch)[0]

    try:
        with sdpa_kernel(SDPBackend.MATH):
            return measure_sharpness(
                [loss_on(b) for b in batches],
                list(student.parameters()),
                seed=settings.seed,
                tol=settings.sharpness_tol,
                max_iter=settings.sharpness_max_iter,
                cache_graphs=True,
            )
    finally:
        student.expand_vocabulary()


def sharpness_record(result: SharpnessResult, seconds: float) -> dict[str, Any]:
    """A JSON-ready record: the headline with its residual, and every estimate."""
    head = result.lanczos_max
    return {
        "lambda_max": result.lambda_max,
        "lambda_max_residual": head.residual,
        "converged": head.converged,
        "subset": result.subset,
        "parameters": result.parameters,
        "loss": result.loss,
        "rows": result.to_rows(),
        "power_trace": list(result.power_abs_max.trace),
        "seconds": seconds,
    }


def sharpness_run(run: runs.Run, settings: ResolvedParams) -> dict[str, Any]:
    """Sharpness of a finished run and of its untrained student under the same objective; recorded as `sharpness`.

    settings: the parameters of notebook 05 (batches, tolerance, seed of batches and starting vectors).
    """
    p = run.params
    names = ("sharpness_batches", "sharpness_batch_size", "sharpness_tol", "sharpness_max_iter", "seed")
    asked = {name: getattr(settings, name) for name in names}
    record = run.read_record("sharpness")
    if record is not None and record["settings"] == asked:
        return record
    began = time.perf_counter()
    device = sources.pick_device(settings.device)
    student = stages.load_run_student(run).to(device)
    method = _trained_method(run, p, student)
    result = student_sharpness(student, method, p, settings)
    record = {"settings": asked, **sharpness_record(result, time.perf_counter() - began)}
    record["untrained"] = _untrained_sharpness(run, p, settings, asked)
    run.write_record("sharpness", record)
    return record


def _trained_method(run: runs.Run, p: ResolvedParams, student: Encoder) -> Any:
    """The method with the heads saved beside the model."""
    from safetensors.torch import load_file

    file = run.folder / "model" / export.HEADS_FILE
    state = load_file(file) if file.is_file() else {}
    method = stages.build_method(p, student=student, teacher_dims=_teacher_dims(run))
    method.heads.load_state_dict(state)
    return method


def _teacher_dims(run: runs.Run) -> tuple[int, ...]:
    return tuple((run.read_record("train") or {})["teacher_dims"])


def _untrained_sharpness(
    run: runs.Run, p: ResolvedParams, settings: ResolvedParams, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The untrained student under the run's objective with freshly drawn heads, kept for all runs that share it."""
    content = {
        "sharpness": asked,
        "student": _student_identity(p),
        "pooling": (run.read_record("train") or {})["pooling"],
        "method": [p.method, p.method_config.model_dump(), p.seed],
        "data": [(run.read_record("train") or {})[key] for key in ("corpus_sha256", "cache_key")],
        "recipe_version": p.run_config()["recipe_version"],
    }

    def compute() -> dict[str, Any]:
        began = time.perf_counter()
        student = sources.load_student(p.student_spec, device=sources.pick_device(settings.device))
        fresh = stages.build_method(p, student=student, teacher_dims=_teacher_dims(run))
        return sharpness_record(student_sharpness(student, fresh, p, settings), time.perf_counter() - began)

    return _kept("sharpness", content, compute)


def _kept(kind: str, content: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A result under `outputs/cache`, named by what determines it."""
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    file: Path = paths.cache_dir() / f"{kind}-{key}.json"
    if file.is_file():
        return json.loads(file.read_text())
    result = compute()
    runs.atomic_write_json(file, result)
    return result
