"""The stages of an experiment, from resolved parameters to files: data, teacher cache, training.

Each stage is safe to call again: what is finished is read, what is unfinished goes on. Notebooks 01 to 03 are these
functions with explanations around them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from talas_lib import checkpoints, export, methods, paths, runs, sources, teacher_cache
from talas_lib.errors import TalasError
from talas_lib.methods.base import Method, Objective
from talas_lib.schedule import Settings, spans
from talas_lib.sharpness_aware import Perturbation
from talas_lib.train import TrainingResult, train
from talas_lib.training_data import TrainingData

if TYPE_CHECKING:
    from talas_lib.corpora import Corpus
    from talas_lib.encoders import Encoder
    from talas_lib.params import ResolvedParams
    from talas_lib.teacher_cache import TeacherCache

Progress = Callable[[int, int], None]
CHECKPOINT = "checkpoints/last.safetensors"


def load_corpus(p: ResolvedParams) -> Corpus:
    """The training sentences of an experiment."""
    return sources.load_corpus(p.corpus_spec, max_sentences=p.max_sentences)


def cache_teacher(p: ResolvedParams, corpus: Corpus, *, progress: Progress | None = None) -> TeacherCache:
    """Teacher vectors of the corpus: opened when they are there, else computed. The teacher is loaded only if needed."""
    identity = sources.teacher_identity(p.teacher_spec, precision=p.precision)
    loaded: list[Encoder] = []

    def embed(texts: Any) -> np.ndarray:
        if not loaded:
            loaded.append(sources.load_teacher(p.teacher_spec, device=sources.pick_device(p.device)))
        return loaded[0].encode(texts, precision=p.precision)

    return teacher_cache.build(paths.cache_dir(), identity, corpus.texts, embed, progress=progress)


def settings_of(p: ResolvedParams) -> Settings:
    """Training settings from parameters."""
    optimizer = p.optimizer_spec
    around = None
    if optimizer.kind != "adamw":
        kind = (
            "sam" if optimizer.kind == "disam" else optimizer.kind
        )  # DISAM perturbs as SAM does, of another objective
        around = Perturbation(
            kind,
            optimizer.rho or 0.0,
            optimizer.eta or 0.0,
            optimizer.bias_mode or "abs",
            optimizer.variance_weight or 0.0,
        )
    return Settings(
        epochs=p.epochs,
        batch_size=p.batch_size,
        lr=p.lr,
        min_lr=p.min_lr,
        warmup=p.warmup,
        weight_decay=p.weight_decay,
        seed=p.seed,
        perturbation=around,
        perturb_heads=optimizer.perturb_heads is not False,
        same_dropout=bool(optimizer.same_dropout),
    )


def build_method(p: ResolvedParams, *, student: Encoder, teacher_dims: tuple[int, ...]) -> Method:
    """The method object, its heads drawn from the run's seed. TalasError when it does not fit the student."""
    generator = torch.Generator().manual_seed(p.seed)
    try:
        return methods.method_class(p.method)(  # type: ignore[call-arg]
            p.method_config,
            student_dim=student.dim,
            teacher_dims=teacher_dims,
            num_layers=student.num_layers,
            generator=generator,
        )
    except ValueError as error:
        raise TalasError(f"method {p.method} does not fit student {p.student}: {error}") from error


def training_data(student: Encoder, corpus: Corpus, cache: TeacherCache | None) -> TrainingData:
    """Tokenised corpus, teacher vectors, and numbers for equal texts and for sources."""
    _, text_ids = np.unique(np.array(corpus.texts, dtype=object), return_inverse=True)
    _, source_ids = np.unique(np.array(corpus.sources, dtype=object), return_inverse=True)
    vectors = () if cache is None else (cache.vectors,)
    return TrainingData(student.tokenize(corpus.texts), vectors, text_ids.astype(np.int64), source_ids.astype(np.int64))


def train_run(
    p: ResolvedParams, *, progress: Progress | None = None, on_log: Callable[[dict[str, Any]], None] | None = None
) -> runs.Run:
    """Train one configuration, or go on where it stopped, or return the finished run untouched."""
    run = runs.open_run(p)
    if run.read_record("train") is not None:
        return run
    corpus = load_corpus(p)
    student = sources.load_student(p.student_spec, device=sources.pick_device(p.device))
    cache = cache_teacher(p, corpus) if p.needs_teacher else None
    method = build_method(p, student=student, teacher_dims=(cache.dim,) if cache else ())
    settings = settings_of(p)
    total = spans(method.stages, len(corpus.texts), settings)[-1].stop
    checkpoint = run.folder / CHECKPOINT
    run.truncate_metrics(checkpoints.finished_steps(checkpoint))

    def log(row: dict[str, Any]) -> None:
        run.append_metrics(row)
        if progress is not None:
            progress(row["step"], total)
        if on_log is not None:
            on_log(row)

    result = train(
        Objective(student, method, needs=methods.needs(p.method, p.method_config), precision=p.precision),
        training_data(student, corpus, cache),
        settings,
        checkpoint=checkpoint,
        checkpoint_every=p.checkpoint_every,
        probe_every=p.probe_every,
        on_log=log,
    )
    return _finish(run, p, student, method, corpus, cache, result)


def _finish(
    run: runs.Run,
    p: ResolvedParams,
    student: Encoder,
    method: Any,
    corpus: Corpus,
    cache: TeacherCache | None,
    result: TrainingResult,
) -> runs.Run:
    began = time.perf_counter()
    card = export.model_card(
        name=run.id,
        teacher=p.teacher,
        student=p.student,
        method=f"{p.method} with {p.optimizer}",
        corpus=corpus.name,
        pooling=student.pooling,
        scores={},
    )
    folder = export.save_student(student.to("cpu"), run.folder / "model", heads=method.heads, card=card)
    cosine = export.check_loads(student, folder, corpus.texts[:32])
    run.write_record(
        "train",
        {
            "steps": result.steps,
            "sentences": len(corpus.texts),
            "corpus_sha256": corpus.sha256,
            "teacher_dims": [cache.dim] if cache else [],
            "cache_key": cache.folder.name if cache else None,
            "cache_s": cache.seconds if cache else 0.0,
            "train_s": result.seconds + runs.earlier_seconds(run),
            "save_s": time.perf_counter() - began,
            "resumed_from": result.resumed_from,
            "pooling": student.pooling,
            "loaded_cosine": cosine,
            "final": result.final,
        },
    )
    (run.folder / CHECKPOINT).unlink(missing_ok=True)
    return run


def load_run_student(run: runs.Run) -> Encoder:
    """The trained student of a finished run. TalasError when the run has not finished training."""
    from talas_lib.encoders import Encoder

    record = run.read_record("train")
    if record is None:
        raise TalasError(f"run {run.id} has not finished training; run notebooks/03_train.ipynb with its parameters")
    return Encoder.load(run.folder / "model", pooling=record["pooling"], max_length=run.params.student_spec.max_length)
