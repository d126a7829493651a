"""The stages of an experiment, from resolved parameters to files: data, teacher cache, training.

Each stage is safe to call again: what is finished is read, what is unfinished goes on. Notebooks 01 to 03 are these
functions with explanations around them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from talas_lib import (
    checkpoints,
    collapse,
    distribution,
    export,
    fitting,
    kept_weights,
    methods,
    model_folders,
    params,
    run_lock,
    runs,
    sources,
)
from talas_lib.caching import Caches, cache_teacher, cache_tokens, open_caches, open_tokens, token_estimate
from talas_lib.errors import TalasError, listed
from talas_lib.methods.base import Method, Objective, Preparation
from talas_lib.release import model_card
from talas_lib.schedule import Settings, spans
from talas_lib.sharpness_aware import Approximation, Perturbation
from talas_lib.tokenization import TextTokenizer
from talas_lib.train import TrainingResult, decay_of_unused_rows, train
from talas_lib.training_data import TrainingData

if TYPE_CHECKING:
    from talas_lib.corpora import Corpus
    from talas_lib.divergence import Policy
    from talas_lib.encoders import Encoder
    from talas_lib.params import ResolvedParams

__all__ = [
    "Caches",
    "build_method",
    "cache_teacher",
    "cache_tokens",
    "load_corpus",
    "load_run_student",
    "open_caches",
    "open_tokens",
    "prepare",
    "settings_of",
    "token_estimate",
    "train_run",
    "training_data",
]
Progress = Callable[[int, int], None]
CHECKPOINT = "checkpoints/last.safetensors"


def load_corpus(p: ResolvedParams) -> Corpus:
    """The training sentences of an experiment. TalasError when method or optimizer needs more sources than they have."""
    corpus = sources.load_corpus(p.corpus_spec, max_sentences=p.max_sentences, share_held_out=p.hold_out)
    _check_sources(p, corpus)
    return corpus


def _check_sources(p: ResolvedParams, corpus: Corpus) -> None:
    """TalasError when the method or the optimizer compares sources and the corpus has too few of them."""
    wants = {f"method {p.method}": p.needs.sources} if "method" in p.values else {}
    if "optimizer" in p.values and p.optimizer_spec.kind == "disam":
        wants[f"optimizer {p.optimizer}"] = 2
    there = sorted(set(corpus.sources))
    for who, least in wants.items():
        if len(there) < least:
            raise TalasError(
                f"{who} compares at least {least} sources of sentences, and corpus {corpus.name} has {len(there)}"
                f" ({listed(there)}). Accepted: a corpus with several, such as {listed(params.available('corpora'))}, or a .csv"
                " or .jsonl file of yours with a column `source`, or another one that `-p source_column` names"
            )


def settings_of(p: ResolvedParams) -> Settings:
    """Training settings from parameters."""
    optimizer = p.optimizer_spec
    around = None
    if optimizer.kind != "adamw":
        kind = "sam" if optimizer.kind == "disam" else optimizer.kind  # DISAM differs by what it climbs
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
        ascent=Approximation(optimizer.ascent_stride, optimizer.ascent_one_view, optimizer.ascent_every),
    )


def build_method(p: ResolvedParams, *, student: Encoder, teacher_dims: tuple[int, ...]) -> Method:
    """The method object, its heads drawn from the run's seed. TalasError when it does not fit the student."""
    return fitting.build_method(p, student_dim=student.dim, num_layers=student.num_layers, teacher_dims=teacher_dims)


def prepare(p: ResolvedParams, method: Method, student: Encoder, corpus: Corpus, caches: Caches) -> None:
    """Let the method fit what it has to fit, from the caches and the untrained student."""

    def vectors(rows: np.ndarray) -> np.ndarray:
        return student.encode([corpus.texts[row] for row in rows], normalize=False)

    method.prepare(Preparation(len(corpus), tuple(cache.vectors for cache in caches.vectors), vectors, p.batch_size))


def training_data(p: ResolvedParams, student: Encoder, corpus: Corpus, caches: Caches) -> TrainingData:
    """Tokenised corpus, what the caches hold for it, and numbers for equal texts and for sources."""
    _, text_ids = np.unique(np.array(corpus.texts, dtype=object), return_inverse=True)
    _, source_ids = np.unique(np.array(corpus.sources, dtype=object), return_inverse=True)
    tokens, needs = student.tokenize(corpus.texts), p.needs
    reads_tokens = needs.token_cache or needs.student_tokens or needs.student_attention
    return TrainingData(
        tokens,
        tuple(cache.vectors for cache in caches.vectors),
        text_ids.astype(np.int64),
        source_ids.astype(np.int64),
        special=TextTokenizer.of(student).special(tokens) if reads_tokens else None,
        tokens_of=None if caches.tokens is None else caches.tokens.tokens,
        pairs_of=None if caches.alignment is None else caches.alignment.pairs,
    )


def train_run(
    p: ResolvedParams, *, progress: Progress | None = None, on_log: Callable[[dict[str, Any]], None] | None = None
) -> runs.Run:
    """Train one configuration, or go on where it stopped, or return the finished run untouched.

    TalasError when another process trains this run.
    """
    run = runs.open_run(p, create=False)
    if not _finished(run):
        _check_keep_epochs(p)
        run_lock.refuse_if_trained(run)  # before the caches, which may take long
        corpus = load_corpus(p)
        computed = methods.builds_student(p.method)
        caches = _vocabulary_cache(p, progress) if computed else open_caches(p, corpus)
        run = distribution.first_then_all(lambda: runs.open_run(p))  # not made before all that it reads is there
        with run_lock.training(run):
            if not _finished(run):  # by another process, while the caches were made
                if computed:
                    _build(p, run, corpus, caches)
                else:
                    _train(p, run, corpus, caches, progress, on_log)
                distribution.wait()
    if distribution.is_first():
        _tidy(run)
    return run


def _tidy(run: runs.Run) -> None:
    """Remove what a finished run needs no more, and what processes that were killed left half-written."""
    checkpoint = run.folder / CHECKPOINT
    for file in (checkpoint, *checkpoint.parent.glob(f".{checkpoint.name}.*.tmp")):
        file.unlink(missing_ok=True)
    for folder in run.folder.glob(".model.*"):
        shutil.rmtree(folder, ignore_errors=True)
    run_lock.clear(run)


def _finished(run: runs.Run) -> bool:
    """Whether the record of training is there; of several processes the first one's answer counts."""
    return bool(distribution.first_says(run.read_record("train") is not None))


def _train(
    p: ResolvedParams,
    run: runs.Run,
    corpus: Corpus,
    caches: Caches,
    progress: Progress | None,
    on_log: Callable[[dict[str, Any]], None] | None,
) -> None:
    """The steps of a run and its student; of several processes the first alone writes."""
    student = sources.load_student(p.student_spec, device=sources.pick_device(p.device))
    method = build_method(p, student=student, teacher_dims=caches.dims)
    prepare(p, method, student, corpus, caches)
    settings = settings_of(p)
    plan, per_epoch = spans(method.stages, len(corpus.texts), settings), settings.steps_per_epoch(len(corpus.texts))
    total = plan[-1].stop
    checkpoint = run.folder / CHECKPOINT
    if distribution.is_first():
        run.truncate_metrics(checkpoints.finished_steps(checkpoint))
    watch = collapse.Watch(total, collapse.Circumstances.of(p, method.weights, student))
    for earlier in run.read_metrics():
        watch.see(earlier, warn=False)

    def log(row: dict[str, Any]) -> None:
        run.append_metrics(row)
        watch.see(row)
        if progress is not None:
            progress(row["step"], total)
        if on_log is not None:
            on_log(row)

    def keep(epoch: int) -> None:
        if epoch in p.keep_epochs and epoch < total // per_epoch:  # the last epoch's are the finished run's own
            whole = student.whole_state(decay_of_unused_rows(plan, settings, epoch * per_epoch))
            kept_weights.save(run.folder, epoch, {"student": whole, "heads": method.heads.state_dict()})

    result = train(
        Objective(student, method, needs=p.needs, precision=p.precision),
        training_data(p, student, corpus, caches),
        settings,
        checkpoint=checkpoint,
        checkpoint_every=p.checkpoint_every,
        probe_every=p.probe_every,
        on_log=log,
        on_epoch=keep,
        nonfinite=cast("Policy", p.nonfinite),
    )
    if distribution.is_first():
        _finish(run, student, method, corpus, caches, result, watch.message)


def _check_keep_epochs(p: ResolvedParams) -> None:
    """TalasError when weights of an epoch are to be kept that the run, all stages of its method together, does not reach."""
    stages = methods.method_class(p.method).stages_of(p.method_config)
    epochs = sum(p.epochs if stage.epochs is None else stage.epochs for stage in stages)
    beyond = [str(epoch) for epoch in p.keep_epochs if epoch > epochs]
    if beyond:
        raise TalasError(
            f"keep_epochs names {listed(beyond)}, and this run has {epochs} epochs. Accepted: 1 to {epochs}"
        )


def _vocabulary_cache(p: ResolvedParams, progress: Progress | None) -> Caches:
    """The teacher's vectors of the vocabulary, for a method that computes its student from them."""
    from talas_lib.corpora import Corpus

    method: Any = methods.method_class(p.method)(p.method_config)  # type: ignore[call-arg]
    texts = tuple(method.vocabulary(sources.load_tokenizer(p.student_spec).tokenizer))
    return Caches((cache_teacher(p, Corpus("vocabulary", texts, ("",) * len(texts)), progress=progress),))


def _build(p: ResolvedParams, run: runs.Run, corpus: Corpus, caches: Caches) -> None:
    """The run of a method that computes its student from the teacher's vectors of the vocabulary: no steps, one logged row."""
    if not distribution.is_first():
        return
    from talas_lib import losses

    method: Any = methods.method_class(p.method)(p.method_config)  # type: ignore[call-arg]
    tokenizer = sources.load_tokenizer(p.student_spec).tokenizer
    (cache,) = caches.vectors
    began = time.perf_counter()
    student = method.build_student(tokenizer, corpus.texts, cache.vectors(np.arange(len(cache))))
    seconds = time.perf_counter() - began
    sample = torch.from_numpy(student.encode(corpus.texts[:256]))
    geometry = {
        "mean_cosine": float(losses.mean_off_diagonal_cosine(sample)),
        "effective_rank": float(losses.effective_rank(sample)),
    }
    run.truncate_metrics(0)
    run.append_metrics({"step": 0, "epoch": 0.0, "lr": 0.0, **geometry})
    result = TrainingResult(0, seconds, 0, geometry)
    _finish(run, student, method, corpus, caches, result, collapse.check(geometry))


def _finish(
    run: runs.Run,
    student: Encoder,
    method: Method,
    corpus: Corpus,
    caches: Caches,
    result: TrainingResult,
    alarm: str | None,
) -> None:
    """Save the student with what the method leaves behind its pooling, load it back, and write the record last.

    alarm: what `collapse` has to say of the training, None for nothing.
    """
    began = time.perf_counter()
    student.projection = method.output()
    student.to("cpu").eval()
    folder = export.save_student(student, run.folder / "model", heads=method.heads)
    cosine = export.check_loads(student, folder, corpus.texts[:32])
    record = {
        "steps": result.steps,
        "sentences": len(corpus.texts),
        "corpus_sha256": corpus.sha256,
        "teacher_dims": list(caches.dims),
        "cache_key": caches.key,
        "cache_s": caches.seconds,
        "train_s": result.seconds + runs.earlier_seconds(run),
        "save_s": time.perf_counter() - began,
        "resumed_from": result.resumed_from,
        "pooling": student.pooling,
        "output": "static" if method.builds_student else "pooled" if student.projection is None else "projected",
        "dim": student.output_dim,
        "loaded_cosine": cosine,
        "fitted": {name: float(value) for name, value in method.heads.named_buffers() if value.ndim == 0},
        "final": result.final,
        "skipped_steps": result.skipped,
        "processes": result.processes,
        "collapse": alarm,
    }
    model_card.write(run, record)
    run.write_record("train", record)


def load_run_student(run: runs.Run) -> Encoder:
    """The trained student of a finished run, with what its method left behind the pooling.

    TalasError when the run has not finished training.
    """
    from talas_lib.encoders import Encoder

    record = run.read_record("train")
    if record is None:
        raise TalasError(f"run {run.id} has not finished training; run notebooks/03_train.ipynb with its parameters")
    folder = run.folder / "model"
    model_folders.check_sums(folder)
    if record.get("output") == "static":
        from talas_lib.static_encoder import StaticEncoder

        return cast("Encoder", StaticEncoder.load(folder))  # what is asked of a finished student, it can do
    student = Encoder.load(folder, pooling=record["pooling"], max_length=run.params.student_spec.max_length)
    if record.get("output") == "projected":
        from talas_lib import output_modules

        student.projection = output_modules.read(folder)
    return student
