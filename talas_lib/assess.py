"""What notebooks 04 and 05 do: score a run on its tasks and measure its sharpness, next to reference models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from talas_lib import collapse, efficiency, export, item_results, methods, runs, scoring, sources, stages
from talas_lib.encoders import Encoder
from talas_lib.errors import TalasError
from talas_lib.methods.base import Objective
from talas_lib.sharpness import SharpnessResult, measure_sharpness
from talas_lib.texts import comparison_key

if TYPE_CHECKING:
    from talas_lib.params import ResolvedParams, TaskSuiteSpec

Progress = Callable[[int, int], None]
def items_file(run: runs.Run, suite: str) -> Path:
    """Where a run's results by test item lie (see item_results)."""
    return run.folder / "items" / f"{suite}.npz"


def evaluate_run(
    run: runs.Run,
    suite: TaskSuiteSpec,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a finished run on a suite, with the references; recorded by suite (runs.evaluation_stage), and not repeated.

    precision: fp32 or bf16 of encoding, for the run and the references. progress: told the texts encoded so far and in all,
    over the four models; what is kept counts as encoded. The record holds scores, geometry with `collapse` (a message or
    None), efficiency, and the same of each reference; what each test item came to goes to `items_file`.
    """
    what = scoring.Evaluation.of(suite, precision=precision, device=device)
    stage = runs.evaluation_stage(suite.name)
    record = run.read_record(stage)
    if record is not None and record.get("suite") == what.identity and _has_items(run, what):
        return record
    student = stages.load_run_student(run).to(device)
    training = stages.load_corpus(run.params).texts
    size = len(what.texts)
    total = size * (1 + len(scoring.REFERENCES))
    own = scoring.score_encoder(student, what, training_texts=training, progress=scoring.part(progress, 0, total))
    cost = scoring.measured(student, what)
    seen = {comparison_key(text) for text in training}
    references = scoring.reference_scores(run.params, what, seen=seen, progress=scoring.part(progress, size, total))
    item_results.save(items_file(run, what.suite), what.identity, own.items)
    record = {
        "suite": what.identity,
        **own.record,
        "collapse": _collapse(run, own.record["geometry"], references),
        "efficiency": efficiency.with_score(cost, own.record["avg"]),
        "references": references,
    }
    run.write_record(stage, record)
    _refresh_card(run)
    return record


def _has_items(run: runs.Run, what: scoring.Evaluation) -> bool:
    try:
        item_results.load(items_file(run, what.suite), what.identity)
    except TalasError:
        return False
    return True


def _collapse(run: runs.Run, geometry: Mapping[str, float], references: Mapping[str, Any]) -> str | None:
    """What is wrong with the geometry of the finished student, beside the untrained one with the same pooling."""
    untrained = references.get(f"untrained_{(run.read_record('train') or {})['pooling']}")
    rows = run.read_metrics()
    terms = [name.removeprefix("loss_") for name in (rows[0] if rows else {}) if name.startswith("loss_")]
    return collapse.check(
        geometry,
        start=None if untrained is None else untrained["geometry"],
        done=1.0,
        circumstances=collapse.Circumstances.of(run.params, terms),
    )


def _refresh_card(run: runs.Run) -> None:
    """The model card again, with the scores of every suite the run was evaluated on."""
    scores: dict[str, dict[str, Any]] = {}
    for record in run.evaluations().values():
        references = record["references"]
        better = max(("untrained_cls", "untrained_mean"), key=lambda n: references[n]["avg"])
        for task, row in record["tasks"].items():
            scores[task] = {
                "metric": row["metric"],
                "student": row["score"],
                "teacher": references["teacher"]["tasks"][task]["score"],
                "untrained": references[better]["tasks"][task]["score"],
            }
    stages.write_card(run, run.read_record("train") or {}, scores=scores)


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
    caches = stages.open_caches(p, corpus)
    rows = fixed_rows(len(corpus.texts), settings.sharpness_batches, settings.sharpness_batch_size, settings.seed)
    data, used = stages.training_data(p, student, corpus, caches).renumbered(rows.ravel())
    objective = Objective(student, method, needs=p.needs, precision="fp32")
    method.heads.to(student.device).eval()
    method.enter(len(method.stages) - 1)  # the objective that training ended with
    student.eval()
    student.compact_vocabulary(used.to(student.device))
    batches = [data.batch(r, student.device) for r in rows]

    def loss_on(batch: Any) -> Callable[[], torch.Tensor]:
        return lambda: objective(batch)[0]

    try:
        with sdpa_kernel(SDPBackend.MATH):
            return measure_sharpness(
                [loss_on(b) for b in batches],
                list(student.model.parameters()),
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


def sharpness_run(run: runs.Run, settings: ResolvedParams, *, progress: Progress | None = None) -> dict[str, Any]:
    """Sharpness of a finished run and of its untrained student under the same objective; recorded as `sharpness`.

    settings: the parameters of notebook 05 (batches, tolerance, seed of batches and starting vectors). progress: told when
    each of the two students is measured.
    """
    p = run.params
    names = ("sharpness_batches", "sharpness_batch_size", "sharpness_tol", "sharpness_max_iter", "seed")
    asked = {name: getattr(settings, name) for name in names}
    record = run.read_record("sharpness")
    if record is not None and record["settings"] == asked:
        return record
    if methods.builds_student(p.method):
        raise TalasError(
            f"run {run.id} has no loss and so no Hessian: method {p.method} computes its student without training."
            " Measure the run of another method"
        )
    began = time.perf_counter()
    device = sources.pick_device(settings.device)
    student = stages.load_run_student(run).to(device)
    method = _trained_method(run, p, student)
    result = student_sharpness(student, method, p, settings)
    record = {"settings": asked, **sharpness_record(result, time.perf_counter() - began)}
    if progress is not None:
        progress(1, 2)
    record["untrained"] = _untrained_sharpness(run, p, settings, asked)
    if progress is not None:
        progress(2, 2)
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
        "student": scoring.student_identity(p),
        "pooling": (run.read_record("train") or {})["pooling"],
        "method": [p.method, p.method_config.model_dump(), p.seed],
        "data": [(run.read_record("train") or {})[key] for key in ("corpus_sha256", "cache_key")],
        "recipe_version": p.run_config()["recipe_version"],
    }

    def compute() -> dict[str, Any]:
        began = time.perf_counter()
        student = sources.load_student(p.student_spec, device=sources.pick_device(settings.device))
        fresh = stages.build_method(p, student=student, teacher_dims=_teacher_dims(run))
        corpus = stages.load_corpus(p)
        stages.prepare(p, fresh, student, corpus, stages.open_caches(p, corpus))
        return sharpness_record(student_sharpness(student, fresh, p, settings), time.perf_counter() - began)

    return scoring.kept("sharpness", content, compute)
